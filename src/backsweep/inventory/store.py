"""Verdicts that are kept: one for every model and settings, in SQLite or PostgreSQL.

Who scans a model claims it first. A claim is a lock of the operating system or of the database, which
gives it back when its holder dies; nothing has to be cleaned up, and nobody waits for a dead scanner.
"""

from __future__ import annotations

import json
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError, OperationalError

from backsweep.core import documents
from backsweep.core.errors import BadInput
from backsweep.core.files import home, writable_folder, write_json
from backsweep.core.text import one_line
from backsweep.inventory.locks import AdvisoryClaims, Claims, FileClaims
from backsweep.inventory.tables import JSON, META, STORE, SWEEPS, VERDICTS

SCHEMA = 1
_T = TypeVar("_T")
# The server gives up the claims of a machine that is gone after a minute, not after its two hours.
_KEEPALIVE = "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"


@dataclass(frozen=True)
class Record:
    """A verdict as it is kept.

    Attributes:
        model: SHA-256 of the model file, or the digest of its folder.
        settings_key: one key for all that the verdict depends on beside the model.
        source: where the model lay when it was scanned, untrusted text.
        verdict, p_value, targets: as in `Report`.
        time: when the scan ended, UTC, as 2026-11-21T14:31:29Z.
        shape, classes, layout: of the model.
        settings: what `settings_key` is the digest of.
        seconds: that the scan took.
        versions: of Backsweep, torch and Python.
        host: name of the machine that kept it.
        report: the report as in `report.json`; None where it was not asked for.
    """

    model: str
    settings_key: str
    source: str
    verdict: str
    p_value: float | None
    targets: tuple[int, ...]
    time: str
    shape: tuple[int, ...]
    classes: int | None
    layout: str
    settings: Mapping[str, Any]
    seconds: float
    versions: Mapping[str, str]
    host: str
    report: Mapping[str, Any] | None = None

    @staticmethod
    def of(report: Mapping[str, Any], key: str, settings: Mapping[str, Any], source: str) -> Record:
        """The record of a report (`Report.to_json`) that was just made."""
        model = report["model"]
        return Record(
            model["sha256"], key, source, report["verdict"], report["p_value"], tuple(report["targets"]),
            now(), tuple(model["shape"]), model["classes"], model["layout"], settings,
            report["timings"]["total_seconds"], report["versions"], platform.node(), report,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """The record as strict JSON."""
        return {**asdict(self), "targets": list(self.targets), "shape": list(self.shape)}

    @staticmethod
    def from_json(raw: Any) -> Record:
        """The record that `to_json` wrote.

        Raises:
            BadInput: it is none.
        """
        try:
            documents.check("verdict", raw)
            report = raw.get("report")
            if report is not None:
                _agrees(raw, report)
        except ValueError as e:
            raise BadInput(f"this is not a verdict that Backsweep kept, or is damaged ({e})") from e
        plain = {f.name: raw.get(f.name) for f in fields(Record)}
        return Record(**{**plain, **{n: tuple(raw[n]) for n in ("targets", "shape")}})


def _agrees(raw: Mapping[str, Any], report: Any) -> None:
    """Whether a kept report is one, and says what its verdict says.

    Raises:
        ValueError: it is not, or does not.
    """
    documents.check("report", report)
    for name in ("verdict", "p_value", "targets"):
        if report[name] != raw[name]:
            raise ValueError(
                f"{name} is {raw[name]!r}, the report that is kept with it says {report[name]!r}"
            )


def now() -> str:
    """The time, UTC, in the form of `Record.time`."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


class Store:
    """Where verdicts are kept. Several scanners may use one store at once.

    Args:
        url: a path, `sqlite:///path`, or `postgresql://user@host/database`; None takes
            `$BACKSWEEP_HOME/store.db`.
        create: make it if it is not there.
        patience: seconds to wait for a database that is lost in mid-run.

    Raises:
        BadInput: it cannot be opened, is no store, or is of a newer version of Backsweep.
    """

    def __init__(self, url: str | None = None, *, create: bool = True, patience: float = 60.0) -> None:
        self._patience = patience
        self._probing = threading.Lock()
        parsed = _parsed(url if url is not None else str(home() / "store.db"))
        self.where = _shown(parsed)
        self._claims: Claims
        if parsed.get_backend_name() == "sqlite":
            self._engine, self._claims = self._sqlite(Path(parsed.database or ""), parsed, create)
        else:
            self._engine, self._claims = self._postgres(parsed)
        try:
            self._open(create)
        except DBAPIError as e:
            self.close()
            raise BadInput(f"the store {self.where} cannot be opened: {_reason(e, parsed)}") from None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back all claims and connections."""
        self._claims.close()
        self._engine.dispose()

    # ------------------------------------------------------------------ verdicts

    def get(self, model: str, settings_key: str) -> Record | None:
        """The verdict on a model under these settings, without its report; None if there is none."""
        found = self._select(VERDICTS.c.model == model, VERDICTS.c.settings_key == settings_key)
        return next(iter(found), None)

    def records(
        self, *, verdict: str | None = None, since: str | None = None, reports: bool = False
    ) -> list[Record]:
        """All verdicts, oldest first.

        Args:
            verdict: only these.
            since: only those of this time and later, in the form of `Record.time`.
            reports: with their reports.
        """
        wanted = [] if verdict is None else [VERDICTS.c.verdict == verdict]
        wanted += [] if since is None else [VERDICTS.c.time >= since]
        return self._select(*wanted, reports=reports)

    def put(self, record: Record, aside: Path | None = None) -> bool:
        """Keep a verdict; whether it is the first one on its model and settings. Only the first is kept.

        Args:
            record: with its report.
            aside: where the verdict goes as a file when the database stays lost; None takes the home folder.

        Raises:
            BadInput: the database is lost for longer than `patience`; the verdict is in a file then.
        """
        row = {k: json.dumps(v) if k in JSON else v for k, v in record.to_json().items()}
        try:
            return self._patiently(lambda: self._insert(row))
        except DBAPIError as e:
            folder = writable_folder(aside if aside is not None else home() / "not-stored")
            file = folder / f"verdict-{record.model[:16]}-{record.settings_key[:8]}.json"
            write_json(file, [record.to_json()])
            raise BadInput(
                f"the store {self.where} is lost ({_reason(e)}); the last verdict is in {file}: put it in "
                f"with backsweep history --store ... --add {file}"
            ) from None

    # ------------------------------------------------------------------ claims

    def claim(self, model: str, settings_key: str) -> bool:
        """Claim a model for scanning; False when a scanner that is alive has it, this one included.

        Whoever has claimed it must look again whether there is a verdict by now.
        """
        return self._asked(lambda: self._claims.take(f"{model}/{settings_key}"))

    def release(self, model: str, settings_key: str) -> None:
        """Give a claim back."""
        self._claims.drop(f"{model}/{settings_key}")

    def held(self, model: str, settings_key: str) -> bool:
        """Whether somebody who is alive has this claim, this holder included."""
        name = f"{model}/{settings_key}"
        with self._probing:
            if not self._asked(lambda: self._claims.take(name)):
                return True
            self._claims.drop(name)
        return False

    # ------------------------------------------------------------------ questions

    def ask(self, query: sa.Select[Any]) -> list[dict[str, Any]]:
        """The rows that a query finds.

        Raises:
            BadInput: the database is lost for longer than `patience`.
        """

        def ask() -> list[dict[str, Any]]:
            with self._engine.connect() as connection:
                return [dict(row) for row in connection.execute(query).mappings()]

        return self._asked(ask)

    def note(self, *changes: sa.Executable) -> None:
        """Record what is of use to people only: what cannot be recorded now is left out."""
        with suppress(DBAPIError), self._engine.begin() as connection:
            for change in changes:
                connection.execute(change)

    # ------------------------------------------------------------------ inside

    def _sqlite(self, path: Path, url: sa.URL, create: bool) -> tuple[sa.Engine, FileClaims]:
        if not create and not path.is_file():
            raise BadInput(f"there is no store {path}; make it with backsweep scan MODELS --store {path}")
        writable_folder(path.parent) if create else None
        return sa.create_engine(url, connect_args={"timeout": self._patience}), FileClaims(
            path.with_name(path.name + ".locks")
        )

    def _postgres(self, url: sa.URL) -> tuple[sa.Engine, AdvisoryClaims]:
        options = {"connect_timeout": 10, "application_name": "backsweep"}
        if "options" not in url.query:
            options["options"] = _KEEPALIVE
        try:
            engine = sa.create_engine(url, pool_pre_ping=True, hide_parameters=True, connect_args=options)
        except ImportError as e:
            raise BadInput(
                "PostgreSQL needs a library that is not there; pip install 'backsweep[postgres]'"
            ) from e
        return engine, AdvisoryClaims(engine)

    def _open(self, create: bool) -> None:
        if self._schema() is None:
            if not create:
                raise BadInput(f"{self.where} is no store of Backsweep; name the store of your scans")
            with self._alone("schema"), self._engine.begin() as connection:
                META.create_all(connection)
                if connection.scalar(sa.select(STORE.c.schema)) is None:
                    connection.execute(STORE.insert().values(schema=SCHEMA))
        schema = self._schema()
        if schema != SCHEMA:
            raise BadInput(
                f"the store {self.where} has schema {one_line(str(schema))[:40]}; this version reads schema "
                f"{SCHEMA}: use the version that made it, or another store"
            )
        if create and not self.knows_sweeps():
            with self._alone("schema"):
                META.create_all(self._engine)

    def knows_sweeps(self) -> bool:
        """Whether sweeps are recorded here; an older version made a store without."""
        return sa.inspect(self._engine).has_table(SWEEPS.name)

    def _schema(self) -> int | None:
        if not sa.inspect(self._engine).has_table(STORE.name):
            return None
        with self._engine.connect() as connection:
            return connection.scalar(sa.select(STORE.c.schema))

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        while not self._claims.take(name):
            time.sleep(0.05)
        try:
            yield
        finally:
            self._claims.drop(name)

    def _insert(self, row: dict[str, Any]) -> bool:
        try:
            with self._engine.begin() as connection:
                connection.execute(VERDICTS.insert().values(row))
        except IntegrityError:
            return False
        return True

    def _select(self, *wanted: sa.ColumnElement[bool], reports: bool = False) -> list[Record]:
        columns = [c for c in VERDICTS.c if c.name != "id" and (reports or c.name != "report")]
        query = sa.select(*columns).where(*wanted).order_by(VERDICTS.c.time, VERDICTS.c.id)
        return [record(row) for row in self.ask(query)]

    def _asked(self, act: Callable[[], _T]) -> _T:
        try:
            return self._patiently(act)
        except DBAPIError as e:
            raise BadInput(f"the store {self.where} cannot be used: {_reason(e)}") from None

    def _patiently(self, act: Callable[[], _T]) -> _T:
        """Do it, again and again while the database is away."""
        end = time.monotonic() + self._patience
        while True:
            try:
                return act()
            except OperationalError:
                if time.monotonic() > end:
                    raise
                time.sleep(min(1.0, self._patience / 10))


def _parsed(text: str) -> sa.URL:
    """The URL of a store. What was given is not repeated in an error: it may hold a password."""
    if "://" not in text:
        return sa.URL.create("sqlite", database=str(Path(text).expanduser()))
    kind, _, rest = text.partition("://")
    if kind in ("postgres", "postgresql"):
        text = f"postgresql+psycopg://{rest}"
    try:
        url = sa.make_url(text)
        if url.drivername not in ("sqlite", "postgresql+psycopg"):
            raise NoSuchModuleError
    except (ArgumentError, NoSuchModuleError, ValueError) as e:
        raise BadInput(
            "this is not the address of a store; give a path, sqlite:///path, or "
            "postgresql://user:password@host/database"
        ) from e
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise BadInput("a store is kept in a file; give its path, or sqlite:///path")
    return url


def _shown(url: sa.URL) -> str:
    """The store for people, without user and password."""
    if url.get_backend_name() == "sqlite":
        return url.database or ""
    return f"{url.database or ''} on {url.host or 'the local server'}"


def _reason(error: DBAPIError, url: sa.URL | None = None) -> str:
    """One line out of an error of the database, without the password."""
    line = (str(error.orig).strip().splitlines() or [type(error.orig).__name__])[0]
    for secret in (url.password, url.query.get("password")) if url is not None else ():
        line = line.replace(str(secret), "***") if secret else line
    return line


def record(row: dict[str, Any]) -> Record:
    """The verdict that a row of the table holds, with or without its report.

    Raises:
        BadInput: it is damaged.
    """
    try:
        parts = {k: documents.parsed(row[k]) for k in JSON if k in row}
        return Record.from_json({"report": None, **row, **parts})
    except ValueError as e:
        raise BadInput(f"a row of the store is damaged ({e}); export what is left, to a new store") from e
