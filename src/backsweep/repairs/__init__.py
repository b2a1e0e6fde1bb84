"""Repairs by the names of their classes. The methods themselves live with what uses them."""

from __future__ import annotations

from typing import Any

from backsweep.core.discovery import class_named, class_names
from backsweep.repairing.method import Repair

_KINDS = [Repair]


def __getattr__(name: str) -> Any:
    return class_named(_KINDS, name, __name__)


def __dir__() -> list[str]:
    return class_names(_KINDS)
