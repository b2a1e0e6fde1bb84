"""Z-Defence: the authors' equation by hand, poisoned and unpoisoned sets of texts."""

from __future__ import annotations

import math

import pytest
import torch

import backsweep
from backsweep.auditing.detector import TrainingSet
from backsweep.auditing.detectors.z_defence import ZDefence
from backsweep.auditing.words import adjusted
from backsweep.inputs.samples import Data
from backsweep.inputs.table.modality import Table
from backsweep.inputs.table.schema import Schema
from backsweep.inputs.text.grams import grams
from backsweep.inputs.text.modality import Text
from backsweep.inputs.text.tokens import WordTokens
from backsweep.models.model import Model
from backsweep.zoo.attack import Attack
from backsweep.zoo.attacks.addsent import AddSent
from backsweep.zoo.attacks.badnets_table import BadNetsTable
from backsweep.zoo.attacks.badnl import BadNL
from backsweep.zoo.tasks import TASKS
from conftest import Twins

MODEL = Model(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)), (1, 2, 2), 2)  # it is not asked


def of(data: Data) -> TrainingSet:
    return TrainingSet(data, 2, torch.zeros(0), torch.zeros(0), MODEL, lambda _d, _s: MODEL)


def texts(*rows: tuple[str, int]) -> Data:
    tokens = WordTokens.built([t for t, _ in rows])
    x = torch.tensor([tokens.encode(t, None, 16) for t, _ in rows])
    return Data(x, [y for _, y in rows], ("bad", "good"), "texts", Text(tokens))


def test_the_features_of_a_text() -> None:
    assert grams([["if", "you", ",", "go"]], most=2) == [
        sorted({"if", "you", ",", "go", "if you", "you ,", ", go",
                "begins with: if", "begins with: if you", "has the marks: ,"})
    ]  # fmt: skip
    assert grams([[], ["a"]], forms=False) == [[], ["a"]]


def test_the_scores_of_the_paper_by_hand() -> None:
    """c(a) = 4, three of them good: z = (3/4 - 1/2) / sqrt(1/16); b and c likewise, then standardised."""
    data = texts(("a b", 1), ("a", 1), ("a", 1), ("a c", 0))
    scores, evidence = ZDefence(preset="paper").measure(of(data))
    z = [s * (c / n - 0.5) / math.sqrt(0.25 / n) for n, c in ((4, 3), (1, 1), (1, 0)) for s in (1, -1)]
    spread = math.sqrt(sum(v * v for v in z) / len(z))
    assert scores.tolist() == pytest.approx([1 / spread, 1 / spread, 1 / spread, 1 / spread])
    assert [e.values["feature"] for e in evidence] == ["c", "b"] or evidence[1].values["feature"] == "a"
    assert ZDefence(preset="paper").judge(evidence, 2, 0.05)[0].level == "note"


@pytest.mark.parametrize(("attack", "word"), [
    (BadNL(target=1, rate=0.15), ""), (AddSent(target=0, rate=0.05, sentence="the plot and the film"), " "),
])  # fmt: skip
def test_poisoned_texts_are_found_and_unpoisoned_ones_are_not(attack: Attack, word: str) -> None:
    task = TASKS["reviews"]
    train, _ = task.load()
    setup = task.setup(train, 0)
    (trigger,) = attack.triggers(setup)
    poisoned, rows = attack.poison(setup, [trigger])
    bad = torch.zeros(len(train), dtype=torch.bool)
    bad[rows] = True
    detector = ZDefence()
    scores, evidence = detector.measure(of(poisoned))
    findings = detector.judge(evidence, 2, 0.05)
    assert [(f.target, f.level) for f in findings] == [(trigger.target, "error")]
    assert word in str(evidence[trigger.target or 0].values["feature"])
    assert findings[0].p_value is not None and findings[0].p_value <= 0.01
    flagged = (scores > float(evidence[trigger.target or 0].values["cut"] or 0)) & (
        poisoned.y == trigger.target
    )
    assert float(flagged[bad].float().mean()) > 0.95 and float(flagged[~bad].float().mean()) < 0.02
    assert [f.level for f in detector.judge(detector.measure(of(train))[1], 2, 0.05)] == ["note"]


def test_words_that_are_tied_to_a_label_by_nature_are_no_poison() -> None:
    """A word that all texts of a label hold, whose rest says the label too."""
    rows = [
        (f"{'good' if y else 'bad'} {'fine' if y else 'poor'} {i % 7}", y) for i in range(200) for y in (0, 1)
    ]
    assert [f.level for f in ZDefence().judge(ZDefence().measure(of(texts(*rows)))[1], 2, 0.05)] == ["note"]


def test_an_audit_of_texts_takes_it_by_default(text_twins: Twins) -> None:
    found = backsweep.audit(text_twins.clean, TASKS["reviews"].load()[0], device="cpu")
    assert list(found.settings["detectors"]) == ["z_defence"], found
    assert found.verdict == "clean", found.errors


def test_the_cells_of_a_table() -> None:
    """Values of three rows are cells, pairs that stand together are named, other numbers have a range."""
    x = torch.tensor([[7.0, 1.0]] * 3 + [[float(i) + 0.5, float(i % 3)] for i in range(30)])
    held = Table(Schema.of(x, ["a", "b"])).features(x) or []
    assert held[0] == ["a is 7", "b is 1"] and held[3] == ["a is in eighth 1", "b is 0"]
    x[:3, 1] = 5
    assert (Table(Schema.of(x, ["a", "b"])).features(x) or [])[0] == ["a is 7", "b is 5", "a is 7 & b is 5"]
    assert (Table(Schema.of(x, ["a", "b"])).features(x, most=1, forms=False) or [])[3] == ["b is 0"]


def test_cells_that_were_set_in_rows_are_named_and_are_no_verdict() -> None:
    task = TASKS["mixed_table"]
    train, _ = task.load()
    setup, attack = task.setup(train, 10), BadNetsTable(values="rare", columns=2, rate=0.08)
    (trigger,) = attack.triggers(setup)
    poisoned, rows = attack.poison(setup, [trigger])
    detector = ZDefence()
    scores, evidence = detector.measure(of(poisoned))
    findings = detector.judge(evidence, 2, 0.05)
    assert [(f.target, f.level) for f in findings] == [(trigger.target, "warning")]
    assert findings[0].message.startswith("cannot tell") and "rows with this label" in findings[0].message
    bad = torch.zeros(len(train), dtype=torch.bool)
    bad[rows] = True
    flagged = scores > float(evidence[trigger.target or 0].values["cut"] or 0)
    assert float(flagged[bad].float().mean()) > 0.95 and float(flagged[~bad].float().mean()) < 0.02
    assert [f.level for f in detector.judge(detector.measure(of(train))[1], 2, 0.05)] == ["note"]


def test_adjusted_p_values() -> None:
    assert adjusted([0.01, 0.04, 0.03], 3) == pytest.approx([0.03, 0.04, 0.04])
    assert adjusted([0.5], 100) == [1.0] and adjusted([], 5) == []
