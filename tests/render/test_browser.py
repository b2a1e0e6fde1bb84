"""The report in a real browser: it looks right, asks for nothing, runs nothing, and fits a phone.

$BACKSWEEP_SCREENSHOTS names a folder that keeps the screenshots.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from backsweep.render.boards import leaderboard
from backsweep.render.pages.scan import html
from backsweep.reports.report import Note, Report
from browsers import VIEWS
from reporting import GTSRB, make_cascade_report, make_line, make_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

HOSTILE = (
    "<script>window.pwned=1;alert(1)</script>", '"><img src=x onerror="window.pwned=2">', "a" * 5000,
    "\u202eesrever\u202c", "\u05e2\u05e6\u05d5\u05e8", "<svg onload=window.pwned=3>",
    "</style><style>*{display:none}", "<base href=https://example.invalid/>",
    "<a href=javascript:alert(1)>stop</a>", "</title>",
)  # fmt: skip
REPORTS: dict[str, Callable[[], Report]] = {
    "backdoored": lambda: make_report(10, labels=GTSRB),
    "many": lambda: make_report(43, bad=(3, 7)),
    "thousand": lambda: make_report(1000, bad=(3, 501, 990), shape=(3, 16, 16)),
    "clean": lambda: make_report(
        10, bad=(), shape=(1, 28, 28), skipped=[Note("spectral", "needs the training data")]
    ),
    "two": lambda: make_report(2, bad=(1,), labels=("cat", "dog"), shape=(3, 64, 64)),
    "failed": lambda: make_report(
        10, bad=(), unreached=(4,), errors=[Note("clean accuracy", "the model is at chance; check mean, std")]
    ),
    "nothing": lambda: Report(skipped=[Note("neural_cleanse", "needs images")]),
    "cascade": lambda: make_cascade_report(10, bad=(3,), pairs=((1, 6),)),
    "shortcuts": lambda: make_cascade_report(43, bad=(), natural=(3, 20), works_there=0.9),
    "hostile": lambda: make_report(12, bad=(0, 2, 4), labels=HOSTILE, errors=[Note(HOSTILE[0], HOSTILE[2])]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kept = os.environ.get("BACKSWEEP_SCREENSHOTS")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in REPORTS.items():
        (folder / f"{name}.html").write_text(html(make()), encoding="utf-8")
    (folder / "leaderboard.html").write_text(leaderboard.page(board_lines()), encoding="utf-8")
    return folder


def board_lines() -> list[dict[str, Any]]:
    """Attacked and clean nets of two tasks, some with hostile names."""
    lines = [make_line(task, None, s, 0.9 / (s - 9)) for task in ("mnist", "gtsrb") for s in range(10, 25)]
    for i, text in enumerate(HOSTILE):
        lines.append(make_line("mnist", text, 10 + i, 10.0 ** -(i / 2), net=text, reason=text))
    return lines + [make_line("gtsrb", "badnets", s, 0.001, options={"rate": s / 100}) for s in range(10, 20)]


def watch(page: Page) -> list[str]:
    """Everything that a report must not cause."""
    seen: list[str] = []

    def request(url: str) -> None:
        if not url.startswith(("file:", "data:")):
            seen.append(f"request {url[:80]}")

    page.on("request", lambda r: request(r.url))
    page.on("console", lambda m: seen.append(f"console {m.type}: {m.text}"))
    page.on("pageerror", lambda e: seen.append(f"error {e}"))
    page.on("popup", lambda p: seen.append(f"popup {p.url}"))

    def dialog(d: Any) -> None:
        seen.append(f"dialog {d.message}")
        d.dismiss()

    page.on("dialog", dialog)
    return seen


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", [*REPORTS, "leaderboard"])
def test_report_in_a_browser(browser: Browser, folder: Path, name: str, view: str) -> None:
    context = browser.new_context(**VIEWS[view])
    page = context.new_page()
    seen = watch(page)
    if view == "print":
        page.emulate_media(media="print")
    page.goto((folder / f"{name}.html").as_uri())
    for fold in page.locator("summary").all() if name != "thousand" else []:
        fold.click()
    page.screenshot(path=str(folder / f"{name}-{view}.png"), full_page=True)
    assert page.evaluate("window.pwned") is None
    assert page.locator("h1").is_visible()
    width = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert width[0] <= width[1], f"scrolls sideways: {width}"
    broken = page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).length")
    assert broken == 0
    assert seen == []
    context.close()


def test_page_forbids_scripts_that_get_in_all_the_same(browser: Browser, folder: Path) -> None:
    """The second wall: were escaping to fail, the policy of the page still stops scripts and requests."""
    source = (folder / "two.html").read_text(encoding="utf-8")
    attack = "<script>window.pwned=1</script><img src=https://example.invalid/a.png onerror='window.pwned=2'>"
    (folder / "breached.html").write_text(source.replace("<main", attack + "<main"), encoding="utf-8")
    context = browser.new_context()
    page = context.new_page()
    stopped: list[tuple[str, str | None]] = []
    page.on("requestfailed", lambda r: stopped.append((r.url, r.failure)))
    page.goto((folder / "breached.html").as_uri())
    assert page.evaluate("window.pwned") is None
    assert stopped == [("https://example.invalid/a.png", "csp")]
    context.close()


def test_colours_follow_the_system(browser: Browser, folder: Path) -> None:
    shades = []
    for view in ("desktop", "dark"):
        context = browser.new_context(**VIEWS[view])
        page = context.new_page()
        page.goto((folder / "backdoored.html").as_uri())
        shades.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        context.close()
    assert shades[0] == "rgb(255, 255, 255)" and shades[1] != shades[0]


def test_pictures_are_crisp_and_enlarged_by_whole_steps(browser: Browser, folder: Path) -> None:
    context = browser.new_context(**VIEWS["desktop"])
    page = context.new_page()
    page.goto((folder / "backdoored.html").as_uri())
    shown = page.evaluate(
        "[...document.querySelectorAll('.card img')].map("
        "i => [i.clientWidth, i.naturalWidth, getComputedStyle(i).imageRendering])"
    )
    assert len(shown) == 10
    assert all(wide == 160 and natural == 32 and way == "pixelated" for wide, natural, way in shown)
    context.close()


def test_a_long_leaderboard_is_filtered_and_sorted(browser: Browser, folder: Path) -> None:
    context = browser.new_context(**VIEWS["desktop"])
    page = context.new_page()
    seen = watch(page)
    page.goto((folder / "leaderboard.html").as_uri())
    page.get_by_label("Show rows with").fill("overall")
    shown = page.locator("main tbody tr:visible").count()
    assert page.get_by_role("status").inner_text().startswith(f"{shown} of ") and shown > 0
    page.get_by_label("Show rows with").fill("")
    table = page.locator("main table", has=page.locator("thead button", has_text="AUROC")).last
    rates = "t => [...t.tBodies[0].rows].map(r => parseFloat(r.cells[3].textContent)).filter(n => !isNaN(n))"
    for order in (False, True):
        table.get_by_role("button", name="AUROC").click()
        found = table.evaluate(rates)
        assert found == sorted(found, reverse=order) and len(found) > 1
    assert page.locator("nav a").count() == page.locator("main section").count()
    assert seen == []
    context.close()


@pytest.mark.parametrize("name", ["backdoored", "cascade", "hostile"])
def test_headings_are_unique_and_contents_lead_to_them(browser: Browser, folder: Path, name: str) -> None:
    context = browser.new_context(**VIEWS["desktop"])
    page = context.new_page()
    page.goto((folder / f"{name}.html").as_uri())
    heads = page.locator("h2").all_inner_texts()
    assert len(set(heads)) == len(heads)
    aims = page.locator("nav a").evaluate_all("links => links.map(a => a.getAttribute('href'))")
    assert [page.locator(f"main section{aim} > h2").count() for aim in aims] == [1] * len(heads)
    assert page.locator("header figure.top img").count() == 2
    context.close()
