"""TeCo (Liu et al., CVPR 2023): a backdoored network is robust to some corruptions of a triggered input only.

A clean input loses its label under all common corruptions at about the same severity. A triggered one
keeps it under those that leave the trigger alone and loses it at once under those that break the
trigger: the severities differ widely from corruption to corruption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backsweep.guarding.detector import SampleDetector, Score, answer
from backsweep.inputs.image.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.models.model import Model

PRESETS = {
    "paper": tuple(CORRUPTIONS),
    "fast": ("impulse_noise", "motion_blur", "brightness", "pixelate", "jpeg"),
}


@dataclass(frozen=True)
class TeCo(SampleDetector):
    """Scores an input by how differently its label withstands the common corruptions.

    Attributes:
        preset: `paper` for all 15 corruptions, `fast` for five of them.
    """

    name: ClassVar[str] = "teco"
    summary: ClassVar[str] = "labels that withstand some corruptions only (TeCo)"
    needs: ClassVar[tuple[str, ...]] = ()
    learns: ClassVar[float] = 0.0
    batch: ClassVar[int] = 64

    preset: str = "paper"

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset {self.preset!r} is none of {', '.join(PRESETS)}")

    def applies(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> str:
        known = model.modality.corruptions(model.shape)
        kind = f"{model.modality.noun}s, and there are no common corruptions of inputs of shape {model.shape}"
        return "" if known else f"it corrupts {kind}"

    def passes(self, model: Model) -> float:
        return len(PRESETS[self.preset]) * SEVERITIES

    def learn(self, model: Model, data: Data, triggers: Sequence[Trigger] = ()) -> dict[str, Tensor]:
        """Nothing: the score needs no clean data."""
        return {}

    def scorer(self, model: Model, learned: dict[str, Tensor]) -> Score:
        """Standard deviation over the corruptions of the severity at which the label flips."""

        def score(x: Tensor) -> Tensor:
            first = flips(model, x, PRESETS[self.preset])
            return (first - first.mean(1, keepdim=True)).square().mean(1).sqrt()

        return score


def flips(model: Model, x: Tensor, corruptions: Sequence[str]) -> Tensor:
    """First severity at which each corruption changes the label of each input, (N, corruptions).

    6 where none does. Every severity corrupts the original, and only inputs whose label has withstood
    all lower severities take the next pass.
    """
    labels = answer(model, x).argmax(1)
    first = torch.full((len(x), len(corruptions)), SEVERITIES + 1.0, device=x.device)
    for k, name in enumerate(corruptions):
        standing = torch.arange(len(x), device=x.device)
        for severity in range(1, SEVERITIES + 1):
            if not len(standing):
                break
            seen = model.logits(corrupt(x[standing], name, severity)).argmax(1)
            flipped = seen != labels[standing]
            first[standing[flipped], k] = severity
            standing = standing[~flipped]
    return first
