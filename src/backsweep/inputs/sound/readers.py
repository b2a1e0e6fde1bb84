"""Sounds with labels from folders of files, lists of files and .npz archives: one rate, one length."""

from __future__ import annotations

import itertools
import math
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.core.text import one_line, some
from backsweep.inputs.image.sources import arrays, folders, tables
from backsweep.inputs.image.sources.arrays import array
from backsweep.inputs.image.sources.folders import Files
from backsweep.inputs.image.sources.listing import DAMAGED, LEAST, Listing, Row, sampled
from backsweep.inputs.modality import Found, Wanted
from backsweep.inputs.sound.decoding import SUFFIXES, Damaged, Decoded, checked_rate, decoded

WANTED = (
    "a folder with one folder of .wav, .flac or .ogg files per class, a .csv file with path and label, or "
    "an .npz file: np.savez(path, x=waveforms, y=labels, rate=16000)"
)
FILES = Files("sound", SUFFIXES, WANTED)
RATE_KEYS = ("rate", "sample_rate", "sampling_rate", "sr")
PART = 1024  # waveforms that are resampled at once
LOOKED = 1000  # names in a folder, to see whether it holds sounds


def read(path: Path, wanted: Wanted, rate: int) -> Found:
    """Waveforms (N, *shape) of 16 bits at a rate, labels and class names.

    Without a shape one second is read.

    Raises:
        BadInput: nothing readable is there, or too many files are damaged.
    """
    wanted = replace(wanted, shape=wanted.shape or (rate,))
    try:
        if path.is_dir():
            return _gathered(folders.listing(path, wanted, FILES), wanted, rate)
        if not path.is_file():
            raise BadInput("there is no such file or folder; check the path")
        suffix = path.suffix.lower()
        if suffix in (".csv", ".tsv"):
            return _gathered(tables.listing(path, wanted), wanted, rate)
        if suffix in SUFFIXES:
            raise BadInput(f"one sound is no set of samples; give {WANTED}")
        return _archive(path, wanted, rate)
    except BadInput:
        raise
    except Exception as e:
        reason = one_line(f"{type(e).__name__}: {e}")[:100]
        raise BadInput(f"not readable as sounds ({reason}); give {WANTED}") from e


def rate_of(path: Path) -> int | None:
    """The sample rate of what lies there, None where there are no sounds, or nothing that can be read."""
    try:
        if path.is_file() and path.suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as archive:
                return _said_rate(archive)
        where, shown = _first(path), path.name
        if where is None and path.is_file() and path.suffix.lower() in (".csv", ".tsv"):
            with path.open(encoding="utf-8", errors="replace") as f:
                if not any(s in f.read(2**16).lower() for s in SUFFIXES):
                    return None
            shown, found = next(tables.listing(path, Wanted(labels="model")).opened([0]))
            where = found if isinstance(found, Path) and shown.lower().endswith(SUFFIXES) else None
        return None if where is None else decoded(where, shown).rate
    except (BadInput, OSError, ValueError, zipfile.BadZipFile):  # whoever reads it says it better
        return None


def _first(path: Path, depth: int = 3) -> Path | None:
    """A sound in a folder, or in the first of its folders; of a large folder not all is looked at."""
    if not path.is_dir():
        return None
    entries = sorted(itertools.islice(path.iterdir(), LOOKED))
    sound = next((e for e in entries if e.suffix.lower() in SUFFIXES and e.is_file()), None)
    if sound is not None or depth == 0:
        return sound
    folders = (e for e in entries if e.is_dir() and not e.name.startswith("."))
    return next((f for e in itertools.islice(folders, 3) if (f := _first(e, depth - 1)) is not None), None)


# ---------------------------------------------------------------------- files


def _gathered(listing: Listing, wanted: Wanted, rate: int) -> Found:
    """The sounds of a listing, each read, resampled and cut or filled up; of too many a sample."""
    shape = wanted.shape or (rate,)
    rows, note = sampled(listing.count, listing.y, shape[-1], 2, wanted.whole)
    held, kept = torch.zeros((len(rows), shape[-1]), dtype=torch.int16), list[int]()
    done: Counter[str] = Counter()
    bad = list[str]()
    most = max(1, math.floor(DAMAGED * listing.count)) if listing.count >= LEAST else 0
    for row, (_, one) in zip(rows, _decoded(listing.opened(rows), bad, most), strict=True):
        if one is None:
            continue
        _count(done, one, shape[-1], rate)
        held[len(kept)] = fitted(resampled(one.samples, one.rate, rate), shape[-1])
        kept.append(row)
    if not kept:
        raise BadInput(f"there is no sound that can be read; give {WANTED}")
    x = held[: len(kept)].reshape(len(kept), *shape)
    notes = [*listing.notes, note, said(done, shape[-1], rate)]
    if bad:
        notes.append(f"{len(bad)} damaged sound{'s were' if len(bad) > 1 else ' was'} left out: {some(bad)}")
    y = None if listing.y is None else listing.y[torch.tensor(kept)]
    return Found(x, y, listing.names, tuple(filter(None, notes)))


def _decoded(rows: Iterator[Row], bad: list[str], most: int) -> Iterator[tuple[str, Decoded | None]]:
    for shown, where in rows:
        try:
            if where is None:
                raise Damaged(f"{shown} is not there; give it, or take it off the list")
            yield shown, decoded(where, shown)
        except Damaged as e:
            bad.append(shown)
            if len(bad) > most:
                more = f"; {len(bad)} sounds cannot be read, more than {DAMAGED:.0%}" if most else ""
                raise BadInput(f"{e}{more}") from e
            yield shown, None


def _count(done: Counter[str], one: Decoded, length: int, rate: int) -> None:
    """What is done to a sound, for the line that says it."""
    there = math.ceil(len(one.samples) * rate / one.rate)
    done["resampled"] += one.rate != rate
    done["mixed from several channels"] += one.mixed
    done["clipped to [-1, 1]"] += one.clipped
    done["filled up with silence at the end"] += there < length
    done["cut to the middle"] += there > length


def said(done: Counter[str], length: int, rate: int) -> str:
    """What was done to sounds, in one line; "" if nothing was."""
    parts = [f"{count:,} {what}" for what, count in done.items() if count]
    where = f"sounds were brought to {length:,} samples at {rate:,} a second: "
    return where + ", ".join(parts) if parts else ""


def resampled(x: Any, have: int, want: int) -> Any:
    """Waveforms (..., T) at another rate, by a polyphase filter (scipy)."""
    if have == want:
        return x
    from scipy.signal import resample_poly

    common = math.gcd(have, want)
    return resample_poly(x, want // common, have // common, axis=-1).astype(np.float32)


def fitted(x: Any, length: int) -> Tensor:
    """Waveforms (..., T), floats in [-1, 1], as 16-bit numbers (..., length): the middle, or with silence."""
    have = x.shape[-1]
    start = max(0, (have - length) // 2)
    part = torch.as_tensor(np.ascontiguousarray(x[..., start : start + length]))
    found = (part.float() * 32768).round().clamp(-32768, 32767).to(torch.int16)
    return torch.nn.functional.pad(found, (0, max(0, length - have)))


# ---------------------------------------------------------------------- arrays


def _said_rate(archive: zipfile.ZipFile) -> int | None:
    infos = {i.filename.removesuffix(".npy").lower(): i for i in archive.infolist()}
    key = next((k for k in RATE_KEYS if k in infos), None)
    if key is None:
        return None
    value = array(archive, infos[key])
    if value.numel() != 1:
        raise BadInput(f"{key} has {value.numel()} values; say one sample rate for all waveforms")
    return checked_rate(float(value), f"the array {key}")


def _archive(path: Path, wanted: Wanted, rate: int) -> Found:
    with zipfile.ZipFile(path) as archive:
        own = _said_rate(archive)
    found = arrays.read(path, replace(wanted, shape=None, resize=False))
    x, shape = found.x, wanted.shape or (rate,)
    if x.ndim == 3 and x.shape[1] == 1:
        x = x[:, 0]
    if x.ndim != 2:
        raise BadInput(
            f"x has shape {tuple(x.shape)}; waveforms are (samples, length), saved with their rate"
        )
    if own is None:
        raise BadInput("it has no rate; save it as np.savez(path, x=waveforms, y=labels, rate=16000)")
    done: Counter[str] = Counter()
    if own != rate or x.shape[1] != shape[-1]:
        done["resampled"] = len(x) * (own != rate)
        there = math.ceil(x.shape[1] * rate / own)
        done["filled up with silence at the end"] = len(x) * (there < shape[-1])
        done["cut to the middle"] = len(x) * (there > shape[-1])
        x = torch.cat([fitted(resampled(v, own, rate), shape[-1]) for v in _floats(x)])
    return replace(
        found,
        x=x.reshape(len(x), *shape),
        notes=tuple(filter(None, (*found.notes, said(done, shape[-1], rate)))),
    )


def _floats(x: Tensor) -> Iterator[Any]:
    """Parts of 16-bit or float waveforms as floats in [-1, 1].

    Raises:
        BadInput: they are neither, or go beyond that range.
    """
    for part in x.split(PART):
        if part.dtype == torch.int16:
            yield part.numpy().astype(np.float32) / 32768
        elif part.is_floating_point() and bool((part.abs() <= 1.0001).all()):
            yield part.float().numpy()
        else:
            raise BadInput(f"x is {part.dtype}, or outside [-1, 1]; give int16, or floats in [-1, 1]")
