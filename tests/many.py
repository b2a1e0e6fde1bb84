"""Many small models of the digits, and records of verdicts without a scan."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import backsweep
from backsweep.core.files import write_text
from backsweep.core.seeds import run_key
from backsweep.inventory.store import Record
from backsweep.inventory.sweep import Scan
from backsweep.scanning.detectors.mm_bd import MmBd
from backsweep.zoo.tasks import TASKS
from reporting import make_report

SOURCE = Path(backsweep.__file__).parents[1]
QUICK = ("-d", "mm_bd", "-p", "mm_bd.images=2", "-p", "mm_bd.steps=4")

# the command line; a parent in the background may have had its interrupts ignored, and hands that on
BACKSWEEP = [
    sys.executable, "-c",
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from backsweep.cli.app import main; main()",
]  # fmt: skip


def linear() -> nn.Module:
    """The smallest network there is for the digits."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


@cache
def _trained() -> dict[str, Tensor]:
    train, _ = TASKS["digits"].load()
    torch.manual_seed(0)
    net = linear()
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(train.x), train.y).backward()
        optimizer.step()
    return net.state_dict()


def make_models(folder: Path, count: int) -> list[Path]:
    """Good linear networks, all of them different."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(1)
    paths = [folder / f"{i:04}.safetensors" for i in range(count)]
    for path in paths:
        noise = {k: 0.02 * torch.randn(v.shape, generator=generator) for k, v in _trained().items()}
        save_file({k: v + noise[k] for k, v in _trained().items()}, path)
    return paths


def make_data(folder: Path, count: int = 60) -> Path:
    """Clean digits in a file."""
    _, test = TASKS["digits"].load()
    path = folder / "digits.npz"
    np.savez(path, x=(test.x[:count, 0].numpy() * 255).astype("uint8"), y=test.y[:count].numpy())
    return path


def quick_scan(data: Path, **settings: Any) -> Scan:
    """A scan of a linear network that takes a few hundredths of a second."""
    how = {"arch": linear, **settings.pop("how", {})}
    return Scan(str(data), [MmBd(images=2, steps=4)], device="cpu", how=how, **settings)


def make_record(
    model: str = "a" * 64, bad: tuple[int, ...] = (), source: str = "nets/a.pt", **more: Any
) -> Record:
    """A record of a report that was made without a scan."""
    report = make_report(bad=bad, triggers=False)
    report.model |= {"sha256": model, "source": source, "sha256_of": "file", "layout": "0" * 16}
    settings = {"detectors": report.settings["detectors"], "alpha": 0.05, **more.pop("settings", {})}
    return replace(Record.of(report.to_json(), run_key(**settings), settings, source), **more)


def command(folder: Path, *words: object) -> subprocess.Popen[str]:
    """The command line as a process of its own, with `tiny:net` as an architecture."""
    write_text(folder / "tiny.py", "from many import linear as net\n")
    environment = {
        **os.environ, "PYTHONPATH": f"{SOURCE}{os.pathsep}{Path(__file__).parent}", "OMP_NUM_THREADS": "1",
        "COLUMNS": "160",
    }  # fmt: skip
    return subprocess.Popen(
        [*BACKSWEEP, *map(str, words)], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
