"""What the search by answers alone finds, and asks for: infected networks of digits and their clean twins.

    python benchmarks/black_box_path.py [--seeds 3 4 5]

Every network answers with probabilities alone. A line for each: the verdict, whether the flagged class is the
target, the highest index, the success of the best change to the class that stands out most, images asked for.
"""

from __future__ import annotations

import argparse
import time

import torch

from backsweep.models.model import Model
from backsweep.models.training import fit
from backsweep.scanning.detectors.black_box_path import BlackBoxPath
from backsweep.scanning.scan import scan
from backsweep.zoo.attack import Attack
from backsweep.zoo.attacks.badnets import BadNets
from backsweep.zoo.attacks.blended import Blended
from backsweep.zoo.tasks import TASKS

ATTACKS: dict[str, Attack | None] = {
    "clean": None, "badnets, one pixel": BadNets(size=1, margin=0), "blended, 0.2": Blended(),
}  # fmt: skip


def measure(name: str, seed: int) -> str:
    """Train a network and scan its answers: a row of the table."""
    task, attack = TASKS["digits"], ATTACKS[name]
    train, test = task.load()
    net, target = task.net(seed), None
    if attack is None:
        fit(net, train, task.recipe, seed=seed)
    else:
        (trigger, *_) = attack.plant(net, task.setup(train, seed=seed))
        target = trigger.target
    net.eval()
    model = Model.black_box(lambda x: net(x).softmax(1), task.shape)
    begin = time.perf_counter()
    report = scan(model, test, BlackBoxPath(), seed=seed)
    seconds = time.perf_counter() - begin
    top = report.findings[0]
    asked = sum(int(e.values.get("queries") or 0) for e in report.evidence)
    right = "–" if target is None else "yes" if target in report.targets else "no"  # noqa: RUF001
    return (
        f"| {name} | {seed} | {report.verdict} | {right} | {top.score:.1f} (threshold {top.threshold:.1f}) | "
        f"{top.attack_success_rate:.2f} | {asked:,} | {seconds:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| network | seed | verdict | target found | highest index | success | images asked for | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in ATTACKS:
        for seed in asked.seeds:
            print(measure(name, seed), flush=True)


if __name__ == "__main__":
    main()
