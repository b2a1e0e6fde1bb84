"""Hugging Face data sets and Parquet manifests, read with pyarrow alone."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_files import BYTES, FUZZ, mutated, png, put, read_or_refused, refused

from backsweep.inputs.image.sources import arrow, record_batches
from backsweep.inputs.samples import Data

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

GREY = torch.from_numpy(BYTES)
NAMES = ["cat", "dog", "ant", "bee"]


def table(rows: Any, names: list[str] | None = None, column: str = "label", image: str = "image") -> Any:
    """Images with labels as the library datasets keeps them; `names` makes the labels a ClassLabel."""
    features: dict[str, Any] = {image: {"_type": "Image"}, column: {"_type": "Value", "dtype": "int64"}}
    if names:
        features[column] = {"_type": "ClassLabel", "names": names}
    about = json.dumps({"info": {"features": features}})
    made = pa.table({
        image: pa.array([{"bytes": png(BYTES[i]), "path": f"{i}.png"} for i in rows]),
        column: pa.array([i % 4 for i in rows]),
    })  # fmt: skip
    return made.replace_schema_metadata({b"huggingface": about.encode()})


def stream(path: Path, of: Any, kind: Any = None, **how: Any) -> Path:
    """An .arrow file, as `save_to_disk` writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as f, (kind or pa.ipc.new_stream)(f, of.schema, **how) as writer:
        writer.write_table(of, max_chunksize=5)
    return path


def parquet(path: Path, of: Any, **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(of, path, **how)
    return path


def holds(data: Data, rows: Any, y: list[int]) -> None:
    assert torch.equal(data.x[:, 0] * 255, GREY[list(rows)].float())
    assert data.y.tolist() == y


def test_a_folder_of_save_to_disk(tmp_path: Path) -> None:
    """Several splits, several files, names of classes; what was cached is left alone."""
    for split, rows in (("train", range(12)), ("test", range(12, 20))):
        half = len(rows) // 2
        stream(tmp_path / split / "data-00000-of-00002.arrow", table(rows[:half], NAMES))
        stream(tmp_path / split / "data-00001-of-00002.arrow", table(rows[half:], NAMES))
        stream(tmp_path / split / "cache-123.arrow", table(rows, NAMES))
        put(tmp_path / split / "state.json", "{}")
    data = Data.open(tmp_path)
    holds(data, range(12, 20), [i % 4 for i in range(12, 20)])
    assert data.names == tuple(NAMES)
    assert data.notes == ("the split test was read, not train (--split NAME)",)
    holds(Data.open(tmp_path, split="train"), range(12), [i % 4 for i in range(12)])
    holds(Data.open(tmp_path / "train"), range(12), [i % 4 for i in range(12)])


def test_a_folder_as_on_the_hub(tmp_path: Path) -> None:
    parquet(tmp_path / "data" / "train-00000-of-00001.parquet", table(range(8), NAMES), row_group_size=3)
    parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", table(range(8, 12), NAMES))
    put(tmp_path / "README.md", "about")
    data = Data.open(tmp_path)
    holds(data, range(8, 12), [0, 1, 2, 3])
    assert "the split val was read" in data.notes[0]
    holds(Data.open(tmp_path, split="train"), range(8), [0, 1, 2, 3] * 2)
    holds(Data.open(tmp_path / "data" / "train-00000-of-00001.parquet"), range(8), [0, 1, 2, 3] * 2)


def test_columns(tmp_path: Path) -> None:
    """By what the features say, then by their names; labels as words."""
    fine = table(range(4), NAMES, column="fine_label", image="img")
    data = Data.open(parquet(tmp_path / "f.parquet", fine))
    holds(data, range(4), [0, 1, 2, 3])
    assert data.notes == ("labels are those of 'fine_label'",)
    plain = pa.table({"image": [png(BYTES[i]) for i in range(4)], "label": ["b", "a", "b", "c"]})
    data = Data.open(parquet(tmp_path / "p.parquet", plain), names=["c", "b", "a"])
    holds(data, range(4), [1, 2, 1, 0])
    none = parquet(tmp_path / "n.parquet", plain.drop(["label"]))
    assert "it has the columns 'image'" in refused(none)
    assert not Data.open(none, labels="model").labelled
    lists = pa.table({"image": [[[1, 2], [3, 4]]], "label": [0]})
    assert "not encoded images; cast it to Image" in refused(parquet(tmp_path / "l.parquet", lists))
    missing = pa.table({"image": [png(BYTES[0])], "label": pa.array([None], pa.int64())})
    assert "a label is None" in refused(parquet(tmp_path / "m.parquet", missing))


def test_a_file_of_arrow(tmp_path: Path) -> None:
    holds(
        Data.open(stream(tmp_path / "a.arrow", table(range(6)), pa.ipc.new_file)),
        range(6),
        [0, 1, 2, 3, 0, 1],
    )


def test_images_by_path(tmp_path: Path) -> None:
    """Inside the folder only."""
    for i in range(3):
        put(tmp_path / "in" / "images" / f"{i}.png", png(BYTES[i]))
    put(tmp_path / "secret.png", png(BYTES[3]))
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

    def by(*paths: str) -> Path:
        cells = pa.array([{"bytes": None, "path": p} for p in paths], kind)
        return parquet(
            tmp_path / "in" / "a.parquet", pa.table({"image": cells, "label": list(range(len(paths)))})
        )

    holds(Data.open(by("images/1.png", "images/0.png")), [1, 0], [0, 1])
    for path in ("../secret.png", str(tmp_path / "secret.png")):
        assert "leads out of the manifest's folder" in refused(by("images/1.png", path))
    manifest = pa.table(
        {"path": ["images/2.png", "images/1.png"], "label": ["b", "a"], "split": ["test", "test"]}
    )
    holds(Data.open(parquet(tmp_path / "in" / "m.parquet", manifest)), [2, 1], [1, 0])
    leads = pa.table({"path": ["images/2.png", "../secret.png"], "label": ["b", "a"]})
    assert "leads out" in refused(parquet(tmp_path / "in" / "m.parquet", leads))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.parquet").symlink_to(tmp_path / "in" / "m.parquet")
    assert "is a link out of the folder" in refused(tmp_path / "out")


def test_damaged_images(tmp_path: Path) -> None:
    made = table(range(24), NAMES)
    cells = made.column("image").to_pylist()
    cells[5]["bytes"] = b"nothing"
    path = parquet(tmp_path / "d.parquet", made.set_column(0, "image", pa.array(cells)))
    data = Data.open(path)
    holds(data, [i for i in range(24) if i != 5], [i % 4 for i in range(24) if i != 5])
    assert data.notes == ("1 image that is damaged was left out: 'd.parquet, row 5'",)


def test_what_could_unpack_to_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pa.ipc.IpcWriteOptions(compression="zstd")
    path = stream(tmp_path / "c.arrow", table(range(6)), options=packed)
    assert "is compressed or has dictionaries" in refused(path)
    words = pa.table({"image": [png(BYTES[0])] * 2, "label": pa.array(["a", "b"]).dictionary_encode()})
    assert "is compressed or has dictionaries" in refused(stream(tmp_path / "d.arrow", words))
    bomb = pa.table({"image": [bytes(2**27)], "label": [0]})
    path = parquet(tmp_path / "b.parquet", bomb, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 2**20
    assert "at once, too many" in refused(path)
    monkeypatch.setattr(arrow, "MOST_ROWS", 5)
    assert "more than 5 rows" in refused(parquet(tmp_path / "r.parquet", table(range(6))))
    assert "more than 5 rows" in refused(stream(tmp_path / "r.arrow", table(range(6))))


def test_files_of_one_set_differ(tmp_path: Path) -> None:
    parquet(tmp_path / "data" / "train-0.parquet", table(range(4)))
    parquet(tmp_path / "data" / "train-1.parquet", table(range(4)).drop(["label"]))
    assert "not readable" in refused(tmp_path) or "has no column 'label'" in refused(tmp_path)


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path / "a.parquet", table(range(4)))
    real = builtins.__import__

    def none(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", none)
    assert "pip install 'backsweep[data]'" in refused(path)


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_damaged_files(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"d.{kind}"
    (stream if kind == "arrow" else parquet)(path, table(range(8), NAMES))
    blob = path.read_bytes()

    @FUZZ
    @given(st.data())
    def damaged(data: st.DataObject) -> None:
        path.write_bytes(mutated(data, blob))
        read_or_refused(path)

    damaged()


def test_batches_are_small(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", table([i % 24 for i in range(100)]))
    sizes = [batch.num_rows for batch in record_batches.of(path, ["image"])]
    assert sum(sizes) == 100
    assert max(sizes) <= record_batches.ROWS
