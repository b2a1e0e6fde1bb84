"""Triggers of several families for what is suspected, recovered anew: a repair never saw them."""

from __future__ import annotations

from collections.abc import Sequence

from backsweep.core.seeds import derive_seed
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger, acted_on
from backsweep.inversion.budget import Aim, OfInputs, follow
from backsweep.inversion.loop import Job, SmoothControl, invert
from backsweep.models.model import Model

UPDATES, STEPS, BATCH = 160, 20, 16
MOST_INVERTED = 3  # ways for which a patch and a warp are inverted; the others get perturbations alone
WORKS = 0.5  # attack success rate from which on a trigger counts as recovered

Way = tuple[int | None, int | None]  # source, None for every class; target


def recover(model: Model, data: Data, ways: Sequence[Way], seed: int) -> list[tuple[str, Trigger]]:
    """Name and trigger of everything that was found to work, for each way from a source to a target.

    Args:
        model: a frozen working copy.
        data: clean samples.
        ways: what is suspected; those whose source has no samples, or without a target, are left out.
        seed: of everything that is drawn.
    """
    present = set(data.y.tolist())
    aims = [
        Aim(target, source, derive_seed(seed, "recover", source, target))
        for source, target in ways
        if target is not None and (source is None or source in present)
    ]
    found: list[tuple[str, Trigger]] = []
    modality = model.modality
    for word, key in (("faint", modality.faint), ("few", modality.few)) if aims else ():
        space = modality.spaces()[key]
        paths = follow(model, data.x, data.y, aims, OfInputs(space), steps=STEPS, batch=BATCH)
        for aim, path in zip(aims, paths, strict=True):
            trigger = space.trigger(path.delta, aim.target, aim.source)
            found += [(f"{word} {modality.unit}s", trigger)] if trigger is not None else []
    families = modality.families(model.shape)
    jobs = [Job(a.target or 0, a.rows(data.y), a.seed, a.source) for a in aims[:MOST_INVERTED]]
    for name in modality.recovered if jobs else ():
        inverted = invert(
            model, data.x, jobs, families[name], SmoothControl(len(jobs)), updates=UPDATES, batch=BATCH,
            bf16=model.device.type == "cpu",
        )  # fmt: skip
        found += [(name, i.trigger) for i in inverted]
    return [(name, t) for name, t in found if works(model, t, data)]


def works(model: Model, trigger: Trigger, data: Data) -> bool:
    """Whether a trigger moves most of the samples that it is meant for."""
    there = acted_on(trigger, data.y, model.classes)
    return bool(there.any()) and model.success_rate(trigger, data) >= WORKS
