"""What to do with a result: the next commands, with the paths that the user gave."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backsweep.render.repeat import arrived, read_as, samples
from backsweep.render.view import clean, join, modality, names
from backsweep.reports.audit import FRESH, KEPT, SCAN, Audit
from backsweep.reports.repair import Repaired
from backsweep.reports.report import BACKDOORED, CLEAN, Report

GUARD, REPAIRED = "guard", "repaired"
BUILT_IN = "backsweep.archs:"  # networks that come with the package


@dataclass(frozen=True)
class Step:
    """A command to go on with.

    Attributes:
        what: what it is for, a few words.
        command: the command line, quoted for a shell.
    """

    what: str
    command: str


def steps(record: Report | Repaired, folder: str | Path | None, out: str | Path | None = None) -> list[Step]:
    """The commands to go on with after a scan, an audit or a repair; none where nothing was kept.

    Args:
        folder: of the saved report.
        out: of a repair: the repaired network.
    """
    if folder is None:
        return []
    if isinstance(record, Repaired):
        return _repaired(record, out)
    if isinstance(record, Audit):
        return _audited(record, Path(folder))
    return _scanned(record, Path(folder))


def _scanned(report: Report, folder: Path) -> list[Step]:
    if not modality(report).classified or report.model.get("sha256_of") == "answers":
        return []  # repairs and guards of these are not there
    words, with_data = _given(report.model, report.data)
    named = ["--report", str(folder)] if report.verdict == BACKDOORED else []
    guard = _step(
        "tell triggered inputs from clean ones while it runs",
        ["guard", "fit", *words, *with_data, *named, "--out", GUARD],
    )
    if report.verdict != BACKDOORED:
        return [guard] if report.verdict == CLEAN else []
    place = Path(str(report.model.get("source") or ""))
    suffix = place.suffix if report.model.get("is_path") else ".safetensors"
    out = f"{REPAIRED}{suffix}"
    repair = _step("take the backdoor out", ["repair", *words, *with_data, *named, "--out", out])
    return [repair, guard]


def _audited(report: Audit, folder: Path) -> list[Step]:
    if report.verdict != BACKDOORED:
        return []
    arch = report.model.get("arch")
    if report.retrained is None:
        model = training(report) or [arrived(report.model, "MODEL"), *read_as(report.model)]
        again = ["audit", *model, *samples(report.data), "--verify", "--out", str(folder)]
        return [_step("train a network on the kept samples and scan it", again)]
    if not arch or report.rescan is None or not report.rescan.get("data"):
        return []
    code = str(arch) if ":" in str(arch) else BUILT_IN + str(arch)
    words = [str(folder / FRESH), "--arch", code, "--data", str(folder / KEPT)]
    if report.rescan.get("verdict") == BACKDOORED:
        named = ["--report", str(folder / SCAN), "--out", f"{REPAIRED}.safetensors"]
        return [_step("take out what the scan found in the fresh network", ["repair", *words, *named])]
    fit = ["guard", "fit", *words, "--out", GUARD]
    return [_step("guard the network that learned from the kept samples", fit)]


def training(report: Report) -> list[str]:
    """Options of an audit that trains its own network as this one did; none where there was a network."""
    arch = report.model.get("arch")
    return ["--train", str(arch)] if arch and not report.model.get("is_path") else []


def _repaired(repaired: Repaired, out: str | Path | None) -> list[Step]:
    model, data = (
        dict(v) if isinstance(v := repaired.about.get(k), Mapping) else {} for k in ("model", "data")
    )
    if not isinstance(out, str | Path):
        return []
    try:
        words = [str(out), *read_as(model)]
    except (TypeError, ValueError):  # a record that was changed by hand
        return []
    with_data = samples(data)
    found = [
        _step(
            "see at run time what the repair may have left, with a guard",
            ["guard", "fit", *words, *with_data, "--out", GUARD],
        )
    ]
    if repaired.scan is None:
        found.insert(0, _step("scan the repaired network", ["scan", *words, *with_data, "--out", "rescan"]))
    return found


def _given(model: dict[str, Any], data: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The model with how it is read, and the samples."""
    return [arrived(model, "MODEL"), *read_as(model)], samples(data)


def _step(what: str, words: Sequence[str]) -> Step:
    return Step(what, clean(shlex.join(["backsweep", *words]), 4000))


def scanned(report: Audit, folder: str | Path = "") -> str:
    """What a scan of the fresh network came to.

    Args:
        folder: of the audit.
    """
    found = report.rescan
    if found is None:
        return "It does not say that no poison is left: scan the fresh network."
    page = f"its page is {clean(Path(folder) / str(found.get('page')), 400)}"
    targets = [names(report)(t) for t in found.get("targets") or ()]
    return {
        CLEAN: f"A scan of the fresh network found nothing; {page}.",
        BACKDOORED: f"A scan of the fresh network still suspects class {join(targets)}; {page}.",
    }.get(str(found.get("verdict")), f"A scan of the fresh network could not tell; {page}.")
