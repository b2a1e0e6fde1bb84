"""What an older version wrote is read by this one, and says the same.

tests/compatibility holds its files; README.md there says how they were made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import backsweep
from backsweep.auditing import audit as auditing
from backsweep.bench.records import read
from backsweep.core.discovery import find, make
from backsweep.core.documents import finite
from backsweep.core.seeds import run_key
from backsweep.guarding.guard import Guard
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.inventory.store import Store
from backsweep.models.model import Model
from backsweep.render.boards import leaderboard
from backsweep.reports.audit import Audit
from backsweep.reports.report import Report
from backsweep.scanning import calibration
from backsweep.scanning.detector import ModelDetector
from backsweep.scanning.detectors.mntd import MNTD
from backsweep.shadows.bank import Bank
from backsweep.zoo import build
from shells import ARCH, Shell

OLD = Path(__file__).parent / "compatibility"
ROOT = Path(__file__).parents[1]
SCANS = ("scan-clean", "scan-backdoored", "scan-bank")
OTHER_LINES = (
    "zoo",
    "neural-cleanse-repair",
    "kinds",
    "kinds-sound",
    "text",
    "text-kinds",
    "tables",
    "sound",
    "language-models",
    "language-repairs",
    "adapters",
    "small-sets",
    "audits-kinds",
    "audits-tables",
)  # networks that were built, and what a script of its own made
NEAR = 1e-5  # another processor rounds otherwise


def said(*parts: str) -> Any:
    """JSON as it was written."""
    return json.loads(OLD.joinpath(*parts).read_text(encoding="utf-8"))


def network() -> Model:
    return backsweep.load(OLD / "backdoored.safetensors", ARCH, shape=(1, 8, 8))


def alike(now: Any, then: Any, near: float = 1e-9) -> bool:
    """Equal, but for the last digits of numbers that were computed anew."""
    if isinstance(then, Mapping):
        return list(now) == list(then) and all(alike(now[k], then[k], near) for k in then)
    if isinstance(then, list):
        return len(now) == len(then) and all(alike(a, b, near) for a, b in zip(now, then, strict=True))
    if isinstance(then, float) and isinstance(now, float):
        return now == pytest.approx(then, rel=near, abs=near)
    return bool(now == then)


# ------------------------------------------------------------------ scans and audits


@pytest.mark.parametrize("name", SCANS)
def test_a_report_is_read_whole_and_judged_as_it_was(name: str) -> None:
    report, then = Report.load(OLD / name), said(name, "report.json")
    assert report.to_json() == then
    assert len(then["findings"]) >= 1
    assert alike(backsweep.judge(report).to_json(), then)


def test_the_two_networks_are_told_apart_by_their_reports() -> None:
    clean, bad = (Report.load(OLD / name) for name in SCANS[:2])
    assert (clean.verdict, clean.targets, bad.verdict, bad.targets) == ("clean", (), "backdoored", (4,))


@pytest.mark.parametrize("name", SCANS[:2])
def test_the_triggers_of_a_report_are_what_was_measured(name: str) -> None:
    triggers = [e for e in Report.load(OLD / name).evidence if e.trigger is not None]
    assert len(triggers) == 11, "one for every class, and one for the most suspicious"
    for e in triggers:
        assert e.trigger is not None
        assert e.trigger.size == pytest.approx(e.values["norm"], rel=NEAR)
        assert e.trigger.target == e.target


def test_an_audit_is_read_whole_and_judged_as_it_was() -> None:
    report, then = Audit.load(OLD / "audit"), said("audit", "report.json")
    assert report.to_json() == then
    flagged = [int(line.split(",")[0]) for line in (OLD / "audit" / "flagged.csv").read_text().split()[1:]]
    assert report.flagged.tolist() == flagged
    assert len(flagged) > 0
    again = auditing.judge(report)
    assert again.verdict == then["verdict"]
    assert set(then["targets"]) <= set(again.targets), "detectors that are judged together see no less"
    assert set(flagged) <= set(again.flagged.tolist())
    nulls = [str(f.details["null"]) for f in again.findings]
    assert any("unpoisoned sets of digits" in s for s in nulls), "there are tables for these networks"


# ------------------------------------------------------------------ null tables and the bench


def test_published_p_values_come_out_of_the_null_tables_again() -> None:
    """59 clean networks: a score that was published is of the same rank today."""
    lines = read(ROOT / "docs" / "results" / "standard.jsonl")
    known = [x for x in lines if x.get("detail_null") == "59 clean networks of mnist"]
    assert len(known) == 129
    for line in known:
        settings = find(ModelDetector, line["detector"]).completed(line["settings"])
        detector = make(ModelDetector, line["detector"], settings)
        (null,) = [n for n in calibration.tables() if n.fits(detector, line)]
        assert null.p_value(line["score"]) == line["p_value"]
        assert null.words == line["detail_null"]


@pytest.mark.parametrize("path", sorted((ROOT / "plans").glob("*.toml")), ids=lambda p: p.stem)
def test_a_plan_is_still_read(path: Path) -> None:
    assert build.entries(build.read_plan(path))


@pytest.mark.parametrize(
    "path",
    [p for p in sorted((ROOT / "docs" / "results").glob("*.jsonl")) if p.stem not in OTHER_LINES],
    ids=lambda p: p.stem,
)
def test_published_results_still_make_the_published_board(path: Path) -> None:
    text = leaderboard.table(read(path), "calibration" if "calibration" in path.stem else "judging")
    published = path.with_suffix(".md")
    assert "\n| " in text, "there is a table"
    if published.is_file():
        assert text == published.read_text(encoding="utf-8")


# ------------------------------------------------------------------ guards


def test_a_guard_scores_its_inputs_as_it_did() -> None:
    guard, then = Guard.load(OLD / "guard", network(), "cpu"), said("answers.json")
    with np.load(OLD / "inputs.npz") as f:
        answers = guard.predict(f["x"])
    assert list(guard.scorers) == ["confused_expert", "washed_reference"]
    assert torch.allclose(answers.scores, torch.tensor(then["scores"]).double(), rtol=NEAR, atol=NEAR)
    assert answers.labels.tolist() == then["labels"]
    assert answers.flagged.tolist() == then["flagged"]
    assert 0 < sum(then["flagged"]) < len(then["flagged"])
    assert guard.threshold == said("guard", "guard.json")["threshold"]


def test_the_network_that_a_guard_names_is_found_under_that_name(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert said("guard", "guard.json")["model"]["arch"] == ARCH
    monkeypatch.chdir(OLD)  # the guard was fitted there
    status, _, stderr = shell(
        "guard", "check", "guard", "--inputs", "inputs.npz", "--out", tmp_path / "a.csv"
    )
    assert status == 1, stderr
    rows = [line.split(",") for line in (tmp_path / "a.csv").read_text().split()]
    assert len(rows) == 1 + len(said("answers.json")["scores"])


# ------------------------------------------------------------------ repairs


def test_a_repair_is_what_its_record_says() -> None:
    folder, model = OLD / "repaired.safetensors.repair", network()
    record = said(folder.name, "repair.json")
    assert record["model"]["sha256"] == model.digest
    data = Data.open(OLD / "digits.npz", shape=(1, 8, 8))
    assert len(record["effects"]) == 4, "two triggers of the scan, two fresh ones"
    for effect in record["effects"]:
        trigger = Trigger.load(folder / effect["trigger"])
        assert (trigger.family, trigger.target) == (effect["family"], effect["target"])
        assert model.success_rate(trigger, data) == pytest.approx(effect["before"], abs=0.05)
    scan = Report.load(folder / "scan")
    assert scan.to_json() == said(folder.name, "scan", "report.json")
    assert scan.verdict == "clean"


# ------------------------------------------------------------------ banks


def test_a_bank_scores_a_network_as_it_did() -> None:
    bank = Bank.load(OLD / "digits.bank")
    then = said("scan-bank", "report.json")
    assert bank.about["archs"] == ["digits_cnn"]
    data = Data.open(OLD / "digits.npz", shape=(1, 8, 8))
    report = backsweep.scan(network(), data, MNTD(bank=str(OLD / "digits.bank")), device="cpu")
    now = report.to_json()
    ((a,), (b,)) = now["evidence"], then["evidence"]
    assert a["values"].keys() == b["values"].keys()
    assert alike(a["values"], b["values"], NEAR)
    assert alike(now["findings"], then["findings"], NEAR)
    assert MNTD(bank=str(OLD / "digits.bank")).depends_on() == {"bank": bank.digest}


# ------------------------------------------------------------------ stores


def test_a_store_has_its_verdicts(tmp_path: Path) -> None:
    copy = tmp_path / "store.db"
    copy.write_bytes((OLD / "store.db").read_bytes())
    with Store(str(copy), create=False) as store:
        records = store.records(reports=True)
        bare = store.get(records[0].model, records[0].settings_key)
    assert bare is not None
    assert bare.verdict == records[0].verdict
    assert finite([r.to_json() for r in records]) == said("verdicts.json")
    digests = {said(name, "report.json")["model"]["sha256"] for name in SCANS[:2]}
    assert {r.model for r in records} == digests
    for record in records:
        assert run_key(**record.settings) == record.settings_key, "it is known again"
        assert record.report is not None
        assert alike(backsweep.judge(Report.from_json(record.report)).to_json(), record.report)


def test_a_scan_measures_what_it_did() -> None:
    """With the settings that a verdict was made with. It ascends in bfloat16, so two digits are the same
    on every processor; with another start, or other steps, none would be."""
    (then,) = [r for r in said("verdicts.json") if r["source"] == "backdoored.safetensors"]
    ((name, settings),) = then["settings"]["detectors"].items()
    report = backsweep.scan(
        network(), Data.open(OLD / "digits.npz", shape=(1, 8, 8)), make(ModelDetector, name, settings),
        alpha=then["settings"]["alpha"], seed=then["settings"]["seed"], device="cpu",
    )  # fmt: skip
    now, was = report.to_json()["evidence"], then["report"]["evidence"]
    assert [(e["unit"], e["target"]) for e in now] == [(e["unit"], e["target"]) for e in was]
    for a, b in zip(now, was, strict=True):
        assert a["values"]["margin"] == pytest.approx(b["values"]["margin"], rel=0.05, abs=0.05)
        assert a["values"]["passes"] == b["values"]["passes"]
    assert report.verdict == then["verdict"]
    assert report.p_value == pytest.approx(then["p_value"], abs=0.02)


def test_the_verdicts_of_a_store_are_exported_as_they_were(shell: Shell, tmp_path: Path) -> None:
    copy = tmp_path / "store.db"
    copy.write_bytes((OLD / "store.db").read_bytes())
    status, stdout, stderr = shell("history", "--store", copy, "--format", "json")
    assert status in (0, 1), stderr
    assert json.loads(stdout) == said("verdicts.json")
