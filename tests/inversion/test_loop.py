"""The inversion loop and its two controls."""

from __future__ import annotations

import math

import pytest
import torch

from backsweep.inputs.family import EPS
from backsweep.inputs.image.families import PatchFamily
from backsweep.inversion.loop import Job, PaperControl, SmoothControl, batches, invert
from conftest import Twins


def drive(control: PaperControl, successes: list[float], sizes: list[float] | None = None) -> list[float]:
    """Feed one unit; return lambda after every step."""
    weights = []
    for i, s in enumerate(successes):
        size = sizes[i] if sizes else 10.0
        control.step(torch.tensor([s]), torch.tensor([size]))
        weights.append(float(control.weight[0]))
    return weights


def test_lambda_waits_for_five_good_steps() -> None:
    assert drive(PaperControl(1), [1.0] * 4) == [0.0] * 4
    assert drive(PaperControl(1), [1.0] * 5)[-1] == torch.tensor(1e-3)
    # a bad step in between starts the count anew
    assert drive(PaperControl(1), [1.0] * 4 + [0.5] + [1.0] * 4)[-1] == 0.0


def test_the_step_that_sets_lambda_counts_as_the_first_good_one() -> None:
    """The authors' code resets the counters and then goes on to count in the same step."""
    weights = drive(PaperControl(1), [1.0] * 14)
    changes = [i + 1 for i in range(14) if weights[i] != ([0.0, *weights])[i]]
    assert changes == [5, 9, 14]


def test_lambda_doubles_and_falls_by_the_power_of_one_and_a_half() -> None:
    control = PaperControl(1)
    drive(control, [1.0] * 10)
    assert math.isclose(float(control.weight), 2e-3, rel_tol=1e-6)
    drive(control, [0.0] * 5)
    assert math.isclose(float(control.weight), 2e-3 / 2**1.5, rel_tol=1e-6)


def test_early_stop_needs_both_directions_and_25_stale_steps() -> None:
    control = PaperControl(1)
    drive(control, [1.0] * 200)
    assert not control.done.any(), "lambda only ever rose"
    drive(control, [0.0] * 5)  # lambda falls after the check of the fifth step
    assert not control.done.any()
    drive(control, [0.0])
    assert control.done.all()


def test_early_stop_counts_anew_after_an_improvement() -> None:
    control = PaperControl(1)
    drive(control, [1.0] * 5 + [1.0] * 5 + [0.0] * 5, [10.0] * 15)
    assert not control.done.any()
    drive(control, [1.0] * 5, [9.0] * 5)
    drive(control, [1.0] * 20, [9.0] * 20)
    assert not control.done.any()
    drive(control, [1.0] * 3, [9.0] * 3)
    assert control.done.all()


def test_smallest_working_mask_is_kept() -> None:
    control = PaperControl(2)
    keep = control.step(torch.tensor([1.0, 0.5]), torch.tensor([10.0, 1.0]))
    assert keep.tolist() == [True, False]
    keep = control.step(torch.tensor([1.0, 0.99]), torch.tensor([11.0, 2.0]))
    assert keep.tolist() == [False, True]
    assert control.best.tolist() == [10.0, 2.0]


def test_start_values_are_those_of_the_published_parameterisation() -> None:
    theta = PatchFamily().init((3, 5, 4), torch.Generator().manual_seed(0))
    mask = torch.tanh(theta[0]) / (2 - EPS) + 0.5
    drawn = torch.rand((1, 5, 4), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(mask, drawn, atol=1e-5)


def test_a_unit_does_not_hang_on_its_neighbours(twins: Twins) -> None:
    model, data = twins.infected.copy("cpu"), twins.data
    jobs = [Job(t, torch.nonzero(data.y != t).flatten(), seed=t) for t in range(4)]

    def run(part: list[Job]) -> list[float]:
        found = invert(model, data.x, part, PatchFamily(), SmoothControl(len(part)), updates=40, batch=8)
        return [f.trigger.size for f in found]

    together, alone = run(jobs), [run([j])[0] for j in jobs]
    assert torch.allclose(torch.tensor(together), torch.tensor(alone), rtol=1e-3)


def test_passes_are_counted(twins: Twins) -> None:
    model, data = twins.clean.copy("cpu"), twins.data
    job = Job(3, torch.nonzero(data.y != 3).flatten(), seed=0)
    found = invert(model, data.x, [job], PatchFamily(), SmoothControl(1), updates=7, batch=5)[0]
    assert (found.updates, found.passes) == (7, 35)


def test_a_trigger_that_never_works_is_said_so(twins: Twins) -> None:
    model, data = twins.clean.copy("cpu"), twins.data
    job = Job(3, torch.nonzero(data.y != 3).flatten(), seed=0)
    found = invert(model, data.x, [job], PatchFamily(), SmoothControl(1), updates=1, batch=5)[0]
    assert not found.reached


def test_without_rows_there_are_no_batches() -> None:
    with pytest.raises(ValueError, match="no samples are left"):
        next(batches(torch.empty(0, dtype=torch.long), 0, 4))
