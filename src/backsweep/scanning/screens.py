"""What the default scan measures: classes in several spaces, pairs, and the patch of the most suspicious."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backsweep.core.seeds import derive_seed
from backsweep.inputs.image.modality import IMAGE
from backsweep.inputs.samples import Data
from backsweep.inversion.budget import Aim, few, follow, spaces_of
from backsweep.inversion.loop import Job, SmoothControl, invert
from backsweep.models.model import Model
from backsweep.models.washing import reference_of
from backsweep.reports.report import Evidence
from backsweep.scanning.detector import Unit

Values = dict[str, float | int | bool | str | None]


@dataclass(frozen=True)
class Screen:
    """Measures units of one network; every unit has a seed of its own.

    Attributes:
        model: a frozen working copy; its reference is made when it is asked for.
        data: clean samples.
        name: of the detector.
        seed: of the scan.
        steps, batch: of a path of a class.
    """

    model: Model
    data: Data
    name: str
    seed: int
    steps: int
    batch: int

    def _seed(self, *parts: object) -> int:
        return derive_seed(self.seed, self.name, *parts)

    def classes(self, space: str, units: Sequence[Unit], compared: bool) -> list[Evidence]:
        """Log size of every unit's class in a space, in the network or (`compared`) in its reference.

        Both are measured with the same samples in the same order.
        """
        network = reference_of(self.model, self.data, self.seed) if compared else self.model
        aims = [Aim(u.target, None, self._seed(space, u.target)) for u in units]
        paths = follow(
            network,
            self.data.x,
            self.data.y,
            aims,
            spaces_of(network)[space],
            steps=self.steps,
            batch=self.batch,
        )
        return [
            Evidence(self.name, u.key, u.target, None, {"log_size": p.log_size, "passes": p.passes})
            for u, p in zip(units, paths, strict=True)
        ]

    def pairs(self, unit: Unit, most: int, short: bool) -> Evidence:
        """Log size of every target for one source, as "to_<target>".

        Args:
            unit: with the source.
            most: cells of the whole screen; where there are more, the targets with the largest logits.
            short: whether each cell gets half of the steps and fewer samples, as with many classes.
        """
        source = unit.source or 0
        targets = [t for t in range(self.model.classes) if t != source]
        room = max(1, most // self.model.classes)
        if len(targets) > room:
            x = self.data.x[self.data.y == source][:64].to(self.model.device)
            with torch.no_grad():
                near = self.model.logits(x).mean(0).argsort(descending=True).tolist()
            targets = sorted([t for t in near if t != source][:room])
        aims = [Aim(t, source, self._seed(unit.key, t)) for t in targets]
        steps, batch = (self.steps // 2, self.batch // 4) if short else (self.steps, 3 * self.batch // 8)
        paths = follow(
            self.model,
            self.data.x,
            self.data.y,
            aims,
            few(self.model),
            steps=max(2, steps),
            batch=max(2, batch),
        )
        values: Values = {f"to_{t}": p.log_size for t, p in zip(targets, paths, strict=True)}
        return Evidence(self.name, unit.key, None, source, {**values, "passes": sum(p.passes for p in paths)})

    def closer(self, unit: Unit, compared: bool) -> Evidence:
        """Log size of one (source, target) on more samples, in the network and in its reference."""
        aim = [Aim(unit.target, unit.source, self._seed(unit.key))]
        networks = {"log_size": self.model}
        if compared:
            networks["reference_log_size"] = reference_of(self.model, self.data, self.seed)
        values: Values = {}
        passes = 0
        for key, network in networks.items():
            (path,) = follow(
                network, self.data.x, self.data.y, aim, few(network), steps=self.steps, batch=2 * self.batch
            )
            values[key] = path.log_size
            passes += path.passes
        return Evidence(self.name, unit.key, unit.target, unit.source, {**values, "passes": passes})

    def patch(self, unit: Unit, compared: bool) -> Evidence:
        """The smallest patch for a class, how often it works, and how often on the reference."""
        target = unit.target or 0
        clean, held_out = self.data.split(derive_seed(self.seed, "split"))
        here = clean.y != target if unit.source is None else clean.y == unit.source
        job = Job(target, torch.nonzero(here).flatten(), self._seed(unit.key), unit.source)
        (found,) = invert(
            self.model, clean.x, [job], self.model.modality.patch(), SmoothControl(1),
            updates=8 * self.steps, batch=self.batch, bf16=True,
        )  # fmt: skip
        values: Values = {
            "norm": found.trigger.size, "reached": found.reached, "passes": found.passes,
            "attack_success_rate": self.model.success_rate(found.trigger, held_out),
            **({} if self.model.modality == IMAGE else units_of(self.model)),
        }  # fmt: skip
        if compared:
            reference = reference_of(self.model, self.data, self.seed)
            values["reference_success_rate"] = reference.success_rate(found.trigger, held_out)
            values["accuracy"] = self.model.accuracy(held_out.x, held_out.y)
            values["reference_accuracy"] = reference.accuracy(held_out.x, held_out.y)
        return Evidence(self.name, unit.key, target, unit.source, values, found.trigger)


def jobs_of(units: Sequence[Unit], y: Tensor, seed: int, name: str) -> list[Job]:
    """A job for each unit with a target: inputs of all other classes, a seed of its own.

    Args:
        y: labels (N,) of the samples to optimise on.
        seed, name: of the scan and of the detector.
    """
    return [
        Job(u.target, torch.nonzero(y != u.target).flatten(), derive_seed(seed, name, u.key))
        for u in units
        if u.target is not None
    ]


def units_of(model: Model) -> Values:
    """How many units an input has, and what they are where they are no pixels; patches count them."""
    count = model.modality.size(model.shape)
    return {"pixels": count} if model.modality == IMAGE else {"units": count, "unit": model.modality.unit}


def unit_name(e: Evidence) -> str:
    """What the size of a record's patch counts, for sentences."""
    return f"{e.values.get('unit') or IMAGE.unit}s"
