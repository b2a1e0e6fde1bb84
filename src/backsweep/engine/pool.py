"""Workers of one kind: how a job gets there and its result back, and how a death shows.

Jobs and results travel as bytes that `Pool.pack` and `work` make, so that every engine does the same with
them. Decision 0011 says why joblib's backends are not used.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import pickle
import threading
import traceback
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cloudpickle

from backsweep.core.errors import BadInput
from backsweep.engine.jobs import one_thread

ONE = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}


_lock = threading.Lock()


_known: dict[str, Any] = {}  # in a worker: what jobs share, by token


class Elsewhere(Exception):
    """The traceback of an error in a worker, as its cause."""


class Packer(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles a job; what is shared is left out and named by its token."""

    def __init__(self, file: io.BytesIO, tokens: dict[int, str]) -> None:
        super().__init__(file)
        self._tokens = tokens

    def persistent_id(self, value: object) -> str | None:
        return self._tokens.get(id(value))


class Unpacker(pickle.Unpickler):
    """Its counterpart in a worker."""

    def persistent_load(self, token: str) -> object:
        return _known[token]


def work(packed: bytes, tokens: Sequence[str], *blobs: Any) -> bytes:
    """Compute a job in a worker, one at a time; the result, or what it raised, as bytes.

    Args:
        packed: the job.
        tokens, blobs: what jobs share, pickled: bytes, or the file that holds them. It is read once and
            kept until a job comes that does not share it.
    """
    _keep_memory()
    with _lock, one_thread():
        try:
            for token in set(_known) - set(tokens):
                del _known[token]
            for token, blob in zip(tokens, blobs, strict=True):
                if token not in _known:
                    _known[token] = pickle.loads(blob.read_bytes() if isinstance(blob, Path) else blob)  # noqa: S301
            job = Unpacker(io.BytesIO(packed)).load()
        except (ImportError, AttributeError) as e:
            return _failed(
                BadInput(f"a worker lacks code that this run needs ({e}); install it on every node")
            )
        try:
            return cloudpickle.dumps((job(), ""))
        except Exception as e:
            return _failed(e)


@functools.cache
def _keep_memory() -> None:
    """Let the C library keep some memory that was freed, as it does by itself.

    Dask starts its workers with an order to give it all back, and what allocates tensors all the time then
    takes twice as long (decision 0011).
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # where there is no mallopt
        c = ctypes.CDLL(None)
        c.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, bytes
        c.mallopt(-1, 2**27)  # M_TRIM_THRESHOLD, bytes


def _failed(error: Exception) -> bytes:
    trace = traceback.format_exc()
    try:
        return cloudpickle.dumps((error, trace))
    except Exception:
        return cloudpickle.dumps((RuntimeError(f"{type(error).__name__}: {error}"), trace))


class Pool:
    """Workers of one kind."""

    why_not = "leave out --workers and --engine to compute in this process"

    def __init__(self) -> None:
        self._shared: dict[
            int, tuple[object, str, Any]
        ] = {}  # by identity: the thing, its token, where it is

    @property
    def size(self) -> int:
        """Jobs that may be in flight."""
        raise NotImplementedError

    def share(self, values: Sequence[object]) -> None:
        """Make things known to the workers; those that are no longer shared are dropped."""
        kept = {id(v): self._shared[id(v)] for v in values if id(v) in self._shared}
        self._shared = kept
        for value in values:
            if id(value) not in kept:
                blob = self._pickled(value, {})
                kept[id(value)] = (value, uuid.uuid4().hex, self._put(blob))

    def pack(self, job: Callable[[], Any]) -> bytes:
        """A job as bytes."""
        return self._pickled(job, {key: token for key, (_, token, _) in self._shared.items()})

    def _pickled(self, value: object, tokens: dict[int, str]) -> bytes:
        file = io.BytesIO()
        try:
            Packer(file, tokens).dump(value)
        except Exception as e:
            line = " ".join(str(e).split())[:200]
            raise BadInput(f"this cannot be sent to another process ({line}); {self.why_not}") from e
        return file.getvalue()

    def start(self, packed: bytes) -> Any:
        """Give a job to the workers; returns a handle."""
        tokens = [token for _, token, _ in self._shared.values()]
        return self._submit(packed, tokens, [ref for _, _, ref in self._shared.values()])

    def result(self, handle: Any) -> Any:
        """What a job returned; raises what it raised, and `Died` where its worker died."""
        value, trace = pickle.loads(self._answer(handle))  # noqa: S301
        if trace:
            raise value from Elsewhere("\n" + trace)
        return value

    def wait(self, handles: Sequence[Any]) -> Sequence[Any]:
        """Those that are done, at least one."""
        raise NotImplementedError

    def stop(self, handles: Sequence[Any]) -> None:
        """Give up jobs that are in flight."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of workers and files."""
        raise NotImplementedError

    def _put(self, blob: bytes) -> Any:
        raise NotImplementedError

    def _submit(self, packed: bytes, tokens: list[str], refs: list[Any]) -> Any:
        raise NotImplementedError

    def _answer(self, handle: Any) -> bytes:
        raise NotImplementedError


def line_of(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
