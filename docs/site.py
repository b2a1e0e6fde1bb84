"""What MkDocs cannot know: pages outside docs/, the reference out of the public names, and the navigation.

A page links to others as they lie in the repository, so that the links hold there too. Here a link to one
of the ROOT pages goes to its place in the site, and what is no page (sources, plans) is named and not linked.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

import backsweep

HOME = Path(__file__).parents[1]
ROOT = {
    "README.md": "index.md", "SECURITY.md": "security.md", "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md",
}  # fmt: skip
INDEX = "contents.md"  # docs/README.md: the first page of the site is that of the repository
LINK = re.compile(r"(!?\[(?:[^\]\[]|\[[^\]]*\])*\])\(([^)\s]+)\)|(src|href)=\"(docs/[^\"]+)\"")
FENCE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.MULTILINE | re.DOTALL)

REFERENCE = {
    "scans": ("Scans", ("scan", "judge", "Report", "Finding", "Evidence")),
    "models": ("Models and samples", ("load", "Model", "Data", "Trigger")),
    "repairs": ("Repairs", ("repair", "Repaired")),
    "audits": ("Audits", ("audit", "Audit")),
    "guards": ("Guards", ("guard", "Guard")),
    "errors": ("Errors", ("BacksweepError", "BadInput")),
}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that do not lie in docs/."""
    for name, place in ROOT.items():
        files.append(File.generated(config, place, abs_src_path=str(HOME / name)))
    readme = next(f for f in files if f.src_uri == "README.md")
    files.remove(readme)
    files.append(File.generated(config, INDEX, abs_src_path=str(HOME / "docs" / "README.md")))
    for page, (title, names) in REFERENCE.items():
        body = "".join(f"\n::: backsweep.{backsweep._HOME[n]}.{n}\n" for n in names)
        files.append(File.generated(config, f"reference/{page}.md", content=f"# {title}\n{body}"))
    return files


def on_config(config: Any) -> Any:
    """Navigation: what a newcomer needs first, then every page of a folder."""
    docs = HOME / "docs"

    def pages(folder: str) -> list[str]:
        return [f"{folder}/{p.name}" for p in sorted((docs / folder).glob("*.md")) if p.name != "README.md"]

    guides = sorted(p.name for p in docs.glob("*.md") if p.name not in ("README.md", "statistics.md"))
    config.nav = [
        {"Start": ["index.md", {"Contents": INDEX}]},
        {"Tutorials": pages("tutorials")},
        {"How to": guides},
        {"Methods": pages("methods")},
        {"Results": ["results/README.md", *pages("results"), "statistics.md"]},
        {"Reference": [f"reference/{p}.md" for p in REFERENCE]},
        {"Project": [*(p for p in ROOT.values() if p != "index.md"), *pages("decisions")]},
    ]
    return config


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Send links where the pages lie in the site."""
    place = page.file.src_uri
    lies = next(
        (n for n, p in ROOT.items() if p == place), "docs/README.md" if place == INDEX else f"docs/{place}"
    )

    def target(link: str) -> str | None:
        """The same link in the site; None: it leads to something that is no page."""
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link) or not path:
            return link
        there = posixpath.normpath(posixpath.join(posixpath.dirname(lies), path))
        if there in ROOT:
            there = f"docs/{ROOT[there]}"
        elif there == "docs/README.md":
            there = f"docs/{INDEX}"
        elif there == "docs/results":
            there = "docs/results/README.md"
        elif there == "docs/decisions":
            there = f"docs/{INDEX}"
        if not there.startswith("docs/"):
            return None
        inside = posixpath.relpath(there, posixpath.dirname(f"docs/{place}"))
        return inside + ("#" + anchor if anchor else "")

    def moved(m: re.Match[str]) -> str:
        if m[3]:
            return f'{m[3]}="{target(m[4]) or m[4]}"'
        there = target(m[2])
        return f"{m[1]}({there})" if there is not None else m[1].lstrip("!")[1:-1]

    parts = FENCE.split(markdown)
    return "".join(p if i % 2 else LINK.sub(moved, p) for i, p in enumerate(parts))
