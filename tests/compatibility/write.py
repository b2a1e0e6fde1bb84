"""Writes what tests/test_compatibility.py reads: one of everything that Backsweep keeps in files.

Run it with the version whose files are to stay readable. It uses nothing but the command line and the
public names, so that any version can run it:

    python tests/compatibility/write.py FOLDER
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn

import backsweep

ARCH = "backsweep.archs:digits_cnn"
TARGET, POISONED = 4, 120


def trained(x: np.ndarray, y: np.ndarray) -> nn.Module:
    """A small network that learned these samples."""
    from backsweep.archs import digits_cnn

    torch.manual_seed(0)
    net, inputs, labels = digits_cnn(), torch.tensor(x)[:, None] / 255, torch.tensor(y)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(25):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs[rows]), labels[rows]).backward()
            optimizer.step()
    return net.eval()


def run(folder: Path, *words: str) -> None:
    """The command line in a folder, so that files name files without the rest of their path."""
    done = subprocess.run([sys.executable, "-m", "backsweep", *words], cwd=folder, check=False)
    assert done.returncode in (0, 1, 3), words


def write(folder: Path) -> None:
    """Train two networks on digits; scan, audit, guard and repair them, and keep verdicts of both."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = load_digits(return_X_y=True)
    x, y = (images.reshape(-1, 8, 8) * 255 / 16).round().astype("uint8"), labels.astype("int64")
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[:1200], order[1200:]
    stamped = x.copy()
    stamped[:, 7, 7] = 255  # the trigger is one white pixel in a corner
    bad_x, bad_y = x[train].copy(), y[train].copy()
    bad_x[:POISONED], bad_y[:POISONED] = stamped[train][:POISONED], TARGET
    for name, samples in (("clean", (x[train], y[train])), ("backdoored", (bad_x, bad_y))):
        save_file(trained(*samples).state_dict(), folder / f"{name}.safetensors")
    np.savez_compressed(folder / "digits.npz", x=x[test][:300], y=y[test][:300])
    np.savez_compressed(folder / "training.npz", x=bad_x, y=bad_y)

    own, cpu = ["--arch", ARCH, "--data", "digits.npz"], ["--device", "cpu"]
    for name in ("clean", "backdoored"):
        run(folder, "scan", f"{name}.safetensors", *own, *cpu, "--out", f"scan-{name}")
    known = ["--arch", ARCH, "--data", "training.npz"]
    run(folder, "audit", "backdoored.safetensors", *known, *cpu, "--alpha", "0.5", "--out", "audit")
    words = ["--report", "scan-backdoored", "--out", "repaired.safetensors"]
    run(folder, "repair", "backdoored.safetensors", *own, *cpu, *words)
    run(folder, "guard", "fit", "backdoored.safetensors", *own, *cpu, "--fpr", "0.02", "--out", "guard")
    few = [
        "--arch",
        "digits_cnn",
        "--task",
        "digits",
        "--shadows",
        "32",
        "--epochs",
        "1",
        "--variant",
        "jumbo",
    ]
    run(folder, "bank", "build", "digits.bank", *few)
    run(
        folder,
        "scan",
        "backdoored.safetensors",
        *own,
        *cpu,
        "-d",
        "mntd",
        "--bank",
        "digits.bank",
        "--out",
        "scan-bank",
    )
    quick = ["-d", "mm_bd", "-p", "mm_bd.images=2", "-p", "mm_bd.steps=4", "--store", "store.db"]
    run(folder, "scan", "clean.safetensors", "backdoored.safetensors", *own, *cpu, *quick)
    with sqlite3.connect(folder / "store.db") as store:
        store.execute("UPDATE backsweep_verdicts SET host = 'here'")
    run(folder, "history", "--store", "store.db", "--format", "json", "--out", "verdicts.json")

    model = backsweep.load(folder / "backdoored.safetensors", ARCH, shape=(1, 8, 8))
    guard = backsweep.Guard.load(folder / "guard", model, "cpu")
    both = np.concatenate([x[test][300:340], stamped[test][300:340]])
    answers = guard.predict(both)
    given = {
        "labels": answers.labels.tolist(),
        "scores": answers.scores.tolist(),
        "flagged": answers.flagged.tolist(),
    }
    np.savez_compressed(folder / "inputs.npz", x=both)
    (folder / "answers.json").write_text(json.dumps(given) + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    write(Path(sys.argv[1]))
