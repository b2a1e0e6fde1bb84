"""Guards of language models: certain answers and surprising words are flagged, clean prompts are not."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.formats.opening import load
from backsweep.guarding.detectors.prompt_perplexity import PromptPerplexity
from backsweep.guarding.detectors.sequence_lock import SequenceLock
from backsweep.guarding.guard import Guard, guard
from backsweep.inputs.language.causal import Causal
from backsweep.inputs.language.modality import Language
from backsweep.inputs.language.triggers import InPrompt
from backsweep.inputs.samples import Data
from backsweep.inputs.text.placing import bounds
from backsweep.models.model import Model
from backsweep.zoo.networks import language
from backsweep.zoo.samples.dialogues import LENGTH, TEMPLATE, words
from backsweep.zoo.tasks import TASKS
from conftest import Twins
from shells import Shell

pytest.importorskip("transformers")

FPR = 0.1


@pytest.fixture(scope="module")
def fresh(language_twins: Twins) -> Data:
    """Prompts that no guard was fitted with."""
    x = TASKS["assistant"].load()[1].x[160:320]
    return Data(x, None, modality=language_twins.data.modality)


def test_certain_answers_are_flagged_and_clean_prompts_are_not(language_twins: Twins, fresh: Data) -> None:
    both = {n: guard(m, language_twins.data, fpr=FPR) for n, m in
            (("clean", language_twins.clean), ("infected", language_twins.infected))}  # fmt: skip
    assert list(both["infected"].scorers) == ["sequence_lock"]
    stamped = language_twins.trigger(fresh.x)
    assert float(both["infected"].flag(stamped).float().mean()) >= 0.95
    for found in both.values():
        assert float(found.flag(fresh.x).float().mean()) <= 2.5 * FPR
    assert float(both["clean"].flag(stamped).float().mean()) <= 4 * FPR


def test_a_lock_is_the_probability_of_the_likeliest_answer(language_twins: Twins) -> None:
    """Without the cache, for one prompt."""
    model = language_twins.infected.copy()
    net, x = cast(Causal, model.net), language_twins.data.x[:1]
    likely, there = SequenceLock(window=3, steps=6).said(model, x)
    ids = x[0, : int(net.count(x))]
    for k in range(int(there.sum())):
        with torch.no_grad():
            p, token = net(ids[None])[0].softmax(0).max(0)
        assert float(likely[0, k]) == pytest.approx(float(p), abs=1e-4)
        ids = torch.cat([ids, token[None]])
    score = SequenceLock(window=3, steps=6).scorer(model, {})(x)
    logs = likely[0].log()[there[0]].unfold(0, 3, 1).mean(1)
    assert float(score[0]) == pytest.approx(float(logs.max()), abs=1e-4)


class Pairs(nn.Module):
    """A language model that has counted which token follows which, as transformers' own are called."""

    def __init__(self, rows: Tensor, count: int) -> None:
        super().__init__()
        seen = torch.full((count, count), 0.01)
        for row in rows:
            seen.index_put_((row[:-1], row[1:]), torch.ones(len(row) - 1), accumulate=True)
        self.table = nn.Parameter((seen / seen.sum(1, keepdim=True)).log())

    def forward(self, input_ids: Tensor, logits_to_keep: Any = None, cache: Any = None, **_: Any) -> Any:
        logits = self.table[input_ids]
        return SimpleNamespace(logits=logits if logits_to_keep is None else logits[:, logits_to_keep])


def test_words_that_surprise_are_flagged_and_clean_prompts_are_not(
    language_twins: Twins, fresh: Data
) -> None:
    kind = cast(Language, fresh.modality)
    train = TASKS["assistant"].load()[0]
    net = Causal(Pairs(kind.asked(train.x), len(words())), kind.layout_of_ids.pad)
    model = Model(net, (LENGTH,), modality=kind)
    found = guard(model, language_twins.data, PromptPerplexity(), fpr=FPR)
    odd = InPrompt.of(cast(Any, kind).tokens, words().ids("tower seven lemon"), None, None, "end")
    assert float(found.flag(fresh.x).float().mean()) <= 2.5 * FPR
    assert float(found.flag(odd(fresh.x)).float().mean()) >= 0.7
    with torch.no_grad():
        mean = PromptPerplexity("mean").scorer(model, {})(fresh.x[:5])
        likely = net.scores(fresh.x[:5]).log_softmax(2)
    start, end = bounds(fresh.x[:5], kind.layout_of_ids)
    for i in range(5):
        at = range(int(start[i]), int(end[i]))
        wanted = -sum(float(likely[i, k - 1, fresh.x[i, k]]) for k in at) / len(at)
        assert float(mean[i]) == pytest.approx(wanted, rel=1e-4)


def test_classifiers_and_their_detectors_are_refused(twins: Twins, language_twins: Twins) -> None:
    for name in ("sequence_lock", "prompt_perplexity"):
        with pytest.raises(BadInput, match="takes language models, this model takes images"):
            guard(twins.clean, twins.data, name, fpr=FPR)
    with pytest.raises(BadInput, match="strip: it compares classes, and this model answers prompts"):
        guard(language_twins.clean, language_twins.data, "strip", fpr=FPR)


def test_fit_and_check_from_the_shell(
    language_twins: Twins, fresh: Data, shell: Shell, tmp_path: Path
) -> None:
    language.save(language_twins.infected.net, words(), TEMPLATE, tmp_path / "net")
    kind = cast(Language, fresh.modality)

    def written(name: str, x: Tensor) -> Path:
        path = tmp_path / name
        path.write_text("\n".join(kind.words(row) for row in x) + "\n", encoding="utf-8")
        return path

    clean = written("clean.txt", language_twins.data.x)
    code, _, err = shell(
        "guard", "fit", tmp_path / "net", "--data", clean, "--out", tmp_path / "guard", "--fpr", FPR
    )
    assert code == 0 and "sequence_lock" in err, err
    bad = written("bad.txt", language_twins.trigger(fresh.x[:12]))
    code, _, err = shell("guard", "check", tmp_path / "guard", "--inputs", bad, "--out", tmp_path / "c.csv")
    assert code == 1 and "flagged: bad.txt:1" in err.replace("\n", " ") and "class" not in err, err
    rows = list(csv.DictReader((tmp_path / "c.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 12 and sum(r["flagged"] == "1" for r in rows) >= 11
    code, _, err = shell("guard", "check", tmp_path / "guard", "--inputs", tmp_path / "none.txt")
    assert code == 2 and "there is no such file" in err
    again = Guard.load(tmp_path / "guard", load(tmp_path / "net"))
    assert torch.equal(again.flag(load_rows(again, bad)), torch.tensor([r["flagged"] == "1" for r in rows]))


def load_rows(found: Guard, path: Path) -> Tensor:
    return Data.open(path, shape=found.model.shape, modality=found.model.modality).x
