"""The cost model of docs/cost.md, inputs x FLOPs of one, beside real scans under PyTorch's FLOP counter.

    python benchmarks/cost_model.py [--out cost.jsonl]

A line for every scan: `bound` follows from the constants of the method alone, all classes taking all of
their steps; `modelled` has the inputs that the scan says it used in place of those; `counted` is the
counter's. CPU seconds are of the same scan without the counter. Then for every network what one input costs,
and what follows for a sweep. Needs the extra hf, and mnist and cifar10 in $BACKSWEEP_DATA.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
import transformers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from backsweep import Model
from backsweep.engine.engine import Engine
from backsweep.inputs.image.modality import IMAGE
from backsweep.inputs.samples import Data
from backsweep.inversion.budget import EMBEDDINGS, Aim, follow, spaces_of
from backsweep.models import architectures, washing
from backsweep.models.training import Recipe, fit, thawed
from backsweep.reports.report import Report
from backsweep.scanning import scan
from backsweep.scanning.detector import ModelDetector
from backsweep.scanning.detectors.cascade import DEFAULT, Cascade
from backsweep.scanning.detectors.mm_bd import MmBd
from backsweep.scanning.detectors.mntd import MNTD
from backsweep.scanning.detectors.neural_cleanse import NeuralCleanse
from backsweep.scanning.planning import stages as planned
from backsweep.shadows import bank, meta_classifier
from backsweep.zoo.tasks import TASKS

SMALL, LARGE = ("gap_cnn", "resnet8", "small_vit", "preact_resnet18"), ("ResNet-50", "ViT-B/16")
NETS = {"digits_cnn": (1, 8, 8), "mnist_cnn": (1, 28, 28)}
NETS |= dict.fromkeys(SMALL, (3, 32, 32)) | dict.fromkeys(LARGE, (3, 224, 224))
# Assumed for a sweep: models, architecture, classes, clean samples; FLOPs a second of a GPU.
MIX = (
    (10500, "ViT-B/16", 10, 1000), (3000, "ResNet-50", 10, 1000), (1200, "ViT-B/16", 100, 1000),
    (300, "ResNet-50", 1000, 5000), (0, "ViT-B/16", 1000, 5000),
)  # fmt: skip
ALONE = Engine(threads=1)  # the counter sees what its own thread computes
CHEAP = Cascade("sparse+late", pairs=False)
PRICED = (NeuralCleanse("paper"), NeuralCleanse(), Cascade(), CHEAP, MmBd(), MNTD())
GPU = 60e12  # published training speed of ResNet-50 on one A100: docs/cost.md
Stages = dict[str, tuple[float, str]]  # name -> (inputs, what is done with them: a key of `prices`)


class Counter(TorchDispatchMode):
    """Sums FLOPs by PyTorch's own formulas; lighter than its FlopCounterMode, which also names modules."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def counted(work: Callable[[], object]) -> int:
    """FLOPs of the convolutions and matrix products in some work."""
    with Counter() as counter:
        work()
    return counter.total


def prices(model: Model, n: int = 2) -> dict[str, float]:
    """FLOPs of one input: forward; forward and backward to a change in each space; in training; in a wash."""
    x = torch.rand((n, *model.shape))
    found: dict[str, float] = {}
    for name, space in spaces_of(model).items():
        delta = space.zeros(model, n, x).requires_grad_()
        found[name] = counted(lambda s=space, d=delta: torch.autograd.grad(s.whole(model, x, d).sum(), d))
    with torch.no_grad():
        found["forward"] = counted(lambda: model.logits(x))
    twin = thawed(model)
    found["train"] = counted(lambda: twin.logits(x).sum().backward())
    found["wash"] = found["forward"] + found["train"]
    return {name: f / n for name, f in found.items()}


def kept_bytes(model: Model) -> int:
    """What autograd keeps of one input until the backward pass, in the bfloat16 of a scan."""
    kept: tuple[dict[int, Tensor], ...] = ({}, {})
    for n, seen in enumerate(kept):  # for one input and for two: what does not grow is weights
        keep = partial(lambda seen, t: seen.setdefault(t.untyped_storage().data_ptr(), t), seen)
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t)
        with hooks, torch.autocast("cpu", torch.bfloat16):
            model.logits(torch.rand((n + 1, *model.shape)).requires_grad_() * 1)
    one, two = (sum(t.untyped_storage().nbytes() for t in seen.values()) for seen in kept)
    return two - one


def rate_of(model: Model, price: dict[str, float]) -> float:
    """FLOPs a second inside a path of budgets; the first path warms up."""
    x, y = torch.rand((24, *model.shape)), torch.zeros(24).long()
    for _ in range(2):
        begin = time.process_time()
        (path,) = follow(model, x, y, [Aim(1, None, 0)], spaces_of(model)["dense"], steps=4, batch=12)
    return path.passes * price["dense"] / (time.process_time() - begin)


def inputs_of(d: ModelDetector, classes: int, samples: int, washes: int = 1) -> Stages:
    """What a scan with one detector sends through a network at most, on a CPU; a wash takes 1 or 2 runs."""
    stages, half = {"accuracy": (samples, "forward")}, samples / 2  # half is held out
    if isinstance(d, NeuralCleanse):
        _, updates, batch, _ = d._control(1)
        stages["class"] = (classes * updates * batch, "dense")
        stages["held out"] = ((classes - 1) * half, "forward")  # for each class the others
    elif isinstance(d, MmBd):
        images, steps = d._size
        stages["class"] = (classes * images * steps, "dense")
        stages["margins"] = (classes * images * (d.preset == "standard"), "forward")
    elif isinstance(d, MNTD):
        stages["queries"] = (meta_classifier.Tuning().repeats * meta_classifier.QUERIES, "forward")
    elif isinstance(d, Cascade):  # as it plans itself, in forward passes
        names = [*IMAGE.spaces(), *EMBEDDINGS]
        names = names if d.spaces == DEFAULT else d.spaces.split("+")
        plan = planned(d.schedule, names, classes, classes * d.pairs, samples, d.reference)
        stages |= {stage.what: (stage.passes, "forward") for stage in plan}
        stages["washed again"] = ((washes - 1) * washing.MOST_UPDATES * 1.5, "forward")
    return stages


def check(name: str, both: tuple[Model, Data], d: ModelDetector, timed: bool = True) -> dict[str, object]:
    """A scan beside the model."""
    (model, data), reports = both, list[Report]()
    price = prices(model.copy("cpu"))
    with patch.object(washing, "_distilled", wraps=washing._distilled) as washes:
        total = counted(lambda: reports.append(scan.scan(model, data, d, device="cpu", engine=ALONE)))
    (report,) = reports
    if report.errors or report.skipped:
        raise SystemExit(f"{name}, {d.name}: {report.errors} {report.skipped}")
    bound = inputs_of(d, model.classes, len(data), washes.call_count)
    said: dict[str, float] = {}
    for e in report.evidence if not isinstance(d, MNTD) else ():
        stage = re.sub(r"(-\d+)+$", "", e.unit)
        said[stage] = said.get(stage, 0) + float(e.values.get("passes") or 0)
    stages = {stage: (said.get(stage, n), kind) for stage, (n, kind) in bound.items()}
    most, modelled = (sum(n * price[kind] for n, kind in part.values()) for part in (bound, stages))
    seconds = (
        scan.scan(model, data, d, device="cpu", engine=ALONE).timings["total_cpu_seconds"] if timed else None
    )
    return {
        "scan": name, "method": d.name, "settings": d.settings(), "classes": model.classes,
        "samples": len(data), "washes": washes.call_count, "inputs": sum(n for n, _ in stages.values()),
        "bound_gflop": most / 1e9, "modelled_gflop": modelled / 1e9, "counted_gflop": total / 1e9,
        "counted_by_modelled": total / modelled, "counted_by_bound": total / most, "cpu_seconds": seconds,
        "gflop_s": seconds and total / 1e9 / seconds, "report_bytes": len(json.dumps(report.to_json())),
    }  # fmt: skip


def built(name: str, classes: int, shape: Sequence[int]) -> nn.Module:
    """A network with random weights, and an attention that the counter knows."""
    if name not in LARGE:
        net = getattr(architectures, name)(classes, *shape[:2])
    else:
        config, kind = (f"{name.split('-')[0]}{end}" for end in ("Config", "ForImageClassification"))
        net = getattr(transformers, kind)(getattr(transformers, config)(num_labels=classes))
    if "vit" in name.lower():
        getattr(net, "net", net).set_attn_implementation("eager")
    return net


def network(task: str, arch: str, epochs: int = 1) -> tuple[Model, Data]:
    """A network of a task after a short training, and clean samples as the bench gives them."""
    t = TASKS[task]
    train, test = t.load()
    recipe = replace(t.recipe, epochs=epochs, lr=3e-3, batch_size=64)
    net = fit(built(arch, t.classes, t.shape), train.sample(6000, 0), recipe, 0)
    return Model(net, t.shape, t.classes), test.sample(1000, 0)


def many(classes: int = 50) -> tuple[Model, Data]:
    """A tiny network for so many classes that the cascade takes its short cuts, and ten samples of each."""
    g, y = torch.Generator().manual_seed(0), torch.arange(classes).repeat(10)
    kinds, own = (torch.rand((n, 1, 8, 8), generator=g) for n in (classes, 10 * classes))
    data, recipe = Data((kinds[y] + own) / 2, y), Recipe(epochs=15, lr=5e-3, batch_size=64)
    return Model(fit(built("digits_cnn", classes, (1, 8, 8)), data, recipe, 0), (1, 8, 8), classes), data


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    torch.set_num_threads(1)

    def say(**line: object) -> None:
        print(json.dumps(line), flush=True)
        if out:
            with out.open("a", encoding="utf-8") as f:
                f.write(json.dumps(line) + "\n")

    paper = NeuralCleanse("paper", steps=3), MmBd("paper", steps=30)
    for name, task, epochs, detectors in (
        ("mnist_cnn", "mnist", 1, (*paper, NeuralCleanse(), Cascade(), MmBd())),
        ("resnet8", "cifar10", 1, (NeuralCleanse(steps=60), Cascade(steps=10, batch=8), MmBd())),
        ("small_vit", "digits", 10, (NeuralCleanse(steps=20), Cascade(steps=4, batch=4))),
        ("digits_cnn", "50 classes", 0, (Cascade(steps=4, batch=4), MmBd())),
    ):
        both = network(task, name, epochs) if epochs else many()
        for d in detectors:
            say(**check(name, both, d, timed=epochs > 0))
    digits, file = network("digits", "digits_cnn", 10), Path(tempfile.mkdtemp()) / "bank"
    how = {
        "recipe": Recipe(epochs=2),
        "tuning": meta_classifier.Tuning(epochs=1),
    }  # with a good bank it costs the same
    bank.build(digits[1], ["digits_cnn"], 32, file, variants=[meta_classifier.JUMBO], **how)
    say(**check("digits_cnn", digits, MNTD(str(file))))
    price, rate = dict[str, dict[str, float]](), dict[str, float]()
    for name, shape in NETS.items():
        classes = 1000 if name in LARGE else 10
        model = Model(built(name, classes, shape), shape, classes).copy("cpu")
        price[name] = prices(model)
        rate[name] = rate_of(model, price[name])
        ratios = {k: f / price[name]["forward"] for k, f in price[name].items()}
        kept, gigaflop = kept_bytes(model), price[name]["forward"] / 1e9
        say(net=name, gflop=gigaflop, ratios=ratios, gflop_s=rate[name] / 1e9, kept_mb=kept / 1e6)
    for models, name, classes, samples in MIX:
        for d in PRICED:
            stages = inputs_of(d, classes, samples)
            cost, inputs = (
                sum(n * price[name][k] for n, k in stages.values()),
                sum(n for n, _ in stages.values()),
            )
            hours = {"core_hours": cost / rate[name] / 3600, "gpu_hours": cost / GPU / 3600}
            what = {"models": models, "classes": classes, "samples": samples, "settings": d.settings()}
            say(sweep=name, method=d.name, inputs=inputs, flop=cost, **hours, **what)


if __name__ == "__main__":
    main()
