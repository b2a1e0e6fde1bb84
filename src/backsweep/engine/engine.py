"""Where units of work run: in this process, in other processes, or on a Dask or Ray cluster that is there.

An engine is given jobs, functions without arguments, and yields their results as they come. It draws a job
when there is room for it and keeps no result, so that a run may have any number of them. A job whose worker
dies is run again. On every engine a job is computed by one thread: sums over several threads round
differently, and a result must not hang on where it was computed. `pool.py` has what
all workers do, `processes.py` and `clusters.py` what they differ in.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, TypeVar

from backsweep.core.errors import BadInput
from backsweep.engine.clusters import Dask, Ray
from backsweep.engine.jobs import Died, Lost, one_thread, only_one_thread
from backsweep.engine.pool import Pool
from backsweep.engine.processes import Processes

T = TypeVar("T")
CLUSTERS = ("dask", "ray")
TRIES = 3  # so often may a job's worker die; the last try is made alone


@dataclass(frozen=True)
class Engine:
    """Runs jobs.

    Attributes:
        name: "dask" or "ray"; None: this process, or others on this machine where `workers` says so.
        workers: processes; on a cluster, jobs in flight at most. None: one, and what the cluster has.
        address: of a running cluster; None starts one on this machine.
        gpus: share of a GPU that the cluster reserves for a job.
        threads: of this process, for jobs that share what they compute from and change nothing global.

    Raises:
        BadInput: settings that do not go together.
    """

    name: str | None = None
    workers: int | None = None
    address: str | None = None
    gpus: float = 0.0
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.name is not None and self.name not in CLUSTERS:
            raise BadInput(f"engine {self.name!r} is not there; there are {' and '.join(CLUSTERS)}")
        if self.name is None and (self.address is not None or self.gpus):
            raise BadInput("an address or a share of a GPU is for a cluster; say --engine dask or ray")
        if self.threads is not None and (self.name, self.workers) != (None, None):
            raise BadInput("threads of this process go with neither other processes nor a cluster")
        if (self.workers is not None and self.workers < 1) or self.gpus < 0:
            raise BadInput(f"{self.workers} workers, {self.gpus} GPUs: at least 1 and 0")

    @staticmethod
    def of(given: str | Engine | None) -> Engine:
        """An engine as it is, or by its name; None computes in this process."""
        return given if isinstance(given, Engine) else Engine(given)

    @property
    def here(self) -> bool:
        """Whether jobs run in this process, one after another."""
        return self.name is None and (self.workers or self.threads or 1) == 1

    def run(
        self, jobs: Iterable[Callable[[], T]], shared: Sequence[object] = ()
    ) -> Iterator[tuple[int, T | Lost]]:
        """Run jobs; yields (index, result) in the order in which they are done, one run at a time.

        What a job raises is raised here. The workers stay for the next run, until `close`.

        Args:
            jobs: drawn when there is room; each goes to a worker with all that it refers to.
            shared: large things that the jobs refer to (a model, data): a worker is sent each of them
                once. It must not matter to a job that others use them too.

        Raises:
            BadInput: the cluster cannot be used, or a job cannot be sent to another process.
        """
        if self.here:
            for index, job in enumerate(jobs):
                with one_thread():
                    result = job()
                yield index, result
        elif self.threads is not None:
            with one_thread():  # each; libraries have one number for all threads, so it is not moved by jobs
                yield from _threaded(jobs, self.threads)
        else:
            yield from _spread(self._pool, jobs, shared)

    def close(self) -> None:
        """Let the workers go; an engine that is thrown away does so by itself."""
        if "_pool" in self.__dict__:
            self.__dict__.pop("_pool").close()

    @cached_property
    def _pool(self) -> Pool:
        pool = open_pool(self.name, self.workers, self.address, self.gpus)
        weakref.finalize(self, pool.close)
        return pool

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_pool"}


def _threaded(jobs: Iterable[Callable[[], T]], count: int) -> Iterator[tuple[int, T]]:
    """Run jobs in threads of this process; what they share is not copied."""
    with ThreadPoolExecutor(count, initializer=only_one_thread) as pool:
        fresh, running = enumerate(jobs), dict[Future[T], int]()
        try:
            while True:
                for index, job in islice(fresh, count - len(running)):
                    running[pool.submit(job)] = index
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        finally:
            pool.shutdown(cancel_futures=True)


@dataclass
class _Job:
    """A packed job, and how often its worker died."""

    index: int
    packed: bytes
    deaths: int = 0


def _spread(
    pool: Pool, jobs: Iterable[Callable[[], T]], shared: Sequence[object]
) -> Iterator[tuple[int, T | Lost]]:
    """Keep a pool's workers busy.

    Who dies takes others along on some engines. A job that was there at two deaths is tried when all others
    are done, alone: what happens then is its own doing.
    """
    pool.share(shared)
    fresh = (_Job(index, pool.pack(job)) for index, job in enumerate(jobs))
    again: deque[_Job] = deque()
    suspects: deque[_Job] = deque()
    running: dict[Any, _Job] = {}

    def draw() -> _Job | None:
        if again:
            return again.popleft()
        job = next(fresh, None)
        return suspects.popleft() if job is None and suspects and not running else job

    try:
        while True:
            while len(running) < pool.size and (job := draw()) is not None:
                running[pool.start(job.packed)] = job
            if not running:
                return
            for handle in pool.wait(list(running)):
                job = running.pop(handle)
                try:
                    result: T = pool.result(handle)
                except Died as death:
                    alone = job.deaths >= TRIES - 1
                    job.deaths += death.times
                    if alone:
                        yield job.index, Lost(f"its worker died {job.deaths} times ({death})")
                    else:
                        (again if job.deaths < TRIES - 1 else suspects).append(job)
                else:
                    yield job.index, result
    finally:
        pool.stop(list(running))


def open_pool(name: str | None, workers: int | None, address: str | None, gpus: float) -> Pool:
    """The workers that an `Engine` describes."""
    if name is None:
        return Processes(workers or 1)
    return (Dask if name == "dask" else Ray)(workers, address, gpus)
