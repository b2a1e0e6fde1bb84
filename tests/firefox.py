"""Firefox for tests of pages, spoken to in WebDriver BiDi, which needs no driver beside it (W3C, 2025)."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("firefox", "firefox-esr")
DARK = "layout.css.prefers-color-scheme.content-override"  # 0 dark, 1 light
PREFERENCES: dict[str, Any] = {
    "app.update.disabledForTesting": True, "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False, "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False, "remote.active-protocols": 1,
    "services.settings.server": "data:,#remote-settings-dummy/v1",
    "toolkit.telemetry.reportingpolicy.firstRun": False,
}  # fmt: skip
WAIT = 120.0  # seconds for it to start, or to answer


class Firefox:
    """One tab.

    Attributes:
        seen: requests to elsewhere, errors and messages of the console, since `open`.
    """

    def __init__(self, socket: Any) -> None:
        self._socket, self._number = socket, 0
        self._own = ""
        self.seen: list[str] = []
        self.send("session.new", capabilities={})
        self.send("session.subscribe", events=["log.entryAdded", "network.beforeRequestSent"])
        self._tab = self.send("browsingContext.create", type="tab")["context"]

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            said = json.loads(self._socket.recv())
            if said.get("type") == "event":
                self._event(said["method"], said["params"])
            elif said.get("id") == self._number:
                assert said["type"] == "success", said
                return dict(said["result"])

    def _event(self, method: str, said: dict[str, Any]) -> None:
        if method == "log.entryAdded":
            self.seen.append(f"console {said['level']}: {said['text']}")
        elif not said["request"]["url"].startswith((self._own, "data:", "about:", "chrome:", "resource:")):
            self.seen.append(f"request {said['request']['url'][:80]}")

    def open(self, address: str, width: int, height: int = 900) -> None:
        """Show a page in a window of this size (in CSS pixels)."""
        self._own = address if address.startswith("file:") else "/".join(address.split("/")[:3])
        self.seen.clear()
        self.send(
            "browsingContext.setViewport", context=self._tab, viewport={"width": width, "height": height}
        )
        self.send("browsingContext.navigate", context=self._tab, url=address, wait="complete")

    def value(self, expression: str) -> Any:
        """What a script in the page comes to: a number, a text or a truth."""
        said = self.send(
            "script.evaluate", expression=expression, target={"context": self._tab}, awaitPromise=True
        )
        assert said["type"] == "success", said
        return said["result"].get("value")

    def screenshot(self, path: Path) -> None:
        said = self.send("browsingContext.captureScreenshot", context=self._tab, origin="document")
        path.write_bytes(base64.b64decode(said["data"]))


@contextmanager
def firefox(folder: Path, dark: bool = False) -> Iterator[Firefox]:
    """Firefox without a window, with a profile of its own in `folder`; skips the test where there is none."""
    websocket = pytest.importorskip("websocket", reason="websocket-client is not installed")
    program = next((p for name in PROGRAMS if (p := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"none of {', '.join(PROGRAMS)} is installed")
    profile = folder / f"profile-{'dark' if dark else 'light'}"
    profile.mkdir()
    lines = (f'user_pref("{k}", {json.dumps(v)});' for k, v in (PREFERENCES | {DARK: int(not dark)}).items())
    (profile / "user.js").write_text("\n".join(lines) + "\n")
    log = profile / "firefox.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [program, "--headless", "--no-remote", "--profile", str(profile), "--remote-debugging-port", "0"],
            stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        end = time.monotonic() + WAIT
        while not (found := re.search(r"WebDriver BiDi listening on (ws://\S+)", log.read_text())):
            if process.poll() is not None or time.monotonic() > end:
                pytest.skip(f"Firefox does not start here: {log.read_text()[-300:]}")
            time.sleep(0.1)
        socket = websocket.create_connection(f"{found[1]}/session", timeout=WAIT, suppress_origin=True)
        yield Firefox(socket)
        socket.close()
    finally:
        process.terminate()
        process.wait(30)
