"""Commands for samples: the guard that looks at inputs while a model runs."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backsweep.cli.options import (
    Alpha,
    Arch,
    Detectors,
    Device,
    Model,
    Reading,
    Resize,
    Samples,
    Seed,
    Settings,
    grouped,
    tell,
)
from backsweep.cli.saying import Saying, opening
from backsweep.cli.terminal import Progress, console
from backsweep.core.errors import BadInput

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from backsweep.guarding.conformal import Drift
    from backsweep.guarding.guard import Answers, Guard
    from backsweep.inputs.modality import Modality
    from backsweep.inputs.trigger import Trigger

OWN_NETWORKS = "backsweep.archs:"  # whose code may run unasked

guard_app = typer.Typer(
    no_args_is_help=True, help="Tells triggered inputs from clean ones while a model runs."
)

Folder = Annotated[Path, typer.Argument(help="Folder of a fitted guard.")]
Again = Annotated[
    str | None, typer.Option("--model", help="The guarded model. Default: the path that it was fitted from.")
]
BATCH = 256


@guard_app.command("fit")
@grouped
def guard_fit(
    model: Model,
    data: Samples,
    out: Annotated[Path, typer.Option(help="Folder for the guard; made if need be.")],
    reading: Reading,
    detector: Detectors = None,
    p: Settings = None,
    fpr: Annotated[float, typer.Option(help="Share of clean inputs that may be flagged.")] = 0.01,
    report: Annotated[
        Path | None, typer.Option(help="Folder of the model's scan, for detectors that use its triggers.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Fit a guard to a model with clean samples."""
    from backsweep.core.discovery import configure
    from backsweep.core.files import writable_folder
    from backsweep.guarding import guard
    from backsweep.guarding.detector import SampleDetector
    from backsweep.scanning import scan

    methods = configure(SampleDetector, detector, p or []) if detector else []
    with Progress() as on_event:
        rest = opening(on_event)
        loaded, clean = scan.open_both(model, data, **reading.data(), **reading.how())
        tell((*loaded.notes, *clean.notes))
        methods = methods or configure(SampleDetector, guard.usual(loaded), p or [])
        loaded.resize = (
            loaded.resize or reading.resize
        )  # what is checked later is made to fit in the same way
        triggers = _triggers(report, loaded.digest) if report is not None else []
        fitted = guard.guard(
            loaded,
            clean,
            methods,
            fpr=fpr,
            triggers=triggers,
            device=reading.device,
            seed=seed,
            on_event=rest,
        )
    fitted.save(writable_folder(out))
    screen = console()
    for note in fitted.skipped:
        screen.print(f"skipped: {note.what}: {note.reason}", markup=False, soft_wrap=True)
    names = ", ".join(fitted.scorers)
    screen.print(
        f"guard: {out} ({names}; flags {fpr:.2%} of clean inputs; {fitted.passes:g} forward passes an input)",
        markup=False, soft_wrap=True,
    )  # fmt: skip


@guard_app.command("check")
@grouped
def guard_check(
    folder: Folder,
    inputs: Annotated[
        Path,
        typer.Option(help="A folder of files, .npz with x, or texts as a scan reads them; no labels."),
    ],
    saying: Saying,
    model: Again = None,
    out: Annotated[Path | None, typer.Option(help="CSV: every input's class, score and flag.")] = None,
    alpha: Alpha = 0.01,
    arch: Arch = None,
    device: Device = None,
    resize: Resize = False,
) -> None:
    """Say which inputs carry a trigger.

    Exit status: 0 no more inputs are flagged than clean ones explain, 1 more are, 2 unreadable. ALPHA is the
    share of clean batches that may end with 1; with --alpha 1 a single flagged input does.
    """
    import torch

    from backsweep.core.files import writable_folder, write_text
    from backsweep.guarding.guard import Answers
    from backsweep.render.view import clean

    if not 0 < alpha <= 1:
        raise BadInput(f"alpha {alpha} is no share of clean batches: give a number above 0 and at most 1")
    guard = _restored(folder, model, arch, device)
    fits = resize or bool(guard.about["model"].get("resize"))
    names, x = read_inputs(inputs, guard.model.shape, fits, guard.model.modality)
    if out is not None:
        writable_folder(out.parent)
    with saying.progress() as on_event:
        parts = [guard.predict(part) for part in _told(guard.inputs(x).split(BATCH), on_event)]
    found = Answers(*(torch.cat(column) for column in zip(*parts, strict=True)))
    if out is not None:
        write_text(out, _csv(guard, names, found))
    drift = guard.drift(found.scores)
    alarm = bool(found.flagged.any()) and drift.flagged_p_value <= alpha
    said = _show(guard, names, found, out, drift, alarm, saying.console())
    file = clean(out, 400) if out is not None else "no file"
    saying.result(said, int(alarm), file, lambda: _document(guard, names, found, drift, alarm))
    raise typer.Exit(int(alarm))


@guard_app.command("serve")
def guard_serve(
    folder: Folder,
    model: Again = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; the service has no password.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)] = 8000,
    limit_mb: Annotated[float, typer.Option(help="Largest body of a request, in MB.")] = 16.0,
    arch: Arch = None,
    device: Device = None,
    resize: Resize = False,
) -> None:
    """Answer inputs over HTTP: POST /predict, GET /health, GET /metrics."""
    from backsweep.guarding.service import app, listen, server

    guard = _restored(folder, model, arch, device)
    fits = resize or bool(guard.about["model"].get("resize"))
    service = server(app(guard, limit_mb=limit_mb, resize=fits))
    with listen(host, port) as listening:
        where = f"http://{host}:{listening.getsockname()[1]}"
        console().print(f"serving on {where}/predict; stop with Ctrl-C", markup=False, soft_wrap=True)
        service.run([listening])


def _restored(folder: Path, model: str | None, arch: str | None, device: str | None) -> Guard:
    """The guard in a folder, with its model loaded in the way that it was fitted."""
    from backsweep.formats.opening import load
    from backsweep.formats.predicting import is_remote
    from backsweep.guarding.guard import Guard
    from backsweep.guarding.record import read_record
    from backsweep.render.view import clean

    said = read_record(folder)["model"]
    if model is None and (not said.get("is_path") or is_remote(str(said.get("source")))):
        raise BadInput(f"the model of {folder} was no file when it was fitted; say where it is (--model)")
    kept = (
        "shape", "classes", "mean", "std", "layer", "labels", "weights", "pixel_range", "rate", "base",
        "tokenizer",
    )  # fmt: skip
    told = {**{k: said.get(k) for k in kept}, "layout": said.get("input_layout")}
    named = str(said.get("arch") or "")
    if arch is None and named and not named.startswith(OWN_NETWORKS):
        raise BadInput(
            f"the model needs code of {clean(named)}; if you trust it, say so: --arch {clean(named)}"
        )
    try:
        there = load(model or str(said["source"]), arch=arch or named or None, **told)
    except (TypeError, ValueError) as e:
        raise BadInput(f"{folder} is damaged ({e}); fit the guard again") from e
    return Guard.load(folder, there, device)


def read_inputs(
    path: Path, shape: Sequence[int], resize: bool = False, modality: Modality | None = None
) -> tuple[list[str], Tensor]:
    """Unlabelled inputs (N, *shape) with their names: a folder of files, or an .npz file with x.

    Args:
        path: a folder, with or without folders in it, or the file.
        shape: of an input of the model.
        resize: whether images are resized.
        modality: what an input is; None: an image.

    Raises:
        BadInput: nothing readable is there, or images of another size.
    """
    import torch

    from backsweep.core.text import one_line
    from backsweep.inputs.image import readers
    from backsweep.inputs.samples import Data

    if modality is not None and modality.listed and path.suffix.lower() != ".npz":
        x = Data.open(path, shape=shape, modality=modality, labels="model").x
        return [f"{path.name}:{i}" for i in range(1, len(x) + 1)], x
    try:
        if path.is_dir() and modality is not None and modality.suffixes:
            files = sorted(f for f in path.rglob("*") if f.suffix.lower() in modality.suffixes)
            if not files:
                raise BadInput(f"there are no {modality.noun}s in this folder")
            names = [f.relative_to(path).as_posix() for f in files]
            shapes = tuple(shape)
            return names, torch.cat([modality.decode(f.read_bytes(), shapes, resize) for f in files])
        if path.is_dir():
            files = readers.images(path)
            if not files:
                raise BadInput("there are no images in this folder")
            if shape[0] not in (1, 3):
                raise BadInput(f"images have 1 or 3 channels, the model takes {shape[0]}; give an .npz file")
            names = [f.relative_to(path).as_posix() for f in files]
            return names, torch.stack(
                [_fitting(f, n, shape, resize) for f, n in zip(files, names, strict=True)]
            )
        with zipfile.ZipFile(path) as archive:
            found = {i.filename.removesuffix(".npy"): i for i in archive.infolist()}
            if "x" not in found:
                raise BadInput("there is no x in it; save it as np.savez(path, x=images)")
            x = readers.array(archive, found["x"])
    except BadInput as e:
        raise BadInput(one_line(f"{path}: {e}")) from e
    except Exception as e:
        reason = one_line(f"{type(e).__name__}: {e}")[:160]
        raise BadInput(one_line(f"{path}: not a folder of images or .npz with x ({reason})")) from e
    if x.ndim == 4 and tuple(x.shape[1:]) != tuple(shape) and x.shape[3] == shape[0]:
        x = x.permute(0, 3, 1, 2)
    if not len(x):
        raise BadInput(one_line(f"{path}: there are no inputs in it"))
    return [f"{path.name}:{i}" for i in range(len(x))], x


def _fitting(file: Path, name: str, shape: Sequence[int], resize: bool) -> Tensor:
    from backsweep.inputs.image import readers

    x = readers.image(file, name, shape[0])
    if resize and x.shape[1:] != tuple(shape[1:]):
        x = readers.resized(x[None], shape)[0]
    if tuple(x.shape) != tuple(shape):
        size, wanted = " x ".join(map(str, x.shape[1:])), " x ".join(map(str, shape[1:]))
        raise BadInput(
            f"{name} has {size} pixels (height x width), the model takes {wanted}; say resize=True"
        )
    return x


def _triggers(folder: Path, digest: str) -> list[Trigger]:
    """What the scan recovered for the ways that it suspects."""
    from backsweep.reports.report import ERROR, Report

    report = Report.load(folder)
    if report.model.get("sha256") != digest:
        raise BadInput(f"the report in {folder} is of another model than this one (their SHA-256 differ)")
    targets = {f.target for f in report.findings if f.level == ERROR}
    return [e.trigger for e in report.evidence if e.trigger is not None and e.target in targets]


def _told(parts: Any, on_event: Any) -> Any:
    """The parts one by one, telling how far it is."""
    import time

    from backsweep.core.progress import Event

    begin = time.monotonic()
    for i, part in enumerate(parts):
        on_event(Event("check", i, len(parts), 0, time.monotonic() - begin))
        yield part


def _csv(guard: Guard, names: list[str], found: Answers) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["input", "label", "name", "score", "flagged", "threshold"])
    for name, label, score, flagged in zip(names, *(column.tolist() for column in found), strict=True):
        shown = (_harmless(name), label, _harmless(guard.model.label(label)))
        table.writerow([*shown, f"{score:.6g}", int(flagged), f"{guard.threshold:.6g}"])
    return text.getvalue()


def _harmless(text: str) -> str:
    """Names of files and classes are foreign: a table program must not take one for a formula."""
    return "'" + text if text[:1] in "=+-@\t\r" and text else text


def _show(
    guard: Guard,
    names: list[str],
    found: Answers,
    out: Path | None,
    drift: Drift,
    alarm: bool,
    screen: Console,
) -> str:
    """For people; the verdict on all inputs together, in words."""
    from rich.panel import Panel
    from rich.table import Table

    from backsweep.render.view import clean, probability

    count, flagged = len(found.scores), int(found.flagged.sum())
    table = Table("inputs", "flagged", "share", "expected of clean inputs", "threshold")
    cells = str(count), str(flagged), f"{flagged / count:.1%}", f"{guard.fpr:.1%}", f"{guard.threshold:.4g}"
    table.add_row(*cells)
    said = "more than clean inputs explain" if alarm else "no more than clean inputs explain"
    chance = probability(drift.flagged_p_value)
    colour, word = ("red", "TRIGGERS LIKELY") if alarm else ("green", "NOTHING UNUSUAL")
    text = f"Of as many clean inputs, {flagged} or more are flagged with probability {chance}."
    title = f"[bold {colour}]{word}[/]"
    screen.print(
        Panel(
            text if flagged else "No input is flagged.",
            title=title,
            title_align="left",
            border_style=colour,
            padding=(0, 2),
        )
    )
    screen.print(table)
    worst = found.scores.argsort(descending=True)[: min(5, flagged)].tolist()
    classes = guard.model.modality.classified
    for i in worst:
        label = f"class {clean(guard.model.label(int(found.labels[i])))}, " if classes else ""
        line = f"  flagged: {clean(names[i])}: {label}score {float(found.scores[i]):.4g}"
        screen.print(line, markup=False, soft_wrap=True)
    if flagged > len(worst):
        screen.print(f"  and {flagged - len(worst)} more")
    screen.print(f"drift: {drift.message}", markup=False, soft_wrap=True)
    if out is not None:
        screen.print(f"scores: {out}", markup=False, soft_wrap=True)
    return f"{flagged} of {count} flagged, {said}"


def _document(guard: Guard, names: list[str], found: Answers, drift: Drift, alarm: bool) -> dict[str, object]:
    """The same for programs."""
    rows = zip(names, *(column.tolist() for column in found), strict=True)
    return {
        "alarm": alarm, "fpr": guard.fpr, "threshold": guard.threshold, "drifted": drift.drifted,
        "flagged_p_value": drift.flagged_p_value,
        "inputs": [
            {"input": name, "label": y, "name": guard.model.label(y), "score": score, "flagged": flagged}
            for name, y, score, flagged in rows
        ],
    }  # fmt: skip
