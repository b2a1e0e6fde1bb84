"""A trigger: a function on inputs that sends them to a target.

An attack plants one, the zoo records it, inversion recovers one, the report draws it, repair
unlearns it. One family, one class; a family is found by its name when a file is read.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from backsweep.errors import BadInput
from backsweep.files import write_bytes


def to_image(x: Tensor) -> Image.Image:
    """Picture of a tensor (C, H, W) or (H, W) in [0, 1]; one or three channels."""
    a = (x.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)
    if a.ndim == 3:
        a = a[0] if a.shape[0] != 3 else a.permute(1, 2, 0)
    return Image.fromarray(a.contiguous().numpy())


@dataclass(frozen=True, eq=False)
class Trigger:
    """Base of all trigger families.

    A family is a frozen dataclass: its tensor fields are saved to safetensors, the rest to the
    JSON header of the same file.

    Attributes:
        target: class that triggered inputs are sent to; None for all-to-all: every class to the next.
        source: class that it works on; None for every class.
    """

    family: ClassVar[str] = ""
    target: int | None
    source: int | None

    def __call__(self, x: Tensor) -> Tensor:
        """Stamp inputs x (N, C, H, W) in [0, 1]; the result is in [0, 1] too."""
        raise NotImplementedError

    def labels(self, y: Tensor, classes: int) -> Tensor:
        """Where inputs of classes y (N,) are sent: the target, or (y + 1) mod C when there is none."""
        return (y + 1) % classes if self.target is None else torch.full_like(y, self.target)

    @property
    def size(self) -> float:
        """How much it changes an input, in the unit of its family."""
        raise NotImplementedError

    def picture(self) -> Image.Image:
        """What it looks like, as a picture of the input's own size."""
        raise NotImplementedError

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
                plain = json.loads((f.metadata() or {})["backsweep.trigger"])
                tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
            family = _families()[plain.pop("family")]
            return family(**plain, **tensors)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as e:
            raise BadInput(f"{path} is not a trigger file of Backsweep ({e})") from e


def _families() -> dict[str, type[Trigger]]:
    for module in ("families", "transformed"):
        importlib.import_module(f"backsweep.{module}")
    return {cls.family: cls for cls in Trigger.__subclasses__()}


@dataclass(frozen=True, eq=False)
class Patch(Trigger):
    """A(x, m, Delta) = (1 - m) * x + m * Delta (Neural Cleanse, section IV).

    Attributes:
        mask: m, (1, H, W) in [0, 1], shared by the channels.
        pattern: Delta, (C, H, W) in [0, 1].
    """

    family: ClassVar[str] = "patch"
    mask: Tensor
    pattern: Tensor

    @classmethod
    def square(
        cls, shape: Sequence[int], size: int, margin: int, target: int | None, source: int | None = None
    ) -> Patch:
        """A white square of `size` pixels, `margin` pixels from the lower right corner."""
        channels, height, width = shape
        mask = torch.zeros(1, height, width)
        bottom, right = height - margin, width - margin
        mask[:, max(0, bottom - size) : bottom, max(0, right - size) : right] = 1.0
        return cls(target, source, mask, mask.expand(channels, -1, -1).clone())

    def __call__(self, x: Tensor) -> Tensor:
        mask, pattern = self.mask.to(x), self.pattern.to(x)
        return (1 - mask) * x + mask * pattern

    @property
    def size(self) -> float:
        """L1 norm of the mask, in pixels."""
        return float(self.mask.sum())

    @property
    def area(self) -> float:
        """Effective area, (sum m)^2 / sum m^2, in pixels: how far the mask spreads, however faint."""
        return float(self.mask.sum() ** 2 / self.mask.square().sum().clamp_min(1e-12))

    def picture(self) -> Image.Image:
        return to_image(self.mask * self.pattern)


def overlap(recovered: Patch, planted: Patch) -> tuple[float, float]:
    """How well two masks agree: (soft Jaccard index, share of the recovered mask inside the planted).

    Jaccard = sum min(m, m') / sum max(m, m'). A recovered mask that is smaller than the planted
    one, but wholly inside it, has a low first and a high second figure.
    """
    a, b = recovered.mask, planted.mask
    union = float(torch.maximum(a, b).sum())
    mass = float(a.sum())
    inter = float(torch.minimum(a, b).sum())
    return (inter / union if union else 0.0, float((a * (b > 0)).sum()) / mass if mass else 0.0)
