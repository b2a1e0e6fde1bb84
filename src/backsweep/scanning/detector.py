"""What a detector of models is: units of work, evidence, findings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from backsweep.core.method import Method
from backsweep.core.seeds import derive_seed
from backsweep.inputs.samples import Data
from backsweep.models.model import Model
from backsweep.reports.report import Evidence, Finding


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
class Stage:
    """What a detector is going to do, for the time that it will take.

    Attributes:
        what: in a few words.
        units: how many.
        passes: forward passes of one input that it costs, a backward pass counted as one more.
    """

    what: str
    units: int
    passes: float


CPU_INPUTS, CPU_VALUES = 128, 2**19  # in a pass on a CPU: no more inputs, nor input values


def units_in_a_pass(model: Model, inputs: int) -> int:
    """How many units of `inputs` inputs each share a pass.

    On a CPU so many that the time between the products hardly counts, fewer where inputs are large; on a GPU
    as many as take about 2 GiB of activations, at 64 copies of the input.
    """
    values = model.modality.numbers(model.shape)
    if model.device.type == "cpu":
        return max(1, min(CPU_INPUTS, CPU_VALUES // values) // inputs)
    return max(1, 2**31 // (4 * 64 * values * inputs))


@dataclass(frozen=True)
class ModelDetector(Method):
    """Says whether a model is backdoored.

    `probe` measures and has no opinion; `judge` has one and needs neither model nor data, so that a
    saved scan can be judged again. Rule ids (`code`) are permanent.

    Attributes:
        threads: whether `probe` may run in several threads at once: it changes nothing that it shares.
        ranked: whether it judges at a level alpha; one with a threshold of its own takes no share of it.
    """

    noun: ClassVar[str] = "detector"
    package: ClassVar[str] = "backsweep.scanning.detectors"
    group: ClassVar[str] = "backsweep.detectors"
    code: ClassVar[str] = ""
    threads: ClassVar[bool] = False
    ranked: ClassVar[bool] = True

    @property
    def cautious(self) -> bool:
        """Whether an alarm of which no clean networks say what it is worth is no verdict."""
        return False

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

    def plan(self, model: Model, data: Data) -> Sequence[Stage]:
        """What is going to be done, `more` included, as far as that is known beforehand."""
        return []

    def chunk(self, model: Model) -> int:
        """How many units share a pass on this device. The same on every machine of a kind, so that
        results do not hang on how the work is spread."""
        return 1

    def parts(self, model: Model, units: Sequence[Unit]) -> list[Sequence[Unit]]:
        """The units in the parts that are measured together, one `probe` each; a fixed division, so that
        what a unit shares its passes with does not hang on what was measured before."""
        size = self.chunk(model)
        return [units[start : start + size] for start in range(0, len(units), size)]

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
        found = []
        for i, unit in enumerate(units):
            found.append(self.probe_one(model, data, unit, seed))
            tick((i + 1) / len(units))
        return found

    def probe_one(self, model: Model, data: Data, unit: Unit, seed: int) -> Evidence:
        """Measure one unit, in the place of `probe`: for a detector whose units share no passes."""
        raise NotImplementedError

    def generator(self, seed: int, *parts: object) -> torch.Generator:
        """Random numbers that depend on the seed of the scan, on the detector and on what they are for."""
        return torch.Generator().manual_seed(derive_seed(seed, self.name, *parts))

    def judge(self, evidence: Sequence[Evidence], classes: int, alpha: float) -> list[Finding]:
        """Findings from the evidence of all units."""
        raise NotImplementedError

    def measured(self, evidence: Sequence[Evidence], classes: int) -> Mapping[str, Any]:
        """What the bench keeps of the evidence, so that it can be judged again from its lines alone."""
        return {}

    def rows(self, evidence: Sequence[Evidence], classes: int) -> list[Evidence]:
        """The evidence for people, one record for each class or pair that can be suspected."""
        return list(evidence)
