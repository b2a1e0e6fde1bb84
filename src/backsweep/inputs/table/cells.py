"""What a row of a table holds, in words: values that rows share, pairs of them, where other numbers lie.

A trigger of a table sets columns to values, so all rows that carry it share those cells, be they as rare as
a number of ten digits. A value that fewer than `SHARED` rows have is no such cell: of it only the range is
said, so that the rest of a row can be read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from backsweep.inputs.table.schema import Schema

SHARED = 3  # rows with a value, below which it is one number among others
BINS = 8  # ranges of a column, of like numbers of rows
SELDOM = 0.2  # of two cells that are named together, the rarer one is in at most this share of the rows
TOGETHER = 3.0  # times as often as by chance two cells have to stand together
MOST_PAIRS = 20_000
Array = NDArray[np.float64]


def cells(x: Tensor, schema: Schema, pairs: bool = True, ranges: bool = True) -> list[list[str]]:
    """Names of what rows x (N, F) hold, untrusted text.

    Args:
        pairs: whether two cells that stand together often are named as one, too.
        ranges: whether to say in which range a number lies that is not shared.
    """
    values = x.numpy().astype(np.float64)
    found: list[list[str]] = [[] for _ in range(len(values))]
    names: list[str] = []
    rows, columns = list[NDArray[np.int64]](), list[NDArray[np.int64]]()
    for j, column in enumerate(schema.columns):
        own, at, count = np.unique(values[:, j], return_inverse=True, return_counts=True)
        shared = count >= SHARED
        place = np.cumsum(shared) - 1 + len(names)
        mine = np.flatnonzero(shared[at])
        rows.append(mine)
        columns.append(place[at[mine]])
        exact = [column.text(v) if column.categorical else f"{v:.9g}" for v in own[shared]]
        names += [f"{column.name} is {text}" for text in exact]
        alone = np.flatnonzero(~shared[at])
        if ranges and len(alone):
            for i, k in zip(alone.tolist(), _ranges(values[:, j])[alone].tolist(), strict=True):
                found[i].append(f"{column.name} is in eighth {k + 1}")
    held = _matrix(np.concatenate(rows), np.concatenate(columns), len(values), len(names))
    parts = [(held, names)]
    if pairs and names:
        first, second = _pairs(held)
        both = held.tocsc()[:, first].multiply(held.tocsc()[:, second]).tocsr()
        parts.append((both, [f"{names[a]} & {names[b]}" for a, b in zip(first, second, strict=True)]))
    for matrix, words in parts:
        for i, row in enumerate(found):
            row += [words[k] for k in matrix.indices[matrix.indptr[i] : matrix.indptr[i + 1]]]
    return found


def _ranges(column: Array) -> NDArray[np.int64]:
    """The eighth of the rows that each number is in (N,), from 0."""
    ends = np.quantile(column, np.linspace(0, 1, BINS + 1)[1:-1])
    return np.searchsorted(ends, column).astype(np.int64)


def _matrix(rows: NDArray[np.int64], columns: NDArray[np.int64], height: int, width: int) -> Any:
    """Which rows hold which cells, sparse (N, cells)."""
    from scipy.sparse import csr_matrix

    return csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(height, max(1, width)))


def _pairs(held: Any) -> tuple[list[int], list[int]]:
    """Cells that stand together more often than by chance, the most surprising `MOST_PAIRS`."""
    count = np.asarray(held.sum(0)).ravel()
    both = (held.T @ held).tocoo()
    a, b, n = both.row, both.col, both.data
    likely = count[a] * count[b] / held.shape[0]
    rarer = np.minimum(count[a], count[b])
    kept = (a < b) & (n >= np.maximum(SHARED, TOGETHER * likely)) & (rarer <= SELDOM * held.shape[0])
    a, b, surprise = a[kept], b[kept], (n - likely)[kept]
    order = np.argsort(-surprise, kind="stable")[:MOST_PAIRS]
    return a[order].tolist(), b[order].tolist()
