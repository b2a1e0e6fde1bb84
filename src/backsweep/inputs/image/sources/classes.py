"""Which class a folder, a word in a table or a label in a file is, and which split is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.core.text import some
from backsweep.inputs.modality import Names

SPLITS = {
    "train": "train", "training": "train", "tr": "train", "test": "test", "testing": "test", "te": "test",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
}  # fmt: skip
MOST_CLASSES = 100_000
MOST_LETTERS = 200  # of the name of a class
T = TypeVar("T")


def classes(folders: Sequence[str], names: Sequence[str] | None, what: str = "folder") -> tuple[
    dict[str, int], Names, str
]:  # fmt: skip
    """Class of every folder, the names of the classes, and a note.

    By its name, else the number that it is named, else in sorted order.

    Args:
        folders: their names, each once.
        names: of the model's classes.
        what: what is named so, for messages.

    Raises:
        BadInput: some are classes of the model and others are not.
    """
    numbers = {f: int(f) for f in folders if f.isdecimal() and len(f) < 9}
    note = ""
    if names:
        index = {n.casefold(): i for i, n in enumerate(names)}
        known = {f: n for f, n in numbers.items() if n < len(names)}
        known |= {f: index[f.casefold()] for f in folders if f.casefold() in index}
        lost = [f for f in folders if f not in known]
        if not lost:
            return known, tuple(names), ""
        if known or len(folders) != len(names):
            raise BadInput(
                f"the {what}s {some(lost)} match none of the model's {len(names)} classes, {some(names)}; "
                f"name every {what} after a class, or by the number of its class from 0"
            )
        if len(numbers) < len(folders):
            note = f"the {what}s match no name of the model's classes: sorted, they are its classes from 0 on"
    if len(numbers) == len(folders):
        most = max(numbers.values(), default=0)
        return numbers, tuple(map(str, range(most + 1))) if most < MOST_CLASSES else None, ""
    return {f: i for i, f in enumerate(sorted(folders))}, tuple(sorted(folders)), note


def numbered(
    labels: Sequence[str | int], names: Sequence[str] | None, own: Sequence[str] | None = None
) -> tuple[Tensor, Names, str]:
    """Class indices (N,), names of the classes and a note, for a label each: numbers from 0, or words.

    Args:
        labels: as they stand in the file.
        names: of the model's classes.
        own: names of the numbers, where the file has them.

    Raises:
        BadInput: numbers and words are mixed, or words match the model's classes in part.
    """
    kinds = {type(label) for label in labels}
    if kinds == {int}:
        return torch.tensor(labels), tuple(own) if own else tuple(names) if names else None, ""
    words = [word(label) for label in labels]
    distinct = sorted(set(words))
    if len(distinct) > MOST_CLASSES:
        raise BadInput(f"there are {len(distinct):,} different labels; give one class name each")
    index, called, note = classes(distinct, names, "label")
    return torch.tensor([index[w] for w in words]), called, note


def word(label: str | int | bytes) -> str:
    """A label as text that can be written anywhere."""
    text = label.decode("utf-8", "replace") if isinstance(label, bytes) else str(label)
    return text.encode("utf-8", "replace").decode().strip()[:MOST_LETTERS]


def chosen(splits: Mapping[str, T], asked: str | None) -> tuple[T, str]:
    """One of several splits, and a note where there was a choice.

    Args:
        splits: by name; "" is what belongs to none.
        asked: the one that is wanted; None takes the test split, else the validation split.

    Raises:
        BadInput: there is no such split.
    """
    called = [name or "without a name" for name in splits]
    if asked is not None:
        if (name := SPLITS.get(asked.lower(), asked)) in splits:
            return splits[name], ""
        if asked in splits:
            return splits[asked], ""
        raise BadInput(f"there is no split {asked!r}, only {some(called)}; leave it out, or name one of them")
    name = next((n for n in ("test", "val", "") if n in splits), next(iter(splits)))
    if len(splits) == 1:
        return splits[name], ""
    others = ", ".join(sorted(c for c, n in zip(called, splits, strict=True) if n != name))
    return splits[name], f"the split {name or 'without a name'} was read, not {others} (--split NAME)"


def split_of(text: str) -> str | None:
    """The split that a name or a part of it stands for, None for none."""
    return SPLITS.get(text.lower())


def first(names: Iterable[str], wanted: Sequence[str]) -> str | None:
    """The first of the wanted names that is there, whatever its case."""
    there = {n.lower(): n for n in reversed(list(names))}
    return next((there[w] for w in wanted if w in there), None)
