"""What the dashboard's lists show: models, the history of one, sweeps. Text of strangers is cleaned here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePath
from typing import Any
from urllib.parse import urlencode

from backsweep.core.text import duration
from backsweep.inventory.overview import ORDERS, VERDICT_NAMES, Found, Line
from backsweep.inventory.running import Running
from backsweep.inventory.store import Record, now
from backsweep.render import view
from backsweep.render.pages.page import template

SIZE = 50
WORDS = {"backdoored": "evidence found", "inconclusive": "cannot tell", "clean": "nothing found"}


@dataclass(frozen=True)
class Row:
    """A verdict in a table.

    Attributes:
        id, model: of the verdict; the digest.
        name, place: last part of the model's path, and what is before it.
        verdict, word: "backdoored", "evidence found".
        targets, p_value, when, took: for people.
        count: verdicts on the model.
        about: detectors, alpha and seed.
    """

    id: int
    model: str
    name: str
    place: str
    verdict: str
    word: str
    targets: str
    p_value: str
    when: str
    took: str
    count: int = 1
    about: str = ""


def row(line: Line) -> Row:
    """A verdict of a list, for people."""
    return _row(line.id, line, line.count)


def _row(number: int, of: Line | Record, count: int = 1, about: str = "") -> Row:
    path = PurePath(view.clean(of.source, 300))
    shown = [str(t) for t in of.targets[:6]] + ["…"] * (len(of.targets) > 6)
    return Row(
        number, view.clean(of.model, 64), path.name or "model",
        "" if str(path.parent) == "." else str(path.parent), of.verdict, WORDS[of.verdict], ", ".join(shown),
        "" if of.p_value is None else view.probability(of.p_value), when(of.time), duration(of.seconds),
        count, about,
    )  # fmt: skip


def when(time: str) -> str:
    """2026-11-21 14:31"""
    return view.clean(time.replace("T", " ")[:16])


def models(found: Found, asked: Mapping[str, str], number: int) -> dict[str, Any]:
    """The list of models.

    Args:
        found: a page of it.
        asked: the filters: verdict, text, since, order.
        number: of the page.
    """

    def link(**changed: object) -> str:
        given = {**asked, "order": "" if asked["order"] == "newest" else asked["order"], **changed}
        kept = {k: v for k, v in given.items() if v not in ("", None)}
        return "?" + urlencode(kept) if kept else "/"

    pages = max(1, math.ceil(found.total / SIZE))
    everything = sum(found.counts.values())
    tabs = [("", "all", everything), *((v, WORDS[v], found.counts.get(v, 0)) for v in VERDICT_NAMES)]
    return {
        "rows": [row(line) for line in found.lines],
        "total": found.total, "page": number, "pages": pages, "orders": ORDERS,
        "asked": {k: view.clean(v, 200) for k, v in asked.items()},
        "tabs": [(link(verdict=v), word, f"{n:,}", asked["verdict"] == v, v) for v, word, n in tabs],
        "before": link(page=number - 1) if number > 1 else "",
        "after": link(page=number + 1) if number < pages else "",
        "first": (number - 1) * SIZE + 1, "last": (number - 1) * SIZE + len(found.lines),
        "narrowed": any(asked[k] for k in ("verdict", "text", "since")),
    }  # fmt: skip


def written(records: Sequence[Record]) -> str:
    """Verdicts as one page that needs no server: no script, nothing fetched; the gravest and newest first."""
    order = {v: i for i, v in enumerate(VERDICT_NAMES)}
    newest = sorted(records, key=lambda r: r.time, reverse=True)
    rows = [_row(0, r, about=_about(r)) for r in sorted(newest, key=lambda r: order[r.verdict])]
    counts = [(v, WORDS[v], f"{sum(r.verdict == v for r in records):,}") for v in VERDICT_NAMES]
    return template("history.html.j2").render(
        rows=rows, counts=counts, total=f"{len(rows):,}", made=when(now())
    )


def history(records: Sequence[Record], ids: Sequence[int]) -> dict[str, Any]:
    """All verdicts on one model, the newest first."""
    rows = [_row(i, r, about=_about(r)) for i, r in zip(ids, records, strict=False)]
    newest = records[0]
    facts = [
        ("SHA-256", view.clean(newest.model, 64)),
        ("Classes", "" if newest.classes is None else view.figure("", newest.classes)),
        ("Input", " x ".join(map(str, newest.shape))),
        ("Called", ", ".join(dict.fromkeys(view.clean(r.source, 200) for r in records))),
    ]
    return {"rows": rows, "name": rows[0].name, "facts": [f for f in facts if f[1]]}


def _about(record: Record) -> str:
    settings = record.settings
    names = view.join([view.title(view.clean(d)) for d in settings.get("detectors", ())])
    told = [f"{k} {view.clean(settings[k], 20)}" for k in ("alpha", "seed") if k in settings]
    version = view.clean(record.versions.get("backsweep", ""), 20)
    return "; ".join([names, *told, *([f"version {version}"] if version else [])])


def running(found: Sequence[Running]) -> dict[str, Any]:
    """Sweeps: those that run, then those that ended."""
    rows = [_sweep(s) for s in found]
    return {"running": [r for r in rows if r["alive"]], "past": [r for r in rows if not r["alive"]]}


def _sweep(sweep: Running) -> dict[str, Any]:
    seconds = _between(sweep.began, sweep.ended or sweep.seen)
    scanned = sweep.done - sweep.known
    left = ""
    if sweep.alive and scanned > 0 and sweep.done < sweep.total:
        rest = _between(sweep.began, now()) / scanned * (sweep.total - sweep.done)
        left = f"about {duration(rest)} left, if the others take as long"
    more = sweep.total - sweep.done - len(sweep.doing) - len(sweep.waiting)
    ended = "done" if sweep.done >= sweep.total else "stopped" if sweep.ended else "died"
    return {
        "alive": sweep.alive,
        "state": "running" if sweep.alive else ended,
        "host": view.clean(sweep.host), "began": when(sweep.began), "seen": when(sweep.seen),
        "done": f"{sweep.done:,}", "total": f"{sweep.total:,}", "known": f"{sweep.known:,}",
        "share": round(100 * sweep.done / sweep.total, 1) if sweep.total else 100.0,
        "took": duration(seconds), "left": left,
        "doing": [view.clean(n, 200) for n in sweep.doing],
        "waiting": [view.clean(n, 200) for n in sweep.waiting],
        "more": f"{more:,}" if more > 0 else "",
    }  # fmt: skip


def _between(begin: str, end: str) -> float:
    """Seconds between two times of a store; 0 where one is none."""
    try:
        times = [datetime.strptime(t, "%Y-%m-%dT%H:%M:%SZ") for t in (begin, end)]
    except ValueError:
        return 0.0
    return max(0.0, (times[1] - times[0]).total_seconds())
