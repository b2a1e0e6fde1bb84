"""`repair`: what it accepts, what it measures, when it is verified; and the command."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import backsweep
from backsweep.cli import app
from backsweep.core.errors import BadInput
from backsweep.inputs.image.triggers import Patch
from backsweep.models.model import Model
from backsweep.repairing import repair
from backsweep.repairing.method import Case, Repair
from backsweep.reports.repair import CHECKS, Check, Figures, Repaired
from backsweep.reports.report import ERROR, Finding, Report
from backsweep.scanning.detectors.neural_cleanse import NeuralCleanse
from conftest import Twins

FAST = NeuralCleanse(steps=60)


@pytest.fixture(scope="module")
def report(twins: Twins) -> Report:
    return backsweep.scan(twins.infected, twins.data, FAST, device="cpu")


@pytest.fixture(scope="module")
def repaired(twins: Twins, report: Report, tmp_path_factory: pytest.TempPathFactory) -> Repaired:
    out = tmp_path_factory.mktemp("repair")
    return backsweep.repair(twins.infected, twins.data, report, seed=1, device="cpu", out=out)


@dataclasses.dataclass(frozen=True)
class Nothing(Repair):
    """A repair that does nothing, and does not apply to small data."""

    name = "nothing"
    least: int = 0

    def applies(self, case: Case) -> str:
        return f"it needs {self.least} samples" if len(case.clean) < self.least else ""

    def apply(self, case: Case) -> Model:
        return case.model.copy()


def test_a_repair_is_measured_and_checked(twins: Twins, repaired: Repaired) -> None:
    assert repaired.suspected == [(None, twins.trigger.target)]
    assert repaired.before.attack_success_rate is not None
    assert repaired.after.attack_success_rate is not None
    assert repaired.before.attack_success_rate > 0.9
    assert repaired.after.attack_success_rate < 0.3
    assert repaired.model.success_rate(twins.trigger, twins.data) < 0.1
    assert repaired.checks[0].name == "scan"
    assert {c.name for c in repaired.checks} == set(CHECKS)
    assert repaired.scan is not None
    assert repaired.scan.verdict == "clean"
    assert repaired.answers
    assert repaired.about["model"]["sha256"] == twins.infected.digest != repaired.model.digest
    assert {e.fresh for e in repaired.effects} == {True, False}


def test_what_is_written(repaired: Repaired, tmp_path: Path) -> None:
    folder = repaired.write(tmp_path / "page")
    record = json.loads((folder / "repair.json").read_text())
    assert record["verified"] == repaired.verified
    assert [c["name"] for c in record["checks"]] == [c.name for c in repaired.checks]
    for effect in record["effects"]:
        assert (folder / effect["trigger"]).is_file()
    assert "Before and after" in (folder / "repair.html").read_text()
    assert Report.load(folder / "scan").verdict == "clean"


def test_a_repair_that_does_nothing_is_not_verified(twins: Twins, report: Report) -> None:
    done = backsweep.repair(twins.infected, twins.data, report, Nothing(), device="cpu")
    made = {c.name: c.passed for c in done.checks}
    assert made["old triggers"] is made["fresh triggers"] is made["re-tuning"] is False
    assert made["clean accuracy"] is True
    assert not made["scan"]
    assert not done.verified
    assert done.exit_status == 1


def test_the_first_repair_that_applies_is_made(twins: Twins, report: Report) -> None:
    methods = [Nothing(least=10_000), Nothing()]
    done = backsweep.repair(twins.infected, twins.data, report, methods, device="cpu", verify=False)
    assert [(n.what, n.reason) for n in done.skipped] == [("nothing", "it needs 10000 samples")]
    assert not done.verified
    assert done.exit_status == 3
    with pytest.raises(BadInput, match="no repair could be made: nothing: it needs 10000 samples"):
        backsweep.repair(twins.infected, twins.data, report, methods[0], device="cpu")


@dataclasses.dataclass(frozen=True)
class Broken(Repair):
    """A repair that fails in the middle."""

    name = "broken"

    def apply(self, case: Case) -> Model:
        raise RuntimeError("no gradient\n here")


def test_a_repair_that_fails_gives_way_to_the_next(twins: Twins, report: Report) -> None:
    done = backsweep.repair(
        twins.infected, twins.data, report, [Broken(), Nothing()], device="cpu", verify=False
    )
    assert done.method == "nothing"
    assert [(n.what, n.reason) for n in done.skipped] == [("broken", "failed: no gradient here")]
    with pytest.raises(BadInput, match="broken: failed: no gradient here"):
        backsweep.repair(twins.infected, twins.data, report, Broken(), device="cpu")


def test_a_report_of_another_model_is_refused(twins: Twins, report: Report) -> None:
    with pytest.raises(BadInput, match="the report is of another model"):
        backsweep.repair(twins.clean, twins.data, report, device="cpu")


def test_the_held_out_samples_are_never_learned_from(twins: Twins, report: Report) -> None:
    work = twins.infected.copy()
    case = repair.case_of(work, twins.data, report, seed=0)
    rows = {x.numpy().tobytes() for x in case.clean.x} & {x.numpy().tobytes() for x in case.held_out.x}
    assert not rows
    assert len(case.clean) + len(case.held_out) == len(twins.data)
    assert abs(len(case.held_out) - 0.2 * len(twins.data)) <= 1


def test_only_flagged_classes_are_repaired(twins: Twins, report: Report) -> None:
    case = repair.case_of(twins.infected.copy(), twins.data, report, seed=0)
    assert {t.target for t in case.triggers} == {twins.trigger.target}
    calm = dataclasses.replace(report, findings=[f for f in report.findings if f.level != ERROR])
    case = repair.case_of(twins.infected.copy(), twins.data, calm, seed=0)
    assert (case.aims, case.triggers) == ([], [])


def test_a_report_that_does_not_fit_the_model_is_refused_in_a_line(twins: Twins, report: Report) -> None:
    work = twins.infected.copy()
    far = Finding("BSW110", "cascade", ERROR, "", target=77)
    with pytest.raises(BadInput, match="suspects class 77, the model has 10 classes"):
        repair.case_of(work, twins.data, dataclasses.replace(report, findings=[far]), seed=0)
    large = Patch.square((1, 28, 28), 4, 0, twins.trigger.target)
    evidence = [dataclasses.replace(e, trigger=large) for e in report.evidence]
    with pytest.raises(BadInput, match="does not fit the model's inputs"):
        repair.case_of(work, twins.data, dataclasses.replace(report, evidence=evidence), seed=0)


@pytest.mark.parametrize(
    ("passed", "verified", "status"),
    [((True,) * 5, True, 0), ((True, None, True, True, True), False, 3),
     ((True, None, False, True, True), False, 1), ((True,) * 4, False, 3), ((), False, 3)],
)  # fmt: skip
def test_verified_means_that_all_five_checks_passed(
    twins: Twins, passed: tuple[bool | None, ...], verified: bool, status: int
) -> None:
    figures = Figures(0.9)
    checks = [Check(name, p, "") for name, p in zip(CHECKS, passed, strict=False)]
    done = Repaired(twins.clean, "nothing", figures, figures, checks=checks)
    assert done.verified == verified
    assert done.exit_status == status


def test_an_all_to_all_finding_keeps_its_source(twins: Twins, report: Report) -> None:
    pair = Finding("BSW110", "cascade", ERROR, "", target=3, source=2)
    case = repair.case_of(
        twins.infected.copy(), twins.data, dataclasses.replace(report, findings=[pair]), seed=0
    )
    assert case.aims == [(2, 3)]


def run(*words: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["backsweep", *words])
        with pytest.raises(SystemExit) as stop:
            app.main()
    return int(stop.value.code or 0)


def test_scan_repair_scan_from_the_command_line(twins: Twins, tmp_path: Path, capsys: Any) -> None:
    model, data = tmp_path / "model.safetensors", tmp_path / "clean.npz"
    save_file(twins.infected.net.state_dict(), model)
    before = model.read_bytes()
    np.savez(data, x=(twins.data.x[:, 0].numpy() * 255).round().astype("uint8"), y=twins.data.y.numpy())
    words = ["--data", str(data), "--arch", "backsweep.archs:digits_cnn", "--device", "cpu"]
    fast = ["-d", "neural_cleanse", "-p", "neural_cleanse.steps=60"]
    out, again = tmp_path / "fixed.safetensors", tmp_path / "again"
    assert run("scan", str(model), *words, *fast, "--out", str(tmp_path / "scan")) == 1
    status = run("repair", str(model), *words, "--report", str(tmp_path / "scan"), "--out", str(out))
    record = json.loads((tmp_path / "fixed.safetensors.repair" / "repair.json").read_text())
    assert status == (0 if record["verified"] else 1)
    assert model.read_bytes() == before
    assert "after" in capsys.readouterr().err.lower()
    assert run("scan", str(out), *words, *fast, "--out", str(again)) == 0
    repaired = backsweep.load(out, "backsweep.archs:digits_cnn", shape=(1, 8, 8))
    assert repaired.success_rate(twins.trigger, twins.data) < 0.1
    assert record["repaired"]["sha256"] == Report.load(again).model["sha256"]


def test_wrong_use_is_one_line_and_leaves_nothing(twins: Twins, tmp_path: Path, capsys: Any) -> None:
    model, data = tmp_path / "model.safetensors", tmp_path / "clean.npz"
    save_file(twins.clean.net.state_dict(), model)
    np.savez(data, x=(twins.data.x[:, 0].numpy() * 255).round().astype("uint8"), y=twins.data.y.numpy())
    words = [
        "--data",
        str(data),
        "--arch",
        "backsweep.archs:digits_cnn",
        "--report",
        str(tmp_path / "none"),
    ]
    for extra, says in (
        (["--out", str(tmp_path / "x.safetensors")], "cannot read"),
        (["--out", str(tmp_path / "x.safetensors"), "-m", "fine_tunning"], "did you mean fine_tuning"),
    ):
        assert run("repair", str(model), *words, *extra) == 2
        text = capsys.readouterr().err
        assert says in text
        assert len([line for line in text.splitlines() if line.startswith("error")]) == 1
    backsweep.scan(twins.clean, twins.data, FAST, device="cpu", out=tmp_path / "none")
    assert run("repair", str(model), *words, "--out", str(model), "-m", "fine_tuning") == 2
    assert "this is the model that was repaired" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "none")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clean.npz", "model.safetensors"]
    assert torch.equal(
        backsweep.load(model, "backsweep.archs:digits_cnn", shape=(1, 8, 8)).net.state_dict()["0.weight"],
        twins.clean.net.state_dict()["0.weight"],
    )
