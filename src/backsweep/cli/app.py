"""The command line. It only calls the API: text and progress to stderr, results to files.

Exit status: 0 nothing suspicious, 1 findings, 2 wrong usage or unreadable input, 3 inconclusive.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from backsweep import __version__
from backsweep.cli import about, signing
from backsweep.cli.bench import bench_app, zoo_app
from backsweep.cli.guard import guard_app
from backsweep.cli.inventory import AllVersions, Every, Models, StoreUrl, Watch, history, is_many, scan_many
from backsweep.cli.options import (
    Alpha,
    Budget,
    Confirm,
    Detectors,
    Effort,
    Model,
    Out,
    Reading,
    Samples,
    Scanned,
    Seed,
    Settings,
    Where,
    grouped,
    named,
)
from backsweep.cli.saying import Saying, opening
from backsweep.cli.shadows import bank_app
from backsweep.cli.terminal import Progress, console
from backsweep.cli.ui import ui
from backsweep.core.errors import BacksweepError, BadInput
from backsweep.core.text import one_line

INTERRUPTED = 130  # what shells expect after Ctrl-C

app = typer.Typer(
    no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False, rich_markup_mode="rich",
    help="Finds backdoors in trained neural networks, shows the trigger, and removes it.",
    epilog="Exit status: 0 nothing suspicious, 1 findings, 2 wrong usage or unreadable input, "
    "3 inconclusive.",
)  # fmt: skip
app.add_typer(zoo_app, name="zoo")
app.add_typer(bench_app, name="bench")
app.add_typer(guard_app, name="guard")
app.add_typer(bank_app, name="bank")


@app.command()
@grouped
def scan(
    reading: Reading,
    where: Where,
    saying: Saying,
    models: Models = None,
    data: Scanned = None,
    predict: Annotated[
        str | None,
        typer.Option(help="Address of a service that answers with class scores, instead of a model."),
    ] = None,
    detector: Detectors = None,
    p: Settings = None,
    alpha: Alpha = 0.05,
    seed: Seed = 0,
    out: Out = None,
    effort: Effort = None,
    budget: Budget = None,
    confirm: Confirm = False,
    reference: Annotated[
        str | None, typer.Option(help="A clean network for the same classes to compare with, a model file.")
    ] = None,
    bank: Annotated[
        Path | None, typer.Option(help="Of shadow networks, for mntd; see `backsweep bank`.")
    ] = None,
    store: StoreUrl = None,
    watch: Watch = False,
    every: Every = 10.0,
    all_versions: AllVersions = False,
) -> None:
    """Look for a backdoor in a model, or in many."""
    from backsweep.core.discovery import configure
    from backsweep.formats.opening import load
    from backsweep.scanning import scan
    from backsweep.scanning.detector import ModelDetector

    names = named(models, predict)
    given = [*(p or []), *([f"mntd.bank={bank}"] if bank is not None else [])]
    usual = scan.DEFAULT_DETECTORS
    if predict is not None:
        usual = (*scan.BLACK_BOX_DETECTORS, *(("mntd",) if bank is not None else ()))

    def chosen(usual: Sequence[str]) -> list[ModelDetector]:
        return [scan.with_effort(d, effort) for d in configure(ModelDetector, detector or usual, given)]

    told, many = reading.how(), is_many(names, store, watch)
    detectors = chosen(usual) if detector or predict is not None else []
    if many:
        from backsweep.inventory.sources import kinds_told
        from backsweep.inventory.sweep import Scan

        if data is None and "" in kinds_told(names):
            raise BadInput("many models are scanned with one set of clean samples; name it with --data")
        if confirm:
            raise BadInput("--confirm is for one model: confirm those that a scan of many has called")
        one = Scan(
            data or "", detectors or chosen(usual), alpha, seed, reading.device, reading.resize, reference,
            told, reading.split, reading.labels, others=not detectors,
        )  # fmt: skip
        engine = where.open()
        wait = every if watch else None
        raise typer.Exit(scan_many(names, one, store, engine, saying, out, wait, all_versions))
    with saying.progress() as on_event:
        rest = opening(on_event)
        loaded, clean = scan.open_both(names[0], data, **reading.data(), **told)
        saying.notes((*loaded.notes, *clean.notes))
        # which are usual hangs on the kind of input
        detectors = detectors or chosen(scan.usual(loaded))
        there = None
        if reference is not None:
            own = {"shape": loaded.shape, "classes": loaded.classes, "weights": None}
            there = load(reference, **{**told, **own})
        report = scan.scan(
            loaded, clean, detectors, alpha=alpha, seed=seed, device=reading.device, on_event=rest,
            out=out, reference=there, engine=where.shared(), budget=budget, confirm=confirm,
        )  # fmt: skip
    saying.report(report, out)
    raise typer.Exit(report.exit_status)


@app.command()
@grouped
def audit(
    data: Annotated[str, typer.Option(help="The training set: a folder per class, .npz, .csv, .tar, ...")],
    reading: Reading,
    saying: Saying,
    model: Annotated[
        str | None, typer.Argument(help="The network that was trained on it; or --train.")
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(help="Train one: a name in backsweep.archs, or package.module:factory of your code."),
    ] = None,
    clean: Annotated[str | None, typer.Option(help="Samples that are known to be clean.")] = None,
    detector: Detectors = None,
    p: Settings = None,
    alpha: Alpha = 0.05,
    verify: Annotated[bool, typer.Option(help="Train again without the flagged samples.")] = False,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Look for poisoned samples in a training set.

    OUT receives report.html, flagged.csv (the flagged samples), kept.csv (the others) and the scores.
    """
    from backsweep.auditing import audit, learning
    from backsweep.core.progress import Stage, split
    from backsweep.inputs.samples import Data
    from backsweep.scanning import scan

    if (model is None) == (train is None):
        raise BadInput("give the network that was trained on the set, or --train ARCH to train one")
    detectors = audit.configured(detector, p or []) if detector else []
    told = reading.how()
    with saying.progress() as on_event:
        rest = opening(on_event)
        if model is not None:
            loaded, samples = scan.open_both(model, data, whole=True, **reading.data(), **told)
            saying.notes((*loaded.notes, *samples.notes))
        else:
            samples = Data.open(data, shape=told["shape"], whole=True, **reading.data())
            saying.notes(samples.notes)
            if p and not detectors:  # said before a network has learned
                audit.configured([*audit.usual(len(samples), samples.modality), audit.SECOND], p)
            learns, rest = split(rest, (1, 1))
            tick = Stage(learns).named("training")
            loaded = learning.trained(train or "", samples, seed, reading.device, tick)
            saying.notes(loaded.notes)
        known = None
        if clean is not None:
            known = Data.open(
                clean, shape=loaded.shape, names=loaded.labels, resize=reading.resize,
                modality=loaded.modality,
            )  # fmt: skip
            saying.notes(known.notes)
        usual = audit.usual(len(samples), samples.modality, loaded)
        detectors = detectors or audit.configured(usual, p or [])
        report = audit.audit(
            loaded, samples, detectors, alpha=alpha, seed=seed, device=reading.device, clean=known,
            verify=verify, on_event=rest, out=out,
        )  # fmt: skip
    saying.report(report, out)
    raise typer.Exit(report.exit_status)


@app.command()
@grouped
def repair(
    model: Model,
    data: Samples,
    report: Annotated[Path, typer.Option(help="Folder of the model's scan.")],
    out: Annotated[Path, typer.Option(help="The repaired model, in the format of the model.")],
    reading: Reading,
    saying: Saying,
    method: Annotated[
        list[str] | None, typer.Option("--method", "-m", help="May repeat: the first that applies is made.")
    ] = None,
    p: Settings = None,
    origin: Annotated[
        str | None, typer.Option(help="What the model was tuned from, a file or folder, for fine_mixing.")
    ] = None,
    verify: Annotated[bool, typer.Option(help="Scan again, and try to bring the backdoor back.")] = True,
    seed: Seed = 0,
) -> None:
    """Take the backdoor that a scan found out of a model, and try to prove that it is gone.

    Beside OUT comes a folder OUT.repair with the page repair.html, repair.json and the new scan.
    Where the scan found nothing the model stays as it is, unless --method names a repair.
    Exit status: 0 verified, or nothing to repair; 1 a check failed; 2 wrong usage; 3 a check could not be
    made, or the scan could not tell.
    """
    from backsweep.core.discovery import configure
    from backsweep.formats.saving import check
    from backsweep.repairing import repair
    from backsweep.repairing.method import Repair
    from backsweep.reports.report import Report
    from backsweep.scanning import scan

    methods = configure(Repair, method, p or []) if method else []
    before = Report.load(report)
    if not method and (reason := repair.nothing_found(before)):
        left = {"repaired": False, "verdict": before.verdict, "reason": reason}
        saying.notes([f"{reason}; name a method to repair it all the same (--method)"])
        saying.result("nothing to repair", before.exit_status, "no page", lambda: left)
        raise typer.Exit(before.exit_status)
    told = reading.how()
    folder = out.with_name(out.name + ".repair")
    with saying.progress() as on_event:
        rest = opening(on_event)
        loaded, clean = scan.open_both(model, data, **reading.data(), **told)
        saying.notes((*loaded.notes, *clean.notes))
        methods = methods or configure(Repair, repair.usual(loaded), p or [])
        check(loaded, out)
        if loaded.unknown:
            saying.notes([f"{out} will hold the weights alone; what else the file holds stays behind"])
        repaired = repair.repair(
            loaded, clean, before, methods, seed=seed, device=reading.device, verify=verify, on_event=rest,
            out=folder, origin=origin,
        )  # fmt: skip
    repaired.save(out)
    repaired.about["command"] = ["backsweep", *sys.argv[1:]]
    repaired.about.setdefault("reports", {})["before"] = _beside(report / "report.html", folder)
    repaired.write(folder)
    saying.repair(repaired, folder, out)
    raise typer.Exit(repaired.exit_status)


@app.command()
def demo(
    out: Out = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    text: Annotated[bool, typer.Option("--text", help="On reviews instead of digits.")] = False,
    table: Annotated[bool, typer.Option("--table", help="On rows of a table.")] = False,
    sound: Annotated[bool, typer.Option("--sound", help="On made-up vowels instead of digits.")] = False,
    language: Annotated[bool, typer.Option("--language-model", help="A tiny assistant.")] = False,
) -> None:
    """Train a clean and a backdoored net on digits, reviews, rows, sounds or prompts; tell them apart."""
    from importlib import import_module

    others = (("reviews", text), ("rows", table), ("vowels", sound), ("prompts", language))
    name = next((name for name, wanted in others if wanted), "digits")
    run = import_module(f"backsweep.cli.demos.{name}").run
    with Progress() as on_event:
        run(console(), out or Path("backsweep-demo"), seed, on_event)


@app.command()
@grouped
def show(
    folder: Annotated[Path, typer.Argument(help="Folder of a saved report.")],
    saying: Saying,
    alpha: Annotated[float | None, typer.Option(help="Judge again with this false-alarm rate.")] = None,
) -> None:
    """Print a saved report; judge it again with another alpha, without the model."""
    from backsweep.auditing import audit
    from backsweep.reports.audit import TENSORS, Audit
    from backsweep.reports.report import Report
    from backsweep.scanning import scan

    report: Report
    if (folder / TENSORS).is_file():
        audited = Audit.load(folder)
        report = audited if alpha is None else audit.judge(audited, alpha)
    else:
        report = Report.load(folder)
        report = report if alpha is None else scan.judge(report, alpha)
    saying.report(report, folder)
    raise typer.Exit(report.exit_status)


app.command()(history)
app.command()(ui)
app.command()(signing.sign)
app.command()(signing.verify)
app.command()(about.explain)
app.command()(about.doctor)


@app.command("list")
def list_() -> None:
    """Detectors, repairs and attacks, with their settings; those of other packages too."""
    from rich.markup import escape
    from rich.table import Table

    from backsweep.core.discovery import discover, plugins
    from backsweep.render.view import clean

    screen, broken = console(stderr=False), []
    for title, kind in about.kinds().items():
        brought = {p.name: clean(p.package) for p in plugins(kind) if p.cls is not None}
        broken += [p for p in plugins(kind) if p.cls is None]
        heads = ["name", "what", "settings (-p name.field=value)", *["from"] * bool(brought)]
        table = Table(*heads, title=title, title_justify="left")
        for name, cls in discover(kind).items():
            settings = ", ".join(f"{k}={v}" for k, v in cls().settings().items())
            row = [name, cls.summary, settings, *[brought.get(name, "")] * bool(brought)]
            table.add_row(*(escape(clean(cell, 1000)) for cell in row))
        screen.print(table)
    for plugin in broken:
        line = f"broken: {clean(plugin.name)} of {clean(plugin.package)}: {clean(plugin.reason, 300)}"
        screen.print(line, markup=False, soft_wrap=True)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"backsweep {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML: defaults of options. Default: backsweep.toml, or \\[tool.backsweep] in pyproject.toml"
        ),
    ] = None,
) -> None:
    from backsweep.cli import defaults

    words = [w for w in sys.argv[1:] if not w.startswith("-")]
    first = context.invoked_subcommand
    called = words[words.index(first) :] if first in words else []
    for line in defaults.apply(context, config, called):
        if not {"-q", "--quiet"} & set(sys.argv):
            console().print(one_line(line), markup=False, highlight=False, soft_wrap=True)


def _beside(path: Path, folder: Path) -> str:
    """The path as seen from a folder."""
    return Path(os.path.relpath(path, folder)).as_posix()


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
