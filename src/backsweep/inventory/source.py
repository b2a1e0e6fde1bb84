"""A model that can be scanned, and the models in a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

# What is taken from a folder. Those that are not readable are taken as well, to say so.
SUFFIXES = {
    ".safetensors", ".pt", ".pth", ".pt2", ".ckpt", ".onnx", ".h5", ".hdf5", ".keras", ".tflite",
}  # fmt: skip


_RESULTS = {"evidence.jsonl", "report.json"}  # a folder with one of these is of a scan


@dataclass(frozen=True)
class Source:
    """A model that can be scanned.

    Attributes:
        name: what it is called, untrusted text.
        stamp: another one when its content has changed.
        fetch: gives its path for as long as the context lasts.
    """

    name: str
    stamp: object
    fetch: Callable[[], AbstractContextManager[Path]]


def models_in(folder: Path) -> Iterator[Path]:
    """Model files and folders below a folder. Hidden ones and folders of scans are passed over."""
    for place, folders, files in os.walk(folder):
        here = Path(place)
        if _RESULTS & set(files):
            folders.clear()
            continue
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "triggers")
        inner = [f for f in folders if is_model(here / f)]
        own = [f for f in files if Path(f).suffix.lower() in SUFFIXES and not f.startswith(".")]
        yield from (here / name for name in sorted([*inner, *own]))
        folders[:] = [f for f in folders if f not in inner]


def is_model(folder: Path) -> bool:
    """Whether a folder is a model: of Hugging Face or TensorFlow, weights with an index, or an adapter."""
    if (folder / "adapter_config.json").is_file():
        return True
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return (folder / "saved_model.pb").is_file() or any(folder.glob("*.safetensors.index.json"))
    return isinstance(config, dict) and bool({"model_type", "architecture"} & set(config))
