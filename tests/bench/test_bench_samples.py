"""The bench of audits and guards on digits; its figures against hand-computed ones, and text that is only
shown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from backsweep.auditing import audit as auditing
from backsweep.bench import detectors, samples
from backsweep.bench.records import audit_of, guard_of
from backsweep.bench.sample_figures import AuditRow, GuardRow, audits, guards, published
from backsweep.bench.samples import auroc, working
from backsweep.core.errors import BadInput
from backsweep.core.statistics import wilson
from backsweep.inputs.samples import Data
from backsweep.render.boards import leaderboard
from backsweep.zoo import build
from reporting import make_line

NETS: list[dict[str, Any]] = [
    {"task": "digits", "attack": "badnets", "seeds": [0], "options": {"size": 1, "margin": 0}}
]
PLAN: dict[str, Any] = {
    "nets": NETS,
    "audits": [{
        "name": "spectral_signatures", "settings": {"preset": "paper", "eps": 0.4}, "retrain": True,
        "attacks": ["badnets"],
    }],
    "guards": [{"name": "strip", "attacks": ["badnets"]}],
}  # fmt: skip

# ---------------------------------------------------------------------- the cells


def stub(entry: build.Entry) -> build.Net:
    return build.Net(Path(), {"id": entry.id, "sha256": "0" * 64})


def named(plan: dict[str, Any]) -> list[tuple[str, str]]:
    """Network and detector of every cell."""
    jobs = [cast(Any, job) for _, job in samples.cells(plan, stub)]
    return [(job.args[0].id, job.args[1]) for job in jobs]


def test_a_plan_names_several_detectors_and_narrows_down() -> None:
    bad, clean = "digits-badnets-20f467-s0", "digits-clean-s0"
    both = {"nets": NETS, "audits": [{"name": ["spectre", "cross_confusion"]}], "guards": [{"name": "teco"}]}
    assert named(both) == [
        (clean, "spectre"), (bad, "spectre"), (clean, "cross_confusion"), (bad, "cross_confusion"),
        (clean, "teco"), (bad, "teco"),
    ]  # fmt: skip
    narrow = {"name": "spectre", "attacks": ["clean"]}
    assert named({"nets": NETS, "audits": [narrow]}) == [(clean, "spectre")]
    assert named({"nets": NETS, "guards": [{"name": "default", "tasks": ["mnist"]}]}) == []
    assert named({"nets": NETS, "guards": [{"name": "default", "seeds": [0]}]}) == [
        (clean, "default"), (bad, "default"),
    ]  # fmt: skip
    assert not detectors.cells({"nets": NETS, "audits": [narrow]}), "a plan of audits runs no other detector"


def test_cells_that_differ_have_different_keys() -> None:
    one = {"name": "spectral_signatures", "attacks": ["badnets"]}
    tables = [one, {**one, "retrain": True}, {**one, "settings": {"preset": "paper"}}]
    plan = {"nets": NETS, "audits": tables, "guards": [{"name": "strip", "attacks": ["badnets"]}]}
    keys = [key for key, _ in samples.cells(plan, stub)]
    assert len(set(keys)) == 4
    assert keys == [key for key, _ in samples.cells(plan, stub)]


def test_the_key_of_the_default_guard_says_what_it_is_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = {"nets": NETS, "guards": [{"name": "default", "attacks": ["badnets"]}]}
    ((before, _),) = samples.cells(plan, stub)
    monkeypatch.setattr(samples, "DEFAULT_GUARDS", ("teco",))
    ((after, _),) = samples.cells(plan, stub)
    assert before != after


@pytest.mark.parametrize(
    ("kind", "table", "says"),
    [
        ("audits", {"name": "spectre", "rate": 0.1}, "unknown key 'rate' under"),
        ("audits", {"name": "spectr"}, "did you mean"),
        ("guards", {"name": "stripp"}, "no detector 'stripp'"),
        ("guards", {"name": "strip", "settings": {"x": 1}}, "has no setting"),
        ("guards", {"name": "strip", "fpr": 2}, "no share between 0 and 1"),
        ("audits", {"name": "spectre", "fpr": 0.05}, "unknown key 'fpr' under"),
    ],
)
def test_a_wrong_plan_is_one_line(kind: str, table: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        samples.cells({"nets": NETS, kind: [table]}, stub)


class Stamp:
    """Adds a third of the scale; sends everything to class 2."""

    target, source = 2, None

    def __call__(self, x: Tensor) -> Tensor:
        return x + 1 / 3

    def labels(self, y: Tensor, classes: int) -> Tensor:
        return torch.full_like(y, 2)


class Thirds:
    """Says which third of the scale an input is in."""

    classes = 3

    def predict(self, x: Tensor) -> Tensor:
        return (x.flatten(1)[:, 0] * 3 + 0.01).long()


def test_only_triggered_images_that_reach_their_target_count() -> None:
    """Of the samples that are not of class 2, those of the middle third go to class 2, the lowest do not."""
    x = torch.tensor([0.0, 1 / 3, 1 / 3, 0.0, 2 / 3]).reshape(5, 1, 1, 1)
    test = Data(x, [0, 1, 1, 0, 2])
    found = working(cast(Any, Thirds()), cast(Any, Stamp()), test, 0)
    assert found.flatten().tolist() == pytest.approx([2 / 3, 2 / 3])


def test_auroc_by_hand_also_of_scores_that_are_not_finite() -> None:
    """Of the six pairs four are in order, one is a tie."""
    assert auroc(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 3.0, 9.0])) == pytest.approx(4.5 / 6)
    inf = float("inf")
    assert auroc(torch.tensor([-inf, 0.0]), torch.tensor([inf, 1.0])) == 1.0


# ---------------------------------------------------------------------- on digits


def test_one_audit_and_one_guard_on_digits(tmp_path: Path) -> None:
    folder = tmp_path / "zoo"
    assert len(list(build.build(build.entries(PLAN), folder))) == 2
    found = [job() for _, job in samples.cells(PLAN, lambda e: detectors.open_net(e, folder))]
    audit, guard = found
    (net,) = [n for n in build.nets(folder) if n.truth["attack"]]
    (trigger,) = net.triggers()
    data, rows = build.poisoned(net)
    table = PLAN["audits"][0]
    report = auditing.audit(
        net.model(), data, auditing.made(table["name"], table["settings"]), seed=0, device="cpu"
    )
    flagged, bad = set(report.flagged.tolist()), set(rows.tolist())
    assert audit["flagged"] == len(flagged) > 0
    assert (audit["samples"], audit["poisoned"]) == (len(data), len(bad))
    assert audit["missed"] == len(bad - flagged)
    assert audit["tpr"] == pytest.approx(len(bad & flagged) / len(bad))
    assert audit["fpr"] == pytest.approx(len(flagged - bad) / (len(data) - len(bad)))
    assert audit["targets"] == [trigger.target]
    assert (audit["verdict"], audit["gate"]) == (report.verdict, "")
    again = samples._retrained(net, data[report.kept])
    assert {k: audit[k] for k in again} == again, (
        "it learns from the samples that are kept, and is repeatable"
    )
    assert audit["retrained_accuracy"] > 0.8
    assert 0 <= audit["retrained_success"] <= 1
    assert min(audit["cpu_seconds"], audit["detector_cpu_seconds"]) > 0

    assert guard["detectors"] == ["strip"]
    assert guard["auroc"] > 0.9
    assert guard["frr"] < 0.05
    assert guard["triggered"] >= samples.LEAST_WORKING
    assert guard["passes"] == 101
    assert guard["ratio"] > 1
    assert guard["clean_samples"] == 300

    text = leaderboard.table(found, "choosing")
    assert "1 audit" in text
    assert "| strip | 1 / 0 |" in text
    assert f"{audit['tpr']:.1%}" in text
    assert all(parsed and not parsed.reason for parsed in (audit_of(audit), guard_of(guard)))


# ---------------------------------------------------------------------- the boards


def line_of(attack: str | None = "badnets", seed: int = 10, **more: Any) -> dict[str, Any]:
    bad = attack is not None
    return {
        "net": f"mnist-{attack or 'clean'}-s{seed}", "task": "mnist", "attack": attack, "seed": seed,
        "options": {}, "recipe": {}, "settings": {}, "gate": "", "targets": [2] if bad else [],
        "clean_accuracy": 0.99, "attack_success_rate": 1.0 if bad else None,
        "backsweep": "0.1.0", "torch": "2.13.0", "python": "3.11.7", **more,
    }  # fmt: skip


def audit_line(attack: str | None = "badnets", seed: int = 10, **more: Any) -> dict[str, Any]:
    bad = attack is not None
    return line_of(attack, seed, **{
        "audit": "cross_confusion", "verdict": "backdoored" if bad else "clean", "p_value": 0.01,
        "score": 9.0, "suspected": [2] if bad else [], "most_suspicious": 2, "samples": 1000,
        "poisoned": 100 if bad else 0, "flagged": 100 if bad else 0, "missed": 0,
        "tpr": 1.0 if bad else None, "fpr": 0.0, "auroc": 1.0 if bad else None, "cpu_seconds": 20.0,
        "detector_cpu_seconds": 12.0, **more,
    })  # fmt: skip


def guard_line(attack: str | None = "badnets", seed: int = 10, **more: Any) -> dict[str, Any]:
    judged = {"auroc": 0.99, "far": 0.1, "triggered": 900} if attack else {}
    return line_of(attack, seed, **{
        "guard": "strip", "detectors": ["strip"], "frr": 0.01, "passes": 101, "clean_samples": 3000,
        "shown": 1000, "fit_cpu_seconds": 1.0, "milliseconds": 2.0, "ratio": 10.0, **judged, **more,
    })  # fmt: skip


AUDITS = [
    audit_line(
        seed=10, options={"rate": 0.01}, tpr=0.9, missed=1, poisoned=10, fpr=0.01, auroc=0.98,
        retrained_success=0.04, retrained_accuracy=0.98, cpu_seconds=10.0,
    ),
    audit_line(
        seed=11, options={"rate": 0.1}, tpr=0.98, missed=2, poisoned=100, fpr=0.03, auroc=0.99,
        retrained_success=0.02, retrained_accuracy=1.0, cpu_seconds=30.0, suspected=[7], most_suspicious=7,
    ),
    audit_line(
        "blended", 12, verdict="clean", tpr=0.0, missed=50, poisoned=50, flagged=0, auroc=0.43,
        suspected=[], most_suspicious=2, options={"rate": 0.05}, attack_success_rate=0.99,
    ),
    audit_line(seed=13, options={"mode": "all-to-all"}, targets=[], suspected=[0], verdict="inconclusive"),
    audit_line(None, 10), audit_line(None, 11, verdict="backdoored", fpr=0.04),
    audit_line(None, 12, verdict="inconclusive"),
    line_of("input_aware", 14, audit="cross_confusion", error="input_aware controls the training"),
    audit_line(seed=10, audit="spectre", tpr=0.5), audit_line(None, 10, audit="spectre"),
]  # fmt: skip


def by_name(rows: tuple[Any, ...], name: str, group: str = "") -> Any:
    (row,) = [r for r in rows if r.detector == name and r.group == group]
    return row


def test_figures_of_audits_against_hand_computed_ones() -> None:
    (part,) = audits(AUDITS).parts
    row = by_name(part.rows, "cross_confusion")
    assert isinstance(row, AuditRow)
    assert (len(row.bad), len(row.good), len(row.left)) == (4, 3, 1)
    assert (row.caught.hits, row.caught.n, row.alarms.hits, row.alarms.n) == (2, 4, 1, 3)
    assert row.undecided == (1, 1)
    assert (row.right.hits, row.right.n) == (2, 3), "all-to-all has no target class"
    assert row.auroc is not None
    assert row.auroc.value == pytest.approx((0.98 + 0.99 + 0.43 + 1) / 4)
    assert 0.43 <= row.auroc.low < row.auroc.value < row.auroc.high <= 1
    assert row.tpr == pytest.approx((0.9 + 0.98 + 0 + 1) / 4), "nothing flagged is a TPR of 0"
    assert row.worst is not None
    assert row.worst.net == "mnist-blended-s12"
    assert row.fpr == pytest.approx((0.01 + 0.03) / 4)
    assert row.clean_fpr == pytest.approx(0.04 / 3)
    assert row.missed == (53, 260)
    assert len(row.retrained) == 2
    assert row.success == pytest.approx(0.03)
    assert row.worst_success is not None
    assert row.worst_success.net == "mnist-badnets-s10"
    assert row.unflagged == pytest.approx((0.04 + 0.02 + 0.99) / 3), "the set with nothing flagged as it was"
    assert row.change == pytest.approx(0.0)
    assert row.worst_change is not None
    assert row.worst_change.net == "mnist-badnets-s10"
    assert (row.seconds, row.own_seconds) == (20.0, 12.0)
    assert [(r, round(t, 3), n) for r, t, n in row.rates] == [(0.01, 0.9, 1), (0.05, 0, 1), (0.1, 0.99, 2)]
    assert {x.net for r in part.common for x in (*r.bad, *r.good)} == {"mnist-badnets-s10", "mnist-clean-s10"}


def test_attacks_of_audits_come_with_their_rates_and_the_worst_first() -> None:
    (part,) = audits(AUDITS).parts
    own = [r for r in part.attacks if r.detector == "cross_confusion"]
    assert [r.group for r in own] == ["blended", "badnets", "badnets mode=all-to-all", "input_aware"]
    assert [r.tpr for r in own] == [0.0, pytest.approx(0.94), 1.0, None]
    assert own[1].rates == ((0.01, 0.9, 1), (0.1, 0.98, 1))
    sig = audit_of(audit_line("sig", options={"share": 0.5}))
    assert sig is not None
    assert sig.rate == 0.5


def cells_of(text: str, name: str, after: str = "") -> list[str]:
    row = next(x for x in text[text.index(after) :].split("\n") if x.startswith(f"| {name} "))
    return [c.strip() for c in row.strip("|").split("|")]


def test_the_words_of_the_audits() -> None:
    text = leaderboard.table(AUDITS)
    assert text.startswith("# Audits: judging networks\n")
    assert "8 networks (5 attacked, 3 clean, seeds 10 to 14), 10 audits" in text
    caught, alarms, right = (
        f"{k}/{n} ({wilson(k, n)[0]:.0%}–{wilson(k, n)[1]:.0%})"  # noqa: RUF001
        for k, n in ((2, 4), (1, 3), (2, 3))
    )
    row = cells_of(text, "cross_confusion")
    assert row[:5] == ["cross_confusion", "4 / 3", caught, alarms, right]
    assert row[5].startswith("0.850 (")
    assert row[6:10] == [
        "72.0%", "0.0% (blended; mnist-blended-s12)", "1.00% (unpoisoned 1.33%)", "53 of 260",
    ]  # fmt: skip
    notes = "worst 4.0%; badnets; mnist-badnets-s10; 35.0% with those of which nothing was flagged; 2 sets"
    assert row[10:] == [
        f"3.0% ({notes})", "+0.00 (worst -1.00; mnist-badnets-s10)", "20.0 (detector 12.0)", "1 / 1", "1",
    ]  # fmt: skip
    assert cells_of(text, "goal")[1:10] == ["", "", "≤ 1 in 20", "", "", "≥ 95%", "", "≤ 2%", ""]
    assert "| badnets (rate 0.01 to 0.1) | 2 |" in text
    assert "| 0.01: 90.0%, 0.1: 98.0% |" in text
    assert "cross_confusion on mnist, 1 training set: input_aware controls the training" in text
    assert "On the 2 networks that every detector was used on" in text
    assert "**" not in "".join(cells_of(text, "cross_confusion")), "no goal is reached"
    shown = leaderboard.page(AUDITS)
    assert shown.count("<script") == 1 and not re.search(r"<link|src=|url\(|@import", shown)


def test_goals_that_are_reached_stand_out() -> None:
    lines = [audit_line(seed=10, retrained_success=0.05, retrained_accuracy=0.99, fpr=0.02, tpr=0.95)]
    some = [*lines, *(audit_line(None, 10 + i) for i in range(19))]
    row = cells_of(leaderboard.table(some), "cross_confusion")
    assert row[6] == "**95.0%**"
    assert row[8].startswith("**2.00%**")
    assert row[10].startswith("**5.0%**")
    assert not row[3].startswith("**"), "19 sets cannot show one false alarm in 20"
    twenty = [*some, audit_line(None, 40, verdict="backdoored")]
    assert cells_of(leaderboard.table(twenty), "cross_confusion")[3].startswith("**1/20**")
    two = [*some, *(audit_line(None, 40 + i, verdict="backdoored") for i in range(2))]
    assert cells_of(leaderboard.table(two), "cross_confusion")[3].startswith("2/21")


GUARDS = [
    guard_line(seed=10, auroc=0.99, far=0.002, frr=0.01),
    guard_line("blended", 11, auroc=0.8, far=0.5, frr=0.03),
    guard_line("tact", 12, auroc=0.96, far=0.1, frr=0.02), guard_line(None, 10, frr=0.004, passes=99),
    {k: v for k, v in guard_line("wanet", 13, frr=0.06).items() if k not in ("auroc", "far", "triggered")},
    line_of("wanet", 14, guard="strip", skipped="too few samples"),
    guard_line(seed=10, guard="default", detectors=["a", "b"], auroc=0.97, far=0.2, passes=6),
    guard_line("tact", 12, guard="default", detectors=["a", "b"], auroc=0.95, far=0.3, passes=4),
]  # fmt: skip


def test_figures_of_guards_against_hand_computed_ones() -> None:
    (part,) = guards(GUARDS).parts
    assert [r.detector for r in part.rows] == ["default", "strip"], "the default guard comes first"
    row = by_name(part.rows, "strip")
    assert isinstance(row, GuardRow)
    assert (len(row.bad), len(row.good), len(row.left), len(row.judged)) == (4, 1, 1, 3)
    assert row.auroc is not None
    assert row.auroc.value == pytest.approx((0.99 + 0.8 + 0.96) / 3)
    assert row.worst is row.worst_far
    assert row.worst is not None
    assert row.worst.net == "mnist-blended-s11"
    assert row.far == pytest.approx((0.002 + 0.5 + 0.1) / 3)
    assert row.frr_bad is not None
    assert row.frr_bad.value == pytest.approx((0.01 + 0.03 + 0.02 + 0.06) / 4)
    assert row.frr_good is not None
    assert row.frr_good.value == 0.004
    assert (row.passes, row.most_passes, row.milliseconds, row.ratio) == (101, 101, 2.0, 10.0)
    default = by_name(part.rows, "default")
    assert (default.passes, default.most_passes) == (5, 6)
    groups = list(dict.fromkeys(r.group for r in part.attacks))
    assert groups == ["wanet", "tact", "blended", "badnets"], "the named attacks first, then the worst"


def test_the_words_of_the_guards() -> None:
    text = leaderboard.table(GUARDS)
    assert text.startswith("# Guards: judging networks\n")
    assert "The default guard is a + b." in text
    default, strip = cells_of(text, "default"), cells_of(text, "strip")
    assert default[1] == "2 / 0"
    assert default[2].startswith("**0.960** (0.950–0.970)")  # noqa: RUF001
    assert default[3] == "**0.950** (tact; mnist-tact-s12)"
    assert default[6:9] == ["1.00% (no spread)", "–", "**5** (at most 6)"]  # noqa: RUF001
    assert strip[1] == "4 / 1 (3 with triggered inputs)"
    assert strip[4:6] == ["20.07%", "50.00% (blended; mnist-blended-s11)"]
    assert strip[-3:] == ["2.00", "10.00", "1"]
    assert cells_of(text, "wanet")[1:] == ["–", "– (not guarded)"]  # noqa: RUF001
    assert cells_of(text, "tact")[1:] == ["0.950 (FAR 30.0%)", "0.960 (FAR 10.0%)"]
    assert "- strip: mnist-wanet-s13" in text
    assert "strip on mnist, 1 network: too few samples (mnist-wanet-s14)" in text
    reached = leaderboard.table([guard_line(far=0.005)])
    assert cells_of(reached, "strip")[4] == "**0.50%**"
    assert not cells_of(reached, "strip")[2].startswith("**"), "the AUROC's goal is the default guard's"


def test_a_network_of_which_no_trigger_works_is_not_said_to_be_unguarded() -> None:
    line = {k: v for k, v in guard_line().items() if k not in ("auroc", "far")}
    assert cells_of(leaderboard.table([line]), "badnets")[1] == "– (not judged)"  # noqa: RUF001


ONE_SIDED: list[list[dict[str, Any]]] = [
    [audit_line()], [audit_line(None)], [guard_line()], [guard_line(None)],
    [line_of(audit="spectre", error="it failed")], [line_of(guard="teco", skipped="it needs more")],
    [line_of(None, guard="teco", skipped="it needs more")],
    [audit_line(gate="attack success rate 10.0% is below 90 %")], [guard_line(gate="too weak")],
]  # fmt: skip


@pytest.mark.parametrize("lines", ONE_SIDED)
def test_one_sided_lines_give_a_table(lines: list[dict[str, Any]]) -> None:
    text, page = leaderboard.table(lines), leaderboard.page(lines)
    assert "nan" not in re.sub(r"[a-z]+nan|nan[a-z]+", "", text.lower())
    assert page.rstrip().endswith("</html>")
    for reason in ("it failed", "it needs more", "below 90 %", "too weak"):
        assert (reason in str(lines)) == (reason in text.split("Published")[-1])


def test_the_last_line_counts_and_splits_are_apart() -> None:
    lines = [
        audit_line(tpr=0.1), audit_line(tpr=0.7), audit_line(seed=3, tpr=0.2), {"audit": "spectre"},
        audit_line(settings={"passes": 99}, tpr=0.3), audit_line(seed=12, gate="too weak"),
        audit_line(seed=13, tpr=1.5), audit_line(seed=14, fpr=None),
    ]  # fmt: skip
    found = audits(lines)
    (part,) = found.parts
    assert by_name(part.rows, "cross_confusion").tpr == 0.7
    assert by_name(part.rows, "cross_confusion passes=99").tpr == 0.3
    assert (found.chosen.other, found.chosen.older, found.chosen.damaged) == (1, 1, 1)
    assert found.chosen.gate == ("mnist-badnets-s12: too weak",)
    left = by_name(part.rows, "cross_confusion").left
    assert [x.reason for x in left] == ["figures are missing or impossible"] * 2
    text = leaderboard.table(lines)
    assert "1 replaced by a later audit of the same network" in text
    assert "1 that cannot be read" in text
    assert by_name(audits(lines, "choosing").parts[0].rows, "cross_confusion").tpr == 0.2
    with pytest.raises(BadInput, match="there are 1 of the other split"):
        leaderboard.table([guard_line(seed=3)])
    with pytest.raises(BadInput, match="no split 'both'"):
        leaderboard.table([guard_line()], "both")


def test_one_file_may_hold_lines_of_all_kinds() -> None:
    scans = [make_line("mnist", "badnets", 10, 0.01), make_line("mnist", None, 10, 0.9)]
    text = leaderboard.table([*GUARDS, *scans, *AUDITS])
    places = [text.index(f"\n## {title}\n") for title in ("mnist", "Audits on mnist", "Guards on mnist")]
    assert places == sorted(places)
    assert "2 scans" in text
    assert "8 guards" in text
    assert "Audits" not in leaderboard.table(scans)


def test_the_order_of_the_lines_changes_no_figure() -> None:
    first, second = (by_name(audits(x).parts[0].rows, "cross_confusion") for x in (AUDITS, AUDITS[::-1]))
    assert (first.auroc, first.worst, first.rates) == (second.auroc, second.worst, second.rates)


def test_published_figures_stand_below_and_say_whether_they_were_checked() -> None:
    found = published()
    assert {p.kind for p in found} == {"audit", "guard"}
    assert all(p.method and p.what and p.data and p.value and p.source for p in found)
    text = leaderboard.table([guard_line()])
    assert "0.75 %; 1.1 %; 1.85 %" in text
    assert "SPECTRE" not in text
    doubted = [x for x in text.split("\n") if x.startswith("- IBD-PSC")]
    assert doubted[0].endswith("(as remembered, not checked).")
    assert text.count("as remembered") == sum(p.kind == "guard" and not p.checked for p in found)
    assert "SPECTRE" in leaderboard.table([audit_line()])


HOSTILE = ("<script>alert(1)</script>", "a | b", "a\nb", "[x](javascript:alert(1))", "`*_~$", "\u202eevil")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_only_shown(text: str) -> None:
    names: dict[str, Any] = dict.fromkeys(("net", "task", "attack", "torch", "verdict"), text)
    lines = [
        audit_line(**{**names, "audit": text, "suspected": [text], "targets": [text]}),
        guard_line(**{**names, "guard": text, "detectors": [text]}),
        guard_line(**{**names, "guard": "default", "detectors": [text]}),
        line_of(seed=12, audit="spectre", error=text, settings={text: text}),
        line_of(seed=13, guard="strip", skipped=text, options={text: text}), guard_line(seed=14, gate=text),
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


WORD = st.text(max_size=8)
VALUE = (
    st.none() | st.floats(-1e9, 1e9) | st.just(float("nan")) | st.booleans() | WORD | st.lists(st.integers())
)
FIGURES = (
    "tpr", "fpr", "auroc", "missed", "poisoned", "flagged", "samples", "retrained_success", "verdict",
    "retrained_accuracy", "clean_accuracy", "attack_success_rate", "most_suspicious", "suspected", "targets",
    "cpu_seconds", "detector_cpu_seconds", "frr", "far", "passes", "milliseconds", "ratio", "detectors",
    "options", "recipe", "settings", "gate", "error", "skipped",
)  # fmt: skip
LINE = st.fixed_dictionaries(
    {
        "net": WORD.filter(bool), "task": st.sampled_from(["mnist", "other"]), "seed": st.integers(10, 40),
        "attack": st.none() | st.sampled_from(["badnets", "tact", "unknown"]),
    },
    optional=dict.fromkeys(FIGURES, VALUE),
)  # fmt: skip


@given(st.lists(LINE, min_size=1, max_size=8), st.sampled_from([audit_line, guard_line]))
@settings(max_examples=40, deadline=None)
def test_any_lines_give_a_table(lines: list[dict[str, Any]], make: Any) -> None:
    some = [{**make(x["attack"]), **x} if i % 2 else {**x, **make(x["attack"], seed=10 + i)}
            for i, x in enumerate(lines)]  # fmt: skip
    assert "judging networks" in leaderboard.table(some)
    assert leaderboard.page(some).rstrip().endswith("</html>")
