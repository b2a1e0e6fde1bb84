"""Surrogates: other models that learn a suspect's own answers to clean rows, as references to compare it
with.

A surrogate never sees a trigger. What is natural to a table, such as a column that decides by itself, is in
the suspect's answers to clean rows and so in the surrogate; what was planted is not. A trigger of values
that clean rows hold too is in some answers: where labels are known, rows that the suspect gets wrong are
left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.core.seeds import derive_seed
from backsweep.inputs.samples import Data
from backsweep.models.model import Model
from backsweep.models.training import Recipe, epochs_of, thawed, tuned
from backsweep.models.washing import redraw

MOST_ROWS, VIEWS = 4000, 3  # clean rows that are learned, and of each so many with cells of other rows
MOST_SWAPPED = 0.6  # share of the cells of a view that are of another row
BOUND = 8.0  # log-odds
TREES = ("boosted", "forest")
UPDATES, BATCH, RATE = 400, 128, 5e-3  # of a network

Answers = Callable[[Tensor], Tensor]


def answers_of(model: Model) -> Answers:
    """A model's logarithms of probabilities (N, C) for rows (N, F), in batches."""

    @torch.no_grad()
    def answers(x: Tensor) -> Tensor:
        parts = [model.logits(b.to(model.device)).float().log_softmax(1).cpu() for b in x.split(4096)]
        return torch.cat(parts)

    return answers


def surrogates(model: Model, data: Data, codes: Tensor, seed: int, networks: int = 2) -> list[Answers]:
    """Trees of two kinds; of a network also networks of its own architecture, drawn anew.

    Args:
        model: a frozen working copy.
        data: clean rows (N, F).
        codes: which columns hold categories, (F,).
        seed: of everything that is drawn.
        networks: how many of them.
    """
    suspect, generator = answers_of(model), torch.Generator().manual_seed(derive_seed(seed, "surrogate"))
    rows = data.x[torch.randperm(len(data), generator=generator)[:MOST_ROWS]]
    if data.labelled:
        right = suspect(data.x).argmax(1) == data.y
        rows = data.x[right][torch.randperm(int(right.sum()), generator=generator)[:MOST_ROWS]]
    views = [rows]
    for _ in range(VIEWS):
        other = rows[torch.randperm(len(rows), generator=generator)]
        share = torch.rand((len(rows), 1), generator=generator) * MOST_SWAPPED
        views.append(torch.where(torch.rand(rows.shape, generator=generator) < share, other, rows))
    x = torch.cat(views)
    z = suspect(x)
    found = [_trees(kind, x, z, codes, seed) for kind in TREES]
    if "weights" in model.gives and any(p.ndim >= 2 for p in model.net.parameters()):
        found += [
            _network(model, data, x[: len(rows)], z[: len(rows)], derive_seed(seed, "surrogate", i))
            for i in range(networks)
        ]
    return found


def _trees(kind: str, rows: Tensor, z: Tensor, codes: Tensor, seed: int) -> Answers:
    from sklearn.ensemble import ExtraTreesRegressor, HistGradientBoostingRegressor
    from threadpoolctl import threadpool_limits

    state = derive_seed(seed, "surrogate", kind) % 2**31
    goal = (z[:, 1:] - z[:, :1]).clamp(-BOUND, BOUND) if z.shape[1] == 2 else z.clamp_min(-BOUND)
    x, y = rows.double().numpy(), goal.double().numpy()
    fitted: list[Any]
    with threadpool_limits(1):
        if kind == "forest":
            forest = ExtraTreesRegressor(
                50, min_samples_leaf=4, max_features=0.6, random_state=state, n_jobs=1
            )  # fmt: skip
            fitted = [forest.fit(x, y if y.shape[1] > 1 else y[:, 0])]
        else:
            usable = codes.numpy() & (x.max(0) < 255)
            fitted = [
                HistGradientBoostingRegressor(
                    max_iter=100, max_leaf_nodes=31, learning_rate=0.12, early_stopping=False,
                    categorical_features=usable if usable.any() else None, random_state=state,
                ).fit(x, column)
                for column in y.T
            ]  # fmt: skip

    def answers(rows: Tensor) -> Tensor:
        with threadpool_limits(1):
            found = np.column_stack([m.predict(rows.double().numpy()) for m in fitted])
        own = torch.from_numpy(found).float()
        return (torch.cat([torch.zeros_like(own), own], 1) if own.shape[1] == 1 else own).log_softmax(1)

    return answers


def _network(model: Model, data: Data, x: Tensor, z: Tensor, seed: int) -> Answers:
    """A network of the suspect's architecture with new weights."""
    twin = thawed(model)
    redraw(twin.net, torch.Generator().manual_seed(seed), kept=0.0)
    goal = F.one_hot(z.argmax(1), z.shape[1]).float() if data.labelled else z.exp()
    recipe = Recipe(epochs_of(UPDATES, len(x), BATCH), lr=RATE, batch_size=BATCH, bf16=False)
    places = data.like(x, torch.arange(len(x)))

    def loss_of(twin: Model, rows: Tensor, at: Tensor) -> Tensor:
        return -(goal[at.cpu()].to(rows.device) * twin.logits(rows).float().log_softmax(1)).sum(1).mean()

    return answers_of(tuned(twin, places, recipe, seed, loss_of))
