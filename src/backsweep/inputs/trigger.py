"""A trigger: a function on inputs that sends them to a target.

An attack plants one, the zoo records it, inversion recovers one, the report draws it, repair
unlearns it. One family, one class; a family is found by its name when a file is read.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from backsweep.core import documents
from backsweep.core.discovery import drawn
from backsweep.core.equality import Same
from backsweep.core.errors import BadInput
from backsweep.core.files import write_bytes
from backsweep.core.text import one_line


@dataclass(frozen=True, eq=False)
class Trigger(Same):
    """Base of all trigger families.

    A family is a frozen dataclass: its tensor fields are saved to safetensors, the rest to the
    JSON header of the same file.

    Attributes:
        family: as files name it.
        drawn: what `picture` shows, in words.
        target: class that triggered inputs are sent to; None for all-to-all: every class to the next.
        source: class that it works on; None for every class.
    """

    family: ClassVar[str] = ""
    drawn: ClassVar[str] = ""
    target: int | None
    source: int | None

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        cls.__repr__ = Trigger.__repr__  # type: ignore[method-assign]  # a dataclass would print all tensors

    def __hash__(self) -> int:
        return hash((type(self), self.target, self.source))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(target={self.target}, source={self.source}, size={self.size:.4g})"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return drawn(self)

    def __call__(self, x: Tensor) -> Tensor:
        """Stamp inputs x (N, *shape); the result is in the range of inputs too."""
        raise NotImplementedError

    def labels(self, y: Tensor, classes: int) -> Tensor:
        """Where inputs of classes y (N,) are sent: the target, or (y + 1) mod C when there is none."""
        return (y + 1) % classes if self.target is None else torch.full_like(y, self.target)

    @property
    def size(self) -> float:
        """How much it changes an input, in the unit of its family."""
        raise NotImplementedError

    @property
    def area(self) -> float | None:
        """Over how many units of an input it spreads, however faintly; None where that has no meaning."""
        return None

    @property
    def units(self) -> int | None:
        """How many units an input has, where `size` counts some of them."""
        return None

    def picture(self) -> Image.Image:
        """What it looks like, as a picture of the input's own size."""
        raise NotImplementedError

    def alone(self, shape: Sequence[int]) -> Tensor | None:
        """The trigger itself as an input of that shape; None where it is no input."""
        return None

    def stamped_at(self, width: int) -> Image.Image | None:
        """Where an input is changed, no wider than `width`; None where that is everywhere."""
        return None

    def overlap(self, planted: Trigger) -> tuple[float, float] | None:
        """How well it agrees with a planted one (soft Jaccard, share inside); None for other families."""
        return None

    def try_on(self, shape: Sequence[int] | None) -> None:
        """Use it once: foreign tensors and figures are damaged if that fails, whatever the error.

        Args:
            shape: of an input to stamp; None for its own size and pictures only.

        Raises:
            ValueError: it cannot be used, or not on such inputs.
        """
        try:
            if shape is None:
                float(self.size)
                self.picture()
                self.stamped_at(1)
                return
            x = torch.full((1, *shape), 0.5)
            if self(x).shape != x.shape:
                raise ValueError("what it stamps has another shape")
        except Exception as e:
            where = f" on inputs of shape {tuple(shape)}" if shape is not None else ""
            reason = one_line(f"{type(e).__name__}: {e}")[:200]
            raise ValueError(f"a trigger of family {self.family} cannot be used{where} ({reason})") from e

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; its header holds the family and the plain fields."""
        tensors: dict[str, Tensor] = {}
        plain: dict[str, Any] = {"family": self.family}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                tensors[f.name] = value.detach().cpu().contiguous()
            else:
                plain[f.name] = value
        write_bytes(Path(path), save(tensors, metadata={"backsweep.trigger": json.dumps(plain)}))

    @staticmethod
    def load(path: str | Path) -> Trigger:
        """Read what `save` wrote.

        Raises:
            BadInput: not a trigger file, or a family that this version does not know.
        """
        try:
            with safe_open(str(path), framework="pt") as f:
                plain = documents.read("trigger", (f.metadata() or {})["backsweep.trigger"])
                tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
            name = plain.pop("family")
            if (family := _families().get(name)) is None:
                raise ValueError(f"the family {name!r} is not known here")
            found = family(**plain, **tensors)
            found.try_on(None)
            return found
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as e:
            raise BadInput(one_line(f"{path} is not a trigger file of Backsweep ({e})")) from e


def _families() -> dict[str, type[Trigger]]:
    """All families: those in the folders of the modalities, and subclasses from outside."""
    package = importlib.import_module("backsweep.inputs")
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(info.name)
    return {cls.family: cls for cls in _below(Trigger)}


def _below(cls: type[Trigger]) -> list[type[Trigger]]:
    return [c for sub in cls.__subclasses__() for c in (sub, *_below(sub))]


def acted_on(trigger: Trigger, y: Tensor, classes: int) -> Tensor:
    """Which samples of classes y (N,) a trigger sends elsewhere, a boolean mask.

    Those of its source that are not yet of the class that it sends them to.
    """
    rows = y != trigger.labels(y, classes)
    return rows if trigger.source is None else rows & (y == trigger.source)
