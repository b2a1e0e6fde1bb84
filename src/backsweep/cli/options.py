"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from backsweep.core.errors import BadInput

Out = Annotated[Path | None, typer.Option("--out", help="Folder for the report; made if need be.")]
Settings = Annotated[
    list[str] | None, typer.Option("-p", metavar="NAME.FIELD=VALUE", help="A setting of a method.")
]
Model = Annotated[
    str,
    typer.Argument(
        help="safetensors, a checkpoint (.pt, .pth, .ckpt), .pt2, ONNX, TorchScript, or a folder."
    ),
]
Samples = Annotated[str, typer.Option(help="Clean samples: a folder per class, or .npz with x and y.")]
Arch = Annotated[str | None, typer.Option(help="package.module:factory of your own code.")]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ... Default: a GPU if any.")]
Shape = Annotated[str | None, typer.Option(help="Of one input, e.g. 3,32,32.")]
Classes = Annotated[int | None, typer.Option(help="Number of classes.")]
Mean = Annotated[str | None, typer.Option(help="The model's normalisation, e.g. 0.5,0.5,0.5.")]
Std = Annotated[str | None, typer.Option(help="Likewise.")]
Weights = Annotated[
    str | None, typer.Option(help="Entry of a checkpoint to take, e.g. ema, where several fit.")
]
InputRange = Annotated[
    str | None, typer.Option(help="Of the pixels that the network takes: 0-1 (default) or 0-255.")
]
Layout = Annotated[str | None, typer.Option(help="NHWC for a network that takes channels last.")]
Layer = Annotated[str | None, typer.Option(help="Name of the penultimate layer.")]
Resize = Annotated[bool, typer.Option(help="Resize images to the model's input.")]

Workers = Annotated[
    int | None, typer.Option(help="Processes; with --engine: units in flight at most.", min=1)
]
EngineName = Annotated[str | None, typer.Option("--engine", help="dask or ray: compute on a cluster.")]
Address = Annotated[
    str | None, typer.Option(help="Of the cluster, HOST:PORT. Default: one on this machine is started.")
]
Gpus = Annotated[float, typer.Option(help="Share of a GPU that the cluster reserves for a unit.", min=0.0)]


def how(
    arch: str | None, shape: str | None, classes: int | None, mean: str | None, std: str | None,
    layer: str | None, weights: str | None, input_range: str | None, layout: str | None,
) -> dict[str, Any]:  # fmt: skip
    """What `load` is told of a model.

    Raises:
        BadInput: numbers that are none, or another range than 0-1 and 0-255.
    """
    ranges = {None: None, "0-1": None, "0-255": 255.0}
    if input_range not in ranges:
        raise BadInput(f"the range {input_range!r} is not known; there are 0-1 and 0-255 (--input-range)")
    return {
        "arch": arch, "shape": numbers(shape, int), "classes": classes, "mean": numbers(mean, float),
        "std": numbers(std, float), "layer": layer, "weights": weights, "pixel_range": ranges[input_range],
        "layout": layout,
    }  # fmt: skip


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
