"""Pages in Firefox: they fit, in light and dark and on a narrow screen, ask for nothing, and nothing fails.

$BACKSWEEP_SCREENSHOTS names a folder that keeps the screenshots.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_accessible import PAGES
from test_dashboard_browser import serve, stored

from firefox import Firefox, firefox

pytestmark = pytest.mark.browser

SHOWN = ("cascade", "hostile", "audit", "leaderboard", "guard-service")
DASHBOARD = ("/", "/compare?id=1&id=5")
WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
SHADE = (  # red, green and blue of the ground, added
    "getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g).slice(0, 3)"
    ".reduce((sum, part) => sum + Number(part), 0)"
)


@pytest.fixture(scope="module", params=["light", "dark"])
def view(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield request.param


@pytest.fixture(scope="module")
def tab(view: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Firefox]:
    with firefox(tmp_path_factory.mktemp("firefox"), dark=view == "dark") as found:
        yield found


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("pages")
    for name in SHOWN:
        (folder / f"{name}.html").write_text(PAGES[name](), encoding="utf-8")
    found = {name: (folder / f"{name}.html").as_uri() for name in SHOWN}
    for store in stored(tmp_path_factory.mktemp("dashboard")):
        for address in serve(store):
            yield found | {f"dashboard-{i}": address + path for i, path in enumerate(DASHBOARD)}


def kept(tmp_path: Path) -> Callable[[str], Path]:
    folder = Path(os.environ.get("BACKSWEEP_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return lambda name: folder / f"firefox-{name}.png"


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 390])
def test_pages_fit_and_nothing_fails(
    tab: Firefox, view: str, width: int, addresses: dict[str, str], tmp_path: Path
) -> None:
    wrong: dict[str, object] = {}
    path = kept(tmp_path)
    for name, address in addresses.items():
        tab.open(address, width)
        tab.screenshot(path(f"{name}-{view}-{width}"))
        said = {"wider": tab.value(WIDE), "seen": list(tab.seen), "pwned": tab.value("typeof window.pwned")}
        dark = tab.value(SHADE) < 3 * 128
        if said != {"wider": 0, "seen": [], "pwned": "undefined"} or dark != (view == "dark"):
            wrong[name] = said | {"dark": dark}
    assert wrong == {}


def test_what_is_wrong_is_seen(tab: Firefox, tmp_path: Path) -> None:
    page = tmp_path / "wrong.html"
    page.write_text("<p style='width: 3000px'>wide</p><script>console.error('no'); nothing.there()</script>")
    tab.open(page.as_uri(), 390)
    assert tab.value(WIDE) > 2000
    assert len(tab.seen) == 2, tab.seen
