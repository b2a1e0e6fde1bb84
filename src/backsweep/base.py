"""What a method is: the base of model detectors and of attacks.

A method is a frozen dataclass in a file of its own. Its fields are its settings: the constructor,
`-p name.field=value` and the record in the report are one thing. A method is found by its module;
there is nothing to register.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from backsweep.report import Evidence, Finding

if TYPE_CHECKING:
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
class Attack(Method):
    """Plants a backdoor. The default is data poisoning: stamp some samples, train as usual."""

    def trigger(self, shape: Sequence[int], classes: int, seed: int) -> Trigger:
        """The trigger for inputs of `shape` (C, H, W); its target follows the seed."""
        raise NotImplementedError

    def poison(self, data: Data, trigger: Trigger, seed: int) -> tuple[Data, Tensor]:
        """The poisoned training set and the indices of its poisoned samples."""
        raise NotImplementedError

    def train(self, net: nn.Module, data: Data, trigger: Trigger, recipe: Recipe, seed: int) -> nn.Module:
        """Train `net` in place so that `trigger` works."""
        from backsweep.train import fit

        poisoned, _ = self.poison(data, trigger, seed)
        return fit(net, poisoned, recipe, seed)


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

    def units(self, model: Model, data: Data) -> Sequence[Unit]:
        """The work, one unit per class unless said otherwise."""
        return [Unit(f"class-{t}", target=t) for t in range(model.classes)]

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
