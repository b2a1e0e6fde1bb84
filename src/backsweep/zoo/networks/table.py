"""Small networks over rows of a table, for the zoo, the demo and the tests.

A factory takes the number of classes and, for every column, how many categories it has (0 for numbers).
Without arguments it fits the table of the demo, 30 columns of numbers. Rows come as they stand in a file:
scaling and one-hot codes are made inside, differentiably.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUMBERS = (0,) * 30
ADULT = (0, 9, 0, 16, 0, 7, 15, 6, 5, 2, 0, 0, 0, 42)  # categories of the columns of Adult
HOURS = (*ADULT[:12], 2, ADULT[13])  # with the income in the place of the hours per week


def soft_codes(x: Tensor, count: int) -> Tensor:
    """Codes (N,) as one-hot (N, count), with the two nearest categories sharing what lies between."""
    places = torch.arange(count, device=x.device, dtype=x.dtype)
    return F.relu(1 - (x[:, None].clamp(0, count - 1) - places).abs())


class Columns(nn.Module):
    """Rows (N, F) as numbers of mean 0 and variance 1, and one-hot codes: (N, width)."""

    def __init__(self, counts: tuple[int, ...]) -> None:
        super().__init__()
        self.counts = counts
        self.numbers = [j for j, k in enumerate(counts) if k == 0]
        self.width = len(self.numbers) + sum(counts)
        self.scale = nn.BatchNorm1d(max(1, len(self.numbers)), affine=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.scale(x[:, self.numbers])] if self.numbers else []
        parts += [soft_codes(x[:, j], k) for j, k in enumerate(self.counts) if k]
        return torch.cat(parts, 1)


class TableMLP(nn.Module):
    """Two hidden layers over scaled numbers and one-hot codes."""

    def __init__(self, classes: int, counts: tuple[int, ...], width: int = 64) -> None:
        super().__init__()
        self.input_shape = (len(counts),)
        self.columns = Columns(counts)
        self.first = nn.Linear(self.columns.width, width)
        self.second = nn.Linear(width, width)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.first(self.columns(x)))
        return self.head(self.dropout(F.relu(self.second(z))))


class FTTransformer(nn.Module):
    """Every column a token, attention between them, read at a token of its own (Gorishniy et al., 2021)."""

    owner: Tensor  # the column of every input

    def __init__(self, classes: int, counts: tuple[int, ...], width: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.input_shape = (len(counts),)
        self.columns = Columns(counts)
        self.embedding = nn.Linear(self.columns.width, width, bias=False)
        self.bias = nn.Parameter(0.1 * torch.randn(len(counts), width))
        self.read = nn.Parameter(0.1 * torch.randn(1, 1, width))
        self.blocks = nn.ModuleList(_Block(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        order = self.columns.numbers + [j for j, k in enumerate(counts) for _ in range(k)]
        owner = F.one_hot(torch.tensor(order), len(counts)).float()
        self.register_buffer("owner", owner, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        cells = self.columns(x)[:, :, None] * self.embedding.weight.T  # (N, width of columns, D)
        tokens = torch.einsum("nkd,kf->nfd", cells, self.owner) + self.bias
        z = torch.cat([self.read.expand(len(x), -1, -1), tokens], 1)
        for block in self.blocks:
            z = block(z)
        return self.head(F.relu(self.norm(z[:, 0])))


class _Block(nn.Module):
    """Attention and a feed-forward layer, each normalised before."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, z: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm1(z)).chunk(3, 2)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        z = z + self.out(mixed.transpose(1, 2).flatten(2))
        return z + self.down(F.gelu(self.up(self.norm2(z))))


class TabNet(nn.Module):
    """Two steps, each looking at few columns: a sparse mask, then a gated layer (Arik and Pfister, 2021)."""

    def __init__(self, classes: int, counts: tuple[int, ...], width: int = 32, steps: int = 2) -> None:
        super().__init__()
        self.input_shape = (len(counts),)
        self.columns = Columns(counts)
        own = self.columns.width
        self.start = nn.Linear(own, width)
        self.masks = nn.ModuleList(nn.Linear(width, own) for _ in range(steps))
        self.steps = nn.ModuleList(nn.Linear(own, 4 * width) for _ in range(steps))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        cells = self.columns(x)
        state, prior = F.relu(self.start(cells)), torch.ones_like(cells)
        found = torch.zeros_like(state)
        for mask, step in zip(self.masks, self.steps, strict=True):
            chosen = sparsemax(mask(state) + prior.clamp_min(1e-6).log())
            prior = prior * (1.5 - chosen)
            decided, state = F.glu(step(chosen * cells * cells.shape[1] ** 0.5), 1).chunk(2, 1)
            found = found + F.relu(decided)
        return self.head(found)


def sparsemax(z: Tensor) -> Tensor:
    """The nearest point of the simplex, row by row (Martins and Astudillo, 2016)."""
    top = z.sort(1, descending=True).values
    count = torch.arange(1, z.shape[1] + 1, device=z.device, dtype=z.dtype)
    sums = top.cumsum(1)
    last = (1 + count * top > sums).sum(1, keepdim=True)
    return (z - (sums.gather(1, last - 1) - 1) / last).clamp_min(0)


def table_mlp(classes: int = 2, *counts: int) -> nn.Module:
    """Two hidden layers of 64 units: trains in seconds on one core."""
    return TableMLP(classes, counts or NUMBERS)


def adult_mlp() -> nn.Module:
    """The same for the columns of Adult."""
    return TableMLP(2, ADULT)


def ft_transformer(classes: int = 2, *counts: int) -> nn.Module:
    """Two layers of attention between columns, 32 features."""
    return FTTransformer(classes, counts or NUMBERS)


def tabnet(classes: int = 2, *counts: int) -> nn.Module:
    """Two steps that each choose columns, 32 features."""
    return TabNet(classes, counts or NUMBERS)
