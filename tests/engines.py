"""What tests of engines need: jobs that kill their worker, digests of evidence, clusters of two nodes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.engine.engine import Engine
from backsweep.engine.jobs import Lost
from backsweep.reports.report import Evidence

TESTS = Path(__file__).parent
# Ray listens on loopback alone, says nothing to its makers, and asks this machine's users for no token
LOCAL_RAY = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled",
}  # fmt: skip


def digest(evidence: Sequence[Evidence]) -> str:
    """SHA-256 of all that was measured, to the bit, and of its order; what it cost is left out."""
    h = hashlib.sha256()
    for e in evidence:
        h.update(repr((e.detector, e.unit, e.target, e.source, sorted(e.values.items()))).encode())
        for f in fields(e.trigger) if e.trigger is not None else ():
            value = getattr(e.trigger, f.name)
            h.update(value.numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode())
    return h.hexdigest()


def environment() -> dict[str, str]:
    """For nodes of a cluster: the tests can be imported, and nothing leaves this machine."""
    path = os.pathsep.join([str(TESTS), str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, **LOCAL_RAY, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


# ------------------------------------------------------------------ jobs


def job(number: int, folder: Path | None = None, seconds: float = 0.0) -> int:
    """Its own number; leaves its process id in a folder while it works, and a line when it is done."""
    if folder is not None:
        (folder / f"{number}.pid").write_text(str(os.getpid()))
    time.sleep(seconds)
    if folder is not None:
        with (folder / f"{number}.done").open("a") as f:
            f.write("done\n")
    return number


def dies_once(number: int, mark: Path) -> int:
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def always_dies() -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def refuses() -> int:
    raise BadInput("the picture is upside down; turn it round")


class Counted:
    """Something that jobs share; leaves a file whenever it arrives somewhere."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.weight = folder, bytes(3_000_000)

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        (self.folder / f"arrived-{os.getpid()}-{time.monotonic_ns()}").touch()


def weigh(thing: Counted) -> int:
    return len(thing.weight)


def survives_deaths(engine: Engine, folder: Path) -> None:
    """Workers die by their jobs and by an outside hand; nothing is lost and nothing counted twice."""
    jobs: list[Callable[[], int]] = [partial(job, i, folder, 0.3) for i in range(6)]
    jobs[2:2] = [partial(dies_once, 100, folder / "mark"), always_dies]
    killed: list[int] = []

    def kill_one() -> None:
        """Kill the first worker that is seen at work."""
        end = time.monotonic() + 120
        while not killed and time.monotonic() < end:
            for mark in folder.glob("*.pid"):
                text = "" if mark.with_suffix(".done").exists() else mark.read_text()
                if text:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(text), signal.SIGKILL)
                    killed.append(int(text))
                    return
            time.sleep(0.01)

    hand = threading.Thread(target=kill_one)
    hand.start()
    found = list(engine.run(jobs))
    hand.join()
    assert killed
    assert sorted(i for i, _ in found) == list(range(8))
    results = dict(found)
    lost = results.pop(3)
    assert isinstance(lost, Lost)
    assert "died" in str(lost)
    assert results == {0: 0, 1: 1, 2: 100, 4: 2, 5: 3, 6: 4, 7: 5}


# ------------------------------------------------------------------ clusters


@dataclass(frozen=True)
class Cluster:
    """A cluster of two nodes with a worker each: its engine, and a way to kill the second node."""

    engine: Engine
    lose_a_node: Callable[[], None]


@contextlib.contextmanager
def started(*words: str) -> Iterator[subprocess.Popen[str]]:
    """A process with its children, killed in the end."""
    process = subprocess.Popen(
        [sys.executable, *words], env=environment(), start_new_session=True, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def dask_cluster(folder: Path) -> Iterator[Cluster]:
    """A scheduler and two worker nodes, each started from the command line."""
    file = folder / "scheduler.json"
    quiet = ("--host", "127.0.0.1", "--no-dashboard")
    worker = ("-m", "dask", "worker", "--scheduler-file", str(file), "--nthreads", "1", *quiet)
    scheduler = ("-m", "dask", "scheduler", "--port", "0", "--scheduler-file", str(file), *quiet)
    with started(*scheduler), started(*worker), started(*worker) as second:
        while not file.is_file():
            time.sleep(0.1)
        engine = Engine("dask", address=json.loads(file.read_text())["address"])
        yield Cluster(engine, lambda: os.killpg(second.pid, signal.SIGKILL))
        engine.close()


RAY_NODES = """
from ray.cluster_utils import Cluster
node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100_000_000}
cluster = Cluster(initialize_head=True, head_node_args=node)
second = cluster.add_node(**node)
print(cluster.address, flush=True)
input()
cluster.remove_node(second, allow_graceful=False)
input()
"""


@contextlib.contextmanager
def ray_cluster(_folder: Path) -> Iterator[Cluster]:
    """Two nodes with processes of their own, on loopback."""
    with contextlib.ExitStack() as stack:
        for _ in range(3):  # on a busy machine Ray sometimes gives up on its own head before that has begun
            nodes = stack.enter_context(started("-c", RAY_NODES))
            assert nodes.stdout is not None
            address = nodes.stdout.readline().strip()
            if address:
                break
            stack.close()
        assert address, "Ray did not start its nodes in three attempts"
        orders = nodes.stdin
        assert orders is not None
        engine = Engine("ray", address=address)

        def lose_a_node() -> None:
            orders.write("\n")
            orders.flush()

        yield Cluster(engine, lose_a_node)
        engine.close()
