"""CPU time of a bank's shadow networks against training them one after another.

CPU seconds of one thread, all in one run, the arms taking turns:

    OMP_NUM_THREADS=1 python benchmarks/shadow_training.py [--task mnist] [--shadows 8] [--out FILE]

Arms: the paper's recipe (100 epochs, float32) one after another; the bank's recipe in float32 one after
another and in bfloat16 one after another; and as the bank trains them, in groups. Each gives CPU seconds a
shadow, and for 256; the last two columns say what the shadows learned.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from backsweep.formats.building import named
from backsweep.models.training import Recipe
from backsweep.shadows import training
from backsweep.zoo.tasks import TASKS

COUNT = 256  # shadows that the goal speaks of


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", default="mnist")
    parser.add_argument("--arch")
    parser.add_argument("--shadows", type=int, default=8, help="of each arm")
    parser.add_argument("--out", type=Path, help="JSON lines are added here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    task = TASKS[args.task]
    arch = args.arch or task.arch
    train, _ = task.load()
    data = train.sample(max(round(0.02 * len(train)), 300), 7)
    make = partial(named, arch, task.classes, task.shape)
    standard = training.standard(len(data))
    alone = [range(i, i + 1) for i in range(args.shadows)]
    together = training.groups(args.shadows, task.shape, standard, "cpu")
    arms: dict[str, tuple[Recipe, Sequence[range]]] = {
        "paper, one after another": (training.PAPER, alone),
        "float32, one after another": (replace(standard, bf16=False), alone),
        "bfloat16, one after another": (standard, alone),
        "bank": (standard, together),
    }
    seconds: dict[str, float] = defaultdict(float)
    accuracy: dict[str, list[float]] = defaultdict(list)
    works: dict[str, list[bool]] = defaultdict(list)
    training.train(make, data, task.classes, range(1), replace(standard, epochs=1), 0)  # warm
    for first in range(0, args.shadows, len(together[0])):
        for arm, (recipe, parts) in arms.items():
            for part in parts:
                if part[0] // len(together[0]) != first // len(together[0]):
                    continue
                begin = time.process_time()
                group = training.train(make, data, task.classes, part, recipe, 0)
                seconds[arm] += time.process_time() - begin
                accuracy[arm] += group.accuracy.tolist()
                works[arm] += [s > 0.5 for s in group.success.tolist() if s == s]
    reference = seconds["paper, one after another"], seconds["float32, one after another"]
    for arm, (recipe, _) in arms.items():
        line = {
            "task": args.task, "arch": arch, "arm": arm, "shadows": args.shadows, "epochs": recipe.epochs,
            "group": len(together[0]) if arm == "bank" else 1,
            "cpu_seconds_each": round(seconds[arm] / args.shadows, 2),
            f"cpu_seconds_{COUNT}": round(seconds[arm] / args.shadows * COUNT),
            "ratio_to_paper": round(reference[0] / seconds[arm], 2),
            "ratio_to_same_recipe": round(reference[1] / seconds[arm], 2),
            "accuracy": round(sum(accuracy[arm]) / len(accuracy[arm]), 4),
            "triggers_that_work": f"{sum(works[arm])}/{len(works[arm])}", "torch": torch.__version__,
        }  # fmt: skip
        print(json.dumps(line))
        if args.out is not None:
            with args.out.open("a", encoding="utf-8") as f:
                f.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
