"""Every page passes axe: names, roles, contrast in light and dark, on a phone as on a desk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from test_browser import REPORTS, board_lines
from test_dashboard import records
from test_dashboard_browser import serve, stored
from test_render_repair import make_repaired

from backsweep.guarding.front import PAGE
from backsweep.render.boards import leaderboard
from backsweep.render.dashboard import lists
from backsweep.render.pages import audit, repair, scan
from browsers import VIEWS
from reporting import make_audit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

RESULTS = Path(__file__).parents[2] / "docs" / "results"
SHOWN = ("backdoored", "clean", "failed", "nothing", "cascade", "shortcuts", "hostile")
SCREENS = [name for name in VIEWS if name != "print"]


def board(name: str) -> str:
    lines = (RESULTS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return leaderboard.page([json.loads(line) for line in lines])


PAGES: dict[str, Callable[[], str]] = {
    **{name: lambda make=make: scan.html(make()) for name, make in REPORTS.items() if name in SHOWN},  # type: ignore[misc]
    "audit": lambda: audit.html(make_audit()),
    "repair": lambda: repair.html(make_repaired()),
    "leaderboard": lambda: leaderboard.page(board_lines()),
    "leaderboard-guards": lambda: board("guards"),
    "history": lambda: lists.written(records()),
    "guard-service": PAGE.decode,
}
DASHBOARD = (
    "/",
    "/?text=nothing",
    "/models/" + "a" * 64,
    "/compare?id=1&id=5",
    "/sweeps",
    "/nowhere",
    "/reports/2",
)


def troubles(page: Page) -> list[str]:
    """What axe finds, one line each."""
    found = axe.Axe().run(page).response["violations"]
    return [f"{v['id']}: {v['nodes'][0]['html'][:200]} ({len(v['nodes'])})" for v in found]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    for name, make in PAGES.items():
        (folder / f"{name}.html").write_text(make(), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    for store in stored(tmp_path_factory.mktemp("dashboard")):
        yield from serve(store)


def found(browser: Browser, view: str, pages: Iterable[str]) -> dict[str, list[str]]:
    """What axe finds on pages, with all that is folded open; those without are left out."""
    seen = {}
    with browser.new_context(**VIEWS[view], bypass_csp=True) as context:
        page = context.new_page()
        for address in pages:
            page.goto(address)
            for fold in page.locator("summary").all():
                fold.click()
            seen[address] = troubles(page)
    return {address: t for address, t in seen.items() if t}


@pytest.mark.slow
@pytest.mark.parametrize("view", SCREENS)
def test_axe_finds_nothing_on_a_page(browser: Browser, folder: Path, view: str) -> None:
    assert found(browser, view, [(folder / f"{name}.html").as_uri() for name in PAGES]) == {}


@pytest.mark.parametrize("view", SCREENS)
def test_axe_finds_nothing_in_the_dashboard(browser: Browser, address: str, view: str) -> None:
    assert found(browser, view, [address + path for path in DASHBOARD]) == {}


def test_axe_sees_what_is_wrong(browser: Browser) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.set_content("<html><body><img src='data:,'><button></button></body></html>")
        assert {t.split(":")[0] for t in troubles(page)} >= {"image-alt", "button-name", "html-has-lang"}
