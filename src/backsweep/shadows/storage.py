"""The shadow networks of a bank on disk: one safetensors file for each group that was trained together.

A group's header says which shadows it holds, of which architecture, and what they were trained from (`key`),
so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from backsweep.core import documents
from backsweep.core.errors import BadInput
from backsweep.core.files import write_bytes
from backsweep.formats.building import named
from backsweep.models.grouped import Wide
from backsweep.shadows.training import Group

HEADER = "backsweep.shadows"
TROJANED = ":trojaned"  # no name of a weight
WORKS = 0.5  # success rate from which a trigger counts as learnt
IN_MEMORY = 4 * 2**30  # bytes of shadows; more are read again in every epoch


class Shelf(Sequence[tuple[Wide, Tensor]]):
    """Shadows side by side, a few in each group; read again at each use where they are too large to keep.

    Args:
        folder: where they lie.
        about: archs, shape and classes, as the bank says.
        indices: which.
        size: shadows side by side.

    Raises:
        BadInput: some are missing.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], indices: range, size: int) -> None:
        self._shape, self._classes = tuple(about["shape"]), int(about["classes"])
        self._groups: list[tuple[str, list[tuple[Path, list[int]]]]] = []
        for arch in about["archs"]:
            rows: list[tuple[Path, int]] = []
            for file in sorted(folder.glob("*.safetensors")):
                facts = facts_of(file)
                if facts.get("arch") == arch:
                    rows += [(file, i) for i in range(facts["count"]) if facts["first"] + i in indices]
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                files = dict.fromkeys(file for file, _ in part)
                self._groups.append((arch, [(f, [i for g, i in part if g == f]) for f in files]))
        count = sum(len(i) for _, files in self._groups for _, i in files)
        if count != len(indices):
            raise BadInput(
                f"{folder} holds {count} of the {len(indices)} shadow networks; "
                "run `backsweep bank build` again"
            )
        every = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
        self._kept: dict[int, tuple[Wide, Tensor]] | None = {} if every <= IN_MEMORY else None

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: Any) -> Any:
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        arch, files = self._groups[index]
        parts = [({n: t[rows] for n, t in load_file(file).items()}) for file, rows in files]
        states = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        trojaned = states.pop(TROJANED)
        states = {n: t.float() if t.is_floating_point() else t for n, t in states.items()}
        wide = Wide(named(arch, self._classes, self._shape, 0), states, self._shape)
        group = wide.eval().requires_grad_(False), trojaned
        if self._kept is not None:
            self._kept[index] = group
        return group


def folder_of(path: Path) -> Path:
    """Folder of a bank's shadow networks."""
    return path.with_name(path.name + ".shadows")


def file_of(folder: Path, indices: Sequence[int]) -> Path:
    """File of a group."""
    return folder / f"{indices[0]:06d}.safetensors"


def write(path: Path, group: Group, facts: Mapping[str, Any]) -> None:
    """One group; floats in half precision, which takes half the room and changes no answer that counts."""
    states = {n: t.half() if t.is_floating_point() else t.clone() for n, t in group.states.items()}
    header = {
        **facts, "count": len(group.trojaned), "accuracy": group.accuracy.tolist(),
        "success": [None if s != s else s for s in group.success.tolist()],
    }  # fmt: skip
    content = {n: t.contiguous() for n, t in {**states, TROJANED: group.trojaned}.items()}
    write_bytes(path, save(content, metadata={HEADER: json.dumps(header)}))


def facts_of(path: Path) -> dict[str, Any]:
    """What the header of a group says; nothing when there is no such file, or a damaged one."""
    try:
        with safe_open(str(path), framework="pt") as f:
            found: dict[str, Any] = documents.read("shadows", (f.metadata() or {})[HEADER])
            return found
    except (OSError, SafetensorError, KeyError, ValueError):
        return {}


def key_of(path: Path) -> str | None:
    """What a group was trained from; None when it is not there."""
    return facts_of(path).get("key")


def measured(folder: Path) -> dict[str, float]:
    """Mean accuracy of all shadows and success rate of the trojaned ones, on what they were trained on."""
    facts = [facts_of(path) for path in sorted(folder.glob("*.safetensors"))]
    accuracy = [a for f in facts for a in f["accuracy"]]
    success = [s for f in facts for s in f["success"] if s is not None]
    return {
        "accuracy": round(sum(accuracy) / len(accuracy), 4), "success": round(sum(success) / len(success), 4),
        "work": round(sum(s >= WORKS for s in success) / len(success), 4),
    }  # fmt: skip
