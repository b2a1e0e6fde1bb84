"""A repair as a page and on a console: every outcome, any number of classes and triggers, hostile text."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console
from test_browser import watch

from backsweep.inputs.image.triggers import Patch
from backsweep.models.architectures import digits_cnn
from backsweep.models.model import Model
from backsweep.render import view
from backsweep.render.pages import repair, repair_words
from backsweep.render.pages.repair import html
from backsweep.render.terminal.repair import show_repair
from backsweep.reports.repair import Answers, Check, Effect, Figures, Repaired
from backsweep.reports.report import Note
from browsers import VIEWS
from reporting import GTSRB, example_images, patch

SCRIPT = "<script>window.pwned=1;alert(1)</script>"
HOSTILE = (
    SCRIPT, "a" * 5000, "\u202eevil\u202c \u05d0\u05d1\u05d2", "\x1b[31mred\x1b[0m\x07\x00",
    '"><img src=x onerror=alert(1)>', "[bold red]x[/]", "{{ 7 * 7 }}", "line\nbreak\ttab", "\ud800", "",
)  # fmt: skip
MESSAGES = {
    "scan": "a new scan with seed 1 finds no evidence of a backdoor (p = 0.41, level 0.05)",
    "old triggers": "the most successful of 2 triggers works on 1.4% of samples; the limit is 5%",
    "fresh triggers": "the most successful of 2 works on 2.1% of samples; the limit is 5%",
    "re-tuning": "after 10 poisoned samples the trigger works on 3.0%, in a clean network on 2.6%",
    "clean accuracy": "98.6% of clean samples are right, 98.9% were before; the limit is 2 points less",
}


def make_checks(**passed: bool | None) -> list[Check]:
    """The five checks; a name with _ for blank or hyphen says how one of them went."""
    went = {k.replace("re_", "re-").replace("_", " "): v for k, v in passed.items()}
    return [Check(name, went.get(name, True), text, {"limit": 0.05}) for name, text in MESSAGES.items()]


def make_repaired(
    classes: int = 10,
    checks: Sequence[Check] | None = None,
    triggers: int = 2,
    labels: Sequence[str] | None = None,
    shape: tuple[int, int, int] = (1, 8, 8),
    target: int = 3,
) -> Repaired:
    """What a repair would say, without one; every second trigger is fresh."""
    model = Model(digits_cnn(classes, shape[0], shape[1]), shape, classes)
    effects = [
        Effect(
            f"{'fresh' if i% 2 else 'neural_cleanse'} class-{target}", bool(i% 2),
            patch(shape, shape[1] * shape[2] * 0.02, target, i), 0.992 - 0.01 * i, 0.014 + 0.0007 * i,
            0.008 + 0.01 * i, 0.969, 0.026 if i% 2 else None,
        )
        for i in range(triggers)
    ]  # fmt: skip
    answers = [
        Answers(i, e, y, y, target, y if i else (y + 1) % classes, y)
        for e in range(min(2, triggers))
        for i, y in enumerate(n % classes for n in (target + 1, target + 2, target + 4, target + 5))
    ]
    none = None if not triggers else 0.992
    return Repaired(
        model=model, method="fine_tuning",
        before=Figures(0.989, none, None if none is None else 0.008),
        after=Figures(0.986, none and 0.021, none and 0.969),
        effects=effects, checks=make_checks() if checks is None else list(checks),
        suspected=[(None, target)] if triggers else [],
        skipped=[Note("adversarial_pruning", "it needs BatchNorm, and this network has none")],
        about={
            "model": {
                "source": "models/digits.safetensors", "sha256": "8d837dc3" * 8, "classes": classes,
                "shape": list(shape), "labels": list(labels) if labels else None,
            },
            "repaired": {"source": "models/digits-repaired.safetensors", "sha256": "17ab04ce" * 8},
            "data": {"source": "data/digits held out.npz", "sha256": "85508cf6" * 8, "samples": 3000},
            "settings": {"seed": 0, "device": "cpu", "repairs": {"fine_tuning": {"rate": 0.1, "epochs": 9}}},
            "versions": {"backsweep": "0.2.0", "torch": "2.13.0"},
            "command": "backsweep repair models/digits.safetensors --data 'data/digits held out.npz'",
            "reports": {"before": "before/report.html", "after": "after/report.html"},
        },
        timings={"repair_seconds": 21.3, "repair_cpu_seconds": 20.9, "checks_seconds": 192.0},
        examples=example_images(shape) if triggers else None,
        answers=answers,
    )  # fmt: skip


VARIED = {
    "verified": make_repaired(),
    "failed": make_repaired(checks=make_checks(fresh_triggers=False, re_tuning=None)),
    "open": make_repaired(checks=make_checks(scan=None)),
    "unchecked": make_repaired(checks=[]),
    "no triggers": make_repaired(triggers=0, checks=[]),
    "gtsrb": make_repaired(10, labels=GTSRB, shape=(3, 32, 32)),
    "many classes": make_repaired(43, labels=[f"sign number {i} of 43" for i in range(43)], target=40),
    "many triggers": make_repaired(triggers=60),
    "more than are drawn": make_repaired(triggers=repair.MOST_PICTURES + 1),
    "hostile": make_repaired(12, labels=HOSTILE),
    "bare": Repaired(make_repaired().model, "fine_tuning", Figures(0.9), Figures(0.9)),
}


class Page(HTMLParser):
    """Tags and text of a page; fails on tags that are not closed in order."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(source)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open += [] if tag in self.VOID else [tag]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag
        self.text += (
            " " if tag in ("dt", "dd", "th", "td", "p", "small", "b", "bdi", "span", "li", "h1") else ""
        )

    def handle_data(self, data: str) -> None:
        self.text += data if not self.open or self.open[-1] != "style" else ""

    def plain(self) -> str:
        return " ".join(re.sub("[\u2066\u2069]", "", self.text).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def printed(repaired: Repaired, width: int = 80, encoding: str = "utf-8", **options: Any) -> str:
    """What the console shows."""
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    show_repair(repaired, Console(file=file, width=width, **options), "out", "out/repaired.safetensors")
    return raw.getvalue().decode(encoding)


def words(repaired: Repaired) -> view.Verdict:
    return repair_words.verdict(repaired, lambda i: "every class" if i is None else str(i))


# ---------------------------------------------------------------------- the verdict in words


@pytest.mark.parametrize(
    ("name", "word", "headline", "tone"),
    [
        ("verified", "Repaired and verified", "The trigger that sent every class to 3 no longer", "clean"),
        (
            "failed", "Repaired, not verified: fresh triggers", "Freshly recovered triggers still work.",
            "backdoored",
        ),
        ("open", "Repaired, not verified: scan", "One check could not be made.", "inconclusive"),
        ("unchecked", "Repaired, not checked", "Nothing was done to find out", "inconclusive"),
    ],
)  # fmt: skip
def test_verdict(name: str, word: str, headline: str, tone: str) -> None:
    verdict = words(VARIED[name])
    assert verdict.word == word and verdict.headline.startswith(headline)
    assert repair_words.tone(VARIED[name]) == tone
    meaning = verdict.why[0]
    assert all(condition in meaning for condition in repair_words.CONDITIONS.values())
    assert bool(verdict.what_next) == (name != "verified")


def test_only_all_five_checks_are_called_verified() -> None:
    """The words never say more than was tried, however many of the checks passed."""
    four = make_repaired(checks=[c for c in make_checks() if c.name != "re-tuning"])
    assert words(four).word == "Repaired, not verified: re-tuning"
    assert [c.name for c in repair_words.checks(four)] == list(repair_words.CONDITIONS)
    assert "It was not asked for." in Page(html(four)).plain()
    twice = make_repaired(checks=[Check("scan", False, "it is not clean"), *make_checks()])
    assert words(twice).word == "Repaired, not verified: scan"
    more = make_repaired(checks=[*make_checks(), Check("size", False, "it grew")])
    assert words(more).headline == "Size failed." and repair_words.tone(more) == "backdoored"


def test_what_failed_stands_beside_what_was_not_made() -> None:
    both = words(VARIED["failed"])
    assert "Not made: re-tuning." in both.why
    every = words(make_repaired(checks=[replace(c, passed=False) for c in make_checks()]))
    assert every.headline.startswith("A new scan does not come out clean, the old triggers still work")
    none = words(make_repaired(checks=[replace(c, passed=None) for c in make_checks()]))
    assert none.headline == "5 checks could not be made."


@pytest.mark.parametrize(
    ("suspected", "headline"),
    [
        ([(2, 3)], "The trigger that sent 2 to 3 no longer works."),
        ([(None, 3), (None, 5)], "The recovered triggers no longer work."),
        ([(None, None)], "The recovered triggers no longer work."),
        ([], "All five checks passed."),
    ],
)
def test_headline_says_what_was_suspected(
    suspected: list[tuple[int | None, int | None]], headline: str
) -> None:
    assert words(replace(VARIED["verified"], suspected=suspected)).headline == headline


# ---------------------------------------------------------------------- figures


def test_figures_with_their_difference() -> None:
    accuracy, success, robust = repair_words.compared(VARIED["verified"])
    assert (accuracy.before, accuracy.after, accuracy.change) == ("98.9%", "98.6%", "-0.3 points")
    assert (success.change, robust.change) == ("-97.1 points", "+96.1 points")
    assert success.lengths == (99.2, 2.1)
    same = repair_words.compared(replace(VARIED["verified"], after=VARIED["verified"].before))
    assert {r.change for r in same} == {"0.0 points"}


def test_figures_that_are_not_known_have_no_bar() -> None:
    rows = repair_words.compared(VARIED["no triggers"])
    assert rows[1].lengths == rows[2].lengths == (None, None)
    odd = replace(VARIED["verified"], after=Figures(float("nan"), None, 0.5))
    assert [r.lengths[1] for r in repair_words.compared(odd)] == [None, None, 50.0]
    assert "not measurable" in Page(html(odd)).plain()


def test_page_has_the_figures_of_every_trigger() -> None:
    text = Page(html(VARIED["verified"])).plain()
    assert "neural cleanse class-3 patch: mask times pattern 3 99.2% 1.4% 0.8% 96.9%" in text
    assert "fresh class-3 patch: mask times pattern 3 98.2% 1.5% 1.8% 96.9% 2.6%" in text
    assert text.index("Found by the scan") < text.index("neural cleanse class-3 patch")
    assert text.index("the repair has not seen them") < text.index("fresh class-3 patch")
    bare = replace(VARIED["verified"], effects=[replace(e, natural=None) for e in VARIED["verified"].effects])
    assert "natural rate" in text.lower() and "natural rate" not in Page(html(bare)).plain().lower()


def test_answers_on_the_same_images() -> None:
    text = Page(html(VARIED["gtsrb"])).plain()
    name, aim = f"4 ({GTSRB[4]})", f"3 ({GTSRB[3]})"
    assert f"An image of {name}" in text
    assert f"suspect ✓ right: {name} ▲ the trigger's target: {aim}" in text
    assert f"repaired ✓ right: {name} 5 ({GTSRB[5]})" in text, "neither right nor the target"
    picture_only = replace(VARIED["gtsrb"], answers=[])
    assert "The same images" not in Page(html(picture_only)).plain()


def test_answers_to_a_trigger_of_every_class_to_the_next() -> None:
    base = VARIED["verified"]
    effect = replace(base.effects[0], trigger=replace(base.effects[0].trigger, target=None))
    answers = [Answers(0, 0, 9, 9, 0, 9, 9), Answers(1, 0, 5, 5, 6, 6)]
    text = Page(html(replace(base, effects=[effect], answers=answers))).plain()
    assert "sends every class to the next" in text
    assert "suspect ✓ right: 9 ▲ the trigger's target: 0" in text
    assert "suspect 5 6 repaired 5 6" in text, "nothing is known of an example without a label"


def test_answers_that_fit_nothing_are_left_out() -> None:
    odd = [Answers(99, 0, 1, 1, 1, 1), Answers(0, 99, 1, 1, 1, 1)]
    assert "The same images" not in Page(html(replace(VARIED["verified"], answers=odd))).plain()


def test_many_triggers_and_many_answers() -> None:
    page = Page(html(VARIED["many triggers"]))
    assert "Show all 60 triggers" in page.plain()
    assert len([i for i in page.all("img") if i.get("class") == "thumb"]) == 60
    page = Page(html(VARIED["more than are drawn"]))
    assert "too many to draw" in page.plain()
    assert not [i for i in page.all("img") if i.get("class") == "thumb"]
    base = make_repaired(triggers=6)
    answers = [replace(a, effect=e) for e in range(6) for a in base.answers[:4] * 3]
    text = Page(html(replace(base, answers=answers))).plain()
    assert text.count("An image of") == repair.MOST_STRIPS * repair.MOST_EXAMPLES


def test_large_pictures_are_made_small() -> None:
    mask = torch.zeros(1, 300, 300)
    trigger = Patch(3, None, mask, torch.zeros(3, 300, 300))
    base = make_repaired()
    page = Page(html(replace(base, effects=[replace(base.effects[0], trigger=trigger)], examples=None)))
    assert [i["width"] for i in page.all("img")] == ["64"]


# ---------------------------------------------------------------------- how it was made


def test_page_says_how_it_was_made() -> None:
    text = Page(html(VARIED["verified"])).plain()
    for part in (
        "Settings of fine tuning rate=0.1, epochs=9", "Seed 0", "SHA-256 before 8d837dc3",
        "SHA-256 after 17ab04ce", "data/digits held out.npz 3,000 samples", "backsweep 0.2.0, torch 2.13.0",
        "Repair, CPU time 21 s", "Checks, wall time 3 min 12 s", "'data/digits held out.npz'",
        "adversarial_pruning It needs BatchNorm, and this network has none.", "Suspected every class to 3",
    ):  # fmt: skip
        assert part in text, part
    assert "<script" not in html(VARIED["verified"])


def test_command_may_be_a_list_of_words() -> None:
    base = VARIED["verified"]
    about = {**base.about, "command": ["backsweep", "repair", "a b.pt"]}
    assert "backsweep repair 'a b.pt'" in Page(html(replace(base, about=about))).plain()


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("scan/report.html", "./scan/report.html"),
        ("../a b/report.html", "./../a%20b/report.html"),
        ("sub\\report.html", "./sub/report.html"),
        ("javascript:alert(1)", "./javascript%3Aalert%281%29"),
        ("https://example.invalid/x", "./https%3A/example.invalid/x"),
        ("a\ud800", "./a%3F"),
        ("//example.invalid/x", None), ("/etc/passwd", None), ("\\\\host\\x", None), ("", None),
    ],
)  # fmt: skip
def test_links_stay_beside_the_page(path: str, address: str | None) -> None:
    base = VARIED["verified"]
    page = Page(html(replace(base, about={**base.about, "reports": {"before": path}})))
    assert [a["href"] for a in page.all("a")] == ([] if address is None else [address])


# ---------------------------------------------------------------------- every page


@pytest.mark.parametrize("name", VARIED)
def test_page_is_valid_and_fetches_nothing(name: str) -> None:
    source = html(VARIED[name])
    source.encode()
    page = Page(source)
    assert {"script", "link", "iframe", "form", "base", "object"}.isdisjoint(t for t, _ in page.tags)
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:;")
    assert all((i["src"] or "").startswith("data:image/png;base64,") for i in page.all("img"))
    assert all(i["alt"] and i["width"] for i in page.all("img"))
    assert not any(k.startswith("on") or k == "style" for _, attributes in page.tags for k in attributes)
    assert "url(" not in source and "@import" not in source
    assert all((a["href"] or "").startswith("./") for a in page.all("a"))
    assert "Undefined" not in page.text and "None was" not in page.text.replace("None was made", "")


def test_hostile_text_stays_text() -> None:
    base = VARIED["hostile"]
    bad = SCRIPT + "\x1b[31m\u202e"
    effects = [replace(e, name=bad) for e in base.effects]
    checks = [*(replace(c, message=bad) for c in make_checks(scan=False)), Check(bad, False, bad)]
    about = {
        key: {bad: bad, "source": bad, "sha256": bad, "samples": bad, "labels": HOSTILE}
        for key in ("model", "data", "settings", "repaired", "versions", "reports")
    }
    for hostile in (
        base,
        replace(
            base, effects=effects, checks=checks, method=bad, skipped=[Note(bad, bad)],
            about={**about, "command": bad}, timings={bad: 1.0},
        ),
        replace(base, about={"model": {"labels": HOSTILE}, "data": bad, "settings": [bad], "command": 7}),
    ):  # fmt: skip
        source = html(hostile)
        assert Page(source).all("script") == []
        assert not any("onerror" in a for _, a in Page(source).tags)
        for c in "\x1b\x07\x00\u202e\u202c\ud800":
            assert c not in source
        assert "a" * 700 not in source
        text = printed(hostile, color_system=None)
        assert not any(c in text for c in "\x1b\x07\x00\u202e\u202c\ud800")


# ---------------------------------------------------------------------- the console


FILES = ("Page", "Repaired n", "  backsweep ")  # lines that are not broken


@pytest.mark.parametrize("width", [40, 80, 140])
@pytest.mark.parametrize("name", VARIED)
def test_console_fits(name: str, width: int) -> None:
    text = printed(VARIED[name], width)
    lines = text.splitlines()
    assert all(cell_len(line) <= width for line in lines if not line.startswith(FILES))
    assert lines[-1] == "Page: out/repair.html"
    assert lines[-2] == "Repaired network: out/repaired.safetensors"


@pytest.mark.parametrize("name", VARIED)
def test_console_at_80_columns_keeps_figures_whole(name: str) -> None:
    text = printed(VARIED[name])
    repaired = VARIED[name]
    for row in repair_words.compared(repaired):
        assert any(
            all(part in line for part in (row.name, row.after, row.change)) for line in text.split("\n")
        )
    for e in repaired.effects[:1] if len(repaired.effects) < 3 else []:
        rates = [view.figure("_rate", r) for r in (e.before, e.after, e.robust_before, e.robust_after)]
        assert re.search(r" +".join(re.escape(r) for r in rates), text)


def test_console_says_how_every_check_went() -> None:
    text = printed(VARIED["failed"])
    assert re.search(r"✗ failed +Fresh triggers", text) and re.search(r"\? not made +Re-tuning", text)
    assert len(re.findall(r"✓ passed", text)) == 3
    assert "REPAIRED, NOT VERIFIED: fresh triggers" in text
    assert "Do not use the repaired network" in text
    assert "52 more on the page." in printed(VARIED["many triggers"])
    assert "Checks" not in printed(VARIED["unchecked"])


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize("name", VARIED)
def test_console_has_characters_that_the_terminal_has(name: str, encoding: str) -> None:
    text = printed(VARIED[name], encoding=encoding)
    if encoding == "ascii" and name == "failed":
        assert re.search(r"\n *failed +Fresh triggers", text)
        assert "?" not in text.replace("? not made", "")


def test_console_in_colour() -> None:
    raw = io.StringIO()
    show_repair(VARIED["failed"], Console(file=raw, width=80, force_terminal=True, color_system="truecolor"))
    assert "\x1b[1;31m" in raw.getvalue()
    assert "Page" not in raw.getvalue()


# ---------------------------------------------------------------------- a browser


@pytest.mark.browser
@pytest.mark.parametrize("name", ["verified", "many classes", "many triggers", "hostile"])
def test_page_in_a_browser(browser: Any, tmp_path: Path, name: str) -> None:
    """It fits a phone and a sheet of paper, all pictures are drawn, and nothing is run or asked for."""
    path = tmp_path / "repair.html"
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
        assert page.evaluate("window.pwned") is None and seen == []
        context.close()
