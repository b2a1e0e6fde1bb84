"""Many verdicts: a table on a terminal, CSV, and one SARIF log of all reports."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from backsweep.inventory.store import Record
from backsweep.inventory.sweep import Outcome
from backsweep.render import view
from backsweep.render.exchange.sarif import sarif
from backsweep.render.terminal.scan import ASCII, COLOURS
from backsweep.reports.report import BACKDOORED, CLEAN, INCONCLUSIVE, Report

GRAVEST = (BACKDOORED, INCONCLUSIVE, CLEAN)
MOST_ROWS, MOST_REASONS = 60, 20
CSV_FIELDS = (
    "time", "model", "source", "verdict", "p_value", "targets", "shape", "classes", "layout", "detectors",
    "settings_key", "seconds", "backsweep", "torch", "python", "host",
)  # fmt: skip


def show_outcomes(outcomes: Sequence[Outcome], console: Console) -> None:
    """Print what a sweep found, the gravest first."""
    order = sorted(outcomes, key=lambda o: (GRAVEST.index(o.verdict), o.record is not None))
    table = _table("model", "verdict", "targets", "p-value", "scanned")
    for o in order[:MOST_ROWS]:
        when = "" if o.record is None else "now" if o.fresh else _when(o.record.time)
        table.add_row(*_cells(console, o.source, o.verdict, o.record, when))
    console.print(table)
    if len(order) > MOST_ROWS:
        console.print(_say(console, f"{len(order) - MOST_ROWS:,} more, none graver than these."))
    reasons = [o for o in order if o.reason]
    for o in reasons[:MOST_REASONS]:
        reason = view.sentence(o.reason.removeprefix(f"{o.source}: "))
        title = "Not scanned" if o.record is None else "Not kept"
        console.print(_say(console, f"{title}: {view.clean(o.source, 200)}: {reason}"), soft_wrap=True)
    if len(reasons) > MOST_REASONS:
        console.print(_say(console, f"and {len(reasons) - MOST_REASONS:,} more of that kind"))


def summary(outcomes: Sequence[Outcome]) -> str:
    """4 models: 1 backdoored, 2 clean, 1 not scanned; 1 scanned now, 2 known"""
    found = [o.record.verdict for o in outcomes if o.record is not None]
    counts = [(found.count(v), v) for v in GRAVEST] + [(len(outcomes) - len(found), "not scanned")]
    fresh = sum(o.fresh for o in outcomes)
    work = [(fresh, "scanned now"), (len(found) - fresh, "known")]
    said = [", ".join(f"{n:,} {what}" for n, what in part if n) for part in (counts, work)]
    return f"{view.counted(len(outcomes), 'model')}: {'; '.join(filter(None, said))}"


def line(outcome: Outcome, console: Console) -> Text:
    """One outcome in a line, for a sweep that has no end."""
    found = outcome.record
    extra = outcome.reason.removeprefix(f"{outcome.source}: ")
    if found is not None and found.p_value is not None and not extra:
        extra = f"p-value {view.probability(found.p_value)}"
    verdict = outcome.verdict if found is not None else "not scanned"
    text = f"{view.clean(outcome.source, 200)}: {verdict}" + (f" ({view.clean(extra, 300)})" if extra else "")
    return _say(console, text, COLOURS.get(outcome.verdict, "yellow"))


def show_records(records: Sequence[Record], console: Console) -> None:
    """Print kept verdicts, the newest last. A narrow console has no room for all columns."""
    more = [h for h, width in (("detectors", 100), ("sha256", 120)) if console.width >= width]
    table = _table("model", "verdict", "targets", "p-value", "scanned (UTC)", *more)
    for r in records:
        extra = {"detectors": ", ".join(r.settings.get("detectors", ())), "sha256": r.model[:12]}
        cells = _cells(console, r.source, r.verdict, r, _when(r.time)[: 10 if console.width < 90 else 16])
        table.add_row(*cells, *(_say(console, view.clean(extra[h])) for h in more))
    console.print(table)
    counts = [(sum(r.verdict == v for r in records), v) for v in GRAVEST]
    said = ", ".join(f"{n:,} {what}" for n, what in counts if n)
    console.print(
        _say(console, f"{view.counted(len(records), 'verdict')}{': ' if said else ''}{said}", "bold")
    )


def to_csv(records: Iterable[Record]) -> str:
    """A line for every verdict. Text is harmless in a terminal and in a table program."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(CSV_FIELDS)
    for r in records:
        own = {
            "targets": " ".join(map(str, r.targets)), "shape": "x".join(map(str, r.shape)),
            "detectors": " ".join(r.settings.get("detectors", ())),
        }  # fmt: skip
        found = [own.get(f, r.versions.get(f, getattr(r, f, None))) for f in CSV_FIELDS]
        table.writerow([harmless(v) if isinstance(v, str) else v for v in found])
    return text.getvalue()


def harmless(text: str) -> str:
    """One line that no table program takes for a formula; the quote is taken off by `[1:]`."""
    line = view.clean(text, 4096)
    return "'" + line if line[:1] in "=+-@'" and line else line


def to_sarif(records: Sequence[Record]) -> dict[str, Any]:
    """One log with one run that holds the results of all reports.

    Raises:
        BadInput: a kept report is damaged.
    """
    runs = [sarif(Report.from_json(r.report, name=f"the report of {r.source}"))["runs"][0] for r in records]
    rules: dict[str, Any] = {}
    for run in runs:
        rules.update((rule["id"], rule) for rule in run["tool"]["driver"]["rules"])
    index = {code: i for i, code in enumerate(rules)}
    for place, run in enumerate(runs):
        for result in run["results"]:
            result["ruleIndex"] = index[result["ruleId"]]
            for location in result["locations"]:
                location["physicalLocation"]["artifactLocation"]["index"] = place
        for note in run["invocations"][0]["toolExecutionNotifications"]:
            if "associatedRule" in note:
                note["associatedRule"]["index"] = index[note["associatedRule"]["id"]]
    log = sarif(Report())
    merged = log["runs"][0]
    merged["tool"]["driver"]["rules"] = list(rules.values())
    for part in ("invocations", "artifacts", "results"):
        merged[part] = [item for run in runs for item in run[part]]
    del merged["properties"]
    return log


def _table(*heads: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for head in heads:
        table.add_column(head, overflow="fold", no_wrap=head == "verdict")
    return table


def _cells(console: Console, source: str, verdict: str, record: Record | None, when: str) -> list[Text]:
    p = record.p_value if record is not None else None
    targets = list(map(str, record.targets)) if record is not None else []
    shown = " ".join(targets[:4]) + (" …" if len(targets) > 4 else "")
    texts = (
        view.clean(source, 200), verdict if record is not None else "not scanned", shown,
        "" if p is None else _short(p), when,
    )  # fmt: skip
    colour = COLOURS.get(verdict, "yellow")
    return [_say(console, t, colour if i == 1 else "") for i, t in enumerate(texts)]


def _short(p: float) -> str:
    """A p-value in few letters: 0.03, < 0.00001"""
    return view.probability(p).replace("less than", "<").replace("more than", ">")


def _when(time: str) -> str:
    """2026-11-21 14:31"""
    return view.clean(time.replace("T", " ")[:16])


def _say(console: Console, line: str, style: str = "") -> Text:
    """Text, never markup, in characters that the console has."""
    if console.options.ascii_only:
        line = line.translate(ASCII)
    return Text(line.encode(console.encoding, "replace").decode(console.encoding), style)
