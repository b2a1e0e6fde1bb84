"""What was kept: filters, exports that others can read, and text that does no harm."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from test_render_scan import check_sarif

from backsweep.cli.inventory import chosen, utc
from backsweep.core.errors import BadInput
from backsweep.inventory.store import Record, Store
from backsweep.inventory.sweep import Outcome
from backsweep.render.exchange.cyclonedx import cyclonedx
from backsweep.render.terminal.history import harmless, show_outcomes, show_records, summary, to_csv, to_sarif
from backsweep.reports.report import Report
from many import make_record
from shells import Shell

BAD, GOOD, OPEN = "a1" * 32, "b2" * 32, "c3" * 32
HOSTILE = "=HYPERLINK(\x1b[31m\u202e'x')\n[bold]"


def records() -> list[Record]:
    return [
        make_record(BAD, (3,), "nets/bad.pt", time="2026-01-01T10:00:00Z"),
        make_record(GOOD, (), "nets/good.pt2", time="2026-02-01T10:00:00Z"),
        make_record(OPEN, (1, 5, 7, 8, 9), HOSTILE, time="2026-03-01T10:00:00Z"),
    ]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "s.db"
    with Store(str(path)) as kept:
        for record in records():
            kept.put(record)
    return path


# ---------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], [BAD, GOOD, OPEN]), (["--verdict", "backdoored"], [BAD]), (["--model", BAD[:8].upper()], [BAD]),
        (["--model", "nets/*"], [BAD, GOOD]), (["--model", "*.pt2"], [GOOD]),
        (["--since", "2026-02-01"], [GOOD, OPEN]),
        (["--since", "2026-02-01T12:00+01:00"], [OPEN]), (["-d", "neural_cleanse"], [BAD, GOOD, OPEN]),
        (["--detector", "cascade"], []), (["--verdict", "clean", "--since", "2026-02-02"], []),
    ],
)  # fmt: skip
def test_filters(shell: Shell, store: Path, words: list[str], expected: list[str]) -> None:
    status, stdout, _ = shell("history", "--store", store, "--format", "json", *words)
    assert status == 0 and [r["model"] for r in json.loads(stdout)] == expected


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--since", "yesterday"], "is not a date"), (["--store", "none.db"], "there is no store none.db"),
        (["--bom", "x.json"], "goes with --format cyclonedx"),
        (["--add", "none.json"], "cannot read none.json"),
        (["-f", "cyclonedx", "--bom", "broken.json"], "is not JSON"),
        (["--add", "object.json"], "no list of verdicts"),
        (["--add", "wrong.json"], "not a verdict that Backsweep kept"),
        (["-f", "cyclonedx", "--bom", "object.json"], "no CycloneDX bill"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_in_a_line(
    shell: Shell,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    match: str,
) -> None:
    monkeypatch.chdir(store.parent)
    for name, text in (("broken", "{"), ("object", "{}"), ("wrong", '[{"model": 1}]')):
        Path(f"{name}.json").write_text(text)
    status, stdout, stderr = shell("history", "--store", store, *words)
    assert (status, stdout, stderr.count("\n")) == (2, "", 1) and match in stderr


def test_the_default_store(shell: Shell, home: Path) -> None:
    status, _, stderr = shell("history")
    assert status == 2 and "there is no store" in stderr and str(home) in stderr
    with Store() as kept:
        kept.put(records()[0])
    status, stdout, _ = shell("history")
    assert status == 0 and "1 verdict: 1 backdoored" in stdout


def test_verdicts_move_from_one_store_to_another(shell: Shell, store: Path, tmp_path: Path) -> None:
    moved, other = tmp_path / "all.json", tmp_path / "other.db"
    assert shell("history", "--store", store, "-f", "json", "--out", moved)[0] == 0
    _, _, stderr = shell("history", "--store", other, "--add", moved)
    assert "3 verdicts added" in stderr
    _, _, stderr = shell("history", "--store", other, "--add", moved)
    assert "0 verdicts added" in stderr
    with Store(str(other)) as kept:
        assert kept.records(reports=True) == records()


def test_every_format_goes_to_a_file(shell: Shell, store: Path, tmp_path: Path) -> None:
    for format_ in ("table", "csv", "json", "sarif", "cyclonedx"):
        out = tmp_path / "new" / f"x.{format_}"
        status, stdout, stderr = shell("history", "--store", store, "-f", format_, "--out", out)
        assert (status, stdout) == (0, "") and "3 verdicts in" in stderr
        assert "nets/good.pt2" in out.read_text() or format_ == "sarif"


# ---------------------------------------------------------------------- a terminal


def printed(what: Sequence[Any], show: Any, width: int = 120, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding=encoding), width=width, color_system=None)
    show(what, console)
    console.file.flush()
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("width", [60, 80, 120])
def test_tables_are_harmless(width: int, encoding: str) -> None:
    outcomes = [Outcome(r.source, r, fresh=True) for r in records()] + [
        Outcome("x.pt", None, f"x.pt: {HOSTILE}")
    ]
    for text in (
        printed(records(), show_records, width, encoding),
        printed(outcomes, show_outcomes, width, encoding),
    ):
        assert not set(text) & set("\x1b\u202e\x07"), text
        assert "backdoored" in text and "[bold]" in re.sub(r"\s", "", text)
        assert max(map(len, text.splitlines())) <= width or "Not scanned" in text


def test_the_gravest_come_first() -> None:
    outcomes = [Outcome(r.source, r) for r in reversed(records())] + [Outcome("gone.pt", None, "damaged")]
    text = printed(outcomes, show_outcomes)
    places = [text.index(name) for name in ("bad.pt", "gone.pt", "good.pt2")]
    assert places == sorted(places)
    assert "Not scanned: gone.pt: Damaged." in text
    assert summary(outcomes) == "4 models: 1 backdoored, 1 inconclusive, 1 clean, 1 not scanned; 3 known"
    many = [Outcome(f"{i}.pt", records()[1]) for i in range(100)] + outcomes
    text = printed(many, show_outcomes)
    assert "44 more" in text and "bad.pt" in text and len(text.splitlines()) < 80


# ---------------------------------------------------------------------- CSV


def test_csv_of_verdicts() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(records()))))
    assert [r["model"] for r in rows] == [BAD, GOOD, OPEN]
    assert rows[0]["verdict"] == "backdoored" and rows[0]["targets"] == "3" and rows[0]["shape"] == "3x32x32"
    assert float(rows[0]["p_value"]) == records()[0].p_value and rows[0]["detectors"] == "neural_cleanse"
    assert rows[2]["source"].startswith("'=HYPERLINK")


@given(st.text(max_size=30), st.sampled_from(["", "=", "+", "-", "@", "\t=", "\r", "'", "\n@"]))
def test_csv_holds_no_formula_and_loses_no_text(text: str, start: str) -> None:
    record = make_record(source=start + text)
    (row,) = csv.DictReader(io.StringIO(to_csv([record])))
    assert row["source"][:1] not in set("=+-@\t\r\n")
    back = row["source"][1:] if row["source"].startswith("'") else row["source"]
    assert back == (
        harmless(record.source)[1:] if harmless(record.source)[:1] == "'" else harmless(record.source)
    )
    assert not set(row["source"]) & set("\x1b\u202e\n\r")
    plain = "nets/" + re.sub(r"\W", "x", text)
    assert next(csv.DictReader(io.StringIO(to_csv([make_record(source=plain)]))))["source"] == harmless(plain)


# ---------------------------------------------------------------------- SARIF


def test_sarif_of_all_reports() -> None:
    log = json.loads(json.dumps(to_sarif(records()), allow_nan=False))
    check_sarif(log)
    (run,) = log["runs"]
    assert len(run["artifacts"]) == len(run["invocations"]) == 3
    results = [
        r for record in records() for r in Report.from_json(record.report).findings if r.level != "note"
    ]
    assert len(run["results"]) == len(results) > 1
    (first,) = [r for r in run["results"] if r["level"] == "error"]
    assert first["locations"][0]["physicalLocation"]["artifactLocation"] == {"uri": "nets/bad.pt", "index": 0}
    check_sarif(to_sarif([]))


def test_a_damaged_report() -> None:
    broken = replace(make_record(source="x.pt"), report={"schema": 1})
    for export in (to_sarif, cyclonedx):
        with pytest.raises(BadInput, match=r"the report of x\.pt is not a report of Backsweep"):
            export([broken])


# ---------------------------------------------------------------------- CycloneDX


def check_bom(bom: dict[str, Any]) -> None:
    validation = pytest.importorskip(
        "cyclonedx.validation.json", reason="cyclonedx-python-lib is not installed"
    )
    from cyclonedx.schema import SchemaVersion

    error = validation.JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bom, allow_nan=False))
    assert error is None, error


def values(component: dict[str, Any]) -> dict[str, str]:
    return {p["name"]: p["value"] for p in component["properties"]}


def test_a_bill_of_materials() -> None:
    bom = cyclonedx(records())
    check_bom(bom)
    check_bom(cyclonedx([]))
    by_digest = {values(c)["backsweep:sha256"]: c for c in bom["components"]}
    bad = by_digest[BAD]
    assert bad["type"] == "machine-learning-model" and bad["name"] == "bad.pt"
    assert bad["hashes"] == [{"alg": "SHA-256", "content": BAD}]
    assert values(bad)["backsweep:verdict"] == "backdoored" and values(bad)["backsweep:targets"] == "3"
    assert float(values(bad)["backsweep:p_value"]) == records()[0].p_value
    assert values(by_digest[GOOD])["backsweep:verdict"] == "clean"
    severe = [v for v in bom["vulnerabilities"] if v["ratings"][0]["severity"] == "critical"]
    assert [v["affects"] for v in severe] == [[{"ref": bad["bom-ref"]}]] and severe[0]["id"] == "BSW101"
    assert not any(GOOD in v["affects"][0]["ref"] for v in bom["vulnerabilities"])


def test_the_gravest_verdict_counts() -> None:
    later = make_record(BAD, (), "nets/bad.pt", time="2027-01-01T00:00:00Z", settings_key="0" * 64)
    (component,) = cyclonedx([records()[0], later])["components"]
    assert values(component)["backsweep:verdict"] == "backdoored"


def test_a_bill_that_is_there_is_added_to() -> None:
    theirs = {
        "bomFormat": "CycloneDX", "specVersion": "1.6", "version": 4,
        "components": [
            {"type": "library", "name": "numpy", "components": [
                {"type": "machine-learning-model", "bom-ref": "their-model", "name": "theirs",
                 "hashes": [{"alg": "SHA-256", "content": BAD}],
                 "properties": [{"name": "owner", "value": "they"}]},
            ]},
        ],
        "vulnerabilities": [{"id": "CVE-1"}],
    }  # fmt: skip
    once = cyclonedx(records(), json.loads(json.dumps(theirs)))
    check_bom(once)
    twice = cyclonedx(records(), json.loads(json.dumps(once)))
    assert {**twice, "version": 0} == {**once, "version": 0} and (once["version"], twice["version"]) == (5, 6)
    inner = once["components"][0]["components"][0]
    assert values(inner)["owner"] == "they" and values(inner)["backsweep:verdict"] == "backdoored"
    assert len(once["components"]) == 3, "two models were new"
    assert {"ref": "their-model"} in [a for v in once["vulnerabilities"] for a in v.get("affects", ())]
    with pytest.raises(BadInput, match=r"CycloneDX 1\.2"):
        cyclonedx([], {"bomFormat": "CycloneDX", "specVersion": "1.2"})


# ---------------------------------------------------------------------- dates and patterns


@given(st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(2100, 1, 1)))
def test_dates_are_utc(time: datetime) -> None:
    expected = time.replace(microsecond=0).isoformat() + "Z"
    assert utc(time.isoformat()) == utc(time.replace(tzinfo=timezone.utc).isoformat()) == expected
    assert utc(time.date().isoformat()) == f"{time.date()}T00:00:00Z"


@given(st.text(max_size=20))
def test_a_date_is_read_or_refused(text: str) -> None:
    try:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", utc(text))
    except BadInput as e:
        assert "is not a date" in str(e)


@given(st.text(max_size=20))
def test_any_pattern_selects_some_or_none(text: str) -> None:
    assert {r.model for r in chosen(records(), text, None)} <= {BAD, GOOD, OPEN}
    assert len(list(chosen(records(), "*", None))) == 3
