"""What scanners that share a store are at: recorded by every sweep, read by the dashboard.

A sweep holds a claim for as long as it runs, which the operating system or the database gives back when it
dies; a sweep that has no end and no claim has died.
"""

from __future__ import annotations

import json
import platform
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from backsweep.core import documents
from backsweep.inventory.store import Store, now
from backsweep.inventory.tables import SWEEPS

KEPT, MOST_NAMES, EVERY = 20, 100, 1.0  # ended sweeps; names in a list; seconds between two records
CLAIM = "sweep"


class Logbook:
    """Records how far a sweep is.

    Args:
        store: where to.
        settings: of its scans.
        total: how many models it has.
    """

    def __init__(self, store: Store, settings: Mapping[str, Any], total: int) -> None:
        self.id, self._store, self._last = uuid.uuid4().hex, store, time.monotonic()
        store.claim(CLAIM, self.id)
        ended = sa.select(SWEEPS.c.id).where(SWEEPS.c.ended.is_not(None)).order_by(SWEEPS.c.began.desc())
        row = {
            "id": self.id, "host": platform.node(), "began": now(), "seen": now(), "ended": None,
            "total": total, "done": 0, "known": 0, "doing": "[]", "waiting": "[]",
            "settings": json.dumps(settings),
        }  # fmt: skip
        old = ended.offset(KEPT).limit(1000)
        gone = SWEEPS.c.id.in_(sa.select(old.subquery().c.id))
        store.note(SWEEPS.delete().where(gone), SWEEPS.insert().values(row))

    def tell(
        self, done: int, known: int, doing: Sequence[str], waiting: Sequence[str], soon: bool = False
    ) -> None:
        """Record the state, once a second at most, or at once where it will stand for a while (`soon`)."""
        if soon or time.monotonic() - self._last >= EVERY:
            self._last = time.monotonic()
            self._write(done, known, doing, waiting)

    def end(self, done: int, known: int) -> None:
        """Record that it came to its end, or was stopped."""
        self._write(done, known, (), (), ended=now())
        self._store.release(CLAIM, self.id)

    def _write(
        self, done: int, known: int, doing: Sequence[str], waiting: Sequence[str], **more: str
    ) -> None:
        names = {k: json.dumps(list(v)[:MOST_NAMES]) for k, v in (("doing", doing), ("waiting", waiting))}
        values = {"done": done, "known": known, "seen": now(), **names, **more}
        self._store.note(SWEEPS.update().where(SWEEPS.c.id == self.id).values(values))


@dataclass(frozen=True)
class Running:
    """A sweep as it was recorded. Names of models and of the host are untrusted text.

    Attributes:
        id: of the sweep.
        host: where it runs.
        began, seen, ended: times as in `Record.time`; `ended` None where it has not.
        total, done, known: models in all, with an outcome, of these without a scan.
        doing, waiting: names of models that are being scanned, and of the first that wait.
        alive: whether it still runs.
    """

    id: str
    host: str
    began: str
    seen: str
    ended: str | None
    total: int
    done: int
    known: int
    doing: tuple[str, ...]
    waiting: tuple[str, ...]
    alive: bool


def sweeps(store: Store) -> list[Running]:
    """Sweeps that are recorded in a store, the newest first."""
    if not store.knows_sweeps():
        return []
    columns = [c for c in SWEEPS.c if c.name != "settings"]
    rows = store.ask(sa.select(*columns).order_by(SWEEPS.c.began.desc(), SWEEPS.c.id).limit(5 * KEPT))
    found = []
    for row in rows:
        names = {k: _names(row[k]) for k in ("doing", "waiting")}
        alive = row["ended"] is None and store.held(CLAIM, row["id"])
        found.append(Running(**{**row, **names}, alive=alive))
    return found


def _names(text: str) -> tuple[str, ...]:
    """A list of names; what is damaged is empty."""
    try:
        found = documents.parsed(text)
    except ValueError:
        return ()
    return tuple(map(str, found)) if isinstance(found, list) else ()
