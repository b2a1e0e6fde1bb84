"""Questions to a store of many verdicts: the newest of each model, page by page; the database counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from backsweep.core import documents
from backsweep.inventory.store import Record, Store, record
from backsweep.inventory.tables import VERDICTS
from backsweep.reports.report import BACKDOORED, CLEAN, INCONCLUSIVE

VERDICT_NAMES = (BACKDOORED, INCONCLUSIVE, CLEAN)
ORDERS = ("newest", "oldest", "name", "p-value")
_LIGHT = [c for c in VERDICTS.c if c.name not in ("report", "settings", "versions")]


@dataclass(frozen=True)
class Line:
    """A verdict in a list.

    Attributes:
        id: of the verdict in its store.
        model, source, verdict, p_value, targets, time, classes, seconds: as in `Record`.
        count: verdicts on this model.
    """

    id: int
    model: str
    source: str
    verdict: str
    p_value: float | None
    targets: tuple[int, ...]
    time: str
    classes: int | None
    seconds: float
    count: int = 1


@dataclass(frozen=True)
class Found:
    """A page of a list.

    Attributes:
        lines: of this page.
        total: how many lines there are on all pages.
        counts: models by newest verdict, whatever verdict was asked for.
    """

    lines: list[Line]
    total: int
    counts: Mapping[str, int]


def newest(
    store: Store,
    *,
    verdict: str | None = None,
    text: str = "",
    since: str | None = None,
    order: str = "newest",
    page: int = 1,
    size: int = 50,
) -> Found:
    """The newest verdict of every model.

    Args:
        store: where they are.
        verdict: only models whose newest verdict is this.
        text: only those whose source holds it, in capitals or not, or whose digest begins with it.
        since: only those of this time and later, in the form of `Record.time`.
        order: one of `ORDERS`.
        page: from 1 on.
        size: lines of a page.

    Raises:
        BadInput: the store cannot be used.
        ValueError: an order or a page that is none.
    """
    if order not in ORDERS or page < 1:
        raise ValueError(f"order {order!r}, page {page}")
    light = sa.select(
        *(c for c in _LIGHT if c.name not in ("settings_key", "shape", "layout", "host")),
        sa.func.row_number()
        .over(partition_by=VERDICTS.c.model, order_by=(VERDICTS.c.time.desc(), VERDICTS.c.id.desc()))
        .label("place"),
        sa.func.count().over(partition_by=VERDICTS.c.model).label("count"),
    ).subquery()
    wanted = [light.c.place == 1]
    if text:
        like = "%" + text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        wanted.append(
            sa.or_(light.c.source.ilike(like, escape="\\"), light.c.model.like(like[1:].lower(), escape="\\"))
        )
    if since:
        wanted.append(light.c.time >= since)
    counted = sa.select(light.c.verdict, sa.func.count().label("n")).where(*wanted).group_by(light.c.verdict)
    counts = {row["verdict"]: int(row["n"]) for row in store.ask(counted)}
    if verdict:
        wanted.append(light.c.verdict == verdict)
    by = {
        "newest": (light.c.time.desc(), light.c.id.desc()), "oldest": (light.c.time, light.c.id),
        "name": (light.c.source, light.c.id),
        "p-value": (light.c.p_value.is_(None), light.c.p_value, light.c.id),
    }[order]  # fmt: skip
    query = sa.select(light).where(*wanted).order_by(*by).limit(size).offset((page - 1) * size)
    total = counts.get(verdict, 0) if verdict else sum(counts.values())
    return Found([_line(row) for row in store.ask(query)], total, counts)


def of_model(store: Store, model: str, most: int = 500) -> list[Record]:
    """All verdicts on a model, the newest first, without their reports; with ids see `ids`."""
    return [record(_without_id(row)) for row in _of_model(store, model, most)]


def ids(store: Store, model: str, most: int = 500) -> list[int]:
    """The ids of the verdicts that `of_model` gives, in its order."""
    return [int(row["id"]) for row in _of_model(store, model, most)]


def one(store: Store, verdict: int) -> Record | None:
    """A verdict with its report; None where there is none of this id."""
    rows = store.ask(sa.select(VERDICTS).where(VERDICTS.c.id == verdict))
    return record(_without_id(rows[0])) if rows else None


def _of_model(store: Store, model: str, most: int) -> list[dict[str, Any]]:
    columns = [c for c in VERDICTS.c if c.name != "report"]
    query = sa.select(*columns).where(VERDICTS.c.model == model)
    return store.ask(query.order_by(VERDICTS.c.time.desc(), VERDICTS.c.id.desc()).limit(most))


def _without_id(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if k != "id"}


def _line(row: dict[str, Any]) -> Line:
    kept = {k: row[k] for k in Line.__dataclass_fields__}
    return Line(**{**kept, "targets": _whole_numbers(row["targets"]), "count": int(row["count"])})


def _whole_numbers(text: str) -> tuple[int, ...]:
    """A list of class indices; what is damaged is empty."""
    try:
        found = documents.parsed(text)
    except ValueError:
        return ()
    return tuple(n for n in found if isinstance(n, int)) if isinstance(found, list) else ()
