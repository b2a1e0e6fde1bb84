"""Good sets of samples for the fuzzer, and how they are read."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from backsweep.inputs.samples import Data


def make_arrays(folder: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8), np.arange(24) % 3
    np.savez(folder / "bytes.npz", x=x, y=y)
    np.savez_compressed(folder / "floats.npz", x=(x / 255).astype(np.float32), y=y)
    np.savez(
        folder / "medmnist.npz",
        train_images=x,
        train_labels=y[:, None],
        test_images=x,
        test_labels=y[:, None],
    )
    np.savez(folder / "words.npz", images=x, labels=np.array(["cat", "dog", "owl"])[y])
    np.savez(folder / "one-hot.npz", x_train=x, y_train=np.eye(3)[y], x_test=x, y_test=np.eye(3)[y])


def make_pictures(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for i, suffix in enumerate(("png", "jpg", "bmp", "gif", "webp", "tif")):
        for label in ("cat", "dog"):
            place = folder / suffix / label
            place.mkdir(parents=True)
            for n in range(2):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{i}{n}.{suffix}")


def _png(i: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def make_manifests(folder: Path) -> None:
    for suffix, comma in ((".csv", ","), (".tsv", "\t")):
        place = folder / suffix[1:]
        place.mkdir()
        lines = [["path", "label", "split"]]
        for i in range(8):
            (place / f"{i}.png").write_bytes(_png(i))
            lines.append([f"{i}.png", "cat" if i % 2 else "dog", "train" if i < 4 else "test"])
        (place / f"images{suffix}").write_text("\n".join(comma.join(line) for line in lines))


def make_tars(folder: Path) -> None:
    for kind in ("cls", "json"):
        place = folder / kind
        place.mkdir()
        for shard in range(2):
            with tarfile.open(place / f"train-{shard:03d}.tar", "w") as tar:
                for i in range(4):
                    label = json.dumps({"label": i % 2}) if kind == "json" else str(i % 2)
                    for name, body in ((f"{i}.png", _png(i)), (f"{i}.{kind}", label.encode())):
                        member = tarfile.TarInfo(name)
                        member.size = len(body)
                        tar.addfile(member, io.BytesIO(body))


def make_tables(folder: Path) -> None:
    """As the library datasets keeps images, on the hub and on the disk, and a manifest."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
    said = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    rows = {
        "image": [{"bytes": _png(i), "path": f"{i}.png"} for i in range(8)],
        "label": [i % 2 for i in range(8)],
    }
    table = pa.table({k: pa.array(v) for k, v in rows.items()}).replace_schema_metadata(said)
    for name in ("hub", "disk", "manifest"):
        (folder / name).mkdir()
    for kind, packing in (("train", "snappy"), ("test", "none")):
        pq.write_table(table, folder / "hub" / f"{kind}-00000-of-00001.parquet", compression=packing)
    for kind, writer in (("stream", pa.ipc.new_stream), ("file", pa.ipc.new_file)):
        path = folder / "disk" / f"data-{kind}.arrow"
        with pa.OSFile(str(path), "wb") as f, writer(f, table.schema) as writing:
            writing.write_table(table, max_chunksize=5)
    for i in range(8):
        (folder / "manifest" / f"{i}.png").write_bytes(_png(i))
    paths = pa.table({"path": [f"{i}.png" for i in range(8)], "label": [f"class {i % 2}" for i in range(8)]})
    pq.write_table(paths, folder / "manifest" / "images.parquet")


def read_data(path: Path) -> object:
    """A set of samples; of a folder with a manifest, what that names."""
    listed = [p for p in sorted(path.glob("images.*")) if path.is_dir()]
    data = Data.open(listed[0] if listed else path)
    return data.digest, data.sample(10, 0), repr(data)
