"""The bench: detectors and repairs over the zoo, one JSON line for every (network, method).

Repairs have their cells in `repairs.py`; here both are run. A line holds all that a table needs, with
versions and digests; finished cells are not run again. `figures.py` and `repair_figures.py` make the figures.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from backsweep import __version__
from backsweep.bench import repairs, samples
from backsweep.bench.records import about, read
from backsweep.core.discovery import make
from backsweep.core.documents import finite
from backsweep.core.errors import BacksweepError, BadInput
from backsweep.core.files import writable_folder
from backsweep.core.progress import OnEvent, counted
from backsweep.core.provenance import provenance
from backsweep.core.seeds import derive_seed, run_key
from backsweep.core.versions import versions
from backsweep.engine.engine import Engine
from backsweep.engine.jobs import Lost
from backsweep.reports.report import ERROR, Note, Report
from backsweep.scanning.detector import ModelDetector
from backsweep.scanning.scan import scan
from backsweep.zoo import build

SAMPLES = 1000  # clean test images that a detector is given, at least 30 a class


def cells(plan: dict[str, Any]) -> list[tuple[build.Entry, ModelDetector]]:
    """Every (network, detector) that a plan asks for; `seeds` and `tasks` narrow a detector down."""
    found = []
    others = any(plan.get(kind) for kind in ("repairs", "audits", "guards"))
    usual = [] if others else [{"name": "neural_cleanse"}]
    for table in plan.get("detectors", usual):
        for key in set(table) - {"name", "settings", "seeds", "tasks"}:
            raise BadInput(f"unknown key {key!r} under [[detectors]]")
        detector = make(ModelDetector, table.get("name", ""), table.get("settings", {}))
        for entry in build.entries(plan):
            if entry.seed in table.get("seeds", [entry.seed]) and entry.task in table.get(
                "tasks", [entry.task]
            ):
                found.append((entry, detector))
    return found


def run(
    plan: dict[str, Any],
    folder: Path,
    out: Path,
    engine: Engine | None = None,
    on_event: OnEvent | None = None,
) -> int:
    """Run what is missing in `out` on an engine; returns how many cells it holds then.

    A scan or a repair that fails is a line with the reason ("verdict" or "error"): it is not run again
    unless that line is removed.

    Raises:
        BadInput: a network is missing, or the plan, the data or the folder cannot be used.
        Lost: the worker of a cell died at every try; raised when the others are done, and without a line.
    """
    folder = folder.resolve()
    known = {line.get("cell") for line in read(out)} if out.is_file() else set()
    wanted: list[tuple[str, Callable[[], dict[str, Any]]]] = []
    for entry, detector in cells(plan):
        net = open_net(entry, folder)
        wanted.append((cell_key(net, detector), partial(run_cell, net, detector)))
    for entry, repair, share, scans in repairs.cells(plan):
        net = open_net(entry, folder)
        key = repairs.cell_key(net, repair, share, scans)
        wanted.append((key, partial(repairs.run_cell, net, repair, share, scans)))
    wanted += samples.cells(plan, partial(open_net, folder=folder))
    todo = [job for key, job in wanted if key not in known]
    lost: list[Lost] = []
    tell = counted("bench", len(wanted), len(wanted) - len(todo), on_event)
    for _, line in (engine or Engine()).run(todo):
        if isinstance(line, Lost):
            lost.append(line)
            continue
        _append(out, line)
        tell()
    if lost:
        raise Lost(f"{len(lost)} of {len(wanted)} cells were lost, the same command tries again: {lost[0]}")
    return len(wanted)


def _append(out: Path, line: dict[str, Any]) -> None:
    """Add a line; one that a kill tore before must not swallow it."""
    torn = out.is_file() and out.stat().st_size > 0 and not out.read_bytes().endswith(b"\n")
    with out.open("a", encoding="utf-8") as f:
        f.write("\n" * torn + json.dumps(finite(line), allow_nan=False) + "\n")


def open_net(entry: build.Entry, folder: Path) -> build.Net:
    """A network of the zoo that is there.

    Raises:
        BadInput: it is not.
    """
    try:
        return build.Net.read(folder / entry.id)
    except OSError as e:
        raise BadInput(f"network {entry.id} is not in {folder}; run `backsweep zoo build` first") from e


def cell_key(net: build.Net, detector: ModelDetector) -> str:
    """What a line is known by; a network that was trained again is another one."""
    return key_of(
        net.id, net.truth["sha256"], detector.name, detector.settings(), __version__,
        detector.depends_on(), provenance([detector]),
    )  # fmt: skip


def key_of(
    net: str, sha256: str, detector: str, settings: dict[str, Any], version: str,
    files: dict[str, str] | None = None, brought: dict[str, dict[str, str]] | None = None,
) -> str:  # fmt: skip
    """`cell_key`, from what a line says: `brought` are its "packages", if it has any."""
    own: dict[str, Any] = {"files": files} if files else {}
    own |= brought or {}
    return run_key(net=net, sha256=sha256, detector=detector, settings=settings, version=version, **own)[:16]


def run_cell(net: build.Net, detector: ModelDetector) -> dict[str, Any]:
    """Scan one network on one core and compare with the truth; its report stays beside the zoo."""
    torch.set_num_threads(1)
    truth = net.truth
    _, test = build.load_data(truth["task"])
    clean = test.sample(max(SAMPLES, 30 * net.task.classes), derive_seed(truth["seed"], "bench"))
    place = writable_folder(net.folder.parent.parent / "bench" / cell_key(net, detector))
    model, gate, failed = net.model(), build.failed_gate(net), {}
    try:
        if gate:  # not in the tables, only in their list of what was not admitted
            report = Report(skipped=[Note(detector.name, gate)])
        else:
            report = scan(
                model, clean, detector, seed=truth["seed"], device="cpu", engine=Engine(), out=place
            )
    except BacksweepError as e:
        report = Report(errors=[Note(detector.name, " ".join(str(e).split()))])
        failed = {"verdict": ERROR}
    return {
        "cell": cell_key(net, detector),
        **about(net),
        "layout": model.layout, "shape": list(model.shape), "classes": model.classes,
        "detector": detector.name, "settings": detector.settings(), "files": detector.depends_on(),
        **provenance([detector]), **outcome(report, net), **failed,
        **({"measured": measured} if (measured := detector.measured(report.evidence, model.classes)) else {}),
        "data_sha256": clean.digest, **versions(),
    }  # fmt: skip


def outcome(report: Report, net: build.Net) -> dict[str, Any]:
    """What a detector said of a network, beside the planted trigger."""
    top = report.findings[0] if report.findings else None
    jaccard = inside = None
    for planted in net.triggers():
        agreed = top.trigger.overlap(planted) if top is not None and top.trigger is not None else None
        if agreed is not None:
            jaccard, inside = max((jaccard or 0.0, inside or 0.0), agreed)
    notes = [f"{n.what}: {n.reason}" for n in (*report.skipped, *report.errors)]
    return {
        "verdict": report.verdict,
        "reason": "; ".join(notes),
        "alpha": report.settings.get("alpha"),
        "p_value": report.p_value,
        "suspected": list(report.targets),
        "most_suspicious": top.target if top else None,
        "score": top.score if top else None,
        **({f"detail_{k}": v for k, v in top.details.items()} if top else {}),
        "norm": top.trigger.size if top and top.trigger else None,
        "recovered_success_rate": top.attack_success_rate if top else None,
        "jaccard": jaccard, "inside": inside,
        "norms": [e.values.get("norm") for e in report.evidence],
        "updates": sum(int(e.values.get("updates") or 0) for e in report.evidence),
        "passes": sum(int(e.values.get("passes") or 0) for e in report.evidence),
        "cpu_seconds": round(sum(e.cpu_seconds for e in report.evidence), 2),
    }  # fmt: skip
