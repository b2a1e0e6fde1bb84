"""A real PostgreSQL server on loopback, for the tests of the store."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

PASSWORD = "s3cret-word"  # noqa: S105


@dataclass(frozen=True)
class Postgres:
    """A running server.

    Attributes:
        url: of its database, with the password.
    """

    url: str
    binaries: Path
    folder: Path
    port: int

    def stop(self) -> None:
        """End the server at once; all sessions are lost."""
        self._pg_ctl("stop", "-m", "immediate")

    def start(self) -> None:
        """Start it again, with what it kept."""
        options = f"-p {self.port} -h 127.0.0.1 -k {self.folder} -c fsync=off"
        self._pg_ctl("start", "-w", "-o", options, "-l", str(self.folder / "log"))

    def fresh(self) -> str:
        """URL of a new, empty database."""
        name = f"fresh{uuid.uuid4().hex}"
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "tester", "postgres"]
        environment = {**os.environ, "PGPASSWORD": PASSWORD}
        words: list[str | Path] = [self.binaries / "psql", *where, "-qc", f"CREATE DATABASE {name}"]
        subprocess.run(words, check=True, env=environment, capture_output=True)
        return self.url.replace("/postgres", f"/{name}")

    def _pg_ctl(self, *words: str) -> None:
        _as_postgres([self.binaries / "pg_ctl", "-D", self.folder / "data", *words])


@contextmanager
def server() -> Iterator[Postgres]:
    """A server of its own, gone afterwards; skips the test where PostgreSQL is not installed."""
    binaries = _binaries()
    if binaries is None:
        pytest.skip("PostgreSQL's server is not installed (apt-get install postgresql)")
    with tempfile.TemporaryDirectory(prefix="backsweep-pg-") as place, socket.socket() as free:
        folder = Path(place)
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
        (folder / "password").write_text(PASSWORD)
        words: list[str | Path] = ["-D", folder / "data", "-U", "tester", "-A", "scram-sha-256", "--no-sync"]
        _as_postgres([binaries / "initdb", *words, "--pwfile", folder / "password"])
        url = f"postgresql://tester:{PASSWORD}@127.0.0.1:{port}/postgres"
        found = Postgres(url, binaries, folder, port)
        free.close()
        found.start()
        try:
            yield found
        finally:
            found.stop()
            time.sleep(0.1)


def _binaries() -> Path | None:
    """The folder of the newest server that is installed."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: -float(p.parent.name))
    for program in filter(None, (shutil.which("pg_config"), shutil.which("initdb"))):
        folders.append(Path(program).resolve().parent)
    return next((f for f in folders if (f / "initdb").is_file()), None)


def _as_postgres(words: list[str | Path]) -> None:
    """Run as a user who may: the server refuses to be run by root."""
    who = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*map(str, words)], check=True, cwd="/", **quiet, **who)  # type: ignore[call-overload]
