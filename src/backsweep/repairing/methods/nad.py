"""Neural Attention Distillation, NAD (Li et al., ICLR 2021): look where a fine-tuned teacher looks.

The teacher is the suspect, fine-tuned on clean samples; the student is the suspect again, trained with

    L = CE(f_S(x), y) + sum_l beta_l |A(F_S^l) / |A(F_S^l)|_2 - A(F_T^l) / |A(F_T^l)|_2|^2 / S
    A(F) = sum_c |F_c|^p

where F^l are the feature maps at three depths, S their number of places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.core.seeds import derive_seed
from backsweep.models.layers import Tap
from backsweep.models.model import Model
from backsweep.models.training import Recipe, tuned
from backsweep.repairing.method import Case, Repair

BETAS = (500.0, 1000.0, 1000.0)  # from the first depth to the last
BATCH = 64


@dataclass(frozen=True)
class Nad(Repair):
    """Fine-tunes a teacher, then a student that is drawn to the teacher's attention.

    Attributes:
        power: p, of the attention.
        strength: factor of all beta.
        lr: peak learning rate of teacher and student.
        updates: of the teacher, and of the student.
    """

    name: ClassVar[str] = "nad"
    summary: ClassVar[str] = "distils the attention of a fine-tuned teacher (NAD, 2021)"

    power: float = 2.0
    strength: float = 1.0
    lr: float = 0.05
    updates: int = 350

    def __post_init__(self) -> None:
        if self.power <= 0 or self.strength < 0 or self.lr <= 0 or self.updates < 1:
            raise ValueError("power and lr are above 0, strength is not negative, updates is at least 1")

    def applies(self, case: Case) -> str:
        if not depths(case.model):
            return "it needs feature maps or sequences of tokens: the network has none behind its first layer"
        return ""

    def apply(self, case: Case) -> Model:
        at, data = depths(case.model), case.clean
        epochs = max(1, round(self.updates / math.ceil(len(data) / BATCH)))
        recipe = Recipe(epochs, self.lr, BATCH, 5e-4, "shift", bf16=False, optimizer="sgd")
        teacher = tuned(case.model, data, recipe, derive_seed(case.seed, self.name, "teacher"))
        case.tick(0.4)

        def distil(twin: Model, x: Tensor, y: Tensor) -> Tensor:
            logits, student = entering(twin, x, at)
            with torch.no_grad():
                _, wanted = entering(teacher, x, at)
            total = F.cross_entropy(logits.float(), y)
            for beta, s, t in zip(BETAS[-len(at) :], student, wanted, strict=True):
                near = F.mse_loss(attention(s, self.power), attention(t, self.power))
                total = total + self.strength * beta * near
            return total

        return tuned(case.model, data, recipe, derive_seed(case.seed, self.name, "student"), distil)


def attention(maps: Tensor, power: float) -> Tensor:
    """A(F) = sum_c |F_c|^p of maps (N, D, S), of length 1 for each sample: (N, S)."""
    return F.normalize(maps.float().abs().pow(power).sum(1), dim=1)


def depths(model: Model) -> list[int]:
    """At most three affine operations that feature maps enter, at a third, two thirds and the end."""
    with torch.no_grad():
        _, maps = entering(model, model.modality.blank(1, model.shape).to(model.device), None)
    usable = [i for i, z in enumerate(maps) if i > 0 and z.shape[2] > 1]
    return sorted({usable[math.ceil(len(usable) * k / 3) - 1] for k in (1, 2, 3)}) if usable else []


def entering(model: Model, x: Tensor, at: Sequence[int] | None) -> tuple[Tensor, list[Tensor]]:
    """Logits, and what enters the affine operations `at` (None: all) as maps (N, D, S), in one pass.

    A sequence of tokens (N, T, D) has its tokens for places. What a convolution of D channels left and
    the network flattened is folded back; any other vector is a map of one place.
    """
    with Tap() as tap:
        logits = model.logits(x)
    found = []
    for i in range(len(tap.seen)) if at is None else at:
        z = tap.seen[i][0]
        before = tap.seen[i - 1][1] if i else z
        if z.ndim == 4:
            z = z.flatten(2)
        elif z.ndim == 3:
            z = z.transpose(1, 2)
        elif before.ndim == 4 and z.shape[1] % before.shape[1] == 0:
            z = z.unflatten(1, (before.shape[1], -1))
        else:
            z = z.flatten(1)[:, :, None]
        found.append(z)
    return logits, found
