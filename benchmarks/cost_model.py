"""The cost model of docs/cost.md, inputs x FLOPs of one, beside real scans under PyTorch's FLOP counter.

    python benchmarks/cost_model.py [--out cost.jsonl]

A line for every scan: `bound` follows from the constants of the method alone, all classes taking all of
their steps; `modelled` has the inputs that the scan says it used in place of those; `counted` is the
counter's; `planned` is what a scan says beforehand (`ModelDetector.plan`). How often a reference was trained,
and whether there was a second look, is taken from the scan. CPU seconds are of the same scan without the
counter. Then for every network what one input costs, and what follows for a sweep. Needs the extra hf, and
mnist and cifar10 in $BACKSWEEP_DATA.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
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
from backsweep.inversion.budget import EMBEDDINGS, Aim, Embedded, follow, spaces_of
from backsweep.models import architectures, prefix, washing
from backsweep.models.training import Recipe, epochs_of, fit, thawed
from backsweep.reports.report import Report
from backsweep.scanning import scan
from backsweep.scanning.cascade.schedule import AGAIN, LOOKS, PAIRS
from backsweep.scanning.cascade.screens import TRIED
from backsweep.scanning.detector import ModelDetector
from backsweep.scanning.detectors.cascade import DEFAULT, Cascade
from backsweep.scanning.detectors.mm_bd import MmBd
from backsweep.scanning.detectors.mntd import MNTD
from backsweep.scanning.detectors.neural_cleanse import NeuralCleanse
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
TRAINED = "_distilled", "washed"  # what trains a reference, and what asks for a washed copy
ALONE = Engine(threads=1)  # the counter sees what its own thread computes
QUICK, CHEAP = Cascade(effort="quick"), Cascade("sparse+late", pairs=False)
PRICED = (NeuralCleanse("paper"), NeuralCleanse(), Cascade(), QUICK, CHEAP, MmBd(), MNTD())
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


@dataclass
class Price:
    """What one input costs.

    Attributes:
        flops: forward; there and back to a change in each space, going on from what is kept where passes
            resume; "to" each cut, and "from" that of a washed copy; an update of it, and of a pupil.
        kept: bytes of an input at each cut; none where passes cannot be resumed.
        views: of every sample, on which a washed copy learns.
    """

    flops: dict[str, float] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    views: int = washing.VIEWS

    def shared(self, cut: str) -> bool:
        """Whether a washed copy is as the suspect up to there."""
        return self.flops[f"to {cut}"] <= self.flops.get("to wash", -1.0)

    def rows(self, cut: str, count: int) -> int:
        """So many of the inputs are kept at a cut."""
        most = washing.MOST_BYTES if cut == "wash" else prefix.MOST_BYTES
        return min(count, most // self.kept[cut])


def price_of(model: Model, n: int = 2) -> Price:
    """For a frozen working copy."""
    x, y, rows = torch.rand((n, *model.shape)), torch.zeros(n).long(), torch.arange(n)
    found = Price(views=washing.VIEWS if model.modality.shifts(model.shape) else 1)
    with torch.no_grad():
        found.flops["forward"] = counted(lambda: model.logits(x))
    twin = thawed(model)
    found.flops["train"] = counted(lambda: twin.logits(x).sum().backward())
    found.flops["learn"] = found.flops["forward"] + found.flops["train"]

    def cut(name: str, kept: prefix.Prefix) -> None:
        with torch.no_grad():
            found.flops[f"from {name}"] = counted(lambda: kept.logits(model, rows))
        found.flops[f"to {name}"] = found.flops["forward"] - found.flops[f"from {name}"]
        found.kept[name] = sum(t.nbytes for t in kept.kept.values()) // n

    for name, space in spaces_of(model).items():
        with torch.autocast("cpu", torch.bfloat16):  # as a scan runs it, and keeps it
            delta = space.zeros(model, n, x).requires_grad_()
            found.flops[name] = counted(
                lambda s=space, d=delta: torch.autograd.grad(s.logits(model, x, rows, d).sum(), d)
            )
            kept = prefix.prefix_of(model, x, space.layer) if isinstance(space, Embedded) else None
        if kept is not None:
            cut(name, kept)
    late = [p for _, p in washing.late_half(model.net)]
    try:
        kept = prefix.Prefix(model, washing.Views(model, Data(x, y), 0), before=late)
    except prefix.Unkept:
        found.flops["wash"] = found.flops["learn"]
    else:
        cut("wash", kept)
        for p in twin.net.requires_grad_(False).parameters():
            p.grad = None
        for _, p in washing.late_half(twin.net):
            p.requires_grad_(True)
        found.flops["wash"] = counted(lambda: kept.logits(twin, rows).sum().backward())
    found.flops = {name: f / n for name, f in found.flops.items()}
    return found


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


def rate_of(model: Model, price: Price) -> float:
    """FLOPs a second inside a path of budgets; the first path warms up."""
    x, y = torch.rand((24, *model.shape)), torch.zeros(24).long()
    for _ in range(2):
        begin = time.process_time()
        (path,) = follow(model, x, y, [Aim(1, None, 0)], spaces_of(model)["dense"], steps=4, batch=12)
    return path.passes * price.flops["dense"] / (time.process_time() - begin)


def inputs_of(d: ModelDetector, price: Price, classes: int, samples: int, **how: float) -> Stages:
    """What a scan with one detector sends through a network at most, on a CPU."""
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
    elif isinstance(d, Cascade):
        stages |= of_cascade(d, price, classes, samples, **how)
    return stages


def of_cascade(
    d: Cascade, price: Price, classes: int, samples: int, washes: float = 1, second: float = AGAIN
) -> Stages:
    """`inputs_of` the cascade.

    Args:
        washes: recipes that each washed copy needed, 1 or 2.
        second: how often there is a second look.
    """
    s, stages = d.schedule, Stages()
    names = [*IMAGE.spaces(), *EMBEDDINGS]
    names = names if d.spaces == DEFAULT else d.spaces.split("+")
    full, half = s.measured(classes), samples / 2
    looks = [(1.0, LOOKS[0][: d.reference + s.pupil]), (second * (s.second > 0), LOOKS[1])]
    networks = [(1.0, "class"), *((often, kind) for often, kinds in looks for kind in kinds)]
    if full < classes:
        for n in s.looked(names):
            stages[f"look-{n}"] = (classes * s.look[0] * s.look[1], n)
    for often, kind in networks:
        for n in names:
            stages[f"{kind}-{n}"] = (often * full * s.steps * s.batch, n)
            if n in IMAGE.spaces():
                stages[f"{kind}-{n} tried"] = (often * full * min(TRIED, samples), "forward")
            elif n in price.kept and not (kind.startswith("reference") and s.kept and price.shared(n)):
                stages[f"{kind}-{n} kept"] = (often * price.rows(n, samples), f"to {n}")
        if kind.startswith("pupil"):
            updates, batch, _ = washing.PUPIL
            stages[f"{kind} learns"] = (often * epochs_of(updates, samples, batch) * samples, "learn")
        elif kind != "class":
            count, what = samples, "learn"
            if s.kept and "wash" in price.kept:
                count, what = price.rows("wash", price.views * samples), "wash"
                stages[f"{kind} views"] = (often * count, "forward")  # up to the cut, and the answers
            first, again = (epochs_of(u, count, b) * count for u, b, _ in washing.RECIPES)
            stages[f"{kind} washed"] = (often * (first + (washes - 1) * again), what)
        if kind != "class":
            stages[f"{kind} right"] = (often * samples, "forward")
    if d.pairs:
        targets, (steps, batch) = min(classes - 1, max(1, PAIRS // classes)), s.pairs_in(classes)
        stages["pairs"] = (classes * targets * steps * batch, "sparse")
        stages["nearest"] = (min(64 * classes, samples) * (targets < classes - 1), "forward")
        stages["cells"] = (s.cells_in(classes) * s.again[0] * s.again[1], "sparse")
        stages["closer"] = (2 * s.closer * s.steps * s.closer_batch * (1 + d.reference), "sparse")
    stages["trigger"] = (s.updates * s.batch, "dense")
    stages["trigger tried"] = (half * ((2 + s.pupil) * (1 - 1 / classes) + 2), "forward")
    return stages


def check(name: str, both: tuple[Model, Data], d: ModelDetector, timed: bool = True) -> dict[str, object]:
    """A scan beside the model."""
    (model, data), reports = both, list[Report]()
    work = model.copy("cpu")
    price = price_of(work)
    runs, copies = (patch.object(washing, name, wraps=getattr(washing, name)) for name in TRAINED)
    with runs as trained, copies as washed:
        total = counted(lambda: reports.append(scan.scan(model, data, d, device="cpu", engine=ALONE)))
    (report,) = reports
    if report.errors or report.skipped:
        raise SystemExit(f"{name}, {d.name}: {report.errors} {report.skipped}")
    how: dict[str, float] = {}
    if isinstance(d, Cascade):
        washes = sum(call.kwargs.get("share") != 0 for call in trained.call_args_list)
        second = any(e.unit.startswith(LOOKS[1]) for e in report.evidence)
        how = {"washes": washes / max(1, washed.call_count), "second": float(second)}
    bound = inputs_of(d, price, model.classes, len(data), **how)
    said: dict[str, float] = {}
    for e in report.evidence if not isinstance(d, MNTD) else ():
        stage = re.sub(r"(-\d+)+$", "", e.unit)
        said[stage] = said.get(stage, 0) + float(e.values.get("passes") or 0)
    stages = {stage: (said.get(stage, n), kind) for stage, (n, kind) in bound.items()}
    most, modelled = (sum(n * price.flops[kind] for n, kind in part.values()) for part in (bound, stages))
    planned = sum(stage.passes for stage in d.plan(work, data)) * price.flops["forward"]
    seconds = (
        scan.scan(model, data, d, device="cpu", engine=ALONE).timings["total_cpu_seconds"] if timed else None
    )
    return {
        "scan": name, "method": d.name, "settings": d.settings(), "classes": model.classes,
        "samples": len(data), **how, "inputs": sum(n for n, _ in stages.values()),
        "bound_gflop": most / 1e9, "modelled_gflop": modelled / 1e9, "counted_gflop": total / 1e9,
        "counted_by_modelled": total / modelled, "counted_by_bound": total / most, "cpu_seconds": seconds,
        "counted_by_planned": total / planned if planned else None,
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
    price, rate = dict[str, Price](), dict[str, float]()
    for name, shape in NETS.items():
        classes = 1000 if name in LARGE else 10
        model = Model(built(name, classes, shape), shape, classes).copy("cpu")
        price[name] = price_of(model)
        rate[name] = rate_of(model, price[name])
        one = price[name].flops["forward"]
        ratios = {k: f / one for k, f in price[name].flops.items()}
        kept, gigaflop = kept_bytes(model), one / 1e9
        say(net=name, gflop=gigaflop, ratios=ratios, gflop_s=rate[name] / 1e9, kept_mb=kept / 1e6)
    for models, name, classes, samples in MIX:
        for d in PRICED:
            stages = inputs_of(d, price[name], classes, samples)
            cost, inputs = (
                sum(n * price[name].flops[k] for n, k in stages.values()),
                sum(n for n, _ in stages.values()),
            )
            hours = {"core_hours": cost / rate[name] / 3600, "gpu_hours": cost / GPU / 3600}
            what = {"models": models, "classes": classes, "samples": samples, "settings": d.settings()}
            say(sweep=name, method=d.name, inputs=inputs, flop=cost, **hours, **what)


if __name__ == "__main__":
    main()
