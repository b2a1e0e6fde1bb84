"""Good files made bad: bytes, lengths, JSON values, members of archives, rows of databases."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import random
import sqlite3
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

JSON_SUFFIXES = (".json", ".jsonl")
TABLE_SUFFIXES = (".csv", ".tsv")
BIG = [
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**53,
    2**63 - 1,
    2**63,
    2**64,
    2**70,
    10**30,
    10**400,
    -1,
    -(2**63),
    -(10**400),
]
FLOATS = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1e999",
    "1e308",
    "-1e308",
    "1e-320",
    "0.0",
    "-0.0",
    "0.5",
    "3.0",
]
TEXTS = [
    "", "x", "../../../etc/passwd", "/etc/passwd", "\x00", "\ud800", "\u202egnp.exe", "a" * 5000, "nan",
    "True", "<script>alert(1)</script>", "{{ 7*7 }}", "%s%n", "\n\r\x1b[31m", "os.system", "__class__",
    "image", "cascade", "neural_cleanse", "0", "class-0", "banks:small",
]  # fmt: skip
Value = Any
Way = Callable[[bytes, random.Random, str], bytes]


class Raw(str):
    """JSON that Python would not write: put into the text as it stands."""


def payload(marker: str) -> list[bytes]:
    """Pickles that run a command, by every opcode that can call something."""
    command = f"touch {marker}".encode()
    quoted = b"V" + command + b"\n"
    return [
        b"cos\nsystem\n(" + quoted + b"tR.",
        b"(" + quoted + b"ios\nsystem\n.",
        b"(cos\nsystem\n" + quoted + b"o.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93(" + quoted + b"tR.",
        b"cbuiltins\neval\n(V__import__('os').system('" + command + b"')\ntR.",
        b"cbuiltins\nexec\n(Vimport os; os.system('" + command + b"')\ntR.",
        b"csubprocess\ncall\n((lVtouch\naV" + marker.encode() + b"\natR.",
        b"cposix\nsystem\n" + quoted + b"\x85R.",
        b"\x80\x02cbuiltins\ngetattr\n(c__builtin__\n__import__\n(Vos\ntRVsystem\ntR(" + quoted + b"tR.",
        pickle.dumps({"state_dict": 1}),
    ]


# ---------------------------------------------------------------------- any file


def mutated(name: str, blob: bytes, rng: random.Random, marker: str) -> bytes:
    """A file changed in one to three ways that suit its kind."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        with contextlib.suppress(Exception):  # it may be too damaged already to be changed in this way
            blob = rng.choice(_ways(name, blob))(blob, rng, marker)
    return blob


def _ways(name: str, blob: bytes) -> list[Way]:
    if name.endswith(JSON_SUFFIXES):
        told: Way = _json_lines if name.endswith("l") else _json
        return [told] * 6 + [_bytes]
    if name.endswith(TABLE_SUFFIXES):
        return [_cells, _cells, _cells, _bytes]
    if blob[:2] == b"PK":
        return [_zip, _zip, _zip, _bytes, _lengths]
    if blob[:16] == b"SQLite format 3\x00":
        return [_rows, _rows, _rows, _bytes]
    if blob[257:262] == b"ustar":
        return [_tar, _tar, _bytes, _lengths]
    if blob[8:9] == b"{":
        return [_safetensors, _safetensors, _safetensors, _bytes, _lengths]
    if blob[:1] == b"\x80":
        return [_pickle, _pickle, _bytes, _lengths]
    return [_bytes, _lengths]


def _bytes(blob: bytes, rng: random.Random, marker: str) -> bytes:
    """Flips, cuts, copies, insertions."""
    out, size = bytearray(blob), len(blob)
    at = rng.randrange(size + 1)
    way = rng.randrange(7)
    if way == 0:
        return bytes(out[:at])
    if way == 1:
        return bytes(out[:at] + out[min(size, at + rng.choice((1, 4, 16, 256))) :])
    if way == 2:
        other = rng.randrange(size + 1)
        return bytes(out[:at] + out[other : other + rng.choice((1, 8, 64, 1024))] + out[at:])
    if way == 3:
        return bytes(out[:at] + rng.randbytes(rng.choice((1, 4, 64))) + out[at:])
    if way == 4:
        end = min(size, at + rng.choice((4, 64, 1024)))
        out[at:end] = bytes(end - at)
        return bytes(out)
    if way == 5:
        return bytes(out) + rng.choice((b"\x00" * 100, bytes(out[:64]), rng.choice(payload(marker))))
    for _ in range(rng.choice((1, 2, 8, 64))):
        if size:
            # damage is more telling in headers than in the weights
            place = rng.randrange(min(size, 2048)) if rng.random() < 0.6 else rng.randrange(size)
            out[place] ^= 1 << rng.randrange(8)
    return bytes(out)


def _lengths(blob: bytes, rng: random.Random, marker: str) -> bytes:
    """A number where a length might stand."""
    out = bytearray(blob)
    form = rng.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
    width = struct.calcsize(form)
    at = rng.randrange(max(1, min(len(out), rng.choice((32, 256, 4096, len(out)))) - width))
    out[at : at + width] = struct.pack(
        form, rng.choice([b for b in BIG if 0 <= b < 2 ** (8 * width)] + [0, 1, 255])
    )
    return bytes(out)


# ---------------------------------------------------------------------- JSON


def _nodes(value: Value, found: list[tuple[Any, Any]]) -> None:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        found.append((value, key))
        _nodes(part, found)


def other(value: Value, rng: random.Random) -> Value:
    """Another value in the place of one."""
    kinds: list[Callable[[], Value]] = [
        lambda: None, lambda: rng.choice((True, False)), lambda: rng.choice((0, 1, 2, 3, 7)),
        lambda: rng.choice(BIG), lambda: Raw(rng.choice(FLOATS)), lambda: rng.choice(TEXTS), list, dict,
        lambda: [value], lambda: {"a": value}, lambda: [value] * rng.choice((2, 50)),
        lambda: Raw("[" * (n := rng.choice((5, 40, 900, 20_000))) + "]" * n),
    ]  # fmt: skip
    if isinstance(value, int | float) and not isinstance(value, bool):
        kinds += [
            lambda: -value,
            lambda: value + 1,
            lambda: value * 1000,
            lambda: str(value),
            lambda: value / 7,
        ] * 2
    if isinstance(value, str):
        kinds += [
            lambda: value + "x",
            lambda: value[:-1],
            lambda: value.upper(),
            lambda: value.replace("-", "/"),
        ] * 2
    return rng.choice(kinds)()


def changed(value: Value, rng: random.Random) -> Value:
    """JSON with another value, key or place in it."""
    found: list[tuple[Any, Any]] = []
    _nodes(value, found)
    if not found or rng.random() < 0.01:
        return other(value, rng)
    where, key = rng.choice(found)
    way = rng.randrange(8)
    if way == 0:
        del where[key]
    elif way == 1 and isinstance(where, dict):
        where[rng.choice(("new", "", "schema", "__class__", key + "_", "\ud800"))] = where.pop(key)
    elif way == 2:
        there, spot = rng.choice(found)
        with contextlib.suppress(LookupError):
            where[key], there[spot] = there[spot], json.loads(json.dumps(where[key]))
    elif way == 3 and isinstance(where, list):
        where.insert(key, json.loads(json.dumps(rng.choice(where))))
    else:
        where[key] = other(where[key], rng)
    return value


def written(value: Value, rng: random.Random) -> str:
    """JSON as text, with what Python would not write; now and then with a key that stands twice."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        pairs = [f"{json.dumps(k)}: {written(v, rng)}" for k, v in value.items()]
        if pairs and rng.random() < 0.001:
            pairs.append(rng.choice(pairs))
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(written(v, rng) for v in value) + "]"
    return str(value) if isinstance(value, int) and abs(value) > 2**62 else json.dumps(value)


def _json(blob: bytes, rng: random.Random, marker: str) -> bytes:
    return written(changed(json.loads(blob), rng), rng).encode("utf-8", "surrogatepass")


def _json_lines(blob: bytes, rng: random.Random, marker: str) -> bytes:
    lines = blob.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = _json(lines[at], rng, marker)
    return b"\n".join(lines) + b"\n"


def _cells(blob: bytes, rng: random.Random, marker: str) -> bytes:
    """A table with another cell, or one more or fewer, or a row twice."""
    comma = b"\t" if b"\t" in blob else b","
    rows = [line.split(comma) for line in blob.splitlines()]
    row = rng.choice(rows)
    at, way = rng.randrange(len(row)), rng.randrange(4)
    if way == 0:
        del row[at]
    elif way == 1:
        rows.insert(rng.randrange(len(rows)), list(rng.choice(rows)))
    else:
        new = rng.choice([*TEXTS, "0", '"', "C:\\x.png", f"${marker}"]).encode("utf-8", "surrogatepass")
        row[at : at + way - 2] = [new]
    return b"\n".join(comma.join(row) for row in rows)


# ---------------------------------------------------------------------- files with a structure


def _safetensors(blob: bytes, rng: random.Random, marker: str) -> bytes:
    """The header is JSON behind its length; what it says of the tensors, and JSON inside its strings."""
    size = int.from_bytes(blob[:8], "little")
    header, rest = json.loads(blob[8 : 8 + size]), blob[8 + size :]
    said = header.get("__metadata__", {})
    inner = [k for k, v in said.items() if v[:1] == "{"]
    if inner and rng.random() < 0.6:
        key = rng.choice(inner)
        said[key] = written(changed(json.loads(said[key]), rng), rng)
    elif rng.random() < 0.5 and rest:
        rest = _bytes(rest, rng, marker)[: len(rest)].ljust(len(rest), b"\x7f")
    else:
        header = changed(header, rng)
    text = written(header, rng).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + rest


def _pickle(blob: bytes, rng: random.Random, marker: str) -> bytes:
    """A call put in somewhere: opcodes that load something, call it and drop the result."""
    call = rng.choice(payload(marker))[:-1]
    at = rng.choice((2, rng.randrange(2, max(3, min(len(blob), 2000)))))
    return (
        blob[:at]
        + call.removeprefix(b"\x80\x04").removeprefix(b"\x80\x02")
        + rng.choice((b"0", b""))
        + blob[at:]
    )


def _npy(blob: bytes, rng: random.Random, marker: str) -> bytes:
    """Another header of an array, as long as it was."""
    length = int.from_bytes(blob[8:10], "little")
    text = blob[10 : 10 + length].decode("latin1")
    swaps = [
        ("'<f4'", "'|O'"), ("'|u1'", "'|O'"), ("(", f"({rng.choice(BIG)}, "), ("'<f4'", "'<c8'"),
        ("'|u1'", "'<M8[s]'"),
        ("False", "True"),
        ("(", "(-1, "), ("{", "{'a': __import__('os').system('true'), "), ("'<f4'", "'<U9'"),
        ("'|u1'", "[('a', '<f4')]"), (")", ", 0)"), ("'descr'", "'desk'"),
    ]  # fmt: skip
    changed_text = text.rstrip().replace(*rng.choice(swaps), 1).encode("latin1")
    body = rng.choice((blob[10 + length :], rng.choice(payload(marker))))
    return blob[:8] + len(changed_text).to_bytes(2, "little") + changed_text + body


def _zip(blob: bytes, rng: random.Random, marker: str) -> bytes:
    """Members changed, renamed, doubled, dropped, packed, or with lengths that are not theirs."""
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        parts = [(i.filename, archive.read(i)) for i in archive.infolist()]
    at = rng.randrange(len(parts))
    name, content = parts[at]
    pack = zipfile.ZIP_STORED
    way = rng.randrange(9)
    if way <= 3:
        inner = _pickle if name.endswith((".pkl", ".pt")) else _npy if name.endswith(".npy") else None
        suits = _json if name.endswith(".json") else inner
        content = (suits if suits is not None and rng.random() < 0.8 else _bytes)(content, rng, marker)
        parts[at] = (name, content)
    elif way == 4:
        parts[at] = (
            rng.choice(("../../evil", "/var/evil", "a" * 300, "", name.upper(), name + "/", "\\..\\x")),
            content,
        )
    elif way == 5:
        parts.insert(rng.randrange(len(parts) + 1), rng.choice(parts) if rng.random() < 0.5 else (
            rng.choice(("archive/code/x.py", "archive/constants.pkl", "archive/data.pkl", "x")),
            rng.choice(payload(marker)),
        ))  # fmt: skip
    elif way == 6:
        del parts[at]
    elif way == 7:
        parts[at], pack = (name, content + bytes(2 ** rng.choice((10, 20, 27)))), zipfile.ZIP_DEFLATED
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", pack) as archive:
        for member, data in parts:
            with contextlib.suppress(UserWarning):
                archive.writestr(zipfile.ZipInfo(member), data, pack)
    whole = bytearray(out.getvalue())
    if way == 8:  # a length, a checksum or an offset in the directory
        start = whole.rfind(b"PK\x01\x02")
        spot = start + rng.choice((10, 16, 20, 24, 28, 30, 42))
        whole[spot : spot + 4] = struct.pack("<I", rng.choice((0, 1, 2**31, 2**32 - 1, rng.randrange(2**32))))
    return bytes(whole)


def _tar(blob: bytes, rng: random.Random, marker: str) -> bytes:
    """Members changed, renamed out of the folder, or made links and devices."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(blob)) as old, tarfile.open(fileobj=out, mode="w") as new:
        infos = old.getmembers()
        at = rng.randrange(len(infos))
        for i, info in enumerate(infos):
            file = old.extractfile(info)
            content = file.read() if file is not None else b""
            if i == at:
                way = rng.randrange(5)
                if way == 0:
                    content = _bytes(content, rng, marker)
                elif way == 1:
                    info.name = rng.choice(("../../evil", "/var/evil", "a" * 150, "x.pyd", "nolabel"))
                elif way == 2:
                    info.type = rng.choice(
                        (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)
                    )
                    info.linkname, content = "/etc/passwd", b""
                elif way == 3:
                    new.addfile(info, io.BytesIO(content))
            info.size = len(content)
            new.addfile(info, io.BytesIO(content))
    return out.getvalue()


def _rows(blob: bytes, rng: random.Random, marker: str) -> bytes:
    """A value in a row of a database: of another type, or JSON with another value in it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.db"
        path.write_bytes(blob)
        base = sqlite3.connect(path)
        try:
            _row(base, rng)
        except (sqlite3.Error, UnicodeError):
            return _bytes(blob, rng, marker)
        finally:
            base.close()
        return path.read_bytes()


def _row(base: sqlite3.Connection, rng: random.Random) -> None:
    table = rng.choice(("backsweep_verdicts",) * 12 + ("backsweep_store",))
    column = rng.choice([r[1] for r in base.execute(f"PRAGMA table_info({table})")])
    (old,) = base.execute(f"SELECT {column} FROM {table} LIMIT 1").fetchone()  # noqa: S608
    odd: list[Any] = [None, 3, -1.5, float("inf"), "x", b"\xff\x00", "", "[]", "{}", 2**62, rng.choice(TEXTS)]
    value = rng.choice(odd)
    if isinstance(old, str) and old[:1] in "{[" and rng.random() < 0.85:
        raw = written(changed(json.loads(old), rng), rng).encode("utf-8", "surrogatepass")
        value = raw.decode("utf-8", "replace") if rng.random() < 0.9 else raw
    base.execute(f"UPDATE {table} SET {column} = ?", (value,))  # noqa: S608
    base.commit()


# ---------------------------------------------------------------------- folders


def spoil(path: Path, rng: random.Random, marker: str) -> None:
    """Change one file of a folder, or the file itself; now and then take one away or swap two."""
    if path.is_file():
        path.write_bytes(mutated(path.name, path.read_bytes(), rng, marker))
        return
    every = sorted(p for p in path.rglob("*") if p.is_file())
    told = [p for p in every if p.suffix in JSON_SUFFIXES + TABLE_SUFFIXES]
    file = rng.choice(told) if told and rng.random() < 0.6 else rng.choice(every)
    way = rng.random()
    if way < 0.03:
        file.unlink()
    elif way < 0.06:
        file.write_bytes(rng.choice(every).read_bytes())
    else:
        file.write_bytes(mutated(file.name, file.read_bytes(), rng, marker))
