"""Commands for the zoo and the bench."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from backsweep.cli.options import Where, grouped
from backsweep.cli.terminal import Progress, console
from backsweep.core.errors import BadInput

zoo_app = typer.Typer(no_args_is_help=True, help="Attacked and clean networks whose truth is known.")
bench_app = typer.Typer(no_args_is_help=True, help="Detectors and repairs over the zoo, and the leaderboard.")

Plan = Annotated[Path, typer.Argument(help="TOML file: which networks, which detectors and repairs.")]
Home = Annotated[Path | None, typer.Option(help="Folder of the zoo. Default: $BACKSWEEP_HOME/zoo.")]


@zoo_app.command("build")
@grouped
def zoo_build(
    plan: Plan,
    where: Where,
    zoo: Home = None,
) -> None:
    """Train the networks of a plan; what is there already is kept."""
    from backsweep.core.progress import Event
    from backsweep.zoo import build as z

    entries, folder = z.entries(z.read_plan(plan)), zoo or z.home_folder()
    known = sum((folder / e.id / "manifest.json").is_file() for e in entries)
    nets: list[Any] = []
    begin = time.monotonic()
    with Progress() as on_event:
        on_event(Event("zoo", known, len(entries), known, 0.0))
        for net in z.build(entries, folder, where.open()):
            nets.append(net)
            done = max(known, len(nets))
            on_event(Event("zoo", done, len(entries), known, time.monotonic() - begin))
    failed = [(n.id, reason) for n in nets if (reason := z.failed_gate(n))]
    screen = console()
    screen.print(f"{len(nets)} networks in {folder}; {len(nets) - len(failed)} passed the gate")
    for name, reason in failed:
        screen.print(f"  not admitted: {name}: {reason}", markup=False)


@zoo_app.command("list")
def zoo_list(
    zoo: Home = None,
    out: Annotated[Path | None, typer.Option(help="JSON lines: digests, rates, gate.")] = None,
) -> None:
    """The networks of the zoo with their truth."""
    from rich.table import Column, Table

    from backsweep.core.files import write_text
    from backsweep.zoo import build as z

    nets = z.nets(zoo or z.home_folder())
    if out is not None:
        write_text(out, "".join(json.dumps(z.summary(net)) + "\n" for net in nets))
        return
    name = Column("network", overflow="fold", min_width=30)
    table = Table(name, "target", "clean\naccuracy", "attack\nsuccess rate", "gate")
    for net in nets:
        t = net.truth
        rate = f"{t['attack_success_rate']:.1%}" if t["attack_success_rate"] is not None else ""
        target = ", ".join("y + 1" if k["target"] is None else str(k["target"]) for k in t["triggers"])
        table.add_row(net.id, target, f"{t['clean_accuracy']:.1%}", rate, z.failed_gate(net) or "ok")
    console(stderr=False).print(table)


@zoo_app.command("show")
def zoo_show(
    net: Annotated[str, typer.Argument(help="Name of a network, as `zoo list` gives it.")],
    zoo: Home = None,
    out: Annotated[Path | None, typer.Option(help="PNG: clean, stamped, change and trigger.")] = None,
) -> None:
    """Draw a network's triggers and a stamped example, and print its figures."""
    from backsweep.core.files import write_image
    from backsweep.render.terminal import twin
    from backsweep.zoo import build as z

    found = z.find(net, zoo or z.home_folder())
    _, test = z.load_data(found.truth["task"])
    twin.show(found, test, console(stderr=False))
    if out is not None:
        write_image(out, twin.sheet(found, test))
        console().print(f"picture: {out}", markup=False, soft_wrap=True)


@bench_app.command("run")
@grouped
def bench_run(
    plan: Plan,
    out: Annotated[Path, typer.Option(help="JSON lines; finished cells are not run again.")],
    where: Where,
    zoo: Home = None,
) -> None:
    """Run the plan's detectors over its networks and append JSON lines."""
    from backsweep.bench import detectors
    from backsweep.zoo import build as z

    engine = where.open()
    with Progress() as on_event:
        count = detectors.run(z.read_plan(plan), zoo or z.home_folder(), out, engine, on_event)
    console().print(f"{count} cells in {out}")


@bench_app.command("table")
def bench_table(
    lines: Annotated[list[Path], typer.Argument(help="What `bench run` wrote; one file or several.")],
    out: Annotated[Path | None, typer.Option(help="File, .md or .html; else Markdown, printed.")] = None,
    split: Annotated[str, typer.Option(help="Networks for judging, or for choosing constants.")] = "judging",
) -> None:
    """Make the leaderboard from the JSON lines."""
    from backsweep.bench.records import read_all
    from backsweep.render.boards import leaderboard

    as_html = _is_html(out)
    _put((leaderboard.page if as_html else leaderboard.table)(read_all(lines), split), out)


def _is_html(out: Path | None) -> bool:
    """Whether a leaderboard is to be a page, and not Markdown.

    Raises:
        BadInput: the file is neither.
    """
    if out is not None and out.suffix not in (".md", ".html"):
        raise BadInput(f"the leaderboard is written as .md or .html; {out} is neither")
    return out is not None and out.suffix == ".html"


def _put(text: str, out: Path | None) -> None:
    """Into a file, or printed."""
    from backsweep.core.files import write_text

    if out is None:
        typer.echo(text)
    else:
        write_text(out, text)


@bench_app.command("null")
def bench_null(
    lines: Annotated[Path, typer.Argument(help="What `bench run` wrote of clean calibration networks.")],
    out: Annotated[
        Path, typer.Option(help="JSON file; nulls/ of scanning and of auditing hold those of the package.")
    ],
    kinds: Annotated[
        str | None,
        typer.Option(help="One table over all kinds, of this detector, from clean lines of any seed."),
    ] = None,
) -> None:
    """Make null tables: what detectors score on clean networks, or on unpoisoned sets."""
    if kinds is not None:
        _null_of_kinds(lines, out, kinds)
        return
    from backsweep.auditing import nulls
    from backsweep.bench.records import read
    from backsweep.core.files import write_json
    from backsweep.scanning import calibration
    from backsweep.zoo import build

    own = [line for line in read(lines) if build.split_of(line.get("seed", 0)) == build.CALIBRATION]
    audits = [line for line in own if line.get("audit")]
    tables = nulls.make(audits) + calibration.make([line for line in own if not line.get("audit")])
    if not tables:
        raise BadInput(f"{lines} has no clean network with a seed of {build.CALIBRATION_SEEDS} or more")
    write_json(out, tables)
    console().print(f"{len(tables)} tables of {len(own)} scans in {out}")


def _null_of_kinds(lines: Path, out: Path, detector: str) -> None:
    """A table of clean networks of many kinds into a file."""
    from backsweep.bench import ranked
    from backsweep.bench.records import read
    from backsweep.core.files import write_json
    from backsweep.core.versions import versions

    own = read(lines)
    known = ranked.networks(own, detector)
    settings = next(line["settings"] for line in own if line.get("detector") == detector)
    table = ranked.null(known, detector, settings, **versions())
    write_json(out, [ranked.document(table)])
    console().print(f"{table.words.replace(' other', '')} in {out}")


@bench_app.command("kinds")
def bench_kinds(
    lines: Annotated[Path, typer.Argument(help="What `bench run` wrote of networks of many kinds.")],
    out: Annotated[Path | None, typer.Option(help="File, .md or .html; else Markdown, printed.")] = None,
    detector: Annotated[str, typer.Option(help="Whose scans.")] = "cascade",
    apart: Annotated[
        str,
        typer.Option(
            help="Of others than the cascade: what is left out with a network, its kind or its data."
        ),
    ] = "kind",
) -> None:
    """Judge every network by those of all other kinds: what a verdict on a stranger's model is worth."""
    from backsweep.bench import kinds, ranked
    from backsweep.bench.records import read
    from backsweep.render.boards import board
    from backsweep.render.boards import kinds as boards

    if apart not in ranked.APART:
        raise BadInput(f"{apart!r} is neither kind nor data")
    as_html, own = _is_html(out), read(lines)
    refused = sum(bool(line.get("gate")) for line in own)
    if detector == "cascade":
        page = boards.page(kinds.networks(own), refused)
    else:
        page = boards.ranked_page(ranked.networks(own, detector), detector, apart, refused)
    _put((board.html if as_html else board.markdown)(page), out)


@bench_app.command("population")
def bench_population(
    lines: Annotated[Path, typer.Argument(help="What `bench run` wrote of networks of many kinds.")],
    out: Annotated[Path, typer.Option(help="JSON file; the package has its own beside the cascade.")],
) -> None:
    """Fit what clean networks of many kinds are like, for verdicts on kinds that were not seen."""
    from backsweep.bench import kinds
    from backsweep.bench.records import read
    from backsweep.core.files import write_json
    from backsweep.core.versions import versions

    own = [line for line in read(lines) if line.get("measured")]
    known = kinds.networks(own)
    found = kinds.populations(known, own[0]["settings"] if own else {})
    documents = [p.document() for p in found]
    write_json(out, [{**d, "made": {**d["made"], **versions()}} for d in documents])
    console().print(f"{found[-1].words} in {out}")
