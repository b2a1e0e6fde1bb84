"""Attacks, one a file. `backsweep.attacks.BadNets` and the like are found by name."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    from backsweep.base import Attack
    from backsweep.plugins import discover

    if not name.startswith("_"):
        for cls in discover(Attack).values():
            if cls.__name__ == name:
                return cls
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
