"""Peak memory of a scan of a large network: one part of every stage, with random weights and made-up images.

    python benchmarks/large_memory.py [--net ResNet-50] [--effort quick] [--samples 2000] [--stages pairs]

What a part needs does not hang on how many there are, nor on how many steps it takes: of each stage so many
parts run at once as there are threads, with two steps, and a reference learns for two updates and is tried on
64 samples. A line for each: CPU seconds, peak memory of the process up to then. No verdict comes of this.
Needs the extra hf.
"""

from __future__ import annotations

import argparse
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from unittest.mock import patch

import torch
from cost_model import NETS, built
from torch import Tensor

from backsweep import Model
from backsweep.inputs.samples import Data
from backsweep.models import washing
from backsweep.scanning.detector import Unit
from backsweep.scanning.detectors.cascade import Cascade

FEW, UPDATES = 64, ((2, 128, 3e-3),)


def peak() -> float:
    """Most memory that this process has had, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--net", default="ResNet-50", choices=[n for n, s in NETS.items() if s[1] > 32])
    parser.add_argument("--effort", default="quick")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--stages", nargs="*", help="some of them, as they are named in the lines")
    given = parser.parse_args()
    torch.set_num_threads(1)
    shape, classes = NETS[given.net], given.classes
    method = Cascade(effort=given.effort)
    method = replace(method, steps=max(2, round(2 / (method.schedule.steps / method.steps))))
    model = Model(built(given.net, classes, shape), shape, classes).copy("cpu")
    pixels = torch.randint(0, 256, (given.samples, *shape), dtype=torch.uint8)
    data = Data(pixels, torch.arange(given.samples) % classes)
    del pixels
    print(
        f"{given.net}, {given.samples} samples, steps {method.schedule.steps}: {peak():.2f} GiB", flush=True
    )
    stages = ["look-late", *(f"class-{s}" for s in method._names(model)), "reference-dense", "reference-late"]
    accuracy = Model.accuracy

    def briefly(self: Model, x: Tensor, y: Tensor) -> float:
        return accuracy(self, x[torch.arange(FEW)], y[:FEW])

    def measured(units: list[Unit]) -> None:
        torch.set_num_threads(1)
        method.probe(model, data, units, 0, lambda _: None)

    with patch.object(Model, "accuracy", briefly), patch.object(washing, "RECIPES", UPDATES):
        for stage in given.stages or [*stages, "pairs", "closer"]:
            if stage == "pairs":
                units = [Unit(f"pairs-{s}", None, s) for s in range(given.threads)]
            elif stage == "closer":
                units = [Unit(f"closer-{s}-{s + 1}", s + 1, s) for s in range(given.threads)]
            else:
                units = [Unit(f"{stage}-{t}", t) for t in range(classes)]
            parts = [list(part) for part in method.parts(model, units)][: given.threads]
            clock = time.process_time()
            with ThreadPoolExecutor(given.threads) as pool:
                list(pool.map(measured, parts))
            took = time.process_time() - clock
            count = sum(map(len, parts))
            print(f"{stage}, {count} units: {took:.1f} CPU s, peak {peak():.2f} GiB", flush=True)


if __name__ == "__main__":
    main()
