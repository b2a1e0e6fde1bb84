"""Claims: locks that the operating system or the database gives back when their holder dies."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa
from filelock import FileLock, Timeout
from sqlalchemy.exc import DBAPIError, OperationalError

from backsweep.core.errors import BadInput


class Claims(Protocol):
    """What is claimed by name; no two holders, in one process or in several, have the same at once."""

    def take(self, name: str) -> bool:
        """Claim; False when it is held, by this holder included."""

    def drop(self, name: str) -> None:
        """Give a claim back."""

    def close(self) -> None:
        """Give all claims back."""


class FileClaims:
    """Locked files in a folder. The operating system unlocks those of a process that dies."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, FileLock] = {}

    def take(self, name: str) -> bool:
        if name in self._held:
            return False
        file = self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.lock"
        lock = FileLock(file, thread_local=False)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            return False
        except OSError as e:
            raise BadInput(f"cannot write to {self._folder}: {e.strerror}; choose another store") from e
        self._held[name] = lock
        return True

    def drop(self, name: str) -> None:
        lock = self._held.pop(name)
        # Who had it open already locks a file without a name, and finds the verdict that is there by now.
        with suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()

    def close(self) -> None:
        for name in list(self._held):
            self.drop(name)


class AdvisoryClaims:
    """Advisory locks of one PostgreSQL session, which the server releases when the session ends."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._session: sa.Connection | None = None
        self._held: set[str] = set()

    def take(self, name: str) -> bool:
        if name in self._held or not self._ask(sa.func.pg_try_advisory_lock(self._number(name))):
            return False
        self._held.add(name)
        return True

    def drop(self, name: str) -> None:
        self._held.discard(name)
        with suppress(OperationalError):  # a session that is lost holds nothing
            self._ask(sa.func.pg_advisory_unlock(self._number(name)))

    def close(self) -> None:
        self._held.clear()
        if self._session is not None:
            self._session.invalidate()  # ends the session, and with it all of its locks
            self._session.close()
            self._session = None

    def _ask(self, function: sa.ColumnElement[Any]) -> Any:
        if self._session is None:
            self._session = self._engine.connect()
            for name in self._held:  # those of a session that was lost
                self._session.scalar(sa.select(sa.func.pg_try_advisory_lock(self._number(name))))
        try:
            return self._session.scalar(sa.select(function))
        except DBAPIError:
            with suppress(DBAPIError):
                self._session.close()
            self._session = None
            raise

    @staticmethod
    def _number(name: str) -> int:
        digest = hashlib.sha256(f"backsweep/{name}".encode()).digest()
        return int.from_bytes(digest[:8], "big", signed=True)
