"""FTrojan (Wang et al. 2022): two frequencies of the chroma channels are raised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy.fft import idctn
from torch import Tensor

from backsweep.inputs.image.triggers import Additive
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.zoo.attack import Attack, Setup, relabel

# Change of (R, G, B) for one unit of Cr and one of Cb; the inverse of the YCrCb transform (ITU-R BT.601)
CR, CB = np.array([1.403, -0.714, 0.0]), np.array([0.0, -0.344, 1.773])


@dataclass(frozen=True)
class FTrojan(Attack):
    """x' = clip(x + YCrCb^-1(DCT^-1(e))), e = magnitude at two frequencies of Cr and of Cb.

    The paper transforms the image, raises the two coefficients and transforms it back. Both
    transforms are linear, so this adds one delta to every image, which is computed once.

    Attributes:
        magnitude: what is added to a coefficient of an orthonormal 32x32 DCT, in units of the [0, 1]
            range. Images of another size get the same change per pixel.
        middle, high: the two frequencies, (k, k) in a 32x32 DCT; they scale with the image.
        rate: poison rate, share of all training samples.
        target: target class; None draws one from the seed.
    """

    name: ClassVar[str] = "ftrojan"
    summary: ClassVar[str] = "two frequencies of the chroma channels raised (FTrojan, 2022)"

    magnitude: float = 30 / 255
    middle: int = 15
    high: int = 31
    rate: float = 0.1
    target: int | None = None

    def triggers(self, setup: Setup) -> list[Trigger]:
        channels, height, width = setup.shape
        e = np.zeros((height, width))
        for k in (self.middle, self.high):
            e[_scaled(k, height), _scaled(k, width)] = self.magnitude * (height * width) ** 0.5 / 32
        plane = idctn(e, norm="ortho")
        colour = CR + CB if channels == 3 else np.ones(channels)  # grey: the luminance itself
        delta = torch.as_tensor(colour[:, None, None] * plane, dtype=torch.float32)
        target = setup.target(self.target, self.name, "target")
        return [Additive(target=target, source=None, delta=delta)]

    def poison(self, setup: Setup, triggers: Sequence[Trigger]) -> tuple[Data, Tensor]:
        return relabel(setup, triggers[0], self.rate, self.name, "poison")


def _scaled(k: int, size: int) -> int:
    """Frequency k of a DCT over 32 values, in one over `size` values: 15 and 31 of 8 are 3 and 7."""
    return max(0, round((k + 1) * size / 32) - 1)
