"""An audit as a page, on a console and for a code host: every verdict, many classes, hostile text."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.cells import cell_len
from rich.console import Console
from test_browser import watch
from test_render_repair import HOSTILE, SCRIPT, Page

from backsweep.auditing.detector import class_evidence
from backsweep.inputs.image.modality import IMAGE
from backsweep.render.exchange.sarif import sarif
from backsweep.render.pages import audit
from backsweep.render.pages.audit import html
from backsweep.render.pages.audit_map import FLOOR, HEIGHT, LEFT, WIDTH, Counts, histogram, scatter, tiles
from backsweep.render.terminal.audit import show
from backsweep.reports.audit import Audit, Retrained
from backsweep.reports.report import ERROR, NOTE, WARNING, Note
from backsweep.scanning.calibration import UNCALIBRATED
from browsers import VIEWS
from reporting import GTSRB, make_audit, make_report


def opened(report: Audit) -> Audit:
    """Nothing can be told of it."""
    (first,) = report.findings[:1]
    doubt = replace(first, level=WARNING, message="cannot tell: too few clean networks", p_value=None)
    return replace(report, findings=[doubt])


def ran_nothing(**notes: Any) -> Audit:
    base = make_audit(bad=())
    return replace(base, findings=[], evidence=[], scores={}, pictures=[], **notes)


LOW_ACCURACY = Note(
    "training accuracy", "the network is right on 12% of its training set; check mean and std"
)
VARIED = {
    "found": make_audit(labels=GTSRB, retrained=True),
    "grey": make_audit(shape=(1, 28, 28), skipped=[Note("beatrix", "needs clean samples")]),
    "many": make_audit(43, bad=range(2, 11), drawn=3, labels=[f"sign number {i} of 43" for i in range(43)]),
    "wide": make_audit(3, bad=(1,), shape=(3, 100, 200)),
    "clean": make_audit(bad=(), shape=(1, 8, 8)),
    "open": opened(make_audit(bad=())),
    "failed": ran_nothing(errors=[LOW_ACCURACY]),
    "nothing": ran_nothing(skipped=[Note("beatrix", "needs clean samples")]),
    "part failed": make_audit(errors=[Note("strip", "failed: out of memory")]),
    "no pictures": make_audit(drawn=0),
    "hostile": make_audit(len(HOSTILE), bad=range(len(HOSTILE)), labels=HOSTILE, drawn=10),
    "bare": Audit(),
}


def printed(report: Audit, width: int = 80, encoding: str = "utf-8", **options: Any) -> str:
    """What the console shows."""
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    show(report, Console(file=file, width=width, **options), "out")
    return raw.getvalue().decode(encoding)


def plain(report: Audit) -> str:
    return Page(html(report, "out")).plain()


# ---------------------------------------------------------------------- the verdict in words


@pytest.mark.parametrize(
    ("name", "word", "headline"),
    [
        (
            "found", "Poison found",
            f"Poisoned samples were found in class 3 ({GTSRB[3]}): 12 of 100 samples are flagged.",
        ),
        (
            "many", "Poison found",
            "Poisoned samples were found in 9 classes: 2 (sign number 2 of 43), 3 (sign number 3 of 43), 4 "
            "(sign number 4 of 43) and 6 more. 108 of 4,300 samples are flagged.",
        ),
        ("clean", "No poison found", "No poison was found in this training set."),
        ("open", "Cannot tell", "The audit cannot tell whether there are poisoned samples."),
        ("failed", "Cannot tell", "The audit cannot tell whether there are poisoned samples."),
    ],
)  # fmt: skip
def test_verdict(name: str, word: str, headline: str) -> None:
    said = audit.verdict(VARIED[name])
    assert (said.word, said.headline) == (word, headline)
    assert f"<title>{word} " in html(VARIED[name]) and headline in plain(VARIED[name])
    assert word.upper() in printed(VARIED[name])


def test_why_it_cannot_tell() -> None:
    assert "check mean and std." in plain(VARIED["failed"])
    assert "Too few clean networks." in audit.verdict(VARIED["open"]).why
    why = audit.verdict(VARIED["nothing"]).why
    assert why == [
        "No detector ran on this training set, so nothing was looked for.",
        "Skipped beatrix: needs clean samples.",
    ]


def test_no_poison_is_said_with_what_it_is_worth() -> None:
    text = plain(VARIED["clean"])
    assert "It accepts false alarms in 5% of training sets without poison." in text
    assert "keep their label when the network forgets its classes" in text and "(ours)" not in text
    assert "no audit proves that there is none" in text
    assert "What to do next" not in text and "flagged.csv" not in text
    assert "not found poisoned" in text and "in a set without poison too" in text


def test_what_to_do_next() -> None:
    text = plain(VARIED["grey"])
    for part in ("before you delete anything", "flagged.csv", "kept.csv", "--verify"):
        assert part in text, part
    assert "--verify" not in plain(VARIED["found"]), "it was verified already"
    assert "there may be more than was found" in plain(VARIED["part failed"])


@pytest.mark.parametrize(
    ("null", "said", "not_said"),
    [
        ("39 clean networks of mnist", "its rank among 39 clean networks of mnist", "uncalibrated"),
        (UNCALIBRATED, "This figure is uncalibrated", "rank among"),
    ],
)
def test_p_value_with_what_it_rests_on(null: str, said: str, not_said: str) -> None:
    for name in ("found", "clean"):
        base = VARIED[name]
        first = replace(base.findings[0], p_value=0.025, details={"null": null})
        report = replace(base, findings=[first])
        assert said in plain(report) and not_said not in plain(report)
        assert "with probability 0.025, about 1 in 40" in audit.verdict(report).why[0]
        out = " ".join(re.sub("[│╭╮╰╯─]", " ", printed(report)).split())
        assert said in out and not_said not in out
    none = replace(base, findings=[replace(first, p_value=None)])
    assert "p-value" not in plain(none).split("All classes")[0]


# ---------------------------------------------------------------------- drawings


def test_histogram_is_cut_where_samples_are_flagged() -> None:
    """No bar has samples of both sides, and no sample is lost."""
    scores = torch.cat([torch.linspace(-3, 2, 500), torch.tensor([2.0, 2.0, 2.001, 7.5, 9.0])])
    drawn = histogram(scores, 2.0, True)
    assert drawn is not None and drawn.cut is not None and drawn.above == 3
    hot = [c for c in drawn.columns if c.hot]
    counts = [int(c.tip.split(": ")[1]) for c in drawn.columns]
    assert sum(counts) == 505 and sum(int(c.tip.split(": ")[1]) for c in hot) == 3
    assert all((c.x >= drawn.cut[0] - 0.1) == c.hot for c in drawn.columns)
    tallest = max(drawn.columns, key=lambda c: int(c.tip.split(": ")[1]))
    assert tallest.height == max(c.height for c in drawn.columns)
    assert all(c.x >= LEFT and c.x + c.width <= WIDTH and 0 <= c.y <= FLOOR for c in drawn.columns)
    assert all(abs(c.y + c.height - FLOOR) < 0.2 and c.height >= 10 for c in drawn.columns), "one is seen"


@pytest.mark.parametrize(
    ("scores", "cut"),
    [
        ([1.0] * 30, 1.0), ([1.0] * 30, 5.0), ([1.0] * 30, -5.0), ([0.0, float("nan"), 3.0], 1.0),
        ([1e-30, 1e30], 0.0), ([1.0, 2.0], None), ([1.0, 2.0], float("inf")), ([float("inf")], 1.0),
        ([], 1.0),
    ],
)  # fmt: skip
def test_histogram_of_odd_scores(scores: list[float], cut: float | None) -> None:
    drawn = histogram(torch.tensor(scores), cut, True)
    finite = torch.tensor([s for s in scores if abs(s) < float("inf")])
    if not len(finite):
        assert drawn is None
        return
    assert drawn is not None and sum(int(c.tip.split(": ")[1]) for c in drawn.columns) == len(finite)
    assert (drawn.cut is None) == (cut is None or cut == float("inf"))
    if drawn.cut is not None and cut is not None:
        assert drawn.above == int((finite > cut).sum()) and LEFT <= drawn.cut[0] <= WIDTH
    else:
        assert not any(c.hot for c in drawn.columns)


def test_map_tells_flagged_samples_by_shape_and_place() -> None:
    report = VARIED["found"]
    shown, flagged = report.pictures[0], set(report.flagged.tolist())
    drawn = scatter(shown, flagged)
    assert drawn is not None and drawn.drawn == 100
    assert len(drawn.dots) == 88 and drawn.triangles.count("M") == 12
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in drawn.dots)
    right = [float(x) for x in re.findall(r"M([0-9.]+) ", drawn.triangles)]
    assert min(right) > sum(x for x, _ in drawn.dots) / 88, "the larger first component lies on the right"
    upper = scatter(replace(shown, places=torch.tensor([[0.0, 1.0], [0.0, 0.0]]), rows=shown.rows[:2]), ())
    assert upper is not None and upper.dots[0][1] < upper.dots[1][1], "the second component points upwards"
    gone = replace(shown, places=torch.full_like(shown.places, float("nan")))
    assert scatter(gone, ()) is None


def test_pictures_are_those_of_the_samples() -> None:
    report = VARIED["found"]
    shown = report.pictures[0]
    suspicious, typical = tiles(shown, report.scores["cross_confusion"], set(report.flagged.tolist()), IMAGE)
    assert [t.hot for t in suspicious + typical] == [True] * 8 + [False] * 8
    for tile, x, row in zip(suspicious, shown.pictures, shown.suspicious.tolist(), strict=False):
        image = Image.open(io.BytesIO(base64.b64decode(tile.picture.uri.split(",")[1])))
        assert image.mode == "RGB" and image.size == (32, 32)
        assert image.getpixel((0, 0)) == tuple((x[:, 0, 0] * 255).round().int().tolist())
        assert tile.picture.caption == f"sample {row:,}"
        assert float(tile.score) == pytest.approx(float(report.scores["cross_confusion"][row]), rel=0.01)
    assert {(t.picture.width, t.picture.height) for t in suspicious + typical} == {(64, 64)}


def test_pictures_of_all_shapes_have_one_size() -> None:
    for name, size in (("grey", ("56", "56")), ("clean", ("72", "72")), ("wide", ("72", "36"))):
        images = Page(html(VARIED[name])).all("img")
        assert len(images) == 16 and {(i["width"], i["height"]) for i in images} == {size}


def test_pictures_that_do_not_fit_are_left_out() -> None:
    base = VARIED["found"]
    shown = base.pictures[0]
    for odd in (
        replace(shown, rows=shown.rows + 10**6), replace(shown, places=shown.places[:5]),
        replace(shown, pictures=shown.pictures[:3]), replace(shown, suspicious=shown.suspicious - 10**6),
        replace(shown, pictures=shown.pictures[:, 0]),
    ):  # fmt: skip
        page = Page(html(replace(base, pictures=[odd])))
        assert not page.all("img") and "12 of 100 samples flagged" in page.plain()
    clean = VARIED["clean"]
    without = replace(clean, scores={"other": clean.scores["cross_confusion"]})
    assert "Their scores" in plain(clean) and "Their scores" not in plain(without)


# ---------------------------------------------------------------------- classes and the rest


def test_card_of_a_class() -> None:
    text = plain(VARIED["found"])
    assert f"The poisoned class Class 3 ({GTSRB[3]}) 12 of 100 flagged" in text
    assert "flagged 12 others 88" in text and "cut 5, 12 above" in text
    assert "Principal components of the penultimate layer" in text
    assert "The most suspicious samples" in text and "Typical samples of the class" in text
    assert "More than half" not in text
    clean = plain(VARIED["clean"])
    card = clean.split("The class that stands out")[2].split("All classes")[0]
    assert "cut 5, not applied" in card and "samples 100" in card
    assert "flagged" not in card.replace("nothing is flagged here", "")


def test_a_class_of_which_most_is_flagged() -> None:
    text = plain(make_audit(poisoned=80))
    assert "80 of 100 flagged" in text and "More than half of the class is flagged" in text
    assert "Samples of middling score" in text and "Typical samples" not in text


def test_poisoned_classes_without_pictures_are_named() -> None:
    page = Page(html(VARIED["many"]))
    assert len(page.all("article")) == 4
    further = page.plain().split("Further classes, without pictures")[1]
    assert all(f"{c} (sign number {c} of 43) 12 of 100 samples flagged" in further for c in range(5, 11))
    assert "Further classes" not in plain(VARIED["no pictures"])
    assert "3 12 of 100 samples flagged" in plain(VARIED["no pictures"])


def test_table_of_classes() -> None:
    page = Page(html(VARIED["many"]))
    assert "Show all 43 rows" in page.plain() and page.all("details")
    assert len([r for r in page.all("tr") if r.get("class") == "hot"]) == 9
    found = VARIED["found"]
    table = audit._table(found, "cross_confusion", Counts(found), str)
    assert table.heads == ["statistic", "p-value", "share of the second kind", "above the cut", "samples"]
    assert (
        table.rows[0].hot
        and table.rows[0].cells[0] == "20"
        and table.rows[0].cells[2:] == ["12.0%", "12", "100"]
    )
    assert [r.name for r in table.rows if r.hot] == ["3"] and not table.folded
    values = [float(r.cells[0]) for r in table.rows]
    assert values == sorted(values, reverse=True)
    assert {r.cells[1] for r in table.rows[1:]} == {""}


def test_two_detectors() -> None:
    base = VARIED["grey"]
    more = [class_evidence("strip", c, 30.0 if c == 7 else 0.3, 0.5) for c in range(9)]
    score = torch.where(base.labels == 7, 1.0, 0.0)
    finding = replace(base.findings[0], code="BSW210", detector="strip", target=7, p_value=0.01)
    report = replace(
        base, evidence=base.evidence + more, scores={**base.scores, "strip": score},
        findings=[*base.findings, finding],
    )  # fmt: skip
    text = plain(report)
    assert "in 2 classes: 3 and 7. 112 of 1,000 samples are flagged." in text
    assert "All classes (strip)" in text and "when other inputs are blended in" in text
    assert "1 class had too few samples to look at." in text
    assert "7 100 of 100 samples flagged" in text, "it has no pictures"
    assert "strip" in printed(report) and re.search(r"7 +100 +100 +0\.01", printed(report))
    run = sarif(report)["runs"][0]
    assert [r["id"] for r in run["tool"]["driver"]["rules"]] == ["BSW200", "BSW210"]


def test_retrained() -> None:
    text = plain(VARIED["found"])
    assert "the audited network 99.1%" in text
    assert "a fresh one, trained on 988 kept samples 98.6%" in text
    assert "trained on these as well" in text and "does not say that no poison is left" in text
    assert "right on 98.6% of 100 kept samples, held out, the audited one on 99.1%" in " ".join(
        printed(VARIED["found"]).split()
    )
    held_out = replace(
        VARIED["found"], retrained=Retrained(0.9, 0.8, 10, "the clean samples"),
        data={**VARIED["found"].data, "clean": "clean.npz"},
    )  # fmt: skip
    assert "trained on these as well" not in plain(held_out) and "--clean" in plain(held_out)
    assert "A fresh network" not in plain(VARIED["grey"])


def test_page_says_what_was_audited_and_how() -> None:
    text = plain(VARIED["grey"])
    for part in (
        "Training set data/signs train.npz", "Model trained on it models/traffic-signs.safetensors",
        "Samples 1,000", "Flagged 12 1.2%", "Training accuracy 99.3%", "Detectors cross confusion",
        "beatrix Needs clean samples.", "backsweep audit models/traffic-signs.safetensors --data", "--seed 0",
        "Versions backsweep 0.1.0", "Seed 0", "Data SHA-256", "total 21 s",
    ):  # fmt: skip
        assert part in text, part


def test_saved_and_read_it_is_the_same_page(tmp_path: Path) -> None:
    for name in ("found", "clean", "no pictures"):
        folder = VARIED[name].save(tmp_path / name)
        assert (folder / "report.html").read_text(encoding="utf-8") == html(VARIED[name], folder)
        again = plain(Audit.load(folder))
        assert again == plain(VARIED[name])
    with (tmp_path / "found" / "flagged.csv").open() as f:
        assert len(list(csv.DictReader(f))) == 12


# ---------------------------------------------------------------------- every page


@pytest.mark.parametrize("name", VARIED)
def test_page_is_valid_and_fetches_nothing(name: str) -> None:
    source = html(VARIED[name])
    source.encode()
    page = Page(source)
    assert {"script", "link", "iframe", "form", "base", "object", "a"}.isdisjoint(t for t, _ in page.tags)
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:;")
    assert all((i["src"] or "").startswith("data:image/png;base64,") for i in page.all("img"))
    assert all(i["alt"] and i["width"] for i in page.all("img"))
    assert not any(k.startswith("on") or k == "style" for _, attributes in page.tags for k in attributes)
    assert "url(" not in source and "@import" not in source
    assert not re.search(r"\b(None|nan|inf|Undefined)\b", page.text)


def test_hostile_text_stays_text() -> None:
    bad = SCRIPT + "\x1b[31m\u202e{{ 7 * 7 }}[bold]"
    base = VARIED["hostile"]
    findings = [replace(f, message=bad) for f in base.findings]
    notes = [Note(bad, bad), *(Note(h, h) for h in HOSTILE)]
    hostile = replace(
        base, findings=findings, skipped=notes, errors=notes, versions={bad: bad}, timings={bad: 1.0},
        data={**base.data, "source": bad, "sha256": bad, "clean": bad},
        model={**base.model, "source": bad, "sha256": bad, "command": bad},
        retrained=Retrained(0.9, 0.9, 1, bad),
    )  # fmt: skip
    renamed = replace(
        base, evidence=[replace(e, detector=bad) for e in base.evidence],
        scores={bad: base.scores["cross_confusion"]}, findings=[replace(f, detector=bad) for f in findings],
        settings={**base.settings, "detectors": {bad: {bad: bad}}},
    )  # fmt: skip
    for report in (base, hostile, renamed):
        source = html(report)
        assert Page(source).all("script") == []
        assert not any("onerror" in a for _, a in Page(source).tags)
        assert "&lt;script&gt;" in source
        if report is not base:
            assert source.count("{{ 7 * 7 }}") > 1 and "[31m 49" not in source
        text, logged = printed(report, color_system=None), json.dumps(sarif(report), ensure_ascii=False)
        for c in "\x1b\x07\x00\u202e\u202c\ud800":
            assert c not in source and c not in text and c not in logged
        assert "a" * 700 not in source


# ---------------------------------------------------------------------- the console


@pytest.mark.parametrize("width", [40, 80, 140])
@pytest.mark.parametrize("name", VARIED)
def test_console_fits(name: str, width: int) -> None:
    lines = printed(VARIED[name], width).splitlines()
    files = ("Report: ", "Flagged samples: ", "The cleaned set: ", "  backsweep ")
    assert all(cell_len(line) <= width for line in lines if not line.startswith(files))
    last = ["Report: out/report.html"]
    if VARIED[name].labels is not None and len(VARIED[name].flagged):
        last += ["Flagged samples: out/flagged.csv", "The cleaned set: out/kept.csv"]
    assert lines[-len(last) :] == last
    assert width < 80 or name in ("many", "hostile") or len(lines) <= 25


def test_console_says_it_all_in_a_few_lines() -> None:
    out = printed(VARIED["grey"])
    assert re.search(r"^ 3 +12 +100 +\S.*20 *$", out, re.M)
    assert "Skipped: beatrix: Needs clean samples." in out
    assert "before you delete any" in out
    assert "Failed: strip: Failed: out of memory." in printed(VARIED["part failed"])
    assert " ".join(printed(VARIED["failed"]).split()).count("training set; ") == 1, "it stands in the panel"
    assert "1 more in the report." in printed(VARIED["many"])
    assert "flagged.csv" not in printed(VARIED["clean"]) and "poisoned class" not in printed(VARIED["clean"])


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize("name", VARIED)
def test_console_has_characters_that_the_terminal_has(name: str, encoding: str) -> None:
    printed(VARIED[name], encoding=encoding)


# ---------------------------------------------------------------------- a code host


def test_sarif_speaks_of_the_training_set() -> None:
    report = VARIED["found"]
    run = sarif(report)["runs"][0]
    (result,) = run["results"]
    assert result["ruleId"] == "BSW200" and result["level"] == "error"
    assert result["message"]["text"].startswith(
        f"Poisoned samples in class 3 ({GTSRB[3]}): 12 of 100 are flagged."
    )
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "data/signs%20train.npz"
    (artifact,) = run["artifacts"]
    assert artifact["location"]["uri"] == "data/signs%20train.npz"
    assert "hashes" not in artifact, "the digest is one of samples, not of a file"
    (rule,) = run["tool"]["driver"]["rules"]
    assert rule["shortDescription"]["text"] == "Poisoned training samples (cross_confusion)"
    assert "keep their label" in rule["fullDescription"]["text"]
    assert run["invocations"][0]["exitCodeDescription"] == "evidence of poisoned samples"
    assert "backdoor" not in json.dumps([rule, result["message"], run["invocations"]])
    other = replace(report, data={**report.data, "sha256": "0" * 64})
    assert sarif(other)["runs"][0]["results"][0]["partialFingerprints"] != result["partialFingerprints"]


@pytest.mark.parametrize("name", VARIED)
def test_sarif_of_every_audit(name: str) -> None:
    report = VARIED[name]
    run = sarif(report)["runs"][0]
    json.dumps(run, allow_nan=False)
    assert len(run["results"]) == len([f for f in report.findings if f.level != NOTE])
    assert run["properties"]["verdict"] == report.verdict
    assert {r["level"] for r in run["results"]} <= {"error", "warning"}
    assert all(("Poisoned samples" in r["message"]["text"]) == (r["level"] == ERROR) for r in run["results"])


def test_sarif_of_a_scan_still_speaks_of_a_backdoor() -> None:
    run = sarif(make_report())["runs"][0]
    assert "backdoor" in run["results"][0]["message"]["text"]
    assert run["artifacts"][0]["location"]["uri"] == "models/traffic-signs.safetensors"
    assert run["invocations"][0]["exitCodeDescription"] == "evidence of a backdoor"


# ---------------------------------------------------------------------- a browser


@pytest.mark.browser
@pytest.mark.parametrize("name", ["found", "many", "wide", "failed", "hostile"])
def test_page_in_a_browser(browser: Any, tmp_path: Path, name: str) -> None:
    """It fits a phone and a sheet of paper, pictures are crisp, and nothing is run or asked for."""
    path = tmp_path / "audit.html"
    path.write_text(html(VARIED[name]), encoding="utf-8")
    for view_name, options in VIEWS.items():
        context = browser.new_context(**options)
        page = context.new_page()
        seen = watch(page)
        if view_name == "print":
            page.emulate_media(media="print")
        page.goto(path.as_uri())
        for fold in page.locator("summary").all():
            fold.click()
        wide = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert wide[0] <= wide[1], f"{view_name} scrolls sideways: {wide}"
        assert not page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).length")
        shown = page.evaluate(
            "[...document.querySelectorAll('.montage img')].map("
            "i => [i.clientWidth / i.naturalWidth, getComputedStyle(i).imageRendering])"
        )
        assert all(scale == round(scale) >= 1 and way == "pixelated" for scale, way in shown)
        assert page.evaluate("window.pwned") is None and seen == []
        context.close()
