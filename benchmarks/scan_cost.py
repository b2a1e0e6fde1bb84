"""What the cascade costs, the default scan, beside both presets of Neural Cleanse; 43 classes beside 10.

CPU time, all in one run:

    python benchmarks/scan_cost.py [--paper-classes 2]

Networks of the zoo's kinds on their real data, trained for one epoch here (cost does not hang on what they
learned, but for early stops, which both have). Neural Cleanse `paper` is run on the first `--paper-classes`
classes and scaled to all of them. The last line compares the arithmetic rate inside inversion with that of
a large bfloat16 matrix product on the same machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from backsweep import Model, scan
from backsweep.engine.engine import Engine
from backsweep.inputs.samples import Data
from backsweep.inversion.budget import Aim, follow, spaces_of
from backsweep.models.training import fit
from backsweep.scanning.detector import Unit
from backsweep.scanning.detectors.neural_cleanse import NeuralCleanse
from backsweep.zoo.tasks import TASKS

DETECTORS = ("cascade", "neural_cleanse")


def network(task: str, arch: str | None) -> tuple[Model, Data]:
    """A network of a task after one epoch, and clean samples as the bench gives them."""
    t = TASKS[task]
    train, test = t.load()
    net = fit(t.net(0, arch), train, replace(t.recipe, epochs=1, lr=5e-3, batch_size=64), 0)
    return Model(net, t.shape, t.classes), test.sample(max(1000, 30 * t.classes), 0)


def cpu(work: Callable[[], object]) -> float:
    """CPU seconds of some work."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def matrix_rate() -> float:
    """Multiply-adds a second, times 2, of a bfloat16 product of 1024 x 1024 matrices."""
    a = torch.randn(1024, 1024, dtype=torch.bfloat16)
    a @ a
    count, begin = 20, time.perf_counter()
    for _ in range(count):
        a @ a
    return count * 2 * 1024**3 / (time.perf_counter() - begin)


def inversion_rate(model: Model, data: Data) -> float:
    """Floating point operations a second on the path of budgets; a backward pass counts as a forward one."""
    from torch.utils.flop_counter import FlopCounterMode

    work = model.copy("cpu")
    x, y = data.x, data.y
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work.logits(x[:16])
    begin = time.perf_counter()
    (path,) = follow(work, x, y, [Aim(0, None, 0)], spaces_of(work)["dense"], steps=20, batch=64)
    return 2 * counter.get_total_flops() / 16 * path.passes / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--paper-classes", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(1)
    costs: dict[str, float] = {}
    for name, task, arch in (
        ("MNIST CNN", "mnist", None),
        ("narrow ResNet, 10 classes", "cifar10", "resnet8"),
        ("narrow ResNet, 43 classes", "gtsrb", "resnet8"),
    ):
        model, data = network(task, arch)
        timings = scan(model, data, DETECTORS, device="cpu", engine=Engine(threads=1)).timings
        cascade, patch = (timings[f"{d}_cpu_seconds"] for d in DETECTORS)
        costs[name] = cascade
        print(f"{name}: cascade {cascade:.1f}, Neural Cleanse `standard` {patch:.1f} CPU s", flush=True)
        if task != "gtsrb":
            paper, work = NeuralCleanse(preset="paper"), model.copy("cpu")
            units = [Unit(f"class-{t}", t) for t in range(given.paper_classes)]
            one = cpu(
                lambda w=work, d=data, u=units, p=paper: [p.probe(w, d, [x], 0, lambda _: None) for x in u]
            )
            whole = one / given.paper_classes * model.classes
            print(
                f"{name}: Neural Cleanse `paper` {whole:.0f} CPU s ({given.paper_classes} classes measured), "
                f"{whole / cascade:.1f} times the cascade, {whole / (cascade + patch):.1f} times both",
                flush=True,
            )  # fmt: skip
        if task == "cifar10":
            share = inversion_rate(model, data) / matrix_rate()
            print(f"{name}: arithmetic rate inside inversion {share:.0%} of a bfloat16 matrix product")
    ratio = costs["narrow ResNet, 43 classes"] / costs["narrow ResNet, 10 classes"]
    print(f"43 classes cost the cascade {ratio:.1f} times what 10 classes cost")


if __name__ == "__main__":
    main()
