"""Model detectors, one a file. `backsweep.detectors.NeuralCleanse` and the like are found by name."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    from backsweep.base import ModelDetector
    from backsweep.plugins import discover

    if not name.startswith("_"):
        for cls in discover(ModelDetector).values():
            if cls.__name__ == name:
                return cls
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
