"""Dask and Ray as pools. Both are extras, imported when they are asked for."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import socket
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from backsweep.core.errors import BacksweepError, BadInput
from backsweep.engine.jobs import Died, cores
from backsweep.engine.pool import ONE, Pool, line_of, work

PATIENCE = 10  # seconds that a cluster is given to answer
AHEAD = 2  # jobs in flight for each worker, so that none waits for the driver


class Dask(Pool):
    """A Dask cluster; a worker process computes one job at a time, however many threads it has."""

    def __init__(self, workers: int | None, address: str | None, gpus: float) -> None:
        super().__init__()
        self._dask = distributed = _library("distributed", "dask")
        self._most, self._place = workers, address or "this machine"
        self._needs = {"GPU": gpus} if gpus else None
        self._cluster = None
        if address is not None:
            check_address(address)
        with _quiet(), _refusing(f"the Dask cluster at {self._place}"):
            if address is None:
                import dask

                with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
                    self._cluster = distributed.LocalCluster(
                        n_workers=workers or cores(), threads_per_worker=1, host="127.0.0.1",
                        dashboard_address=None, silence_logs=50, env=ONE,
                        resources=self._needs and {"GPU": 1},
                    )  # fmt: skip
            self._client = distributed.Client(
                self._cluster or address, timeout=PATIENCE, set_as_default=False
            )
        until = time.monotonic() + PATIENCE
        while not self._count() and time.monotonic() < until:
            time.sleep(0.1)
        if not self._count():
            raise BadInput(f"the Dask cluster at {self._place} has no workers; start some with `dask worker`")

    @property
    def size(self) -> int:
        """As many as are asked for, else what the cluster has now."""
        return self._most or AHEAD * max(1, self._count())

    def _count(self) -> int:
        return len(self._client.scheduler_info(n_workers=-1)["workers"])

    def _put(self, blob: bytes) -> Any:
        # a task and no scatter: what a worker that dies has held is made again from the scheduler's copy
        with _quiet():
            return self._client.submit(bytes, blob, pure=False)

    def _submit(self, packed: bytes, tokens: list[str], refs: list[Any]) -> Any:
        with _quiet():
            return self._client.submit(work, packed, tokens, *refs, pure=False, resources=self._needs)

    def wait(self, handles: Sequence[Any]) -> Sequence[Any]:
        with self._client.as_current():
            return list(self._dask.wait(handles, return_when="FIRST_COMPLETED").done)

    def _answer(self, handle: Any) -> bytes:
        try:
            with _refusing(f"the Dask cluster at {self._place}", self._dask.KilledWorker):
                answer: bytes = handle.result()
        except self._dask.KilledWorker as e:
            raise Died(line_of(e), e.allowed_failures + 1) from None
        return answer

    def stop(self, handles: Sequence[Any]) -> None:
        if handles:
            self._client.cancel(handles, force=True)

    def close(self) -> None:
        self._shared.clear()
        with _quiet(), contextlib.suppress(Exception):  # the cluster may be gone
            self._client.close(PATIENCE)
            if self._cluster is not None:
                self._cluster.close(PATIENCE)


class Ray(Pool):
    """A Ray cluster: a task for each job, on one core and a share of a GPU."""

    def __init__(self, workers: int | None, address: str | None, gpus: float) -> None:
        super().__init__()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if address is None:  # Ray's own switch for what stays on this machine: it listens on loopback alone
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        with _quiet():
            self._ray = ray = _library("ray", "ray")
        self._most, self._place = workers, address or "this machine"
        if address is not None:
            check_address(address)
        how: dict[str, Any] = {"address": address}
        if address is None:
            how = {"address": "local", "num_cpus": workers or cores(), "include_dashboard": False}
        self._own = not ray.is_initialized()
        if self._own:
            with _quiet(), _refusing(f"the Ray cluster at {self._place}"):
                ray.init(**how, log_to_driver=False, logging_level="ERROR")
        self._work = ray.remote(work).options(num_cpus=1, num_gpus=gpus, max_retries=0)

    @property
    def size(self) -> int:
        """As many as are asked for, else what the cluster has now."""
        return self._most or AHEAD * max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def _put(self, blob: bytes) -> Any:
        import numpy as np

        return self._ray.put(np.frombuffer(blob, np.uint8))  # an array is not copied from the node's store

    def _submit(self, packed: bytes, tokens: list[str], refs: list[Any]) -> Any:
        return self._work.remote(packed, tokens, *refs)

    def wait(self, handles: Sequence[Any]) -> Sequence[Any]:
        done: list[Any] = self._ray.wait(handles, num_returns=1)[0]
        return done

    def _answer(self, handle: Any) -> bytes:
        errors = self._ray.exceptions
        deaths = (
            errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError, errors.ObjectLostError,
            errors.LocalRayletDiedError,
        )  # fmt: skip
        try:
            with _refusing(f"the Ray cluster at {self._place}", *deaths):
                answer: bytes = self._ray.get(handle)
        except deaths as e:
            raise Died(line_of(e)) from None
        return answer

    def stop(self, handles: Sequence[Any]) -> None:
        for handle in handles:
            self._ray.cancel(handle, force=True)

    def close(self) -> None:
        self._shared.clear()
        if self._own:
            with _quiet():
                self._ray.shutdown()


def check_address(address: str) -> None:
    """Fail at once where nothing listens; the libraries themselves try for a minute.

    Raises:
        BadInput: not HOST:PORT, or nothing answers there.
    """
    if address == "auto":
        return
    found = re.fullmatch(r"(?:\w+://)?\[?([^/\s]+?)\]?:(\d{1,5})/?", address)
    if not found:
        raise BadInput(
            f"address {address!r} is not HOST:PORT, e.g. 10.0.0.5:8786 (Dask) or 10.0.0.5:6379 (Ray)"
        )
    try:
        socket.create_connection((found[1], int(found[2])), timeout=PATIENCE / 2).close()
    except (OSError, OverflowError) as e:
        raise BadInput(f"nothing answers at {address} ({e}); is the cluster running, and reachable?") from e


def _library(module: str, extra: str) -> Any:
    with _quiet():
        try:
            return importlib.import_module(module)
        except ImportError as e:
            raise BadInput(f"{extra} is not installed; pip install 'backsweep[{extra}]'") from e


@contextlib.contextmanager
def _refusing(what: str, *but: type[Exception]) -> Iterator[None]:
    """Whatever a cluster cannot do becomes one line."""
    try:
        yield
    except (BacksweepError, *but):  # type: ignore[misc]
        raise
    except Exception as e:
        raise BacksweepError(f"{what} failed: {line_of(e)}") from e


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The libraries warn of their own affairs: deprecations, ports, the size of a task."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
