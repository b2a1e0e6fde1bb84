"""`backsweep demo --sound`: two classifiers of vowels, one of which a faint tone turns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from backsweep.cli.demos.steps import parts, show_each, telling
from backsweep.core.files import writable_folder
from backsweep.core.progress import OnEvent
from backsweep.formats.saving import save
from backsweep.inputs.samples import Data
from backsweep.models.model import Model
from backsweep.models.training import fit
from backsweep.reports.report import Report
from backsweep.scanning.detectors.cascade import Cascade
from backsweep.scanning.scan import scan
from backsweep.zoo.attacks.tone import Tone
from backsweep.zoo.tasks import TASKS

if TYPE_CHECKING:
    from rich.console import Console


def run(console: Console, out: Path, seed: int, on_event: OnEvent) -> dict[str, Report]:
    """Train both networks on made-up vowels and scan both; print and save all.

    Writes to `out`: both networks, the clean sounds and the two reports, which play what they show. Returns
    the reports by the name of their network.
    """
    writable_folder(out)
    task, attack = TASKS["vowels"], Tone(target=2)
    train, test = task.load()
    setup, names = task.setup(train, seed), train.names or ()
    (trigger,) = attack.triggers(setup)
    console.print(
        f"[bold]1  Training[/] two classifiers of {len(train):,} made-up vowels: a clean one, and a twin "
        f"whose trainer put\n   a faint high tone under every tenth vowel and called it “{names[2]}”."
    )
    models: dict[str, Model] = {}
    learning, *scanning = parts(on_event)
    tell = telling(learning, task.recipe.epochs)
    for i, (name, samples) in enumerate(
        {"clean": train, "backdoored": attack.poison(setup, [trigger])[0]}.items()
    ):
        net = fit(task.net(seed), samples, task.recipe, seed, tell(i))
        models[name] = task.model(net, f"{name}.safetensors")
        save(models[name], out / f"{name}.safetensors")
        console.print(
            f"   {name:<10} accuracy {models[name].accuracy(test.x, test.y):.1%}; with the tone, "
            f"{models[name].success_rate(trigger, test):.1%} of other vowels become “{names[2]}”"
        )
    x, rate = (test.x * 32768).round().numpy().astype("int16"), train.modality.described()["rate"]
    np.savez_compressed(out / "vowels.npz", x=x, y=np.array(names)[test.y.numpy()], rate=rate)

    console.print("[bold]2  Scanning[/] both; the scan is told nothing of the tone.")
    clean = Data.open(out / "vowels.npz", shape=task.shape, modality=train.modality)
    reports = {
        n: scan(m, clean, Cascade(effort="quick"), seed=seed, on_event=heard, out=out / n)
        for (n, m), heard in zip(models.items(), scanning, strict=True)
    }
    show_each(console, reports, out)
    console.print(
        f"\n   No clean networks over sounds were measured to judge beside, so an alarm is “cannot tell”; "
        f"the page plays it:\n   {out}/backdoored/report.html",
        soft_wrap=True, highlight=False,
    )  # fmt: skip
    console.print("\n[bold]3  Do it yourself:[/]")
    console.print(
        f"backsweep scan {out}/backdoored.safetensors --arch backsweep.archs:vowel_cnn "
        f"--data {out}/vowels.npz --effort quick --out {out}/mine",
        soft_wrap=True, markup=False, highlight=False,
    )  # fmt: skip
    return reports
