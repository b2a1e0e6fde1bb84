"""The path of growing budgets: its spaces, what it measures, that aims do not disturb each other."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backsweep.inputs.image.spaces import Dense, Sparse, Tone
from backsweep.inversion.budget import Aim, Embedded, OfInputs, Path, Space, follow
from conftest import Twins

SPACES: list[Space] = [OfInputs(Dense()), OfInputs(Sparse()), OfInputs(Tone()), Embedded(0), Embedded(1)]


def paths(twins: Twins, name: str, aims: list[Aim], space: Space, **how: int) -> list[Path]:
    model = getattr(twins, name).copy("cpu")
    steps, batch = how.get("steps", 16), how.get("batch", 16)
    return follow(model, twins.data.x, twins.data.y, aims, space, steps=steps, batch=batch, bf16=False)


@pytest.mark.parametrize(
    "space", [OfInputs(Dense()), OfInputs(Sparse()), Embedded(0)], ids=["Dense", "Sparse", "Embedded"]
)
def test_the_planted_class_needs_a_smaller_budget_than_in_the_clean_twin(twins: Twins, space: Space) -> None:
    aims = [Aim(t, None, t) for t in range(10)]
    bad, good = (paths(twins, n, aims, space) for n in ("infected", "clean"))
    gain = [g.log_size - b.log_size for b, g in zip(bad, good, strict=True)]
    target = twins.trigger.target
    assert target is not None
    assert gain[target] == max(gain)
    assert gain[target] > 0.3


@pytest.mark.parametrize("space", SPACES, ids=lambda s: type(s).__name__)
def test_an_aim_does_not_hang_on_its_neighbours(twins: Twins, space: Space) -> None:
    aims = [Aim(1, None, 5), Aim(2, 7, 6), Aim(None, 3, 7)]
    together = paths(twins, "clean", aims, space, steps=6)
    for aim, path in zip(aims, together, strict=True):
        (alone,) = paths(twins, "clean", [aim], space, steps=6)
        assert alone.log_size == pytest.approx(path.log_size, abs=0.05)
        assert torch.allclose(alone.delta, path.delta, atol=1e-3)


def test_what_is_measured_lies_in_the_range_and_passes_are_counted(twins: Twins) -> None:
    (path,) = paths(twins, "clean", [Aim(0, None, 0)], OfInputs(Dense(low=1e-6, high=1e-5)), steps=4)
    assert path.log_size == pytest.approx(4 * math.log(10) / 3, rel=0.1), "nothing was won"
    assert path.passes == 4 * 16
    (easy,) = paths(twins, "clean", [Aim(0, None, 0)], OfInputs(Dense(low=50, high=100)), steps=9)
    assert easy.log_size < 1.0
    assert easy.passes < 9 * 16, "a path stops when everything is won"
    assert easy.success > 0.97


def test_an_aim_takes_the_samples_it_speaks_of() -> None:
    y = torch.tensor([0, 1, 2, 1])
    assert Aim(1, None, 0).rows(y).tolist() == [0, 2]
    assert Aim(2, 1, 0).rows(y).tolist() == [1, 3]
    assert Aim(None, None, 0).rows(y).tolist() == [0, 1, 2, 3]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.floats(0.5, 40.0))
def test_a_projection_stays_inside_the_ball_and_leaves_what_is_inside(seed: int, budget: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randn((2, 3, 6, 6), generator=generator)
    for space in (Dense(), Sparse(), Tone()):
        d = delta if not isinstance(space, Tone) else delta.flatten(2)
        inside = space.project(d, budget)
        assert (space.norm(inside) <= budget * 1.001 + 1e-5).all()
        assert torch.allclose(space.project(inside, budget * 1.01), inside, atol=1e-5)
        assert (inside * d >= -1e-6).all(), "no sign turns"
    assert float(Sparse().project(100 * delta, 1e9).abs().max()) <= 1


def test_sparse_budgets_are_pixels() -> None:
    delta = torch.zeros((1, 3, 4, 4))
    delta[0, :, 1, 1] = 1.0
    delta[0, 0, 2, 2] = -0.25
    assert float(Sparse().norm(delta)) == pytest.approx(1.25)
    assert Sparse().project(delta, 1.0)[0, 0, 2, 2].item() == pytest.approx(-0.125)


def test_a_tone_curve_shifts_values_and_interpolates(twins: Twins) -> None:
    model, x = twins.clean.copy("cpu"), twins.data.x[:4]
    flat = torch.full((4, 1, 9), 0.1)
    assert torch.allclose(model.logits(Tone().apply(x, flat)), model.logits((x + 0.1).clamp(0, 1)), atol=1e-4)
    ramp = torch.linspace(0, 1, 9).expand(4, 1, 9)  # x + x
    assert torch.allclose(model.logits(Tone().apply(x, ramp)), model.logits((2 * x).clamp(0, 1)), atol=1e-4)


def test_a_shift_of_the_embedding_is_added_where_it_says(twins: Twins) -> None:
    model, x = twins.clean.copy("cpu"), twins.data.x[:4]
    z = model.embedded(x, 0)
    assert torch.equal(model.logits_at(x, 0, torch.zeros_like(z)), model.logits(x))
    last = model.layers() - 1
    moved = model.logits_at(x, last, torch.ones((1, model.embedded(x, last).shape[1])))
    assert not torch.allclose(moved, model.logits(x))
    assert model.layers() >= 2
