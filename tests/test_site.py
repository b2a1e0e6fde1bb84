"""The documentation builds as a site without a warning: links, anchors, what docstrings say of arguments."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_asks_nobody_else(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pages = {p.relative_to(tmp_path / "site").as_posix(): p for p in (tmp_path / "site").rglob("*.html")}
    assert {"index.html", "security/index.html", "tutorials/training-set/index.html"} <= set(pages)
    assert len([p for p in pages if p.startswith("methods/")]) == len(
        list((ROOT / "docs/methods").glob("*.md"))
    )
    scans = pages["reference/scans/index.html"].read_text(encoding="utf-8")
    assert "inconclusive" in scans and "backsweep.scanning.scan.scan" in scans
    for path in pages.values():
        fetched = re.findall(
            r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', path.read_text("utf-8")
        )
        assert [f for f in fetched if "canonical" not in f] == []
