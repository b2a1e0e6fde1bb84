"""Labelled images: folders, NumPy archives, pairs, torch data sets."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_files import mutated
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from backsweep.core.errors import BadInput
from backsweep.inputs.image import decoding
from backsweep.inputs.image.sources import listing
from backsweep.inputs.samples import Data
from backsweep.models.checks import check_fit
from backsweep.models.model import Model

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def picture(path: Path, size: tuple[int, int] = (6, 4), mode: str = "RGB", value: int = 51) -> Path:
    """Write one plain image; `size` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour: Any = {"RGB": (value, 0, 255), "RGBA": (value, 0, 255, 9), "LA": (value, 9), "P": 1}.get(
        mode, value
    )
    Image.new(mode, size, colour).save(path)
    return path


def refusal(path: Path, **kwargs: Any) -> str:
    """The message of the error, which must be one line that begins with the path."""
    with pytest.raises(BadInput) as caught:
        Data.open(path, **kwargs)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    return message.removeprefix(f"{path}: ")


def stored(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


# ---------------------------------------------------------------------- folders


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG", ".bmp", ".gif", ".webp", ".tif", ".tiff"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    for name in ("cat", "dog"):
        picture(tmp_path / name / f"a{suffix}")
    data = Data.open(tmp_path)
    assert data.x.shape == (2, 3, 4, 6)
    assert data.y.tolist() == [0, 1]
    assert data.names == ("cat", "dog")
    assert data.source == str(tmp_path)
    torch.testing.assert_close(data.x[0, :, 2, 2], torch.tensor([0.2, 0.0, 1.0]), atol=0.02, rtol=0)


def test_what_counts_as_an_image(tmp_path: Path) -> None:
    picture(tmp_path / "b" / "images" / "1.png")
    picture(tmp_path / "a" / "2.png")
    picture(tmp_path / "a" / "1.png", value=255)
    picture(tmp_path / "a" / ".hidden.png")
    picture(tmp_path / "a" / ".thumbs" / "1.png")
    picture(tmp_path / ".git" / "1.png")
    picture(tmp_path / "stray.png")
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "c").mkdir()
    data = Data.open(tmp_path)
    assert data.y.tolist() == [0, 0, 1]
    assert data.names == ("a", "b", "c")
    assert data.x[0, 0, 0, 0] == 1  # a/1.png before a/2.png


@pytest.mark.parametrize(
    ("folders", "names", "labels"),
    [
        (["b", "a"], None, [0, 1]),
        (["0", "1", "2", "10"], None, [0, 1, 10, 2]),
        (["00003", "00007"], None, [3, 7]),
        (["dog", "cat"], ["dog", "cat"], [1, 0]),
        (["DOG", "Cat"], ["owl", "cat", "dog"], [1, 2]),
        (["2", "0"], ["owl", "cat", "dog"], [0, 2]),
        (["1", "0"], ["1", "0"], [1, 0]),
        (["x", "y"], ["owl", "cat"], [0, 1]),
    ],
)
def test_class_of_a_folder(tmp_path: Path, folders: list[str], names: list[str] | None, labels: Any) -> None:
    for folder in folders:
        picture(tmp_path / folder / "1.png")
    by_folder = dict(zip(sorted(folders), Data.open(tmp_path, names=names).y.tolist(), strict=True))
    assert by_folder == dict(zip(sorted(folders), labels, strict=True))


@pytest.mark.parametrize("folders", [["cat", "wolf"], ["wolf"], ["1", "7"], ["cat", "7"]])
def test_a_folder_that_is_no_class(tmp_path: Path, folders: list[str]) -> None:
    for folder in folders:
        picture(tmp_path / folder / "1.png")
    message = refusal(tmp_path, names=["cat", "dog", "owl"])
    assert repr(folders[-1]) in message
    assert "name every folder after a class" in message


@pytest.mark.parametrize(
    ("mode", "channels", "want"),
    [
        ("L", None, 1), ("LA", None, 1), ("1", None, 1), ("P", None, 3), ("RGBA", None, 3), ("RGB", None, 3),
        ("L", 3, 3), ("RGBA", 3, 3), ("L", 1, 1),
    ],
)  # fmt: skip
def test_channels(tmp_path: Path, mode: str, channels: int | None, want: int) -> None:
    picture(tmp_path / "a" / "1.png", mode=mode)
    data = Data.open(tmp_path, shape=None if channels is None else (channels, 4, 6))
    assert data.x.shape == (1, want, 4, 6)


def test_grey_among_colours(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png", mode="L")
    picture(tmp_path / "a" / "2.png")
    data = Data.open(tmp_path)
    assert data.x.shape == (2, 3, 4, 6)
    assert (data.x[0] == 0.2).all()


def test_images_that_do_not_fit(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png")
    assert "a/1.png is in colour" in refusal(tmp_path, shape=(1, 4, 6))
    assert "give an .npz" in refusal(tmp_path, shape=(4, 4, 6))
    assert "a/1.png has 4 x 6 pixels (height x width), the model takes 8 x 6" in refusal(
        tmp_path, shape=(3, 8, 6)
    )
    picture(tmp_path / "b" / "2.png", size=(7, 4))
    assert "b/2.png has 4 x 7 pixels (height x width), a/1.png has 4 x 6" in refusal(tmp_path)
    data = Data.open(tmp_path, shape=(3, 8, 6), resize=True)
    assert data.x.shape == (2, 3, 8, 6)
    torch.testing.assert_close(data.x[1, :, 3, 3], torch.tensor([0.2, 0.0, 1.0]))
    picture(tmp_path / "b" / "3.tif", mode="F")
    assert "b/3.tif has 32 bits a channel" in refusal(tmp_path, resize=True, shape=(3, 8, 6))


def test_resizing_smooths(tmp_path: Path) -> None:
    pixels = np.zeros((64, 64), np.uint8)
    pixels[:, ::2] = 255
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "1.png")
    data = Data.open(tmp_path, shape=(1, 8, 8), resize=True)
    assert (data.x - 0.5).abs().max() < 0.1


def test_nothing_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no such file" in refusal(tmp_path / "nowhere")
    assert "no images" in refusal(tmp_path)
    picture(tmp_path / "1.png")
    assert "no images in folders of classes" in refusal(tmp_path)
    assert "np.savez" in refusal(tmp_path / "1.png")
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    assert "columns 'a', 'b'; call them path and label" in refusal(tmp_path / "t.csv")
    (tmp_path / "a\nb").mkdir()
    (tmp_path / "a\nb" / "1.wav").touch()
    assert "sounds (a?b/1.wav)".replace("?", " ") in refusal(tmp_path)
    (tmp_path / "a\nb" / "1.wav").unlink()
    picture(tmp_path / "a" / "1.png")
    monkeypatch.setattr(listing, "MOST_BYTES", 100)
    assert "too many for the memory" in refusal(tmp_path, whole=True)
    monkeypatch.setattr(decoding, "MOST_PIXELS", 9)
    assert "a/1.png has 6 x 4 pixels" in refusal(tmp_path)


def test_other_decoders_are_out_of_reach(tmp_path: Path) -> None:
    """Pillow hands PostScript to Ghostscript; a name that ends in .png must not lead there."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n%%EOF\n")
    assert "a/1.png is not readable as an image" in refusal(tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".bmp", ".webp", ".tif"])
def test_damaged_images(tmp_path: Path, suffix: str) -> None:
    path = picture(tmp_path / "a" / f"1{suffix}", size=(20, 10))
    blob = path.read_bytes()

    @FUZZ
    @given(st.data())
    def damaged(data: st.DataObject) -> None:
        path.write_bytes(mutated(data, blob))
        try:
            assert isinstance(Data.open(tmp_path), Data)
        except BadInput as e:
            assert str(e).isprintable()

    damaged()
    path.write_bytes(blob[: len(blob) // 2])
    assert f"a/1{suffix}" in refusal(tmp_path)


# ---------------------------------------------------------------------- NumPy archives

BYTES = np.arange(2 * 5 * 7 * 3, dtype=np.uint8).reshape(2, 5, 7, 3)


@pytest.mark.parametrize(
    ("x", "shape", "want"),
    [
        (BYTES, None, (3, 5, 7)),
        (BYTES, (3, 5, 7), (3, 5, 7)),
        (BYTES, (5, 7, 3), (5, 7, 3)),
        (BYTES.transpose(0, 3, 1, 2), None, (3, 5, 7)),
        (np.asfortranarray(BYTES), None, (3, 5, 7)),
        (BYTES[..., 0], None, (1, 5, 7)),
        (BYTES[..., :1], (1, 5, 7), (1, 5, 7)),
        (BYTES[..., :2], (2, 5, 7), (2, 5, 7)),
        (BYTES.astype(np.float32) / 255, None, (3, 5, 7)),
        (BYTES.astype(">f8") / 255, None, (3, 5, 7)),
        (BYTES.astype(np.float16) / 255, None, (3, 5, 7)),
    ],
)
def test_npz(tmp_path: Path, x: Any, shape: Any, want: tuple[int, ...]) -> None:
    data = Data.open(stored(tmp_path / "d.npz", x=x, y=np.array([1, 0])), shape=shape, names=["a", "b"])
    assert data.x.shape[1:] == want
    assert data.y.tolist() == [1, 0]
    assert data.names == ("a", "b")
    first = torch.tensor(BYTES[0, :, :, 0] / 255, dtype=torch.float32)
    if want[0] in (1, 3):
        torch.testing.assert_close(data.x[0, 0], first, atol=1e-3, rtol=0)


@pytest.mark.parametrize("y", [[[3], [4]], [3.0, 4.0], np.array([3, 4], np.uint8), np.array([3, 4], ">i8")])
def test_labels(tmp_path: Path, y: Any) -> None:
    assert Data.open(stored(tmp_path / "d.npz", x=BYTES, y=y)).y.tolist() == [3, 4]


def test_npz_is_resized(tmp_path: Path) -> None:
    path = stored(tmp_path / "d.npz", x=np.full((2, 5, 7, 3), 51, np.uint8), y=[0, 1])
    data = Data.open(path, shape=(3, 4, 4), resize=True)
    torch.testing.assert_close(data.x, torch.full((2, 3, 4, 4), 0.2))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a_train": BYTES, "y_train": [0, 1]}, "it holds 'a_train', 'y_train'; save it as np.savez"),
        ({"x": BYTES, "y": [0]}, "y has shape (1,) for 2 samples"),
        ({"x": BYTES, "y": [[1, 1], [1, 0]]}, "y has shape (2, 2) and its rows are not one-hot"),
        ({"x": BYTES, "y": [[0.5, 0.5], [1, 0]]}, "y has shape (2, 2) and its rows are not one-hot"),
        ({"x": BYTES, "y": np.zeros((2, 2, 2))}, "y has shape (2, 2, 2)"),
        ({"x": BYTES, "y": [-1, 0]}, "negative"),
        ({"x": BYTES, "y": [0.5, 1]}, "fractions"),
        ({"x": np.array(["cat", "dog"]), "y": [0, 1]}, "not numbers"),
        ({"x": BYTES.astype(np.float32), "y": [0, 1]}, "outside [0, 1]"),
        ({"x": BYTES.astype(np.int32), "y": [0, 1]}, "give uint8"),
        ({"x": np.full((2, 5, 7), np.nan), "y": [0, 1]}, "NaN"),
        ({"x": BYTES[:0], "y": np.zeros(0, int)}, "no samples"),
        ({"x": np.zeros((2, 5)), "y": [0, 1]}, "2 dimensions"),
        ({"x": BYTES.astype(complex), "y": [0, 1]}, "not numbers"),
    ],
)
def test_arrays_that_are_no_data(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    assert words in refusal(stored(tmp_path / "d.npz", **arrays))


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    proof, marker = tmp_path / "proof", tmp_path / "marker"
    pickle.loads(pickle.dumps(Payload(proof)))
    assert proof.exists(), "the payload works where pickles are trusted"
    path = stored(tmp_path / "d.npz", x=np.array([Payload(marker)], object), y=[0])
    marker.unlink(missing_ok=True)
    assert "holds object, not numbers" in refusal(path)
    assert not marker.exists()


def test_bombs(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez_compressed(path, x=np.zeros((2**10, 2**17), np.uint8), y=np.zeros(2))
    assert "x.npy unpacks to" in refusal(path)
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"shape": (2**40, 3, 8, 8), "fortran_order": False, "descr": "|u1"}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", buffer.getvalue())
        archive.writestr("y.npy", buffer.getvalue())
    assert "too many" in refusal(path)


def test_damaged_npz(tmp_path: Path) -> None:
    path = stored(tmp_path / "d.npz", x=BYTES, y=[0, 1])
    blob = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        members = {i.filename: archive.read(i) for i in archive.infolist()}

    @FUZZ
    @given(st.data())
    def damaged(data: st.DataObject) -> None:
        if data.draw(st.booleans()):
            path.write_bytes(mutated(data, blob))
        else:  # behind the checksums
            with zipfile.ZipFile(path, "w") as archive:
                for name, content in members.items():
                    archive.writestr(name, mutated(data, content))
        try:
            assert isinstance(Data.open(path), Data)
        except BadInput as e:
            assert str(e).isprintable()

    damaged()


# ---------------------------------------------------------------------- what is in memory


class Pictures(Dataset[tuple[Any, int]]):
    """A torch data set of whatever it is given."""

    classes = ("cat", "dog")

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return self.items[i], i % 2


def test_of(tmp_path: Path) -> None:
    x, y = torch.rand(4, 3, 5, 7), torch.tensor([0, 1, 0, 1])
    data = Data.of((x, y))
    assert Data.of(data) is data
    assert torch.equal(Data.of([x.numpy(), y.tolist()]).x, x)
    assert torch.equal(Data.of(TensorDataset(x, y)).x, x)
    assert len(Data.of(stored(tmp_path / "d.npz", x=BYTES, y=[0, 1]))) == 2
    named = Data.of(Pictures(list(x)))
    assert torch.equal(named.x, x)
    assert (named.names, named.source, named.y.tolist()) == (("cat", "dog"), "Pictures", [0, 1, 0, 1])
    for items in (list(BYTES), [Image.fromarray(i) for i in BYTES]):
        assert torch.equal(Data.of(Pictures(items)).x, torch.tensor(BYTES).permute(0, 3, 1, 2) / 255)
    for grey in (list(BYTES[..., 0]), list(torch.tensor(BYTES[..., 0]))):
        assert Data.of(Pictures(grey)).x.shape == (2, 1, 5, 7)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "NoneType"),
        (3, "int"),
        ((torch.rand(2, 3, 5, 5), ["a", "b"]), "not made of numbers"),
        ((torch.rand(2, 3, 5, 5),) * 3, "no (image, label) pair"),
        (Pictures([]), "no samples"),
        (Pictures([torch.rand(3, 5, 5), torch.rand(3, 6, 5)]), "sample 1 of the data set"),
        (Pictures([torch.rand(3, 5, 5), "b"]), "sample 1 of the data set"),
        (Pictures([torch.rand(3, 5, 5) * 9]), "outside [0, 1]"),
        ({"x": 1, "y": 2}, "sample 0 of the data set"),
    ],
)
def test_of_what_is_no_data(given: Any, words: str) -> None:
    with pytest.raises(BadInput) as caught:
        Data.of(given)
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


# ---------------------------------------------------------------------- data for a model


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(nn.Sequential(nn.Flatten(), nn.Linear(105, 3)), (3, 5, 7), labels=["cat", "dog", "owl"])


def many(shape: tuple[int, ...] = (3, 5, 7), y: list[int] | None = None) -> Data:
    labels = torch.tensor(y if y is not None else [0, 1] * 10)
    return Data(torch.rand(len(labels), *shape), labels)


def test_check(model: Model) -> None:
    check_fit(model, many())
    check_fit(model, many(y=[0, 2] * 10))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (many((1, 5, 7)), ["1 x 5 x 7", "3 x 5 x 7", "3 channels"]),
        (many((3, 5, 8)), ["3 x 5 x 8", "3 x 5 x 7", "resize"]),
        (many((5, 7, 3)), ["5 x 7 x 3", "channels first"]),
        (many(y=[0, 9] * 10), ["labels run to 9", "the model has 3 classes"]),
        (many(y=[1] * 20), ["all samples are of class dog"]),
        (many(y=[0, 1] * 5), ["10 in all", "20 in all"]),
    ],
)
def test_check_refuses(model: Model, data: Data, words: list[str]) -> None:
    with pytest.raises(BadInput) as caught:
        check_fit(model, data)
    assert all(word in str(caught.value) for word in words)


def test_rows_of_tensors(model: Model) -> None:
    x: Tensor = torch.rand(6, 3, 5, 7)
    data = Data(x, [0, 1, 2, 0, 1, 2])
    half, other = data.split(0)
    assert len(half) == len(other) == 3
    assert sorted(half.y.tolist()) == sorted(other.y.tolist()) == [0, 1, 2]
    assert sorted(data.sample(3, 0).y.tolist()) == [0, 1, 2]
    assert data.digest != half.digest


def test_a_rare_class_is_in_both_halves() -> None:
    data = Data(torch.linspace(0, 1, 27).reshape(27, 1, 1, 1), [0] * 25 + [1] * 2)
    for seed in range(20):
        half, other = data.split(seed)
        assert set(half.y.tolist()) == set(other.y.tolist()) == {0, 1}, seed
        assert sorted([*half.x.flatten().tolist(), *other.x.flatten().tolist()]) == data.x.flatten().tolist()
