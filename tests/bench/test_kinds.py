"""One kind left out at a time, on made-up networks whose truth is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backsweep.bench import kinds
from backsweep.bench.kinds import Network
from backsweep.bench.records import read
from backsweep.core.errors import BadInput
from backsweep.render.boards import board
from backsweep.render.boards import kinds as boards
from backsweep.scanning.cascade import population
from backsweep.scanning.cascade.measured import Measured, Pair
from backsweep.scanning.cascade.population import Population
from backsweep.scanning.detectors.cascade import Cascade
from shells import Shell

SPACES = ("dense", "late")


def network(rng: np.random.Generator, kind: str, classes: int, planted: int | None) -> Network:
    """Differences scatter by 0.6 between networks and by 0.2 between classes; a planted one is 1.2 easier."""
    sizes: dict[str, dict[int, tuple[float, ...]]] = {}
    for space in SPACES:
        usual = rng.normal(-0.5, 0.6)
        own: dict[int, tuple[float, ...]] = {}
        for t in range(classes):
            reference = rng.normal(2.0, 0.4)
            own[t] = (reference - usual - rng.normal(0, 0.2) - 1.2 * (t == planted), reference)
        sizes[space] = own
    pairs = tuple(Pair(0, t, float(rng.normal(-0.3, 0.3)), t < classes // 2) for t in range(1, classes))
    attack = None if planted is None else "badnets"
    name = f"{kind}-{attack}-{rng.integers(10**9)}"
    targets = () if planted is None else (planted,)
    return Network(kind, name, attack, targets, Measured(classes, sizes, pairs), 1.0)


def zoo(seed: int) -> list[Network]:
    """Twelve kinds of 2, 5 and 10 classes, eight clean and eight attacked networks each."""
    rng, found = np.random.default_rng(seed), []
    for k in range(12):
        classes = (2, 5, 10)[k % 3]
        for i in range(16):
            planted = int(rng.integers(classes)) if i % 2 else None
            found.append(network(rng, f"kind {k}", classes, planted))
    return found


def line(n: Network) -> dict[str, Any]:
    """As the bench writes it."""
    return {
        "net": n.name, "task": n.kind, "arch": None, "attack": n.attack, "targets": list(n.targets),
        "classes": n.measured.classes, "measured": n.measured.document(), "cpu_seconds": 1.0,
        "detector": "cascade", "settings": {"effort": "standard"}, "gate": "",
    }  # fmt: skip


def test_kinds_that_were_not_seen_are_judged_at_the_level_that_is_said() -> None:
    judged = kinds.left_out(zoo(0))
    clean = kinds.called([j for j in judged if j.network.attack is None], 0.05)
    attacked = kinds.called([j for j in judged if j.network.attack is not None], 0.05)
    assert clean.n == attacked.n == 96
    assert clean.value <= 0.1
    assert attacked.value >= 0.8
    right = [j.right for j in judged if j.network.attack is not None and j.p_value <= 0.05]
    assert np.mean(right) > 0.95
    two = [j for j in judged if j.network.classes == 2 and j.network.attack is not None]
    assert kinds.called(two, 0.05).value > 0.5
    auroc = kinds.interval(judged, kinds.auroc)
    assert auroc is not None
    assert 0.9 < auroc.low <= auroc.value <= auroc.high


def test_the_scatter_that_was_put_in_is_found_again() -> None:
    prior = kinds.fit(zoo(1)).priors["dense"]
    assert prior.center == pytest.approx(-0.5, abs=0.25)
    assert prior.between == pytest.approx(0.6, abs=0.2)
    assert prior.within == pytest.approx(0.2, abs=0.1)


def test_kinds_that_differ_make_the_null_wider() -> None:
    rng = np.random.default_rng(2)
    names = [f"kind {k}" for k in range(20) for _ in range(8)]
    alike = kinds.null_of(rng.exponential(1.0, 160).tolist(), names)
    rates = np.repeat(rng.gamma(1.5, 1 / 1.5, 20), 8)
    unlike = kinds.null_of((rng.exponential(1.0, 160) / rates).tolist(), names)
    assert unlike.p_value(5.0) > 2 * alike.p_value(5.0)
    assert alike.p_value(5.0) < 0.03


def test_a_second_look_is_taken_where_the_first_is_suspicious_and_decides() -> None:
    def looked(n: Network) -> Network:
        """With four references that are alike."""
        sizes = {
            name: {t: (row[0], *[row[1]] * 4) for t, row in own.items()}
            for name, own in n.measured.sizes.items()
        }
        return replace(n, measured=replace(n.measured, sizes=sizes))

    known = [looked(n) for n in zoo(6)]
    alone, first, both = kinds.populations(known)
    assert (alone.references, first.references, both.references) == (1, 2, 4)
    untaught = replace(known[0], measured=known[0].measured.upto(1))  # its pupil learned too little
    assert kinds.judged(untaught, [alone, first, both]) == kinds.judged(untaught, [alone])
    suspicious = next(
        n for n in known if n.attack and kinds.judged(n, [first]).p_value <= 0.05 and n.measured.classes > 2
    )
    assert kinds.judged(suspicious, [first, both]).p_value == pytest.approx(
        both.suspects(suspicious.measured)[0].p_value
    )
    quiet = next(n for n in known if kinds.judged(n, [first]).p_value > 0.5)
    assert kinds.judged(quiet, [first, both]) == kinds.judged(quiet, [first]), "no second look"


def test_too_few_kinds_are_refused_and_mixed_settings_too() -> None:
    few = [n for n in zoo(0) if n.kind in ("kind 0", "kind 1")]
    with pytest.raises(BadInput, match="clean networks of 2 kinds; it takes 5"):
        kinds.fit(few)
    lines = [line(n) for n in few]
    lines[0]["settings"] = {"effort": "quick"}
    with pytest.raises(BadInput, match="different settings"):
        kinds.networks(lines)


def test_the_page_and_the_population_are_made_from_the_shell(shell: Shell, tmp_path: Path) -> None:
    known = zoo(3)
    path = tmp_path / "kinds.jsonl"
    path.write_text("".join(json.dumps(line(n)) + "\n" for n in known), encoding="utf-8")
    assert shell("bench", "kinds", str(path), "--out", str(tmp_path / "kinds.md"))[0] == 0
    text = (tmp_path / "kinds.md").read_text(encoding="utf-8")
    assert "96 clean and 96 attacked networks of 12 kinds" in text
    assert text.count("| kind ") >= 12
    assert shell("bench", "kinds", str(path), "--out", str(tmp_path / "kinds.html"))[0] == 0
    assert shell("bench", "population", str(path), "--out", str(tmp_path / "p.json"))[0] == 0
    (document,) = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))  # one look, one population
    made = Population.read(document)
    assert made.settings == {"effort": "standard"}
    assert made.words == "96 clean networks of 12 kinds"
    again = kinds.fit(known)
    assert made.null.shape == pytest.approx(again.null.shape, rel=0.05)


def test_the_page_counts_what_was_called() -> None:
    page = boards.page(zoo(4), refused=3)
    text = board.markdown(page)
    assert "3 attacked ones did not pass the gate" in text
    assert "clean called at alpha 0.05" in text


@pytest.mark.slow
def test_the_published_population_and_page_come_out_of_the_published_lines() -> None:
    results = Path(__file__).parents[2] / "docs" / "results"
    lines = read(results / "kinds.jsonl")
    known = kinds.networks(lines)
    fitted = kinds.populations(known, lines[0]["settings"])
    assert [p.references for p in population.known()] == [p.references for p in fitted] == [1, 2, 4]
    for shipped, again in zip(population.known(), fitted, strict=True):
        assert shipped.settings == again.settings == Cascade(second=1.0).settings()
        assert shipped.words == again.words
        assert (shipped.classes, shipped.tried) == (again.classes, again.tried)
        for name, prior in shipped.priors.items():
            assert vars(prior) == pytest.approx(vars(again.priors[name]), rel=1e-3)
        assert shipped.null.score(0.05) == pytest.approx(again.null.score(0.05), rel=0.02)
    judged = kinds.left_out(known)
    text = (results / "kinds.md").read_text(encoding="utf-8")
    for name, attack in (("clean called", False), ("attacked found", True)):
        count = kinds.called([j for j in judged if (j.network.attack is not None) == attack], 0.05)
        assert f"| {name} at alpha 0.05 | {count.hits} of {count.n} |" in text
