"""Attacks, one a file. `backsweep.attacks.BadNets` and the like are found by name."""

from __future__ import annotations

from typing import Any

from backsweep.base import Attack
from backsweep.plugins import class_named


def __getattr__(name: str) -> Any:
    return class_named([Attack], name)
