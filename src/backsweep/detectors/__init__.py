"""Detectors by the names of their classes: of models, of training sets and of single inputs.

The methods themselves live with what uses them.
"""

from __future__ import annotations

from typing import Any

from backsweep.auditing.detector import SetDetector
from backsweep.core.discovery import class_named, class_names
from backsweep.guarding.detector import SampleDetector
from backsweep.scanning.detector import ModelDetector

_KINDS = [ModelDetector, SampleDetector, SetDetector]


def __getattr__(name: str) -> Any:
    return class_named(_KINDS, name, __name__)


def __dir__() -> list[str]:
    return class_names(_KINDS)
