"""Orders of samples in which the classes stand in equal numbers."""

from __future__ import annotations

import torch
from torch import Tensor


def balanced(y: Tensor, seed: int) -> Tensor:
    """Row order in which every prefix holds the classes in numbers as equal as can be."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(y), generator=generator)
    rank = torch.empty_like(order)
    for c in sorted(set(y.tolist())):
        rows = order[y[order] == c]
        rank[rows] = torch.arange(len(rows))
    return order[torch.argsort(rank[order], stable=True)]
