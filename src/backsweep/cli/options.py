"""Options that several commands have: each stands here once.

Options that belong together are a group, a dataclass whose fields are options. A command takes the group as
one parameter, and `grouped` puts the fields into the signature that typer reads (decision 0017).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from backsweep.cli.saying import Saying
from backsweep.core.errors import BadInput
from backsweep.core.text import seconds_of

if TYPE_CHECKING:
    from backsweep.engine.engine import Engine

Out = Annotated[Path | None, typer.Option("--out", help="Folder for the report; made if need be.")]
Detectors = Annotated[list[str] | None, typer.Option("--detector", "-d", help="May repeat.")]
Settings = Annotated[
    list[str] | None, typer.Option("-p", metavar="NAME.FIELD=VALUE", help="A setting of a method.")
]
Alpha = Annotated[float, typer.Option(help="False-alarm rate that is accepted.")]
Effort = Annotated[str | None, typer.Option(help="quick, standard or thorough, for detectors that know it.")]
Budget = Annotated[
    float | None,
    typer.Option(
        parser=seconds_of,
        metavar="TIME",
        help="Such as 10m: nothing is begun after that; the report says how far it came.",
    ),
]
Confirm = Annotated[
    bool, typer.Option("--confirm", help="Ask for a second opinion: call only what both scans call.")
]
Model = Annotated[
    str,
    typer.Argument(
        help="safetensors, a checkpoint (.pt, .pth, .ckpt), .pt2, ONNX, TorchScript, trees, or a folder."
    ),
]
Samples = Annotated[
    str, typer.Option(help="Clean samples: a folder per class, .npz, .csv, .tsv, .parquet, .tar, ...")
]
Scanned = Annotated[
    str | None,
    typer.Option(
        help="Clean samples: a folder per class, .npz, .csv, ... For language models prompts come along."
    ),
]
Arch = Annotated[str | None, typer.Option(help="package.module:factory of your own code.")]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ... Default: a GPU if any.")]
Mean = Annotated[str | None, typer.Option(help="The model's normalisation, e.g. 0.5,0.5,0.5.")]
Std = Annotated[str | None, typer.Option(help="Likewise.")]
Resize = Annotated[bool, typer.Option(help="Resize images to the model's input.")]


@dataclass(frozen=True)
class Reading:
    """How a model and its samples are read."""

    arch: Arch = None
    device: Device = None
    shape: Annotated[str | None, typer.Option(help="Of one input, e.g. 3,32,32.")] = None
    classes: Annotated[int | None, typer.Option(help="Number of classes.")] = None
    mean: Mean = None
    std: Std = None
    layer: Annotated[str | None, typer.Option(help="Name of the penultimate layer.")] = None
    weights: Annotated[
        str | None, typer.Option(help="Entry of a checkpoint to take, e.g. ema, where several fit.")
    ] = None
    input_range: Annotated[
        str | None, typer.Option(help="Of the pixels that the network takes: 0-1 (default) or 0-255.")
    ] = None
    layout: Annotated[str | None, typer.Option(help="NHWC for a network that takes channels last.")] = None
    tokenizer: Annotated[
        str | None, typer.Option(help="tokenizer.json of a network over texts, or its folder.")
    ] = None
    schema: Annotated[
        str | None,
        typer.Option(help="The network takes rows of a table: JSON with what its columns are, or infer."),
    ] = None
    rate: Annotated[
        int | None, typer.Option(help="Samples a second of a network over waveforms, e.g. 16000.")
    ] = None
    base: Annotated[
        str | None, typer.Option(help="Folder of the language model that a LoRA adapter belongs to.")
    ] = None
    resize: Resize = False
    split: Annotated[
        str | None, typer.Option(help="Of the samples, where there are several. Default: test.")
    ] = None
    labels: Annotated[
        str | None, typer.Option(help="model: there are none, the model's own answers take their place.")
    ] = None

    def data(self) -> dict[str, Any]:
        """How the samples are read."""
        return {"resize": self.resize, "split": self.split, "labels": self.labels}

    def how(self) -> dict[str, Any]:
        """What `load` is told of the model.

        Raises:
            BadInput: numbers that are none, or another range than 0-1 and 0-255.
        """
        ranges = {None: None, "0-1": 1.0, "0-255": 255.0}
        if self.input_range not in ranges:
            raise BadInput(
                f"the range {self.input_range!r} is not known; there are 0-1 and 0-255 (--input-range)"
            )
        return {
            "arch": self.arch, "shape": numbers(self.shape, int), "classes": self.classes,
            "mean": numbers(self.mean), "std": numbers(self.std), "layer": self.layer,
            "weights": self.weights, "pixel_range": ranges[self.input_range], "layout": self.layout,
            "tokenizer": self.tokenizer, "schema": self.schema, "rate": self.rate, "base": self.base,
        }  # fmt: skip


@dataclass(frozen=True)
class Where:
    """Where is computed."""

    workers: Annotated[
        int | None,
        typer.Option(help="Cores to use; with --engine: units in flight. Default: all for one scan.", min=1),
    ] = None
    engine: Annotated[str | None, typer.Option("--engine", help="dask or ray: compute on a cluster.")] = None
    address: Annotated[
        str | None, typer.Option(help="Of the cluster, HOST:PORT. Default: one on this machine is started.")
    ] = None
    gpus: Annotated[
        float, typer.Option(help="Share of a GPU that the cluster reserves for a unit.", min=0.0)
    ] = 0.0

    def open(self) -> Engine:
        """The engine: on this machine processes, for jobs that share little.

        Raises:
            BadInput: it is not installed, or not there.
        """
        from backsweep.engine.engine import Engine

        return Engine(self.engine, self.workers, self.address, self.gpus)

    def shared(self) -> Engine | None:
        """The engine for one scan: on this machine threads; None: as many as there are cores.

        Raises:
            BadInput: it is not installed, or not there.
        """
        from backsweep.engine.engine import Engine

        if self.engine is not None:
            return self.open()
        return Engine(threads=self.workers) if self.workers else None


GROUPS = (Reading, Where, Saying)


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of its groups in place of each group, as typer reads it."""
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type[Any]] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        if hints[name] in GROUPS:
            groups[name] = hints[name]
            own = get_type_hints(hints[name], include_extras=True)
            parameters += [_keyword(f.name, own[f.name], f.default) for f in fields(hints[name])]
        else:
            parameters.append(_keyword(name, hints[name], parameter.default))

    @wraps(command)
    def expanded(**given: Any) -> None:
        made = {
            name: group(**{f.name: given.pop(f.name) for f in fields(group)})
            for name, group in groups.items()
        }
        command(**made, **given)

    expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {p.name: p.annotation for p in parameters}
    return expanded


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    """A parameter by its name alone, so that those without a default may stand anywhere."""
    none = inspect.Parameter.empty if default is MISSING else default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=none, annotation=annotation)


def named(models: list[str] | None, predict: str | None) -> list[str]:
    """The models that are to be scanned, the one behind an address among them.

    Raises:
        BadInput: none, or both files and an address.
    """
    if bool(models) == (predict is not None):
        raise BadInput(
            "name a model, or give the address of a service that answers (--predict), and not both"
        )
    return [f"predict:{predict}"] if predict is not None else list(models or [])


def tell(notes: Iterable[str]) -> None:
    """What was done to read a model, for people."""
    from backsweep.cli.terminal import console
    from backsweep.render.view import clean

    for note in notes:
        console().print(f"note: {clean(note, 400)}", markup=False, soft_wrap=True)


def numbers(text: str | None, kind: type = float) -> list[Any] | None:
    """ "3,32,32" -> [3, 32, 32]"""
    if text is None:
        return None
    try:
        return [kind(part) for part in text.replace("x", ",").split(",")]
    except ValueError as e:
        raise BadInput(f"{text!r} is not a list of numbers such as 3,32,32") from e
