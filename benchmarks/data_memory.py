"""Peak memory of a scan with many large images.

    python benchmarks/data_memory.py [--images 20000] [--side 224] [--kind folder|npz|tar] [--default]

Made-up JPEG images of three classes are written to a folder (or as bytes to an .npz file, or to a tar shard)
and a small network is scanned with them: the pass that measures accuracy, and Neural Cleanse with two updates
a class, or the default detector.
The images are made in a process of their own; what is measured is the peak of the resident memory here.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import resource
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = 3  # an image is of the colour that is strongest in it


def picture(i: int, side: int) -> np.ndarray:
    """Image number i: the colour of its class, and noise in blocks, as JPEG likes it."""
    rng = np.random.default_rng(i)
    coarse = rng.integers(0, 60, (side // 8, side // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    coarse[..., i % CLASSES] += np.uint8(100)
    return coarse


def write(where: Path, kind: str, count: int, side: int) -> None:
    """Make the images. Runs in a process of its own."""
    if kind == "npz":
        x = np.lib.format.open_memmap(where.with_suffix(".x.npy"), "w+", np.uint8, (count, side, side, 3))
        for i in range(count):
            x[i] = picture(i, side)
        np.savez(where, x=x, y=np.arange(count) % CLASSES)
        where.with_suffix(".x.npy").unlink()
        return
    shard = tarfile.open(where, "w") if kind == "tar" else None  # noqa: SIM115
    for i in range(count):
        buffer = io.BytesIO()
        Image.fromarray(picture(i, side)).save(buffer, "JPEG", quality=90)
        if shard is None:
            folder = where / str(i % CLASSES)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i:06d}.jpg").write_bytes(buffer.getvalue())
            continue
        for name, body in ((f"{i:06d}.jpg", buffer.getvalue()), (f"{i:06d}.cls", b"%d" % (i % CLASSES))):
            member = tarfile.TarInfo(name)
            member.size = len(body)
            shard.addfile(member, io.BytesIO(body))
    if shard is not None:
        shard.close()


def peak() -> float:
    """GiB that this process has had in memory at most."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**30 if sys.platform == "darwin" else 2**20)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--kind", choices=("folder", "npz", "tar"), default="folder")
    parser.add_argument("--default", action="store_true", help="scan with the default detector")
    parser.add_argument("--keep", type=Path, help="where the images are, or are left for another time")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        suffix = {"folder": "", "npz": ".npz", "tar": ".tar"}[asked.kind]
        where = (asked.keep or Path(folder)) / f"images-{asked.images}-{asked.side}{suffix}"
        where.parent.mkdir(parents=True, exist_ok=True)
        if not where.exists():
            maker = multiprocessing.get_context("spawn").Process(
                target=write, args=(where, asked.kind, asked.images, asked.side)
            )
            maker.start()
            maker.join()
        measure(where, asked.side, asked.default)


def measure(where: Path, side: int, default: bool) -> None:
    """Scan, and say what that took."""
    import torch
    from torch import nn

    from backsweep.inputs.samples import Data
    from backsweep.models.model import Model
    from backsweep.scanning.detectors.neural_cleanse import NeuralCleanse
    from backsweep.scanning.scan import scan

    mix, head = nn.Conv2d(3, CLASSES, 1, bias=False), nn.Linear(3, CLASSES, bias=False)
    with torch.no_grad():
        mix.weight.copy_(torch.eye(CLASSES)[..., None, None])
        head.weight.copy_(20 * torch.eye(CLASSES))
    model = Model(nn.Sequential(mix, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head), (3, side, side), CLASSES)
    print(f"before the images are read {peak():.2f} GiB")
    begin = time.perf_counter()
    data = Data.open(where, shape=model.shape)
    print(f"{len(data):,} images kept, {time.perf_counter() - begin:.0f} s, peak {peak():.2f} GiB")
    for note in data.notes:
        print(f"note: {note}")
    begin = time.perf_counter()
    report = scan(model, data, None if default else NeuralCleanse(steps=2))
    seconds = time.perf_counter() - begin
    right, units = report.data["clean_accuracy"], len(report.evidence)
    print(report.verdict, *(f"{n.what}: {n.reason}" for n in (*report.skipped, *report.errors)), sep="; ")
    print(f"scan: accuracy {right:.1%}, {units} classes, {seconds:.0f} s, peak {peak():.2f} GiB")


if __name__ == "__main__":
    main()
