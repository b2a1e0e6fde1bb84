"""What the default scan is going to do, and about how long that takes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import torch

from backsweep.core.progress import Event, OnEvent, split
from backsweep.core.text import duration
from backsweep.engine.jobs import one_thread
from backsweep.engine.precision import bfloat16
from backsweep.inputs.samples import Data
from backsweep.models.model import Model
from backsweep.models.washing import MOST_UPDATES, PUPIL, VIEWS
from backsweep.scanning.cascade.schedule import PAIRS, Schedule
from backsweep.scanning.cascade.screens import TRIED
from backsweep.scanning.detector import ModelDetector, Stage

THERE_AND_BACK = 2.0  # forward passes that it costs to ask for the gradient of an input
EMBEDDED = {"early": 2.0, "late": 1.0}  # from an embedding on
TRAINING = 1.5  # of an update of the later half, an input
WHOLE = 4.0  # of an update of all of a network, with the question to the suspect, an input
THREADS = 0.85  # of a second core there is so much
PASS = 64  # inputs of the pass that is measured


def stages(
    s: Schedule, spaces: Sequence[str], classes: int, present: int, samples: int, reference: bool
) -> list[Stage]:
    """The stages of the cascade, early stopping not counted.

    Args:
        s: how much is measured.
        spaces: in which.
        classes, present: of the network; among the samples, 0 if no pairs are looked at.
        samples: clean ones.
        reference: whether there is one.
    """

    def of(names: Iterable[str]) -> float:
        return sum(EMBEDDED.get(n, THERE_AND_BACK) for n in names)

    full = s.measured(classes)
    tried = float(min(TRIED, samples) * full * sum(n not in EMBEDDED for n in spaces))
    found = []
    if full < classes:
        looks = s.looked(spaces)
        found.append(
            Stage("look at all classes", len(looks) * classes + 1, of(looks) * classes * _size(s.look))
        )
    paths = of(spaces) * full * s.steps * s.batch + tried
    found.append(Stage(f"{full} of {classes} classes", len(spaces) * full, paths))
    if reference:
        wash = samples * (VIEWS + 1) + MOST_UPDATES * TRAINING if s.kept else samples + MOST_UPDATES * WHOLE
        learn = samples + PUPIL[0] * PUPIL[1] * WHOLE
        found.append(Stage(
            f"the same in {'two references' if s.pupil else 'a reference'}",
            len(spaces) * full * (1 + s.pupil), wash + paths + s.pupil * (learn + paths),
        ))  # fmt: skip
        if s.second:
            found.append(Stage(
                "two more if these are suspicious", 2 * len(spaces) * full,
                s.second * (wash + 2 * paths + learn),
            ))  # fmt: skip
    if present:
        targets = min(classes - 1, max(1, PAIRS // classes))
        look = s.pairs_in(classes)
        cells, closer = min(s.cells_in(classes), present * targets), 2 * s.closer
        found.append(Stage("pairs", present, THERE_AND_BACK * present * targets * _size(look)))
        found.append(Stage(
            "pairs that stand out", cells + closer,
            THERE_AND_BACK * (cells * _size(s.again) + closer * s.steps * s.closer_batch * (1 + reference)),
        ))  # fmt: skip
    held_out = samples / 2 * (1 + reference * (3 + s.pupil))  # the patch tried, and accuracy
    return [*found, Stage("a patch to look at", 1, THERE_AND_BACK * s.updates * s.batch + held_out)]


def _size(look: tuple[int, int]) -> int:
    return look[0] * look[1]


def seconds(plan: Sequence[Stage], model: Model, data: Data, threads: int = 1) -> float:
    """About how long a plan takes, from a pass that is measured.

    Args:
        model: a frozen working copy.
        threads: that work on it.
    """
    x = data.x[torch.arange(min(PASS, len(data)))].to(model.device)
    with one_thread(), torch.no_grad(), bfloat16(model.device.type):
        model.logits(x)
        begin = time.perf_counter()
        model.logits(x)
        one = (time.perf_counter() - begin) / len(x)
    return sum(stage.passes for stage in plan) * one / (1 + THREADS * (threads - 1))


def told(plan: Sequence[Stage], time_needed: float) -> str:
    """A plan in a line."""
    return f"{'; '.join(s.what for s in plan)}: about {duration(time_needed)}"


def told_of_all(
    methods: Sequence[ModelDetector], model: Model, data: Data, threads: int, on_event: OnEvent | None
) -> list[OnEvent | None]:
    """Tells what every detector is going to do, before the first begins; who hears of the progress of each.

    One that has no plan is taken to need as long as the others do.
    """
    if on_event is None:
        return [None] * len(methods)
    plans = [m.plan(model, data) for m in methods]
    needed = [seconds(plan, model, data, threads) if plan else None for plan in plans]
    known = [s for s in needed if s is not None]
    usual = sum(known) / len(known) if known else 1.0
    parts = split(on_event, [usual if s is None else s for s in needed])
    for method, plan, time_needed, part in zip(methods, plans, needed, parts, strict=True):
        if time_needed is not None and part is not None:
            units = sum(s.units for s in plan)
            part(Event(method.name, 0, units, 0, 0.0, told(plan, time_needed), time_needed))
    return parts
