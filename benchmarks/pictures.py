"""Makes the pictures of the README and the docs anew: `python benchmarks/pictures.py --out docs/images`.

The recording of the demo's terminal (demo.svg), its page (report.png), and an example notebook as Jupyter
shows it (notebook.png; left out where nbconvert and ipykernel are not installed). Look at them before you
commit them.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, sync_playwright
from rich.console import Console

from backsweep.cli.demos.digits import run

NOTEBOOKS = Path(__file__).parents[1] / "examples" / "notebooks"
WIDTH = 112  # characters of the terminal


class Screen(Console):
    """A terminal that folds what is too long, as one does that people look at."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*objects, **{**options, "soft_wrap": False})


def recording(folder: Path, out: Path) -> None:
    """The demo's terminal as an SVG, with what every cell repeats said once."""
    screen = Screen(
        record=True, width=WIDTH, force_terminal=True, color_system="truecolor", file=io.StringIO()
    )
    screen.print("[bold]$ backsweep demo --out demo[/bold]", highlight=False)
    here = Path.cwd()
    os.chdir(folder)  # paths are said as a user sees them
    try:
        run(screen, Path("demo"), 0, lambda event: None)
    finally:
        os.chdir(here)
    text = screen.export_svg(title="backsweep", unique_id="t")
    text = text.replace(' shape-rendering="crispEdges"', "").replace(
        "<svg ", '<svg shape-rendering="crispEdges" ', 1
    )
    text = re.sub(r'(\d+\.\d)\d+"', r'\1"', text)  # tenths of a pixel
    text = re.sub(r"@font-face \{.*?\}\s*", "", text, flags=re.DOTALL)  # nothing is fetched
    out.write_text(re.sub(r">\s+<", "><", text), encoding="utf-8")


def shot(browser: Browser, page_file: Path, out: Path, width: int, height: int) -> None:
    """The top of a page as a small PNG."""
    page: Any = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=1)
    page.goto(page_file.as_uri())
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    image.quantize(128).save(out, optimize=True)
    page.close()


def notebook(folder: Path, name: str) -> Path | None:
    """An example notebook after a run, as a page."""
    command = [
        sys.executable, "-m", "nbconvert", "--to", "html", "--execute", "--output-dir", str(folder),
        str(NOTEBOOKS / f"{name}.ipynb"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        print(f"no notebook: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    return folder / f"{name}.html"


def main() -> None:
    """Make them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    out = parser.parse_args().out.resolve()
    program = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        folder = Path(place)
        recording(folder, out / "demo.svg")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        shot(browser, folder / "demo" / "backdoored" / "report.html", out / "report.png", 1000, 1500)
        shown = notebook(folder, "find-and-repair")
        if shown is not None:
            shot(browser, shown, out / "notebook.png", 1000, 1150)
        browser.close()


if __name__ == "__main__":
    main()
