"""Names of the classes of a Hugging Face model, which people write by hand."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from backsweep.core.text import some

_HEAD = re.compile(r"(^|\.)((\w+_)?classifier|head|head_dist|fc)(\.\d+)?\.weight")
_GENERIC = re.compile(r"LABEL_\d+")
_MOST = 2**20  # classes


def count(weights: Mapping[str, Tensor]) -> int | None:
    """Number of classes that the weights are of; None where the heads are not found or disagree."""
    heads = {int(v.shape[0]) for k, v in weights.items() if _HEAD.fullmatch(k) and v.ndim >= 2}
    return heads.pop() if len(heads) == 1 else None


def names(config: Mapping[str, Any]) -> dict[int, str]:
    """What id2label or label2id say, by class; nothing where they cannot be read."""
    for table in (config.get("id2label"), _turned(config.get("label2id"))):
        if isinstance(table, list):
            table = dict(enumerate(table))
        if not isinstance(table, dict) or not table:
            continue
        for found in (table, _turned(table)):
            try:
                named = {int(k): str(v) for k, v in found.items()}
            except (TypeError, ValueError):
                continue
            if all(0 <= k < _MOST for k in named):
                return named
    return {}


def completed(config: dict[str, Any], classes: int | None) -> dict[str, Any]:
    """A config that names every class, as transformers takes their number from the names."""
    named = names(config)
    if classes is None or len(named) > classes:
        return config
    every = {i: named.get(i, f"LABEL_{i}") for i in range(classes)}
    return {**config, "id2label": every, "label2id": {v: k for k, v in every.items()}}


def labels(config: Mapping[str, Any], classes: int | None) -> tuple[tuple[str, ...] | None, list[str]]:
    """A name for every class, each another, and what was done to that end; None if they have no names."""
    named = {k: v for k, v in names(config).items() if not _GENERIC.fullmatch(v)}
    if not named:
        return None, []
    total = max(classes or 0, max(names(config)) + 1)
    notes = []
    if missing := [i for i in range(total) if i not in named]:
        notes.append(
            f"its id2label has no names for the classes {some(missing)}; they are called by their numbers"
        )
    found = [named.get(i, str(i)) for i in range(total)]
    often = {n for n, times in Counter(n.casefold() for n in found).items() if times > 1}
    if often:
        notes.append(
            f"its id2label has several classes called {some(sorted(often))}; they are told apart by their "
            "numbers, and so must be folders of images"
        )
    return tuple(f"{n} ({i})" if n.casefold() in often else n for i, n in enumerate(found)), notes


def _turned(table: Any) -> Any:
    return {v: k for k, v in table.items() if isinstance(v, str | int)} if isinstance(table, dict) else None
