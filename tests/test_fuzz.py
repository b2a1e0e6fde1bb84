"""The fuzzer counts what it is there to count, and a minute of it finds nothing (make fuzz: for longer)."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz_mutations import mutated, payload
from fuzz_worker import HANG, MEMORY, PAYLOAD, READ, REFUSED, TRACEBACK

TESTS = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)])}

# Readers that do one thing each, in the place of the real ones.
STAND_INS = """
import os, pickle, random, signal, socket, sys, types
from pathlib import Path
from backsweep.core.errors import BadInput
import fuzz_worker

def bad(text):
    raise BadInput(text)

acts = [
    lambda p: p.read_bytes(),
    lambda p: p.with_name("beside").write_bytes(b"x"),
    lambda p: bad("one line"),
    lambda p: bad("two\\nlines"),
    lambda p: {}["x"],
    lambda p: os.system("true"),
    lambda p: Path(sys.argv[4]).write_bytes(b"x"),
    lambda p: pickle.loads(pickle.dumps(os.getcwd)),
    lambda p: exec("x = 1"),
    lambda p: __import__("antigravity"),
    lambda p: socket.create_connection(("127.0.0.1", 9)),
    lambda p: bytearray(8 * 2**30),
    lambda p: [None for _ in iter(int, 1)],
    lambda p: os.kill(os.getpid(), signal.SIGSEGV),
    lambda p: p.read_bytes(),
]

class Reader:
    there, good, mend = True, True, staticmethod(lambda p: None)
    def __init__(self, name, act):
        self.name, self.act, self.calls = name, act, 0
    def read(self, path):
        self.calls += 1
        return self.act(path) if self.calls > 1 else None  # the good file is read before

readers = [Reader(str(i), act) for i, act in enumerate(acts)]
known = {random.Random(f"0/{i}").random(): r for i, r in enumerate(readers)}
stub = types.ModuleType("fuzz_readers")
stub.READERS, stub.pick = readers, lambda rng, only: known[rng.random()]
sys.modules["fuzz_readers"] = stub
import fuzz_mutations
for r in readers:
    place = Path(sys.argv[1]) / fuzz_worker.folder_of(r.name)
    place.mkdir(parents=True)
    (place / "good.bin").write_bytes(b"good")
fuzz_worker.main(Path(sys.argv[1]), Path(sys.argv[2]), "0", float(sys.argv[3]), ())
"""
EXPECTED = [
    READ, READ, REFUSED, TRACEBACK, TRACEBACK, PAYLOAD, PAYLOAD, PAYLOAD, PAYLOAD, PAYLOAD, PAYLOAD,
    MEMORY, HANG, TRACEBACK, READ,
]  # fmt: skip


def test_what_must_not_happen_is_counted(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    words = [
        sys.executable,
        "-c",
        STAND_INS,
        str(tmp_path / "good"),
        str(tmp_path / "scratch"),
        "2",
        str(outside),
    ]
    with subprocess.Popen(
        words, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        found = []
        for i in range(len(EXPECTED)):
            process.stdin.write(f"{i}\n")
            process.stdin.flush()
            found.append(json.loads(process.stdout.readline()))
        process.stdin.close()
        assert process.wait(timeout=60) == 0
    assert [f["outcome"] for f in found] == EXPECTED, found
    assert not outside.exists()


def test_a_number_always_makes_the_same_bad_file() -> None:
    good = json.dumps({"a": [1, {"b": "text"}], "c": None}).encode()
    made = [[mutated("x.json", good, random.Random(f"0/{i}"), "m") for i in range(200)] for _ in range(2)]
    assert made[0] == made[1]
    assert len(set(made[0])) > 100 and good not in made[0][:1]
    assert all(
        b"system" in p or b"call" in p or b"ev" in p or b"exec" in p or b"state" in p for p in payload("m")
    )


@pytest.mark.slow
def test_a_minute_of_bad_files_runs_nothing_and_ends_in_one_line_each() -> None:
    words = [sys.executable, str(TESTS / "fuzz.py"), "--seconds", "60", "--count", "100000"]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert int(done.stdout.splitlines()[-1].split()[1]) > 50
