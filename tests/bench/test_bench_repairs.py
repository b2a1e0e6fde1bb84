"""The bench of repairs on digits; its figures against hand-computed ones, and text that is only shown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backsweep import __version__
from backsweep.bench import detectors, kinds, repairs
from backsweep.bench.records import der, fix_of, read
from backsweep.bench.repair_figures import Row, board, published
from backsweep.core.discovery import make
from backsweep.core.errors import BadInput
from backsweep.core.seeds import derive_seed
from backsweep.inputs.image.triggers import Patch
from backsweep.models.model import Model
from backsweep.render.boards import leaderboard
from backsweep.repairing import repair
from backsweep.repairing.method import Case, Repair
from backsweep.repairing.methods.fine_tuning import FineTuning
from backsweep.scanning import scan
from backsweep.zoo import build
from reporting import make_line

PLAN: dict[str, Any] = {
    "nets": [{"task": "digits", "attack": "badnets", "seeds": [0], "options": {"size": 1, "margin": 0}}],
    "repairs": [
        {"name": ["fine_tuning", "unlearning"], "share": 0.4},
        {"name": "fine_tuning", "share": 0.05, "attacks": ["clean"]},
    ],
}


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """One cheap detector for the scan."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "DEFAULT_DETECTORS", ("neural_cleanse",))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo of an infected digits net and its twin."""
    folder = tmp_path_factory.mktemp("home") / "zoo"
    assert len(list(build.build(build.entries(PLAN), folder))) == 2
    return folder


@pytest.fixture(scope="module")
def out(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bench file of the plan."""
    out = tmp_path_factory.mktemp("bench") / "lines.jsonl"
    assert detectors.run(PLAN, folder, out) == 5
    return out


def test_what_networks_of_other_kinds_say_takes_the_place_of_a_scan(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The class that is suspected, no trigger; and no scan is made. A line says where it is from."""
    net = infected(folder)
    target = net.truth["triggers"][0]["target"]
    lines = tmp_path / "lines.jsonl"
    lines.write_text("")
    known = kinds.Network("digits", net.id, "badnets", (target,), None, 12.5)  # type: ignore[arg-type]
    other = kinds.Network("digits", "another", None, (), None, 12.5)  # type: ignore[arg-type]
    p_value = 0.01
    monkeypatch.setattr(kinds, "networks", lambda _lines: [known, other])
    monkeypatch.setattr(
        kinds, "apart", lambda some, kind: [kinds.Judged(n, p_value, target) for n in some if n.kind == kind]
    )
    monkeypatch.setattr(repairs, "scan_of", lambda *_: pytest.fail("it is not scanned"))
    repair = make(Repair, "fine_tuning", {"updates": 5})
    table = {"name": "fine_tuning", "settings": {"updates": 5}, "share": 0.4, "scans": str(lines)}
    ((entry, *given), *_) = repairs.cells({**PLAN, "repairs": [{**table, "attacks": ["badnets"]}]})
    assert (entry.id, given) == (net.id, [repair, 0.4, str(lines)])
    line = repairs.run_cell(net, repair, 0.4, str(lines))
    assert (line["verdict"], line["suspected"], line["recovered"]) == ("backdoored", [[None, target]], 0)
    assert (line["p_value"], line["scan_cpu_seconds"], line["scans"]) == (0.01, 12.5, str(lines))
    assert line["cell"] != repairs.cell_key(net, repair, 0.4)
    p_value = 0.3
    repairs._apart.cache_clear()
    line = repairs.run_cell(net, repair, 0.4, str(lines))
    assert (line["verdict"], line["suspected"]) == ("clean", [])
    twin = next(n for n in build.nets(folder) if not n.truth["attack"])
    assert "has no line" in repairs.run_cell(twin, repair, 0.4, str(lines))["error"]
    with pytest.raises(BadInput, match="is no file"):
        repairs.cells({**PLAN, "repairs": [{**table, "scans": str(tmp_path / "nowhere")}]})


def infected(folder: Path) -> build.Net:
    return next(n for n in build.nets(folder) if n.truth["attack"])


def test_a_line_says_what_a_repair_did(folder: Path, out: Path) -> None:
    lines = read(out)
    assert len({x["cell"] for x in lines}) == 5
    line = next(x for x in lines if x["attack"] and x["repair"] == "unlearning")
    net, (train, test) = infected(folder), build.load_data("digits")
    (trigger,) = net.triggers()
    assert line["success_before"] == net.model().success_rate(trigger, test)
    assert line["accuracy_before"] == net.truth["clean_accuracy"]
    assert line["success_after"] < 0.5 < line["success_before"], "the trigger that it was given is unlearned"
    assert line["robust_after"] > 0.5 > line["robust_before"]
    removed = line["success_before"] - line["success_after"]
    assert line["der"] == der(removed, line["accuracy_before"] - line["accuracy_after"])
    assert (line["verdict"], line["suspected"]) == ("backdoored", [[None, trigger.target]])
    assert line["recovered"] >= 1
    assert 0 <= line["twin_retuned"] <= 1
    assert 0 <= line["retuned"] <= 1
    assert line["samples"] == round(0.4 * len(train))
    assert min(line["cpu_seconds"], line["epoch_cpu_seconds"], line["scan_cpu_seconds"]) > 0
    assert len(line["sha256"]) == len(line["data_sha256"]) == len(line["repaired_sha256"]) == 64
    assert line["torch"] == torch.__version__
    key = repairs.key_of(line["net"], line["sha256"], "unlearning", line["settings"], 0.4, __version__)
    assert line["cell"] == key


def test_a_clean_net_has_figures_of_its_accuracy_alone(out: Path) -> None:
    (line,) = [x for x in read(out) if not x["attack"] and (x["repair"], x["share"]) == ("fine_tuning", 0.4)]
    assert line["accuracy_after"] > 0.9
    keys = ("success_before", "success_after", "robust_after", "der", "retuned", "twin_retuned")
    assert [line[k] for k in keys] == [None] * len(keys)


def test_what_cannot_be_made_is_a_line_with_the_reason(out: Path) -> None:
    lines = read(out)
    (skipped,) = [x for x in lines if x.get("skipped")]
    assert (skipped["repair"], skipped["attack"]) == ("unlearning", None)
    assert "trigger" in skipped["skipped"]
    assert "accuracy_after" not in skipped
    (failed,) = [x for x in lines if x.get("error")]
    assert failed["share"] == 0.05
    assert "too few samples" in failed["error"]
    text = leaderboard.table(lines, "choosing")
    assert "unlearning, 40 %: skipped on 1 network, " in text
    assert "fine_tuning, 5 %: failed on 1 network, scikit-learn digits: too few samples" in text


def test_finished_cells_and_scans_are_not_made_again(
    folder: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last line was torn: its cell alone is run, with the scan that an earlier cell left."""
    again, lines = tmp_path / "lines.jsonl", out.read_text().splitlines()
    last = next(i for i, x in enumerate(lines) if "repaired_sha256" in x and '"attack": "badnets"' in x)
    lines.append(lines.pop(last))
    again.write_text("\n".join([*lines[:-1], lines[-1][:60]]) + "\n")

    def never(*_args: Any, **_more: Any) -> None:
        raise AssertionError("the scan is there")

    monkeypatch.setattr(scan, "scan", never)
    assert detectors.run(PLAN, folder, again) == 5
    found = read(again)
    assert len(found) == 5
    old, new = json.loads(lines[-1]), found[-1]
    timed = {"cpu_seconds", "epoch_cpu_seconds"}
    assert {k: v for k, v in old.items() if k not in timed} == {
        k: v for k, v in new.items() if k not in timed
    }
    assert detectors.run(PLAN, folder, again) == 5
    assert len(read(again)) == 5


def test_a_scan_of_other_weights_is_not_used(folder: Path, out: Path) -> None:
    net, (train, _) = infected(folder), build.load_data("digits")
    clean = train.sample(round(0.4 * len(train)), derive_seed(0, "repair"))
    assert repairs.scan_of(net, clean, 0.4).verdict == "backdoored"
    (place,) = [
        p.parent for p in (folder.parent / "bench").glob("repair-scan-*/report.json")
        if json.loads(p.read_text())["model"]["sha256"] == net.model().digest
    ]  # fmt: skip
    raw = json.loads((place / "report.json").read_text())
    for part, key in (("model", "sha256"), ("data", "sha256"), ("settings", "seed"), ("versions", "torch")):
        other = {**raw, part: {**raw[part], key: "other"}}
        (place / "report.json").write_text(json.dumps(other))
        assert repairs.scan_of(net, clean, 0.4).verdict == "backdoored"
        now = json.loads((place / "report.json").read_text())
        assert now[part] == raw[part], f"the scan with another {key} of the {part} was not used"


def test_a_repair_sees_clean_training_samples_and_recovered_triggers_alone(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Case] = []

    def apply(_self: Repair, case: Case) -> Model:
        seen.append(case)
        return case.model.copy()

    monkeypatch.setattr(FineTuning, "apply", apply)
    net = infected(folder)
    line = repairs.run_cell(net, make(Repair, "fine_tuning"), 0.4)
    (case,), (train, test) = seen, build.load_data("digits")
    given = {x.numpy().tobytes() for x in (*case.clean.x, *case.held_out.x)}
    assert len(case.clean) + len(case.held_out) == round(0.4 * len(train))
    assert given <= {x.numpy().tobytes() for x in train.x}
    assert not given & ({x.numpy().tobytes() for x in test.x} - {x.numpy().tobytes() for x in train.x})
    (planted,) = net.triggers()
    assert isinstance(planted, Patch)
    for trigger in case.triggers:
        assert isinstance(trigger, Patch)
        assert not torch.equal(trigger.mask, planted.mask)
    assert line["success_after"] == line["success_before"]
    assert line["der"] == 0.5, "nothing was repaired"


def test_too_few_samples_are_said_before_the_scan(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repairs, "scan_of", lambda *_: pytest.fail("it is not scanned"))
    assert "too few samples" in repairs.run_cell(infected(folder), FineTuning(), 0.05)["error"]


def test_a_failing_repair_and_a_net_outside_the_gate(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def apply(_self: Repair, _case: Case) -> Model:
        raise ArithmeticError("it went to\ninfinity")

    monkeypatch.setattr(FineTuning, "apply", apply)
    net, repair = infected(folder), make(Repair, "fine_tuning")
    assert repairs.run_cell(net, repair, 0.4)["error"] == "it went to infinity"
    monkeypatch.setattr(repairs, "scan_of", lambda *_: pytest.fail("it is not scanned"))
    line = repairs.run_cell(build.Net(net.folder, {**net.truth, "attack_success_rate": 0.5}), repair, 0.4)
    assert "below 90 %" in line["gate"]
    assert "accuracy_before" not in line
    assert "below 90 %" in leaderboard.table([line], "choosing")
    assert leaderboard.page([line], "choosing")


def test_a_plan_of_repairs_runs_no_detector_and_narrows_down() -> None:
    assert not detectors.cells(PLAN)
    assert detectors.cells({"nets": PLAN["nets"]})
    assert detectors.cells({**PLAN, "detectors": [{"name": "neural_cleanse"}]})
    found = [(e.attack, r.name, s) for e, r, s, _ in repairs.cells(PLAN)]
    assert found == [
        (None, "fine_tuning", 0.4), ("badnets", "fine_tuning", 0.4), (None, "unlearning", 0.4),
        ("badnets", "unlearning", 0.4), (None, "fine_tuning", 0.05),
    ]  # fmt: skip
    one = {"name": "nad", "seeds": [1]}
    assert not repairs.cells({**PLAN, "repairs": [one]})
    assert [s for *_, s, _ in repairs.cells({**PLAN, "repairs": [{"name": "nad"}]})] == [0.05, 0.05]


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"name": "nad", "shar": 0.1}, "unknown key 'shar'"),
        ({"name": "nadd"}, "did you mean nad"),
        ({"name": "nad", "share": 5}, "share 5"),
        ({"name": "nad", "settings": {"x": 1}}, "has no setting"),
    ],
)
def test_a_wrong_plan_is_one_line(table: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        repairs.cells({**PLAN, "repairs": [table]})


@pytest.mark.parametrize("name", ["repairs", "repairs-colour"])
def test_published_plans_judge_alone_and_begin_with_the_default_repair(name: str) -> None:
    plan = build.read_plan(Path(__file__).parents[2] / "plans" / f"{name}.toml")
    cells = repairs.cells(plan)
    assert {build.split_of(e.seed) for e, *_ in cells} == {build.JUDGING}
    assert len({(e.id, r.name, s) for e, r, s, _ in cells}) == len(cells)
    assert cells[0][1].name == repair.DEFAULT_REPAIR
    assert cells[0][2] == 0.05
    assert not detectors.cells(plan)
    assert any(e.attack is None for e, *_ in cells)


# ---------------------------------------------------------------------- the board


def line_of(
    attack: str | None = "badnets", seed: int = 10, repair: str = "nad", **more: Any
) -> dict[str, Any]:
    """A line of the bench of repairs."""
    bad = attack is not None
    return {
        "cell": f"{attack}-{seed}-{repair}", "net": f"mnist-{attack or 'clean'}-s{seed}", "task": "mnist",
        "attack": attack, "seed": seed, "repair": repair, "settings": {}, "share": 0.05, "gate": "",
        "accuracy_before": 0.99, "accuracy_after": 0.97, "verdict": "backdoored", "suspected": [[None, 2]],
        "targets": [2] if bad else [], "success_before": 1.0 if bad else None,
        "success_after": 0.1 if bad else None, "robust_before": 0.0 if bad else None,
        "robust_after": 0.9 if bad else None, "retuned": 0.3 if bad else None,
        "twin_retuned": 0.05 if bad else None, "cpu_seconds": 6.0, "epoch_cpu_seconds": 4.0,
        "backsweep": "0.1.0", "torch": "2.13.0", "python": "3.11.7", **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("removed", "lost", "value"),
    [(0.0, 0.0, 0.5), (1.0, 0.0, 1.0), (0.9, 0.02, 0.94), (-0.3, 0.1, 0.45), (0.5, -0.4, 0.75)],
)
def test_the_defence_effectiveness_rating(removed: float, lost: float, value: float) -> None:
    assert der(removed, lost) == pytest.approx(value)


def row_of(rows: tuple[Row, ...], name: str) -> Row:
    (row,) = [r for r in rows if r.repair == name]
    return row


LINES = [
    line_of(seed=10, success_after=0.1, accuracy_after=0.98, retuned=0.2, cpu_seconds=2.0),
    line_of(seed=11, success_after=0.4, accuracy_after=1.0, retuned=0.6, robust_after=0.5, cpu_seconds=8.0),
    line_of("blended", seed=12, success_after=0.7, accuracy_after=0.94, retuned=0.1, robust_after=0.4),
    line_of(None, seed=10, accuracy_after=0.985), line_of(None, seed=11, accuracy_after=0.955),
    line_of("blended", seed=12, repair="clp", skipped="it needs BatchNorm"),
    line_of(seed=10, repair="clp", success_after=0.0),
    line_of(seed=11, repair="clp", error="diverged"),
]  # fmt: skip


def test_figures_against_hand_computed_ones() -> None:
    (part,) = board(LINES).parts
    assert [r.repair for r in part.rows] == ["none", "nad", "clp"]
    nad, clp, none = (row_of(part.rows, name) for name in ("nad", "clp", "none"))
    ratings = [(0.9 - 0.01 + 1) / 2, (0.6 - 0 + 1) / 2, (0.3 - 0.05 + 1) / 2]
    assert nad.der is not None
    assert nad.der.value == pytest.approx(np.mean(ratings))
    assert min(ratings) <= nad.der.low < nad.der.value < nad.der.high <= max(ratings)
    assert nad.success == pytest.approx(1.2 / 3)
    assert nad.worst is not None
    assert (nad.worst.net, nad.worst.number("success_after")) == ("mnist-blended-s12", 0.7)
    assert nad.lost == pytest.approx((0.01 - 0.01 + 0.05) / 3)
    assert nad.robust == pytest.approx((0.9 + 0.5 + 0.4) / 3)
    assert nad.retuned == pytest.approx(0.3)
    assert (nad.held.hits, nad.held.n) == (2, 3)
    assert nad.clean_lost == pytest.approx((0.005 + 0.035) / 2)
    assert nad.worst_clean is not None
    assert nad.worst_clean.net == "mnist-clean-s11"
    assert (nad.seconds, nad.epochs) == (6.0, 1.5)
    assert (len(clp.bad), *map(len, clp.missed)) == (1, 1, 1)
    assert clp.success == 0
    assert clp.unrepaired == pytest.approx((0 + 1 + 1) / 3), "what was not repaired is as it was"
    assert (none.success, none.robust, none.lost, none.clean_lost) == (1.0, 0.0, 0.0, 0.0)
    assert none.der is not None
    assert none.der.value == 0.5


def test_the_words_of_the_tables() -> None:
    text = leaderboard.table(LINES)
    assert "Split: judging. 5 networks (3 attacked, 2 clean, seeds 10 to 12), 8 repairs." in text
    row = next(x for x in text.split("\n") if x.startswith("| nad |"))
    cells = [c.strip() for c in row.strip("|").split("|")]
    assert cells[1:5] == [
        "3 / 2", "**70.0%** (blended; mnist-blended-s12)", "**2.00** (worst 3.50; mnist-clean-s11)", "40.0%",
    ]  # fmt: skip
    assert cells[6:8] == [
        "1.67 (worst 5.00; mnist-blended-s12)",
        "30.0% (worst 60.0% badnets; 2/3 at most 20 %; clean twins 5.0%)",
    ]
    assert cells[9:] == ["6.0 (1.5 epochs)", "0 / 0"]
    assert "| 0.0% (66.7% with those not repaired) |" in text
    assert "On the 3 networks that every repair was given" in text
    by_attack = text[text.index("### Attack success") :]
    assert by_attack.index("| blended (1 network)") < by_attack.index("| badnets (2 networks)"), "worst first"
    assert "25.0% (lost 0.00; up to 40.0%) | 0.0% (lost 2.00; 1 not repaired) |" in by_attack
    fewer = leaderboard.table([*LINES, line_of(seed=10, repair="anp", success_after=0.5)])
    assert "| 50.0% (lost 2.00; 1 network only) |" in fewer
    assert "clp, 5 %: skipped on 1 network, it needs BatchNorm (mnist-blended-s12)" in text
    shown = leaderboard.page(LINES)
    assert "<strong><bdi>70.0%</bdi></strong>" in shown
    assert shown.count("<script") == 1 and not re.search(r"<link|src=|url\(|@import", shown)


def test_shares_settings_and_splits_are_apart_and_the_last_line_counts() -> None:
    lines = [
        line_of(seed=10, success_after=0.9), line_of(seed=10, success_after=0.2),
        line_of(seed=10, share=0.01, success_after=0.5), line_of(seed=3, success_after=0.7),
        line_of(seed=10, settings={"updates": 5}, success_after=0.8), {"repair": "nad"},
        line_of(seed=11, gate="attack success rate 10.0% is below 90 %"),
    ]  # fmt: skip
    found = board(lines)
    assert [(p.share, row_of(p.rows, "nad").success) for p in found.parts] == [(0.05, 0.2), (0.01, 0.5)]
    assert row_of(found.parts[0].rows, "nad updates=5").success == 0.8
    assert (found.chosen.other, found.chosen.older, found.chosen.damaged) == (1, 1, 1)
    assert found.chosen.gate == ("mnist-badnets-s11: attack success rate 10.0% is below 90 %",)
    assert row_of(board(lines, "choosing").parts[0].rows, "nad").success == 0.7
    with pytest.raises(BadInput, match="there are 1 of the other split"):
        leaderboard.table([line_of(seed=3)])
    with pytest.raises(BadInput, match="no split 'both'"):
        leaderboard.table([line_of()], "both")


def test_a_file_may_hold_detectors_and_repairs() -> None:
    lines = [make_line("mnist", "badnets", 10, 0.01), *LINES, make_line("mnist", None, 10, 0.9)]
    text = leaderboard.table(lines)
    assert text.index("## mnist\n") < text.index("## Repairs on mnist with 5 % of the training set")
    assert "2 scans" in text
    assert "8 repairs" in text
    both = leaderboard.page(lines)
    assert "Repairs on mnist" in both
    assert "Repairs" not in leaderboard.table([lines[0], lines[-1]])


def test_the_order_of_the_lines_changes_no_figure() -> None:
    first, second = (row_of(board(x).parts[0].rows, "nad") for x in (LINES, LINES[::-1]))
    assert first.der == second.der
    assert first.worst == second.worst


def test_published_figures_stand_beside_ours_and_are_marked() -> None:
    source, figures = published()
    assert "BackdoorBench" in source
    for p in figures:
        assert p.repair in ("", "none") or make(Repair, p.repair)
    assert {p.title: (p.der, p.accuracy, p.success) for p in figures}["ANP"] == (95.23, 85.9, 0.8)
    text = leaderboard.table(LINES)
    assert "on other networks" in text
    assert "must not be compared figure by figure" in text
    assert re.search(
        r"\| NAD \| 82.37 % .*\| 79.0% \(success 40.0%; worst 70.0%; lost 1.67; 3 networks\) \|", text
    )


HOSTILE = ("<script>alert(1)</script>", "a | b", "a\nb", "[x](javascript:alert(1))", "`*_~$", "\u202eevil")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_only_shown(text: str) -> None:
    names: dict[str, Any] = dict.fromkeys(("net", "task", "attack", "repair", "verdict", "torch"), text)
    lines = [
        line_of(**{**names, "suspected": [[text, text]], "targets": [text]}), line_of(None),
        line_of(seed=12, **{**names, "skipped": text}), line_of(seed=13, error=text, settings={text: text}),
        line_of(seed=14, gate=text, options={text: text}, arch=text),
    ]  # fmt: skip
    shown = leaderboard.page(lines)
    assert shown.count("<script") == 1, "the page's own, which nothing is put into"
    assert "\u202e" not in shown
    plain = leaderboard.table(lines)
    assert not re.search(r"<(?!=)|\u202e|(?<!\\)\[", plain)
    for block in plain.split("\n\n"):
        if block.startswith("|"):
            widths = {len(re.findall(r"(?<!\\)\|", row)) for row in block.split("\n")}
            assert len(widths) == 1, "a name neither ends a row nor adds a column"


WORD = st.text(max_size=12)
NUMBER = st.none() | st.floats() | st.integers() | st.booleans() | WORD
LINE = st.fixed_dictionaries(
    {
        "net": WORD.filter(bool), "task": st.sampled_from(["mnist", "other"]), "seed": st.integers(10, 40),
        "attack": st.none() | st.sampled_from(["badnets", "unknown"]),
        "repair": st.sampled_from(["contrastive_unlearning", "nad", "unknown"]),
        "share": st.sampled_from([0.05, 0.01]),
    },
    optional={
        **dict.fromkeys((
            "robust_after", "robust_before", "retuned", "twin_retuned", "cpu_seconds", "epoch_cpu_seconds",
            "verdict", "recovered", "suspected", "targets", "gate", "skipped", "error", "arch",
        ), NUMBER),
        **dict.fromkeys(
            ("accuracy_before", "accuracy_after", "success_before", "success_after"), st.floats(0, 1)
        ),
        **dict.fromkeys(("options", "recipe", "settings"), st.dictionaries(WORD, NUMBER, max_size=3)),
    },
)  # fmt: skip


@given(st.lists(LINE, min_size=1, max_size=12))
@settings(max_examples=50, deadline=None)
def test_any_lines_give_a_table(lines: list[dict[str, Any]]) -> None:
    assert all(fix_of(line) for line in lines)
    assert leaderboard.table(lines).startswith("# Repairs: judging networks\n")
    assert leaderboard.page(lines).rstrip().endswith("</html>")
