"""The next command: with the paths of the user, quoted, in the terminal and on the page alike."""

from __future__ import annotations

import io
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from backsweep.cli.app import app
from backsweep.render.handoff import Step, steps
from backsweep.render.pages import audit as audit_page
from backsweep.render.pages import scan as scan_page
from backsweep.render.terminal import audit as audit_terminal
from backsweep.render.terminal import scan as scan_terminal
from backsweep.reports.audit import Audit, Retrained
from backsweep.reports.repair import Figures, Repaired
from backsweep.reports.report import ERROR, NOTE, WARNING, Evidence, Finding, Report

MODEL = {
    "source": "my models/net.pt2", "is_path": True, "arch": "nets:build", "shape": [1, 8, 8], "classes": 10,
    "mean": [0.5], "sha256_of": "file",
}  # fmt: skip
DATA = {"source": "clean/x.npz", "is_path": True}


def scanned(level: str, **model: Any) -> Report:
    found = Finding("BSW111", "cascade", level, "said", target=3, score=1.0)
    return Report(
        {**MODEL, **model}, DATA, {"alpha": 0.05}, findings=[found], evidence=[Evidence("cascade", "u", 3)]
    )


def audited(**more: Any) -> Audit:
    found = Finding("BSW204", "contamination_analyzer", ERROR, "said", target=3, score=1.0)
    evidence = Evidence("contamination_analyzer", "class-3", 3, values={"statistic": 1.0, "cut": 0.0})
    model = {**MODEL, "source": "digits_cnn trained on set.npz", "is_path": False, "arch": "digits_cnn"}
    return Audit(
        model, {"source": "set.npz", "is_path": True}, findings=[found], evidence=[evidence],
        scores={"contamination_analyzer": torch.ones(5)}, labels=torch.full((5,), 3), **more,
    )  # fmt: skip


def words(step: Step) -> list[str]:
    return shlex.split(step.command)


def test_after_a_finding_come_a_repair_and_a_guard_that_read_the_model_alike() -> None:
    repair, guard = steps(scanned(ERROR), "out of it")
    read = ["my models/net.pt2", "--arch", "nets:build", "--shape", "1,8,8", "--mean", "0.5"]
    rest = ["--data", "clean/x.npz", "--report", "out of it", "--out"]
    assert words(repair) == ["backsweep", "repair", *read, *rest, "repaired.pt2"]
    assert words(guard) == ["backsweep", "guard", "fit", *read, *rest, "guard"]


def test_the_next_command_reads_the_samples_alike() -> None:
    report = scanned(ERROR)
    report.data = {**report.data, "told": {"resize": True, "split": "valid", "rate": 8000, "rm": "-rf"}}
    for step in steps(report, "out"):
        given = words(step)
        assert given[given.index("--data") + 2 :][:5] == ["--rate", "8000", "--resize", "--split", "valid"]
        assert "--rm" not in given, "a report that was changed by hand names no other option"
    report.data["told"] = "--resize"
    assert "--resize" not in words(steps(report, "out")[0])


def test_nothing_that_cannot_be_done_is_named() -> None:
    assert steps(scanned(ERROR), None) == [], "nothing was kept that a repair could be told"
    (guard,) = steps(scanned(NOTE), "out")
    assert words(guard)[1:3] == ["guard", "fit"] and "--report" not in words(guard)
    assert steps(scanned(WARNING), "out") == []
    assert steps(scanned(ERROR, sha256_of="answers"), "out") == [], "a black box has no weights"
    assert steps(scanned(ERROR, modality="language"), "out") == []


def test_an_audit_names_its_check_then_a_guard_or_a_repair_of_the_fresh_network() -> None:
    (check,) = steps(audited(), "audit")
    assert words(check) == [
        "backsweep", "audit", "--train", "digits_cnn", "--data", "set.npz", "--verify", "--out", "audit"
    ]  # fmt: skip
    again = Retrained(0.9, 0.9, 4, "some")
    kept = {"verdict": "clean", "page": "scan/report.html", "model": "kept.safetensors", "data": "kept.npz"}
    fresh = [
        str(Path("audit") / "kept.safetensors"), "--arch", "backsweep.archs:digits_cnn", "--data",
        str(Path("audit") / "kept.npz"),
    ]  # fmt: skip
    (guard,) = steps(audited(retrained=again, rescan=kept), "audit")
    assert words(guard) == ["backsweep", "guard", "fit", *fresh, "--out", "guard"]
    (repair,) = steps(audited(retrained=again, rescan={**kept, "verdict": "backdoored"}), "audit")
    assert words(repair)[:2] == ["backsweep", "repair"] and str(Path("audit") / "scan") in words(repair)
    assert steps(audited(retrained=again), "audit") == []


def test_a_repair_names_a_guard_of_the_repaired_network_and_a_scan_that_it_lacks() -> None:
    nothing: Any = None
    done = Repaired(
        nothing, "m", Figures(0.9), Figures(0.9), about={"model": MODEL, "data": DATA}, scan=scanned(NOTE)
    )  # fmt: skip
    (guard,) = steps(done, "m.repair", "m.pt2")
    assert words(guard)[:4] == ["backsweep", "guard", "fit", "m.pt2"]
    scan, _ = steps(replace(done, scan=None), "m.repair", "m.pt2")
    assert words(scan)[:3] == ["backsweep", "scan", "m.pt2"] and words(scan)[-1] == "rescan"


@pytest.mark.parametrize("kind", ["scan", "audit"])
def test_terminal_and_page_say_the_same_command(kind: str) -> None:
    report: Any = scanned(ERROR) if kind == "scan" else audited()
    file = io.StringIO()
    screen = Console(file=file, width=60)
    both: dict[str, Any] = {
        "scan": (scan_terminal.show, scan_page.html), "audit": (audit_terminal.show, audit_page.html)
    }  # fmt: skip
    show, html = both[kind]
    show(report, screen, folder="out")
    page = html(report, folder="out")
    for step in steps(report, "out"):
        assert f"  {step.command}\n" in file.getvalue(), "in one line, to be copied"
        assert step.command.replace("'", "&#39;") in page


def test_a_network_in_which_nothing_was_found_is_not_changed(tmp_path: Path) -> None:
    import backsweep
    from backsweep.core.errors import BadInput
    from backsweep.models.model import Model
    from backsweep.zoo.tasks import TASKS

    task = TASKS["digits"]
    model, data = Model(task.net(0), task.shape, task.classes), task.load()[0][:200]
    for level, status in ((NOTE, 0), (WARNING, 3)):
        report = scanned(level, sha256=model.digest)
        with pytest.raises(BadInput, match="nothing to take out"):
            backsweep.repair(model, data, report, device="cpu")
        report.save(tmp_path / level)
        out = tmp_path / "repaired.safetensors"
        asked = ["repair", "nowhere.pt", "--data", "nowhere.npz", "--report", str(tmp_path / level)]
        result = CliRunner().invoke(app, [*asked, "--out", str(out)])
        assert result.exit_code == status, result.output
        assert "nothing to repair" in result.output
        assert not out.exists()
