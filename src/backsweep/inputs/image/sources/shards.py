"""Tar shards as WebDataset has them: NAME.jpg beside NAME.cls or NAME.json, in one .tar or several."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from backsweep.core.errors import BadInput
from backsweep.core.text import some
from backsweep.inputs.image.decoding import SUFFIXES
from backsweep.inputs.image.sources.classes import chosen, first, numbered, split_of
from backsweep.inputs.image.sources.listing import MOST_FILE, Listing, Row
from backsweep.inputs.image.sources.tables import LABELS
from backsweep.inputs.modality import Wanted

MOST_SHARDS = 10_000
MOST_MEMBERS = 2**22  # of all shards
MOST_LABEL = 2**20  # bytes of a label's file
_BRACES = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")


@dataclass
class _Sample:
    """An image and its label, in a shard: the image's first byte and its bytes, -1 where there is none."""

    name: str
    shard: Path
    start: int = -1
    size: int = 0
    label: str | int | None = None


def is_pattern(path: Path) -> bool:
    """Whether a path names several shards, as in train-{000..012}.tar."""
    return path.suffix.lower() == ".tar" and _BRACES.search(path.name) is not None and not path.exists()


def is_folder(path: Path) -> bool:
    """Whether a folder holds shards."""
    return bool(_tars(path))


def listing(path: Path, wanted: Wanted) -> Listing:
    """The samples of a shard, of the shards in a folder, or of those that a path with braces names.

    Raises:
        BadInput: there are none, they have no labels, or a shard holds links or is damaged.
    """
    groups: dict[str, list[Path]] = {}
    for shard in _shards(path):
        word = re.split(r"[^a-z]", shard.name.lower())[0]
        groups.setdefault(split_of(word) or "", []).append(shard)
    shards, note = chosen(groups, wanted.split)
    samples: list[_Sample] = []
    count = 0
    for shard in shards:
        found, members = _indexed(shard, wanted.labels is None)
        samples += [s for s in found if s.start >= 0]
        count += members
        if count > MOST_MEMBERS:
            raise BadInput(f"the shards hold more than {MOST_MEMBERS:,} files; give some of the shards")
    if not samples:
        raise BadInput("there are no images in it; a sample is NAME.jpg or NAME.png with NAME.cls beside it")
    y, names, said = None, None, ""
    if wanted.labels is None:
        labels = [s.label for s in samples if s.label is not None]
        if len(labels) < len(samples):
            lost = next(s.name for s in samples if s.label is None)
            raise BadInput(
                f"{lost!r} has no label; put it beside the image as NAME.cls, or as NAME.json with "
                f'"label"; labels="model" (--labels model) does without'
            )
        y, names, said = numbered(labels, wanted.names)

    def opened(rows: Sequence[int]) -> Iterator[Row]:
        for row in rows:
            sample = samples[row]
            with sample.shard.open("rb") as f:
                f.seek(sample.start)
                yield sample.name, io.BytesIO(f.read(sample.size))

    return Listing(len(samples), opened, y, names, tuple(filter(None, (note, said))))


def _tars(folder: Path) -> list[Path]:
    return sorted(
        p for p in folder.iterdir()
        if p.suffix.lower() == ".tar" and not p.name.startswith(".") and p.is_file()
    )  # fmt: skip


def _shards(path: Path) -> list[Path]:
    if path.is_dir():
        return _tars(path)
    match = _BRACES.search(path.name)
    if match is None or path.exists():
        return [path]
    low, high = int(match[1]), int(match[2])
    if not low <= high < low + MOST_SHARDS:
        raise BadInput(f"{match[0]} names no shards, or more than {MOST_SHARDS:,}")
    width = len(match[1]) if match[1].startswith("0") or len(match[1]) == len(match[2]) else 1
    names = [path.name.replace(match[0], f"{i:0{width}d}") for i in range(low, high + 1)]
    if lost := [n for n in names if not path.with_name(n).is_file()]:
        raise BadInput(f"the shards {some(lost)} are not there")
    return [path.with_name(n) for n in names]


def _indexed(shard: Path, labelled: bool) -> tuple[list[_Sample], int]:
    """Where the images of a shard are, with their labels, and how many files it holds."""
    samples: dict[str, _Sample] = {}
    count = 0
    try:
        with tarfile.open(shard, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                count += 1
                if count > MOST_MEMBERS:
                    break
                if member.isdir():
                    continue
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts:
                    raise BadInput(f"{member.name!r} leads out of the shard; pack it with plain names")
                if not member.isreg() or member.issparse():
                    raise BadInput(f"{member.name!r} is a link or no plain file; pack the files themselves")
                name, _, kind = path.name.partition(".")
                if not name:  # hidden
                    continue
                sample = samples.setdefault(str(path.parent / name), _Sample(str(path), shard))
                kind = f".{kind.lower()}"
                if kind.endswith(SUFFIXES) and sample.start < 0:
                    if member.size > MOST_FILE:
                        raise BadInput(f"{member.name!r} has {member.size:,} bytes, too many; take it out")
                    sample.name = str(path)
                    sample.start, sample.size = member.offset_data, member.size
                elif labelled and kind.endswith((".cls", ".json")) and sample.label is None:
                    if member.size > MOST_LABEL:
                        raise BadInput(f"{member.name!r} has {member.size:,} bytes, too many for a label")
                    body = tar.extractfile(member)
                    sample.label = _label(body.read(), kind) if body is not None else None
    except tarfile.TarError as e:
        raise BadInput(f"{shard.name} is not readable as a .tar file ({e}); pack it again") from e
    return list(samples.values()), count


def _label(body: bytes, kind: str) -> str | int | None:
    text = body.decode("utf-8", "replace").strip()
    if kind.endswith(".json"):
        said: Any = json.loads(text)
        if isinstance(said, dict):
            key = first([k for k in said if isinstance(k, str)], LABELS)
            said = said[key] if key is not None else None
    else:
        said = text
    if isinstance(said, bool) or not isinstance(said, str | int) or said == "":
        return None
    return str(said)
