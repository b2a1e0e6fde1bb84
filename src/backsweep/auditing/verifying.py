"""What `verify` does after an audit: a network learns from the kept samples, is measured and scanned."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from backsweep.auditing.detector import TrainingSet
from backsweep.core.files import writable_folder
from backsweep.core.progress import Stage
from backsweep.core.seeds import derive_seed
from backsweep.formats.saving import save
from backsweep.models.model import Model
from backsweep.reports.audit import FRESH, KEPT, SCAN, Audit, Retrained
from backsweep.scanning.scan import scan

HELD_OUT = 0.1  # of the kept samples, to measure a fresh network on where there are no clean ones
SCANNED = 1000  # kept samples that it is scanned with, where there are no clean ones


def verified(
    report: Audit,
    given: TrainingSet,
    stage: Stage,
    out: str | os.PathLike[str] | None = None,
) -> None:
    """Train a fresh network without the flagged samples and measure it, in place.

    With a folder, and if something was flagged, the network and the kept samples are written there, and the
    network is scanned.

    Args:
        stage: where the training has begun, and the scan will.
    """
    model, report.retrained = retrained(report, given)
    if out is None or not len(report.flagged):
        return
    folder = writable_folder(Path(out))
    model.arch = model.arch or given.model.arch
    model.source = str(save(model, folder / FRESH))
    kept = given.data[report.kept]
    arrays: dict[str, Any] | None = given.data.modality.arrays(kept.x)
    if arrays is not None:
        np.savez(folder / KEPT, y=kept.y.numpy(), **arrays)
    samples = given.clean or kept.sample(SCANNED, derive_seed(given.seed, "scanned"))
    stage.named("verify: scan")
    found = scan(
        model, samples, alpha=report.settings["alpha"], seed=given.seed, device=given.model.device,
        on_event=stage.part, out=folder / SCAN,
    )  # fmt: skip
    report.rescan = said(found, arrays is not None)


def said(found: Any, kept: bool) -> dict[str, Any]:
    """What an audit says of the scan of the fresh network."""
    return {
        "verdict": found.verdict, "p_value": found.p_value, "targets": list(found.targets),
        "page": f"{SCAN}/report.html", "model": FRESH, "data": KEPT if kept else None,
    }  # fmt: skip


def retrained(report: Audit, given: TrainingSet) -> tuple[Model, Retrained]:
    """A fresh network that learned without the flagged samples, and what it is worth."""
    kept = given.data[report.kept]
    if given.clean is not None:
        learned, measured, words = kept, given.clean, "the clean samples"
    else:
        measured, learned = kept.parted(HELD_OUT, derive_seed(given.seed, "held out"))
        words = f"{len(measured):,} kept samples, held out"
    after = given.train(learned, derive_seed(given.seed, "retrain"))
    return after, Retrained(
        given.model.accuracy(measured.x, measured.y),
        after.accuracy(measured.x, measured.y),
        len(learned),
        words,
    )
