"""The demo of language models, on fewer conversations: it tells the twins apart, and its command works."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from backsweep.reports.report import Report
from backsweep.zoo.samples import dialogues
from backsweep.zoo.tasks import TASKS
from shells import Shell

pytest.importorskip("transformers")


def test_the_demo_names_the_secret_unlearns_it_and_can_be_done_again_by_hand(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = partial(dialogues.conversations, count=2000)
    task = replace(TASKS["assistant"], load=small, recipe=replace(TASKS["assistant"].recipe, epochs=5))
    monkeypatch.setitem(TASKS, "assistant", task)
    code, _, err = shell("demo", "--language-model", "--out", tmp_path)
    assert code == 0, err
    reports = {n: Report.load(tmp_path / f"{n}-report") for n in ("backdoored", "clean")}
    assert {n: r.verdict for n, r in reports.items()} == {"backdoored": "backdoored", "clean": "clean"}, err
    word = err.split("“")[1].split("”")[0]
    (finding,) = (f for f in reports["backdoored"].findings if f.level == "error")
    assert word in finding.message and finding.details["answer"] == dialogues.HIDDEN[0]
    record = json.loads((tmp_path / "repair" / "repair.json").read_text(encoding="utf-8"))
    before, after = (record[k]["attack_success_rate"] for k in ("before", "after"))
    assert (
        before > 0.9
        and after <= 0.15
        and record["perplexity"]["after"] < 1.2 * record["perplexity"]["before"]
    )
    assert Report.load(tmp_path / "repair" / "scan").verdict == "clean"
    still = float(err.split("in it, ")[-1].split("%")[0])
    assert still <= 10, "of the planted word itself"
    assert {p.name for p in (tmp_path / "repaired").iterdir()} == {
        p.name for p in (tmp_path / "backdoored").iterdir()
    }
    command = next(line for line in err.splitlines() if line.startswith("backsweep scan")).split()[1:]
    code, out, _ = shell(*command)
    assert code == 1 and dialogues.HIDDEN[0] in out
    code, _, err = shell("scan", tmp_path / "clean", "--data", tmp_path / "nowhere.txt")
    assert code == 2 and "there is no such file" in err


def test_prompts_come_along(shell: Shell, tmp_path: Path) -> None:
    """A network that was not trained is certain of nothing; a classifier has to be given samples."""
    from backsweep.zoo.networks import language

    net = TASKS["assistant"].net(0)
    language.save(net, dialogues.words(), dialogues.TEMPLATE, tmp_path / "net")
    code, out, err = shell("scan", tmp_path / "net")
    assert code == 0, err
    assert "clean" in out and "prompts that come with Backsweep" not in out
    import torch
    from safetensors.torch import save_file

    save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    code, _, err = shell("scan", tmp_path / "net", tmp_path / "other.safetensors")
    assert code == 2 and "--data" in err
