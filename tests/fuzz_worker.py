"""The process that reads bad files: it says what came of each, and is killed by the system if it hangs.

Started by `fuzz.py`, which sends a number a line and gets one line of JSON for each.
"""

from __future__ import annotations

import json
import logging
import os
import random
import resource
import shutil
import signal
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

REFUSED, READ, PAYLOAD, TRACEBACK, HANG, MEMORY = OUTCOMES = (
    "refused", "read", "payload ran", "traceback", "hang", "over 2 GiB",
)  # fmt: skip
AGAIN = 9  # exit status of a child that has to be started anew
SPACE, MOST = 4 * 2**30, 2 * 2**30  # of address space beyond what the libraries take, and of memory in use

RUNS = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn",
    "subprocess.Popen", "socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname",
    "socket.sendto", "webbrowser.open", "urllib.Request", "pickle.find_class", "ctypes.dlopen",
    "cpython.run_command", "cpython.run_file", "cpython.run_module", "cpython.run_interactivehook",
)  # fmt: skip
CHANGES = (
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.chown", "os.link", "os.symlink",
    "os.truncate", "shutil.rmtree", "shutil.move", "shutil.copyfile",
)  # fmt: skip
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
# Code that these make from text is theirs: named tuples and data classes of modules, templates of ours.
WRITERS = ("collections/__init__.py", "dataclasses.py", "jinja2/environment.py", "typing.py", "enum.py")


@dataclass
class Result:
    """What came of a file.

    Attributes:
        outcome: one of `OUTCOMES`.
        reader: its name.
        detail: the message, the last lines of the traceback, or what ran.
        index: which file.
    """

    outcome: str
    reader: str
    detail: str
    index: int


class Watch:
    """An audit hook: what is done while a file is read that no reader has to do.

    Attributes:
        found: what was done, while armed.
        scratch: the only folder that may be written to.
    """

    def __init__(self, scratch: Path) -> None:
        self.scratch, self.found, self.armed = str(scratch.resolve()), list[str](), False
        stdlib = sysconfig.get_paths()["stdlib"]
        source = str(Path(__file__).resolve().parents[1])
        known = [str(Path(p).resolve()) for p in (stdlib, source, *sys.path) if p]
        self.trusted = (*known, "<frozen")
        self.packages: set[str] = set()

    def arm(self) -> None:
        """From now on every act counts, but for what the modules of packages known by now do."""
        self.packages = {name.split(".")[0] for name in sys.modules}
        sys.addaudithook(self)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """While a file is read."""
        self.found.clear()
        self.armed = True
        try:
            yield
        finally:
            self.armed = False

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        self.armed = False  # what the hook itself does is its own
        try:
            act = self._act(event, args)
        finally:
            self.armed = True
        if act:
            self.found.append(act)
            raise PermissionError(f"not while a file is read: {act}")

    def _act(self, event: str, args: tuple[Any, ...]) -> str:
        """What a file has made happen, "" for what readers do."""
        if event in RUNS:
            return f"{event} {args!r}"[:300]
        if event in CHANGES:
            places = args[: 2 if event in ("os.rename", "shutil.move") else 1]
            return "" if all(self._inside(p) for p in places) else f"{event} {args!r}"[:300]
        if event == "open":
            path, mode, flags = args
            writes = (isinstance(mode, str) and set(mode) & set("wxa+")) or (
                isinstance(flags, int) and flags & WRITES
            )
            return f"open {path!r} {mode!r}" if writes and not self._inside(path) else ""
        if event == "import":
            return "" if args[0].split(".")[0] in self.packages else f"import {args[0]}"
        if event == "exec":
            return self._code(getattr(args[0], "co_filename", "?"), "exec")
        if event == "compile":
            name = args[1].decode("utf-8", "replace") if isinstance(args[1], bytes) else str(args[1])
            return self._code(name, "compile")
        return ""

    def _inside(self, path: object) -> bool:
        if not isinstance(path, str | bytes):  # a number is a file that is open already
            return True
        where = os.path.realpath(os.fsdecode(path))
        return where.startswith(self.scratch) or where == os.devnull

    def _code(self, name: str, event: str) -> str:
        if name.startswith(self.trusted) or (
            name[:1] != "<" and os.path.realpath(name).startswith(self.trusted)
        ):
            return ""
        frame, callers = sys._getframe(2), list[str]()
        while frame is not None and len(callers) < 6:
            callers.append(frame.f_code.co_filename)
            frame = frame.f_back  # type: ignore[assignment]
        writers = (*WRITERS, "ast.py") if event == "compile" else WRITERS  # which parses and does not run
        made = any(c.endswith(writers) and c.startswith(self.trusted) for c in callers)
        return "" if made else f"{event} of {name}"


def main(seeds: Path, scratch: Path, seed: str, limit: float, only: tuple[str, ...]) -> None:
    """Answer numbers with results until there are no more.

    This process reads the good files, and a child of it the bad ones; when that dies there is another.
    """
    answer = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    import torch
    from PIL import Image

    import fuzz_readers

    torch.set_num_threads(1)
    Image.init()  # which imports what it knows when it meets a file that it does not know
    scratch.mkdir(parents=True, exist_ok=True)
    os.environ["HOME"] = os.environ["BACKSWEEP_HOME"] = os.environ["TMPDIR"] = str(scratch)
    for reader in fuzz_readers.READERS:  # what libraries import late is imported here
        if reader.there and (not only or reader.name in only):
            for good in sorted((seeds / folder_of(reader.name)).iterdir()):
                outcome, detail = _read(reader, _copied(good, scratch), None)
                if outcome != (READ if reader.good else REFUSED):
                    raise SystemExit(
                        f"{good.name} for {reader.name} is {outcome}, which it is not to be: {detail}"
                    )
    watch = Watch(scratch)
    watch.arm()
    os.write(answer, b"ready\n")
    while True:
        child = os.fork()
        if child == 0:
            _child(seeds, scratch, seed, limit, only, watch, answer)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            return
        if status != AGAIN:
            outcome = HANG if status == -signal.SIGPROF else TRACEBACK
            _tell(answer, Result(outcome, "", f"the process ended with status {status}", -1))


def _child(
    seeds: Path, scratch: Path, seed: str, limit: float, only: tuple[str, ...], watch: Watch, answer: int
) -> None:
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + SPACE, taken + SPACE))
    while line := os.read(0, 100):
        result = _tried(int(line), seeds, scratch, seed, limit, only, watch)
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if used > MOST and result.outcome in (REFUSED, READ):
            result.outcome, result.detail = MEMORY, f"{used:,} bytes: {result.detail}"
        _tell(answer, result)
        if used > MOST:  # the mark does not go down again
            os._exit(AGAIN)


def _tried(
    index: int, seeds: Path, scratch: Path, seed: str, limit: float, only: tuple[str, ...], watch: Watch
) -> Result:
    """Make a bad file and read it."""
    import fuzz_mutations
    import fuzz_readers

    rng = random.Random(f"{seed}/{index}")
    reader = fuzz_readers.pick(rng, only)
    item = _copied(rng.choice(sorted((seeds / folder_of(reader.name)).iterdir())), scratch)
    marker = scratch / "ran"
    fuzz_mutations.spoil(item, rng, str(marker))
    if rng.random() < 0.5:
        with suppress(Exception):  # what is too far gone to agree with itself stays as it is
            reader.mend(item)
    signal.setitimer(signal.ITIMER_PROF, limit)  # of processor time; the signal ends the process
    with watch.reading():
        outcome, detail = _read(reader, item, watch)
    signal.setitimer(signal.ITIMER_PROF, 0)
    if marker.exists():
        outcome, detail = PAYLOAD, "a command ran"
        marker.unlink()
    return Result(outcome, reader.name, detail, index)


def _tell(answer: int, result: Result) -> None:
    os.write(answer, json.dumps(asdict(result)).encode() + b"\n")


def folder_of(name: str) -> str:
    """Folder of a reader's good files."""
    return "".join(c if c.isalnum() else "-" for c in name)


def _copied(good: Path, scratch: Path) -> Path:
    """A copy to spoil, of the same name."""
    place = scratch / "item"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    copy = place / good.name
    shutil.copytree(good, copy) if good.is_dir() else shutil.copyfile(good, copy)
    return copy


def _read(reader: Any, item: Path, watch: Watch | None) -> tuple[str, str]:
    from backsweep.core.errors import BadInput

    try:
        reader.read(item)
        outcome, detail = READ, ""
    except BadInput as e:
        outcome, detail = REFUSED, str(e)[:300]
        if "\n" in str(e):
            outcome, detail = TRACEBACK, f"a message of several lines: {e!r}"[:600]
        if _starved(e):
            outcome = MEMORY
    except BaseException as e:
        outcome = MEMORY if _starved(e) else TRACEBACK
        detail = "".join(traceback.format_exception(e)[-4:])[-1500:]
    if watch is not None and watch.found:
        outcome, detail = PAYLOAD, "; ".join(watch.found)[:1500]
    return outcome, detail


def _starved(error: BaseException | None) -> bool:
    """Whether more memory was asked for than there was, at the root of an error."""
    while error is not None:
        text = str(error)
        if isinstance(error, MemoryError) or "allocate memory" in text or "Unable to allocate" in text:
            return True
        error = error.__cause__ or error.__context__
    return False


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], float(sys.argv[4]), tuple(sys.argv[5:]))
