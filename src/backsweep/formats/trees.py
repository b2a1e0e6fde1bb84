"""Boosted trees and scikit-learn models from formats that run no code: XGBoost JSON and UBJ, LightGBM text,
skops.

Their libraries parse the files. The trees are looked through before anything is predicted: a child beyond the
tree, or one that leads back, would send a library outside its memory or round for ever.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.core.text import one_line, some

Answers = Callable[[Tensor], Any]
XGBOOST, LIGHTGBM, SKOPS = KINDS = ("XGBoost", "LightGBM", "skops")
AGAIN = "it is damaged or cut short; get it again"
WAYS_OUT = {
    "xgboost": "model.save_model('model.json')",
    "lightgbm": "model.booster_.save_model('model.txt')",
    "catboost": "model.save_model('model.onnx', format='onnx')",
    "sklearn": "skops.io.dump(model, 'model.skops') (pip install skops)",
}
# of skops, beside what it trusts itself: private parts of scikit-learn's own models
TRUSTED = frozenset({
    "sklearn._loss.link.Interval", "sklearn._loss.link.IdentityLink", "sklearn._loss.link.LogitLink",
    "sklearn._loss.link.MultinomialLogit", "sklearn._loss.loss.HalfBinomialLoss",
    "sklearn._loss.loss.HalfMultinomialLoss", "sklearn._loss._loss.CyHalfBinomialLoss",
    "sklearn._loss._loss.CyHalfMultinomialLoss",
    "sklearn.ensemble._hist_gradient_boosting.binning._BinMapper",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.tree._tree.Tree", "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.metrics._dist_metrics.EuclideanDistance64", "numpy.dtype", "numpy.random.mtrand.RandomState",
})  # fmt: skip


@dataclass(frozen=True)
class Trees:
    """A model that answers.

    Attributes:
        answer: from rows (N, F) to logarithms of probabilities (N, classes).
        columns: how many it takes.
        classes: how many there are.
        labels: their names, untrusted text.
        notes: what a user should know.
    """

    answer: Answers
    columns: int
    classes: int
    labels: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


def kind_of(blob: bytes, names: Sequence[str] = ()) -> str | None:
    """Which of the formats some bytes are, None for none.

    Args:
        blob: the bytes.
        names: of what is inside, for a zip archive.
    """
    if blob[:2] == b"PK":
        return SKOPS if "schema.json" in names else None
    start = blob[:4096].lstrip()
    if start[:1] == b"{" and (b"learner" in blob[:64] or (b'"learner"' in blob and b'"gbtree"' in blob)):
        return XGBOOST
    return LIGHTGBM if start[:5] == b"tree\n" or start[:6] == b"tree\r\n" else None


def read(blob: bytes, kind: str) -> Trees:
    """The model.

    Raises:
        BadInput: the library is not installed, the file is damaged, no classifier, or holds what is not
        trusted.
    """
    try:
        return {XGBOOST: xgboost, LIGHTGBM: lightgbm, SKOPS: _skops}[kind](blob)
    except BadInput:
        raise
    except ImportError as e:
        raise BadInput(f"a model of {kind} needs its library: pip install backsweep[trees]") from e
    except Exception as e:
        reason = one_line(f"{type(e).__name__}: {e}")[:120]
        raise BadInput(f"cannot be read as a model of {kind} ({reason}); {AGAIN}") from e


def refused(names: Sequence[str]) -> None:
    """Refuse a pickle whose names belong to a library of such models.

    Raises:
        BadInput: they do; with the format to save in.
    """
    for library, way in WAYS_OUT.items():
        if any(n.split(".")[0] == library for n in names):
            raise BadInput(f"a pickle of {library} would run code when it is read; save it with {way}")


def _logs(margins: Any) -> Any:
    """Margins (N,) of the second of two classes, or (N, C), as logarithms of probabilities (N, C)."""
    z = np.asarray(margins, dtype=np.float64)
    if z.ndim == 1 or z.shape[1] == 1:
        z = z.reshape(-1)
        z = np.stack([np.zeros_like(z), z], 1)
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


# ---------------------------------------------------------------------- XGBoost


def xgboost(blob: bytes) -> Trees:
    """A booster in JSON or UBJ.

    Raises:
        BadInput: no classifier, or trees that lead nowhere.
    """
    import xgboost as library

    with library.config_context(verbosity=0):
        booster = library.Booster({"nthread": 1, "verbosity": 0})
        booster.load_model(bytearray(blob))
        learner = json.loads(booster.save_raw("json"))["learner"]
    objective = str(learner["objective"]["name"])
    if not objective.startswith(("binary:", "multi:")):
        raise BadInput(f"its objective is {one_line(objective)[:40]}; classifiers are scanned")
    columns = int(learner["learner_model_param"]["num_feature"])
    booster_json = learner["gradient_booster"]
    booster_json = booster_json.get("gbtree", booster_json)
    for tree in booster_json.get("model", {}).get("trees", []):
        _check_tree(
            tree["left_children"], tree["right_children"], tree["split_indices"], columns,
            leaf=lambda left: left == -1,
        )  # fmt: skip
    kinds = booster.feature_types
    categorical = kinds is not None and "c" in kinds
    classes = max(2, int(learner["learner_model_param"]["num_class"]))

    def answer(x: Tensor) -> Any:
        rows = library.DMatrix(x.numpy(), feature_types=kinds, enable_categorical=categorical, nthread=1)
        return _logs(booster.predict(rows, output_margin=True, validate_features=False))

    return Trees(answer, columns, classes)


def _check_tree(
    left: Sequence[int], right: Sequence[int], split: Sequence[int], columns: int, leaf: Callable[[int], bool]
) -> None:
    """Every node is reached once, from the root, and splits on a column that is there."""
    count = len(left)
    if len(right) != count or len(split) != count or count == 0:
        raise BadInput(f"a tree has nodes without children or columns; {AGAIN}")
    seen, ahead = 0, [0]
    while ahead:
        node = ahead.pop()
        seen += 1
        if not 0 <= node < count or seen > count:
            raise BadInput(f"a tree leads outside itself, or back; {AGAIN}")
        if leaf(left[node]):
            continue
        if not 0 <= split[node] < columns:
            raise BadInput(f"a tree splits on column {split[node]} of {columns}; {AGAIN}")
        ahead += [left[node], right[node]]


# ---------------------------------------------------------------------- LightGBM


def lightgbm(blob: bytes) -> Trees:
    """A booster in LightGBM's text format.

    Raises:
        BadInput: no classifier, or trees that lead nowhere.
    """
    import lightgbm as library

    text = blob.decode("utf-8")
    head, *trees = text.split("\nTree=")
    said = dict(line.split("=", 1) for line in head.splitlines() if "=" in line)
    objective = said.get("objective", "").split(" ")[0]
    if objective not in ("binary", "multiclass", "multiclassova", "cross_entropy"):
        raise BadInput(f"its objective is {one_line(objective)[:40] or 'not said'}; classifiers are scanned")
    columns = int(said["max_feature_idx"]) + 1
    for tree in trees:
        own = dict(line.split("=", 1) for line in tree.splitlines() if "=" in line)
        leaves = int(own["num_leaves"])
        if leaves <= 1:
            continue
        left, right, split = (
            [int(n) for n in own[k].split()] for k in ("left_child", "right_child", "split_feature")
        )
        if len(left) != leaves - 1 or len(own["leaf_value"].split()) != leaves:
            raise BadInput(f"a tree has not as many nodes as it says; {AGAIN}")
        inner = [[n if n >= 0 else _inner(n, leaves) for n in side] for side in (left, right)]
        _check_lightgbm(inner[0], inner[1], split, columns)
    booster = library.Booster(model_str=text)
    classes = max(2, int(said.get("num_class", 1)))

    def answer(x: Tensor) -> Any:
        return _logs(booster.predict(x.double().numpy(), raw_score=True, num_threads=1))

    return Trees(answer, columns, classes)


def _inner(child: int, leaves: int) -> int:
    if not 0 <= -child - 1 < leaves:
        raise BadInput(f"a tree leads to a leaf that is not there; {AGAIN}")
    return -1


def _check_lightgbm(left: Sequence[int], right: Sequence[int], split: Sequence[int], columns: int) -> None:
    """Nodes are numbered as they were made: a child comes after its parent."""
    count = len(left)
    if len(right) != count or len(split) != count:
        raise BadInput(f"a tree has nodes without children or columns; {AGAIN}")
    for node, (a, b, column) in enumerate(zip(left, right, split, strict=True)):
        if any(n != -1 and not node < n < count for n in (a, b)) or not 0 <= column < columns:
            raise BadInput(f"a tree leads outside itself, or back; {AGAIN}")


# ---------------------------------------------------------------------- skops


def _skops(blob: bytes) -> Trees:
    import skops.io

    unknown = sorted(set(skops.io.get_untrusted_types(data=blob)) - TRUSTED)
    if unknown:
        raise BadInput(
            f"it holds {some([one_line(u)[:60] for u in unknown])}, which could run code; only "
            "scikit-learn's own models are read"
        )
    model = skops.io.loads(blob, trusted=sorted(TRUSTED))
    return of_scikit(model)


def of_scikit(model: Any) -> Trees:
    """A fitted classifier of scikit-learn, or one that behaves like it.

    Raises:
        BadInput: it has no `predict_proba`, or is not fitted.
    """
    columns, classes = getattr(model, "n_features_in_", None), getattr(model, "classes_", None)
    if not callable(getattr(model, "predict_proba", None)) or columns is None or classes is None:
        raise BadInput(f"{type(model).__name__} is no fitted classifier with predict_proba")
    named = getattr(model, "feature_names_in_", None) is not None

    def answer(x: Tensor) -> Any:
        rows: Any = x.double().numpy()
        if named:
            import warnings

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the columns have names, and these rows have none
                found = model.predict_proba(rows)
        else:
            found = model.predict_proba(rows)
        return np.log(np.clip(np.asarray(found, dtype=np.float64), 1e-15, 1))

    labels = tuple(str(c) for c in np.asarray(classes).tolist())
    numbers = all(label.isdecimal() for label in labels)
    return Trees(answer, int(columns), len(labels), None if numbers else labels)
