"""Commands for banks of shadow networks."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backsweep.cli.options import Mean, Seed, Std, Where, grouped, numbers
from backsweep.cli.terminal import Progress, console
from backsweep.core.errors import BadInput

if TYPE_CHECKING:
    from backsweep.shadows.bank import Bank

SHARE, LEAST = 0.02, 300  # of a task's training set, as the paper's defender has; samples at least
DRAW = 7  # seed of that draw: the same samples whatever the seed of the shadows

bank_app = typer.Typer(no_args_is_help=True, help="Shadow networks, for the detector mntd.")

File = Annotated[Path, typer.Argument(help="The bank.")]
Archs = Annotated[
    list[str] | None,
    typer.Option("--arch", help="A name in backsweep.archs, or package.module:factory. May repeat."),
]
Variants = Annotated[
    list[str] | None, typer.Option("--variant", help="jumbo, one_class or robust. May repeat; default: all.")
]


@bank_app.command("build")
@grouped
def bank_build(
    file: File,
    where: Where,
    arch: Archs = None,
    data: Annotated[
        str | None, typer.Option(help="Your clean samples: a folder per class, or .npz with x and y.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Instead of --data: 2 % of a data set of the zoo, e.g. mnist.")
    ] = None,
    shadows: Annotated[int, typer.Option(help="Clean shadows, and as many trojaned ones.", min=1)] = 128,
    epochs: Annotated[int | None, typer.Option(help="Of each shadow's training.", min=1)] = None,
    paper: Annotated[bool, typer.Option("--paper", help="Train shadows as the paper does; slow.")] = False,
    variant: Variants = None,
    seed: Seed = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
) -> None:
    """Train shadow networks and tune queries with them; an interrupted run goes on where it was."""
    from backsweep.inputs.samples import Data
    from backsweep.shadows import bank, meta_classifier
    from backsweep.shadows import training as kinds
    from backsweep.zoo import build
    from backsweep.zoo.tasks import TASKS

    if (data is None) == (task is None):
        raise BadInput("give clean samples with --data, or the name of a data set of the zoo with --task")
    if task is not None and task not in TASKS:
        raise BadInput(f"unknown task {task!r}; there are {', '.join(TASKS)}")
    if data is not None:
        if not arch:
            raise BadInput("name the kind of networks with --arch, e.g. --arch mnist_cnn")
        clean = Data.open(data)
    else:
        train, _ = build.load_data(task or "")
        clean = train.sample(max(round(SHARE * len(train)), LEAST), DRAW)
        arch = arch or [TASKS[task or ""].arch]
    recipe = kinds.PAPER if paper else kinds.standard(len(clean))
    recipe = recipe if epochs is None else replace(recipe, epochs=epochs)
    with Progress() as on_event:
        made = bank.build(
            clean, arch, shadows, file, recipe=recipe, seed=seed,
            variants=variant or meta_classifier.VARIANTS, tuning=meta_classifier.PAPER if paper else None,
            engine=where.open(), device=device, on_event=on_event,
        )  # fmt: skip
    _show(made, file)


@bank_app.command("tune")
def bank_tune(
    file: File,
    variant: Variants = None,
    shadows: Annotated[
        list[int] | None, typer.Option(help="A side, to tune with; may repeat. Default: all.", min=1)
    ] = None,
    arch: Archs = None,
    form: Annotated[
        str, typer.Option(help="logits, or centred: for networks that answer with probabilities.")
    ] = "logits",
    paper: Annotated[bool, typer.Option("--paper", help="As the paper does.")] = False,
    seed: Annotated[int | None, typer.Option(help="Default: drawn anew, so that nobody knows it.")] = None,
) -> None:
    """Tune queries and decisions again, with the shadows of a bank.

    The robust variant draws its decision from the seed: tune it yourself, and keep the bank to yourself.
    """
    import secrets

    from backsweep.shadows import bank, meta_classifier

    if form not in meta_classifier.FORMS:
        raise BadInput(f"there is no form {form!r}; there are {', '.join(meta_classifier.FORMS)}")

    with Progress() as on_event:
        made = bank.tuned(
            bank.Bank.load(file), file, variant or meta_classifier.VARIANTS, counts=shadows or (None,),
            archs=arch or (),
            seed=secrets.randbits(32) if seed is None else seed,
            tuning=replace(meta_classifier.PAPER if paper else meta_classifier.Tuning(), form=form),
            on_event=on_event,
        )  # fmt: skip
    _show(made, file)


@bank_app.command("calibrate")
def bank_calibrate(
    file: File,
    models: Annotated[list[str], typer.Argument(help="Clean networks that you vouch for.")],
    arch: Annotated[
        str | None,
        typer.Option(help="For weights alone: as in `bank build`. It is run: name only code you trust."),
    ] = None,
    mean: Mean = None,
    std: Std = None,
) -> None:
    """Let p-values rest on clean networks of yours instead of on the bank's clean shadows.

    Shadows are trained on few samples; a clean network that was trained on many answers in another way. With
    19 networks the least p-value is 0.05, with 99 it is 0.01.
    """
    from backsweep.formats.building import named
    from backsweep.formats.opening import load
    from backsweep.inventory.sources import find
    from backsweep.shadows.bank import Bank

    bank = Bank.load(file)
    shape, classes = bank.about["shape"], bank.about["classes"]
    own = partial(named, arch, classes, shape, 0) if arch and ":" not in arch else arch
    how = {"arch": own, "shape": shape, "classes": classes, "mean": numbers(mean), "std": numbers(std)}
    vouched = []
    for source in find(models):
        with source.fetch() as path:
            vouched.append(load(path, **how))
    done = bank.calibrated(vouched)
    done.save(file)
    _show(done, file)


@bank_app.command("show")
def bank_show(file: File) -> None:
    """Print what a bank is for, and how well it tells its held-out shadows apart."""
    from backsweep.shadows.bank import Bank

    _show(Bank.load(file), file)


def _show(bank: Bank, file: Path) -> None:
    from backsweep.render.terminal.shadows import show

    show(bank, console(stderr=False))
    console().print(f"bank: {file}", markup=False, soft_wrap=True)
