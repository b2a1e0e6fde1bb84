"""Commands that say what is here: what a method does, and what this machine has."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backsweep import __version__
from backsweep.cli.terminal import console
from backsweep.core.errors import BadInput

if TYPE_CHECKING:
    from backsweep.core.method import Method

Name = Annotated[str, typer.Argument(help="A name that `backsweep list` shows, e.g. cascade.")]
AsJson = Annotated[bool, typer.Option("--json", help="As one JSON document.")]


def explain(method: Name) -> None:
    """What a method does, catches, misses and costs, with what was measured."""
    from rich.markdown import Markdown

    found = _found(method)
    screen = console(stderr=False)
    text = page(found.name) or _from_docstring(found)
    if screen.is_terminal:
        screen.print(Markdown(_without_links(text)))
    else:
        typer.echo(text, nl=False)


def page(name: str) -> str:
    """The page of a method that comes with Backsweep, "" where there is none."""
    file = name.replace("_", "-") + ".md"
    packed = resources.files("backsweep").joinpath("pages").joinpath(file)  # in a wheel
    source = Path(__file__).parents[3] / "docs" / "methods" / file  # in a checkout
    return next((p.read_text(encoding="utf-8") for p in (packed, source) if p.is_file()), "")


def _found(name: str) -> type[Method]:
    """The method of any kind.

    Raises:
        BadInput: there is none.
    """
    import difflib

    from backsweep.core.discovery import discover

    known = {n: cls for kind in kinds().values() for n, cls in discover(kind).items()}
    key = name.strip().lower().replace("-", "_")
    if key not in known:
        near = difflib.get_close_matches(key, known, 1)
        hint = f"did you mean {near[0]}?" if near else "`backsweep list` names them"
        raise BadInput(f"there is no method {name!r}; {hint}")
    return known[key]


def kinds() -> dict[str, type[Method]]:
    """All kinds of methods, by what their lists are called."""
    from backsweep.auditing.detector import SetDetector
    from backsweep.guarding.detector import SampleDetector
    from backsweep.repairing.method import Repair
    from backsweep.scanning.detector import ModelDetector
    from backsweep.zoo.attack import Attack

    return {
        "Detectors of models": ModelDetector, "Detectors of inputs": SampleDetector,
        "Detectors of training sets": SetDetector, "Repairs": Repair, "Attacks": Attack,
    }  # fmt: skip


def _from_docstring(cls: type[Method]) -> str:
    """What a method from outside says of itself."""
    import inspect

    from backsweep.render.view import clean

    said = [clean(line, 400) for line in (inspect.getdoc(cls) or str(cls.summary)).splitlines()]
    rows = [f"- `{clean(k)}` = {clean(v)}" for k, v in cls().settings().items()]
    title = f"# {clean(cls.name)}, {clean(cls.noun)} from {clean(cls.__module__)}"
    return "\n".join([title, "", *said, "", "## Settings", "", *rows]) + "\n"


def _without_links(text: str) -> str:
    """Markdown without targets of links, which lead nowhere in a terminal."""
    return re.sub(r"(?<!!)\[([^\]]+)\]\([^)\s]+\)", r"\1", text)


def doctor(as_json: AsJson = False) -> None:
    """What this machine has: versions, cores, GPUs, extras, folders."""
    found = diagnosis()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for title, rows in found.items():
        typer.echo(f"{title}:")
        for key, value in rows.items():
            typer.echo(f"  {key:<22} {value}")


def diagnosis() -> dict[str, dict[str, Any]]:
    """The same as data."""
    import torch

    from backsweep.core.files import home

    here = home()
    standing = next(p for p in [here, *here.parents] if p.exists())
    threads = os.environ.get("OMP_NUM_THREADS")
    gpus: dict[str, Any] = {}
    for i in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(i)
        gpus[f"cuda:{i}"] = f"{about.name}, {about.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        gpus["mps"] = "Apple GPU"
    return {
        "versions": {
            "backsweep": __version__, "python": platform.python_version(), "torch": torch.__version__,
            **{n: _version(n) for n in ("numpy", "scipy", "scikit-learn", "safetensors")},
            "system": platform.platform(),
        },
        "machine": {
            "cores": _cores(), "torch threads": torch.get_num_threads(),
            **({"OMP_NUM_THREADS": threads} if threads else {}),
            **_memory(), **(gpus or {"GPU": "none that torch can use"}),
        },
        "extras": {name: _extra(needs) for name, needs in extras().items()},
        "folders": {
            "cache": str(here), "can be written": os.access(standing, os.W_OK),
            "free": f"{shutil.disk_usage(standing).free / 2**30:.1f} GiB",
            "zoo": f"{sum(1 for _ in (here / 'zoo').glob('*/manifest.json'))} networks",
            "store": str(here / "store.db") if (here / "store.db").is_file() else "none yet",
        },
    }  # fmt: skip


def extras() -> dict[str, list[str]]:
    """The packages of every extra that users need, as the installed package names them."""
    found: dict[str, list[str]] = {}
    for line in metadata.requires("backsweep") or []:
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        name = re.match(r"[\w.-]+", line)
        if extra and name and extra[1] not in ("dev", "docs"):
            found.setdefault(extra[1], []).append(name[0])
    return found


def _extra(needs: list[str]) -> str:
    there = {n: _version(n) for n in needs}
    missing = [n for n, v in there.items() if v == MISSING]
    if missing:
        return f"not installed: {', '.join(missing)}"
    return ", ".join(f"{n} {v}" for n, v in there.items())


MISSING = "not installed"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return MISSING


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> dict[str, str]:
    if sys.platform == "win32" or "SC_PHYS_PAGES" not in os.sysconf_names:
        return {}
    return {"memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"}
