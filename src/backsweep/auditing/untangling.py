"""Two groups of a class by their means in the representation, given how classes scatter about theirs.

The step that SCAn (Tang et al., USENIX Security 2021) shares with what is built on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from backsweep.auditing.mixture import LEAST_STATISTIC, separation

RIDGE = 1e-3  # of the mean variance, added to every direction of S_e
DIRECTIONS = 6  # principal directions of a class from which splits start
TAILS = ((1, 0.5), (1, 0.95), (-1, 0.95))  # halves and both ends of each


@dataclass(frozen=True, eq=False)
class Untangled:
    """Two groups of a class: position along the line of their means (at -1 and 1), who is in the upper one,
    the likelihood ratio J per sample, how clearly they are two, the upper share, the Mahalanobis distance."""

    position: Tensor
    upper: Tensor
    ratio: float
    separation: float
    share: float
    distance: float


def untangled(z: Tensor, known: bool, iterations: int = 100, tolerance: float = 1e-5) -> Untangled:
    """The best split of whitened rows z (n, d); of the likeliest, or of the clearest if S_e is not known.

    With one S_e for both groups the likelier mean of a sample is the nearer one of z, and the border a
    plane across the line between the means. S_e from a contaminated set is too large along that line,
    which J feels and the separation does not.
    """
    tries = [_climbed(z, upper, iterations, tolerance) for upper in starts(z)]
    return max(tries, key=lambda t: t.ratio if known else t.separation)


def _climbed(z: Tensor, upper: Tensor, iterations: int, tolerance: float) -> Untangled:
    """Assign the samples to the nearer mean until that changes nothing."""
    for _ in range(iterations):
        if not 1 <= int(upper.sum()) < len(z):
            break
        mu_1, mu_2 = z[upper].mean(0), z[~upper].mean(0)
        v = mu_1 - mu_2
        position = 2 * (z @ v - (mu_1 + mu_2) @ v / 2) / (v @ v).clamp_min(1e-12)  # mu_1 at 1, mu_2 at -1
        before, upper = upper, position > 0
        if float((before != upper).double().mean()) <= tolerance:
            break
    p = float(upper.double().mean())
    if not 0 < p < 1:
        return Untangled(torch.full_like(z[:, 0], -1.0), upper, 0.0, LEAST_STATISTIC, p, 0.0)
    mu_1, mu_2 = z[upper].mean(0), z[~upper].mean(0)
    within = torch.where(upper, (z - mu_1).square().sum(1), (z - mu_2).square().sum(1))
    j = float(((z - z.mean(0)).square().sum(1) - within).mean())
    return Untangled(position, upper, j, separation(position), p, float((mu_1 - mu_2).norm()))


def suspected(best: Untangled, remote: Tensor) -> Untangled:
    """A split of n samples, turned so that the suspected group is the upper one.

    That is the one which lies farther from the other classes: what a class has by nature it shares in part
    with its neighbours, and a trigger sends samples beyond that. Size says little: of 43 classes with 10 %
    poison the poisoned one has more poison than samples of its own. Groups that are as far: the smaller one.

    Args:
        remote: how far each sample is from the other classes (`remoteness`).
    """
    upper = best.upper
    high, low = (float(remote[part].mean()) if part.any() else -math.inf for part in (upper, ~upper))
    if low > high or (low == high and best.share > 0.5):
        return replace(best, position=-best.position, upper=~upper, share=float((~upper).double().mean()))
    return best


def remoteness(r: Tensor, y: Tensor, labels: Sequence[int], s_e: Tensor) -> Tensor:
    """Mean Mahalanobis distance (N,), by S_e, of rows r (N, d) to the means of the other classes."""
    x, found = whitened(r, s_e), torch.zeros(len(r)).to(r)
    means = torch.stack([x[y == c].mean(0) for c in labels])
    for i, label in enumerate(labels):
        rows = torch.nonzero(y == label).flatten()
        others = torch.cat([means[:i], means[i + 1 :]])
        if len(others):
            found[rows] = torch.cdist(x[rows], others).mean(1)
    return found


def within_groups(
    r: Tensor, y: Tensor, labels: Sequence[int], iterations: int = 100, tolerance: float = 1e-5
) -> Tensor:
    """S_e (d, d) from a set of which nothing is known: the scatter within the groups of a first split."""
    s_e, groups = scatter(r, y), y * 2
    for label in labels:
        rows = torch.nonzero(y == label).flatten()
        groups[rows] += untangled(whitened(r[rows], s_e), False, iterations, tolerance).upper.long()
    return scatter(r, groups)


def of_classes(
    r: Tensor, y: Tensor, labels: Sequence[int], s_e: Tensor, known: bool = False,
    iterations: int = 100, tolerance: float = 1e-5, remote: Tensor | None = None,
) -> Iterator[tuple[int, Tensor, Untangled]]:  # fmt: skip
    """Every class with its rows and their split, the suspected group upper.

    Args:
        r, y: rows (N, d) of a set, and their classes.
        s_e: how classes scatter (d, d); `known`: from clean samples.
        iterations, tolerance: of each split.
        remote: how far samples are from the other classes (N,), where that is not told by r.
    """
    remote = remoteness(r, y, labels, s_e) if remote is None else remote
    for label in labels:
        rows = torch.nonzero(y == label).flatten()
        best = untangled(whitened(r[rows], s_e), known, iterations, tolerance)
        yield label, rows, suspected(best, remote[rows])


def parted(
    features: Tensor, y: Tensor, labels: Sequence[int], dimensions: int = 64, more: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Two groups of every class, the suspected one upper, of a set of which nothing is known.

    Args:
        features: penultimate features (N, D), brought to at most so many dimensions.
        y, labels: classes (N,), and those that are parted.
        more: another representation (N, E): classes are parted in it and in both together too, and of the
            splits of a class the likeliest is taken. Which group is suspected both together tell.

    Returns:
        Positions (N,) on the lines of the classes, and who is in the upper groups (N,). Samples of other
        classes are at -1; nobody is in an upper group where all features are the same.
    """
    spaces = [reduced(features, dimensions)]
    position, upper = torch.full((len(y),), -1.0), torch.zeros(len(y), dtype=torch.bool)
    if not spaces[0].shape[1]:
        return position, upper
    if more is not None and (other := reduced(more, dimensions)).shape[1]:
        both = torch.cat([r / r.std(0).mean() for r in (spaces[0], other)], 1)
        spaces += [other, reduced(both, dimensions)]
    s_e = [within_groups(r, y, labels) for r in spaces]
    remote = remoteness(spaces[-1], y, labels, s_e[-1])
    found = zip(
        *(of_classes(r, y, labels, s, remote=remote) for r, s in zip(spaces, s_e, strict=True)), strict=True
    )
    for splits in found:
        rows = splits[0][1]
        best = max((best for _, _, best in splits), key=lambda b: b.ratio)
        position[rows], upper[rows] = best.position.float(), best.upper
    return position, upper


def reduced(features: Tensor, dimensions: int) -> Tensor:
    """Centred rows (N, d), float64, along the first principal axes of features (N, D)."""
    mean, axes = principal(features, dimensions)
    return (features - mean).double() @ axes


def scatter(r: Tensor, groups: Tensor) -> Tensor:
    """Covariance (d, d) of rows about the mean of their group."""
    groups = groups.unique(return_inverse=True)[1]
    sums = torch.zeros(int(groups.max()) + 1, r.shape[1]).to(r).index_add_(0, groups, r)
    e = r - (sums / groups.bincount()[:, None])[groups]
    return e.T @ e / len(r)


def principal(features: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Mean (D,) and the first principal axes (D, d) of features, those without variance left out."""
    mean = features.mean(0)
    centred = features - mean
    variance, axes = torch.linalg.eigh((centred.T @ centred).double() / len(features))
    spread = variance > max(1e-7 * float(variance[-1]), 1e-15)
    return mean, axes[:, spread][:, -most:]


def whitened(r: Tensor, s_e: Tensor) -> Tensor:
    """Centred rows in which S_e is the identity, so that distances are Mahalanobis distances."""
    ridge = RIDGE * s_e.diagonal().mean().clamp_min(1e-12) * torch.eye(len(s_e)).to(s_e)
    factor = torch.linalg.cholesky(s_e + ridge)
    return torch.linalg.solve_triangular(factor, (r - r.mean(0)).T, upper=False).T


def starts(z: Tensor) -> list[Tensor]:
    """First guesses (n,): halves and tails of the principal directions of centred rows."""
    along = z @ torch.linalg.eigh(z.T @ z)[1][:, -DIRECTIONS:]
    return [side * v > (side * v).quantile(q) for v in along.T for side, q in TAILS]
