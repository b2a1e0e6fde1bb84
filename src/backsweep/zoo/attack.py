"""What an attack is, what an attacker has, and how training samples are poisoned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.core.method import Method
from backsweep.core.seeds import derive_seed
from backsweep.inputs.samples import Data
from backsweep.inputs.table.schema import Schema, columns_of
from backsweep.inputs.text.tokens import Tokens
from backsweep.inputs.trigger import Trigger
from backsweep.models.training import Recipe


@dataclass(frozen=True)
class Setup:
    """What an attacker has.

    Attributes:
        data: the training set.
        classes: number of classes.
        net: a fresh network of the victim's architecture from a seed.
        recipe: how the victim is trained.
        seed: of everything that is drawn.
        clean: the victim's clean twin, trained; a copy that may be changed.
    """

    data: Data
    classes: int
    net: Callable[[int], nn.Module]
    recipe: Recipe
    seed: int
    clean: Callable[[], nn.Module]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an input, (channels, height, width)."""
        channels, height, width = self.data.x.shape[1:]
        return int(channels), int(height), int(width)

    @property
    def tokens(self) -> Tokens:
        """The tokenizer of the training set.

        Raises:
            BadInput: it is no text.
        """
        found = getattr(self.data.modality, "tokens", None)
        if found is None:
            raise BadInput(f"this attack needs texts, the training set has {self.data.modality.noun}s")
        return found

    @property
    def schema(self) -> Schema:
        """What the columns of the training set are.

        Raises:
            BadInput: it is no table.
        """
        found = columns_of(self.data.modality)
        if found is None:
            raise BadInput(f"this attack needs a table, the training set has {self.data.modality.noun}s")
        return found

    def generator(self, *parts: object) -> torch.Generator:
        """Random numbers that depend on the seed and on what they are for."""
        import torch

        return torch.Generator().manual_seed(derive_seed(self.seed, *parts))

    def target(self, given: int | None, *parts: object) -> int:
        """The class `given`, or one drawn from the seed."""
        import torch

        drawn = int(torch.randint(self.classes, (), generator=self.generator(*parts)))
        return drawn if given is None else given

    def draw(self, candidates: Tensor, rate: float, *parts: object) -> Tensor:
        """Row indices: `rate` of all training samples, drawn among the candidates (a boolean mask)."""
        import torch

        rows = torch.nonzero(candidates).flatten()
        count = min(round(rate * len(self.data)), len(rows))
        return rows[torch.randperm(len(rows), generator=self.generator(*parts))[:count]]

    def draw_both(
        self, candidates: Tensor, rate: float, covers: Tensor, cover: float, name: str
    ) -> tuple[Tensor, Tensor]:
        """Rows to poison, and others to stamp that keep their label: shares of all training samples.

        Args:
            candidates, rate: of the rows to poison, as for `draw`.
            covers, cover: likewise of the covers, of which none is poisoned.
            name: of the attack.
        """
        rows, free = self.draw(candidates, rate, name, "poison"), covers.clone()
        free[rows] = False
        return rows, self.draw(free, cover, name, "cover")

    def surrogate(self) -> nn.Module:
        """A clean net of the attacker's own: other start weights, a third of the victim's epochs."""
        from backsweep.models.training import fit

        seed = derive_seed(self.seed, "surrogate")
        recipe = replace(self.recipe, epochs=max(1, self.recipe.epochs // 3))
        return fit(self.net(seed), self.data, recipe, seed)


@dataclass(frozen=True)
class Attack(Method):
    """Plants a backdoor. The default is data poisoning: stamp some samples, train as usual.

    An attack that poisons gives `triggers` and `poison`; one that controls the training, or needs no
    data, gives `plant`. The network that it leaves must differ from its clean twin in the values of
    its weights alone.

    Attributes:
        modality: name of the kind of inputs that it needs.
    """

    noun: ClassVar[str] = "attack"
    package: ClassVar[str] = "backsweep.zoo.attacks"
    group: ClassVar[str] = "backsweep.attacks"
    modality: ClassVar[str] = "image"

    def triggers(self, setup: Setup) -> list[Trigger]:
        """What is to be planted; most attacks plant one trigger. The targets follow the seed."""
        raise NotImplementedError

    def poison(self, setup: Setup, triggers: Sequence[Trigger]) -> tuple[Data, Tensor]:
        """The poisoned training set, of the same length, and the indices of its poisoned samples.

        Cover samples, which are stamped and keep their label, are not among the indices.
        """
        raise NotImplementedError

    def plant(self, net: nn.Module, setup: Setup) -> list[Trigger]:
        """Train `net` in place so that the triggers work; returns them as they are then."""
        from backsweep.models.training import fit

        triggers = self.triggers(setup)
        poisoned, _ = self.poison(setup, triggers)
        fit(net, poisoned, setup.recipe, setup.seed)
        return triggers


def stamp(data: Data, rows: Tensor, trigger: Trigger, labels: Tensor | None = None) -> Data:
    """A copy of `data` with some rows triggered, and relabelled if labels are given (clean label else)."""
    x, y = data.x.clone(), data.y.clone()
    x[rows] = trigger(x[rows])
    if labels is not None:
        y[rows] = labels
    return data.like(x, y)


def blend(
    data: Data, rows: Tensor, opacity: Tensor, pattern: Tensor, poisoned: Tensor, labels: Tensor
) -> Data:
    """A copy of `data` with a pattern blended into some rows, each with its own opacity; some are relabelled.

    Args:
        rows: which get the pattern.
        opacity: of each (len(rows), 1, H, W), or (len(rows), C, H, W).
        poisoned, labels: rows that get new labels, and those labels.
    """
    x, y = data.x.clone(), data.y.clone()
    opacity = opacity.to(x)
    x[rows] = (1 - opacity) * x[rows] + opacity * pattern.to(x)
    y[poisoned] = labels
    return data.like(x, y)


def relabel(setup: Setup, trigger: Trigger, rate: float, *parts: object) -> tuple[Data, Tensor]:
    """Dirty-label poisoning: `rate` of all samples, of other classes, triggered and sent to its target."""
    y = setup.data.y
    wanted = trigger.labels(y, setup.classes)
    rows = setup.draw(y != wanted, rate, *parts)
    return stamp(setup.data, rows, trigger, wanted[rows]), rows


def poison_batch(
    x: Tensor, y: Tensor, trigger: Trigger, classes: int, rate: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Poisoning while training: each sample of another class is stamped with probability `rate`.

    Returns the batch, its labels, and which samples were stamped (a boolean mask).
    """
    import torch

    wanted = trigger.labels(y, classes)
    rows = (torch.rand(len(x), generator=generator) < rate).to(x.device) & (y != wanted)
    return (
        torch.where(rows.reshape(-1, *[1] * (x.ndim - 1)), trigger(x), x),
        torch.where(rows, wanted, y),
        rows,
    )
