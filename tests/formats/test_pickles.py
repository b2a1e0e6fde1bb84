"""Pickles as data: what is read equals what torch reads, and nothing in a file ever runs."""

from __future__ import annotations

import argparse
import base64
import collections
import copyreg
import functools
import io
import json
import pickle
import pickletools
import resource
import struct
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from backsweep.core.errors import BadInput
from backsweep.formats.pickles import machine
from backsweep.formats.pickles.checkpoints import open_checkpoint, tensors_only
from backsweep.formats.pickles.machine import Placeholder
from backsweep.formats.weights.leaves import leaves

FUZZ = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))


def saved(value: Any, legacy: bool = False, protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(
            value, buffer, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol
        )  # fmt: skip
    return buffer.getvalue()


def archive(content: bytes, **members: bytes) -> bytes:
    """The zip form around any pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr("m/data.pkl", content)
        for name, data in members.items():
            made.writestr(f"m/data/{name.removeprefix('_')}", data)
    return buffer.getvalue()


def read(blob: bytes) -> Any:
    return open_checkpoint(blob).value


def refusal(blob: bytes) -> str:
    with pytest.raises(BadInput) as caught:
        open_checkpoint(blob)
    return str(caught.value)


def equal(a: Any, b: Any) -> bool:
    """Of one type and one content, tensors to the bit and to their strides."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        about = [(t.dtype, t.shape, t.stride(), t.storage_offset(), t.requires_grad) for t in (a, b)]
        a, b = (t.detach().resolve_conj().contiguous().flatten() for t in (a, b))
        return (
            about[0] == about[1] and a.numpy(force=True).tobytes() == b.numpy(force=True).tobytes()
            if a.dtype != torch.bfloat16
            else about[0] == about[1] and torch.equal(a.view(torch.int16), b.view(torch.int16))
        )
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


# ---------------------------------------------------------------------- the same as torch reads


@st.composite
def tensors(draw: Callable[[Any], Any]) -> Tensor:
    """Of many dtypes; views with any strides, some over the same memory."""
    dtype = draw(st.sampled_from([
        torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
        torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128,
    ]))  # fmt: skip
    memory = torch.tensor(draw(st.lists(st.integers(0, 100), min_size=12, max_size=12))).to(dtype)
    sizes = draw(st.lists(st.integers(0, 3), max_size=3))
    strides = [draw(st.integers(0, 2)) for _ in sizes]
    tensor = memory.as_strided(sizes, strides, draw(st.integers(0, 3)))
    if dtype.is_floating_point and draw(st.booleans()):
        return nn.Parameter(tensor, draw(st.booleans()))
    return tensor


PLAIN = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
    | st.binary(max_size=5) | st.complex_numbers(allow_nan=False)
)  # fmt: skip
KEYS = st.text(max_size=5) | st.integers(-5, 5) | st.tuples(st.integers(0, 3), st.text(max_size=2))
NESTED = st.recursive(
    tensors() | PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3)
    | st.dictionaries(KEYS, inner, max_size=3).map(collections.OrderedDict)
    | st.tuples(inner, inner) | st.lists(st.integers(0, 9)).map(torch.Size),
    max_leaves=12,
)  # fmt: skip


@FUZZ
@given(NESTED, st.booleans(), st.sampled_from([2, 3, 4, 5]))
def test_whatever_is_nested_is_read_as_torch_reads_it(value: Any, legacy: bool, protocol: int) -> None:
    blob = saved(value, legacy, protocol)
    found = open_checkpoint(blob)
    assert equal(found.value, torch.load(io.BytesIO(blob), weights_only=False))
    assert found.form == ("legacy" if legacy else "zip")
    assert found.unknown() == []


@pytest.mark.parametrize("legacy", [False, True])
def test_views_share_their_memory(legacy: bool) -> None:
    base = torch.arange(24.0)
    found = read(saved({"a": base, "b": base[3:9].view(2, 3).T, "c": [base]}, legacy))
    found["a"][3] = 99
    assert found["b"][0, 0] == 99
    assert found["c"][0] is found["a"]


def test_dtypes_that_have_no_storage_of_their_own() -> None:
    value = {"f8": torch.ones(3).to(torch.float8_e4m3fn), "u16": torch.tensor([1, 65535], dtype=torch.uint16)}
    found = read(saved(value))
    assert found["f8"].dtype == torch.float8_e4m3fn
    assert found["f8"].float().tolist() == [1, 1, 1]
    assert found["u16"].tolist() == [1, 65535]


def test_conjugates() -> None:
    value = (torch.arange(3) + 1j).conj()
    assert torch.equal(read(saved(value)), value)


def test_other_byte_orders() -> None:
    """An archive from a machine with the other order of bytes."""
    blob = saved({"x": torch.tensor([1.0, 2.0]), "n": torch.tensor([7])})
    with zipfile.ZipFile(io.BytesIO(blob)) as old:
        members = {i.filename: old.read(i) for i in old.infolist()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as new:
        for name, content in members.items():
            if name.endswith("byteorder"):
                content = b"big"
            elif "/data/" in name:
                size = 4 if len(content) == 8 and content[3:4] == b"\x3f" else 8
                content = b"".join(content[i : i + size][::-1] for i in range(0, len(content), size))
            new.writestr(name, content)
    found = read(buffer.getvalue())
    assert found["x"].tolist() == [1.0, 2.0]
    assert found["n"].tolist() == [7]


CONTAINERS: dict[str, Any] = {
    "a default dictionary": collections.defaultdict(list, {"x": [1]}),
    "a counter": collections.Counter("aab"),
    "a set": {1, "x", (2, 3)},
    "a frozen set": frozenset({1, 2}),
    "bytes that change": bytearray(b"xy"),
    "no bytes": b"",
    "a size": torch.Size([2, 3]),
    "a dtype": torch.bfloat16,
    "a device": torch.device("cuda:1"),
    "a large number": 2**200,
    "no dtype of torch": np.dtype("float32"),
    "a number of NumPy": np.float64(0.9),
    "a text of NumPy": np.str_("best"),
    "a truth of NumPy": np.bool_(True),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", CONTAINERS)
def test_containers_and_numbers(kind: str, protocol: int) -> None:
    for blob in (saved([CONTAINERS[kind]], False, protocol), pickle.dumps([CONTAINERS[kind]], protocol)):
        found = open_checkpoint(blob)
        assert equal(found.value[0], CONTAINERS[kind])
        assert found.unknown() == []


ARRAYS = {
    "floats": np.arange(6.0).reshape(2, 3),
    "another order of bytes": np.arange(6, dtype=">i4").reshape(3, 2),
    "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "none": np.zeros((0, 3), np.float32),
    "no dimensions": np.array(3.5),
    "truths": np.array([True, False]),
    "texts": np.array(["a", "bcd"]),
    "half": np.ones(3, np.float16),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays(kind: str, protocol: int) -> None:
    array = ARRAYS[kind]
    found = read(pickle.dumps({"x": array, "again": array}, protocol))
    assert found["x"].dtype == array.dtype.newbyteorder("=")
    assert found["x"].shape == array.shape
    assert (found["x"] == array).all()
    assert found["again"] is found["x"]
    assert found["x"].flags.writeable


def test_a_plain_pickle_of_tensors() -> None:
    found = open_checkpoint(pickle.dumps({"w": torch.arange(3.0), "p": nn.Parameter(torch.ones(2))}))
    assert found.form == "plain"
    assert found.value["w"].tolist() == [0, 1, 2]
    assert isinstance(found.value["p"], nn.Parameter)
    assert found.unknown() == []


def test_what_old_versions_wrote() -> None:
    """Tensors without gradients, parameters and tensors that get their values from a state."""
    storage = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x02tQ"
    two = struct.pack("<2f", 5, 6)
    old = b"ctorch._utils\n_rebuild_tensor\n(" + storage + b"K\x00K\x02\x85K\x01\x85tR."
    assert read(archive(b"\x80\x02" + old, _0=two)).tolist() == [5, 6]
    by_state = b"ctorch\nFloatTensor\n)\x81(" + storage + b"K\x00K\x02\x85K\x01\x85tb."
    assert read(archive(b"\x80\x02" + by_state, _0=two)).tolist() == [5, 6]
    parameter = b"ctorch.nn.parameter\nParameter\n)\x81(" + old[:-1] + b"\x88Ntb."
    found = read(archive(b"\x80\x02" + parameter, _0=two))
    assert isinstance(found, nn.Parameter)
    assert found.requires_grad


# ---------------------------------------------------------------------- objects stay names


class Config:
    """An object with attributes."""

    def __init__(self) -> None:
        self.rate = 0.1
        self.weights = torch.ones(2)


class Attributes(dict[str, Any]):
    """A dictionary of a class of its own."""


class Heavy(Tensor):
    """A tensor of a class of its own."""


def test_objects_become_placeholders() -> None:
    value = {
        "args": argparse.Namespace(lr=1), "config": Config(), "path": Path("x"),
        "call": functools.partial(print), "own": Attributes(a=torch.ones(1)),
        "queue": collections.deque([1, 2]), "type": Config,
    }  # fmt: skip
    checkpoint = open_checkpoint(saved(value))
    found = checkpoint.value
    assert all(isinstance(v, Placeholder) for v in found.values())
    assert found["args"].name == "argparse.Namespace"
    assert found["args"].state == {"lr": 1}
    assert found["config"].state["weights"].tolist() == [1, 1]
    assert found["own"].entries[0][0] == "a"
    assert found["queue"].items == [1, 2]
    assert found["type"].args is None
    assert {"argparse.Namespace", "collections.deque", "functools.partial"} <= set(checkpoint.unknown())
    with pytest.raises(BadInput, match=r"pickled Python objects.*would run code"):
        tensors_only(saved(value))


def test_subclasses_of_tensors_give_their_tensors() -> None:
    checkpoint = open_checkpoint(saved({"x": torch.arange(3.0).as_subclass(Heavy)}))
    assert type(checkpoint.value["x"]) is Tensor
    assert checkpoint.value["x"].tolist() == [0, 1, 2]
    assert checkpoint.unknown() == [f"{__name__}.Heavy"]


def test_what_is_left_out_is_named() -> None:
    parameter = nn.Parameter(torch.ones(2))
    parameter.note = "x"  # type: ignore[attr-defined]
    ordered = collections.OrderedDict(a=1)
    ordered.extra = 3  # type: ignore[attr-defined]
    value = {"p": parameter, "o": ordered, "d": collections.defaultdict(Config)}
    checkpoint = open_checkpoint(saved(value))
    assert equal(checkpoint.value["o"], collections.OrderedDict(a=1))
    assert set(checkpoint.unknown()) == {
        "attributes of a parameter", "attributes of a OrderedDict", f"{__name__}.Config"
    }  # fmt: skip


# ---------------------------------------------------------------------- nothing runs


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


EVIL = [
    ("os", "system"), ("posix", "system"), ("builtins", "eval"), ("builtins", "exec"),
    ("__builtin__", "eval"), ("subprocess", "Popen"), ("torch.hub", "load"), ("torch", "load"),
    ("torch.storage", "_load_from_bytes"),
    ("torch.utils.cpp_extension", "load_inline"), ("importlib", "import_module"), ("runpy", "_run_code"),
    ("torch", "jit.load"), ("torch._utils", "_import_dotted_name"), ("numpy.f2py", "crackfortran.myeval"),
    ("numpy.core.multiarray", "_reconstruct.__globals__"), ("torch", "FloatStorage.__init__.__globals__"),
    ("canary", "touch"), ("canary", "Class"), ("collections", "OrderedDict.__reduce__"),
    ("_codecs", "lookup"),
]  # fmt: skip


def payloads(module: str, name: str, argument: str) -> dict[str, bytes]:
    """Every operation that can call, look up or fill something, with one function."""
    named = f"c{module}\n{name}\n".encode()
    stacked = text(module) + text(name) + b"\x93"
    given = text(argument)
    made = named + b")\x81"
    return {
        "REDUCE": named + given + b"\x85R.",
        "REDUCE of a stacked name": b"\x80\x04" + stacked + given + b"\x85R.",
        "a method by a dotted name": text(module) + text(f"{name}.__call__") + b"\x93" + given + b"\x85R.",
        "INST": b"(" + given + f"i{module}\n{name}\n.".encode(),
        "OBJ": b"(" + named + given + b"o.",
        "NEWOBJ": named + given + b"\x85\x81.",
        "NEWOBJ_EX": named + given + b"\x85}\x92.",
        "keywords": named + b")}" + text("command") + given + b"s\x92.",
        "BUILD": made + given + b"b.",
        "BUILD by __setstate__": made + b"}" + text("__setstate__") + named + b"s" + b"b" + given + b"b.",
        "BUILD of slots": made + b"N}" + text("__class__") + named + b"s\x86b.",
        "BUILD of a list": b"]}" + text("append") + named + b"sb" + given + b"a.",
        "BUILD of a dictionary": b"}}" + text("__setitem__") + named + b"sb" + given + given + b"s.",
        "BUILD of an ordered dictionary": b"ccollections\nOrderedDict\n)R}" + text("__setitem__") + named
        + b"sb" + given + given + b"s.",
        "APPEND": made + given + b"a.",
        "SETITEM": made + given + given + b"s.",
        "BINPERSID": named + given + b"\x85RQ.",
        "a storage": b"(" + text("storage") + named + text("0") + text("cpu") + b"K\x01tQ.",
        "the type of a tensor": b"ctorch._tensor\n_rebuild_from_type_v2\n(" + named + named + given
        + b"\x85}tR.",
        "the hooks of a tensor": b"ctorch._utils\n_rebuild_parameter\n(" + named + given + b"\x85R\x88"
        + named + b"tR.",
        "a factory": b"ccollections\ndefaultdict\n" + named + b"\x85R" + given + b"h\x00" + b"0.",
        "an object of protocol 0": b"ccopy_reg\n_reconstructor\n(" + named + b"c__builtin__\nobject\nNtR"
        + given + b"b.",
        "a dtype": b"cnumpy\ndtype\n" + named
        + b"\x85R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb.",
        "an array of objects": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
        b"(K\x01K\x01\x85cnumpy\ndtype\nU\x02O8\x85R\x89](" + named + given + b"\x85Retb.",
        "a key": b"}" + named + given + b"\x85R" + given + b"s.",
        "a member of a set": b"\x80\x04\x8f(" + named + given + b"\x85R\x90.",
        "getattr": b"cbuiltins\ngetattr\n" + b"cos\nenviron\n" + text("copy") + b"\x86R)R.",
        "map": b"cbuiltins\nmap\n" + named + b"]" + given + b"a\x86R.",
        "a call of what was called": named + given + b"\x85R" + given + b"\x85R.",
    }  # fmt: skip


PROOF = """
import base64, json, sys
sys.path.insert(0, sys.argv[1])
from backsweep.core.errors import BadInput
from backsweep.formats.pickles.checkpoints import open_checkpoint
from backsweep.formats.weights.leaves import leaves
seen, watching = [], False

def hook(event, args):
    if watching and event not in ("builtins.id", "object.__getattr__", "object.__setattr__"):
        seen.append(f"{event} {str(args)[:100]}")

for _ in range(2):  # imports that are ours happen here
    open_checkpoint(base64.b64decode(json.loads(sys.stdin.readline())))
sys.addaudithook(hook)
counts = {"read": 0, "refused": 0}
for line in sys.stdin:
    blob = base64.b64decode(json.loads(line))
    watching = True
    try:
        found = open_checkpoint(blob)
        found.unknown(), leaves(found.value)
        result = "read"
    except BadInput as e:
        result = "refused"
        assert "\\n" not in str(e)
    watching = False
    counts[result] += 1
print(json.dumps({"seen": seen, "counts": counts, "canary": "canary" in sys.modules}))
"""


def test_payloads_in_every_place_that_can_call(tmp_path: Path) -> None:
    """In a process that reports whatever the interpreter is asked: imports, files, processes, code."""
    marker = tmp_path / "ran"
    (tmp_path / "canary.py").write_text(
        f"import pathlib\npathlib.Path({str(marker)!r}).touch()\ndef touch(*a): pass\nclass Class: pass\n"
    )
    blobs = []
    for module, name in EVIL:
        for content in payloads(module, name, f"touch {marker}").values():
            content = b"\x80\x02" + content
            inside = (
                b"\x80\x02ctorch.storage\n_load_from_bytes\n"
                + b"B"
                + struct.pack("<I", len(content))
                + content
                + b"\x85R."
            )
            value = b"\x80\x02}" + text("state_dict") + content[2:-1] + b"s."
            blobs += [content, archive(content), legacy(content), inside, archive(inside), value]
            blobs.append(archive(b"\x80\x02}.", _0=archive(content)))
    harmless = [saved({"w": torch.ones(2)}), archive(b"\x80\x02}.")]
    lines = "\n".join(json.dumps(base64.b64encode(b).decode()) for b in [*harmless, *blobs]) + "\n"
    done = subprocess.run(
        [sys.executable, "-c", PROOF, str(tmp_path)], input=lines, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["seen"] == []
    assert not found["canary"]
    assert not marker.exists()
    assert found["counts"]["read"] > len(blobs) / 2, "most are read, as names"
    assert sum(found["counts"].values()) == len(blobs)


def legacy(content: bytes) -> bytes:
    """The older form around any pickle."""
    head = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    return head + content + pickle.dumps([], 2)


def test_the_payloads_work_where_pickles_are_trusted(tmp_path: Path) -> None:
    """Or the test above would prove nothing."""
    marker = tmp_path / "ran"
    for kind in ("REDUCE", "INST", "OBJ", "NEWOBJ", "map"):
        marker.unlink(missing_ok=True)
        content = payloads("os", "system", f"touch {marker}")[kind]
        if kind == "map":
            content = content.replace(b"cbuiltins\nmap\n", b"cbuiltins\nlist\ncbuiltins\nmap\n").replace(
                b"\x86R.", b"\x86R\x85R."
            )
        try:
            pickle.loads(b"\x80\x02" + content)
        except Exception:  # a function is no class: it has run before that is found out, or it cannot
            assert kind in ("NEWOBJ",)
            continue
        assert marker.exists(), kind


def test_the_registry_of_extensions_is_not_asked() -> None:
    copyreg.add_extension("os", "system", 240)
    try:
        found = read(archive(b"\x80\x02\x82\xf0" + text("exit 3") + b"\x85R."))
    finally:
        copyreg.remove_extension("os", "system", 240)
    assert isinstance(found, Placeholder)
    assert (found.name, found.args) == ("an object of extension 240", ("exit 3",))


def test_every_operation_has_a_rule() -> None:
    known = {op.name for op in pickletools.opcodes}
    assert set(machine._RULES) == known


# ---------------------------------------------------------------------- what it may cost


def graph(depth: int, before: bytes, after: bytes) -> bytes:
    return b"\x80\x02" + before * depth + b"N" + after * depth + b"."


COSTLY: dict[str, Callable[[], bytes]] = {
    "deep lists": lambda: graph(300_000, b"]", b"a"),
    "deep tuples": lambda: graph(300_000, b"", b"\x85"),
    "deep tuples as a key": lambda: b"\x80\x02}N" + b"\x85" * 300_000 + b"Ns.",
    "deep dictionaries": lambda: b"\x80\x02" + b"}K\x01" * 200_000 + b"N" + b"s" * 200_000 + b".",
    "deep objects": lambda: b"\x80\x02cx\ny\nq\x00)\x81" + b"h\x00)\x81" * 50_000 + b"b" * 50_000 + b".",
    "a list that holds itself": lambda: b"\x80\x02]q\x00h\x00a.",
    "a dictionary that holds itself": lambda: b"\x80\x02}q\x00(" + text("a") + b"h\x00" + text("b")
    + b"h\x00u.",
    "an object that holds itself": lambda: b"\x80\x02cx\ny\n)\x81q\x00}" + text("a") + b"h\x00sb.",
    "modules that double": lambda: doubled(),
    "a text of four gigabytes": lambda: b"\x80\x02X\xff\xff\xff\xffabc.",
    "bytes of 2**60": lambda: b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"abc.",
    "a long number": lambda: b"\x80\x02\x8b\xff\xff\xff\x7fabc.",
    "a place in the memo of 2**31": lambda: b"\x80\x02Nr\xff\xff\xff\x7f.",
    "many operations": lambda: b"\x80\x02" + b"]0" * 3_000_000 + b"N.",
    "copies of bytes": lambda: b"\x80\x02" + text("x" * 2**20) + b"q\x00cbuiltins\nbytearray\nq\x01"
    + b"c_codecs\nencode\nq\x02h\x00" + text("latin1") + b"\x86Rq\x03" + b"h\x01h\x03\x85R" * 5_000 + b".",
    "copies of lists": lambda: b"\x80\x02](" + b"K\x01" * 200_000 + b"eq\x00cbuiltins\nset\nq\x01"
    + b"h\x01h\x00\x85R0" * 5_000 + b".",
    "numbers of one hash": lambda: b"\x80\x02}(" + b"".join(
        b"G" + struct.pack(">d", float((2**61 - 1) * 2**10 * k)) + b"N" for k in range(1, 40_000)) + b"u.",
    "large numbers of one hash": lambda: b"\x80\x02}(" + b"".join(
        b"\x8a\x0a" + ((2**61 - 1) * k).to_bytes(10, "little") + b"N" for k in range(1, 100_000)) + b"u.",
    "one number in 2**50 places": lambda: archive(
        b"\x80\x02" + tensor(1, [2**25, 2**25], [0, 0]), _0=bytes(4)),
    "a tensor outside its memory": lambda: archive(b"\x80\x02" + tensor(1, [2], [1]), _0=bytes(4)),
    "a tensor far outside its memory": lambda: archive(b"\x80\x02" + tensor(1, [1], [1], 2**40), _0=bytes(4)),
    "a negative stride": lambda: archive(b"\x80\x02" + tensor(4, [4], [-1], 3), _0=bytes(16)),
    "sizes whose product overflows": lambda: archive(
        b"\x80\x02" + tensor(1, [2**33, 2**33], [0, 0]), _0=bytes(4)),
    "a storage of 2**50 bytes": lambda: archive(b"\x80\x02" + tensor(2**48, [1], [1]), _0=bytes(4)),
    "an older storage of 2**50 bytes": lambda: legacy(b"\x80\x02" + tensor(2**48, [1], [1], old=True)),
    "older storages without memory": lambda: legacy(b"\x80\x02" + tensor(1, [1], [1], old=True)),
    "an array of 2**50 bytes": lambda: b"\x80\x02cnumpy._core.numeric\n_frombuffer\n(c_codecs\nencode\n"
    + text("x") + text("latin1") + b"\x86Rcnumpy\ndtype\nU\x02u1\x85R" + b"\x8a\x07"
    + (2**50).to_bytes(7, "little") + b"\x85U\x01CtR.",
    "an archive in an archive in a pickle": lambda: twice(),
    "names of no text": lambda: b"\x80\x04K\x01K\x02\x93.",
    "a buffer from outside": lambda: b"\x80\x05\x97.",
    "a read-only buffer": lambda: b"\x80\x05K\x01\x98.",
    "an empty stack": lambda: b"\x80\x02R.",
    "no end": lambda: b"\x80\x02}",
    "two members of one name": lambda: two_members(),
    "a bomb": lambda: bomb(),
}  # fmt: skip


def tensor(count: int, sizes: list[int], strides: list[int], offset: int = 0, old: bool = False) -> bytes:
    """A tensor over a storage that says to have `count` numbers."""

    def numbers(values: list[int]) -> bytes:
        return b"(" + b"".join(b"\x8a\x0a" + v.to_bytes(10, "little", signed=True) for v in values) + b"t"

    storage = (
        b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpu"
        + numbers([count])[1:-1]
        + (b"N" if old else b"")
        + b"tQ"
    )
    return (
        b"ctorch._utils\n_rebuild_tensor\n("
        + storage
        + numbers([offset])[1:-1]
        + numbers(sizes)
        + numbers(strides)
        + b"tR."
    )


def doubled() -> bytes:
    """Sixty modules, each of which has the next one twice."""
    module = (
        b"cx\nNet\nq\x01)\x81}("
        + text("_parameters")
        + b"}"
        + text("_buffers")
        + b"}"
        + text("_modules")
        + b"}ub"
    )
    content = b"\x80\x02" + module + b"q\x02"
    for _ in range(60):
        pair = b"}(" + text("a") + b"h\x02" + text("b") + b"h\x02u"
        content += module.replace(b"}ub", pair + b"ub") + b"q\x02"
    return content + b"."


def twice() -> bytes:
    inner = pickle.dumps(torch.ones(3), 2)
    for _ in range(2):
        inner = (
            b"\x80\x02ctorch.storage\n_load_from_bytes\nB" + struct.pack("<I", len(inner)) + inner + b"\x85R."
        )
    return inner


def two_members() -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as made:
        warnings.simplefilter("ignore")
        made.writestr("m/data.pkl", b"\x80\x02N.")
        made.writestr("m/data.pkl", b"\x80\x02}.")
    return buffer.getvalue()


def bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("m/data.pkl", b"\x80\x02}.")
        made.writestr("m/data/0", bytes(2**24))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", COSTLY)
def test_work_and_memory_are_bounded(kind: str) -> None:
    blob = COSTLY[kind]()
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        found = open_checkpoint(blob)
        found.unknown()
        leaves(found.value)
    except BadInput as e:
        assert "\n" not in str(e)
        assert len(str(e)) < 500
    assert time.process_time() - begin < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20, "kilobytes"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("many operations", "pickled parts"),
        ("copies of bytes", "far more than its own size"),
        ("copies of lists", "far more than its own size"),
        ("numbers of one hash", "keys that are numbers"),
        ("one number in 2**50 places", "far more than its own size"),
        ("a tensor outside its memory", "outside its memory"),
        ("a tensor far outside its memory", "outside its memory"),
        ("a negative stride", "cannot be"),
        ("a storage of 2**50 bytes", "larger than its member"),
        ("an older storage of 2**50 bytes", "larger than the file"),
        ("older storages without memory", "damaged"),
        ("an array of 2**50 bytes", "outside its memory"),
        ("an archive in an archive in a pickle", "an archive in an archive"),
        ("names of no text", "a name that is no text"),
        ("a buffer from outside", "outside the file"),
        ("two members of one name", "two members of one name"),
        ("a bomb", "zip bomb"),
        ("no end", "damaged or cut short"),
    ],
)
def test_what_is_refused_says_why(kind: str, words: str) -> None:
    assert words in refusal(COSTLY[kind]())


# ---------------------------------------------------------------------- damage

SAMPLE = {
    "state_dict": {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.arange(4).to(torch.bfloat16)},
    "args": argparse.Namespace(lr=1), "best": np.float64(0.5), "array": np.ones((2, 2)),
    "counts": collections.Counter("ab"), "size": torch.Size([1, 2]),
}  # fmt: skip
FORMS: dict[str, Callable[[], bytes]] = {
    "zip": lambda: saved(SAMPLE),
    "legacy": lambda: saved(SAMPLE, legacy=True),
    "plain": lambda: pickle.dumps(SAMPLE, 2),
    "protocol 5": lambda: pickle.dumps(SAMPLE, 5),
    "a pickle in a sound archive": lambda: saved(SAMPLE),
}


@pytest.mark.parametrize("form", FORMS)
def test_damage_gives_one_line(form: str) -> None:
    blob = FORMS[form]()
    inside = form == "a pickle in a sound archive"
    if inside:
        with zipfile.ZipFile(io.BytesIO(blob)) as sound:
            members = {i.filename: sound.read(i) for i in sound.infolist()}
        name = next(n for n in members if n.endswith("data.pkl"))
        blob = members[name]

    @settings(FUZZ, max_examples=400)
    @given(st.data())
    def damaged(data: st.DataObject) -> None:
        changed = bytearray(blob)
        for _ in range(data.draw(st.integers(1, 4))):
            place = data.draw(st.integers(0, len(changed) - 1))
            how = data.draw(st.sampled_from(["set", "cut", "insert", "delete"]))
            if how == "set":
                changed[place] = data.draw(st.integers(0, 255))
            elif how == "insert":
                changed[place:place] = data.draw(st.binary(min_size=1, max_size=4))
            elif how == "delete":
                del changed[place : place + 2]
            else:
                del changed[place + 1 :]
            if not changed:
                break
        content = bytes(changed)
        if inside:
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as made:
                for n, old in members.items():
                    made.writestr(n, content if n == name else old)
            content = buffer.getvalue()
        try:
            open_checkpoint(content).unknown()
        except BadInput as e:
            assert "\n" not in str(e)

    damaged()
