"""What Backsweep itself saves, for the fuzzer, and how it is read again."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from backsweep.auditing import audit as audits
from backsweep.cli.inventory import _read_records
from backsweep.core.errors import BadInput
from backsweep.guarding.guard import Guard, guard
from backsweep.guarding.record import RECORD, TENSORS, read_record
from backsweep.inputs.image import triggers as families
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.inventory.store import Record, Store
from backsweep.models.model import Model
from backsweep.models.training import Recipe, fit
from backsweep.render.exchange.cyclonedx import cyclonedx
from backsweep.render.exchange.sarif import sarif
from backsweep.render.pages import audit as audit_page
from backsweep.render.pages import scan as scan_page
from backsweep.render.terminal import audit as audit_text
from backsweep.render.terminal import history
from backsweep.render.terminal import scan as scan_text
from backsweep.reports.audit import Audit
from backsweep.reports.report import Evidence, Finding, Note, Report, evidence_json
from backsweep.scanning import scan as scans
from backsweep.scanning.collect import LOG, _read_log
from backsweep.shadows import meta_classifier
from backsweep.shadows.bank import Bank
from backsweep.shadows.meta_classifier import Meta
from backsweep.zoo.tasks import TASKS
from fuzz_models import SHAPE
from reporting import make_audit, make_cascade_report, make_report


def _triggers() -> list[Trigger]:
    g = torch.Generator().manual_seed(0)
    image = torch.rand(SHAPE, generator=g)
    nets = [
        torch.rand(sum(s.numel() + s[0] for s in families.generator_layers(3, 2, out)), generator=g)
        for out in (1, 3)
    ]
    strip = torch.rand((2, *SHAPE), generator=g)
    return [
        families.Patch.square(SHAPE, 2, 0, 3), families.Additive(1, None, image - 0.5),
        families.Warp(None, 2, torch.rand((2, 8, 8), generator=g)), families.Quantise(0, None, 4),
        families.Recolour(2, None, torch.eye(3), torch.zeros(3)),
        families.Generated(1, 2, nets[0], nets[1], 2, image),
        families.SampleWise(1, None, strip, strip / 9, image / 9),
    ]  # fmt: skip


def make_trigger_files(folder: Path) -> None:
    for trigger in _triggers():
        trigger.save(folder / f"{trigger.family}.safetensors")


def read_trigger(path: Path) -> object:
    found = Trigger.load(path)
    return found.size, found.picture(), found.area, found.units, found.overlap(found), found.stamped_at(4)


def make_reports(folder: Path) -> None:
    notes = [Note("mntd", "no bank")]
    shown = [
        make_report(5, shape=SHAPE, labels=list("abcde"), skipped=notes, errors=notes),
        make_cascade_report(4, pairs=[(1, 2)], natural=[0], shape=SHAPE), make_report(3, bad=(), shape=SHAPE),
    ]  # fmt: skip
    families_of = iter(_triggers())
    for i, e in enumerate(shown[0].evidence):  # other families than patches
        shown[0].evidence[i] = Evidence(e.detector, e.unit, e.target, e.source, e.values, next(families_of))
    for i, report in enumerate(shown):
        report.data["example_labels"] = [0, 1, 2, 3]
        report.save(folder / str(i))


def _shown(report: Report, page: Callable[[Any], str], text: Callable[..., None]) -> None:
    page(report)
    text(report, Console(file=io.StringIO(), width=100), folder=Path("x"))
    json.dumps(sarif(report), allow_nan=False)
    json.dumps(report.to_json(), allow_nan=False)


def read_report(path: Path) -> object:
    report = Report.load(path)
    _shown(report, scan_page.html, scan_text.show)
    scans.judge(report, 0.1)
    _shown(report, scan_page.html, scan_text.show)
    return report.save(path / "again")


def make_audits(folder: Path) -> None:
    made = [
        make_audit(3, bad=(1,), samples=20, poisoned=5, shape=SHAPE, retrained=True),
        make_audit(3, bad=(), samples=9),
    ]
    for i, audit in enumerate(made):
        audit.save(folder / str(i))


def read_audit(path: Path) -> object:
    report = Audit.load(path)
    _shown(report, audit_page.html, audit_text.show)
    audits.judge(report, 0.1)
    _shown(report, audit_page.html, audit_text.show)
    return report.save(path / "again")


def consistent(path: Path) -> None:
    """What follows from the findings of a changed report is made to follow again."""
    file = path / "report.json"
    raw = json.loads(file.read_text())
    found = Report(
        findings=[Finding(**f) for f in raw["findings"]], evidence=[Evidence(**e) for e in raw["evidence"]]
    )
    raw |= {"verdict": found.verdict, "p_value": found.p_value, "targets": list(found.targets)}
    file.write_text(json.dumps(raw))


@functools.cache
def guarded() -> tuple[Model, Data]:
    """A model that a guard can be fitted to, and its clean samples."""
    train, test = TASKS["digits"].load()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    fit(small, train, Recipe(epochs=4, lr=1e-2, batch_size=64, bf16=False), seed=0)
    return Model(small.eval(), (1, 8, 8), 10), test.sample(240, 0)


def make_guards(folder: Path) -> None:
    model, data = guarded()
    for names in (["strip", "scale_up", "teco"], ["confused_expert"]):
        guard(model, data, names, fpr=0.05).save(folder / names[0])


def read_guard(path: Path) -> object:
    model, data = guarded()
    read_record(path)
    return Guard.load(path, model).predict(data.x[:3])


def signed(path: Path) -> None:
    """The record names the digest of the changed tensors."""
    raw = json.loads((path / RECORD).read_text())
    raw["tensors_sha256"] = hashlib.sha256((path / TENSORS).read_bytes()).hexdigest()
    (path / RECORD).write_text(json.dumps(raw))


def make_banks(folder: Path) -> None:
    g, k, hidden = torch.Generator().manual_seed(0), meta_classifier.QUERIES, meta_classifier.HIDDEN

    def rand(*size: int) -> Tensor:
        return torch.rand(size, generator=g)

    metas = tuple(
        Meta(
            variant, 8, 0, meta_classifier.LOGITS, queries=rand(2, k, *SHAPE),
            weights=(rand(2, hidden, k * 5), rand(2, hidden), rand(2, hidden), rand(2)), scale=rand(2, 2),
            null=rand(9), held_out=rand(9), reach=rand(2), clean=rand(3, 2),
        )
        for variant in meta_classifier.VARIANTS
    )  # fmt: skip
    about = {
        "archs": ["gap_cnn"], "layouts": ["0" * 16], "shape": list(SHAPE), "classes": 5, "seed": 0,
        "shadows": 8,
        "held_out": 24, "data": {"source": "x.npz", "sha256": "0" * 64, "samples": 99},
        "recipe": {"epochs": 3},
        "accuracy": 0.9, "success": 0.8, "work": 1.0, "backsweep": "0.1.0", "torch": "2.13", "python": "3.11",
    }  # fmt: skip
    Bank(about, rand(*SHAPE), rand(*SHAPE), metas).save(folder / "small.bank")


def read_bank(path: Path) -> object:
    bank = Bank.load(path)
    model, data = guarded()
    return bank.outside(model, data), [m.scores(rand) for m in bank.metas for rand in (torch.rand(
        len(m.queries), meta_classifier.QUERIES, 1, int(bank.about["classes"])),)]  # fmt: skip


def _records() -> list[Record]:
    found = []
    for i, report in enumerate(
        (make_report(4, shape=SHAPE, labels=list("abcd")), make_report(3, bad=(), shape=SHAPE))
    ):
        report.model |= {"layout": "0" * 16, "sha256": str(i) * 64}
        settings = {"alpha": 0.05, "detectors": report.settings["detectors"]}
        found.append(Record.of(report.to_json(), "key", settings, f"models/{i}.safetensors"))
    return found


def make_stores(folder: Path) -> None:
    with Store(str(folder / "store.db")) as store:
        for record in _records():
            store.put(record)
    shutil.rmtree(folder / "store.db.locks")


def _told(records: list[Record]) -> object:
    history.show_records(records, Console(file=io.StringIO(), width=120))
    history.to_csv(records)
    json.dumps([asdict(r) for r in records], allow_nan=False)
    whole = [r for r in records if r.report is not None]
    return json.dumps([history.to_sarif(whole), cyclonedx(whole)], allow_nan=False)


def read_store(path: Path) -> object:
    with Store(str(path), create=False, patience=0.05) as store:
        return _told(store.records()), _told(store.records(reports=True))


def make_verdict_files(folder: Path) -> None:
    (folder / "verdicts.json").write_text(json.dumps([r.to_json() for r in _records()]))


def read_verdicts(path: Path) -> object:
    return _told(_read_records(path))


def make_bills(folder: Path) -> None:
    (folder / "bill.json").write_text(json.dumps(cyclonedx(_records())))


def read_bill(path: Path) -> object:
    from backsweep.cli.inventory import _read_json

    return json.dumps(cyclonedx(_records(), _read_json(path)), allow_nan=False)


def make_logs(folder: Path) -> None:
    for i, report in enumerate((make_report(4, shape=SHAPE), make_cascade_report(3, shape=SHAPE))):
        report.save(folder / str(i))
        lines = [json.dumps({"key": "key", **evidence_json(e)}) + "\n" for e in report.evidence]
        (folder / str(i) / LOG).write_text("".join(lines))


def read_log(path: Path) -> object:
    found = [_read_log(path, "key", d) for d in ("neural_cleanse", "cascade")]
    if not any(found):
        raise BadInput("nothing is left of the log")
    return [evidence_json(e) for part in found for e in part.values()]
