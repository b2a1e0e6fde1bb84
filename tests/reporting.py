"""Reports as a scan would make them, without a scan."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch

from backsweep.auditing.detector import class_evidence
from backsweep.auditing.detectors.cross_confusion import CrossConfusion
from backsweep.inputs.image.modality import IMAGE
from backsweep.inputs.image.triggers import Patch
from backsweep.reports.audit import Audit, Examples, Retrained
from backsweep.reports.report import Evidence, Note, Report
from backsweep.scanning import calibration
from backsweep.scanning.cascade.schedule import LOOKS
from backsweep.scanning.detectors.cascade import Cascade
from backsweep.scanning.detectors.neural_cleanse import NeuralCleanse

GTSRB = (
    "Speed limit 20", "Speed limit 30", "Speed limit 50", "Speed limit 60", "Speed limit 70",
    "Speed limit 80", "End of speed limit 80", "Speed limit 100", "Speed limit 120", "No passing",
)  # fmt: skip


def patch(shape: Sequence[int], norm: float, target: int, seed: int = 0) -> Patch:
    """A trigger with a mask of about `norm` pixels: a sharp square when small, smeared when large."""
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = shape
    side = max(1, min(height, math.isqrt(round(norm)) + 1))
    mask = torch.zeros(1, height, width)
    if norm < 0.03 * height * width:
        mask[:, -side - 1 : -1, -side - 1 : -1] = 1
    else:
        mask = torch.rand((1, height, width), generator=generator) ** 3
    mask = (mask * norm / mask.sum()).clamp(0, 1)
    return Patch(target, None, mask, torch.rand((channels, height, width), generator=generator))


def example_images(shape: Sequence[int], count: int = 4) -> torch.Tensor:
    """Soft shapes on a shaded ground, so that a stamp is seen."""
    channels, height, width = shape
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    images = []
    for i in range(count):
        ring = torch.sigmoid(24 * (0.55 + 0.08 * i - (x**2 + (1 + 0.3 * i) * y**2).sqrt()))
        ground = 0.25 + 0.15 * y
        tint = torch.tensor([0.9, 0.35 + 0.15 * i, 0.2 + 0.2 * i])[:channels]
        images.append((ground + ring * (tint[:, None, None] - ground)).expand(channels, height, width))
    return torch.stack(images).clamp(0, 1)


def make_report(
    classes: int = 10,
    bad: Collection[int] = (3,),
    shape: Sequence[int] = (3, 32, 32),
    labels: Sequence[str] | None = None,
    skipped: Sequence[Note] = (),
    errors: Sequence[Note] = (),
    unreached: Collection[int] = (),
    triggers: bool = True,
) -> Report:
    """What Neural Cleanse says of a model whose classes `bad` have a small trigger."""
    generator = torch.Generator().manual_seed(classes)
    pixels = shape[1] * shape[2]
    norms = (pixels * 0.08 * torch.exp(0.22 * torch.randn(classes, generator=generator))).tolist()
    evidence = []
    for t in range(classes):
        norm = pixels * 0.006 if t in bad else norms[t]
        rate = 0.995 if t in bad else 0.97 - 0.002 * (t % 7)
        values: dict[str, float | int | bool | str | None] = {
            "norm": norm, "reached": t not in unreached, "attack_success_rate": rate,
            "updates": 200, "passes": 4000 + t, "pixels": pixels,
        }  # fmt: skip
        trigger = patch(shape, norm, t, t) if triggers else None
        evidence.append(Evidence("neural_cleanse", f"class-{t}", t, None, values, trigger))
    method = NeuralCleanse()
    return Report(
        model={
            "source": "models/traffic-signs.safetensors",
            "sha256": hashlib.sha256(b"model").hexdigest(),
            "shape": list(shape),
            "classes": classes,
            "labels": list(labels) if labels else None,
            "mean": [0.34, 0.31, 0.32], "std": [0.27, 0.26, 0.27],
            "parameters": 272_474,
            "command": None,
        },
        data={
            "source": "data/signs held out.npz", "sha256": hashlib.sha256(b"data").hexdigest(),
            "samples": 1000, "classes_present": classes, "clean_accuracy": 0.956,
        },
        settings={
            "alpha": 0.05, "seed": 0, "device": "cpu", "detectors": {method.name: method.settings()},
        },
        versions={"backsweep": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
        findings=method.judge(evidence, classes, 0.05),
        skipped=list(skipped),
        errors=list(errors),
        evidence=evidence,
        timings={
            "neural_cleanse_seconds": 41.27, "neural_cleanse_cpu_seconds": 78.1, "total_seconds": 44.9,
        },
        examples=example_images(shape),
    )  # fmt: skip


def make_cascade_report(
    classes: int = 10,
    bad: Collection[int] = (3,),
    pairs: Collection[tuple[int, int]] = (),
    natural: Collection[int] = (),
    shape: Sequence[int] = (3, 32, 32),
    works_there: float = 0.01,
    **settings: Any,
) -> Report:
    """What the default scan says of a model with targets `bad` and backdoors `pairs` (source, target).

    Classes `natural` are easy to reach in the reference as well; the trigger of the most suspicious
    class works on the share `works_there` of the samples there.
    """
    method = Cascade(**settings)
    generator = torch.Generator().manual_seed(classes)

    def size(middle: float, step: float) -> float:
        return middle + step * float(torch.randn((), generator=generator))

    evidence: list[Evidence] = []

    def add(unit: str, target: int | None, source: int | None, **values: float) -> None:
        evidence.append(Evidence(method.name, unit, target, source, values))

    for space in method.spaces.split("+"):
        for t in range(classes):
            usual = size(3.0, 0.3) - 2.5 * (t in natural)
            tried = space in IMAGE.spaces()
            here, there = ({"works": w} if tried else {} for w in (1.0, 0.05 if t in bad else 0.9))
            own = size(usual, 0.02) - 2.0 * (t in bad)
            add(f"class-{space}-{t}", t, None, log_size=own, passes=600, **here)
            for kind in LOOKS[0]:
                add(f"{kind}-{space}-{t}", t, None, log_size=size(usual, 0.02), passes=600, **there)
    for s in range(classes):
        cells = {f"to_{t}": size(4.0, 0.1) - 2.0 * ((s, t) in pairs) for t in range(classes) if t != s}
        add(f"pairs-{s}", None, s, passes=900, **cells)
    for s, t in sorted({(s, (s + 1) % classes) for s in range(min(6, classes))} | set(pairs)):
        own = size(4.0, 0.02) - 3.0 * ((s, t) in pairs)
        add(f"closer-{s}-{t}", t, s, log_size=own, reference_log_size=size(4.0, 0.02), passes=900)
    top = max(method.rows(evidence, classes), key=lambda e: float(e.values["suspicion"] or 0))
    target = int(top.target or 0)
    values: dict[str, float | int | bool | str | None] = {
        "norm": 9.0, "reached": True, "passes": 1920, "attack_success_rate": 0.97,
        "reference_success_rate": works_there, "reference_accuracy": 0.93, "accuracy": 0.95,
    }  # fmt: skip
    trigger = replace(patch(shape, 9.0, target), source=top.source)
    evidence.append(Evidence(method.name, f"trigger-{target}", target, top.source, values, trigger))
    report = make_report(classes, shape=shape)
    report.evidence = evidence
    report.settings["detectors"] = {method.name: method.settings()}
    report.timings = {"cascade_seconds": 9.1, "total_seconds": 9.5}
    report.findings = calibration.judge(method, evidence, report.model, 0.05)
    return report


def make_line(
    task: str = "mnist", attack: str | None = None, seed: int = 10, p: float | None = 0.5, **more: Any
) -> dict[str, Any]:
    """A line of the bench."""
    flagged = p is not None and p <= 0.05
    return {
        "cell": f"{task}-{attack}-{seed}", "net": f"{task}-{attack or 'clean'}-s{seed}", "task": task,
        "attack": attack, "seed": seed, "detector": "neural_cleanse",
        "settings": {"preset": "standard", "threshold": 0.99, "steps": None, "batch": None},
        "targets": [2] if attack else [], "clean_accuracy": 0.99,
        "attack_success_rate": 1.0 if attack else None, "gate": "",
        "verdict": "backdoored" if flagged else "clean", "p_value": p, "score": 5.0 if flagged else 1.0,
        "suspected": [2] if flagged else [], "most_suspicious": 2, "jaccard": 0.5 if attack else None,
        "inside": 0.75 if attack else None, "norm": 10.0, "updates": 100, "passes": 2400,
        "cpu_seconds": 6.0, "sha256": "0" * 64, "backsweep": "0.1.0", "torch": "2.13.0", "python": "3.11.7",
        **more,
    }  # fmt: skip


def make_audit(
    classes: int = 10,
    bad: Collection[int] = (3,),
    poisoned: int = 12,
    samples: int = 100,
    shape: Sequence[int] = (3, 32, 32),
    labels: Sequence[str] | None = None,
    skipped: Sequence[Note] = (),
    errors: Sequence[Note] = (),
    retrained: bool = False,
    drawn: int = 6,
) -> Audit:
    """What an audit says of `samples` samples in every class, of which `poisoned` are in those of `bad`."""
    method, generator = CrossConfusion(), torch.Generator().manual_seed(classes)
    y = torch.arange(classes).repeat_interleave(samples)
    score, place = torch.randn(len(y), generator=generator), torch.randn((len(y), 2), generator=generator)
    evidence = []
    for c in range(classes):
        rows = torch.arange(c * samples, c * samples + (poisoned if c in bad else 0))
        score[rows] += 9
        place[rows, 0] += 5
        statistic = 20.0 if c in bad else float(0.2 * torch.exp(0.4 * torch.randn((), generator=generator)))
        evidence.append(class_evidence(method.name, c, statistic, 5.0, gain=0.1, upper=2.0, share=0.12))
    base, pictures = make_report(classes, shape=shape, labels=labels), []
    for c in [*bad, *(range(classes) if not bad else ())][: drawn if bad else 1]:
        own = torch.nonzero(y == c).flatten()
        order = own[score[own].argsort(descending=True, stable=True)]
        few = [order[:8].clone(), order[len(order) // 2 :][:8].clone()]
        images = example_images(shape, 8)
        stamped = images.clone()
        stamped[:, :, -shape[1] // 5 :, -shape[2] // 5 :] = 1
        both = torch.cat(
            [stamped[: len(few[0])] if c in bad else images[: len(few[0])], images[: len(few[1])]]
        )
        pictures.append(Examples(c, order, place[order], few[0], few[1], both))
    told = {"null": calibration.UNCALIBRATED}
    findings = [
        replace(f, details={**f.details, **told}) for f in method.judge(evidence, len(evidence), 0.05)
    ]
    return Audit(
        model=base.model,
        data={
            "source": "data/signs train.npz", "sha256": hashlib.sha256(b"train").hexdigest(),
            "samples": len(y), "classes_present": classes, "training_accuracy": 0.993, "clean": None,
        },
        settings={"alpha": 0.05, "seed": 0, "device": "cpu", "detectors": {method.name: method.settings()}},
        versions=base.versions, findings=findings, skipped=list(skipped), errors=list(errors),
        evidence=evidence, timings={"cross_confusion_seconds": 16.9, "total_seconds": 21.0},
        scores={method.name: score}, labels=y, pictures=pictures,
        retrained=Retrained(0.991, 0.986, len(y) - 12, "100 kept samples, held out") if retrained else None,
    )  # fmt: skip
