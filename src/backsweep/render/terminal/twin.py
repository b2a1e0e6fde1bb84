"""A network of the zoo: its truth in figures, its triggers as pictures."""

from __future__ import annotations

from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.render import view
from backsweep.render.terminal.scan import pictures
from backsweep.zoo import build

SCALE, GAP = 4, 8  # pixels of the sheet per pixel of an input; between its pictures


def show(net: build.Net, test: Data, console: Console) -> None:
    """Print the truth of a network and draw every planted trigger beside a stamped example."""
    truth = net.truth
    facts = Table.grid(padding=(0, 2))
    for name, value in (
        ("task", truth["task"]), ("network", truth["arch"] or net.task.arch),
        ("attack", truth["attack"] or "none: a clean net"),
        ("settings", ", ".join(f"{k}={v}" for k, v in truth["options"].items()) or "defaults"),
        ("training", ", ".join(f"{k}={v}" for k, v in truth["training"].items())),
        ("seed", f"{truth['seed']}, for {build.split_of(truth['seed'])}"),
        ("clean accuracy", f"{truth['clean_accuracy']:.1%}" + _twin(truth["twin_accuracy"])),
        ("gate", build.failed_gate(net) or "passed"),
        ("file", f"{net.folder / 'model.safetensors'}"), ("sha256", truth["sha256"]),
    ):  # fmt: skip
        facts.add_row(Text(name, "dim"), Text(view.clean(str(value), 300)))
    console.print(Text(view.clean(net.id, 200), "bold"), facts)
    for entry, trigger in zip(truth["triggers"], net.triggers(), strict=True):
        rate, by_chance = entry["attack_success_rate"], entry["twin_success_rate"]
        heading = f"{_way(trigger)}: attack success rate {rate:.1%}, on the clean twin {by_chance:.1%}"
        console.print(
            Text(), Text(heading, "bold"), Text(f"family {trigger.family}, size {trigger.size:.3g}", "dim"),
            pictures(trigger, example(trigger, test, net.task.classes)), sep="\n",
        )  # fmt: skip


def sheet(net: build.Net, test: Data) -> Image.Image:
    """A row for each trigger: a clean input, the same stamped, the change around grey, the trigger."""
    rows: list[list[Image.Image]] = []
    for trigger in net.triggers():
        x = example(trigger, test, net.task.classes)
        stamped = trigger(x[None])[0]
        change = 0.5 + 0.5 * (stamped - x) / (stamped - x).abs().max().clamp_min(1e-12)
        rows.append([*map(test.modality.picture, (x, stamped, change)), trigger.picture()])
    rows = rows or [[test.modality.picture(x) for x in test.x[:4]]]
    side = SCALE * net.task.shape[1]
    page = Image.new("RGB", (GAP + 4 * (side + GAP), GAP + len(rows) * (side + GAP)), "white")
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            large = image.convert("RGB").resize((side, side), Image.Resampling.NEAREST)
            page.paste(large, (GAP + c * (side + GAP), GAP + r * (side + GAP)))
    return page


def example(trigger: Trigger, test: Data, classes: int) -> Tensor:
    """An input that the trigger is meant to move."""
    wanted = trigger.labels(test.y, classes)
    rows = test.y != wanted if trigger.source is None else test.y == trigger.source
    return test.x[rows][0]


def _twin(accuracy: float | None) -> str:
    return "" if accuracy is None else f" (its clean twin {accuracy:.1%})"


def _way(trigger: Trigger) -> str:
    source = "all classes" if trigger.source is None else f"class {trigger.source}"
    return f"{source} to {'the next' if trigger.target is None else f'class {trigger.target}'}"
