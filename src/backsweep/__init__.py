"""Backsweep finds backdoors in trained neural networks, shows the trigger and removes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backsweep import archs, attacks, detectors, repairs
    from backsweep.auditing.audit import audit
    from backsweep.core.errors import BacksweepError, BadInput
    from backsweep.formats.opening import load
    from backsweep.guarding.guard import Guard, guard
    from backsweep.inputs.samples import Data
    from backsweep.inputs.trigger import Trigger
    from backsweep.models.model import Model
    from backsweep.repairing.repair import repair
    from backsweep.reports.audit import Audit
    from backsweep.reports.repair import Repaired
    from backsweep.reports.report import Evidence, Finding, Report
    from backsweep.scanning.scan import judge, scan

__version__ = "0.1.0"

_HOME = {
    "audit": "auditing.audit", "BacksweepError": "core.errors", "BadInput": "core.errors",
    "load": "formats.opening", "Guard": "guarding.guard", "guard": "guarding.guard",
    "Data": "inputs.samples", "Trigger": "inputs.trigger", "Model": "models.model",
    "repair": "repairing.repair", "Audit": "reports.audit", "Repaired": "reports.repair",
    "Evidence": "reports.report", "Finding": "reports.report", "Report": "reports.report",
    "judge": "scanning.scan", "scan": "scanning.scan",
}  # fmt: skip
_NAMESPACES = ("archs", "attacks", "detectors", "repairs")
__all__ = [
    "Audit", "BacksweepError", "BadInput", "Data", "Evidence", "Finding", "Guard", "Model", "Repaired",
    "Report", "Trigger", "archs", "attacks", "audit", "detectors", "guard", "judge", "load", "repair",
    "repairs", "scan",
]  # fmt: skip


if not TYPE_CHECKING:  # type checkers are told the names above, so that another one is an error

    def __getattr__(name: str) -> Any:
        """Import on first use: `import backsweep` alone does not import torch."""
        import importlib

        if name in _HOME:
            value = getattr(importlib.import_module(f"backsweep.{_HOME[name]}"), name)
            globals()[name] = value
            return value
        if name in _NAMESPACES:
            return importlib.import_module(f"backsweep.{name}")
        raise AttributeError(f"module 'backsweep' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
