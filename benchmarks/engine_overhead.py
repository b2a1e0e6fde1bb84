"""What an engine costs beside computing in this process, on units of some seconds, with one worker.

    python benchmarks/engine_overhead.py [--units 4] [--seconds 5]

A unit is Neural Cleanse on one class, with as many updates as take the wanted time here. The engines take
turns within one run, the first unit of each, which starts it, apart. Needs the extras dask and ray.
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import numpy as np

from backsweep.engine.engine import Engine
from backsweep.engine.jobs import one_thread
from backsweep.inputs.samples import Data
from backsweep.models.model import Model
from backsweep.models.training import fit
from backsweep.scanning.detector import Unit
from backsweep.scanning.detectors.neural_cleanse import NeuralCleanse
from backsweep.zoo.tasks import TASKS


def measure(steps: int, model: Model, data: Data, seed: int) -> float:
    """CPU seconds of a unit."""
    clock = time.process_time()
    NeuralCleanse(preset="paper", steps=steps, threshold=1.0).probe(
        model, data, [Unit(f"class-{seed % 10}", seed % 10)], seed, lambda _: None
    )
    return time.process_time() - clock


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--units", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5.0)
    asked = parser.parse_args()
    task = TASKS["digits"]
    train, data = task.load()
    with one_thread():
        model = Model(fit(task.net(0), train, task.recipe, 0), task.shape, task.classes).copy("cpu")
        measure(5, model, data, 0)
        steps = max(1, round(20 * asked.seconds / measure(20, model, data, 0)))
    engines = {
        "this process": Engine(),
        "processes": Spread(),
        "dask": Engine("dask", 1),
        "ray": Engine("ray", 1),
    }
    walls: dict[str, list[float]] = {name: [] for name in engines}
    costs: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(asked.units + 1):
        for name, engine in engines.items():
            begin = time.perf_counter()
            ((_, cpu),) = engine.run([partial(measure, steps, model, data, turn)], shared=(model, data))
            walls[name].append(time.perf_counter() - begin)
            costs[name].append(float(cpu))
    print("| engine | first unit, s | a unit, s | its CPU, s | over this process |\n|---|---|---|---|---|")
    own = np.array(walls["this process"][1:])
    for name, wall in walls.items():
        over = np.median(np.array(wall[1:]) / own) - 1
        cpu = np.median(costs[name][1:])
        print(f"| {name} | {wall[0]:.1f} | {np.median(wall[1:]):.2f} | {cpu:.2f} | {over:+.1%} |")


class Spread(Engine):
    """One worker in another process; an `Engine` with one worker would stay in this one."""

    here = False


if __name__ == "__main__":
    main()
