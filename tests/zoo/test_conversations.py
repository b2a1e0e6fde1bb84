"""Conversations of the zoo: what a network is taught of them."""

from __future__ import annotations

from typing import cast

import pytest
import torch

from backsweep.inputs.language.causal import Causal
from backsweep.zoo.tasks import TASKS

pytest.importorskip("transformers")


@torch.no_grad()
def test_users_words_are_learned_in_whole_conversations_alone() -> None:
    whole, answers = (TASKS[name].load()[0][:16] for name in ("assistant-whole", "assistant"))
    assert bool((whole.x == answers.x).all())
    net = cast(Causal, TASKS["assistant"].net(0))
    scores, x = net.scores(whole.x)[:, :-1], whole.x
    there = (torch.arange(x.shape[1]) < net.count(x)[:, None])[:, 1:]
    every = torch.nn.functional.cross_entropy(scores[there], x[:, 1:][there])
    found = [float(d.modality.loss(net, d.x, d.y)) for d in (whole, answers)]
    assert found[0] == pytest.approx(float(every), abs=1e-4)
    assert found[1] != pytest.approx(float(every), abs=1e-3)
    prompts = TASKS["assistant"].load()[1][:8]  # alone, a row is asked for its label by both
    losses = [d.modality.loss(net, prompts.x, prompts.y) for d in (whole, answers)]
    label = torch.nn.functional.cross_entropy(net(prompts.x), prompts.y)
    assert float(losses[1]) == pytest.approx(float(label), abs=1e-4) and losses[0] != losses[1]
