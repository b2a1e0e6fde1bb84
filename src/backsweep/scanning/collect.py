"""Units of work -> evidence: order, progress, and a log that survives a kill.

With a folder, every finished unit is appended to `evidence.jsonl` at once. A later run of the same
scan (same model, data, settings, seed and versions: one key) takes from there what is done. Which engine
computes a unit, and when, changes nothing.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from backsweep.core import documents
from backsweep.core.errors import BadInput
from backsweep.core.files import writable_folder
from backsweep.core.progress import Event, OnEvent
from backsweep.core.provenance import is_own
from backsweep.engine.engine import Engine
from backsweep.engine.jobs import Lost
from backsweep.inputs.samples import Data
from backsweep.models.model import Model
from backsweep.reports.report import Evidence, evidence_json, read_evidence, trigger_file
from backsweep.scanning.detector import ModelDetector, Unit

LOG = "evidence.jsonl"


class OutOfTime(Exception):
    """The budget ended before all was measured; says how far it came."""


def collect(
    detector: ModelDetector,
    model: Model,
    data: Data,
    seed: int,
    key: str,
    folder: Path | None = None,
    on_event: OnEvent | None = None,
    engine: Engine | None = None,
    until: float = math.inf,
) -> Iterator[Evidence]:
    """Evidence of every unit of one detector, in the order of the units.

    Args:
        model: a frozen working copy.
        key: what the evidence hangs on (`run_key`); records with another key are not used.
        folder: where to log and resume; None keeps nothing.
        on_event: told about progress: within a unit in this process, else after each.
        engine: where units are computed; None is this process.
        until: no unit is begun after this time of `time.monotonic`.

    Raises:
        Lost: the worker of a unit died at every try; raised when the others of its round are done.
        OutOfTime: units are left.
    """
    engine = engine or Engine()
    if engine.threads is not None and not detector.threads:
        engine = Engine()
    known = _read_log(folder, key, detector.name) if folder else {}
    begin = time.monotonic()
    gathered: list[Evidence] = []
    planned = sum(stage.units for stage in detector.plan(model, data))
    asked = total = resumed = finished = 0

    def tell(done: float) -> None:
        if on_event is not None:
            on_event(Event(detector.name, done, total, resumed, time.monotonic() - begin))

    def tick(share: float, first: int, count: int) -> None:
        tell(first + share * count)

    units = list(detector.units(model, data))
    while units:
        parts = [part for part in detector.parts(model, units) if any(u.key not in known for u in part)]
        again = {u.key for part in parts for u in part}
        found = {u.key: known[u.key] for u in units if u.key not in again}
        asked, resumed, finished = asked + len(units), resumed + len(found), finished + len(found)
        total = max(asked, planned)
        tell(finished)
        # drawn one by one: in this process `finished` counts what is done before a part begins
        jobs = (
            partial(
                _probe, detector, model, data, part, seed,
                partial(tick, first=finished, count=len(part)) if engine.here else _untold,
            )
            for part in parts if time.monotonic() < until
        )  # fmt: skip
        lost: dict[str, Lost] = {}
        for index, result in engine.run(jobs, shared=(model, data)):
            if isinstance(result, Lost):
                lost |= {u.key: result for u in parts[index]}
                continue
            for evidence in result:
                if folder is not None and evidence.unit not in known:
                    _append(folder, key, evidence)
                found[evidence.unit] = evidence
            finished += len(result)
            tell(finished)
        if len(found) < len(units) and not lost:
            raise OutOfTime(
                f"{finished} of {'' if asked < total else 'at least '}{total} units were measured"
            )
        gathered += [found[u.key] for u in units if u.key in found]
        yield from (found[u.key] for u in units if u.key in found)
        for name, why in lost.items():
            raise Lost(f"{len(lost)} units were lost, {name} first: {why}")
        units = list(detector.more(model, data, gathered))
    if finished < total:  # less was needed than was planned at most
        total = finished
        tell(finished)


def _probe(
    detector: ModelDetector,
    model: Model,
    data: Data,
    units: Sequence[Unit],
    seed: int,
    tick: Callable[[float], None],
) -> list[Evidence]:
    """A job: measure units that share a pass, and what that cost."""
    clock = time.thread_time()  # a job is one thread's
    found = detector.probe(model, data, units, seed, tick)
    if not is_own(detector) and (reason := _wrong(detector, units, found)):
        raise TypeError(reason)
    cost = (time.thread_time() - clock) / len(units)
    return [replace(e, cpu_seconds=round(cost, 3)) for e in found]


def _wrong(detector: ModelDetector, units: Sequence[Unit], found: Sequence[Evidence]) -> str:
    """Why this is not the evidence that was asked for, "" when it is; what is amiss would be lost unsaid."""
    if any(not isinstance(e, Evidence) or e.detector != detector.name for e in found):
        return f"probe gave something else than evidence of {detector.name}"
    if sorted(e.unit for e in found) != sorted(u.key for u in units):
        return "probe has to give one record of evidence for each unit that it is asked for"
    odd = [k for e in found for k, v in e.values.items() if not isinstance(v, int | float | str | None)]
    if odd:
        return f"the value {odd[0]!r} of the evidence is no plain number, text or None"
    try:
        for e in found:
            documents.check("report", evidence_json(e), "evidence")
    except documents.Misfit as e:
        return f"no report can hold the evidence: {e}"
    return ""


def _untold(_share: float) -> None:
    """A worker has nobody to tell."""


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
            raw = documents.read("evidence", line)
            if raw.pop("key") == key and raw["detector"] == detector:
                found[raw["unit"]] = read_evidence(raw, folder)
        except (BadInput, ValueError):
            continue
    return found
