"""NumPy archives under the names, and with the labels, that people and their tools give them."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_files import BYTES, FUZZ, mutated, read_or_refused, refused

from backsweep.core.errors import BadInput
from backsweep.inputs.image.sources import arrays, listing
from backsweep.inputs.samples import Data

Y = np.arange(24) % 4
NAMES = ("ant", "bee", "cat", "dog")


def stored(path: Path, **members: Any) -> Path:
    np.savez(path, **members)
    return path


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ("x", "y"), ("X", "y"), ("X", "Y"), ("images", "labels"), ("image", "label"), ("data", "targets"),
        ("data", "target"), ("imgs", "labels"), ("x_test", "y_test"), ("test_images", "test_labels"),
        ("X_val", "y_val"), ("train_data", "train_labels"),
    ],
)  # fmt: skip
def test_names_of_arrays(tmp_path: Path, x: str, y: str) -> None:
    data = Data.open(stored(tmp_path / "d.npz", **{x: BYTES, y: Y, "about": np.zeros(3)}))
    assert torch.equal(data.x[:, 0], torch.from_numpy(BYTES).float() / 255)
    assert data.y.tolist() == Y.tolist()
    assert data.notes == ()


def test_splits(tmp_path: Path) -> None:
    """Keras and MedMNIST: the test split is taken, and said."""
    splits = {"train": BYTES, "val": BYTES[:9], "test": BYTES[:5]}
    keras = stored(
        tmp_path / "k.npz", **{f"x_{s}": x for s, x in splits.items()},
        **{f"y_{s}": Y[: len(x)] for s, x in splits.items()},
    )  # fmt: skip
    medical = stored(
        tmp_path / "m.npz", **{f"{s}_images": x for s, x in splits.items()},
        **{f"{s}_labels": Y[: len(x), None] for s, x in splits.items()},
    )  # fmt: skip
    for path in (keras, medical):
        assert len(Data.open(path)) == 5
        assert Data.open(path).notes == ("the split test was read, not train, val (--split NAME)",)
        for split, x in splits.items():
            assert len(Data.open(path, split=split)) == len(x)
            assert Data.open(path, split=split).notes == ()
        assert len(Data.open(path, split="validation")) == 9
        assert "there is no split 'other', only 'train', 'val', 'test'" in refused(path, split="other")
    both = stored(tmp_path / "b.npz", x=BYTES[:3], y=Y[:3], x_train=BYTES, y_train=Y)
    assert len(Data.open(both)) == 3


def test_images_without_their_labels_are_no_split(tmp_path: Path) -> None:
    path = stored(tmp_path / "d.npz", x_test=BYTES, x_train=BYTES[:3], y_train=Y[:3])
    assert len(Data.open(path)) == 3


@FUZZ
@given(data=st.data())
def test_labels_of_every_kind_say_the_same(tmp_path: Path, data: st.DataObject) -> None:
    """Round trip: indices through one-hot rows, words, columns, floats, bytes."""
    y = np.array(data.draw(st.lists(st.integers(0, 5), min_size=2, max_size=12)))
    words = np.array(["ant", "bee", "cat", "dog", "eel", "fox"])
    kind = data.draw(st.sampled_from(["column", "onehot", "words", "bytes", "float", "small", "bool hot"]))
    labels: Any = {
        "column": y[:, None], "onehot": np.eye(6)[y], "words": words[y], "bytes": words.astype("S")[y],
        "float": y.astype(np.float32), "small": y.astype(np.uint8), "bool hot": np.eye(6, dtype=bool)[y],
    }[kind]  # fmt: skip
    x = data.draw(st.sampled_from([np.uint8, np.float32, np.float64]))
    images = BYTES[: len(y)] if x == np.uint8 else (BYTES[: len(y)] / 255).astype(x)
    names = words.tolist()
    found = Data.open(stored(tmp_path / "d.npz", images=images, labels=labels), names=names)
    assert found.y.tolist() == y.tolist()
    assert found.names == tuple(names)
    assert torch.equal(
        found.x[:, 0], torch.from_numpy(images.astype(np.float32)) / (255 if x == np.uint8 else 1)
    )
    assert found.notes == (("one-hot labels were read as class indices",) if "hot" in kind else ())


def test_words(tmp_path: Path) -> None:
    path = stored(tmp_path / "d.npz", x=BYTES, y=np.array(NAMES)[Y])
    assert Data.open(path).names == NAMES
    assert Data.open(path).y.tolist() == Y.tolist()
    assert Data.open(path, names=NAMES[::-1]).y.tolist() == (3 - Y).tolist()
    assert "'dog' match none of the model's 4 classes" in refused(path, names=["ant", "bee", "cat", "cow"])
    digits = stored(tmp_path / "s.npz", x=BYTES, y=Y.astype(str))
    assert Data.open(digits).y.tolist() == Y.tolist()
    odd = stored(tmp_path / "o.npz", x=BYTES[:2], y=np.array(["\ud800", "=cmd|' /C calc'!A0"]))
    assert Data.open(odd).names == ("=cmd|' /C calc'!A0", "?")


def test_without_labels(tmp_path: Path) -> None:
    data = Data.open(stored(tmp_path / "d.npz", x=BYTES), labels="model")
    assert not data.labelled
    assert data.notes == ("no labels were read: the model's own answers take their place",)
    assert "save it as np.savez" in refused(tmp_path / "d.npz")
    with pytest.raises(BadInput, match="neither None nor 'model'"):
        Data.open(tmp_path / "d.npz", labels="mine")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [None, (3, 5, 7), (1, 5, 7)])
def test_parts_make_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: Any, shape: Any
) -> None:
    """Arrays are read some rows at a time, with the channels put first and grey made RGB on the way."""
    x = np.array(BYTES if shape != (3, 5, 7) else np.stack([BYTES] * 3, 3), order=order)
    path = stored(tmp_path / "d.npz", x=x, y=Y)
    whole = Data.open(path, shape=shape)
    monkeypatch.setattr(arrays, "_CHUNK", 4 * x[0].nbytes + 3)
    assert Data.open(path, shape=shape).digest == whole.digest
    assert tuple(whole.x.shape[1:]) == (shape or (1, 5, 7))


def test_too_many_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too large as float32 is sampled class by class, and said; a training set is refused."""
    x = np.zeros((400, 5, 5), np.uint8)
    x[:, 0, 0], x[:, 0, 1] = np.arange(400) % 256, np.arange(400) // 256
    y = np.arange(400) % 100 // 25  # classes in blocks
    y[:4] = [5, 5, 5, 5]
    path = stored(tmp_path / "d.npz", x=x, y=y)
    assert len(Data.open(path)) == 400
    monkeypatch.setattr(listing, "MOST_BYTES", 400 * 25 * 4 - 1)
    monkeypatch.setattr(listing, "SAMPLE_BYTES", 100 * 25)
    monkeypatch.setattr(arrays, "_CHUNK", 1000)
    data = Data.open(path)
    assert data.y.bincount().tolist() == [24, 24, 24, 24, 0, 4]
    assert data.notes[0].startswith("of 400 images 100 were drawn, of every class as many, to fit into")
    low, high = (data.x[:, 0, 0, :2] * 255).round().long().unbind(1)
    rows = low + 256 * high
    assert len(rows.unique()) == 100
    assert y[rows].tolist() == data.y.tolist()
    assert Data.open(path).digest == data.digest
    assert "400 images are too many for the memory" in refused(path, whole=True)
    free = Data.open(path, labels="model")
    assert len(free) == 100
    monkeypatch.setattr(listing, "SAMPLE_BYTES", 100)
    assert "too many for the memory" in refused(path)


def test_what_a_header_claims(tmp_path: Path) -> None:
    """Sizes are compared with what is there before anything is made of them."""
    path = tmp_path / "d.npz"
    for shape in ((10**9, 5, 7), (2**62, 8, 8), (0, 5, 7)):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"shape": shape, "fortran_order": False, "descr": "|u1"})
        labels = io.BytesIO()
        np.save(labels, Y)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", header.getvalue() + BYTES.tobytes())
            archive.writestr("y.npy", labels.getvalue())
        assert "fewer bytes than its header says" in refused(path) or shape[0] == 0
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header.getvalue())
    assert "there are no samples" in refused(path, labels="model")


def test_damaged(tmp_path: Path) -> None:
    path = stored(
        tmp_path / "d.npz", x_test=BYTES, y_test=np.array(NAMES)[Y], x_train=BYTES, y_train=np.eye(4)[Y]
    )
    with zipfile.ZipFile(path) as archive:
        members = {i.filename: archive.read(i) for i in archive.infolist()}
    blob = path.read_bytes()

    @FUZZ
    @given(st.data())
    def damaged(data: st.DataObject) -> None:
        if data.draw(st.booleans()):
            path.write_bytes(mutated(data, blob))
        else:  # behind the checksums
            with zipfile.ZipFile(path, "w") as archive:
                for name, content in members.items():
                    archive.writestr(name, mutated(data, content))
        read_or_refused(path, split=data.draw(st.sampled_from(["train", "test"])))

    damaged()
