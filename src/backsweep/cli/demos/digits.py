"""`backsweep demo`: a clean network and a backdoored twin, told apart, and the twin repaired, in a minute."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.torch import save_file

from backsweep.cli.demos.steps import parts, show_each, telling
from backsweep.core.files import writable_folder
from backsweep.core.progress import OnEvent
from backsweep.inputs.samples import Data
from backsweep.models.model import Model
from backsweep.models.training import fit
from backsweep.render.terminal.repair import show_repair
from backsweep.repairing.repair import repair
from backsweep.reports.report import Report
from backsweep.scanning.scan import scan
from backsweep.zoo.attacks.badnets import BadNets
from backsweep.zoo.tasks import TASKS

if TYPE_CHECKING:
    from rich.console import Console


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
    learning, *scanning, repairing = parts(on_event, repairs=True)
    tell = telling(learning, task.recipe.epochs)
    for i, (name, net) in enumerate(nets.items()):
        samples = train if name == "clean" else attack.poison(setup, [trigger])[0]
        fit(net, samples, task.recipe, seed, tell(i))
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
    reports = {
        n: scan(m, clean, seed=seed, on_event=heard, out=out / n)
        for (n, m), heard in zip(models.items(), scanning, strict=True)
    }
    show_each(console, reports, out)
    console.print("\n[bold]3  Repairing[/] the backdoored one, with what its scan found.")
    repaired = repair(
        models["backdoored"], clean, reports["backdoored"], seed=seed, on_event=repairing, out=out / "repair"
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
