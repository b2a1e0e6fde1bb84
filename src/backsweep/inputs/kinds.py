"""The kinds of inputs that there are: a folder with a module `modality` each, and subclasses from outside."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path

from backsweep.core.errors import BadInput
from backsweep.inputs.modality import Modality


def modalities() -> dict[str, Modality]:
    """All modalities that there are, by name: a folder each, and subclasses from outside."""
    package = importlib.import_module("backsweep.inputs")
    for info in pkgutil.iter_modules(package.__path__):
        if info.ispkg:
            importlib.import_module(f"{package.__name__}.{info.name}.modality")
    return {cls.name: cls() for cls in _below(Modality) if cls.name}


def _below(cls: type[Modality]) -> list[type[Modality]]:
    return [c for sub in cls.__subclasses__() for c in (sub, *_below(sub))]


def modality_of(model: Mapping[str, object]) -> Modality:
    """What an input is, from what a report says of its model.

    Where nobody here knows it, a modality that can draw nothing.
    """
    name = model.get("modality")
    return modalities().get("image" if name is None else str(name), Modality()).told(model)


def modality_named(name: str) -> Modality:
    """The modality of that name.

    Raises:
        BadInput: there is none.
    """
    known = modalities()
    if name not in known:
        raise BadInput(f"there is no modality {name!r}; there are: {', '.join(sorted(known))}")
    return known[name]


def recognised(path: Path) -> Modality | None:
    """The modality whose files lie at a path, where they say it; None: nothing is said."""
    return next((m for kind in modalities().values() if (m := kind.recognised(path)) is not None), None)
