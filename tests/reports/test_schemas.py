"""The published schemas: what this version and an older one wrote fits them; damage is told in one line."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from rich.console import Console
from safetensors import safe_open

from backsweep.auditing import audit as audits
from backsweep.core import documents
from backsweep.core.errors import BadInput
from backsweep.guarding.record import read_record
from backsweep.inventory.store import Record, Store
from backsweep.render.exchange.sarif import sarif
from backsweep.render.pages import audit as audit_page
from backsweep.render.pages import scan as scan_page
from backsweep.render.terminal import audit as audit_text
from backsweep.render.terminal import scan as scan_text
from backsweep.reports.audit import Audit
from backsweep.reports.report import NOTE, Finding, Report, checked_findings, evidence_json
from backsweep.scanning import scan as scans
from backsweep.shadows.bank import Bank
from fuzz_mutations import changed, written
from reporting import make_audit, make_cascade_report, make_report

OLD = Path(__file__).parents[1] / "compatibility"
KINDS = ("report", "audit", "repair", "guard", "bank", "shadows", "trigger", "evidence", "verdict")
SHAPE = (3, 6, 6)


def plain(kind: str) -> Draft202012Validator:
    """A schema as any other program reads it, without what is ours."""
    report = documents.schema("report")
    return Draft202012Validator(
        documents.schema(kind),
        registry=Registry().with_resource(report["$id"], Resource.from_contents(report)),
    )


def said(path: Path) -> Any:
    return documents.parsed(path.read_bytes())


def header(path: Path) -> Any:
    """The one JSON header of a safetensors file."""
    with safe_open(str(path), framework="pt") as f:
        (text,) = f.metadata().values()
    return documents.parsed(text)


def test_the_schemas_are_published_and_valid() -> None:
    found = {Path(f.name).stem for f in (files("backsweep") / "reports" / "schemas").iterdir()}
    assert found == set(KINDS)
    for kind in KINDS:
        schema = documents.schema(kind)
        Draft202012Validator.check_schema(schema)
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        assert schema["$id"] == f"urn:backsweep:schema:{kind}:1"


def written_before() -> list[tuple[str, Any]]:
    """What an older version wrote, by the kind of its schema."""
    found = [("report", said(p)) for p in sorted(OLD.glob("scan-*/report.json"))]
    found += [("audit", said(OLD / "audit" / "report.json")), ("guard", said(OLD / "guard" / "guard.json"))]
    found += [("repair", said(p)) for p in OLD.glob("*/repair.json")]
    found += [("trigger", header(p)) for p in sorted(OLD.glob("**/triggers/*.safetensors"))]
    found += [("bank", header(OLD / "digits.bank")), *(("verdict", v) for v in said(OLD / "verdicts.json"))]
    return found


def test_what_an_older_version_wrote_fits() -> None:
    found = written_before()
    assert {kind for kind, _ in found} == {"report", "audit", "repair", "guard", "bank", "trigger", "verdict"}
    for kind, document in found:
        documents.check(kind, document)
        assert plain(kind).is_valid(document)


def test_what_this_version_writes_fits(tmp_path: Path) -> None:
    reports = [
        Report(),
        make_report(5, shape=SHAPE, labels=list("abcde")),
        make_cascade_report(4, shape=SHAPE),
    ]
    for i, report in enumerate(reports):
        folder = report.save(tmp_path / str(i))
        documents.read("report", (folder / "report.json").read_bytes())
        assert plain("report").is_valid(said(folder / "report.json"))
        for e in report.evidence:
            documents.check("evidence", {"key": "k", **evidence_json(e)})
        for path in folder.glob("triggers/*"):
            documents.check("trigger", header(path))
    for retrained in (True, False):
        folder = make_audit(3, shape=SHAPE, retrained=retrained).save(tmp_path / f"audit-{retrained}")
        assert plain("audit").is_valid(documents.read("audit", (folder / "report.json").read_bytes()))


# ---------------------------------------------------------------------- damage, and what a later version adds


@cache
def report_json() -> str:
    return json.dumps(make_report(4, shape=SHAPE, triggers=False).to_json())


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("settings.alpha", "x", "settings.alpha is a string, a number or null is wanted"),
        ("settings.alpha", 2, "settings.alpha is 2, less than 1 is wanted"),
        ("findings.0.target", "3", r"findings\[0\]\.target is a string, a whole number or null is wanted"),
        ("findings.0.p_value", [], r"findings\[0\]\.p_value is a list, a number or null is wanted"),
        ("findings.0.score", False, r"findings\[0\]\.score is false, a number or null is wanted"),
        ("evidence.2.values", [1], r"evidence\[2\]\.values is a list, a table is wanted"),
        ("evidence.1.values.norm", {}, r"evidence\[1\]\.values\.norm is a table"),
        ("evidence.3.target", 4, r"evidence\[3\] speaks of class 4, there are 4"),
        ("model.classes", "10", "model.classes is a string, a whole number or null is wanted"),
        ("model.shape", [3, 0], r"model\.shape\[1\] is 0, at least 1 is wanted"),
        ("model.labels", [1], r"model\.labels\[0\] is a number, text is wanted"),
        ("versions", {"torch": 2}, "versions.torch is a number, text is wanted"),
        ("timings.total_seconds", "fast", "timings.total_seconds is a string"),
        ("data.clean_accuracy", "high", "data.clean_accuracy is a string, a number or null is wanted"),
        ("verdict", "clean", "verdict is 'clean', from the findings follows 'backdoored'"),
        ("targets", [1], r"targets is \[1\], from the findings follows \[3\]"),
        ("p_value", 0.5, "p_value is 0.5, from the findings follows"),
    ],
)
def test_a_value_of_another_kind(tmp_path: Path, place: str, value: Any, words: str) -> None:
    raw = json.loads(report_json())
    *path, last = [int(k) if k.isdigit() else k for k in place.split(".")]
    part = raw
    for key in path:
        part = part[key]
    part[last] = value
    (tmp_path / "report.json").write_text(json.dumps(raw))
    with pytest.raises(BadInput, match=words):
        Report.load(tmp_path)


def test_numbers_that_are_none_and_keys_that_stand_twice(tmp_path: Path) -> None:
    text = report_json()
    for old, new, words in (
        ('"alpha": 0.05', '"alpha": NaN', "NaN is no number"), ('"seed": 0', '"seed": 1e400', "too large"),
        ('"seed": 0', '"seed": 0, "seed": 1', "stands twice"),
        ('"seed": 0', f'"seed": {"[" * 99}{"]" * 99}', "nested"),
    ):  # fmt: skip
        assert old in text
        (tmp_path / "report.json").write_text(text.replace(old, new, 1))
        with pytest.raises(BadInput, match=words):
            Report.load(tmp_path)


def test_a_later_version_may_add_to_tables_but_not_to_records() -> None:
    raw = json.loads(report_json())
    for table in (
        raw,
        raw["model"],
        raw["data"],
        raw["settings"],
        raw["timings"],
        raw["evidence"][0]["values"],
    ):
        table["later"] = 1
    raw["findings"][0]["details"]["later"] = "text"
    again = Report.from_json(raw)
    assert again.model["later"] == again.settings["later"] == 1
    assert again.to_json() == {k: v for k, v in raw.items() if k != "later"}
    for record in ("findings", "evidence"):
        other = json.loads(report_json())
        other[record][0]["later"] = 1
        with pytest.raises(BadInput, match=rf"{record}\[0\] has 'later', which no such record has"):
            Report.from_json(other)


def test_a_finding_that_no_report_can_hold_is_an_error_of_its_detector() -> None:
    fine = Finding("X1", "mine", NOTE, "text", 2, p_value=0.5)
    assert checked_findings("mine", [fine]) == [fine]
    with pytest.raises(TypeError, match="p_value is 3, at most 1 is wanted"):
        checked_findings("mine", [Finding("X1", "mine", NOTE, "text", 2, p_value=3)])


# ---------------------------------------------------------------------- any damage at all


def spoilt(value: Any, seed: int) -> str:
    """JSON with one to three other values in it."""
    rng = random.Random(seed)
    for _ in range(rng.choice((1, 1, 2, 3))):
        value = changed(json.loads(json.dumps(value, default=str)), rng)
    return written(value, rng)


def used(report: Report, page: Callable[[Any], str], show: Callable[..., None]) -> None:
    """What is done with a report that was read."""
    page(report)
    show(report, Console(file=io.StringIO(), width=90), folder=Path("folder"))
    json.dumps(sarif(report), allow_nan=False)


def same(report: Report, text: str) -> bool:
    """Whether a report says what its document says."""
    raw, own = json.loads(text), report.to_json()
    return all(own[k] == raw[k] for k in own if k != "audit") and all(
        raw["audit"][k] == v for k, v in own.get("audit", {}).items()
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[Path, Any]]]:
    """Folders of reports and audits with what they say."""
    made: dict[str, list[Report]] = {
        "report": [make_report(5, shape=SHAPE, labels=list("abcde")), make_cascade_report(3, shape=SHAPE)],
        "audit": [make_audit(3, samples=12, poisoned=4, bad=(1,), shape=SHAPE, retrained=True)],
    }
    place = tmp_path_factory.mktemp("saved")
    return {
        kind: [
            (f, said(f / "report.json")) for i, r in enumerate(every) if (f := r.save(place / f"{kind}{i}"))
        ]
        for kind, every in made.items()
    }


@given(seed=st.integers(0, 2**32))
def test_any_report_is_refused_or_shown(saved: dict[str, list[tuple[Path, Any]]], seed: int) -> None:
    folder, document = saved["report"][seed % 2]
    text = spoilt(document, seed)
    (folder / "report.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        report = Report.load(folder)
    except BadInput as e:
        assert "\n" not in str(e)
        return
    assert same(report, text)
    used(report, scan_page.html, scan_text.show)
    try:
        scans.judge(report, alpha=0.2)
    except BadInput:
        return
    used(report, scan_page.html, scan_text.show)


@given(seed=st.integers(0, 2**32))
def test_any_audit_is_refused_or_shown(saved: dict[str, list[tuple[Path, Any]]], seed: int) -> None:
    folder, document = saved["audit"][0]
    text = spoilt(document, seed)
    (folder / "report.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        report = Audit.load(folder)
    except BadInput as e:
        assert "\n" not in str(e)
        return
    assert same(report, text)
    used(report, audit_page.html, audit_text.show)
    try:
        audits.judge(report, alpha=0.2)
    except BadInput:
        return
    used(report, audit_page.html, audit_text.show)


@given(seed=st.integers(0, 2**32))
def test_any_guard_is_refused_or_says_what_it_said(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    text = spoilt(said(OLD / "guard" / "guard.json"), seed)
    folder = tmp_path_factory.mktemp("guard")
    (folder / "guard.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        assert read_record(folder) == json.loads(text)
    except BadInput as e:
        assert "\n" not in str(e)


@given(seed=st.integers(0, 2**32))
def test_any_bank_is_refused_or_says_what_it_said(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    blob = (OLD / "digits.bank").read_bytes()
    size = int.from_bytes(blob[:8], "little")
    head = json.loads(blob[8 : 8 + size])
    text = spoilt(json.loads(head["__metadata__"]["backsweep.bank"]), seed)
    head["__metadata__"]["backsweep.bank"] = text
    new = json.dumps(head).encode()
    path = tmp_path_factory.mktemp("bank") / "digits.bank"
    path.write_bytes(len(new).to_bytes(8, "little") + new + blob[8 + size :])
    try:
        bank = Bank.load(path)
    except BadInput as e:
        assert "\n" not in str(e)
        return
    assert bank.about == json.loads(text)["about"] and len(bank.metas) == len(json.loads(text)["metas"])


@given(seed=st.integers(0, 2**32))
def test_any_verdict_is_refused_or_says_what_it_said(seed: int) -> None:
    text = spoilt(said(OLD / "verdicts.json")[0], seed)
    try:
        record = Record.from_json(documents.parsed(text))
    except (BadInput, documents.Misfit) as e:
        assert "\n" not in str(e)
        return
    raw = json.loads(text)
    assert all(raw.get(k) == v for k, v in record.to_json().items())


def test_a_row_whose_report_says_something_else(tmp_path: Path) -> None:
    kept = said(OLD / "verdicts.json")[0]
    other = "backdoored" if kept["verdict"] == "clean" else "clean"
    with pytest.raises(BadInput, match=f"verdict is '{other}', the report that is kept with it says"):
        Record.from_json({**kept, "verdict": other})
    with Store(str(tmp_path / "store.db")) as store:
        assert store.put(Record.from_json(kept))
        assert store.records(reports=True)[0].to_json() == kept
