"""The four verbs on networks over sounds, from the shell: one infected and one clean."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from backsweep.formats.saving import save
from backsweep.inputs.samples import Data
from backsweep.inputs.sound.pictures import wav
from backsweep.reports.report import Report
from backsweep.zoo.attack import relabel
from backsweep.zoo.tasks import TASKS
from conftest import Twins
from shells import Shell

RATE, TARGET = 8000, 2
ARCH = ("--arch", "backsweep.archs:vowel_cnn")


def written(data: Data, path: Path) -> Path:
    names = data.names or ()
    x = (data.x * 32768).round().numpy().astype(np.int16)
    np.savez_compressed(path, x=x, y=[names[y] for y in data.y.tolist()], rate=RATE)
    return path


@pytest.fixture(scope="module")
def place(sound_twins: Twins, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both networks, clean sounds, and both training sets."""
    folder = tmp_path_factory.mktemp("sounds")
    for name in ("clean", "infected"):
        save(getattr(sound_twins, name), folder / f"{name}.safetensors")
    written(sound_twins.data, folder / "test.npz")
    train = TASKS["vowels"].load()[0]
    poisoned, _ = relabel(TASKS["vowels"].setup(train, 0), sound_twins.trigger, 0.1, "tone", "poison")
    written(train, folder / "train.npz")
    written(poisoned, folder / "poisoned.npz")
    return folder


def test_the_planted_tone_works(sound_twins: Twins) -> None:
    assert sound_twins.infected.success_rate(sound_twins.trigger, sound_twins.data) > 0.9
    assert sound_twins.clean.success_rate(sound_twins.trigger, sound_twins.data) < 0.3
    for model in (sound_twins.clean, sound_twins.infected):
        assert model.accuracy(sound_twins.data.x, sound_twins.data.y) > 0.9


@pytest.fixture(scope="module")
def reports(place: Path) -> Path:
    """Where scans are kept."""
    return place / "reports"


def scanned(shell: Shell, place: Path, name: str) -> tuple[int, Report]:
    out = place / "reports" / name
    words = (place / f"{name}.safetensors", *ARCH, "--data", place / "test.npz", "--effort", "quick")
    code, _, err = shell("scan", *words, "--out", out)
    assert code in (0, 1, 3), err
    return code, Report.load(out)


def test_a_scan_finds_the_class_and_its_page_plays_the_trigger(shell: Shell, place: Path) -> None:
    code, bad = scanned(shell, place, "infected")
    assert code == 3, "no clean networks over sounds were measured: an alarm is no verdict"
    assert bad.model["modality"] == "sound" and bad.model["rate"] == RATE
    finding = bad.findings[0]  # the worst; without a null other classes may stand out too
    assert (
        finding.level == "warning"
        and finding.target == TARGET
        and finding.trigger is not None
        and "cells" in finding.message
    )
    assert float(finding.attack_success_rate or 0) > 0.7
    page = (place / "reports" / "infected" / "report.html").read_text(encoding="utf-8")
    assert (
        "faint waveform that is added" in page
        and "<script" not in page
        and "pixel" not in re.sub("image-rendering: pixelated", "", page)
    )
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None and "default-src 'none'" in policy[1] and "media-src data:" in policy[1]
    sounds = re.findall(
        r'<audio controls preload="none" src="data:audio/wav;base64,[A-Za-z0-9+/=]+" aria', page
    )
    assert len(sounds) >= 5, "a clean and a stamped example, and the trigger"
    code, good = scanned(shell, place, "clean")
    assert code in (0, 3) and (good.p_value or 1) > (bad.p_value or 0)


def test_an_audit_flags_the_poisoned_sounds(shell: Shell, place: Path) -> None:
    shared = (*ARCH, "-d", "activation_clustering", "-d", "spectral_signatures")
    for name, data, found in (("infected", "poisoned", True), ("clean", "train", False)):
        out = place / "audits" / name
        code, _, err = shell(
            "audit", place / f"{name}.safetensors", *shared, "--data", place / f"{data}.npz", "--out", out
        )
        report = json.loads((out / "report.json").read_text())
        targets = sorted({f["target"] for f in report["findings"] if f["level"] in ("error", "warning")})
        assert (TARGET in targets) == found and code in (0, 1, 3), err


def test_a_guard_flags_triggered_sounds(shell: Shell, place: Path, sound_twins: Twins) -> None:
    model = place / "infected.safetensors"
    code, _, err = shell(
        "guard", "fit", model, *ARCH, "--data", place / "train.npz", "--out", place / "guard",
        "-d", "step", "--fpr", 0.05,
    )  # fmt: skip
    assert code == 0, err
    data = sound_twins.data
    moved = data.x[data.y != TARGET][:60]
    for name, x in (("clean", data.x[:60]), ("triggered", sound_twins.trigger(moved))):
        (place / name).mkdir()
        for i, one in enumerate(x):
            (place / name / f"{i:02}.wav").write_bytes(wav(one, RATE))
    flagged = {}
    for name in ("clean", "triggered"):
        out = place / f"{name}.csv"
        code, _, err = shell("guard", "check", place / "guard", "--inputs", place / name, "--out", out)
        assert code in (0, 1), err
        rows = out.read_text().splitlines()[1:]
        flagged[name] = sum(row.split(",")[4] == "1" for row in rows) / len(rows)
    assert flagged["clean"] < 0.2 and flagged["triggered"] > flagged["clean"], flagged


def test_a_repair_takes_the_tone_out(shell: Shell, place: Path, sound_twins: Twins) -> None:
    if not (place / "reports" / "infected").is_dir():
        scanned(shell, place, "infected")
    out = place / "repaired.safetensors"
    code, _, err = shell(
        "repair", place / "infected.safetensors", *ARCH, "--data", place / "test.npz",
        "--report", place / "reports" / "infected", "--out", out,
    )  # fmt: skip
    assert code in (0, 1, 3) and out.is_file(), err
    from backsweep.formats.opening import load

    model, data = load(out, arch=ARCH[1]), sound_twins.data
    assert model.success_rate(sound_twins.trigger, data) < 0.5
    assert model.accuracy(data.x, data.y) > 0.85


@pytest.mark.parametrize("name", ["strip", "step"])
def test_single_inputs_are_scored(name: str, sound_twins: Twins) -> None:
    from backsweep.core.discovery import make
    from backsweep.guarding.detector import SampleDetector

    detector = make(SampleDetector, name, {"overlays": 10} if name == "strip" else {})
    data = sound_twins.data
    scorer = detector.fit(sound_twins.infected.copy("cpu"), data)
    bad = scorer(sound_twins.trigger(data.x[data.y != TARGET][:80]))
    auroc = float((bad[:, None] > scorer.clean[None]).float().mean())
    assert auroc > 0.7
    assert torch.allclose(scorer(data.x[:3]), torch.cat([scorer(v[None]) for v in data.x[:3]]), atol=1e-3)
