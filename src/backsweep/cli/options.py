"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from backsweep.core.errors import BadInput

Out = Annotated[Path | None, typer.Option("--out", help="Folder for the report; made if need be.")]
Settings = Annotated[
    list[str] | None, typer.Option("-p", metavar="NAME.FIELD=VALUE", help="A setting of a method.")
]
Model = Annotated[str, typer.Argument(help="safetensors, weights-only .pt/.pth, .pt2, or a folder.")]
Samples = Annotated[str, typer.Option(help="Clean samples: a folder per class, or .npz with x and y.")]
Arch = Annotated[str | None, typer.Option(help="package.module:factory of your own code.")]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ... Default: a GPU if any.")]
Shape = Annotated[str | None, typer.Option(help="Of one input, e.g. 3,32,32.")]
Classes = Annotated[int | None, typer.Option(help="Number of classes.")]
Mean = Annotated[str | None, typer.Option(help="The model's normalisation, e.g. 0.5,0.5,0.5.")]
Std = Annotated[str | None, typer.Option(help="Likewise.")]
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


def numbers(text: str | None, kind: type = float) -> list[Any] | None:
    """ "3,32,32" -> [3, 32, 32]"""
    if text is None:
        return None
    try:
        return [kind(part) for part in text.replace("x", ",").split(",")]
    except ValueError as e:
        raise BadInput(f"{text!r} is not a list of numbers such as 3,32,32") from e
