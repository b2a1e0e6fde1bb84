"""What the default scan measures: classes in several spaces, pairs, and the patch of the most suspicious."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.core.seeds import derive_seed
from backsweep.core.statistics import anomaly_index
from backsweep.inputs.image.modality import IMAGE
from backsweep.inputs.samples import Data
from backsweep.inversion.budget import Aim, Path, Space, few, follow, spaces_of
from backsweep.inversion.loop import Job, SmoothControl, invert
from backsweep.models.model import Model
from backsweep.models.washing import pupil_of, reference_of
from backsweep.reports.report import Evidence
from backsweep.scanning.cascade.schedule import LOOKS, PAIRS, Schedule
from backsweep.scanning.detector import Unit
from backsweep.scanning.head import positive_sums

TRIED = 64  # samples on which a change is tried in the suspect and in every reference
Values = dict[str, float | int | bool | str | None]


@dataclass(frozen=True)
class Screen:
    """Measures units of one network; every unit has a seed of its own.

    Attributes:
        model: a frozen working copy; its reference is made when it is asked for.
        data: clean samples.
        name: of the detector.
        seed: of the scan.
        schedule: how much is measured.
    """

    model: Model
    data: Data
    name: str
    seed: int
    schedule: Schedule

    def _seed(self, *parts: object) -> int:
        return derive_seed(self.seed, self.name, *parts)

    @property
    def _reference(self) -> Model:
        return reference_of(self.model, self.data, self.seed, self.schedule.kept)

    def _network(self, kind: str) -> Model | None:
        """What is measured in a stage: a reference, else the suspect; None: a pupil learned too little."""
        for turn, (washed, pupil) in enumerate(LOOKS):
            if kind == washed:
                return reference_of(self.model, self.data, self.seed, self.schedule.kept, kind, turn)
            if kind == pupil:
                return pupil_of(self.model, self.data, self.seed, kind, turn)
        return self.model

    def classes(self, space: str, units: Sequence[Unit], kind: str) -> list[Evidence]:
        """Log size of every unit's class in a space: a "look" or all of it ("class"), or in a reference.

        Network and references are measured with the same samples in the same order. In a space of inputs they
        are also asked for which share of others the smallest change "works" that the suspect follows.
        """
        network = self._network(kind)
        if network is None:
            return [Evidence(self.name, u.key, u.target, None, {"log_size": None}) for u in units]
        steps, batch = self.schedule.look if kind == "look" else (self.schedule.steps, self.schedule.batch)
        there = spaces_of(network)[space]
        paths = self._paths(network, space, there, units, steps, batch)
        found: list[Values] = [{"log_size": p.log_size, "passes": p.passes} for p in paths]
        if kind != "look" and space in self.model.modality.spaces():
            if kind == "class":
                self._keep(space, units, paths)
            for values, u in zip(found, units, strict=True):
                values["works"] = self._works(network, space, there, u, self._change(space, u, units))
        return [Evidence(self.name, u.key, u.target, None, v) for u, v in zip(units, found, strict=True)]

    def _paths(
        self, network: Model, space: str, there: Space, units: Sequence[Unit], steps: int, batch: int
    ) -> list[Path]:
        """The paths of classes in a space, seen through a network (`there`)."""
        aims = [Aim(u.target, None, self._seed(space, u.target)) for u in units]
        down = space in self.schedule.down
        return follow(network, self.data.x, self.data.y, aims, there, steps=steps, batch=batch, down=down)

    def _key(self, space: str, unit: Unit) -> tuple[object, ...]:
        return (self._seed(space, unit.target), self.schedule.steps, self.schedule.batch)

    def _keep(self, space: str, units: Sequence[Unit], paths: Sequence[Path]) -> None:
        self.model.changes |= {self._key(space, u): p.least for u, p in zip(units, paths, strict=True)}

    def _change(self, space: str, unit: Unit, units: Sequence[Unit]) -> Tensor:
        """The smallest change that sends inputs of the suspect to a class; found again where it was not kept,
        with the same units beside it, so that it is the same."""
        if self._key(space, unit) not in self.model.changes:
            own, s = spaces_of(self.model)[space], self.schedule
            paths = self._paths(self.model, space, own, units, s.steps, s.batch)
            self._keep(space, units, paths)
        return self.model.changes[self._key(space, unit)]

    @torch.no_grad()
    def _works(self, network: Model, space: str, there: Space, unit: Unit, change: Tensor) -> float:
        """For which share of TRIED samples of other classes a change works in a network."""
        target = int(unit.target or 0)
        generator = torch.Generator().manual_seed(self._seed("carry", space, target))
        rows = torch.nonzero(self.data.y != target).flatten()
        rows = rows[torch.randperm(len(rows), generator=generator)[:TRIED]]
        change = change.to(network.device).expand(len(rows), *change.shape)
        logits = there.logits(network, self.data.x, rows, change)
        return float((logits.argmax(1) == target).float().mean())

    def head(self, unit: Unit) -> Evidence:
        """How much more than others each class draws by the head alone, as "class_<t>", in robust sigmas."""
        try:
            weight, _ = self.model.head()
        except BadInput:  # no affine head to look at
            return Evidence(self.name, unit.key, None, None, {})
        index = anomaly_index((-positive_sums(weight)).tolist())
        return Evidence(
            self.name, unit.key, None, None, {f"class_{t}": float(v) for t, v in enumerate(index)}
        )

    def pairs(self, units: Sequence[Unit]) -> list[Evidence]:
        """Log size of every target for each unit's source, as "to_<target>"; of many targets, the nearest."""
        room = max(1, PAIRS // self.model.classes)
        cells = [(u, t) for u in units for t in self._near(u.source or 0, room)]
        steps, batch = self.schedule.pairs_in(self.model.classes)
        aims = [Aim(t, u.source, self._seed(u.key, t)) for u, t in cells]
        paths = self._few(self.model, aims, steps, batch)
        found = []
        for unit in units:
            own = [(t, p) for (u, t), p in zip(cells, paths, strict=True) if u is unit]
            values: Values = {f"to_{t}": p.log_size for t, p in own}
            values["passes"] = sum(p.passes for _, p in own)
            found.append(Evidence(self.name, unit.key, None, unit.source, values))
        return found

    def _few(self, network: Model, aims: Sequence[Aim], steps: int, batch: int) -> list[Path]:
        """Paths in the space of few units."""
        return follow(network, self.data.x, self.data.y, aims, few(network), steps=steps, batch=batch)

    def cells(self, units: Sequence[Unit]) -> list[Evidence]:
        """Log size of (source, target) cells, a second look."""
        aims = [Aim(u.target, u.source, self._seed(u.key)) for u in units]
        return [
            Evidence(self.name, u.key, u.target, u.source, {"log_size": p.log_size, "passes": p.passes})
            for u, p in zip(units, self._few(self.model, aims, *self.schedule.again), strict=True)
        ]

    def _near(self, source: int, room: int) -> list[int]:
        """Targets for a source: all others, or of more than `room` those with the largest logits."""
        targets = [t for t in range(self.model.classes) if t != source]
        if len(targets) > room:
            x = self.data.x[self.data.y == source][:64].to(self.model.device)
            with torch.no_grad():
                near = self.model.logits(x).mean(0).argsort(descending=True).tolist()
            targets = sorted([t for t in near if t != source][:room])
        return targets

    def closer(self, units: Sequence[Unit], compared: bool) -> list[Evidence]:
        """Log size of (source, target) cells on more samples, in the network and in its reference."""
        aims = [Aim(u.target, u.source, self._seed(u.key)) for u in units]
        networks = {"log_size": self.model}
        if compared:
            networks["reference_log_size"] = self._reference
        values: list[Values] = [{} for _ in units]
        passes = [0] * len(units)
        for key, network in networks.items():
            paths = self._few(network, aims, self.schedule.steps, self.schedule.closer_batch)
            for i, p in enumerate(paths):
                values[i][key] = p.log_size
                passes[i] += p.passes
        return [
            Evidence(self.name, u.key, u.target, u.source, {**v, "passes": n})
            for u, v, n in zip(units, values, passes, strict=True)
        ]

    def patch(self, unit: Unit, compared: bool) -> Evidence:
        """The smallest patch for a class, how often it works, and how often on the reference."""
        target = unit.target or 0
        clean, held_out = self.data.split(derive_seed(self.seed, "split"))
        here = clean.y != target if unit.source is None else clean.y == unit.source
        job = Job(target, torch.nonzero(here).flatten(), self._seed(unit.key), unit.source)
        (found,) = invert(
            self.model, clean.x, [job], self.model.modality.patch(), SmoothControl(1),
            updates=self.schedule.updates, batch=self.schedule.batch, bf16=True,
        )  # fmt: skip
        values: Values = {
            "norm": found.trigger.size, "reached": found.reached, "passes": found.passes,
            "attack_success_rate": self.model.success_rate(found.trigger, held_out),
            **({} if self.model.modality == IMAGE else units_of(self.model)),
        }  # fmt: skip
        if compared:
            reference = self._reference
            there = [self._network(kind) for kind in LOOKS[0][: 1 + self.schedule.pupil]]
            values["reference_success_rate"] = max(
                network.success_rate(found.trigger, held_out) for network in there if network is not None
            )
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
