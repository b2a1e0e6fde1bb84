"""A folder with one folder of images, or other files of one kind, per class, or without classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from backsweep.core.errors import BadInput
from backsweep.inputs.image.decoding import SUFFIXES
from backsweep.inputs.image.sources.classes import chosen, classes, split_of
from backsweep.inputs.image.sources.listing import Listing, Row
from backsweep.inputs.modality import Wanted

WANTED = "a folder with one folder of images per class, or an .npz file: np.savez(path, x=images, y=labels)"
SOUNDS = "for a network over waveforms say its sample rate, rate=16000 (--rate 16000)"


@dataclass(frozen=True)
class Files:
    """Which files are looked for.

    Attributes:
        noun: what they hold.
        suffixes: of their names.
        wanted: what a user may give.
    """

    noun: str = "image"
    suffixes: tuple[str, ...] = SUFFIXES
    wanted: str = WANTED


IMAGES = Files()


def listing(path: Path, wanted: Wanted, files_of: Files = IMAGES) -> Listing:
    """The images in a folder, class by class; or other files.

    Raises:
        BadInput: there are none, or a folder is no class.
    """
    folders = sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    inside = {folder: images(path / folder, kind=files_of) for folder in folders}
    files = [file for folder in folders for file in inside[folder]]
    if wanted.labels is not None:
        loose = images(path, False, files_of)
        if not loose and not files:
            raise BadInput(f"there are no {files_of.noun}s in it; give {files_of.wanted}")
        return Listing(len(loose) + len(files), _opened(path, loose + files), None)
    if not files:
        way = ""
        if images(path, False, files_of):
            way = '; if it has no labels, --labels model (labels="model") takes the model\'s own answers'
        raise BadInput(f"there are no {files_of.noun}s in folders of classes; give {files_of.wanted}{way}")
    full = [f for f in folders if inside[f]]
    if all(split_of(f) and not images(path / f, False, files_of) for f in full):  # train/cat/1.png
        folder, note = chosen({split_of(f) or f: path / f for f in full}, wanted.split)
        found = listing(folder, replace(wanted, split=None), files_of)
        return replace(found, notes=(*((note,) if note else ()), *found.notes))
    if wanted.split is not None:
        raise BadInput(f"there is no split {wanted.split!r}: it has no folders train, test or val of classes")
    index, names, note = classes(full, wanted.names)
    if not wanted.names and not all(f.isdecimal() for f in full):
        index, names, note = classes(folders, None)  # an empty folder is a class without images
    y = torch.tensor([index[folder] for folder in folders for _ in inside[folder]])
    return Listing(len(files), _opened(path, files), y, names, (note,) if note else ())


def _opened(path: Path, files: Sequence[Path]) -> Callable[[Sequence[int]], Iterator[Row]]:
    def opened(rows: Sequence[int]) -> Iterator[Row]:
        return ((str(files[row].relative_to(path)), files[row]) for row in rows)

    return opened


def images(folder: Path, below: bool = True, kind: Files = IMAGES) -> list[Path]:
    """The image files, or those of another kind, in a folder and, `below`, in the folders in it."""
    found = []
    for file in sorted([*folder.glob("*"), *(folder.glob("*/*") if below else ())]):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if file.suffix.lower() == ".wav" and not hidden and kind == IMAGES:
            raise BadInput(f"sounds ({folder.name}/{file.name}) are no images; {SOUNDS}")
        if file.suffix.lower() in kind.suffixes and not hidden and file.is_file():
            found.append(file)
    return found
