"""Trees and linear models of the zoo: libraries train them, a file keeps their bytes as it keeps weights."""

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
FOREST, LEAF = 40, 3  # trees of a forest, and rows in a leaf at least


class LibraryModel(Learner):
    """Trees, or a linear model, behind a function. The bytes of the trained model are its only tensor.

    Attributes:
        kind: the library.
        raw: the model in its own format, uint8; empty before the training.
    """

    raw: Tensor

    def __init__(self, kind: str, classes: int, counts: tuple[int, ...], linear: bool = False) -> None:
        super().__init__(self._answered, 4096)
        self.kind, self.classes, self.counts, self.linear = kind, classes, counts, linear
        self.input_shape = (len(counts),)
        self.register_buffer("raw", torch.zeros(0, dtype=torch.uint8))
        self._trees: trees.Trees | None = None

    def learn(self, x: Tensor, y: Tensor, seed: int) -> None:
        train = {
            trees.XGBOOST: self._xgboost, trees.LIGHTGBM: self._lightgbm, trees.SKOPS: self._scikit
        }[self.kind]  # fmt: skip
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

    def _scikit(self, x: Any, y: Any, seed: int) -> bytes:
        import skops.io
        from sklearn.ensemble import RandomForestClassifier
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        forest = RandomForestClassifier(
            FOREST, min_samples_leaf=LEAF, max_depth=3 * DEPTH, random_state=seed % 2**31, n_jobs=1
        )
        linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
        return bytes(skops.io.dumps((linear if self.linear else forest).fit(x.astype(np.float64), y)))

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Models differ in length, which a buffer of a fixed size would not take."""
        if (found := state.get(f"{prefix}raw")) is not None:
            self.raw, self._trees = found.clone(), None
        super()._load_from_state_dict(state, prefix, *rest)

    def __deepcopy__(self, memo: dict[int, Any]) -> LibraryModel:
        twin = LibraryModel(self.kind, self.classes, self.counts, self.linear)
        twin.raw, twin._trees = self.raw.clone(), self._trees
        return twin


def xgboost_trees(classes: int = 2, *counts: int) -> LibraryModel:
    """80 trees of XGBoost, of depth 5."""
    return LibraryModel(trees.XGBOOST, classes, counts)


def lightgbm_trees(classes: int = 2, *counts: int) -> LibraryModel:
    """80 trees of LightGBM, of up to 31 leaves."""
    return LibraryModel(trees.LIGHTGBM, classes, counts)


def random_forest(classes: int = 2, *counts: int) -> LibraryModel:
    """40 trees of scikit-learn, of depth 15 at most; categories are numbers to them."""
    return LibraryModel(trees.SKOPS, classes, counts)


def logistic_regression(classes: int = 2, *counts: int) -> LibraryModel:
    """Scaled columns and a linear map, of scikit-learn; categories are numbers to it."""
    return LibraryModel(trees.SKOPS, classes, counts, linear=True)
