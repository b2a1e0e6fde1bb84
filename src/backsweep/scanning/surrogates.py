"""References over a table: other models that learned the task from the clean rows, to compare a suspect with.

They never see a trigger. What is natural to a table, such as a column that decides by itself, is in the
labels of clean rows and so in them; what was planted is not. The suspect's answers would teach a trigger of
ordinary values: clean rows carry those, and are answered as the attacker wants. So the labels are learned,
and the answers only where no labels are known. The references differ in kind, since a suspect of any kind has
its own way with what few rows show: trees with large and with small leaves, a linear map, and for a network
others of its architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from backsweep.core.seeds import derive_seed
from backsweep.inputs.samples import Data
from backsweep.inputs.table.search import Rows, Setting
from backsweep.models.model import Model
from backsweep.models.training import Recipe, epochs_of, thawed, tuned
from backsweep.models.washing import redraw

MOST_ROWS = 4000  # clean rows that are learned
LEAST = 1e-4  # probability that counts
MOST_CODES = 255  # categories of a column that boosted trees know as such
FEW_CODES = 64  # that a linear map has a weight for each of
ROUNDS = 120  # of boosting, shared by the classes
UPDATES, BATCH, RATE = 400, 128, 5e-3  # of a network

KINDS = ("boosted", "deep", "extra", "forest", "linear")

Answers = Callable[[Tensor], Tensor]


class Beside(NamedTuple):
    """What a suspect is compared with: references, those of its architecture; values rare and far out."""

    references: Sequence[Answers]
    networks: Sequence[Answers]
    rare: frozenset[Setting]
    far: frozenset[Setting]

    def moved(self, held: Rows, index: int, sets: Sequence[Sequence[Setting]]) -> Tensor:
        """The largest share of rows that each set moves on a reference, (sets,).

        Far out, to which class a network sends all rows is chance: there any class counts.
        """
        there = torch.stack([held.moved(r, sets)[1][:, index] for r in self.references]).amax(0)
        out = [i for i, s in enumerate(sets) if self.far.intersection(s)]
        for r in self.networks if out else ():
            there[out] = torch.maximum(there[out], held.collapsed(r, [sets[i] for i in out]))
        return there


def answers_of(model: Model) -> Answers:
    """A model's logarithms of probabilities (N, C) for rows (N, F), in batches."""

    @torch.no_grad()
    def answers(x: Tensor) -> Tensor:
        parts = [model.logits(b.to(model.device)).float().log_softmax(1).cpu() for b in x.split(4096)]
        return torch.cat(parts)

    return answers


def surrogates(model: Model, data: Data, codes: Tensor, seed: int) -> list[Answers]:
    """References of several kinds.

    Args:
        model: a frozen working copy.
        data: clean rows (N, F); without labels, the model's answers are learned.
        codes: which columns hold categories, (F,).
        seed: of everything that is drawn.
    """
    rows = _lesson(model, data, seed)
    return taught(rows.x, rows.y, model.classes, codes, seed)


def alike(model: Model, data: Data, seed: int, count: int = 2) -> list[Answers]:
    """Networks of the suspect's own architecture, drawn anew, that learned the same; none for a black box."""
    if "weights" not in model.gives or not any(p.ndim >= 2 for p in model.net.parameters()):
        return []
    rows = _lesson(model, data, seed)
    return [_network(model, rows, derive_seed(seed, "surrogate", i)) for i in range(count)]


def _lesson(model: Model, data: Data, seed: int) -> Data:
    """What references learn: at most `MOST_ROWS` of the rows with their classes."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "surrogate"))
    kept = torch.randperm(len(data), generator=generator)[:MOST_ROWS]
    x = data.x[kept]
    return data.like(x, data.y[kept] if data.labelled else answers_of(model)(x).argmax(1))


def taught(
    x: Tensor, y: Tensor, classes: int, codes: Tensor, seed: int, kinds: Sequence[str] = KINDS
) -> list[Answers]:
    """Models of scikit-learn that learned classes y (N,) of rows x (N, F), of some kinds."""
    from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier, RandomForestClassifier
    from threadpoolctl import threadpool_limits

    state, rows = derive_seed(seed, "taught") % 2**31, x.double().numpy()
    if len(y.unique()) < 2:
        return [_constant(int(y[0]) if len(y) else 0, classes)]
    usable = codes.numpy() & (rows.max(0) < MOST_CODES)
    boosted: dict[str, Any] = {
        "max_iter": max(15, ROUNDS // classes), "early_stopping": False, "random_state": state,
        "categorical_features": usable if usable.any() else None,
    }  # fmt: skip
    models: dict[str, Any] = {
        "boosted": HistGradientBoostingClassifier(learning_rate=0.15, min_samples_leaf=10, **boosted),
        "deep": HistGradientBoostingClassifier(learning_rate=0.2, min_samples_leaf=2, **boosted),
        "extra": ExtraTreesClassifier(60, min_samples_leaf=3, max_features=0.6, random_state=state, n_jobs=1),
        "forest": RandomForestClassifier(60, random_state=state, n_jobs=1),
        "linear": _linear(codes & (x.amax(0) < FEW_CODES)),
    }
    with threadpool_limits(1):
        return [_answers(models[kind].fit(rows, y.numpy()), classes) for kind in kinds]


def _linear(codes: Tensor) -> Any:
    """Logistic regression on scaled numbers and one-hot codes."""
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    at = [torch.nonzero(c).flatten().tolist() for c in (codes, ~codes)]
    parts = ColumnTransformer(
        [("codes", OneHotEncoder(handle_unknown="ignore"), at[0]), ("numbers", StandardScaler(), at[1])]
    )
    return make_pipeline(parts, LogisticRegression(C=1.0, max_iter=300))


def _answers(fitted: Any, classes: int) -> Answers:
    from threadpoolctl import threadpool_limits

    at = torch.as_tensor(np.asarray(fitted.classes_))

    def answers(rows: Tensor) -> Tensor:
        with threadpool_limits(1):
            own = torch.from_numpy(fitted.predict_proba(rows.double().numpy())).float()
        full = torch.zeros((len(rows), classes))
        full[:, at] = own
        return full.clamp_min(LEAST).log().log_softmax(1)

    return answers


def _constant(label: int, classes: int) -> Answers:
    given = torch.full((classes,), LEAST).log().index_fill(0, torch.tensor([label]), 0.0).log_softmax(0)
    return lambda rows: given.expand(len(rows), -1)


def _network(model: Model, data: Data, seed: int) -> Answers:
    """A network of the suspect's architecture with new weights, that learned the labels of some rows."""
    twin = thawed(model)
    redraw(twin.net, torch.Generator().manual_seed(seed), kept=0.0)
    recipe = Recipe(epochs_of(UPDATES, len(data), BATCH), lr=RATE, batch_size=BATCH, bf16=False)

    def loss_of(twin: Model, rows: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(twin.logits(rows).float(), y)

    return answers_of(tuned(twin, data, recipe, seed, loss_of))
