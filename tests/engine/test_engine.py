"""Engines: the same results everywhere, and nothing lost when something dies."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import backsweep
from backsweep.bench import detectors
from backsweep.core.errors import BacksweepError, BadInput
from backsweep.core.progress import Event
from backsweep.engine.engine import Engine
from backsweep.engine.jobs import Lost
from backsweep.models.model import Model
from backsweep.reports.report import Report
from backsweep.scanning.collect import LOG
from backsweep.scanning.detector import ModelDetector
from backsweep.scanning.detectors.cascade import Cascade
from backsweep.scanning.detectors.neural_cleanse import NeuralCleanse
from backsweep.zoo import build
from conftest import Twins
from engines import (
    LOCAL_RAY,
    Counted,
    always_dies,
    dask_cluster,
    digest,
    job,
    ray_cluster,
    refuses,
    survives_deaths,
    weigh,
)
from many import BACKSWEEP

QUICK = (Cascade(spaces="dense+late", pairs=False, steps=5), NeuralCleanse(steps=20))


class Triples(NeuralCleanse):
    """Takes three classes at a time, as on a GPU."""

    def chunk(self, model: Model) -> int:
        return 3


def scanned(twins: Twins, detectors: Sequence[ModelDetector] = QUICK, **how: Any) -> Report:
    report = backsweep.scan(twins.infected, twins.data, detectors, device="cpu", **how)
    assert not report.errors
    return report


@pytest.fixture(scope="module")
def serial(twins: Twins) -> str:
    """What every engine must find."""
    return digest(scanned(twins).evidence)


@pytest.fixture(scope="module")
def processes() -> Iterator[Engine]:
    engine = Engine(workers=2)
    yield engine
    engine.close()


# ------------------------------------------------------------------ the same results


def test_the_number_of_threads_changes_nothing_and_is_left_as_it_was(twins: Twins, serial: str) -> None:
    torch.set_num_threads(2)
    try:
        assert digest(scanned(twins).evidence) == serial
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


@pytest.mark.slow
def test_processes_find_the_same_to_the_bit(twins: Twins, serial: str, processes: Engine) -> None:
    events: list[Event] = []
    report = scanned(twins, engine=processes, on_event=events.append)
    assert digest(report.evidence) == serial
    assert events[-1].done == events[-1].total == 10
    assert all(e.cpu_seconds > 0 for e in report.evidence)


def test_parts_of_several_units_are_the_same_on_every_engine(twins: Twins, processes: Engine) -> None:
    here, there = (scanned(twins, [Triples(steps=5)], engine=e) for e in (None, processes))
    assert digest(here.evidence) == digest(there.evidence)
    assert [e.target for e in there.evidence] == list(range(10))


def test_a_resumed_scan_has_its_evidence_in_the_order_of_the_units(
    twins: Twins, processes: Engine, tmp_path: Path
) -> None:
    detector = NeuralCleanse(steps=5)
    whole = scanned(twins, [detector], out=tmp_path)
    log = tmp_path / LOG
    log.write_text("\n".join(reversed(log.read_text().splitlines()[3:7])) + "\n")
    again = scanned(twins, [detector], out=tmp_path, engine=processes)
    assert digest(again.evidence) == digest(whole.evidence)
    assert len(log.read_text().splitlines()) == 10


# ------------------------------------------------------------------ any number of jobs


@pytest.mark.parametrize(("engine", "count"), [(Engine(), 100_000), (Engine(workers=2), 5_000)])
def test_jobs_are_drawn_when_there_is_room_and_results_are_not_kept(engine: Engine, count: int) -> None:
    drawn = alive = 0

    def jobs() -> Iterator[Callable[[], int]]:
        nonlocal drawn
        for i in range(count):
            drawn += 1
            yield partial(job, i)

    begin, total = threading.active_count(), 0
    for done, (index, result) in enumerate(engine.run(jobs())):
        assert result == index
        total += 1
        alive = max(alive, drawn - done)
    assert total == count
    assert alive <= 2 * (engine.workers or 1)
    engine.close()
    end = time.monotonic() + 20
    while threading.active_count() > begin and time.monotonic() < end:
        time.sleep(0.05)
    assert threading.active_count() <= begin


def test_what_jobs_share_is_sent_to_a_worker_once(processes: Engine, tmp_path: Path) -> None:
    thing = Counted(tmp_path)
    for _ in range(2):
        results = [r for _, r in processes.run([partial(weigh, thing) for _ in range(10)], [thing])]
        assert results == [3_000_000] * 10
    assert 1 <= len(list(tmp_path.glob("arrived-*"))) <= 2


# ------------------------------------------------------------------ deaths


def test_a_killed_process_costs_its_job_and_not_the_run(processes: Engine, tmp_path: Path) -> None:
    survives_deaths(processes, tmp_path)


def test_who_kills_every_worker_fails_alone(processes: Engine) -> None:
    jobs: list[Callable[[], int]] = [always_dies, partial(job, 1), always_dies]
    results = dict(processes.run(jobs))
    assert results.pop(1) == 1
    assert all(isinstance(r, Lost) for r in results.values())


class Killer(NeuralCleanse):
    """Kills the worker that looks at class 4."""

    def chunk(self, model: Model) -> int:
        return 1

    def probe(self, model: Any, data: Any, units: Any, *rest: Any) -> Any:
        if units[0].target == 4:
            always_dies()
        return super().probe(model, data, units, *rest)


def test_a_lost_unit_makes_the_report_inconclusive(twins: Twins, processes: Engine) -> None:
    report = backsweep.scan(twins.clean, twins.data, Killer(steps=5), device="cpu", engine=processes)
    assert [e.target for e in report.evidence] == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert "class-4" in report.errors[0].reason
    assert report.verdict == "inconclusive"


class Losing(Engine):
    """Loses the first job."""

    def run(self, jobs: Iterable[Callable[[], Any]], shared: Sequence[object] = ()) -> Iterator[Any]:
        todo = list(jobs)
        if todo:
            yield 0, Lost("its worker died 3 times")
        yield from ((i, r) for i, r in super().run(todo) if i > 0)


def test_what_the_zoo_and_the_bench_lose_is_said_and_tried_again(tmp_path: Path) -> None:
    plan: dict[str, Any] = {
        "nets": [{"task": "digits", "seeds": [0, 1], "recipe": {"epochs": 1}}],
        "detectors": [{"name": "neural_cleanse", "settings": {"steps": 2}}],
    }
    folder, out = tmp_path / "zoo", tmp_path / "lines.jsonl"
    with pytest.raises(Lost, match="1 of 2 networks"):
        list(build.build(build.entries(plan), folder, Losing()))
    assert len(list(build.build(build.entries(plan), folder))) == 2
    with pytest.raises(Lost, match="1 of 2 cells"):
        detectors.run(plan, folder, out, Losing())
    assert len(out.read_text().splitlines()) == 1
    assert detectors.run(plan, folder, out) == 2


def files(twins: Twins, folder: Path) -> list[str]:
    """A command that scans the infected digits net over two processes."""
    save_file(twins.infected.net.state_dict(), folder / "net.safetensors")
    x = (twins.data.x[:, 0].numpy() * 255).astype("uint8")
    np.savez(folder / "digits.npz", x=x, y=twins.data.y.numpy())
    words = ["scan", str(folder / "net.safetensors"), "--data", str(folder / "digits.npz")]
    more = [
        "--arch",
        "backsweep.archs:digits_cnn",
        "-d",
        "neural_cleanse",
        "--out",
        str(folder / "out"),
    ]
    return [*BACKSWEEP, *words, *more, "--workers", "2"]


@pytest.fixture(scope="module")
def whole(twins: Twins, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What that command must find, in this process and in one go."""
    folder = tmp_path_factory.mktemp("whole")
    files(twins, folder)
    clean = backsweep.Data.open(folder / "digits.npz", shape=(1, 8, 8))
    return digest(backsweep.scan(twins.infected, clean, "neural_cleanse", device="cpu").evidence)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_leaves_no_worker_and_goes_on_where_it_was(
    twins: Twins, whole: str, tmp_path: Path, how: signal.Signals
) -> None:
    words, log = files(twins, tmp_path), tmp_path / "out" / LOG
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True) as first:
        until = time.monotonic() + 120
        while not (log.is_file() and log.read_text().count("\n") >= 2) and time.monotonic() < until:
            time.sleep(0.02)
        workers = children(first.pid)
        first.send_signal(how)
        _, said = first.communicate(timeout=60)
    assert first.returncode == (130 if how == signal.SIGINT else -how)
    assert "Traceback" not in said
    until = time.monotonic() + 20
    while any(Path(f"/proc/{p}").exists() for p in workers) and time.monotonic() < until:
        time.sleep(0.1)
    assert not [p for p in workers if Path(f"/proc/{p}").exists()]
    kept = log.read_text().count("\n")
    assert 2 <= kept < 10
    again = subprocess.run(words, capture_output=True, text=True, check=False)
    assert again.returncode == 1, again.stderr
    assert log.read_text().count("\n") == 10
    assert digest(Report.load(tmp_path / "out").evidence) == whole


def children(parent: int) -> list[int]:
    """Processes that are children of one now."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(after_name[1]) == parent:
            found.append(int(stat.parent.name))
    return found


# ------------------------------------------------------------------ what a user can mend


def test_an_error_of_a_job_is_the_same_as_in_this_process(processes: Engine) -> None:
    for engine in (Engine(), processes):
        with pytest.raises(BadInput, match="the picture is upside down; turn it round"):
            list(engine.run([refuses]))
    assert [r for _, r in processes.run([partial(job, 1)])] == [1]


def test_what_cannot_be_sent_is_one_clear_line(processes: Engine) -> None:
    lock = threading.Lock()
    with pytest.raises(BadInput, match="leave out --workers"):
        list(processes.run([lambda: lock.locked()]))


def test_an_engine_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for extra, module in (("ray", "ray"), ("dask", "distributed")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(BadInput, match=rf"{extra} is not installed; pip install 'backsweep\[{extra}\]'"):
            list(Engine(extra).run([partial(job, 1)]))


@pytest.mark.parametrize("name", ["dask", "ray"])
def test_a_cluster_that_is_not_there_is_said_within_seconds(name: str) -> None:
    begin = time.monotonic()
    for address, says in (("127.0.0.1:1", "nothing answers"), ("somewhere", "HOST:PORT")):
        with pytest.raises(BacksweepError, match=says):
            list(Engine(name, address=address).run([partial(job, 1)]))
    assert time.monotonic() - begin < 60  # nearly all of it is the import of the library


@pytest.mark.parametrize(
    "wrong",
    [{"name": "spark"}, {"address": "a:1"}, {"gpus": 0.5}, {"workers": 0}, {"name": "ray", "gpus": -1}],
)
def test_settings_that_do_not_go_together(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        Engine(**wrong)


# ------------------------------------------------------------------ clusters


@pytest.mark.slow
@pytest.mark.parametrize("start", [dask_cluster, ray_cluster])
def test_a_cluster_of_two_nodes(
    twins: Twins, serial: str, start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in LOCAL_RAY.items():
        monkeypatch.setenv(key, value)
    with start(tmp_path) as cluster:
        engine = cluster.engine
        assert digest(scanned(twins, engine=engine).evidence) == serial
        with pytest.raises(BadInput, match="turn it round"):
            list(engine.run([refuses]))
        thing = Counted(tmp_path)
        assert [r for _, r in engine.run([partial(weigh, thing)] * 6, [thing])] == [3_000_000] * 6
        assert len(list(tmp_path.glob("arrived-*"))) <= 2
        survives_deaths(engine, tmp_path)
        results: list[object] = []
        for index, result in engine.run(
            (partial(weigh, thing) if i % 2 else partial(job, i, None, 0.3) for i in range(12)), [thing]
        ):
            results.append(index)
            assert result == (3_000_000 if index % 2 else index)
            if len(results) == 2:
                cluster.lose_a_node()
        assert sorted(map(str, results)) == sorted(map(str, range(12)))
