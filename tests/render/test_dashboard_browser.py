"""The dashboard in a real browser: it is used as people use it, fits a phone, runs nothing.

$BACKSWEEP_SCREENSHOTS names a folder that keeps the screenshots.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from test_dashboard import TOKEN, records

from backsweep.guarding.service import listen, server
from backsweep.inventory.running import Logbook
from backsweep.inventory.store import Store
from backsweep.render.dashboard import lists
from backsweep.render.dashboard.app import application
from browsers import VIEWS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")


def stored(folder: Path) -> Iterator[Store]:
    """A store with verdicts, and a sweep that runs."""
    with Store(str(folder / "store.db")) as found:
        for record in records():
            found.put(record)
        book = Logbook(found, {}, 9)
        book.tell(4, 1, ["nets/a.pt"], ["<b>nets</b>/b.pt"], soon=True)
        yield found
        book.end(4, 1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    yield from stored(tmp_path_factory.mktemp("dashboard"))


def serve(store: Store, token: str | None = None) -> Iterator[str]:
    """The address of a dashboard."""
    with listen("127.0.0.1", 0) as listening:
        service = server(application(store, token))
        thread = threading.Thread(target=service.run, args=([listening],))
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        service.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def address(store: Store) -> Iterator[str]:
    yield from serve(store)


def watch(page: Page, own: str) -> list[str]:
    """Everything that the dashboard must not cause."""
    seen: list[str] = []

    def request(url: str) -> None:
        if not url.startswith((own, "data:")):
            seen.append(f"request {url}")

    def dialog(d: Any) -> None:
        seen.append(f"dialog {d.message}")
        d.dismiss()

    page.on("request", lambda r: request(r.url))
    page.on("console", lambda m: seen.append(f"console {m.type}: {m.text}"))
    page.on("pageerror", lambda e: seen.append(f"error {e}"))
    page.on("dialog", dialog)
    return seen


@pytest.mark.parametrize("view", VIEWS)
def test_pages_look_right_and_fit(
    browser: Browser,
    address: str,
    store: Store,
    tmp_path: Path,
    view: str,
) -> None:
    kept = Path(os.environ.get("BACKSWEEP_SCREENSHOTS") or tmp_path)
    (tmp_path / "history.html").write_text(lists.written(records()), encoding="utf-8")
    context = browser.new_context(**VIEWS[view])
    page = context.new_page()
    if view == "print":
        page.emulate_media(media="print")
    seen = watch(page, address)
    pages = {
        "models": "/", "model": "/models/" + "a" * 64, "compare": "/compare?id=1&id=5", "sweeps": "/sweeps",
        "message": "/nowhere", "report": "/reports/2",
    }  # fmt: skip
    for name, path in pages.items():
        page.goto(address + path)
        page.screenshot(path=str(kept / f"dashboard-{name}-{view}.png"), full_page=True)
        width = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert width[0] <= width[1], f"{name} scrolls sideways: {width}"
        assert page.locator("h1").count() == 1
        unnamed = page.evaluate(
            "[...document.querySelectorAll('input:not([type=hidden]), select')]"
            ".filter(i => !i.labels.length && !i.ariaLabel).length"
        )
        assert unnamed == 0
    assert [s for s in seen if "404" not in s] == []
    page.goto((tmp_path / "history.html").as_uri())
    page.screenshot(path=str(kept / f"history-{view}.png"), full_page=True)
    context.close()


def test_a_person_filters_compares_and_downloads(browser: Browser, address: str) -> None:
    context = browser.new_context(**VIEWS["desktop"])
    page = context.new_page()
    page.goto(address)
    page.get_by_role("link", name="evidence found 1").click()
    assert page.locator("tbody tr").count() == 1
    page.get_by_role("link", name="nets/a.pt").first.click()
    boxes = page.locator("tbody input[type=checkbox]")
    assert boxes.count() == 3
    boxes.nth(0).check()
    boxes.nth(2).check()
    page.get_by_role("button", name="Compare").click()
    assert page.get_by_role("heading", name="Two verdicts on one model").is_visible()
    page.get_by_role("link", name="Models").click()
    page.get_by_label("Name or SHA-256").fill("b_100%")
    page.get_by_role("button", name="Show").click()
    assert page.locator("tbody tr").count() == 1
    page.get_by_role("link", name="Report on").click()
    with page.expect_download() as started:
        page.get_by_role("link", name="SARIF").click()
    assert started.value.suggested_filename == "b" * 12 + "-report.sarif"
    context.close()


def test_a_person_enters_with_the_token(browser: Browser, store: Store) -> None:
    serving = serve(store, TOKEN)
    own = next(serving)
    context = browser.new_context(**VIEWS["desktop"])
    page = context.new_page()
    page.goto(own + "/sweeps")
    page.get_by_label("Token").fill("nothing")
    page.get_by_role("button", name="Enter").click()
    assert page.get_by_role("alert").inner_text() == "This is not the token."
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Enter").click()
    assert page.get_by_role("heading", name="Models").is_visible()
    page.goto(own + "/sweeps")
    assert page.get_by_text("4 of 9").is_visible()
    context.close()
    assert next(serving, None) is None
