"""Backsweep finds backdoors in trained neural networks, shows the trigger and removes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backsweep.api import judge, scan
    from backsweep.audited import Audit
    from backsweep.auditing import audit
    from backsweep.data import Data
    from backsweep.errors import BacksweepError, BadInput
    from backsweep.guarding import Guard, guard
    from backsweep.loading import load
    from backsweep.mending import repair
    from backsweep.model import Model
    from backsweep.repaired import Repaired
    from backsweep.report import Evidence, Finding, Report
    from backsweep.trigger import Trigger

__version__ = "0.1.0"

_HOME = {
    "judge": "api", "scan": "api", "Audit": "audited", "audit": "auditing", "Guard": "guarding",
    "guard": "guarding", "Data": "data", "BacksweepError": "errors", "BadInput": "errors",
    "load": "loading", "Model": "model", "Evidence": "report", "Finding": "report", "Report": "report",
    "repair": "mending", "Repaired": "repaired", "Trigger": "trigger",
}  # fmt: skip
__all__ = [
    "Audit", "BacksweepError", "BadInput", "Data", "Evidence", "Finding", "Guard", "Model", "Repaired",
    "Report", "Trigger", "audit", "guard", "judge", "load", "repair", "scan",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import on first use: `import backsweep` alone does not import torch."""
    import importlib

    if name in _HOME:
        value = getattr(importlib.import_module(f"backsweep.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    if name in ("attacks", "detectors", "repairs"):
        return importlib.import_module(f"backsweep.{name}")
    raise AttributeError(f"module 'backsweep' has no attribute {name!r}")
