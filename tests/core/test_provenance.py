"""Methods that no package brings: defined anywhere, they are scanned with, saved, shown and judged again."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

import backsweep
from backsweep import Audit, BadInput, Data, Evidence, Finding, Guard, Model, Report
from backsweep.auditing import audit as auditing
from backsweep.core.provenance import imported, known
from backsweep.detectors import (
    ModelDetector,
    NeuralCleanse,
    SampleDetector,
    SetDetector,
    TrainingSet,
    Unit,
    class_evidence,
    outlier_findings,
)
from backsweep.render.terminal import scan as terminal
from backsweep.repairs import Case, Repair
from conftest import Twins
from shells import Shell

HERE = __name__


@dataclass(frozen=True)
class Noise(ModelDetector):
    """Finds classes that noise falls to."""

    name: ClassVar[str] = "noise"
    summary: ClassVar[str] = "how noise is answered"
    code: ClassVar[str] = "NOISE1"

    count: int = 32
    powers: tuple[float, ...] = (1.0,)
    kind: Literal["uniform", "zero"] = "uniform"
    fails: str = ""

    def probe(
        self, model: Model, data: Data, units: Sequence[Unit], seed: int, tick: Callable[[float], None]
    ) -> list[Evidence]:
        if self.fails == "probe":
            raise KeyError("lost")
        x = torch.rand((self.count, *model.shape), generator=torch.Generator().manual_seed(seed))
        said = model.predict(x ** self.powers[0])
        name = "elsewhere" if self.fails == "unit" else ""
        value: Any = torch.ones(1) if self.fails == "value" else 0.5
        return [
            Evidence(self.name, name or u.key, u.target, values={
                "falls_share": float((said == (u.target or 0)).double().mean()), "odd": value,
            }) for u in units
        ]  # fmt: skip

    def judge(self, evidence: Sequence[Evidence], classes: int, alpha: float) -> list[Finding]:
        if self.fails == "judge":
            raise LookupError("no idea")
        if self.fails == "level":
            return [Finding(self.code, self.name, "dreadful", "m")]
        values = [-float(e.values["falls_share"] or 0) for e in evidence]
        return outlier_findings(self, evidence, values, alpha, classes, lambda e, _flagged, _median: "noise")

    def rows(self, evidence: Sequence[Evidence], classes: int) -> list[Evidence]:
        if self.fails == "rows":
            raise LookupError("no rows")
        return list(evidence)


def local(**settings: Any) -> ModelDetector:
    """A detector whose class cannot be found by any path."""

    @dataclass(frozen=True)
    class Local(Noise):
        name: ClassVar[str] = "local"
        code: ClassVar[str] = ""
        summary: ClassVar[str] = ""

    Local.__doc__ = None
    return Local(**settings)


@dataclass(frozen=True)
class Bright(SampleDetector):
    """Brightness."""

    name: ClassVar[str] = "bright"

    power: float = 1.0

    def passes(self, model: Model) -> float:
        return 0.0

    def learn(self, model: Model, data: Data, triggers: Sequence[Any] = ()) -> dict[str, Tensor]:
        return {"mean": data.x.mean(0)}

    def scorer(self, model: Model, learned: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: (x - learned["mean"]).flatten(1).pow(2).sum(1) ** self.power


@dataclass(frozen=True)
class Norms(SetDetector):
    """Large features."""

    name: ClassVar[str] = "norms"
    code: ClassVar[str] = "NORMS1"

    fails: bool = False

    def measure(self, given: TrainingSet) -> tuple[Tensor, list[Evidence]]:
        score = given.features.norm(dim=1)
        means = [float(score[given.of(c)].mean()) for c in range(given.classes)]
        evidence = [class_evidence(self.name, c, m, 2 * m) for c, m in enumerate(means)]
        return score[:-1] if self.fails else score, evidence


@dataclass(frozen=True)
class Leave(Repair):
    """Leaves all as it is."""

    name: ClassVar[str] = "leave"
    summary: ClassVar[str] = "leaves all as it is"

    fails: bool = False

    def apply(self, case: Case) -> Model:
        if self.fails:
            raise LookupError("no way")
        return case.model.copy()


@pytest.fixture(scope="module")
def folder(twins: Twins, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved scan with a detector of this module and with one whose class nobody finds."""
    place = tmp_path_factory.mktemp("scan")
    found = [Noise(powers=(2.0,)), local()]
    report = backsweep.scan(twins.infected, twins.data, found, device="cpu", out=place)
    assert not report.errors
    return place


@pytest.fixture(scope="module")
def own(twins: Twins, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved scan with the detector of this module alone."""
    place = tmp_path_factory.mktemp("own")
    backsweep.scan(twins.infected, twins.data, Noise(powers=(2.0,)), device="cpu", out=place)
    return place


def test_a_report_says_where_a_method_from_outside_stands_and_nothing_of_ours(
    twins: Twins, folder: Path
) -> None:
    settings = json.loads((folder / "report.json").read_text())["settings"]
    assert settings["origins"] == {
        "noise": f"{HERE}:Noise", "local": f"{HERE}:local.<locals>.Local",
    }  # fmt: skip
    assert "packages" not in settings
    assert settings["detectors"]["noise"]["powers"] == [2.0]
    ours = backsweep.scan(twins.clean, twins.data, NeuralCleanse(steps=1), device="cpu")
    assert ours.settings.keys() == {"alpha", "seed", "device", "detectors", "reference"}


def test_a_loaded_report_is_judged_by_the_class_that_has_been_imported(own: Path) -> None:
    report = Report.load(own)
    before = [(f.target, f.score, f.p_value) for f in report.findings]
    assert [(f.target, f.score, f.p_value) for f in backsweep.judge(report).findings] == before
    assert backsweep.judge(report, alpha=0.9).findings
    assert report.settings["detectors"]["noise"]["powers"] == (2.0,), "lists of JSON are tuples again"


def test_a_detector_that_is_not_known_is_one_line_that_says_what_to_do(folder: Path) -> None:
    report = Report.load(folder)
    with pytest.raises(BadInput, match="import it first, or give it, detectors=") as e:
        backsweep.judge(report)
    assert "\n" not in str(e.value)
    assert "'local'" in str(e.value)
    assert HERE in str(e.value)
    assert report.findings == Report.load(folder).findings, "nothing was changed"
    judged = backsweep.judge(report, alpha=0.1, detectors=local(count=7))
    assert {f.detector for f in judged.findings} == {"noise", "local"}
    assert judged.settings["detectors"]["local"]["count"] == 7


def test_nothing_is_imported_because_a_file_names_it(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "planted_module.py").write_text("raise SystemExit('imported!')")
    raw = json.loads((folder / "report.json").read_text())
    raw["settings"]["origins"] = {"noise": "planted_module:Noise", "local": "os:getcwd"}
    report = Report.from_json(raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        with pytest.raises(BadInput, match="Noise of planted_module, which is not imported here"):
            backsweep.judge(report)
    assert "planted_module" not in sys.modules
    assert imported(ModelDetector, f"{HERE}:Noise") is Noise
    for path in (
        "os:getcwd",
        "os:path.join",
        f"{HERE}:Noise.name",
        f"{HERE}:Leave",
        "",
        ":",
        "a",
        f"{HERE}:",
    ):
        assert imported(ModelDetector, path) is None
    renamed = {"origins": {"noise": f"{HERE}:NeuralCleanse"}}
    assert known([ModelDetector], "noise", renamed) is None, "another name: not this detector"


@pytest.mark.parametrize("origins", [[], {"noise": 3}, {"noise": "\u202e\n" * 400}, "x"])
def test_damaged_origins_are_a_line_and_are_still_shown(folder: Path, origins: Any) -> None:
    raw = json.loads((folder / "report.json").read_text())
    raw["settings"]["origins"] = origins
    report = Report.from_json(raw)
    with pytest.raises(BadInput) as e:
        backsweep.judge(report)
    assert len(str(e.value)) < 700
    assert str(e.value).isprintable()
    terminal.show(report, Console(record=True, width=100))


def test_show_prints_what_it_cannot_judge(folder: Path, shell: Shell) -> None:
    status, _, err = shell("show", folder)
    assert status in (0, 1, 3)
    assert "local" in err
    status, _, err = shell("show", folder, "--alpha", "0.01")
    assert status == 2
    assert err.startswith("error: the detector 'local' is local.<locals>.Local of ")
    assert err.count("\n") == 1


def test_pages_and_sarif_have_plain_rows_where_a_detector_is_not_known(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert "noise looks for classes that noise falls to." in page
    assert "local looks for what local finds." in page
    assert f"noise ({HERE}:Noise)" in page
    sarif = json.loads((folder / "report.sarif").read_text())
    rules = sarif["runs"][0]["tool"]["driver"]["rules"]
    assert {r["id"] for r in rules} == {"NOISE1", "local"}
    assert all(r["fullDescription"]["text"] for r in rules)


def test_rows_that_fail_are_left_for_the_evidence(twins: Twins, tmp_path: Path) -> None:
    report = backsweep.scan(twins.clean, twins.data, Noise(fails="rows"), device="cpu", out=tmp_path)
    assert not report.errors
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize(
    ("fails", "says"),
    [
        ("probe", "failed: KeyError: 'lost'"),
        ("unit", "failed: probe has to give one record of evidence for each unit"),
        ("value", "failed: the value 'odd' of the evidence is no plain number"),
        ("judge", "its judging failed: LookupError: no idea"),
        ("level", "its judging failed: it gave Finding"),
    ],
)
def test_what_fails_makes_the_report_inconclusive(
    twins: Twins, tmp_path: Path, fails: str, says: str
) -> None:
    report = backsweep.scan(twins.clean, twins.data, Noise(fails=fails), device="cpu", out=tmp_path)
    assert report.verdict == "inconclusive"
    assert [n.what for n in report.errors] == ["noise"]
    assert report.errors[0].reason.startswith(says)
    assert Report.load(tmp_path).errors == report.errors


@dataclass(frozen=True)
class Unnamed(Noise):
    name: ClassVar[str] = "no/name"


@dataclass(frozen=True)
class Taken(Noise):
    name: ClassVar[str] = "cascade"


@dataclass(frozen=True)
class Heavy(Noise):
    weights: Any = field(default_factory=lambda: torch.ones(3))


@pytest.mark.parametrize(
    ("detector", "says"),
    [
        (Noise, r"write Noise\(\)"),
        (Leave(), "Leave is no detector"),
        (7, "int is no detector"),
        (Unnamed(), "needs a name of small letters"),
        (Taken(), "taken by a detector of Backsweep"),
        (Heavy(), "settings are numbers, text"),
        ([Noise(), Noise(count=3)], "each only once"),
    ],
)
def test_what_is_no_detector_is_one_line(twins: Twins, detector: Any, says: str) -> None:
    with pytest.raises(BadInput, match=says) as e:
        backsweep.scan(twins.clean, twins.data, detector, device="cpu")
    assert "\n" not in str(e.value)


def test_settings_from_json_have_the_types_of_the_class(own: Path) -> None:
    raw = json.loads((own / "report.json").read_text())
    for change, says in (({"kind": "pink"}, "kind cannot be 'pink'"), ({"size": 1}, "has no setting 'size'")):
        raw["settings"]["detectors"]["noise"] = change
        with pytest.raises(BadInput, match=says):
            backsweep.judge(Report.from_json(raw))


def test_the_ten_lines_of_the_page_run(twins: Twins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("backsweep.scanning.scan.pick_device", lambda _: torch.device("cpu"))
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    given = vars(module)
    given |= {"model": twins.clean, "data": twins.data}
    quick = code.replace('"cascade"', '"mm_bd"')
    exec(compile(quick, "plugins.md", "exec", dont_inherit=True), given)  # noqa: S102 - our own page
    assert given["report"].verdict == "clean"
    assert {f.detector for f in given["report"].findings} == {"noise", "mm_bd"}
    assert given["report"].settings["origins"] == {"noise": "page:Noise"}
    assert backsweep.judge(Report.load("report"), alpha=0.01).findings


# ---------------------------------------------------------------------- a script, and other processes

SCRIPT = '''
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar
import backsweep
from backsweep import Evidence, Finding
from backsweep.detectors import ModelDetector, outlier_findings

@dataclass(frozen=True)
class Mine(ModelDetector):
    """Finds nothing."""
    name: ClassVar[str] = "mine"
    code: ClassVar[str] = "MINE1"
    factor: float = 2.0

    def probe(self, model, data, units, seed, tick):
        heights = {u: {"height": self.factor * u.target} for u in units}
        return [Evidence(self.name, u.key, u.target, values=heights[u]) for u in units]

    def judge(self, evidence, classes, alpha):
        values = [e.values["height"] for e in evidence]
        return outlier_findings(self, evidence, values, alpha, classes, lambda e, f, m: "height")

if __name__ == "__main__":
    from backsweep.engine.engine import Engine
    model = backsweep.load("net.safetensors", arch="backsweep.archs:digits_cnn", shape=(1, 8, 8), classes=10)
    data, engine = backsweep.Data.open("data.npz", shape=(1, 8, 8)), Engine(workers=2)
    report = backsweep.scan(model, data, [Mine(factor=3.0)], device="cpu", engine=engine, out="out")
    engine.close()
    assert not report.errors, report.errors
    again = backsweep.judge(backsweep.Report.load("out"), alpha=0.2)
    assert [e.values["height"] for e in again.evidence] == [3.0 * t for t in range(10)]
    assert report.settings["origins"] == {"mine": "__main__:Mine"}, report.settings
'''


def test_a_class_of_a_script_goes_to_worker_processes_and_is_judged_again(
    twins: Twins, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    save_file(twins.clean.net.state_dict(), tmp_path / "net.safetensors")
    x = (twins.data.x[:200, 0].numpy() * 255).round().astype("uint8")
    np.savez(tmp_path / "data.npz", x=x, y=twins.data.y[:200].numpy())
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with pytest.raises(BadInput, match="Mine of __main__, which is not imported here"):
        backsweep.judge(Report.load(tmp_path / "out"))


# ---------------------------------------------------------------------- audits, guards, repairs


def test_an_audit_takes_instances_of_both_kinds(twins: Twins, tmp_path: Path) -> None:
    found = backsweep.audit(twins.clean, twins.data, [Norms(), Bright(power=0.5)], device="cpu", out=tmp_path)
    assert not found.errors
    assert found.settings["origins"] == {"norms": f"{HERE}:Norms", "bright": f"{HERE}:Bright"}
    loaded = Audit.load(tmp_path)
    again = auditing.judge(loaded, alpha=0.05)
    assert [(f.detector, f.target, f.score) for f in again.findings] == [
        (f.detector, f.target, f.score) for f in found.findings
    ]
    loaded.settings["origins"] = {"norms": "gone:Norms", "bright": "gone:Bright"}
    with pytest.raises(BadInput, match="of gone, which is not imported here"):
        auditing.judge(loaded)
    assert auditing.judge(loaded, detectors=[Norms(), Bright()]).settings["detectors"]["bright"] == {
        "power": 1.0
    }
    broken = backsweep.audit(twins.clean, twins.data, Norms(fails=True), device="cpu")
    assert re.match(r"failed: its scores have shape \(\d+,\)", broken.errors[0].reason)


def test_a_guard_is_restored_with_its_class_or_an_instance(twins: Twins, tmp_path: Path) -> None:
    fitted = backsweep.guard(twins.clean, twins.data, [Bright(power=0.5)], fpr=0.1, device="cpu")
    record = fitted.save(tmp_path) / "guard.json"
    raw = json.loads(record.read_text())
    assert raw["origins"] == {"bright": f"{HERE}:Bright"}
    x = twins.data.x[:20]
    assert torch.equal(Guard.load(tmp_path, twins.clean, "cpu").score(x), fitted.score(x))
    record.write_text(json.dumps({**raw, "origins": {"bright": "gone:Bright"}}))
    with pytest.raises(BadInput, match="Bright of gone, which is not imported here") as e:
        Guard.load(tmp_path, twins.clean, "cpu")
    assert "\n" not in str(e.value)
    again = Guard.load(tmp_path, twins.clean, "cpu", detectors=Bright(power=0.5))
    assert torch.equal(again.score(x), fitted.score(x))


def test_a_repair_of_ones_own_is_made_and_recorded(twins: Twins, folder: Path, tmp_path: Path) -> None:
    report = Report.load(folder)
    done = backsweep.repair(
        twins.infected,
        twins.data,
        report,
        [Leave(fails=True), Leave()],
        device="cpu",
        verify=False,
        out=tmp_path,
    )
    assert done.method == "leave"
    assert [(n.what, n.reason) for n in done.skipped] == [("leave", "failed: LookupError: no way")]
    assert json.loads((tmp_path / "repair.json").read_text())["settings"]["origins"] == {
        "leave": f"{HERE}:Leave"
    }
    page = (tmp_path / "repair.html").read_text()
    assert f"leave ({HERE}:Leave)" in page
    assert "leaves all as it is" in page
    assert not math.isnan(done.after.clean_accuracy)
    with pytest.raises(BadInput, match="the detector 'local' is"):  # said before anything is computed
        backsweep.repair(twins.infected, twins.data, report, Leave(), device="cpu")
