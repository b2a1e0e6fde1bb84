"""Shadow networks: clean and trojaned ones that a defender trains to learn what sets them apart.

Every trojaned shadow has a trigger, target and poison rate of its own from the jumbo distribution
(`random_triggers.py`). A few shadows share each update (`grouped.py`); all of a group see the same clean
samples in the same order, so that a trojaned one differs from the clean one beside it in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backsweep.core.seeds import derive_seed
from backsweep.inputs.image import random_triggers
from backsweep.inputs.image.triggers import Patch
from backsweep.inputs.samples import Data
from backsweep.models.grouped import Wide, nets_in_a_pass
from backsweep.models.training import Recipe, epochs_of, fit

STANDARD = Recipe(epochs=25, lr=2e-3, batch_size=100)
PAPER = Recipe(epochs=100, lr=1e-3, batch_size=100, weight_decay=0.0, bf16=False)
LEAST_UPDATES = 250  # of a shadow, however few the samples
MEASURED = 512  # samples that accuracy and success rate of shadows are measured on


@dataclass(frozen=True)
class Group:
    """Shadows that were trained together.

    Attributes:
        states: weights and buffers by name, stacked: (K, ...).
        trojaned: (K,) booleans.
        accuracy: (K,) share of the clean samples, which they were trained on, that they get right.
        success: (K,) attack success rate of their triggers on those samples, NaN for clean shadows.
    """

    states: dict[str, Tensor]
    trojaned: Tensor
    accuracy: Tensor
    success: Tensor


def standard(samples: int) -> Recipe:
    """`STANDARD`, with more epochs where there are few samples."""
    return replace(
        STANDARD, epochs=max(STANDARD.epochs, epochs_of(LEAST_UPDATES, samples, STANDARD.batch_size))
    )


def is_trojaned(index: int) -> bool:
    """Whether a shadow is a trojaned one: every second is."""
    return index % 2 == 1


def groups(count: int, shape: Sequence[int], recipe: Recipe, device: str) -> list[range]:
    """Shadows 0 .. count - 1 in the groups that share an update, clean and trojaned ones in turn."""
    size = 2 * max(1, nets_in_a_pass(shape, recipe.batch_size, device) // 2)
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def train(
    make: Callable[[int], nn.Module], data: Data, classes: int, indices: Sequence[int], recipe: Recipe,
    seed: int, device: str = "cpu",
) -> Group:  # fmt: skip
    """Train some shadows side by side.

    Args:
        make: a fresh network from a seed.
        data: the defender's clean samples.
        indices: which shadows; a shadow's start weights and trigger follow `seed` and its index.
    """
    shape = tuple(data.x.shape[1:])
    nets = [make(derive_seed(seed, "shadow", i)) for i in indices]
    drawn = [_drawn(shape, classes, derive_seed(seed, "trojan", i)) for i in indices]
    trojaned = torch.tensor([is_trojaned(i) for i in indices])
    rates = torch.tensor([rate for _, rate in drawn]) * trojaned
    masks, patterns = (torch.stack([getattr(t, part) for t, _ in drawn]) for part in ("mask", "pattern"))
    targets = torch.tensor([t.target for t, _ in drawn])
    masks, patterns, targets = (t.to(device) for t in (masks, patterns, targets))
    own = derive_seed(seed, "group", indices[0])
    generator = torch.Generator().manual_seed(own)

    def stamped(x: Tensor, chosen: Tensor) -> Tensor:
        """x (B, C, H, W) beside itself for every shadow, (B, K C, H, W), stamped where chosen (B, K)."""
        x = x[:, None]
        share = masks * chosen.to(x)[:, :, None, None, None]
        return (x + share * (patterns - x)).flatten(1, 2).contiguous(memory_format=torch.channels_last)

    def loss_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        chosen = (torch.rand((len(x), len(nets)), generator=generator) < rates).to(x.device)
        wanted = torch.where(chosen, targets, y[:, None])
        logits = net(stamped(x, chosen)).float()
        return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum") / len(x)

    wide = Wide.of(nets, shape).to(device)
    fit(wide, data, recipe, own, loss_of=loss_of)
    accuracy, success = _measured(wide, data.sample(MEASURED, own), targets, stamped)
    return Group(
        {name: value.cpu() for name, value in wide.states().items()}, trojaned, accuracy,
        success.masked_fill(~trojaned, float("nan")),
    )  # fmt: skip


def _drawn(shape: Sequence[int], classes: int, seed: int) -> tuple[Patch, float]:
    """Trigger of a shadow and its poison rate p / (1 + p): p stamped copies are added to every sample."""
    generator = torch.Generator().manual_seed(seed)
    trigger = random_triggers.draw(shape, classes, generator)
    added = random_triggers.draw_rate(generator)
    return trigger, added / (1 + added)


@torch.no_grad()
def _measured(
    wide: Wide, data: Data, targets: Tensor, stamped: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Accuracy on clean samples, and success rate of every shadow's own trigger, (K,) each."""
    right, reached, others = (torch.zeros(wide.count) for _ in range(3))
    for x, y in zip(data.x.to(targets.device).split(100), data.y.to(targets.device).split(100), strict=True):
        every = torch.ones((len(x), wide.count), dtype=torch.bool, device=x.device)
        away = y[:, None] != targets
        right += (wide(stamped(x, ~every)).argmax(2) == y[:, None]).sum(0).cpu()
        reached += ((wide(stamped(x, every)).argmax(2) == targets) & away).sum(0).cpu()
        others += away.sum(0).cpu()
    return right / len(data), reached / others.clamp_min(1)
