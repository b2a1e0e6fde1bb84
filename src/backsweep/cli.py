"""The command line. It only calls the API: text and progress to stderr, results to files.

Exit status: 0 nothing suspicious, 1 findings, 2 wrong usage or unreadable input, 3 inconclusive.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backsweep import __version__
from backsweep.errors import BacksweepError, BadInput

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from backsweep.run import Event, OnEvent

INTERRUPTED = 130  # what shells expect after Ctrl-C

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich",
    help="Finds backdoors in trained neural networks and shows what the trigger looks like.",
    epilog="Exit status: 0 nothing suspicious, 1 findings, 2 wrong usage or unreadable input, "
    "3 inconclusive.",
)  # fmt: skip
zoo_app = typer.Typer(no_args_is_help=True, help="Attacked and clean networks whose truth is known.")
bench_app = typer.Typer(no_args_is_help=True, help="Detectors over the zoo, and the leaderboard.")
app.add_typer(zoo_app, name="zoo")
app.add_typer(bench_app, name="bench")

Out = Annotated[Path | None, typer.Option("--out", help="Folder for the report; made if need be.")]
Plan = Annotated[Path, typer.Argument(help="TOML file: which networks, which detectors.")]
Home = Annotated[Path | None, typer.Option(help="Folder of the zoo. Default: $BACKSWEEP_HOME/zoo.")]
Settings = Annotated[
    list[str] | None, typer.Option("-p", metavar="NAME.FIELD=VALUE", help="A detector's setting.")
]


@app.command()
def scan(
    model: Annotated[str, typer.Argument(help="safetensors, weights-only .pt/.pth, .pt2, or a folder.")],
    data: Annotated[str, typer.Option(help="Clean samples: a folder per class, or .npz with x and y.")],
    arch: Annotated[str | None, typer.Option(help="package.module:factory of your own code.")] = None,
    detector: Annotated[list[str] | None, typer.Option("--detector", "-d", help="May repeat.")] = None,
    p: Settings = None,
    alpha: Annotated[float, typer.Option(help="False-alarm rate that is accepted.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    out: Out = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ... Default: a GPU if any.")] = None,
    shape: Annotated[str | None, typer.Option(help="Of one input, e.g. 3,32,32.")] = None,
    classes: Annotated[int | None, typer.Option(help="Number of classes.")] = None,
    mean: Annotated[str | None, typer.Option(help="The model's normalisation, e.g. 0.5,0.5,0.5.")] = None,
    std: Annotated[str | None, typer.Option(help="Likewise.")] = None,
    layer: Annotated[str | None, typer.Option(help="Name of the penultimate layer.")] = None,
    resize: Annotated[bool, typer.Option(help="Resize images to the model's input.")] = False,
    reference: Annotated[
        str | None, typer.Option(help="A clean network for the same classes to compare with, a model file.")
    ] = None,
) -> None:
    """Look for a backdoor in a model."""
    from backsweep import api
    from backsweep.load import load

    detectors = api.configure(detector, p or [])
    how: dict[str, Any] = {
        "arch": arch, "shape": _numbers(shape, int), "classes": classes, "mean": _numbers(mean, float),
        "std": _numbers(std, float), "layer": layer,
    }  # fmt: skip
    loaded, clean = api.open_both(model, data, resize=resize, **how)
    there = None
    if reference is not None:
        there = load(reference, **{**how, "shape": loaded.shape, "classes": loaded.classes})
    with _Progress() as on_event:
        report = api.scan(
            loaded, clean, detectors, alpha=alpha, seed=seed, device=device, on_event=on_event, out=out,
            reference=there,
        )  # fmt: skip
    _show(report, out)
    raise typer.Exit(report.exit_status)


@app.command()
def demo(
    out: Out = None, seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0
) -> None:
    """Train a clean and a backdoored net on real digits, scan both, tell them apart."""
    from backsweep.demo import run

    console = _console()
    with _Progress() as on_event:
        run(console, out or Path("backsweep-demo"), seed, on_event)


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="Folder of a saved report.")],
    alpha: Annotated[float | None, typer.Option(help="Judge again with this false-alarm rate.")] = None,
) -> None:
    """Print a saved report; judge it again with another alpha, without the model."""
    from backsweep.api import judge
    from backsweep.report import Report

    report = Report.load(folder)
    if alpha is not None:
        report = judge(report, alpha)
    _show(report, folder)
    raise typer.Exit(report.exit_status)


@app.command("list")
def list_() -> None:
    """Detectors and attacks, with their settings."""
    from rich.table import Table

    from backsweep.base import Attack, ModelDetector
    from backsweep.plugins import discover

    for title, kind in (("Detectors", ModelDetector), ("Attacks", Attack)):
        table = Table("name", "what", "settings (-p name.field=value)", title=title, title_justify="left")
        for name, cls in discover(kind).items():
            settings = ", ".join(f"{k}={v}" for k, v in cls().settings().items())
            table.add_row(name, cls.summary, settings)
        _console(stderr=False).print(table)


@zoo_app.command("build")
def zoo_build(
    plan: Plan, zoo: Home = None, workers: Annotated[int, typer.Option(help="Processes.", min=1)] = 1
) -> None:
    """Train the networks of a plan; what is there already is kept."""
    from backsweep import zoo as z
    from backsweep.run import Event

    entries, folder = z.entries(z.read_plan(plan)), zoo or z.home_folder()
    known = sum((folder / e.id / "manifest.json").is_file() for e in entries)
    nets: list[Any] = []
    begin = time.monotonic()
    with _Progress() as on_event:
        on_event(Event("zoo", known, len(entries), known, 0.0))
        for net in z.build(entries, folder, workers):
            nets.append(net)
            done = max(known, len(nets))
            on_event(Event("zoo", done, len(entries), known, time.monotonic() - begin))
    failed = [(n.id, reason) for n in nets if (reason := z.failed_gate(n))]
    console = _console()
    console.print(f"{len(nets)} networks in {folder}; {len(nets) - len(failed)} passed the gate")
    for name, reason in failed:
        console.print(f"  not admitted: {name}: {reason}", markup=False)


@zoo_app.command("list")
def zoo_list(
    zoo: Home = None,
    out: Annotated[Path | None, typer.Option(help="JSON lines: digests, rates, gate.")] = None,
) -> None:
    """The networks of the zoo with their truth."""
    from rich.table import Column, Table

    from backsweep import zoo as z
    from backsweep.files import write_text

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
    _console(stderr=False).print(table)


@zoo_app.command("show")
def zoo_show(
    net: Annotated[str, typer.Argument(help="Name of a network, as `zoo list` gives it.")],
    zoo: Home = None,
    out: Annotated[Path | None, typer.Option(help="PNG: clean, stamped, change and trigger.")] = None,
) -> None:
    """Draw a network's triggers and a stamped example, and print its figures."""
    from backsweep import zoo as z
    from backsweep.files import write_image
    from backsweep.render import twin

    found = z.find(net, zoo or z.home_folder())
    _, test = z.load_data(found.truth["task"])
    twin.show(found, test, _console(stderr=False))
    if out is not None:
        write_image(out, twin.sheet(found, test))
        _console().print(f"picture: {out}", markup=False, soft_wrap=True)


@bench_app.command("run")
def bench_run(
    plan: Plan,
    out: Annotated[Path, typer.Option(help="JSON lines; finished cells are not run again.")],
    zoo: Home = None,
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = 1,
) -> None:
    """Run the plan's detectors over its networks and append JSON lines."""
    from backsweep import bench
    from backsweep import zoo as z

    with _Progress() as on_event:
        count = bench.run(z.read_plan(plan), zoo or z.home_folder(), out, workers, on_event)
    _console().print(f"{count} cells in {out}")


@bench_app.command("table")
def bench_table(
    lines: Annotated[Path, typer.Argument(help="What `bench run` wrote.")],
    out: Annotated[Path | None, typer.Option(help="File, .md or .html; else Markdown, printed.")] = None,
    split: Annotated[str, typer.Option(help="Networks for judging, or for choosing constants.")] = "judging",
) -> None:
    """Make the leaderboard from the JSON lines."""
    from backsweep import leaderboard
    from backsweep.files import write_text
    from backsweep.lines import read

    if out is not None and out.suffix not in (".md", ".html"):
        raise BadInput(f"the leaderboard is written as .md or .html; {out} is neither")
    make = leaderboard.page if out is not None and out.suffix == ".html" else leaderboard.table
    text = make(read(lines), split)
    if out is None:
        typer.echo(text)
    else:
        write_text(out, text)


@bench_app.command("null")
def bench_null(
    lines: Annotated[Path, typer.Argument(help="What `bench run` wrote of clean calibration networks.")],
    out: Annotated[Path, typer.Option(help="JSON file; backsweep/nulls holds those of the package.")],
) -> None:
    """Make null tables: what each detector scores on clean networks."""
    from backsweep import calibration, zoo
    from backsweep.files import write_json
    from backsweep.lines import read

    own = [line for line in read(lines) if zoo.split_of(line.get("seed", 0)) == zoo.CALIBRATION]
    tables = calibration.make(own)
    if not tables:
        raise BadInput(f"{lines} has no clean network with a seed of {zoo.CALIBRATION_SEEDS} or more")
    write_json(out, tables)
    _console().print(f"{len(tables)} tables of {len(own)} scans in {out}")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"backsweep {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _console(stderr: bool = True) -> Console:
    from rich.console import Console

    return Console(stderr=stderr)


def _show(report: Any, folder: Path | None) -> None:
    from backsweep.render.console import show as show_report

    show_report(report, _console(), folder=folder)


def _numbers(text: str | None, kind: type) -> list[Any] | None:
    """ "3,32,32" -> [3, 32, 32]"""
    if text is None:
        return None
    try:
        return [kind(part) for part in text.replace("x", ",").split(",")]
    except ValueError as e:
        raise BadInput(f"{text!r} is not a list of numbers such as 3,32,32") from e


class _Progress:
    """Shows events on stderr: a bar in a terminal, elsewhere a line now and then."""

    EVERY = 30.0  # seconds between two lines

    def __enter__(self) -> OnEvent:
        self._console = _console()
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last = time.monotonic()
        return self._bar_event if self._console.is_terminal else self._line_event

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _bar_event(self, event: Event) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        if self._bar is None:
            columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}")
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.start()
        text = self._text(event)
        if event.stage not in self._tasks:
            self._tasks[event.stage] = self._bar.add_task(event.stage, total=event.total, text=text)
        self._bar.update(self._tasks[event.stage], completed=event.done, text=text)

    def _line_event(self, event: Event) -> None:
        if time.monotonic() - self._last >= self.EVERY:
            self._last = time.monotonic()
            self._console.print(f"{event.stage}: {self._text(event)}", markup=False)

    @staticmethod
    def _text(event: Event) -> str:
        left = event.seconds_left
        text = f"{event.done:.0f}/{event.total}" + (f", {_duration(left)} left" if left else "")
        return text + (f", {event.resumed} from an earlier run" if event.resumed else "")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def main() -> None:
    """Entry point: every error that a user can mend is one line and exit status 2."""
    try:
        status = app(standalone_mode=False)
    except BacksweepError as e:
        typer.echo("error: " + " ".join(str(e).split()), err=True)
        status = 2
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except Exception as e:
        if hasattr(e, "show") and hasattr(e, "exit_code"):  # wrong usage, as the CLI library says it
            e.show()
            status = e.exit_code
        else:  # an internal error must not look like exit status 1, "findings"
            traceback.print_exc()
            typer.echo(f"error: a defect of Backsweep, please report it ({type(e).__name__})", err=True)
            status = 3
    if status == INTERRUPTED:
        typer.echo("stopped; with --out, what is done is kept: the same command goes on there", err=True)
    sys.exit(status or 0)
