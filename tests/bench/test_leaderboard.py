"""The leaderboard: figures against hand-computed ones, splits apart, and text that is only shown."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from backsweep.bench.figures import board, published, ranking
from backsweep.bench.records import Scan, read, read_all, scan_of
from backsweep.core.errors import BadInput
from backsweep.render.boards.leaderboard import page, table
from backsweep.zoo.build import JUDGING_SEEDS, split_of
from reporting import make_line

HOSTILE = ("<script>alert(1)</script>", "a | b", "a\nb", "[x](javascript:alert(1))", "`*_~$", "\u202eevil")


def scans(*ps: float | None, attack: str | None = None, **more: Any) -> list[Scan]:
    found = [scan_of(make_line("mnist", attack, 10 + i, p, **more)) for i, p in enumerate(ps)]
    return [s for s in found if s is not None]


def test_figures_against_hand_computed_ones() -> None:
    """3 attacked nets against 4 clean ones: 10 of the 12 pairs are in the right order."""
    ranked = ranking(scans(0.001, 0.01, 0.3, attack="badnets"), scans(0.02, 0.5, 0.2, 0.9))
    assert ranked is not None
    assert ranked.auroc.value == pytest.approx(10 / 12)
    assert ranked.auroc.low < 10 / 12 < ranked.auroc.high
    assert ranked.tpr5.value == ranked.tpr1.value == pytest.approx(2 / 3)
    assert ranked.tpr5.fpr == ranked.tpr1.fpr == 0


def test_a_false_alarm_in_twenty_is_allowed_at_five_percent_and_not_at_one() -> None:
    clean = scans(0.001, *[0.5 + i / 100 for i in range(19)])
    ranked = ranking(scans(0.01, 0.02, attack="badnets"), clean)
    assert ranked is not None
    assert (ranked.tpr5.value, ranked.tpr5.fpr) == (1.0, 0.05)
    assert (ranked.tpr1.value, ranked.tpr1.fpr) == (0.0, 0.0)


def test_score_breaks_ties_and_no_p_value_ranks_below_all() -> None:
    low, high = scans(0.01, score=3.0)[0], scans(0.01, score=4.0)[0]
    (none,) = scans(None, score=9.0)
    assert none.suspicion < scans(1.0)[0].suspicion < low.suspicion < high.suspicion
    ranked = ranking(scans(None, 0.01, attack="badnets"), scans(None, 0.9))
    assert ranked is not None
    assert ranked.auroc.value == pytest.approx((0.5 + 0 + 1 + 1) / 4)
    assert ranked.tpr5.value == 0.5, "what gave no p-value is never caught"


@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=40),
    st.lists(st.integers(0, 20), min_size=1, max_size=40),
)
@settings(max_examples=40, deadline=None)
def test_rates_are_those_of_the_roc_curve(a: list[int], c: list[int]) -> None:
    ranked = ranking(
        scans(*[10.0**-x for x in a], attack="x", score=1), scans(*[10.0**-x for x in c], score=1)
    )
    assert ranked is not None
    labels, values = [1] * len(a) + [0] * len(c), [*a, *c]
    assert ranked.auroc.value == pytest.approx(roc_auc_score(labels, values))
    fpr, tpr, _ = roc_curve(labels, values, drop_intermediate=False)
    for share, found in ((0.05, ranked.tpr5), (0.01, ranked.tpr1)):
        assert found.value == pytest.approx(tpr[fpr <= share + 1e-9].max())
        assert found.fpr is not None
        assert found.fpr <= share + 1e-9
        assert 0 <= found.low <= found.high <= 1


def test_the_bootstrap_is_over_networks_and_can_be_repeated() -> None:
    rng = np.random.default_rng(0)
    bad = scans(*rng.uniform(0, 0.6, 12).tolist(), attack="badnets")
    good = scans(*rng.uniform(0.1, 1, 9).tolist())
    first = ranking(bad, good)
    assert first == ranking(bad[::-1], good[::-1]), "the order of the lines changes nothing"
    assert first is not None
    # the same by a plain loop over networks, attacked and clean apart
    draws = []
    for _ in range(1000):
        a = rng.choice([s.suspicion[0] for s in bad], len(bad))
        c = rng.choice([s.suspicion[0] for s in good], len(good))
        draws.append(roc_auc_score([1] * len(a) + [0] * len(c), [*a, *c]))
    low, high = np.quantile(draws, [0.025, 0.975])
    assert first.auroc.low == pytest.approx(low, abs=0.03)
    assert first.auroc.high == pytest.approx(high, abs=0.03)
    more = ranking(bad * 4, good * 4)
    assert more is not None
    assert more.auroc.high - more.auroc.low < first.auroc.high - first.auroc.low


def test_a_row_counts_verdicts_targets_and_what_cannot_be_told() -> None:
    many = {"targets": [2, 5], "suspected": [5, 2]}
    lines = [
        make_line("mnist", "badnets", 10, 0.01, **many),
        make_line("mnist", "badnets", 11, 0.01, suspected=[4]),
        make_line("mnist", "badnets", 12, 0.01, verdict="inconclusive", suspected=[2]),
        make_line("mnist", "badnets", 13, None, verdict="error", cpu_seconds=0.0, passes=0, jaccard=None),
        make_line("mnist", "badnets", 14, 0.01, options={"all_to_all": True}, targets=[], jaccard=0.1),
        make_line("mnist", None, 10, 0.04, cpu_seconds=8.0),
        make_line("mnist", None, 11, 0.9, cpu_seconds=10.0),
    ]
    overall, plain, to_all = board(lines).rows
    assert [r.group for r in (overall, plain, to_all)] == ["", "badnets", "badnets all_to_all"]
    assert (plain.caught.hits, plain.caught.n) == (2, 4)
    assert (plain.target.hits, plain.target.n) == (1, 2)
    assert plain.undecided == (2, 0)
    assert plain.jaccard == pytest.approx(0.5)
    assert plain.cpu_seconds == 6.0
    assert (to_all.caught.hits, to_all.target.n) == (1, 0)
    assert (overall.caught.hits, overall.caught.n, overall.alarms.hits, overall.alarms.n) == (3, 5, 1, 2)
    assert overall.cpu_seconds == 6.0


def test_numbers_are_a_range_and_other_options_a_group() -> None:
    lines = [
        make_line("mnist", "badnets", 10, 0.01, options={"rate": 0.05}),
        make_line("mnist", "badnets", 11, 0.01, options={"rate": 0.01}, recipe={"epochs": 2}),
        make_line("mnist", "badnets", 12, 0.01, options={"pattern": "random"}),
        make_line("mnist", "badnets", 13, 0.01, options={"pattern": "white", "all_to_all": False}),
        make_line("mnist", "badnets", 14, 0.01, arch="gap_cnn"),
        make_line("mnist", "badnets", 15, 0.01, arch="mnist_cnn"),
        make_line("mnist", None, 10, 0.9), make_line("mnist", None, 14, 0.9, arch="gap_cnn"),
    ]  # fmt: skip
    rows = {r.group: r for r in board(lines).rows}
    assert set(rows) == {"", "badnets", "badnets pattern=random", "badnets gap_cnn"}
    assert len(rows["badnets"].bad) == 4
    assert rows["badnets"].strength == "rate 0.01 to 0.1, epochs 2 to 4"
    assert rows["badnets pattern=random"].strength == ""
    assert len(rows["badnets"].good) == len(rows["badnets gap_cnn"].good) == 1, "clean nets of the same kind"
    assert len(rows[""].good) == 2


def test_splits_are_never_mixed() -> None:
    assert (split_of(JUDGING_SEEDS - 1), split_of(JUDGING_SEEDS)) == ("choosing", "judging")
    lines = [make_line("mnist", a, s, 0.01) for a in (None, "badnets") for s in (0, 9, 10, 11, 12)]
    for line in lines:
        line["split"] = "judging"  # what a line says does not count, its seed does
    judging, choosing = board(lines, "judging"), board(lines, "choosing")
    assert {s.seed for s in judging.chosen.lines} == {10, 11, 12}
    assert {s.seed for s in choosing.chosen.lines} == {0, 9}
    assert (judging.chosen.other, choosing.chosen.other) == (4, 6)
    assert "Split: judging. 6 networks (3 attacked, 3 clean, seeds 10 to 12)" in table(lines)
    assert "Split: choosing. 4 networks (2 attacked, 2 clean, seeds 0 to 9)" in table(lines, "choosing")
    assert "flatter" in table(lines, "choosing")
    assert "Leaderboard: choosing networks" in page(lines, "choosing")


def test_the_last_line_of_a_network_counts_and_the_gate_leaves_out() -> None:
    lines = [
        make_line("mnist", None, 10, 0.01), make_line("mnist", None, 10, 0.9),
        make_line("mnist", "badnets", 11, 0.01, gate="attack success rate 10.0% is below 90 %"),
    ]  # fmt: skip
    found = board(lines)
    assert [s.p_value for s in found.chosen.lines] == [0.9]
    assert found.chosen.older == 1
    assert "mnist-badnets-s11: attack success rate 10.0% is below 90 %" in table(lines)
    assert page(lines[2:])


def test_lines_of_older_versions_are_understood() -> None:
    line = make_line("mnist", "badnets", 10, 0.01)
    del line["targets"]
    found = [scan_of({**line, "target": 3}), scan_of({**line, "target": None})]
    assert [s.targets for s in found if s is not None] == [(3,), ()]
    assert found[0] is not None
    assert (found[0].split, found[0].alpha, found[0].group) == ("judging", 0.05, "badnets")


def test_torn_lines_and_foreign_ones_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    good = json.dumps(make_line())
    path.write_text(f'{good[:40]}\n{good}\n[1, 2]\n{{"net": 3}}\n\n{good[:-9]}')
    assert len(read(path)) == 2
    assert board(read(path)).chosen.damaged == 1
    assert "1 that cannot be read" in table(read(path))


@pytest.mark.parametrize(
    ("text", "split", "says"),
    [
        ("", "judging", "there is no scan of a judging network: run the bench first"),
        (json.dumps(make_line(seed=3)), "judging", "there are 1 of the other split"),
        (json.dumps(make_line()), "both", "there is no split 'both'"),
    ],
)
def test_nothing_to_show_is_one_line(tmp_path: Path, text: str, split: str, says: str) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text(text)
    for make in (table, page):
        with pytest.raises(BadInput, match=says) as e:
            make(read(path), split)
        assert "\n" not in str(e.value)
    with pytest.raises(BadInput, match="cannot read"):
        read(tmp_path / "missing.jsonl")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_only_shown(text: str) -> None:
    fields = dict.fromkeys(("net", "task", "attack", "detector", "verdict", "reason", "torch"), text)
    lines = [{**make_line("mnist", "badnets", 10, 0.01), **fields}, make_line("mnist", None, 10, 0.5)]
    lines += [
        make_line(
            "mnist", "badnets", 11, 0.5, gate=text, options={text: text}, arch=text, settings={text: text}
        )
    ]
    shown = page(lines)
    assert shown.count("<script") == 1, "the page's own, which nothing is put into"
    assert "\u202e" not in shown
    plain = table(lines)
    assert not re.search(r"<(?!=)|\u202e|(?<!\\)\[", plain)
    for block in plain.split("\n\n"):
        if block.startswith("|"):
            widths = {len(re.findall(r"(?<!\\)\|", row)) for row in block.split("\n")}
            assert len(widths) == 1, "a name neither ends a row nor adds a column"


WORD = st.text(max_size=12)
NUMBER = st.none() | st.floats() | st.integers() | st.booleans() | WORD
LINE = st.fixed_dictionaries(
    {
        "net": WORD.filter(bool), "task": st.sampled_from(["mnist", "gtsrb", "other"]),
        "attack": st.none() | st.sampled_from(["badnets", "unknown"]), "seed": st.integers(10, 40),
        "detector": st.sampled_from(["neural_cleanse", "unknown"]),
        "verdict": st.sampled_from(["clean", "backdoored", "inconclusive", "error"]),
    },
    optional={
        **dict.fromkeys((
            "p_value", "score", "alpha", "jaccard", "inside", "cpu_seconds", "passes", "updates", "norm",
            "gate", "reason", "arch", "most_suspicious", "detail_paper_index", "attack_success_rate",
            "target",
        ), NUMBER),
        "p_value": st.none() | st.floats(0, 1),
        "targets": st.lists(st.integers(0, 9)), "suspected": st.lists(st.integers(0, 9)),
        **dict.fromkeys(("options", "recipe", "settings"), st.dictionaries(WORD, NUMBER, max_size=3)),
    },
)  # fmt: skip


@given(st.lists(LINE, min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_any_lines_give_a_table(lines: list[dict[str, Any]]) -> None:
    assert table(lines).startswith("# Leaderboard: judging networks\n")
    assert page(lines).rstrip().endswith("</html>")


def test_published_figures_have_a_source_and_say_when_they_were_not_checked() -> None:
    assert published()
    for p in published():
        assert p.source
        assert p.checked or "not checked" in p.note
    shown = table([make_line("mnist", "badnets", 10, 0.01), make_line("mnist", None, 10, 0.9)])
    assert "AUROC 0.924 (2, unchecked)" in shown
    assert "(2) neural cleanse, mnist, badnets: AUROC 0.924." in shown
    other = make_line("mnist", "badnets", 10, 0.01, options={"all_to_all": True})
    assert "0.924" not in table([other]), "a figure of another variant of the attack"


def test_the_page_stands_alone_and_has_the_plot_as_text() -> None:
    shown = page([make_line("mnist", "badnets", 10, 0.01), make_line("mnist", None, 10, 0.9)])
    assert "default-src 'none'" in shown
    assert not re.search(r"<link|src=|url\(|@import", shown)
    script = shown.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in shown and shown.count("<script") == 1
    assert not re.search(r"fetch|XMLHttp|import|eval|innerHTML|localStorage|cookie", script)
    assert 'aria-label="p-values of 2 networks. clean: p from 0.9 to 0.9, 0 of 1 called backdoored' in shown
    assert shown.count("<circle cx=") + shown.count('<circle class="hot" cx=') >= 2


def test_no_plot_where_nothing_has_a_p_value() -> None:
    lines = [make_line("mnist", "badnets", 10, None, verdict="inconclusive", reason="skipped: 2 classes")]
    assert "skipped: 2 classes" in page(lines)
    assert "1 without a p-value" in page(lines)


@pytest.mark.parametrize(("name", "starts"), [("x.md", "# Leaderboard"), ("x.html", "<!doctype html>")])
def test_the_command_writes_what_the_ending_says(tmp_path: Path, name: str, starts: str) -> None:
    lines, out = tmp_path / "lines.jsonl", tmp_path / name
    lines.write_text(json.dumps(make_line(seed=2)) + "\n")
    command = [sys.executable, "-m", "backsweep", "bench", "table", str(lines), "--split", "choosing"]
    subprocess.run([*command, "--out", str(out)], check=True, capture_output=True)
    assert out.read_text(encoding="utf-8").lstrip().startswith(starts)


def test_several_files_and_different_networks(tmp_path: Path) -> None:
    one = [make_line("mnist", None, s, cell=f"a{s}") for s in (10, 11)]
    two = [make_line("mnist", None, s, detector="mm_bd", cell=f"b{s}") for s in (10, 11)]
    apart = [make_line("mnist", None, 12, detector="mm_bd", cell="b12")]
    files = []
    for name, lines in (("one", one), ("two", [*two, *one]), ("apart", apart)):
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(read_all(files[:2])) == 4, "what stands in two files counts once"
    assert "Not all were measured" not in table(read_all(files[:2]))
    said = "Not all were measured on the same networks: mm_bd on 3 and neural_cleanse on 2; 2 in common."
    assert said in table(read_all(files)).replace("\\_", "_") and said in page(read_all(files))
    out = tmp_path / "board.md"
    words = [sys.executable, "-m", "backsweep", "bench", "table", *map(str, files), "--out", str(out)]
    subprocess.run(words, check=True)
    assert said in out.read_text().replace("\\_", "_")
