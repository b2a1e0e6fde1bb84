"""Commands for many models: a sweep with or without an end, and the verdicts that were kept."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from enum import Enum
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backsweep.cli.saying import NOT_KEPT
from backsweep.cli.terminal import console
from backsweep.core import documents
from backsweep.core.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backsweep.cli.saying import Saying
    from backsweep.engine.engine import Engine
    from backsweep.inventory.store import Record, Store
    from backsweep.inventory.sweep import Outcome, Scan

Models = Annotated[
    list[str] | None,
    typer.Argument(
        show_default=False,
        help="safetensors, a checkpoint (.pt, .pth, .ckpt), .pt2, ONNX, TorchScript, or a folder; several, a "
        "folder of models, mlflow:ADDRESS.",
    ),
]
StoreUrl = Annotated[
    str | None,
    typer.Option("--store", help="Keep verdicts, and scan nothing twice: a path, or postgresql://..."),
]
Watch = Annotated[bool, typer.Option(help="Go on looking for models that appear, until Ctrl-C.")]
Every = Annotated[float, typer.Option(help="Seconds between two looks of --watch.", min=0.1)]
AllVersions = Annotated[bool, typer.Option(help="Of mlflow: every version, not the newest alone.")]


class Verdict(str, Enum):
    """What can be asked for."""

    clean = "clean"
    backdoored = "backdoored"
    inconclusive = "inconclusive"


class Format(str, Enum):
    """What a history can be written as."""

    table = "table"
    csv = "csv"
    json = "json"
    sarif = "sarif"
    cyclonedx = "cyclonedx"
    html = "html"


def is_many(models: Sequence[str], store: str | None, watched: bool) -> bool:
    """Whether a scan is a sweep, and not the scan of one model."""
    from backsweep.inventory.sources import is_collection

    return len(models) > 1 or store is not None or watched or is_collection(models[0])


def scan_many(
    models: Sequence[str],
    how: Scan,
    url: str | None,
    engine: Engine,
    saying: Saying,
    out: Path | None,
    every: float | None = None,
    all_versions: bool = False,
) -> int:
    """Scan models and print what was found; the exit status.

    Args:
        models: files, folders, registries.
        how: the scan.
        url: of the store, None keeps nothing.
        engine: where to compute.
        saying: what is said.
        out: folder for the reports.
        every: seconds between two looks; None looks once.
        all_versions: of the models of a registry.
    """
    import contextlib

    from backsweep.inventory.sources import find
    from backsweep.inventory.store import Store
    from backsweep.inventory.sweep import sweep
    from backsweep.render.terminal import history as shown
    from backsweep.render.view import clean
    from backsweep.reports.report import BACKDOORED, CLEAN, EXIT_STATUS, INCONCLUSIVE

    with contextlib.ExitStack() as stack:
        store = stack.enter_context(Store(url)) if url is not None else None
        if every is not None:
            outcomes = _watch(models, how, store, engine, saying, out, every, all_versions)
        else:
            sources = list(find(models, all_versions))
            if not sources:
                raise BadInput(f"{models[0]}: no model files are there; name a file or another folder")
            with saying.progress() as on_event:
                outcomes = list(sweep(sources, how, store, engine, on_event, out))
    shown.show_outcomes(outcomes, saying.console())
    if store is None and out is None:
        saying.console().print(f"{NOT_KEPT}; --store keeps verdicts", markup=False, soft_wrap=True)
    verdicts = {o.verdict for o in outcomes}
    worst = next((v for v in (BACKDOORED, INCONCLUSIVE) if v in verdicts), CLEAN)
    page = clean(out, 400) if out is not None else "no page"
    said = shown.summary(outcomes)
    saying.result(said, EXIT_STATUS[worst], page, lambda: [o.to_json() for o in outcomes])
    return EXIT_STATUS[worst]


def _watch(
    models: Sequence[str],
    how: Scan,
    store: Store | None,
    engine: Engine,
    saying: Saying,
    out: Path | None,
    every: float,
    all_versions: bool,
) -> list[Outcome]:
    """Scan what appears, until Ctrl-C."""
    from backsweep.inventory.sources import watch
    from backsweep.inventory.sweep import sweep
    from backsweep.render.terminal.history import line
    from backsweep.render.view import clean

    screen = saying.console()
    outcomes: dict[str, Outcome] = {}

    def trouble(why: str) -> None:
        screen.print(f"at the next look again: {clean(why, 300)}", markup=False, soft_wrap=True)

    how.settings()  # what cannot be used is said before the first model comes
    screen.print(f"looking every {every:g} s; Ctrl-C ends it", markup=False)
    try:
        for batch in watch(models, every, trouble, all_versions):
            for outcome in sweep(batch, how, store, engine, out=out) if batch else ():
                outcomes[outcome.source] = outcome
                screen.print(line(outcome, screen), soft_wrap=True)
    except KeyboardInterrupt:
        pass
    return list(outcomes.values())


def history(
    store: Annotated[
        str | None,
        typer.Option(help="Path or postgresql://... Default: store.db in $BACKSWEEP_HOME."),
    ] = None,
    verdict: Annotated[Verdict | None, typer.Option(help="Only these.")] = None,
    model: Annotated[
        str | None, typer.Option(help="The first digits of a SHA-256, or a pattern such as '*/nets/*.pt'.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="A date, or date and time (UTC): 2026-11-21T14:00.")
    ] = None,
    detector: Annotated[str | None, typer.Option("--detector", "-d", help="Scans with this one.")] = None,
    format_: Annotated[Format, typer.Option("--format", "-f", help="What is written.")] = Format.table,
    out: Annotated[Path | None, typer.Option("--out", help="File. Default: the standard output.")] = None,
    bom: Annotated[
        Path | None, typer.Option(help="A CycloneDX file that the models are put into (--format cyclonedx).")
    ] = None,
    add: Annotated[
        list[Path] | None, typer.Option(help="Put verdicts of a --format json file into the store first.")
    ] = None,
) -> None:
    """List, filter and export the verdicts of a store."""
    from backsweep.core.files import writable_folder, write_text
    from backsweep.inventory.store import Store
    from backsweep.render.terminal import history as shown

    if bom is not None and format_ is not Format.cyclonedx:
        raise BadInput("--bom goes with --format cyclonedx")
    begin = None if since is None else utc(since)
    with Store(store, create=bool(add)) as kept:
        for path in add or ():
            count = sum(kept.put(record) for record in _read_records(path))
            console().print(f"{path}: {count} verdicts added", markup=False, soft_wrap=True)
        full = format_ not in (Format.table, Format.csv, Format.html)
        records = kept.records(verdict=verdict and verdict.value, since=begin, reports=full)
    records = list(chosen(records, model, detector))
    if format_ is Format.table and out is None:
        shown.show_records(records, console(stderr=False))
        return
    text = _written(records, format_, bom)
    if out is None:
        typer.echo(text, nl=False)
        return
    writable_folder(out.parent)
    write_text(out, text)
    console().print(f"{len(records)} verdicts in {out}", markup=False, soft_wrap=True)


def chosen(records: Sequence[Record], model: str | None, detector: str | None) -> Iterator[Record]:
    """The records on models that a pattern or the beginning of a digest names, made with a detector."""
    digest = model is not None and re.fullmatch("[0-9a-fA-F]{6,64}", model) is not None
    for r in records:
        named = (
            model is None or fnmatch(r.source, model) or (digest and r.model.startswith(str(model).lower()))
        )
        if named and (detector is None or detector in r.settings.get("detectors", {})):
            yield r


def utc(text: str) -> str:
    """A date or time of a user in the form of `Record.time`; without a zone it is UTC.

    Raises:
        BadInput: it is none.
    """
    try:
        found = datetime.fromisoformat(re.sub("[zZ]$", "+00:00", text.strip()))
        found = found if found.tzinfo is not None else found.replace(tzinfo=timezone.utc)
        return found.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError) as e:
        raise BadInput(f"{text!r} is not a date such as 2026-11-21 or 2026-11-21T14:00") from e


def _written(records: list[Record], format_: Format, bom: Path | None) -> str:
    import io

    from rich.console import Console

    from backsweep.render.dashboard import lists
    from backsweep.render.exchange.cyclonedx import cyclonedx
    from backsweep.render.terminal import history as shown

    value: Any
    if format_ is Format.csv:
        return shown.to_csv(records)
    if format_ is Format.html:
        return lists.written(records)
    if format_ is Format.table:
        screen = Console(width=160, color_system=None, record=True, file=io.StringIO())
        shown.show_records(records, screen)
        return screen.export_text()
    if format_ is Format.json:
        value = [r.to_json() for r in records]
    elif format_ is Format.sarif:
        value = shown.to_sarif(records)
    else:
        value = cyclonedx(records, None if bom is None else _read_json(bom))
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def _read_records(path: Path) -> list[Record]:
    from backsweep.inventory.store import Record

    raw = _read_json(path)
    if not isinstance(raw, list):
        raise BadInput(f"{path} holds no list of verdicts; give a file of backsweep history --format json")
    found = [Record.from_json(r) for r in raw]
    if any(r.report is None for r in found):
        raise BadInput(f"{path} holds verdicts without their reports; give a file of history --format json")
    return found


def _read_json(path: Path) -> Any:
    try:
        return documents.parsed(path.read_bytes())
    except OSError as e:
        raise BadInput(f"cannot read {path}: {e.strerror}; check the path") from e
    except ValueError as e:
        raise BadInput(f"{path} is not JSON, or is damaged ({e})") from e
