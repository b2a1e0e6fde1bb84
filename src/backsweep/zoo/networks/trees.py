"""Boosted trees of the zoo: libraries train them, and a file keeps their bytes as it keeps weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.formats import trees
from backsweep.models.black_box import Learner

TREES, DEPTH, RATE = 80, 5, 0.2


class Boosted(Learner):
    """Trees behind a function. The bytes of the trained model are its only tensor.

    Attributes:
        kind: the library.
        raw: the model in its own format, uint8; empty before the training.
    """

    raw: Tensor

    def __init__(self, kind: str, classes: int, counts: tuple[int, ...]) -> None:
        super().__init__(self._answered, 4096)
        self.kind, self.classes, self.counts = kind, classes, counts
        self.input_shape = (len(counts),)
        self.register_buffer("raw", torch.zeros(0, dtype=torch.uint8))
        self._trees: trees.Trees | None = None

    def learn(self, x: Tensor, y: Tensor, seed: int) -> None:
        train = {trees.XGBOOST: self._xgboost, trees.LIGHTGBM: self._lightgbm}[self.kind]
        try:
            blob = train(x.numpy(), y.numpy(), seed)
        except ImportError as e:
            raise BadInput(f"trees of {self.kind} need its library: pip install backsweep[trees]") from e
        self.raw, self._trees = torch.from_numpy(np.frombuffer(blob, np.uint8).copy()), None

    def _answered(self, x: Tensor) -> Any:
        if not len(self.raw):
            return torch.zeros((len(x), self.classes))
        if self._trees is None:
            self._trees = trees.read(self.raw.numpy().tobytes(), self.kind)
        return self._trees.answer(x)

    def _xgboost(self, x: Any, y: Any, seed: int) -> bytes:
        import xgboost

        kinds = ["c" if k else "q" for k in self.counts]
        rows = xgboost.DMatrix(x, y, feature_types=kinds, enable_categorical=True, nthread=1)
        settings: dict[str, Any] = {
            "max_depth": DEPTH, "eta": RATE, "subsample": 0.8, "seed": seed % 2**31, "nthread": 1,
            "verbosity": 0, "objective": "binary:logistic",
        }  # fmt: skip
        if self.classes > 2:
            settings |= {"objective": "multi:softprob", "num_class": self.classes}
        return bytes(xgboost.train(settings, rows, TREES).save_raw("ubj"))

    def _lightgbm(self, x: Any, y: Any, seed: int) -> bytes:
        import lightgbm

        rows = lightgbm.Dataset(
            x.astype(np.float64), y, categorical_feature=[j for j, k in enumerate(self.counts) if k]
        )
        settings: dict[str, Any] = {
            "num_leaves": 2**DEPTH - 1, "learning_rate": RATE / 2, "bagging_fraction": 0.8, "bagging_freq": 1,
            "seed": seed % 2**31, "num_threads": 1, "verbosity": -1, "deterministic": True,
            "objective": "binary",
        }  # fmt: skip
        if self.classes > 2:
            settings |= {"objective": "multiclass", "num_class": self.classes}
        return lightgbm.train(settings, rows, TREES).model_to_string().encode()

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Models differ in length, which a buffer of a fixed size would not take."""
        if (found := state.get(f"{prefix}raw")) is not None:
            self.raw, self._trees = found.clone(), None
        super()._load_from_state_dict(state, prefix, *rest)

    def __deepcopy__(self, memo: dict[int, Any]) -> Boosted:
        twin = Boosted(self.kind, self.classes, self.counts)
        twin.raw, twin._trees = self.raw.clone(), self._trees
        return twin


def xgboost_trees(classes: int = 2, *counts: int) -> Boosted:
    """80 trees of XGBoost, of depth 5."""
    return Boosted(trees.XGBOOST, classes, counts)


def lightgbm_trees(classes: int = 2, *counts: int) -> Boosted:
    """80 trees of LightGBM, of up to 31 leaves."""
    return Boosted(trees.LIGHTGBM, classes, counts)
