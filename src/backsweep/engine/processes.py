"""Other processes of this machine as a pool."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backsweep.engine.jobs import Died
from backsweep.engine.pool import ONE, Pool, line_of, work


class Processes(Pool):
    """Processes on this machine: an executor of one process each, so that a death is that job's alone."""

    def __init__(self, workers: int) -> None:
        super().__init__()
        self._workers = workers
        self._idle: list[Any] = []
        self._busy: dict[Any, Any] = {}  # executor by future
        self._folder: Path | None = None

    @property
    def size(self) -> int:
        return self._workers

    def _put(self, blob: bytes) -> Path:
        from loky.backend.resource_tracker import register

        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="backsweep-"))
            register(str(self._folder), "folder")  # removed even if this process is killed
        path = self._folder / uuid.uuid4().hex
        path.write_bytes(blob)
        return path

    def _submit(self, packed: bytes, tokens: list[str], refs: list[Any]) -> Any:
        from loky.process_executor import ProcessPoolExecutor

        executor = self._idle.pop() if self._idle else ProcessPoolExecutor(
            1, env=ONE, initializer=_follow, initargs=(os.getpid(),)
        )  # fmt: skip
        future = executor.submit(work, packed, tokens, *refs)
        self._busy[future] = executor
        return future

    def wait(self, handles: Sequence[Any]) -> Sequence[Any]:
        return list(concurrent.futures.wait(handles, return_when="FIRST_COMPLETED").done)

    def _answer(self, handle: Any) -> bytes:
        executor = self._busy.pop(handle)
        try:
            answer: bytes = handle.result()
        except concurrent.futures.process.BrokenProcessPool as e:
            executor.shutdown(wait=False)
            raise Died(line_of(e)) from None
        self._idle.append(executor)
        return answer

    def stop(self, handles: Sequence[Any]) -> None:
        for handle in handles:
            self._busy.pop(handle).shutdown(wait=True, kill_workers=True)

    def close(self) -> None:
        for executor in (*self._idle, *self._busy.values()):
            executor.shutdown(wait=True, kill_workers=True)
        self._idle, self._busy = [], {}
        if self._folder is not None:
            from loky.backend.resource_tracker import maybe_unlink

            maybe_unlink(str(self._folder), "folder")
            self._folder = None


def _follow(parent: int) -> None:
    """In a worker: Ctrl-C is for the parent; a worker ends when its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
