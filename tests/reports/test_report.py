"""Saving and reading reports: nothing is lost, and what is damaged is refused in one line."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backsweep.core.errors import BadInput
from backsweep.inputs.image.triggers import Patch
from backsweep.reports.report import (
    BACKDOORED,
    CLEAN,
    ERROR,
    INCONCLUSIVE,
    NOTE,
    WARNING,
    Evidence,
    Finding,
    Note,
    Report,
    evidence_json,
    read_evidence,
    worst_first,
)
from reporting import make_report

FILES = ("report.json", "report.html", "report.sarif", "examples.safetensors")


def finding(level: str, target: int | None = 0, p: float | None = None, detector: str = "a") -> Finding:
    return Finding("BSW101", detector, level, "text", target, p_value=p)


def strict(path: Path) -> Any:
    """Parse JSON, refusing NaN and Infinity."""

    def refuse(word: str) -> Any:
        raise AssertionError(f"{word} in {path}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


# ---------------------------------------------------------------------- what a report says


@pytest.mark.parametrize(
    ("levels", "errors", "evidence", "verdict", "status"),
    [
        ([NOTE], False, True, CLEAN, 0),
        ([], False, True, CLEAN, 0),
        ([ERROR, NOTE], False, True, BACKDOORED, 1),
        ([ERROR, WARNING], True, True, BACKDOORED, 1),
        ([WARNING], False, True, INCONCLUSIVE, 3),
        ([NOTE], True, True, INCONCLUSIVE, 3),
        ([], False, False, INCONCLUSIVE, 3),
    ],
)
def test_verdict(levels: list[str], errors: bool, evidence: bool, verdict: str, status: int) -> None:
    report = Report(
        findings=[finding(level) for level in levels],
        errors=[Note("a", "b")] if errors else [],
        evidence=[Evidence("a", "class-0", 0)] if evidence else [],
    )
    assert (report.verdict, report.exit_status) == (verdict, status)


def test_what_was_skipped_alone_is_not_clean() -> None:
    assert Report(skipped=[Note("a", "does not fit")]).verdict == INCONCLUSIVE


def test_p_value_is_corrected_for_the_number_of_detectors() -> None:
    evidence = [Evidence("a", "class-0", 0), Evidence("b", "class-0", 0)]
    report = Report(evidence=evidence, findings=[finding(ERROR, p=0.01), finding(NOTE, p=0.4, detector="b")])
    assert report.p_value == pytest.approx(0.02)
    assert Report(evidence=evidence, findings=[finding(NOTE, p=0.7)]).p_value == 1.0
    assert Report(evidence=evidence, findings=[finding(WARNING)]).p_value is None


def test_targets_are_ordered_by_suspicion_and_named_once() -> None:
    found = [finding(WARNING, 4), finding(ERROR, 1, 0.02), finding(ERROR, 2, 0.001), finding(ERROR, 1, 0.03)]
    report = Report(findings=[*found, finding(NOTE, 7, 1e-9), finding(ERROR, None)])
    assert report.targets == (2, 1, 4)
    assert [f.level for f in worst_first(report.findings)] == [ERROR] * 4 + [WARNING, NOTE]


def test_label() -> None:
    report = Report(model={"labels": ["stop", ""]})
    assert [report.label(i) for i in (0, 1, 2, None)] == ["0 (stop)", "1", "2", "every class"]


# ---------------------------------------------------------------------- round trip


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 12, 20)])
def test_save_and_load(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    report = make_report(
        6, bad=(2,), shape=shape, labels=["ä", "b"], skipped=[Note("x", "y")], errors=[Note("p", "q")]
    )
    folder = report.save(tmp_path / "new" / "folder")
    assert all((folder / name).is_file() for name in FILES)
    assert not list(folder.rglob("*.partial"))
    again = Report.load(folder)
    assert again.to_json() == report.to_json() == strict(folder / "report.json")
    assert (again.verdict, again.p_value, again.targets) == (report.verdict, report.p_value, (2,))
    assert torch.allclose(again.examples, report.examples, atol=1 / 255)
    for old, new in zip(report.evidence, again.evidence, strict=True):
        assert isinstance(old.trigger, Patch) and isinstance(new.trigger, Patch)
        assert torch.equal(old.trigger.mask, new.trigger.mask)
        assert torch.equal(old.trigger.pattern, new.trigger.pattern)
        assert (new.trigger.target, new.trigger.source) == (old.trigger.target, old.trigger.source)
    assert again.findings[0].trigger is again.evidence[2].trigger
    again.save(folder)  # over itself
    assert Report.load(folder / "report.json").to_json() == report.to_json()


def test_report_without_triggers_or_examples(tmp_path: Path) -> None:
    report = make_report(4, triggers=False)
    report.examples = None
    again = Report.load(report.save(tmp_path))
    assert again.to_json() == report.to_json()
    assert again.examples is None and again.findings[0].trigger is None
    assert Report.load(Report().save(tmp_path / "empty")).verdict == INCONCLUSIVE


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_infinite_values_are_never_written(tmp_path: Path, bad: float) -> None:
    report = make_report(3, bad=())
    report.evidence[1] = replace(report.evidence[1], values={"norm": bad, "reached": False})
    report.findings = [
        replace(finding(WARNING), score=bad, threshold=bad, details={"x": bad}, attack_success_rate=bad)
    ]
    report.data["clean_accuracy"] = bad
    report.model["std"] = [bad, 1.0]
    report.timings["total_seconds"] = bad
    folder = report.save(tmp_path)
    raw = strict(folder / "report.json")
    strict(folder / "report.sarif")
    assert raw["evidence"][1]["values"]["norm"] is None
    assert raw["findings"][0]["score"] is None and raw["findings"][0]["details"]["x"] is None
    assert json.dumps(evidence_json(report.evidence[1]), allow_nan=False)
    assert Report.load(folder).verdict == INCONCLUSIVE


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="cannot write"):
        Report().save(tmp_path / "file" / "folder")


# ---------------------------------------------------------------------- damage


def test_missing_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(BadInput, match="give the folder of a scan"):
            Report.load(path)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "3", '"schema"', "{}", '{"schema": 1}', '{"schema": 1, "verdict": "clean"}',
        "[" * 100_000, "\x00", "[1, 2",
    ],
)  # fmt: skip
def test_damaged_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(BadInput, match="not a report of Backsweep, or is damaged"):
        Report.load(tmp_path)


def test_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(BadInput):
        Report.load(tmp_path)


def test_schema_of_another_version(tmp_path: Path) -> None:
    folder = make_report(3).save(tmp_path)
    raw = strict(folder / "report.json")
    raw["schema"] = 99
    (folder / "report.json").write_text(json.dumps(raw))
    with pytest.raises(BadInput, match="schema 99; this version reads schema 1"):
        Report.load(folder)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["findings", 0, "level"], "fatal"),
        (["findings", 0, "details"], None),
        (["findings", 0, "surprise"], 1),
        (["findings", 0], "text"),
        (["evidence", 0, "values"], [1]),
        (["evidence", 0, "trigger"], "../../secret.safetensors"),
        (["evidence", 0, "unit"], "class-1"),
        (["evidence", 0], 7),
        (["skipped"], [{"what": "x"}]),
        (["errors"], None),
        (["model"], []),
        (["timings"], "fast"),
    ],
)
def test_wrong_parts(tmp_path: Path, path: list[Any], value: Any) -> None:
    folder = make_report(3, shape=(1, 6, 6)).save(tmp_path)
    raw = strict(folder / "report.json")
    part = raw
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    (folder / "report.json").write_text(json.dumps(raw))
    with pytest.raises(BadInput):
        Report.load(folder)


def test_trigger_file_stays_in_its_folder(tmp_path: Path) -> None:
    raw = evidence_json(make_report(2).evidence[0])
    raw.update(detector="../../a", trigger="triggers/../../a-class-0.safetensors")
    with pytest.raises(ValueError, match="trigger file"):
        read_evidence(raw, tmp_path)


@pytest.mark.parametrize("name", ["examples.safetensors", "triggers/neural_cleanse-class-1.safetensors"])
def test_damaged_tensors(tmp_path: Path, name: str) -> None:
    folder = make_report(3, shape=(1, 6, 6)).save(tmp_path)
    (folder / name).write_bytes((folder / name).read_bytes()[:40])
    with pytest.raises(BadInput):
        Report.load(folder)


def test_lost_trigger(tmp_path: Path) -> None:
    folder = make_report(3, shape=(1, 6, 6)).save(tmp_path)
    (folder / "triggers" / "neural_cleanse-class-1.safetensors").unlink()
    with pytest.raises(BadInput, match="class-1"):
        Report.load(folder)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(cut=st.floats(0, 0.999), junk=st.binary(max_size=4))
def test_torn_file(tmp_path: Path, cut: float, junk: bytes) -> None:
    folder = tmp_path / "report"
    if not folder.is_dir():
        make_report(3, triggers=False).save(folder)
        (folder / "whole").write_bytes((folder / "report.json").read_bytes().rstrip())
    whole = (folder / "whole").read_bytes()
    (folder / "report.json").write_bytes(whole[: int(cut * len(whole))] + junk)
    with pytest.raises(BadInput):
        Report.load(folder)
