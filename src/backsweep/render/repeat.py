"""How to repeat a scan: the command line, quoted for a shell."""

from __future__ import annotations

import shlex
from typing import Any

from backsweep.inputs.samples import COME_ALONG
from backsweep.render.view import clean
from backsweep.reports.report import Report


def command(report: Report) -> str:
    """Command line that repeats the scan, quoted for a shell."""
    words = ["backsweep", "scan", _path(report.model, "MODEL")]
    if not str(report.data.get("source")).endswith(COME_ALONG):
        words += ["--data", _path(report.data, "DATA")]
    if report.model.get("base"):
        words += ["--base", str(report.model["base"])]
    if report.model.get("arch"):
        words += ["--arch", str(report.model["arch"])]
    if report.model.get("layer"):
        words += ["--layer", str(report.model["layer"])]
    if report.model.get("arch") and report.model.get("shape"):
        words += ["--shape", ",".join(str(v) for v in report.model["shape"])]
    for key, option in (("weights", "--weights"), ("input_layout", "--layout")):
        if report.model.get(key):
            words += [option, str(report.model[key])]
    if report.model.get("pixel_range"):
        words += ["--input-range", f"0-{report.model['pixel_range']:g}"]
    for key in ("mean", "std"):
        if report.model.get(key):
            words += [f"--{key}", ",".join(str(v) for v in report.model[key])]
    if report.settings.get("reference"):
        words += ["--reference", "REFERENCE"]
    for name, settings in report.settings.get("detectors", {}).items():
        words += ["--detector", name]
        for key, value in settings.items():
            if value is not None:
                words += ["-p", f"{name}.{key}={value}"]
    for key in ("alpha", "seed", "device"):
        if key in report.settings:
            words += [f"--{key}", str(report.settings[key])]
    return clean(shlex.join(words), 4000)


def _path(facts: dict[str, Any], otherwise: str) -> str:
    """Where a model or data came from, if that is a path; what was in memory has only a name."""
    source = str(facts.get("source") or "")
    return source if facts.get("is_path") or any(c in source for c in "/\\") else otherwise
