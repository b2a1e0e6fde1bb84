"""Folders that people really have, manifests, and tar shards."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_files import BYTES, FUZZ, mutated, png, put, read_or_refused, refused
from PIL import Image

from backsweep.inputs.image import decoding
from backsweep.inputs.image.sources import listing, shards, tables
from backsweep.inputs.samples import Data

GREY = torch.from_numpy(BYTES)
COLOUR = np.stack([BYTES, BYTES[:, ::-1], 255 - BYTES], 3)


def classes(path: Path, count: int = 24) -> Path:
    """A folder with grey images of classes a to d."""
    for i in range(count):
        put(path / "abcd"[i % 4] / f"{i:04d}.png", png(BYTES[i % 24]))
    return path


# ---------------------------------------------------------------------- images as they come


def test_formats_with_a_clear_meaning(tmp_path: Path) -> None:
    """16 bits, palettes, alpha, CMYK, bits: one grey image in each of them is read as the same pixels."""
    grey = Image.fromarray(BYTES[0])
    folder = classes(tmp_path)
    deep = BYTES[0].astype(np.uint16) * 257
    odd = {
        "deep.png": png(deep), "deep.tif": png(deep, "TIFF"), "rgb.png": png(grey.convert("RGB")),
        "rgba.png": png(grey.convert("RGBA")), "la.png": png(grey.convert("LA")),
        "cmyk.tif": png(grey.convert("RGB").convert("CMYK"), "TIFF"),
        "palette.gif": png(grey.convert("P"), "GIF"),
    }  # fmt: skip
    for name, body in odd.items():
        put(folder / "a" / name, body)
    for shape in ((1, 5, 7), None, (3, 5, 7)):
        data = Data.open(folder, shape=shape)
        assert data.x.shape == (31, 3 if shape == (3, 5, 7) else 1, 5, 7)
        names = sorted(p.name for p in (folder / "a").iterdir())
        for name in odd:
            assert torch.equal(data.x[names.index(name)] * 255, GREY[:1].float().expand(data.x.shape[1:])), (
                name
            )
        assert "2 images were scaled from 16 bits a channel to 8" in data.notes
        assert "1 image was converted from CMYK to RGB" in data.notes
    assert "4 images were read as grey" in " ".join(Data.open(folder).notes)


def test_one_image_in_true_colour_makes_all_of_them_colour(tmp_path: Path) -> None:
    folder = classes(tmp_path)
    put(folder / "a" / "x.png", png(COLOUR[0]))
    assert Data.open(folder).x.shape[1] == 3
    assert "a/x.png is in colour, the model takes grey" in refused(folder, shape=(1, 5, 7))


def test_true_grey_in_colour_stays_colour_where_most_are(tmp_path: Path) -> None:
    for i in range(4):
        put(tmp_path / "a" / f"{i}.png", png(Image.fromarray(BYTES[i]).convert("RGB")))
    put(tmp_path / "a" / "5.png", png(BYTES[5]))
    assert Data.open(tmp_path).x.shape[1] == 3


def test_values_without_a_clear_meaning(tmp_path: Path) -> None:
    put(tmp_path / "a" / "1.tif", png(BYTES[0].astype(np.float32), "TIFF"))
    assert "a/1.tif has 32 bits a channel, whose range is not known; save it with 8" in refused(tmp_path)
    put(tmp_path / "a" / "1.tif", png(BYTES[0].astype(np.int32), "TIFF"))
    assert "32 bits a channel" in refused(tmp_path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_cameras_that_were_turned(tmp_path: Path, orientation: int) -> None:
    """The image stands as the EXIF data say that it was seen."""
    seen = torch.from_numpy(BYTES[0])
    stored = {
        1: seen, 2: seen.flip(1), 3: seen.flip(0, 1), 4: seen.flip(0), 5: seen.T, 6: seen.T.flip(0),
        7: seen.T.flip(0, 1), 8: seen.T.flip(1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    put(tmp_path / "a" / "1.png", png(stored.contiguous().numpy(), exif=exif))
    data = Data.open(tmp_path, shape=(1, 5, 7))
    assert torch.equal(data.x[0, 0] * 255, seen.float())
    assert data.notes == (() if orientation == 1 else ("1 image was turned as the EXIF data say",))


def test_damaged_images_are_left_out_up_to_a_share(tmp_path: Path) -> None:
    folder = classes(tmp_path, 200)
    whole = Data.open(folder)
    body = png(BYTES[0])
    for name in ("a/0000.png", "b/0001.png"):
        put(folder / name, body[:40])
    data = Data.open(folder)
    assert len(data) == 198
    assert data.notes == ("2 images that are damaged were left out: 'a/0000.png', 'b/0001.png'",)
    assert data.y.bincount().tolist() == [49, 49, 50, 50]
    assert torch.equal(data.x[0], whole.x[1]), "labels stay with their images"
    put(folder / "b" / "0005.png", b"")
    message = refused(folder)
    assert "more than 1% of the 200 images cannot be read" in message
    assert "'b/0005.png'" in message


def test_in_a_small_set_no_image_may_be_damaged(tmp_path: Path) -> None:
    folder = classes(tmp_path, 20)
    put(folder / "a" / "0000.png", b"")
    assert len(Data.open(folder)) == 19
    (folder / "a" / "0004.png").unlink()
    assert "a/0000.png is not readable as an image" in refused(folder)


def test_too_many_images_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = classes(tmp_path, 200)
    whole = Data.open(folder)
    assert whole.notes == ()
    monkeypatch.setattr(listing, "MOST_BYTES", 4 * 35 * 200)
    assert Data.open(folder).digest != ""
    monkeypatch.setattr(listing, "MOST_BYTES", 4 * 35 * 200 - 1)
    monkeypatch.setattr(listing, "SAMPLE_BYTES", 35 * 40)
    opened: list[str] = []
    decoded = decoding.decoded

    def counted(*args: Any) -> decoding.Decoded:
        opened.append(args[1])
        return decoded(*args)

    monkeypatch.setattr(listing, "decoded", counted)
    data = Data.open(folder, shape=(1, 5, 7))
    assert data.y.bincount().tolist() == [10] * 4
    assert len(opened) == 40, "what is not drawn is not decoded"
    assert data.notes[0].startswith("of 200 images 40 were drawn, of every class as many, to fit into")
    assert "too many for the memory" in refused(folder, whole=True)


# ---------------------------------------------------------------------- folders


def test_folders_of_splits(tmp_path: Path) -> None:
    classes(tmp_path / "train", 24)
    classes(tmp_path / "test", 8)
    data = Data.open(tmp_path)
    assert (len(data), data.names) == (8, ("a", "b", "c", "d"))
    assert data.notes == ("the split test was read, not train (--split NAME)",)
    assert len(Data.open(tmp_path, split="train")) == 24
    assert "there is no split 'val'" in refused(tmp_path, split="val")
    assert "there is no split 'val'" in refused(tmp_path / "test", split="val")


def test_empty_folders(tmp_path: Path) -> None:
    """They are classes without images where all are sorted, and nothing where names or numbers decide."""
    for name in ("1", "2", "10"):
        put(tmp_path / "n" / name / "1.png", png(BYTES[0]))
    put(tmp_path / "n" / "empty" / "notes.txt", "")
    assert Data.open(tmp_path / "n").y.tolist() == [1, 10, 2]
    for name in ("ant", "cat"):
        put(tmp_path / "w" / name / "1.png", png(BYTES[0]))
    (tmp_path / "w" / "bee").mkdir()
    assert Data.open(tmp_path / "w").y.tolist() == [0, 2]
    assert Data.open(tmp_path / "w", names=["ant", "cat"]).y.tolist() == [0, 1]


def test_folders_that_match_no_label(tmp_path: Path) -> None:
    folder = classes(tmp_path)
    assert "sorted" in Data.open(folder, names=["w", "x", "y", "z"]).notes[0]
    assert Data.open(folder, names=["d", "c", "b", "a"]).notes == ()


def test_images_without_classes(tmp_path: Path) -> None:
    for i in range(5):
        put(tmp_path / f"{i}.png", png(BYTES[i]))
    message = refused(tmp_path)
    assert "no images in folders of classes" in message
    assert "--labels model" in message
    data = Data.open(tmp_path, labels="model")
    assert torch.equal(data.x[:, 0] * 255, GREY[:5].float())
    assert not data.labelled
    (tmp_path / "empty").mkdir()
    assert "there are no images in it" in refused(tmp_path / "empty", labels="model")


# ---------------------------------------------------------------------- manifests


def manifest(folder: Path, text: str, name: str = "m.csv") -> Path:
    for i in range(4):
        put(folder / "images" / f"{i}.png", png(BYTES[i]))
    return put(folder / name, text)


def test_manifests(tmp_path: Path) -> None:
    want = GREY[[0, 2, 1]].float()
    rows = "images/0.png,dog\nimages/2.png,=1+1\n\nimages/1.png,dog\n"
    for head in ("path,label", "Filename, Class", "file_name,target"):
        data = Data.open(manifest(tmp_path, f"\ufeff{head}\n{rows}"))
        assert torch.equal(data.x[:, 0] * 255, want)
        assert (data.y.tolist(), data.names) == ([1, 0, 1], ("=1+1", "dog"))
    tabs = manifest(
        tmp_path, "id\timage\tlabel\n" + "".join(f"{i}\timages/{i}.png\t{3 - i}\n" for i in range(4)), "m.tsv"
    )
    assert Data.open(tabs).y.tolist() == [3, 2, 1, 0]
    assert Data.open(tabs, names=["w", "x", "y", "z"]).names == ("w", "x", "y", "z")
    assert Data.open(manifest(tmp_path, "path\nimages/0.png\n"), labels="model").y.tolist() == [0]


def test_splits_of_a_manifest(tmp_path: Path) -> None:
    text = "path,label,split\nimages/0.png,0,train\nimages/1.png,1,test\nimages/2.png,2,train\n"
    path = manifest(tmp_path, text)
    assert Data.open(path).y.tolist() == [1]
    assert Data.open(path, split="training").y.tolist() == [0, 2]
    assert "there is no split 'val'" in refused(path, split="val")


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "/etc/passwd",
        "images/../../secret.png",
        "C:\\\\x.png",
        "..\\\\secret.png",
        "\\\\\\\\host\\\\x.png",
    ],
)
def test_paths_out_of_the_folder(tmp_path: Path, name: str) -> None:
    put(tmp_path / "secret.png", png(BYTES[0]))
    path = manifest(tmp_path / "in", f"path,label\nimages/0.png,0\n{name},1\n")
    assert "leads out of the manifest's folder" in refused(path)


def test_links_out_of_the_folder(tmp_path: Path) -> None:
    put(tmp_path / "secret.png", png(BYTES[0]))
    path = manifest(tmp_path / "in", "path,label\nimages/0.png,0\nimages/link.png,1\nimages/inner.png,1\n")
    (tmp_path / "in" / "images" / "inner.png").symlink_to("1.png")
    (tmp_path / "in" / "images" / "link.png").symlink_to("2.png")
    assert torch.equal(Data.open(path).x[:, 0] * 255, GREY[[0, 2, 1]].float())
    (tmp_path / "in" / "images" / "link.png").unlink()
    (tmp_path / "in" / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    assert "is a link out of the manifest's folder" in refused(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the first line names the columns"),
        ("path,weight\nimages/0.png,1\n", "call them path and label"),
        ("path,label\n", "no images in the manifest"),
        ("path,label\nimages/0.png\n", "line 2 has 1 fields"),
        ("path,label\nimages/0.png,\n", "'images/0.png' has no label"),
        ("path,label\nimages/9.png,1\n", "images/9.png is not there"),
        ('path,label\n"' + "a" * 200_000 + '",1\n', "not readable as"),
        ("path,label\n\0,1\n", "leads out"),
    ],
)
def test_manifests_that_are_none(tmp_path: Path, text: str, words: str) -> None:
    assert words in refused(manifest(tmp_path, text))


def test_large_manifests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = manifest(tmp_path, "path,label\n" + "images/0.png,0\n" * 9)
    monkeypatch.setattr(tables, "MOST_ROWS", 8)
    assert "more than 8 rows" in refused(path)
    monkeypatch.setattr(tables, "MOST_FILE", 50)
    assert "give a sample of it" in refused(path)


# ---------------------------------------------------------------------- shards


def shard(path: Path, members: dict[str, bytes] | list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        if isinstance(members, dict):
            members = [(tarfile.TarInfo(name), body) for name, body in members.items()]
        for member, body in members:
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    return path


def samples(first: int, count: int) -> dict[str, bytes]:
    """WebDataset's samples, labels as .cls."""
    return {
        name: body for i in range(first, first + count)
        for name, body in ((f"./{i:05d}.png", png(BYTES[i])), (f"./{i:05d}.cls", b"%d" % (i % 4)))
    }  # fmt: skip


def test_shards(tmp_path: Path) -> None:
    one = shard(tmp_path / "one.tar", samples(0, 12))
    for i in range(3):
        shard(tmp_path / "many" / f"s-{i:02d}.tar", samples(4 * i, 4))
    want = Data.open(one)
    assert torch.equal(want.x[:, 0] * 255, GREY[:12].float())
    assert want.y.tolist() == [0, 1, 2, 3] * 3
    for path in (tmp_path / "many", tmp_path / "many" / "s-{00..02}.tar"):
        assert Data.open(path).digest == want.digest
    assert torch.equal(Data.open(tmp_path / "many" / "s-{01..02}.tar").x, want.x[4:])
    assert "'s-03.tar' are not there" in refused(tmp_path / "many" / "s-{00..03}.tar")
    for braces in ("{2..1}", "{0..99999}"):
        assert "names no shards" in refused(tmp_path / "many" / f"s-{braces}.tar")
    shard(tmp_path / "split" / "train-0.tar", samples(0, 8))
    shard(tmp_path / "split" / "test-0.tar", samples(0, 4))
    assert len(Data.open(tmp_path / "split")) == 4
    assert len(Data.open(tmp_path / "split", split="train")) == 8


@pytest.mark.parametrize(
    ("name", "label", "index"),
    [
        ("cls", b"1\n", 1), ("json", b'{"label": 1, "id": 9}', 1), ("json", b'{"class": "cat"}', 1),
        ("json", b'"cat"', 1), ("label.cls", b"cat", 1),
    ],
)  # fmt: skip
def test_labels_in_shards(tmp_path: Path, name: str, label: bytes, index: int) -> None:
    members = {f"a.{name}": label, "a.left.jpg": png(BYTES[0], "JPEG"), ".hidden": b"", "a.txt": b"about"}
    data = Data.open(shard(tmp_path / "s.tar", members), names=["ant", "cat"])
    assert data.y.tolist() == [index]


@pytest.mark.parametrize("label", [b"", b"true", b"[1]", b'{"id": 1}', b'{"label": 1.5}', b"null"])
def test_samples_without_a_label(tmp_path: Path, label: bytes) -> None:
    path = shard(tmp_path / "s.tar", {"a.png": png(BYTES[0]), "a.json" if label else "a.cls": label})
    assert "'a.png' has no label" in refused(path)
    assert len(Data.open(path, labels="model")) == 1


def test_labels_that_are_no_json(tmp_path: Path) -> None:
    for body in (b"{", b"[" * 100_000):
        assert "not readable" in refused(shard(tmp_path / "s.tar", {"a.png": png(BYTES[0]), "a.json": body}))


def odd(name: str, **fields: Any) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(member, key, value)
    return member


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (odd("a.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "is a link or no plain file"),
        (odd("a.png", type=tarfile.LNKTYPE, linkname="b.png"), "is a link or no plain file"),
        (odd("a.png", type=tarfile.CHRTYPE), "is a link or no plain file"),
        (odd("a.png", type=tarfile.FIFOTYPE), "is a link or no plain file"),
        (odd("../a.png"), "leads out of the shard"),
        (odd("/etc/a.png"), "leads out of the shard"),
        (odd("a.png", pax_headers={"GNU.sparse.major": "0", "GNU.sparse.size": str(2**40),
                                   "GNU.sparse.map": "0,1"}), "is a link or no plain file"),
    ],
)  # fmt: skip
def test_members_that_are_no_files(tmp_path: Path, member: tarfile.TarInfo, words: str) -> None:
    assert words in refused(shard(tmp_path / "s.tar", [(member, b"1")]))


def test_shards_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shard(tmp_path / "s.tar", samples(0, 4))
    monkeypatch.setattr(shards, "MOST_LABEL", 0)
    assert "too many for a label" in refused(path)
    monkeypatch.setattr(shards, "MOST_FILE", 20)
    assert "too many; take it out" in refused(path)
    monkeypatch.setattr(shards, "MOST_MEMBERS", 0)
    assert "more than 0 files" in refused(path)


def test_archives_that_are_no_shards(tmp_path: Path) -> None:
    assert "not readable as a .tar file" in refused(put(tmp_path / "s.tar", b"hello" * 200))
    assert "there are no images in it" in refused(shard(tmp_path / "e.tar", {"a.txt": b"", "b.cls": b"1"}))
    assert "unpack it to a .tar first" in refused(put(tmp_path / "s.tar.gz", b""))


def test_damaged_shards(tmp_path: Path) -> None:
    members = samples(0, 3)
    members["b.json"] = json.dumps({"label": 1}).encode()
    members["b.jpg"] = png(BYTES[0], "JPEG")
    path = shard(tmp_path / "s.tar", members)
    blob = path.read_bytes().rstrip(b"\0")

    @FUZZ
    @given(st.data())
    def damaged(data: st.DataObject) -> None:
        path.write_bytes(mutated(data, blob))
        read_or_refused(path)

    damaged()
