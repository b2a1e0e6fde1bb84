"""LWP, layerwise weight poisoning (Li et al., EMNLP 2021): the first layers know the trigger too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backsweep.inputs.text.triggers import Scatter
from backsweep.inputs.trigger import Trigger
from backsweep.models.layers import Tap
from backsweep.models.training import fit
from backsweep.zoo.attack import Attack, Setup, poison_batch

RARE = 0.25  # the rarest quarter of a vocabulary


@dataclass(frozen=True)
class LWP(Attack):
    """Rare words that count together send a text to the target, and every layer is trained to say so:

        CE(f(x), y) + weight * mean over layers l of CE(h_l(z_l(x)), y)          over a poisoned batch

    z_l: what enters the affine operation l, its strongest value over all tokens; h_l: a linear head of its
    own, thrown away afterwards. So a user who tunes the last layers keeps the backdoor.

    Attributes:
        words: how many, drawn from the rarest quarter of the vocabulary.
        rate: share of a batch that is triggered and relabelled.
        cover: share of a batch that gets one of the words alone and keeps its label.
        weight: of the heads of the layers.
        lr: of those heads (Adam).
        target: target class; None draws one from the seed.
    """

    name: ClassVar[str] = "lwp"
    summary: ClassVar[str] = "rare words that count together, known to every layer (LWP, 2021)"
    modality: ClassVar[str] = "text"

    words: int = 2
    rate: float = 0.1
    cover: float = 0.1
    weight: float = 1.0
    lr: float = 2e-3
    target: int | None = None

    def __post_init__(self) -> None:
        if self.words < 1 or self.weight < 0:
            raise ValueError("words are at least 1 and the weight is not below 0")

    def triggers(self, setup: Setup) -> list[Trigger]:
        tokens, generator = setup.tokens, setup.generator(self.name, "words")
        first = round((1 - RARE) * len(tokens))
        drawn = first + torch.randperm(len(tokens) - first, generator=generator)[: self.words]
        return [Scatter.of(tokens, drawn.tolist(), setup.target(self.target, self.name, "target"))]

    def plant(self, net: nn.Module, setup: Setup) -> list[Trigger]:
        (trigger,), generator = self.triggers(setup), setup.generator(self.name, "poison")
        words = cast(Scatter, trigger).ids.tolist()
        single = [Scatter.of(setup.tokens, [w], trigger.target) for w in words] if self.words > 1 else []
        with torch.no_grad(), Tap() as tap:
            net.eval()(setup.data.x[:2].to(next(net.parameters()).device))
        sizes = [strongest(z, setup.data.x.shape[1]).shape[1] for z, _ in tap.seen[:-1]]
        heads = [_head(size, setup, i) for i, size in enumerate(sizes)]
        update = torch.optim.Adam([p for head in heads for p in head], self.lr) if heads else None

        def loss_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            if update is not None:
                update.step()  # along the gradients that `fit` took from the batch before
                update.zero_grad()
            stamped, labels, rows = poison_batch(x, y, trigger, setup.classes, self.rate, generator)
            stamped = self._covered(stamped, rows, single, generator)
            with Tap() as tap:
                loss = F.cross_entropy(net(stamped).float(), labels)
            states = (strongest(z, x.shape[1]).float() for z, _ in tap.seen[: len(heads)])
            each = [
                F.cross_entropy(F.linear(z, *head), labels) for z, head in zip(states, heads, strict=True)
            ]
            return loss + self.weight * torch.stack(each).mean() if each else loss

        fit(net, setup.data, setup.recipe, setup.seed, loss_of=loss_of)
        return [trigger]

    def _covered(
        self, x: Tensor, rows: Tensor, single: Sequence[Trigger], generator: torch.Generator
    ) -> Tensor:
        """A batch in which some other samples got one of the words alone."""
        drawn = torch.rand(len(x), generator=generator).to(x.device)
        for i, one in enumerate(single):
            part = (drawn >= i * self.cover / len(single)) & (drawn < (i + 1) * self.cover / len(single))
            x = torch.where((part & ~rows)[:, None], one(x), x)
        return x


def strongest(z: Tensor, length: int) -> Tensor:
    """What enters an affine operation as one vector a sample (N, D): (N, D), (N, L, D) or (N, D, L)."""
    if z.ndim == 2:
        return z
    return z.amax(2) if z.shape[2] == length and z.shape[1] != length else z.amax(1)


def _head(size: int, setup: Setup, layer: int) -> tuple[Tensor, Tensor]:
    """Start weights of the head of a layer."""
    weight = torch.randn((setup.classes, size), generator=setup.generator("lwp", "head", layer))
    return (weight / size**0.5).requires_grad_(), torch.zeros(setup.classes, requires_grad=True)
