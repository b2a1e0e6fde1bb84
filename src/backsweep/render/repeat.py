"""How to repeat a scan: the command line, quoted for a shell."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from backsweep.inputs.samples import COME_ALONG
from backsweep.render.view import clean
from backsweep.reports.report import Report

OPTIONS = ("schema", "rate", "resize", "split", "labels")  # of `Data.told`


def command(report: Report, verb: str = "scan", model: Sequence[str] = ()) -> str:
    """Command line that repeats a scan or an audit, quoted for a shell.

    Args:
        model: what stands in the place of the model and of how it is read.
    """
    words = ["backsweep", verb, *(model or [arrived(report.model, "MODEL")])]
    if not str(report.data.get("source")).endswith(COME_ALONG):
        words += samples(report.data)
    words += [] if model else read_as(report.model)
    if report.settings.get("reference"):
        words += ["--reference", "REFERENCE"]
    words += ["--confirm"] if report.settings.get("confirm") else []
    for name, settings in report.settings.get("detectors", {}).items():
        words += ["--detector", name]
        for key, value in settings.items():
            if value is not None:
                words += ["-p", f"{name}.{key}={value}"]
    for key in ("alpha", "seed", "device"):
        if key in report.settings:
            words += [f"--{key}", str(report.settings[key])]
    return clean(shlex.join(words), 4000)


def read_as(model: Mapping[str, Any]) -> list[str]:
    """Options that say how a model is read, from what a report says of it."""
    words = []
    for key in ("base", "arch", "layer", "tokenizer"):
        if model.get(key):
            words += [f"--{key}", str(model[key])]
    if (model.get("arch") or model.get("modality") == "text") and model.get("shape"):
        words += ["--shape", ",".join(str(v) for v in model["shape"])]
    for key, option in (("weights", "--weights"), ("input_layout", "--layout")):
        if model.get(key):
            words += [option, str(model[key])]
    if model.get("pixel_range"):
        words += ["--input-range", f"0-{model['pixel_range']:g}"]
    for key in ("mean", "std"):
        if model.get(key):
            words += [f"--{key}", ",".join(str(v) for v in model[key])]
    return words


def samples(data: Mapping[str, Any]) -> list[str]:
    """--data, and options that say how the model and samples are read, from what a report says of the
    samples."""
    told, words = data.get("told"), ["--data", arrived(data, "DATA")]
    known: Mapping[str, Any] = told if isinstance(told, Mapping) else {}
    for key in OPTIONS:
        value = known.get(key)
        words += [f"--{key}"] if value is True else [f"--{key}", str(value)] if value else []
    return words


def arrived(facts: Mapping[str, Any], otherwise: str) -> str:
    """Where a model or data came from, if that is a path; what was in memory has only a name."""
    source = str(facts.get("source") or "")
    return source if facts.get("is_path") or any(c in source for c in "/\\") else otherwise
