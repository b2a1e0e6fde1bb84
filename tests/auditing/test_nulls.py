"""Unpoisoned sets as a null: exact for several detectors together, by kind and by size."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from backsweep.auditing import nulls
from backsweep.auditing.audit import DEFAULT_AUDITS, judge, made
from backsweep.auditing.detector import SetDetector, class_evidence
from backsweep.auditing.detectors.contamination_analyzer import ContaminationAnalyzer
from backsweep.auditing.detectors.cross_confusion import CrossConfusion
from backsweep.auditing.detectors.reclassification import Reclassification
from backsweep.auditing.nulls import ANY, Sets, Together, together
from backsweep.cli.app import app
from backsweep.core.discovery import discover
from backsweep.reports.audit import Audit
from backsweep.reports.report import BACKDOORED, CLEAN

MODEL = {"layout": "abc", "shape": [1, 8, 8], "classes": 10}
BOTH: tuple[SetDetector, ...] = (CrossConfusion(), ContaminationAnalyzer())
NAMES = tuple(d.name for d in BOTH)


def group(table: Any, own: Sequence[float]) -> Together:
    return Together(NAMES[: len(own)], np.array(table, dtype=float), np.array(own, dtype=float), "sets")


def smallest(found: Together) -> float:
    """The p-value of the set."""
    return min(found.p_value(n, s) for n, s in zip(found.names, found.own.tolist(), strict=True))


def test_one_detector_is_judged_by_its_rank() -> None:
    one = group([[v] for v in range(1, 40)], [7.5]).of(NAMES[0])
    assert one.p_value(100.0) == 1 / 40
    assert one.p_value(38.0) == 3 / 40
    assert one.p_value(None) == 1.0
    assert one.critical(0.05) == 38
    assert one.critical(0.01) is None, "39 sets cannot show so little"


def test_two_detectors_on_twenty_sets_can_decide_at_one_in_twenty() -> None:
    """By halves of alpha they could not: the smallest rank of 20 sets is 1/21."""
    rng = np.random.default_rng(0)
    table = np.exp(rng.standard_normal((20, 2)))
    found = group(table, [1e4, 1.0])
    assert found.p_value(NAMES[0], 1e4) == 1 / 21
    assert found.p_value(NAMES[1], 1.0) > 0.3
    assert found.of(NAMES[0]).critical(0.05) is not None
    usual = group(table, np.median(table, axis=0).tolist())
    assert smallest(usual) > 0.5


def test_the_further_of_two_first_places_counts_for_more() -> None:
    table = [[float(i), float(i)] for i in range(1, 20)] + [[1.0, 50.0]]
    barely = group(table, [19.5, 1.0]).p_value(NAMES[0], 19.5)
    assert barely == 2 / 21, "the other detector's outlier lies further out"
    assert group(table, [1e9, 1.0]).p_value(NAMES[0], 1e9) == 1 / 21


@pytest.mark.parametrize("shared", [0.0, 0.7])
def test_the_p_value_holds_for_any_distribution_and_dependence(shared: float) -> None:
    """4,000 sets drawn like those of their table, heavy-tailed and dependent: p <= alpha in at most alpha."""
    rng, hits = np.random.default_rng(1), {0.05: 0, 0.2: 0}
    for _ in range(4000):
        common = rng.standard_t(2, (25, 1))
        drawn = np.exp(shared * common + (1 - shared) * rng.standard_t(2, (25, 2)) * [0.3, 2.0])
        p = smallest(group(drawn[1:], drawn[0].tolist()))
        hits = {alpha: n + (p <= alpha) for alpha, n in hits.items()}
    for alpha, n in hits.items():
        expected = math.floor(25 * alpha) / 25
        assert n / 4000 == pytest.approx(expected, abs=4 * math.sqrt(expected / 4000)), alpha


def test_more_is_never_less_suspicious_and_alarms_begin_at_the_threshold() -> None:
    rng = np.random.default_rng(2)
    found = group(np.exp(rng.standard_normal((40, 2)) * [0.5, 2]), [1.0, 1.0])
    for name in NAMES:
        p = [found.p_value(name, float(s)) for s in np.exp(np.linspace(-3, 9, 60))]
        assert p == sorted(p, reverse=True)
        limit = found.of(name).critical(0.05)
        assert limit is not None
        assert found.p_value(name, limit) > 0.05 >= found.p_value(name, limit * 1.0001)


def table(samples: int, *columns: tuple[SetDetector, Sequence[float | None]], **change: Any) -> Sets:
    said = [{"detector": d.name, "settings": d.settings(), "scores": list(s)} for d, s in columns]
    return replace(Sets("abc", [1, 8, 8], 10, samples, said, {"kind": "digits"}), **change)


def use(monkeypatch: pytest.MonkeyPatch, *known: Sets) -> None:
    monkeypatch.setattr(nulls, "tables", lambda: known)


def asked(samples: int, detectors: Sequence[SetDetector] = BOTH, **model: Any) -> list[Together]:
    return together(detectors, {d.name: 1.0 for d in detectors}, {**MODEL, **model}, samples)


def test_the_table_of_the_nearest_size_is_taken_and_another_size_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = ((BOTH[0], [1.0, 2.0]), (BOTH[1], [3.0, 4.0]))
    use(monkeypatch, table(60000, *both), table(2000, *both), table(0, *both, layout=ANY))
    assert [g.words for g in asked(1800)] == ["2 unpoisoned sets of digits with about 2,000 samples"]
    (far,) = asked(9000)
    assert far.words == "2 unpoisoned sets of digits with about 2,000 samples (this one has 9,000)"
    assert asked(50000)[0].words == "2 unpoisoned sets of digits with about 60,000 samples"
    (other,) = asked(1800, layout="xyz")
    assert other.words == "2 unpoisoned sets of digits", "of any kind, where there is none of this"
    assert not asked(1800, [CrossConfusion(rounds=1)], layout="xyz"), "of another setting"


def test_detectors_of_one_table_are_judged_together_by_the_sets_that_all_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(monkeypatch, table(2000, (BOTH[0], [1.0, 2.0, 3.0]), (BOTH[1], [None, 5.0, 6.0])))
    (found,) = asked(2000)
    assert found.names == NAMES
    assert found.table.tolist() == [[2.0, 5.0], [3.0, 6.0]]
    (alone,) = asked(2000, BOTH[:1])
    assert alone.table.tolist() == [[1.0], [2.0], [3.0]]
    use(monkeypatch, table(2000, (BOTH[0], [1.0])), table(900, (BOTH[1], [2.0])))
    assert sorted(g.names for g in asked(2000)) == [(n,) for n in sorted(NAMES, reverse=True)[::-1]]


def line(seed: int, audit: str, score: float, **change: Any) -> dict[str, Any]:
    return {
        **MODEL, "net": f"digits-s{seed}", "task": "digits", "seed": seed, "attack": None, "audit": audit,
        "settings": {}, "score": score, "samples": 1200, "backsweep": "0", "torch": "0", **change,
    }  # fmt: skip


def test_tables_are_made_by_kind_and_size_and_of_all_together(tmp_path: Path) -> None:
    lines = [
        line(1000, "a", 1.0),
        line(1000, "b", 2.0),
        line(1001, "a", 3.0),
        line(1002, "a", 4.0, samples=90),
    ]
    lines += [line(1003, "a", 9.0, attack="badnets"), line(5, "a", 9.0)]
    path, out = tmp_path / "lines.jsonl", tmp_path / "null.json"
    path.write_text("\n".join(map(json.dumps, lines)))
    result = CliRunner().invoke(app, ["bench", "null", str(path), "--out", str(out)])
    assert result.exit_code == 0, result.output
    found = [Sets(**t) for t in json.loads(out.read_text())]
    assert [(t.layout, t.samples) for t in found] == [("abc", 1200), ("abc", 90), (ANY, 1200)]
    assert [c["scores"] for c in found[0].columns] == [[1.0, 3.0], [2.0, None]]
    assert [c["scores"] for c in found[2].columns] == [[1.0, 3.0, 4.0], [2.0, None, None]]
    assert found[0].made["sets"] == ["digits-s1000", "digits-s1001"]


def test_the_tables_of_the_package_can_be_read_and_know_the_default_detectors() -> None:
    nulls.tables.cache_clear()
    kinds = discover(SetDetector)
    for known in nulls.tables():
        for column in known.columns:
            own = kinds[column["detector"]].completed(column["settings"])
            assert kinds[column["detector"]](**own).settings() == own
            assert len(column["scores"]) == len(known.made["sets"]) == len(set(known.made["sets"]))
    usual: list[Any] = [made(n) for n in DEFAULT_AUDITS]
    for shape in ([1, 8, 8], [1, 28, 28]):
        layouts = {t.layout for t in nulls.tables() if list(t.shape) == shape}
        for layout in layouts:
            (found,) = together(
                usual, dict.fromkeys(DEFAULT_AUDITS, 1.0),
                {"layout": layout, "shape": shape, "classes": 10}, 1800,
            )  # fmt: skip
            assert len(found.names) == len(DEFAULT_AUDITS)
            assert found.of(DEFAULT_AUDITS[0]).critical(0.05) is not None, "an audit can decide"


def test_kinds_count_alike_however_many_sets_they_have() -> None:
    """Twenty kinds with one set, one with a hundred, which all score higher than the set under suspicion."""
    rows = [[float(i)] for i in range(20)] + [[1000.0 + i] for i in range(100)]
    kinds = [f"kind {i}" for i in range(20)] + ["many"] * 100
    by_kind = Together(NAMES[:1], np.array(rows), np.array([500.0]), "", kinds)
    assert by_kind.p_value(NAMES[0], 500.0) == 2 / 22
    assert group(rows, [500.0]).p_value(NAMES[0], 500.0) == 101 / 121
    half = Together(NAMES[:1], np.array(rows), np.array([1050.0]), "", kinds)
    assert half.p_value(NAMES[0], 1050.0) == pytest.approx(1.5 / 22)
    assert half.p_value(NAMES[0], 1e6) == 1 / 22


def test_two_detectors_over_kinds_hold_their_rate_for_a_set_of_another_kind() -> None:
    """Kinds differ in level and have 1 to 9 sets; the set that is judged is of a kind of its own."""
    rng, hits, runs = np.random.default_rng(3), 0, 1500
    for _ in range(runs):
        count = rng.integers(1, 10, 24)
        level = rng.normal(0, 1, (25, 2))
        rows = [np.exp(level[k] + rng.normal(0, 0.7, 2)) for k in range(24) for _ in range(count[k])]
        own = np.exp(level[24] + rng.normal(0, 0.7, 2))
        kinds = [str(k) for k in range(24) for _ in range(count[k])]
        hits += smallest(Together(NAMES, np.array(rows), own, "", kinds)) <= 0.1
    assert hits / runs <= 0.1 + 3 * math.sqrt(0.09 / runs)


def test_the_table_of_all_kinds_says_which_kind_each_set_is(monkeypatch: pytest.MonkeyPatch) -> None:
    name = NAMES[0]
    lines = [
        line(
            1000 + i, name, float(i), task=f"task {i % 20}", settings=BOTH[0].settings(), layout=f"l{i % 20}"
        )
        for i in range(40)
    ]  # fmt: skip
    *own, every = [Sets(**t) for t in nulls.make(lines)]
    assert not any(t.kinds for t in own)
    assert every.layout == ANY
    assert set(every.kinds) == {f"task {i} 1,200 samples" for i in range(20)}
    use(monkeypatch, every)
    (found,) = asked(1200, BOTH[:1], layout="unknown")
    assert found.words == "40 unpoisoned sets of 20 other kinds"
    assert found.p_value(name, 100.0) == found.least == 1 / 21
    pooled = replace(every, kinds=[], samples=1200)
    use(monkeypatch, pooled, replace(every, samples=9000))
    assert asked(1200, BOTH[:1], layout="unknown")[0].kinds is not None, "kinds before pooled sets"
    assert not Sets(**nulls.make(lines[:9])[-1]).kinds, "of few kinds, sets are pooled"


def test_a_detector_whose_table_cannot_call_takes_no_share_of_alpha(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 40 sets is as suspicious: 2/40 is called at 0.05, and would not be at half of it."""
    known, lost = ContaminationAnalyzer(), Reclassification()
    scores = [float(i) for i in range(1, 40)]
    said = [{"detector": d.name, "settings": d.settings(), "scores": scores} for d in (known, lost)]
    many = Sets(ANY, [], 0, 1200, said[:1], {})
    for kinds, found in ((["one"] * 39, BACKDOORED), ([], CLEAN)):
        use(monkeypatch, many, Sets(ANY, [], 0, 1200, said[1:], {}, kinds))
        report = Audit(
            model=MODEL, labels=torch.zeros(1200, dtype=torch.long),
            evidence=[class_evidence(known.name, 3, 38.5, 0.0), class_evidence(lost.name, 3, 1e9, 0.0)],
            settings={"alpha": 0.05, "detectors": {d.name: d.settings() for d in (known, lost)}},
        )  # fmt: skip
        if not kinds:  # both can call, so each has a half; the other one sees nothing
            report.evidence[1] = class_evidence(lost.name, 3, 1.0, 0.0)
        judge(report)
        assert report.verdict == found
        assert report.p_value == pytest.approx(2 / 40 if kinds else 4 / 40)
