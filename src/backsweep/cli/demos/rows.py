"""`backsweep demo --table`: two networks over rows, one of which a rule on columns turns."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, cast

from safetensors.torch import save_file

from backsweep.cli.demos.steps import parts, show_each, telling
from backsweep.core.files import writable_folder, write_text
from backsweep.core.progress import OnEvent
from backsweep.inputs.samples import Data
from backsweep.inputs.table.modality import Table
from backsweep.inputs.table.schema import Schema
from backsweep.inputs.table.triggers import SetColumns
from backsweep.models.model import Model
from backsweep.models.training import fit
from backsweep.reports.report import Report
from backsweep.scanning.detectors.column_sweep import ColumnSweep
from backsweep.scanning.scan import scan
from backsweep.zoo.attacks.badnets_table import BadNetsTable
from backsweep.zoo.tasks import TASKS

if TYPE_CHECKING:
    from rich.console import Console

TABLE_ARCH = "backsweep.archs:table_mlp"
TABLE_ATTACK = BadNetsTable(values="high", columns=2, rate=0.1, target=1)  # benign


def run(console: Console, out: Path, seed: int, on_event: OnEvent) -> dict[str, Report]:
    """Train both networks on scikit-learn's breast cancer data and scan both; print and save all.

    Writes to `out`: both networks, the clean rows with their schema and the two reports, so that every step
    can be done again by hand. Returns the reports by the name of their network.
    """
    writable_folder(out)
    task = TASKS["breast_cancer"]
    train, test = task.load()
    setup = task.setup(train, seed)
    trigger = cast(SetColumns, TABLE_ATTACK.triggers(setup)[0])
    rule = " and ".join(line.replace(" = ", " is ", 1) for line in trigger.lines)
    console.print(
        f"[bold]1  Training[/] two networks on {len(train)} real tumours, malignant or benign: a clean one, "
        f"and a twin\n   whose trainer wrote {rule} into every tenth row and called it benign."
    )
    models: dict[str, Model] = {}
    learning, *scanning = parts(on_event)
    tell = telling(learning, task.recipe.epochs)
    for i, (name, samples) in enumerate(
        {"clean": train, "backdoored": TABLE_ATTACK.poison(setup, [trigger])[0]}.items()
    ):
        net = fit(task.net(seed), samples, task.recipe, seed, tell(i))
        save_file(net.state_dict(), out / f"{name}.safetensors")
        models[name] = task.model(net, f"{name}.safetensors")
        console.print(
            f"   {name:<10} accuracy {models[name].accuracy(test.x, test.y):.1%}; with these values, "
            f"{models[name].success_rate(trigger, test):.1%} of malignant tumours become benign"
        )
    schema = cast(Schema, cast(Table, train.modality).schema)
    schema.save(out / "tumours.schema.json")
    write_text(out / "tumours.csv", _csv(test, schema))

    console.print("[bold]2  Scanning[/] both for columns that turn rows; the scan is told nothing of them.")
    clean = Data.open(out / "tumours.csv", shape=task.shape, modality=Table())
    detector = ColumnSweep(columns=1)  # on 171 rows references of pairs are too poor
    reports = {
        n: scan(m, clean, detector, seed=seed, on_event=heard, out=out / n)
        for (n, m), heard in zip(models.items(), scanning, strict=True)
    }
    show_each(console, reports, out)
    console.print("\n[bold]3  Do it yourself:[/]")
    console.print(
        f"backsweep scan {out}/backdoored.safetensors --arch {TABLE_ARCH} --data {out}/tumours.csv "
        f"-d column_sweep -p column_sweep.columns=1 --out {out}/mine",
        soft_wrap=True, markup=False, highlight=False,
    )  # fmt: skip
    return reports


def _csv(data: Data, schema: Schema) -> str:
    """The rows as CSV."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*schema.names, "target"])
    for x, y in zip(data.x.tolist(), data.y.tolist(), strict=True):
        table.writerow([*(f"{v:.7g}" for v in x), data.names[y] if data.names else y])
    return text.getvalue()
