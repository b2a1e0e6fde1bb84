"""The default scan against another version of the code, and against Neural Cleanse: cost and verdicts.

    python benchmarks/engine.py ZOO [--old COMMIT] [--match 'mnist-*'] [--paper] --out lines.jsonl

ZOO is a folder of networks that `backsweep zoo build` made. Every network is scanned by both versions, one
after the other, each in a process of its own with one thread; the other version is checked out of this
repository into a temporary folder. What is there in the output is not run again. At the end comes the table.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from backsweep.core.statistics import wilson

ROOT = Path(__file__).parents[1]
BEFORE = "517ea6c"  # the last version before this engine
SCAN = """
import json, sys, time, torch
from pathlib import Path
import backsweep
from backsweep.core.seeds import derive_seed
from backsweep.zoo import build
torch.set_num_threads(1)
net = build.Net.read(Path(sys.argv[1]))
detectors = None if sys.argv[2] == "default" else backsweep.detectors.NeuralCleanse(preset="paper")
_, test = build.load_data(net.truth["task"])
clean = test.sample(max(1000, 30 * net.task.classes), derive_seed(net.truth["seed"], "bench"))
model = net.model()
if sys.argv[3] == "new":
    from backsweep.engine.engine import Engine
    how = {"engine": Engine(threads=int(sys.argv[4]))}
else:
    how = {}
begin, clock = time.perf_counter(), time.process_time()
report = backsweep.scan(model, clean, detectors, seed=net.truth["seed"], device="cpu", **how)
print(json.dumps({
    "net": net.id, "attack": net.truth["attack"], "classes": net.task.classes, "verdict": report.verdict,
    "targets": list(report.targets), "wanted": [t.target for t in net.triggers()],
    "p_value": report.p_value, "cpu": time.process_time() - clock, "wall": time.perf_counter() - begin,
}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("zoo", type=Path)
    parser.add_argument("--old", default=BEFORE)
    parser.add_argument("--match", default="*")
    parser.add_argument("--paper", action="store_true", help="Neural Cleanse `paper` too, hours")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    lines = [json.loads(t) for t in given.out.read_text().splitlines()] if given.out.is_file() else []
    done = {(x["net"], x["way"]) for x in lines}
    ways = ["old", "new", *(["paper"] if given.paper else [])]
    with tempfile.TemporaryDirectory() as folder:
        old = Path(folder, "old")
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", str(old), given.old], check=True, capture_output=True)  # noqa: S603
        try:
            for net in sorted(p for p in given.zoo.glob(given.match) if (p / "model.safetensors").is_file()):
                for way in ways:
                    if (net.name, way) in done:
                        continue
                    line = {"way": way, **scanned(net, way, old if way == "old" else ROOT, given.threads)}
                    lines.append(line)
                    with given.out.open("a") as f:
                        f.write(json.dumps(line) + "\n")
                    print(f"{net.name} {way}: {line['verdict']}, {line['cpu']:.1f} CPU s", file=sys.stderr)
        finally:
            subprocess.run([*git, "remove", "--force", str(old)], check=True)  # noqa: S603
    print(table(lines, ways))


def scanned(net: Path, way: str, root: Path, threads: int) -> dict[str, Any]:
    """One scan in a process of its own."""
    kind = "old" if way == "old" else "new"
    words = [
        sys.executable,
        "-c",
        SCAN,
        str(net),
        "paper" if way == "paper" else "default",
        kind,
        str(threads),
    ]
    env = {**os.environ, "PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"}
    said = subprocess.run(words, env=env, capture_output=True, text=True, check=True)  # noqa: S603
    found: dict[str, Any] = json.loads(said.stdout.splitlines()[-1])
    return found


def table(lines: list[dict[str, Any]], ways: list[str]) -> str:
    """Markdown: cost and verdicts of both, by task."""
    head = (
        "networks",
        "scan",
        "CPU s",
        "of the old",
        "found",
        "clean called",
        "target right",
        "AUROC of 1 - p",
    )
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for task in sorted({x["net"].split("-")[0] for x in lines}):
        own = [x for x in lines if x["net"].split("-")[0] == task]
        names = set.intersection(*({x["net"] for x in own if x["way"] == w} for w in ways))
        base = np.mean([x["cpu"] for x in own if x["way"] == "old" and x["net"] in names])
        for way in ways:
            part = [x for x in own if x["way"] == way and x["net"] in names]
            bad, good = ([x for x in part if (x["attack"] is not None) == a] for a in (True, False))
            found = [x for x in bad if x["verdict"] == "backdoored"]
            called = [x for x in good if x["verdict"] == "backdoored"]
            right = sum(set(x["targets"]) <= set(x["wanted"]) or None in x["wanted"] for x in found)
            scores = [1 - (1.0 if x["p_value"] is None else x["p_value"]) for x in part]
            truth = [x["attack"] is not None for x in part]
            auroc = f"{roc_auc_score(truth, scores):.3f}" if 0 < sum(truth) < len(truth) else "-"
            cpu = np.mean([x["cpu"] for x in part])
            rows.append(
                f"| {task}: {len(bad)} attacked, {len(good)} clean | {way} | {cpu:.1f} | 1/{base / cpu:.1f} "
                f"| {rate(found, bad)} | {rate(called, good)} | {right}/{len(found)} | {auroc} |"
            )
    return "\n".join(rows)


def rate(some: list[Any], of: list[Any]) -> str:
    """A share with its Wilson interval."""
    if not of:
        return "-"
    low, high = wilson(len(some), len(of))
    return f"{len(some)}/{len(of)} ({low:.0%} to {high:.0%})"


if __name__ == "__main__":
    main()
