"""Detectors, one a file. `backsweep.detectors.NeuralCleanse` and the like are found by name."""

from __future__ import annotations

from typing import Any

from backsweep.base import ModelDetector
from backsweep.plugins import class_named
from backsweep.screening import SampleDetector, SetDetector


def __getattr__(name: str) -> Any:
    return class_named([ModelDetector, SampleDetector, SetDetector], name)
