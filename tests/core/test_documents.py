"""JSON is parsed strictly, and what does not fit a schema is told in one line that names the place."""

from __future__ import annotations

from typing import Any

import pytest

from backsweep.core import documents
from backsweep.core.documents import DEEPEST, LARGEST, Misfit

FINDING = {
    "code": "BSW101", "detector": "neural_cleanse", "level": "note", "message": "text", "target": 3,
    "source": None, "score": 1.5, "threshold": 2, "p_value": 0.25, "attack_success_rate": None, "details": {},
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("NaN", "NaN is no number of JSON"), ('{"a": -Infinity}', "-Infinity is no number of JSON"),
        ("[1e999]", "the number 1e999 is too large"), ("[-1e200]", "the number -1e200 is too large"),
        ("1" + 400 * "0", "is too large"), ("[18446744073709551616]", "18446744073709551616 is too large"),
        ("[-9223372036854775809]", "is too large"), ('{"a": 1, "b": 2, "a": 1}', "the key 'a' stands twice"),
        ("[" * 33 + "]" * 33, f"nested deeper than {DEEPEST}"),
        ("[" * 100_000, f"nested deeper than {DEEPEST}"),
        ('{"a":' * 40 + "1" + "}" * 40, f"nested deeper than {DEEPEST}"),
        ("", "no JSON"),
        ("{'a': 1}", "no JSON"),
        ("[1, 2", "no JSON"), ('"a\nb"', "no JSON"), (b"\xff\xfe{}", "no JSON"),
    ],
)  # fmt: skip
def test_what_is_no_strict_json_is_refused(text: str | bytes, words: str) -> None:
    with pytest.raises(Misfit, match=r"^[^\n]+$") as refused:
        documents.parsed(text)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[" * 32 + "]" * 32, None),
        ("[18446744073709551615, -9223372036854775808]", [2**64 - 1, -(2**63)]),
        (f"[{LARGEST}, -{LARGEST}, 1e-320]", [LARGEST, -LARGEST, 1e-320]),
        ('{"a": {"a": 1}}', {"a": {"a": 1}}),
        (b'"\xc3\xa4"', "ä"), ("null", None),
    ],
)  # fmt: skip
def test_what_is_strict_json_is_parsed(text: str | bytes, value: Any) -> None:
    found = documents.parsed(text)
    assert value is None or found == value


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"p_value": "0.1"}, "p_value is a string, a number or null is wanted"),
        ({"p_value": True}, "p_value is true, a number or null is wanted"),
        ({"p_value": 1.5}, "p_value is 1.5, at most 1 is wanted"),
        ({"score": float("inf")}, "score is no finite number, a number or null is wanted"),
        ({"score": float("nan")}, "score is no finite number, a number or null is wanted"),
        ({"score": -1e200}, "score is too large, a number or null is wanted"),
        ({"target": "3"}, "target is a string, a whole number or null is wanted"),
        ({"target": 3.0}, "target is a number, a whole number or null is wanted"),
        ({"target": True}, "target is true, a whole number or null is wanted"),
        ({"target": -1}, "target is -1, at least 0 is wanted"),
        ({"level": "fatal"}, "level is 'fatal', 'error', 'warning' or 'note' is wanted"),
        ({"details": None}, "details is null, a table is wanted"),
        ({"details": {"x": [1]}}, "details.x is a list, a number, text, true or false or null is wanted"),
        ({"details": {"a\nb\u202e": []}}, "details.a b?"),
        ({"detector": "a/../b"}, "a name that can be part of a file's name is wanted"),
        ({"detector": ""}, "detector is '', text that is not empty is wanted"),
        ({"surprise": 1}, "it has 'surprise', which no such record has"),
        ({"message": None}, "message is null, text is wanted"),
    ],
)
def test_the_first_violation_is_named(changes: dict[str, Any], words: str) -> None:
    if not words:
        documents.check("report", FINDING, "finding")
        return
    with pytest.raises(Misfit) as refused:
        documents.check("report", {**FINDING, **changes}, "finding")
    assert str(refused.value).startswith(words) or words in str(refused.value)
    assert str(refused.value).isprintable() and len(str(refused.value)) < 400


def test_a_missing_entry_is_named_with_its_place() -> None:
    line: dict[str, Any] = {
        "key": "k",
        "detector": "a",
        "unit": "class-0",
        "target": None,
        "source": None,
        "values": {},
    }
    with pytest.raises(Misfit, match=r"^trigger is missing$"):
        documents.check("evidence", line)
    documents.check("evidence", {**line, "trigger": None, "cpu_seconds": 0.5})
    with pytest.raises(Misfit, match=r"^metas\[0\]\.seed is missing$"):
        about = {
            "archs": ["a"],
            "layouts": ["b"],
            "shape": [1, 8, 8],
            "classes": 3,
            "shadows": 8,
            "held_out": 24,
        }
        meta = {"variant": "jumbo", "shadows": 8, "form": "logits"}
        documents.check("bank", {"schema": 1, "about": about, "metas": [meta]})
