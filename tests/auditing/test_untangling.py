"""Which of two groups of a class is the suspected one, and how a set of which nothing is known is parted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from backsweep.auditing.untangling import parted, remoteness, scatter, suspected, untangled, whitened

CLASSES, DIMENSIONS = 4, 6


def heaps(own: int, beyond: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features of four classes at the corners of a simplex; class 0 has a second heap, further out."""
    generator = torch.Generator().manual_seed(0)
    y = torch.cat([torch.zeros(own + beyond), *(torch.full((150,), c) for c in range(1, CLASSES))]).long()
    features = torch.randn(len(y), DIMENSIONS, generator=generator)
    features += 12 * torch.eye(CLASSES, DIMENSIONS)[y]
    far = torch.zeros(len(y), dtype=torch.bool)
    far[own : own + beyond] = True
    features[far, 0] += 12
    return features, y, far


@pytest.mark.parametrize(("own", "beyond"), [(150, 20), (100, 100), (20, 150)])
def test_the_group_that_is_farther_from_the_other_classes_is_suspected_however_large(
    own: int, beyond: int
) -> None:
    features, y, far = heaps(own, beyond)
    position, upper = parted(features, y, list(range(CLASSES)))
    assert upper[y == 0].tolist() == far[y == 0].tolist()
    assert ((position > 0) == upper).all()


def test_of_groups_that_are_as_far_the_smaller_one_is_suspected() -> None:
    z = torch.cat([torch.randn(90, 3) - 6, torch.randn(30, 3) + 6]).double()
    for rows in (z, z.flip(0)):
        best = suspected(untangled(rows - z.mean(0), False), torch.ones(len(z)))
        assert int(best.upper.sum()) == 30
        assert best.share == 0.25
        assert bool(((best.position > 0) == best.upper).all())


def test_remoteness_is_measured_in_spreads_and_a_lone_class_has_none() -> None:
    features, y, far = heaps(100, 50)
    r = (features - features.mean(0)).double()
    labels = list(range(CLASSES))
    remote = remoteness(r, y, labels, scatter(r, y * 2 + far.long()))
    assert float(remote[far].mean()) > float(remote[(y == 0) & ~far].mean()) + 5
    scaled = remoteness(10 * r, y, labels, scatter(10 * r, y * 2 + far.long()))
    torch.testing.assert_close(scaled, remote)
    x = whitened(r, scatter(r, y * 2 + far.long()))
    means = torch.stack([x[y == c].mean(0) for c in (1, 2, 3)])
    torch.testing.assert_close(remote[0], (x[0] - means).norm(dim=1).mean())
    assert not remoteness(r[y == 0], y[y == 0], [0], scatter(r, y)).any()


def test_features_without_any_variance_have_no_groups() -> None:
    position, upper = parted(torch.ones(50, 3), torch.arange(50) % 2, [0, 1])
    assert not upper.any()
    assert (position == -1).all()


def test_a_second_representation_parts_what_the_first_does_not() -> None:
    g = torch.Generator().manual_seed(3)
    y = torch.arange(3).repeat_interleave(200)
    first, second = torch.randn(600, 4, generator=g), torch.randn(600, 6, generator=g)
    first += 8 * torch.nn.functional.one_hot(y, 4)
    bad = torch.zeros(600, dtype=torch.bool)
    bad[200:240] = True  # of class 1, nothing that the penultimate layer shows
    second[bad, 2] += 9
    alone = parted(first, y, [0, 1, 2])[1]
    both = parted(first, y, [0, 1, 2], more=second)[1]
    assert (alone[200:400] == bad[200:400]).double().mean() < 0.9
    assert torch.equal(both[200:400], bad[200:400])
    assert torch.equal(parted(first, y, [0, 1, 2], more=torch.ones(600, 2))[1], alone)
