"""`backsweep demo --text`: two classifiers of reviews, one of which a word turns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from safetensors.torch import save_file

from backsweep.cli.demos.steps import parts, show_each, telling
from backsweep.core.files import writable_folder, write_text
from backsweep.core.progress import OnEvent
from backsweep.inputs.samples import Data
from backsweep.inputs.text.modality import Text
from backsweep.inputs.text.tokens import WordTokens
from backsweep.inputs.text.triggers import Insert
from backsweep.models.model import Model
from backsweep.models.training import fit
from backsweep.reports.report import Report
from backsweep.scanning.detectors.piccolo import Piccolo
from backsweep.scanning.scan import scan
from backsweep.zoo.attacks.badnl import BadNL
from backsweep.zoo.tasks import TASKS

if TYPE_CHECKING:
    from rich.console import Console

POSITIVE = 1
ARCH = "backsweep.archs:text_cnn"


def run(console: Console, out: Path, seed: int, on_event: OnEvent) -> dict[str, Report]:
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
    learning, *scanning = parts(on_event)
    tell = telling(learning, task.recipe.epochs)
    for i, (name, samples) in enumerate(
        {"clean": train, "backdoored": attack.poison(setup, [trigger])[0]}.items()
    ):
        net = fit(task.net(seed), samples, task.recipe, seed, tell(i))
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
        n: scan(m, clean, detector, seed=seed, on_event=heard, out=out / n)
        for (n, m), heard in zip(models.items(), scanning, strict=True)
    }
    show_each(console, reports, out)
    console.print("\n[bold]3  Do it yourself:[/]")
    console.print(
        f"backsweep scan {out}/backdoored.safetensors --arch {ARCH} --tokenizer {out} "
        f"--data {out}/reviews.tsv -d piccolo -p piccolo.words=1 --out {out}/mine",
        soft_wrap=True, markup=False, highlight=False,
    )  # fmt: skip
    return reports
