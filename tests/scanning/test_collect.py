"""Units, the log that survives a kill, and progress."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import backsweep
from backsweep.core.progress import Event
from backsweep.core.seeds import derive_seed
from backsweep.models.model import Model
from backsweep.reports.report import Evidence
from backsweep.scanning.collect import LOG, collect
from backsweep.scanning.detector import Unit
from backsweep.scanning.detectors.neural_cleanse import NeuralCleanse
from conftest import Twins


class Stopping(NeuralCleanse):
    """Is interrupted before one of its classes."""

    def probe(self, model: Any, data: Any, units: Sequence[Unit], *rest: Any) -> list[Evidence]:
        if units[0].target == 4:
            raise KeyboardInterrupt
        return super().probe(model, data, units, *rest)


def values(found: list[Evidence]) -> list[dict[str, Any]]:
    return [dict(e.values) for e in found]


def test_an_interrupted_scan_goes_on_where_it_stopped(twins: Twins, tmp_path: Path) -> None:
    model = twins.clean.copy("cpu")
    with pytest.raises(KeyboardInterrupt):
        list(collect(Stopping(steps=5), model, twins.data, 0, "key", tmp_path))
    assert len((tmp_path / LOG).read_text().splitlines()) == 4
    events: list[Event] = []
    resumed = list(collect(Singles(steps=5), model, twins.data, 0, "key", tmp_path, events.append))
    assert events[0].resumed == 4
    assert events[-1].done == events[-1].total == 10
    whole = list(collect(Singles(steps=5), model, twins.data, 0, "key"))
    assert values(resumed) == values(whole)
    assert all(e.trigger is not None for e in resumed)


class Singles(NeuralCleanse):
    """Takes one class at a time."""

    def chunk(self, model: Model) -> int:
        return 1


def test_torn_lines_lost_triggers_and_other_keys_are_done_again(twins: Twins, tmp_path: Path) -> None:
    model, detector = twins.clean.copy("cpu"), Singles(steps=2)
    list(collect(detector, model, twins.data, 0, "key", tmp_path))
    log = tmp_path / LOG
    lines = log.read_text().splitlines()
    log.write_text("\n".join([*lines[:6], "[]", "17", lines[6][: len(lines[6]) // 2]]))
    (tmp_path / "triggers" / "neural_cleanse-class-0.safetensors").write_bytes(b"torn")
    (tmp_path / "triggers" / "neural_cleanse-class-1.safetensors").unlink()
    events: list[Event] = []
    found = list(collect(detector, model, twins.data, 0, "key", tmp_path, events.append))
    assert events[0].resumed == 4
    assert len(found) == 10
    list(collect(detector, model, twins.data, 0, "another key", tmp_path, events.append))
    assert events[-11].resumed == 0


def test_a_log_cannot_point_outside_its_folder(twins: Twins, tmp_path: Path) -> None:
    model, detector = twins.clean.copy("cpu"), Singles(steps=2)
    list(collect(detector, model, twins.data, 0, "key", tmp_path))
    raw = json.loads((tmp_path / LOG).read_text().splitlines()[0])
    raw["trigger"] = "../../elsewhere.safetensors"
    (tmp_path / LOG).write_text(json.dumps(raw) + "\n")
    events: list[Event] = []
    list(collect(detector, model, twins.data, 0, "key", tmp_path, events.append))
    assert events[0].resumed == 0


def test_time_left_is_told_from_fresh_work_only() -> None:
    assert Event("x", 4, 10, 4, 0.0).seconds_left is None
    assert Event("x", 6, 10, 4, 10.0).seconds_left == pytest.approx(20.0)


def test_a_seed_hangs_on_what_is_done_and_on_nothing_else() -> None:
    assert derive_seed(1, "a", "b") == derive_seed(1, "a", "b")
    assert len({derive_seed(s, "a", u) for s in range(10) for u in "xyz"}) == 30


def test_a_second_scan_with_the_same_out_is_read_back(twins: Twins, tmp_path: Path) -> None:
    detector = Singles(steps=5)
    first = backsweep.scan(twins.infected, twins.data, detector, device="cpu", out=tmp_path)
    events: list[Event] = []
    again = backsweep.scan(
        twins.infected, twins.data, detector, device="cpu", out=tmp_path, on_event=events.append
    )
    assert next(e.resumed for e in events if e.total == 10) == 10
    assert [f.score for f in again.findings] == [f.score for f in first.findings]
    assert values(again.evidence) == values(first.evidence)
