"""What a method is: the base of model detectors, of attacks and of repairs.

A method is a frozen dataclass in a file of its own. Its fields are its settings: the constructor,
`-p name.field=value` and the record in the report are one thing. A method is found by its module;
there is nothing to register.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from backsweep.report import Evidence, Finding

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from backsweep.data import Data
    from backsweep.model import Model
    from backsweep.train import Recipe
    from backsweep.trigger import Trigger


def derive_seed(seed: int, *parts: object) -> int:
    """A seed that depends on what the work is and not on when or where it is done."""
    text = "/".join(str(p) for p in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


@dataclass(frozen=True)
class Method:
    """Base of every plugin. `name` is how a user calls it, `summary` one line for `list`."""

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""

    def settings(self) -> dict[str, Any]:
        """The constructor fields, as the report records them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


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

    def surrogate(self) -> nn.Module:
        """A clean net of the attacker's own: other start weights, a third of the victim's epochs."""
        from backsweep.train import fit

        seed = derive_seed(self.seed, "surrogate")
        recipe = replace(self.recipe, epochs=max(1, self.recipe.epochs // 3))
        return fit(self.net(seed), self.data, recipe, seed)


@dataclass(frozen=True)
class Attack(Method):
    """Plants a backdoor. The default is data poisoning: stamp some samples, train as usual.

    An attack that poisons gives `triggers` and `poison`; one that controls the training, or needs no
    data, gives `plant`. The network that it leaves must differ from its clean twin in the values of
    its weights alone.
    """

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
        from backsweep.train import fit

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
    return type(data)(x, y, data.names, data.source)


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
    return torch.where(rows[:, None, None, None], trigger(x), x), torch.where(rows, wanted, y), rows


@dataclass(frozen=True)
class Unit:
    """A piece of work that can be done alone, in any order, on any machine.

    Attributes:
        key: name within the detector; names the trigger's file too.
        target, source: the classes it looks at, None for all.
    """

    key: str
    target: int | None = None
    source: int | None = None


def units_in_a_pass(model: Model, inputs: int) -> int:
    """How many units of `inputs` inputs each share a pass.

    On a CPU one after another (a small batch stays in the cache); on a GPU as many as take about 2 GiB of
    activations, at 64 copies of the input.
    """
    if model.device.type == "cpu":
        return 1
    return max(1, 2**31 // (4 * 64 * math.prod(model.shape) * inputs))


@dataclass(frozen=True)
class ModelDetector(Method):
    """Says whether a model is backdoored.

    `probe` measures and has no opinion; `judge` has one and needs neither model nor data, so that a
    saved scan can be judged again. Rule ids (`code`) are permanent.
    """

    code: ClassVar[str] = ""

    def applies(self, model: Model, data: Data) -> str:
        """Why this detector cannot look at this model, "" when it can."""
        return ""

    def depends_on(self) -> dict[str, str]:
        """Digests of what evidence hangs on beside the settings, such as the content of a file they name."""
        return {}

    def units(self, model: Model, data: Data) -> Sequence[Unit]:
        """The work, one unit per class unless said otherwise."""
        return [Unit(f"class-{t}", target=t) for t in range(model.classes)]

    def more(self, model: Model, data: Data, evidence: Sequence[Evidence]) -> Sequence[Unit]:
        """Further units, seen what all units so far have yielded; none ends the scan.

        A detector that screens first and looks closer afterwards says here where. What it says must
        follow from the evidence alone, so that an interrupted scan goes on where it was.
        """
        return []

    def chunk(self, model: Model) -> int:
        """How many units share a pass on this device. The same on every machine of a kind, so that
        results do not hang on how the work is spread."""
        return 1

    def probe(
        self, model: Model, data: Data, units: Sequence[Unit], seed: int, tick: Callable[[float], None]
    ) -> list[Evidence]:
        """Measure some units.

        Args:
            model: a frozen working copy.
            data: clean samples.
            units: what to do in this call.
            seed: of the scan; a unit's own seed derives from it.
            tick: told now and then which share of this call is done.
        """
        raise NotImplementedError

    def judge(self, evidence: Sequence[Evidence], classes: int, alpha: float) -> list[Finding]:
        """Findings from the evidence of all units."""
        raise NotImplementedError

    def rows(self, evidence: Sequence[Evidence], classes: int) -> list[Evidence]:
        """The evidence for people, one record for each class or pair that can be suspected."""
        return list(evidence)


@dataclass(frozen=True)
class Case:
    """What a repair is given. It never sees a test image, or the trigger that was planted.

    Attributes:
        model: a frozen working copy of the suspect.
        clean: clean samples with their true labels, to learn from.
        held_out: other clean samples, to choose by how far a repair goes.
        triggers: what the scan recovered for the suspected classes; may be empty.
        aims: (source, target) of everything that is suspected; source None is every class, target None
            every next class. Empty: the scan suspects nothing.
        seed: of everything that is drawn.
        tick: told now and then which share of the repair is done.
    """

    model: Model
    clean: Data
    held_out: Data
    triggers: Sequence[Trigger] = ()
    aims: Sequence[tuple[int | None, int | None]] = ()
    seed: int = 0
    tick: Callable[[float], None] = lambda _: None

    def accuracy(self, model: Model) -> float:
        """Accuracy of a model on the held-out clean samples."""
        return model.accuracy(self.held_out.x, self.held_out.y)

    def generator(self, *parts: object) -> torch.Generator:
        """Random numbers that depend on the seed and on what they are for."""
        import torch

        return torch.Generator().manual_seed(derive_seed(self.seed, *parts))


@dataclass(frozen=True)
class Repair(Method):
    """Takes a backdoor out of a network. The suspect stays as it is; weights and buffers of a copy change.

    How far to go may be chosen on `case.held_out` alone.
    """

    def applies(self, case: Case) -> str:
        """Why this repair cannot be made here (what it needs and is not there), "" when it can."""
        return ""

    def apply(self, case: Case) -> Model:
        """The repaired network, a frozen working copy like the one that was given."""
        raise NotImplementedError


def strongest(case: Case, candidates: Iterable[Model], loss: float) -> Model:
    """The last candidate, from mild to strong, whose held-out accuracy is at most `loss` below the suspect's.

    The first one that loses more ends the search; with none that keeps the accuracy it is the suspect.
    """
    kept, least = case.model, case.accuracy(case.model) - loss
    for model in candidates:
        if case.accuracy(model) < least:
            break
        kept = model
    return kept


def acted_on(trigger: Trigger, y: Tensor, classes: int) -> Tensor:
    """Which samples of classes y (N,) a trigger sends elsewhere, a boolean mask.

    Those of its source that are not yet of the class that it sends them to.
    """
    rows = y != trigger.labels(y, classes)
    return rows if trigger.source is None else rows & (y == trigger.source)
