"""Null tables: ranks among clean networks, when they fit, and how they are made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner

import backsweep
from backsweep.cli.app import app
from backsweep.core.discovery import discover, make
from backsweep.reports.report import ERROR, NOTE, WARNING, Evidence, Finding
from backsweep.scanning import calibration
from backsweep.scanning.calibration import UNCALIBRATED, Null
from backsweep.scanning.detector import ModelDetector
from conftest import Twins

MODEL = {"layout": "abc", "shape": [1, 8, 8], "classes": 10}


@dataclass(frozen=True)
class Fixed(ModelDetector):
    """Says what it is told: a score and a p-value for every class, and a note without one."""

    name: ClassVar[str] = "fixed"
    code: ClassVar[str] = "BSW999"
    strict: bool = True

    def judge(self, evidence: Sequence[Evidence], classes: int, alpha: float) -> list[Finding]:
        pairs = sorted(((float(e.values["score"] or 0), e.target) for e in evidence), reverse=True)
        found = [(s, t, 10**-s) for s, t in pairs]
        flagged = [(s, t, p) for s, t, p in found if p <= alpha]
        said = [
            Finding(self.code, self.name, ERROR if flagged else NOTE, "m", t, score=s, p_value=p)
            for s, t, p in flagged or found[:1]
        ]
        return [*said, Finding("BSW998", self.name, NOTE, "aside", 9, score=100.0)]


def evidence(*scores: float) -> list[Evidence]:
    return [Evidence("fixed", f"class-{t}", t, None, {"score": s}) for t, s in enumerate(scores)]


def null(*scores: float, **change: Any) -> Null:
    table = Null("fixed", {"strict": True}, "abc", [1, 8, 8], 10, sorted(scores), {"kind": "digits"})
    return replace(table, **change)


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch) -> Null:
    table = null(*[i / 10 for i in range(1, 40)])  # 0.1 ... 3.9
    monkeypatch.setattr(calibration, "tables", lambda: (table,))
    return table


def test_the_p_value_is_a_rank_with_the_network_itself_counted() -> None:
    table = null(*range(39))
    assert table.p_value(100.0) == 1 / 40
    assert table.p_value(38.0) == 2 / 40
    assert table.p_value(-1.0) == table.p_value(None) == 1.0
    assert table.critical(0.05) == 37
    assert table.p_value(37.5) == 0.05 < table.p_value(37)
    assert table.critical(0.025) == 38
    assert table.critical(0.01) is None, "39 networks cannot show so little"


def test_what_the_table_flags_is_flagged_and_nothing_else(one: Null) -> None:
    # the detector itself flags above 1.3; the table above 3.8
    told = calibration.judge(Fixed(), evidence(3.85, 2.0, 4.2), MODEL, 0.05)
    assert [(f.target, f.level) for f in told[:-1]] == [(2, ERROR), (0, ERROR)]
    assert [f.p_value for f in told[:-1]] == [1 / 40, 2 / 40]
    assert told[0].threshold == one.critical(0.05)
    assert told[0].details["null"] == "39 clean networks of digits"
    told = calibration.judge(Fixed(), evidence(3.0, 2.0, 1.5), MODEL, 0.05)
    assert [(f.target, f.level, f.p_value) for f in told[:-1]] == [(0, NOTE, 11 / 40)]


def test_a_table_too_small_for_the_level_cannot_tell(one: Null) -> None:
    (found,) = calibration.judge(Fixed(), evidence(9.0), MODEL, 0.01)
    assert (found.level, found.p_value) == (WARNING, 1 / 40)
    assert "higher alpha" in found.message


def test_a_detector_that_is_too_shy_is_made_to_speak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "tables", lambda: (null(*[i / 100 for i in range(39)]),))
    (found, _) = calibration.judge(Fixed(), evidence(0.9, 0.1), MODEL, 0.05)
    assert (found.level, found.target, found.p_value) == (ERROR, 0, 1 / 40)


def test_findings_without_a_p_value_keep_none(one: Null) -> None:
    aside = calibration.judge(Fixed(), evidence(3.85), MODEL, 0.05)[-1]
    assert (aside.code, aside.p_value, aside.threshold) == ("BSW998", None, None)


@pytest.mark.parametrize(
    "change",
    [
        {"layout": "x"},
        {"shape": [3, 8, 8]},
        {"classes": 43},
        {"settings": {"strict": False}},
        {"detector": "y"},
    ],
)
def test_a_table_of_another_kind_does_not_fit(
    change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "tables", lambda: (null(*range(39), **change),))
    (found, _) = calibration.judge(Fixed(), evidence(2.0), MODEL, 0.05)
    assert (found.p_value, found.details["null"]) == (10**-2.0, UNCALIBRATED)


def test_a_scan_says_what_its_p_value_rests_on(twins: Twins) -> None:
    report = backsweep.scan(twins.clean, twins.data, make(ModelDetector, "mm_bd"), device="cpu")
    assert [f.details["null"] for f in report.findings] == [UNCALIBRATED]
    assert report.model["layout"] == twins.infected.layout, "twins have one layout"


def line(seed: int, score: float, **change: object) -> dict[str, Any]:
    return {
        "detector": "fixed", "settings": {"strict": True}, "layout": "abc", "shape": [1, 8, 8], "classes": 10,
        "net": f"digits-clean-s{seed}", "task": "digits", "arch": None, "seed": seed, "attack": None,
        "recipe": {}, "score": score, "backsweep": "0", "torch": "2", **change,
    }  # fmt: skip


def test_tables_are_made_of_clean_calibration_networks_alone(tmp_path: Path) -> None:
    lines = [line(1000, 2.0), line(1001, 1.0), line(10, 9.0), line(1002, 9.0, attack="badnets")]
    lines.append(line(1003, 5.0, settings={"strict": False}))
    path, out = tmp_path / "lines.jsonl", tmp_path / "null.json"
    path.write_text("\n".join(map(json.dumps, lines)))
    result = CliRunner().invoke(app, ["bench", "null", str(path), "--out", str(out)])
    assert result.exit_code == 0, result.output
    found = [Null(**t) for t in json.loads(out.read_text())]
    assert [list(t.scores) for t in found] == [[1.0, 2.0], [5.0]]
    assert found[0].made["networks"] == ["digits-clean-s1000", "digits-clean-s1001"]
    assert found[0].fits(Fixed(), MODEL)


def test_the_tables_of_the_package_can_be_read_and_are_sorted() -> None:
    calibration.tables.cache_clear()
    for table in calibration.tables():
        kinds = discover(ModelDetector)
        assert list(table.scores) == sorted(table.scores)
        assert len(table.scores) == len(set(table.made["networks"])) >= 19
        own = kinds[table.detector].completed(table.settings)
        assert kinds[table.detector](**own).settings() == own


def test_where_most_classes_lie_beyond_a_table_the_others_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All-to-all poisoning: the classes' own p-values tie at 1, which must not flag a class at the floor."""
    from backsweep.auditing.detector import class_evidence
    from backsweep.auditing.detectors.cross_confusion import CrossConfusion

    detector = CrossConfusion()
    scores = [round(0.1 + 0.02 * i, 3) for i in range(40)]
    table = Null(detector.name, detector.settings(), "x", [1], 10, scores, {"kind": "test"})
    monkeypatch.setattr(calibration, "tables", lambda: (table,))
    evidence = [class_evidence(detector.name, c, 2.0 if c < 9 else 0.001, 0.0) for c in range(10)]
    found = calibration.judge(detector, evidence, {"classes": 10, "layout": "x", "shape": [1]}, 0.05)
    assert {f.target for f in found if f.level == ERROR} == set(range(9))
    assert all(f.p_value == pytest.approx(1 / 41) for f in found)
