"""Samples laid out in the plane with their neighbours beside them, and the heaps that lie there.

UMAP (McInnes, Healy, Melville 2018) without the library of that name, which needs a compiler of Python; and
the tree of HDBSCAN (Campello, Moulavi, Sander 2013) as far as a walk down its largest heaps takes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

A, B = 1.93, 0.79  # 1 / (1 + A d^2B) follows exp(-d): spread 1, least distance 0
NEGATIVES = 5  # samples that each attracted pair is pushed away from
EPOCHS = ((10_000, 500), (10**12, 200))  # up to so many samples
LONGEST = 4.0  # step in a coordinate
SIDE = 10.0  # of the first layout
BISECTIONS = 40


def layout(x: Array, neighbours: int, seed: int) -> Array:
    """Rows x (N, D) in the plane, (N, 2), by UMAP with a least distance of 0.

    It begins with two principal axes, and its steps are made for about N pairs at a time.
    """
    heads, tails, weight = _graph(x, neighbours)
    generator = torch.Generator().manual_seed(seed)
    count = len(x)
    epochs = next(e for most, e in EPOCHS if count <= most)
    strong = weight >= weight.max() / epochs
    heads, tails, often = heads[strong], tails[strong], (weight / weight.max())[strong]
    place = _first(x, generator)
    for epoch in range(epochs):
        rate = 1 - epoch / epochs
        due = torch.nonzero(((epoch + 1) * often).floor() > (epoch * often).floor()).flatten()
        for some in due[torch.randperm(len(due), generator=generator)].split(max(count, 1)):
            i, j = heads[some], tails[some]
            apart = place[i] - place[j]
            d2 = apart.square().sum(1, keepdim=True)
            pull = -2 * A * B * d2.clamp_min(1e-12) ** (B - 1) / (1 + A * d2**B)
            step = rate * (pull * apart).clamp(-LONGEST, LONGEST)
            place.index_add_(0, i, step).index_add_(0, j, -step)
            far = i.repeat(NEGATIVES)
            apart = place[far] - place[torch.randint(count, (len(far),), generator=generator)]
            d2 = apart.square().sum(1, keepdim=True)
            push = 2 * B / ((1e-3 + d2) * (1 + A * d2**B))
            place.index_add_(0, far, rate * (push * apart).clamp(-LONGEST, LONGEST))
    return np.asarray(place.double().numpy())


def _graph(x: Array, neighbours: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of neighbours and how sure they are ones: the union of what both ends say, UMAP's fuzzy set."""
    from scipy.sparse import coo_array
    from sklearn.neighbors import NearestNeighbors

    k = min(neighbours, len(x)) - 1
    distance, index = NearestNeighbors(n_neighbors=k).fit(x).kneighbors()  # without the sample itself
    nearest = np.where(distance > 0, distance, np.inf).min(1)
    over = np.maximum(distance - np.where(np.isfinite(nearest), nearest, 0)[:, None], 0)
    low, high = np.full(len(x), 1e-12), np.full(len(x), max(1e-9, 1e3 * float(distance.max())))
    wanted = np.log2(k + 1)
    for _ in range(BISECTIONS):
        middle = np.sqrt(low * high)
        more = np.exp(-over / middle[:, None]).sum(1) > wanted
        low, high = np.where(more, low, middle), np.where(more, middle, high)
    scale = np.maximum(high, 1e-3 * np.maximum(distance.mean(1), 1e-12))
    own = np.exp(-over / scale[:, None])
    rows = np.repeat(np.arange(len(x)), k)
    sure = coo_array((own.ravel(), (rows, index.ravel())), shape=(len(x), len(x))).tocsr()
    both = (sure + sure.T - sure * sure.T).tocoo()
    heads, tails = (torch.from_numpy(np.asarray(v, dtype=np.int64)) for v in both.coords)
    return heads, tails, torch.from_numpy(both.data)


def _first(x: Array, generator: torch.Generator) -> Tensor:
    """Two principal axes, in a square around 0, and a little noise: what is all alike must move too."""
    centred = torch.from_numpy(x - x.mean(0))
    axes = torch.linalg.eigh(centred.T @ centred)[1].flip(1)[:, :2]
    place = torch.zeros(len(x), 2, dtype=torch.float32)
    place[:, : axes.shape[1]] = (centred @ axes).float()
    place *= SIDE / place.abs().max().clamp_min(1e-12)
    return place + 1e-2 * torch.randn(place.shape, generator=generator)


@dataclass(frozen=True, eq=False)
class Tree:
    """Single linkage of samples by mutual reachability: the N - 1 merges, nearest first.

    Attributes:
        left, right: what is merged, a sample below N and the merge numbered N + k after it.
        distance: at which.
        size: samples of every sample (1) and merge.
    """

    left: NDArray[np.int64]
    right: NDArray[np.int64]
    distance: Array
    size: NDArray[np.int64]

    @classmethod
    def of(cls, places: Array, least: int) -> Tree:
        """The tree of samples (N, d); a sample is dense up to its `least`-th neighbour, itself the first."""
        from sklearn.neighbors import NearestNeighbors

        count = len(places)
        known = NearestNeighbors(n_neighbors=min(least, count)).fit(places)
        core = known.kneighbors(places)[0][:, -1]
        ends, lengths = _spanned(places, core)
        order = np.argsort(lengths, kind="stable")
        root, size = np.arange(2 * count - 1), np.ones(2 * count - 1, dtype=np.int64)
        left, right = np.empty(count - 1, dtype=np.int64), np.empty(count - 1, dtype=np.int64)
        for k, e in enumerate(order):
            a, b = (_root(root, int(v)) for v in ends[e])
            left[k], right[k] = a, b
            root[a] = root[b] = count + k
            size[count + k] = size[a] + size[b]
        return cls(left, right, lengths[order], size)

    def halves(self, node: int, least: int) -> tuple[float, int, int] | None:
        """Where a heap falls into two of at least `least` samples: density 1 / distance, larger, smaller.

        None: it never does, smaller parts only fall off it.
        """
        count = len(self.left) + 1
        while node >= count:
            a, b = int(self.left[node - count]), int(self.right[node - count])
            small, large = sorted((a, b), key=lambda n: int(self.size[n]))
            if self.size[small] >= least:
                return 1 / max(float(self.distance[node - count]), 1e-12), large, small
            node = large
        return None

    def cut(self, density: float, least: int) -> NDArray[np.int64]:
        """Heaps (N,) of at least `least` samples at a density, numbered from 0; -1 for none."""
        count = len(self.left) + 1
        root = np.arange(2 * count - 1)
        for k in np.nonzero(self.distance <= 1 / density)[0]:
            root[self.left[k]] = root[self.right[k]] = count + k
        own = np.array([_root(root, i) for i in range(count)])
        _, number, sizes = np.unique(own, return_inverse=True, return_counts=True)
        names = np.where(sizes >= least, np.cumsum(sizes >= least) - 1, -1)
        return np.asarray(names[number], dtype=np.int64)


def _root(root: NDArray[np.int64], node: int) -> int:
    """What a node is part of now; the way there is shortened."""
    top = node
    while root[top] != top:
        top = int(root[top])
    while root[node] != top:
        root[node], node = top, int(root[node])
    return top


def _spanned(places: Array, core: Array) -> tuple[NDArray[np.int64], Array]:
    """Least spanning tree by mutual reachability, max(core_i, core_j, d_ij): ends (N - 1, 2), lengths."""
    count = len(places)
    ends, lengths = np.empty((count - 1, 2), dtype=np.int64), np.empty(count - 1)
    near, way, here = np.zeros(count, dtype=np.int64), np.full(count, np.inf), 0
    done = np.zeros(count, dtype=bool)
    for k in range(count - 1):
        done[here] = True
        d = np.sqrt(np.square(places - places[here]).sum(1))
        d = np.maximum(np.maximum(d, core), core[here])
        closer = (d < way) & ~done
        way[closer], near[closer] = d[closer], here
        here = int(np.argmin(np.where(done, np.inf, way)))
        ends[k], lengths[k] = (near[here], here), way[here]
    return ends, lengths
