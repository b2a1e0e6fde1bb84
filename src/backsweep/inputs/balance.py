"""Orders of samples in which the classes stand in equal numbers."""

from __future__ import annotations

import torch
from torch import Tensor

SIGMAS = 4.0  # from a half, as chance deals, from which on one of two classes is dealt by itself


def balanced(y: Tensor, seed: int) -> Tensor:
    """Row order in which every prefix holds the classes in numbers as equal as can be."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(y), generator=generator)
    rank = torch.empty_like(order)
    for c in sorted(set(y.tolist())):
        rows = order[y[order] == c]
        rank[rows] = torch.arange(len(rows))
    return order[torch.argsort(rank[order], stable=True)]


def half(y: Tensor, seed: int) -> Tensor:
    """Which rows (N,) are of the first of two halves that hold the classes in equal numbers.

    Every other row of the balanced order is, but that a class with more than one row is in both halves. Two
    classes lie in that order by turns, and every other row would be of one class: each is dealt by itself.
    """
    order, classes = balanced(y, seed), y.unique()
    first = torch.zeros(len(y), dtype=torch.bool)
    first[order[0::2]] = True
    for c in classes:
        rows = order[y[order] == c]
        if len(rows) > 1 and bool((first[rows] == first[rows[0]]).all()):
            first[rows[-1]] = ~first[rows[-1]]
        if len(classes) == 2 and abs(2 * int(first[rows].sum()) - len(rows)) > SIGMAS * len(rows) ** 0.5:
            first[rows] = torch.arange(len(rows)) % 2 == 0
    return first
