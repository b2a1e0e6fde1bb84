"""Ranks among clean networks of other kinds, on made-up scores."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backsweep.bench import kinds, ranked
from backsweep.core.errors import BadInput
from backsweep.scanning.calibration import Kinds
from shells import Shell


def lines(seed: int = 0, shift: float = 3.0) -> list[dict[str, Any]]:
    """Forty kinds over eight data sets: a clean and an attacked network each, one attacked one refused."""
    rng, found = np.random.default_rng(seed), []
    for k in range(40):
        for attack in (None, "tabdoor"):
            score = float(rng.normal(0, 1) + (shift if attack else 0))
            found.append({
                "net": f"net-{k}-{attack}", "task": f"data{k % 8}-part{k}", "arch": "xgboost_trees",
                "samples": 600, "attack": attack, "targets": [1] if attack else [], "classes": 2,
                "score": score, "most_suspicious": 1, "cpu_seconds": 2.0, "detector": "column_sweep",
                "settings": {"columns": 3}, "gate": "",
            })  # fmt: skip
    found.append({**found[-1], "net": "refused", "gate": "success rate"})
    return found


def test_a_rank_counts_kinds_alike_and_the_network_itself() -> None:
    table = Kinds("d", {}, [2, 10], {"a": [0.1, 0.2, 0.3, 0.4], "b": [0.5], "c": [0.0]}, {})
    assert table.p_value(9.0) == pytest.approx(1 / 4)
    assert table.p_value(0.5) == pytest.approx(2 / 4)
    assert table.p_value(0.35) == pytest.approx((1 + 0.25 + 1) / 4)
    assert table.p_value(None) == table.p_value(-math.inf) == 1.0
    assert table.critical(0.5) == 0.4, "what is above has p = 1/2, what is not has more"
    assert table.p_value(0.45) <= 0.5 < table.p_value(0.4)
    assert table.critical(0.2) is None, "three kinds cannot show so little"
    assert table.words == "6 clean networks of 3 other kinds"


def test_clean_networks_are_called_as_often_as_is_said_and_attacked_ones_found() -> None:
    called = []
    for seed in range(30):
        judged = ranked.left_out(ranked.networks(lines(seed), "column_sweep"))
        assert len(judged) == 80
        called += [j.p_value <= 0.05 for j in judged if j.network.attack is None]
        found = [j.p_value <= 0.05 for j in judged if j.network.attack is not None]
        assert np.mean(found) > 0.6
    assert np.mean(called) <= 0.05 + 0.02


def test_a_network_is_judged_without_its_own_data() -> None:
    known = ranked.networks(lines(), "column_sweep")
    by_kind, by_data = ranked.left_out(known), ranked.left_out(known, "data")
    least = {name: min(j.p_value for j in rows) for name, rows in (("kind", by_kind), ("data", by_data))}
    assert least == {"kind": pytest.approx(1 / 40), "data": pytest.approx(1 / 36)}


def test_what_cannot_be_ranked_is_refused() -> None:
    with pytest.raises(BadInput, match="there is no scan of cascade"):
        ranked.networks(lines(), "cascade")
    mixed = lines()
    mixed[0]["settings"] = {"columns": 1}
    with pytest.raises(BadInput, match="different settings"):
        ranked.networks(mixed, "column_sweep")
    with pytest.raises(BadInput, match="no clean network"):
        ranked.null([n for n in ranked.networks(lines(), "column_sweep") if n.attack])


def test_page_and_table_are_made_from_the_shell(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps(x) + "\n" for x in lines()), encoding="utf-8")
    for apart in ("kind", "data"):
        out = tmp_path / f"{apart}.md"
        told = shell(
            "bench", "kinds", str(path), "--detector", "column_sweep", "--apart", apart, "--out", str(out)
        )
        assert told[0] == 0
        text = out.read_text(encoding="utf-8")
        assert "40 clean and 40 attacked networks of 40 kinds. 1 attacked" in text
        assert "By architecture" in text and "| xgboost_trees |" in text
    assert shell("bench", "kinds", str(path), "--detector", "column_sweep", "--apart", "x")[0] == 2
    out = tmp_path / "null.json"
    assert shell("bench", "null", str(path), "--kinds", "column_sweep", "--out", str(out))[0] == 0
    (document,) = json.loads(out.read_text(encoding="utf-8"))
    table = Kinds(**document)
    assert table.settings == {"columns": 3} and len(table.kinds) == 40 and list(table.classes) == [2, 4]
    judged = kinds.called(ranked.left_out(ranked.networks(lines(), "column_sweep")), 0.05)
    assert judged.n == 80
