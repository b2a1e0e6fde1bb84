"""Time of the detectors of training sets on 50,000 samples whose features are known.

    python benchmarks/audit_speed.py [--samples 50000] [--features 512] [--out FILE.json]

Features and logits are drawn: ten classes of unequal covariance, in one of which a tenth is moved. Nothing is
asked of the network, so this is the cost of the method alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import torch

from backsweep.auditing.audit import made
from backsweep.auditing.detector import TrainingSet
from backsweep.inputs.samples import Data
from backsweep.models.architectures import digits_cnn
from backsweep.models.model import Model

NAMES = ("spectral_signatures", "activation_clustering", "spectre", "contamination_analyzer")


def drawn(samples: int, features: int) -> TrainingSet:
    """A set with classes of their own mean and covariance; a tenth of class 3 lies apart."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(samples) % 10
    mixing = torch.randn((10, features, features), generator=generator) / features**0.5
    z = torch.randn((samples, features), generator=generator)
    for c in range(10):
        z[y == c] = z[y == c] @ mixing[c] + torch.randn(features, generator=generator)
    rows = torch.nonzero(y == 3).flatten()
    z[rows[: len(rows) // 10]] += 2 * torch.randn(features, generator=generator) / features**0.5 * 8
    logits = torch.randn((samples, 10), generator=generator)
    model = Model(digits_cnn(), (1, 8, 8), 10).copy()
    data = Data(torch.zeros(samples, 1, 8, 8), y)
    return TrainingSet(data, 10, z, logits, model, lambda _data, _seed: model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    given = drawn(args.samples, args.features)
    found = {}
    for name in NAMES:
        detector = made(name, {"clean": False} if name == "contamination_analyzer" else {})
        begin = time.perf_counter(), time.process_time()
        _, evidence = detector.measure(given)
        top = max(evidence, key=lambda e: float(e.values["statistic"] or 0)).target
        found[name] = {
            "seconds": round(time.perf_counter() - begin[0], 2),
            "cpu_seconds": round(time.process_time() - begin[1], 2), "most_suspicious": top,
        }  # fmt: skip
        print(name, found[name])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = {"samples": args.samples, "features": args.features, "threads": torch.get_num_threads(),
            "peak_mib": round(peak), "detectors": found}  # fmt: skip
    if args.out:
        args.out.write_text(json.dumps(line, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
