"""Many models: nothing is scanned twice, nothing is lost, whoever is killed and how many scan at once."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
import torch
from safetensors.torch import load_file, save_file

from backsweep.core.errors import BadInput
from backsweep.core.progress import Event
from backsweep.engine.engine import Engine
from backsweep.engine.jobs import Lost
from backsweep.formats import opening
from backsweep.formats.hugging_face.files import Folder
from backsweep.inventory import sources, sweep
from backsweep.inventory.source import models_in
from backsweep.inventory.store import Record, Store
from backsweep.inventory.sweep import Outcome
from backsweep.scanning.detectors.mm_bd import MmBd
from many import QUICK, command, linear, make_data, make_models, quick_scan
from shells import Shell


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_data(tmp_path)


def fresh(outcomes: list[Outcome]) -> list[bool]:
    return [o.fresh for o in outcomes]


# ---------------------------------------------------------------------- one scanner


def test_what_has_a_verdict_is_not_scanned_again(url: str, tmp_path: Path, data: Path) -> None:
    paths = make_models(tmp_path / "nets", 3)
    twin = tmp_path / "twin.safetensors"
    twin.write_bytes(paths[1].read_bytes())
    events: list[Event] = []
    with Store(url) as store:
        first = list(sweep.sweep([tmp_path / "nets", twin], quick_scan(data), store, on_event=events.append))
        again = list(sweep.sweep([*paths, twin], quick_scan(data), store))
        assert len(store.records()) == 3
    assert sorted(o.source for o in first) == sorted(map(str, [*paths, twin]))
    assert sorted(fresh(first)) == [False, True, True, True], "the same file twice is scanned once"
    assert fresh(again) == [False] * 4 and [o.source for o in again] == list(map(str, [*paths, twin]))
    assert {o.source: o.verdict for o in first} == {o.source: o.verdict for o in again}
    assert (events[-1].done, events[-1].total) == (4, 4)


@pytest.mark.parametrize(
    "changed",
    [
        {"alpha": 0.01}, {"seed": 1}, {"resize": True}, {"how": {"mean": [0.1], "std": [1.0]}},
        {"how": {"layer": "0"}}, {"reference": "reference"}, {"data": "other"},
        {"detector": MmBd(images=3, steps=4)},
    ],
    ids=lambda c: next(iter(c)),
)  # fmt: skip
def test_a_verdict_holds_for_its_settings(tmp_path: Path, data: Path, changed: dict[str, Any]) -> None:
    (path,) = make_models(tmp_path / "nets", 1)
    shape = {"shape": [1, 8, 8]}
    same = quick_scan(data, how=shape)
    (tmp_path / "other").mkdir()
    settings = dict(changed)
    settings["how"] = {**shape, **settings.get("how", {})}
    if "reference" in changed:
        settings["reference"] = str(make_models(tmp_path / "clean", 2)[1])
    other_data = make_data(tmp_path / "other", 50) if settings.pop("data", None) else data
    detector = settings.pop("detector", None)
    other = quick_scan(other_data, **settings)
    if isinstance(detector, MmBd):
        other = sweep.Scan(str(data), [detector], device="cpu", how={"arch": linear, **shape})
    with Store(str(tmp_path / "s.db")) as store:
        for scan, expected in ((same, True), (same, False), (other, True), (other, False)):
            (outcome,) = sweep.sweep([path], scan, store)
            assert outcome.record is not None, outcome.reason
            assert outcome.fresh is expected
        assert len({r.settings_key for r in store.records()}) == 2


def test_what_cannot_be_read_does_not_end_the_sweep(tmp_path: Path, data: Path) -> None:
    paths = make_models(tmp_path / "nets", 2)
    (tmp_path / "nets" / "0000-bad.pt").write_bytes(b"nothing")
    torch.save({"epoch": 3}, tmp_path / "nets" / "empty.pt")
    with Store(str(tmp_path / "s.db")) as store:
        found = {Path(o.source).name: o for o in sweep.sweep([tmp_path / "nets"], quick_scan(data), store)}
        assert len(store.records()) == 2
    assert found[paths[1].name].record is not None
    for name, reason in (("0000-bad.pt", "not a model file"), ("empty.pt", "it holds no weights")):
        assert found[name].record is None and found[name].verdict == "inconclusive"
        assert reason in found[name].reason


def test_a_detector_that_fails_is_tried_again(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = make_models(tmp_path / "nets", 1)
    scan = quick_scan(data)

    def fails(*_: object) -> None:
        raise RuntimeError("out of memory")

    with Store(str(tmp_path / "s.db")) as store:
        with monkeypatch.context() as patch:
            patch.setattr(MmBd, "probe", fails)
            (outcome,) = sweep.sweep([path], scan, store)
        assert outcome.verdict == "inconclusive" and "out of memory; not kept" in outcome.reason
        assert store.records() == []
        (outcome,) = sweep.sweep([path], scan, store)
        assert outcome.fresh and outcome.verdict == "clean"


def test_a_model_that_changes_while_it_is_scanned(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = make_models(tmp_path / "nets", 2)
    monkeypatch.setattr(sweep, "digest", lambda p, *_: opening.digest(other if Path(p) == path else p))
    with Store(str(tmp_path / "s.db")) as store:
        (outcome,) = sweep.sweep([path], quick_scan(data), store)
        assert outcome.record is None and "changed while it was scanned" in outcome.reason
        assert store.records() == []


def test_processes_find_the_same(tmp_path: Path, data: Path) -> None:
    paths = make_models(tmp_path / "nets", 6)
    out = tmp_path / "out"
    serial = {o.source: o for o in sweep.sweep(paths, quick_scan(data))}
    spread = {o.source: o for o in sweep.sweep(paths, quick_scan(data), engine=Engine(workers=2), out=out)}
    assert len(spread) == 6
    for name, outcome in spread.items():
        ours, theirs = outcome.record, serial[name].record
        assert (
            ours is not None and theirs is not None and ours.report is not None and theirs.report is not None
        )
        assert (ours.verdict, ours.p_value) == (theirs.verdict, theirs.p_value)
        values = [[e["values"] for e in r["evidence"]] for r in (ours.report, theirs.report)]
        assert values[0] == values[1]
        assert json.loads((out / ours.model[:16] / "report.json").read_text())["verdict"] == ours.verdict


class Deadly(Engine):
    """An engine whose workers die of every job."""

    def run(self, jobs: Any, shared: Any = ()) -> Any:
        for index, _ in enumerate(jobs):
            yield index, Lost("its worker died 3 times")


def test_a_model_that_kills_its_worker(tmp_path: Path, data: Path) -> None:
    paths = make_models(tmp_path / "nets", 2)
    with Store(str(tmp_path / "s.db")) as store:
        outcomes = list(sweep.sweep(paths, quick_scan(data), store, Deadly()))
        assert [(o.verdict, o.reason) for o in outcomes] == [("inconclusive", "its worker died 3 times")] * 2
        assert fresh(list(sweep.sweep(paths, quick_scan(data), store))) == [True, True], "it is tried again"


def test_a_store_that_is_lost_ends_the_sweep(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verdict that was just made is in a file, and goes into the store from there."""
    paths = make_models(tmp_path / "nets", 2)

    def lost(*_: object) -> None:
        raise sqlalchemy.exc.OperationalError("INSERT", {}, Exception("disk I/O error"))

    with Store(str(tmp_path / "s.db"), patience=0.01) as store, monkeypatch.context() as patch:
        patch.setattr(store, "_insert", lost)
        with pytest.raises(BadInput, match="disk I/O error"):
            list(sweep.sweep(paths, quick_scan(data), store, out=tmp_path / "out"))
    (file,) = (tmp_path / "out").glob("verdict-*.json")
    with Store(str(tmp_path / "s.db")) as store:
        assert all(store.put(Record.from_json(r)) for r in json.loads(file.read_text()))
        assert fresh(list(sweep.sweep(paths, quick_scan(data), store))) == [False, True]


def test_a_sweep_that_is_given_up_holds_nothing(tmp_path: Path, data: Path) -> None:
    paths = make_models(tmp_path / "nets", 3)
    with Store(str(tmp_path / "s.db")) as store, Store(str(tmp_path / "s.db")) as other:
        running = sweep.sweep(paths, quick_scan(data), store)
        assert next(running).fresh
        running.close()  # type: ignore[attr-defined]
        assert len(list(sweep.sweep(paths, quick_scan(data), other))) == 3


def test_settings_are_checked_first(tmp_path: Path, data: Path) -> None:
    paths = make_models(tmp_path / "nets", 1)
    for scan, match in (
        (quick_scan(tmp_path / "none.npz"), "no such file"), (quick_scan(data, alpha=2.0), "alpha"),
        (quick_scan(data, reference="none.pt"), "no such file"),
    ):  # fmt: skip
        with pytest.raises(BadInput, match=match):
            list(sweep.sweep(paths, scan))
    with pytest.raises(BadInput, match="no such file or folder"):
        list(sweep.sweep(["none.pt"], quick_scan(data)))


# ---------------------------------------------------------------------- what is found


def test_models_of_a_folder(tmp_path: Path) -> None:
    for name in (
        "b.pt", "a.safetensors", "c.txt", ".hidden.pt", "sub/d.PT2", "sub/e.onnx", "report/report.json",
        "report/triggers/x.safetensors", "running/evidence.jsonl", "running/model.pt", "net/model.pt",
        "net/triggers/t.safetensors", ".git/x.pt", "vit/model.safetensors", "tf/saved_model.pb",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "vit" / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "net" / "config.json").write_text('{"lr": 0.1}')
    found = [p.relative_to(tmp_path).as_posix() for p in models_in(tmp_path)]
    assert found == ["a.safetensors", "b.pt", "tf", "vit", "net/model.pt", "sub/d.PT2", "sub/e.onnx"]
    assert sources.is_collection(str(tmp_path)) and not sources.is_collection(str(tmp_path / "vit"))
    assert [s.name for s in sources.find([str(tmp_path / "vit")])] == [str(tmp_path / "vit")]


def test_a_digest_is_known_without_loading(tmp_path: Path) -> None:
    (path,) = make_models(tmp_path, 1)
    assert opening.digest(path) == opening.load(path, linear, shape=(1, 8, 8)).digest
    folder = tmp_path / "folder"
    folder.mkdir()
    for match in ("no config.json", "no model.safetensors"):
        with pytest.raises(BadInput, match=match):
            opening.digest(folder)
        (folder / "config.json").write_text('{"model_type": "vit"}')
    save_file(load_file(path), folder / "model.safetensors")
    (folder / "preprocessor_config.json").write_text("{}")
    read = Folder(folder)
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        read.read(name)
    assert opening.digest(folder) == read.digest


def test_watching_waits_until_a_file_stands_still(tmp_path: Path) -> None:
    troubles: list[str] = []
    looks = sources.watch([str(tmp_path)], 0.001, troubles.append)

    def names() -> list[str]:
        return [Path(s.name).name for s in next(looks)]

    growing = tmp_path / "a.pt"
    growing.write_text("1")
    assert names() == []
    growing.write_text("12")
    assert names() == [], "it grew since the last look"
    assert names() == ["a.pt"]
    assert names() == [], "it was taken"
    (tmp_path / "b.pt").write_text("1")
    growing.write_text("123")
    assert names() == []
    assert names() == ["a.pt", "b.pt"]
    away = tmp_path.rename(tmp_path.with_name(tmp_path.name + "-away"))
    assert names() == [] and "no such file or folder" in troubles[0]
    away.rename(tmp_path)
    assert names() == [] and len(troubles) == 1


# ---------------------------------------------------------------------- the command line


def scan_words(data: Path, *models: object, store: str | None = None) -> list[object]:
    kept = [] if store is None else ["--store", store]
    return ["scan", *models, "--data", data, "--arch", "tiny:net", "--device", "cpu", *QUICK, *kept]


def scanned(stderr: str) -> tuple[int, int]:
    """How many models a scanner says that it has scanned, and how many were known."""
    found = re.findall(r"(\d[\d,]*) (scanned now|known)", stderr.splitlines()[-1])
    counts = {what: int(n.replace(",", "")) for n, what in found}
    return counts.get("scanned now", 0), counts.get("known", 0)


def end_of(process: subprocess.Popen[str]) -> str:
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr
    return stderr


def test_the_command_scans_many(
    shell: Shell,
    tmp_path: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text("from many import linear as net\n")
    make_models(tmp_path / "nets", 2)
    words = scan_words(data, "nets", store="s.db")
    status, stdout, stderr = shell(*words, "--out", "reports")
    result = "2 models: 2 clean; 2 scanned now; exit status 0; reports\n"
    assert (status, stdout) == (0, result), stderr
    assert stderr.endswith(result)
    assert len(list((tmp_path / "reports").glob("*/report.html"))) == 2
    (tmp_path / "nets" / "broken.pt").write_bytes(b"")
    status, _, stderr = shell(*words)
    assert status == 3 and "Not scanned: nets/broken.pt: The file is empty" in stderr
    assert "3 models: 2 clean, 1 not scanned; 2 known" in stderr
    assert shell(*scan_words(data, "nets/0000.safetensors"))[0] == 0, "one model is scanned as ever"
    assert not (tmp_path / "nets" / "s.db").exists()
    (tmp_path / "empty").mkdir()
    status, _, stderr = shell(*scan_words(data, "empty"))
    assert status == 2 and "no model files are there" in stderr


def test_watching_from_the_command_line(tmp_path: Path, data: Path) -> None:
    nets, store = tmp_path / "nets", str(tmp_path / "s.db")
    nets.mkdir()
    with command(tmp_path, *scan_words(data, nets, store=store), "--watch", "--every", "0.2") as watcher:
        first = make_models(nets, 2)
        wait_for(store, 2)
        first[0].with_name("later.safetensors").write_bytes(first[0].read_bytes() + b"")
        make_models(nets, 3)
        wait_for(store, 3)
        os.kill(watcher.pid, signal.SIGINT)
        _, stderr = watcher.communicate(timeout=60)
    assert watcher.returncode == 0, stderr
    assert "4 models: 4 clean" in stderr, "a file that changed is one model"


def wait_for(store: str, least: int) -> int:
    """Wait until a store has so many verdicts; how many it has. Counts them, and reads none: that would cost
    the scanners more than half of a core."""
    end = time.monotonic() + 120
    while True:
        try:
            with contextlib.closing(sqlite3.connect(f"file:{store}?mode=rw", uri=True)) as kept:
                (found,) = kept.execute("SELECT count(*) FROM backsweep_verdicts").fetchone()
        except sqlite3.OperationalError:  # it is not there yet, or is being written
            found = 0
        if found >= least:
            return int(found)
        assert time.monotonic() < end, f"{found} verdicts, {least} expected"
        time.sleep(0.05)


@pytest.mark.slow
def test_two_scanners_share_the_work(url: str, tmp_path: Path, data: Path) -> None:
    """Two at once: every model is scanned by one of them, and both know all verdicts in the end."""
    nets = tmp_path / "nets"
    make_models(nets, 30)
    words = scan_words(data, nets, store=url)
    both = [command(tmp_path, *words), command(tmp_path, *words, "--workers", "2")]
    counts = [scanned(end_of(p)) for p in both]
    assert [sum(c) for c in counts] == [30, 30], "each covers all models"
    assert sum(fresh for fresh, _ in counts) == 30, f"no model is scanned twice: {counts}"
    with Store(url) as store:
        assert len(store.records()) == 30


@pytest.mark.slow
def test_the_other_takes_what_a_dead_scanner_held(url: str, tmp_path: Path, data: Path) -> None:
    nets = tmp_path / "nets"
    (path,) = make_models(nets, 1)
    slow = [*scan_words(data, nets, store=url), "-p", "mm_bd.steps=2000000"]
    with command(tmp_path, *slow) as holder:
        key_held = False
        while not key_held:  # its claim is seen from outside: nobody else can take the model
            assert holder.poll() is None, holder.communicate()
            key_held = holds(url, path)
            time.sleep(0.1)
        waiter = command(tmp_path, *slow)
        time.sleep(4)
        assert waiter.poll() is None, "it waits for the one that has the model"
        os.killpg(holder.pid, signal.SIGKILL)
        holder.wait()
        end = time.monotonic() + 60
        while not holds(url, path):
            assert time.monotonic() < end and waiter.poll() is None
            time.sleep(0.1)
        os.killpg(waiter.pid, signal.SIGKILL)
        waiter.communicate()
    with Store(url) as store:
        assert store.records() == []


def holds(url: str, path: Path) -> bool:
    """Whether a scanner holds a claim, seen from outside."""
    if "://" not in url:
        folder = Path(url + ".locks")
        return any(folder.glob("*.lock")) and bool(_flocked(folder))
    import sqlalchemy as sa

    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        found = connection.scalar(
            sa.text(
                "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database "
                "WHERE locktype = 'advisory' AND d.datname = current_database()"
            )
        )
    engine.dispose()
    return bool(found)


def _flocked(folder: Path) -> list[Path]:
    """Lock files that somebody holds."""
    import fcntl

    found = []
    for path in folder.glob("*.lock"):
        with path.open("rb+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                found.append(path)
    return found


@pytest.mark.slow
def test_five_hundred_models_and_three_kills(tmp_path: Path, data: Path) -> None:
    """Killed three times at points that nobody chose: every model has one verdict, none is lost or twice."""
    nets, store, models = tmp_path / "nets", str(tmp_path / "s.db"), 500
    make_models(nets, models)
    draw, known = random.Random(7), 0
    for _ in range(3):
        with command(tmp_path, *scan_words(data, nets, store=store)) as scanner:
            least = known + draw.randint(25, 125)
            wait_for(store, least)
            time.sleep(draw.random() / 10)
            os.killpg(scanner.pid, signal.SIGKILL)
            scanner.communicate()
        now = wait_for(store, least)
        assert least <= now < models, "the kill came too late to mean anything"
        known = now
    assert scanned(end_of(command(tmp_path, *scan_words(data, nets, store=store)))) == (models - known, known)
    digests = sorted(opening.digest(p) for p in nets.iterdir())
    with Store(store) as kept:
        assert sorted(r.model for r in kept.records()) == digests
