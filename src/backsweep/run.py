"""Units of work -> evidence: order, progress, and a log that survives a kill.

With a folder, every finished unit is appended to `evidence.jsonl` at once. A later run of the same
scan (same model, data, settings, seed and versions: one key) takes from there what is done.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import backsweep
from backsweep.base import ModelDetector, Unit
from backsweep.data import Data
from backsweep.errors import BadInput
from backsweep.files import writable_folder
from backsweep.model import Model
from backsweep.report import Evidence, evidence_json, read_evidence, trigger_file

LOG = "evidence.jsonl"


@dataclass(frozen=True)
class Event:
    """Progress, for whoever listens (`on_event`).

    Attributes:
        stage: what is going on, e.g. a detector's name.
        done, total: units, in parts of a unit where known.
        resumed: units that an earlier run had already done.
        seconds: since the stage began.
        seconds_left: estimate, None while nothing is known.
    """

    stage: str
    done: float
    total: int
    resumed: int
    seconds: float

    @property
    def seconds_left(self) -> float | None:
        fresh = self.done - self.resumed
        return self.seconds / fresh * (self.total - self.done) if fresh > 0 else None


OnEvent = Callable[[Event], None]


def versions() -> dict[str, str]:
    """What a result was made with."""
    return {
        "backsweep": backsweep.__version__, "torch": torch.__version__, "python": platform.python_version(),
    }  # fmt: skip


def run_key(**parts: Any) -> str:
    """One key for all that a unit's result depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def collect(
    detector: ModelDetector,
    model: Model,
    data: Data,
    seed: int,
    key: str,
    folder: Path | None = None,
    on_event: OnEvent | None = None,
) -> Iterator[Evidence]:
    """Evidence of every unit of one detector, those of an earlier run first.

    Args:
        model: a frozen working copy.
        key: what the evidence hangs on (`run_key`); records with another key are not used.
        folder: where to log and resume; None keeps nothing.
        on_event: told about progress.
    """
    known = _read_log(folder, key, detector.name) if folder else {}
    begin, size = time.monotonic(), detector.chunk(model)
    gathered: list[Evidence] = []
    total = resumed = 0

    def tell(done: float) -> None:
        if on_event is not None:
            on_event(Event(detector.name, done, total, resumed, time.monotonic() - begin))

    units = list(detector.units(model, data))
    while units:
        kept = [known[u.key] for u in units if u.key in known]
        total, resumed = total + len(units), resumed + len(kept)
        gathered += kept
        yield from kept
        todo = [u for u in units if u.key not in known]
        tell(len(gathered))
        for start in range(0, len(todo), size):
            part: Sequence[Unit] = todo[start : start + size]
            clock = time.process_time()

            def tick(share: float, first: int = len(gathered), count: int = len(part)) -> None:
                tell(first + share * count)

            found = detector.probe(model, data, part, seed, tick)
            cost = (time.process_time() - clock) / len(part)
            for evidence in (replace(e, cpu_seconds=round(cost, 3)) for e in found):
                if folder is not None:
                    _append(folder, key, evidence)
                gathered.append(evidence)
                yield evidence
            tell(len(gathered))
        units = list(detector.more(model, data, gathered))


def _append(folder: Path, key: str, evidence: Evidence) -> None:
    if evidence.trigger is not None:
        path = folder / trigger_file(evidence.detector, evidence.unit)
        path.parent.mkdir(exist_ok=True)
        evidence.trigger.save(path)
    line = json.dumps({"key": key, **evidence_json(evidence)}, allow_nan=False)
    with (folder / LOG).open("a", encoding="utf-8") as f:
        f.write(line + "\n")


def _read_log(folder: Path, key: str, detector: str) -> dict[str, Evidence]:
    """Finished units of the same scan; a torn line or a lost trigger only means work done again."""
    found: dict[str, Evidence] = {}
    path = writable_folder(folder) / LOG
    if not path.is_file():
        return found
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            raw = json.loads(line)
            if raw.pop("key") == key and raw["detector"] == detector:
                found[raw["unit"]] = read_evidence(raw, folder)
        except (BadInput, ValueError, KeyError, TypeError, AttributeError):
            continue
    return found
