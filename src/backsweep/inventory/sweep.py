"""Many models: each is claimed, scanned as a whole, and its verdict kept.

What has a verdict already is not scanned again, whatever its file is called. A model that another
scanner is at work on is put to the end and waited for, so that a sweep covers all of its models.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from backsweep.core.errors import BadInput
from backsweep.core.files import writable_folder
from backsweep.core.progress import Event, OnEvent
from backsweep.core.provenance import provenance
from backsweep.core.seeds import run_key
from backsweep.core.versions import versions
from backsweep.engine.engine import Engine
from backsweep.engine.jobs import Lost
from backsweep.formats.hugging_face.language import modality_told
from backsweep.formats.opening import digest, load
from backsweep.inputs.kinds import modalities
from backsweep.inventory.running import MOST_NAMES, Logbook
from backsweep.inventory.source import Source
from backsweep.inventory.sources import find
from backsweep.inventory.store import Record, Store
from backsweep.models.checks import pick_device
from backsweep.reports.report import INCONCLUSIVE
from backsweep.scanning import scan
from backsweep.scanning.detector import ModelDetector

POLL = 1.0  # seconds between two looks at models that others are scanning


@dataclass(frozen=True)
class Scan:
    """How models are scanned: all that a verdict depends on beside the model.

    Attributes:
        data: path of the clean samples; "" for those that come with Backsweep.
        detectors, alpha, seed, device: as for `scan.scan`; detectors None: the usual ones.
        others: whether models of a kind with usual detectors of its own are scanned with those.
        resize: resize images to the model's input.
        reference: path of a clean network to compare with.
        how: what `load` is told of every model.
        split, labels: of `Data.open`.
    """

    data: str
    detectors: Sequence[ModelDetector] | None = None
    alpha: float = 0.05
    seed: int = 0
    device: str | None = None
    resize: bool = False
    reference: str | None = None
    how: Mapping[str, Any] = field(default_factory=dict)
    split: str | None = None
    labels: str | None = None
    others: bool = False

    @property
    def used(self) -> Sequence[ModelDetector]:
        """The detectors of a model that has no usual ones of its own."""
        return scan.choose(None) if self.detectors is None else self.detectors

    def of(self, path: Path) -> Scan:
        """How the model at a path is scanned: with the usual detectors of its kind, unless told others."""
        kind = modality_told(path) if self.others or self.detectors is None else ""
        if not kind:
            return self
        usual = scan.usual_of(modalities()[kind], adapter=self.how.get("base") is not None)
        return replace(self, detectors=scan.choose(usual), others=False)

    def settings(self) -> dict[str, Any]:
        """What the verdict's key is made of.

        Raises:
            BadInput: the samples or the reference cannot be read, or a setting cannot be.
        """
        return {
            "detectors": {d.name: d.settings() | d.depends_on() for d in self.used},
            **provenance(self.used), "alpha": scan.checked_alpha(self.alpha), "seed": self.seed,
            "data": _content(Path(self.data)) if self.data else "", "resize": self.resize,
            "load": {k: _named(v) for k, v in self.how.items() if v is not None},
            "reference": None if self.reference is None else digest(self.reference),
            "device": pick_device(self.device).type,
            "versions": {k: v for k, v in versions().items() if k != "python"},
            **{k: v for k, v in (("split", self.split), ("labels", self.labels)) if v is not None},
        }  # fmt: skip

    def __call__(self, path: Path, name: str, out: Path | None = None) -> dict[str, Any]:
        """The report on one model, as JSON.

        Args:
            path: of the model.
            name: what the report calls it.
            out: folder for the report.
        """
        model, data = scan.open_both(
            str(path), self.data or None, resize=self.resize, split=self.split, labels=self.labels, **self.how
        )
        model.source = name
        there = None
        if self.reference is not None:
            told = {**self.how, "shape": model.shape, "classes": model.classes, "weights": None}
            there = load(self.reference, **told)
        report = scan.scan(
            model, data, self.used, alpha=self.alpha, seed=self.seed, device=self.device, out=out,
            reference=there, engine=Engine(),
        )  # fmt: skip
        return report.to_json()


@dataclass(frozen=True)
class Outcome:
    """What a sweep says of one model.

    Attributes:
        source: its name, untrusted text.
        record: its verdict; None: it was not scanned.
        reason: why it was not scanned, or why the verdict is not kept; untrusted text.
        fresh: whether it was scanned in this sweep, and not before or by others.
    """

    source: str
    record: Record | None
    reason: str = ""
    fresh: bool = False

    @property
    def verdict(self) -> str:
        """The verdict; what was not scanned is inconclusive, never clean."""
        return self.record.verdict if self.record is not None else INCONCLUSIVE

    def to_json(self) -> dict[str, Any]:
        """The outcome as strict JSON; its record as `history --format json` has it, without the report."""
        kept = None if self.record is None else self.record.to_json()
        if kept is not None:
            del kept["report"]
        told = {"source": self.source, "verdict": self.verdict, "reason": self.reason, "fresh": self.fresh}
        return {**told, "record": kept}


def sweep(
    models: Iterable[str | Path | Source],
    scan: Scan,
    store: Store | None = None,
    engine: str | Engine | None = None,
    on_event: OnEvent | None = None,
    out: str | os.PathLike[str] | None = None,
) -> Iterator[Outcome]:
    """Scan models; yields an outcome for each, as they come.

    Args:
        models: paths, folders of models, registries (`sources.find`), or what these were found to be.
        scan: how.
        store: where verdicts are kept; None keeps them no longer than the sweep.
        engine: where to compute; a model is one job.
        on_event: told how many models are done.
        out: folder that receives a report for every model, in a folder named after its digest.

    Raises:
        BadInput: the settings cannot be used, or the store is lost for longer than its patience.
    """
    folder = None if out is None else writable_folder(Path(out))
    named = (m if isinstance(m, Source) else find([str(m)]) for m in models)
    sources = [s for group in named for s in ([group] if isinstance(group, Source) else group)]
    with ExitStack() as stack:
        if store is None:
            place = stack.enter_context(tempfile.TemporaryDirectory(prefix="backsweep-"))
            store = stack.enter_context(Store(str(Path(place) / "store.db")))
        run = _Sweep(scan, store, folder, len(sources), on_event)
        stack.callback(run.close)
        yield from run(sources, Engine.of(engine))


@dataclass
class _Model:
    """A model on its way: its digest and how it is scanned once known, its path while it is fetched."""

    source: Source
    digest: str = ""
    scan: Scan | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    key: str = ""
    path: Path | None = None
    fetched: ExitStack = field(default_factory=ExitStack)

    def fetch(self) -> Path:
        if self.path is None:
            self.path = self.fetched.enter_context(self.source.fetch())
        return self.path

    def drop(self) -> None:
        self.fetched.close()
        self.path = None


class _Sweep:
    """The state of a sweep: who is being scanned, and which outcomes wait to be told."""

    def __init__(
        self, scan: Scan, store: Store, out: Path | None, total: int, on_event: OnEvent | None
    ) -> None:
        self.scan, self.store, self.out, self.total = scan, store, out, total
        self.settings = scan.settings()
        self.keys = {tuple(self.settings["detectors"]): (self.settings, run_key(**self.settings))}
        self.on_event, self.begin = on_event, time.monotonic()
        self.done = self.known = 0
        self.claimed: dict[int, _Model] = {}
        self.ready: deque[Outcome] = deque()
        self.names: dict[str, None] = {}
        self.book = Logbook(store, self.settings, total)

    def __call__(self, sources: Iterable[Source], engine: Engine) -> Iterator[Outcome]:
        if not engine.here:  # workers may be started in another folder
            there = None if self.scan.reference is None else str(Path(self.scan.reference).absolute())
            data = str(Path(self.scan.data).absolute()) if self.scan.data else ""
            self.scan = replace(self.scan, data=data, reference=there)
            self.out = None if self.out is None else self.out.absolute()
        waiting = [_Model(s) for s in sources]
        self.names = dict.fromkeys(m.source.name for m in waiting)
        self._tell()
        while waiting:
            elsewhere: list[_Model] = []
            jobs = self._jobs(waiting, elsewhere)
            first = next(jobs, None)
            yield from self._told()
            if first is not None:  # drawn outside: an engine is not started for nothing
                for index, found in engine.run(chain([first], jobs)):
                    self._end(self.claimed[index], found)
                    del self.claimed[index]
                    yield from self._told()
            elif len(elsewhere) == len(waiting):
                time.sleep(POLL)
            yield from self._told()
            waiting = elsewhere

    def close(self) -> None:
        """Give back the claims of what was not scanned to its end."""
        for model in self.claimed.values():
            self.store.release(model.digest, model.key)
            model.drop()
        self.book.end(self.done, self.known)

    def _jobs(
        self, waiting: Sequence[_Model], elsewhere: list[_Model]
    ) -> Iterator[Callable[[], dict[str, Any] | str]]:
        """Jobs for the models that can be claimed now; the others go `elsewhere`."""
        count = 0
        for model in waiting:
            try:
                self._known(model)
            except BadInput as e:
                self._say(model, Outcome(model.source.name, None, str(e)))
                continue
            if self._kept(model):
                continue
            if not self.store.claim(model.digest, model.key):
                model.drop()
                elsewhere.append(model)
                continue
            self.claimed[count] = model
            try:
                # who had the claim before may have stored the verdict just now
                path = None if self._kept(model) else model.fetch()
            except BadInput as e:
                path = None
                self._say(model, Outcome(model.source.name, None, str(e)))
            if path is None:
                self.store.release(self.claimed.pop(count).digest, model.key)
                continue
            count += 1
            out = None if self.out is None else self.out / model.digest[:16]
            self._record(soon=True)
            yield partial(_job, model.scan or self.scan, path.absolute(), model.source.name, out)

    def _known(self, model: _Model) -> None:
        """Find out what a model is and how it is scanned."""
        if model.digest:
            return
        path = model.fetch()
        model.scan = self.scan.of(path)
        names = tuple(d.name for d in model.scan.used)
        if names not in self.keys:
            settings = model.scan.settings()
            self.keys[names] = settings, run_key(**settings)
        model.settings, model.key = self.keys[names]
        model.digest = digest(path, self.scan.how.get("base"))

    def _kept(self, model: _Model) -> bool:
        record = self.store.get(model.digest, model.key)
        if record is None:
            return False
        self.known += 1
        self._say(model, Outcome(model.source.name, record))
        return True

    def _end(self, model: _Model, found: dict[str, Any] | str | Lost) -> None:
        """Keep what came back from the engine; then, and not before, the claim goes back."""
        name = model.source.name
        if isinstance(found, dict) and found["model"]["sha256"] != model.digest:
            found = "it changed while it was scanned; scan it again"
        if not isinstance(found, dict):
            outcome = Outcome(name, None, str(found))
        else:
            record = Record.of(found, model.key, model.settings, name)
            failed = [n["reason"] for n in found["errors"] if n["what"] in model.settings["detectors"]]
            if failed and record.verdict == INCONCLUSIVE:  # another time it may come to an end
                outcome = Outcome(name, record, f"{failed[0]}; not kept", fresh=True)
            else:
                self.store.put(record, self.out)
                outcome = Outcome(name, record, fresh=True)
        self.store.release(model.digest, model.key)
        self._say(model, outcome)

    def _say(self, model: _Model, outcome: Outcome) -> None:
        model.drop()
        self.names.pop(model.source.name, None)
        self.done += 1
        self.ready.append(outcome)
        self._tell()

    def _told(self) -> Iterator[Outcome]:
        while self.ready:
            yield self.ready.popleft()

    def _tell(self) -> None:
        if self.on_event is not None:
            seconds = time.monotonic() - self.begin
            self.on_event(Event("models", self.done, self.total, self.known, seconds))
        self._record()

    def _record(self, soon: bool = False) -> None:
        doing = [m.source.name for m in self.claimed.values()]
        later = (n for n in self.names if n not in doing)
        self.book.tell(self.done, self.known, doing, list(islice(later, MOST_NAMES)), soon)


def _job(scan: Scan, path: Path, name: str, out: Path | None) -> dict[str, Any] | str:
    """A report, or why there is none: one model that cannot be scanned does not end the sweep."""
    try:
        return scan(path, name, out)
    except BadInput as e:
        return str(e).removeprefix(f"{path}: ")
    except Exception as e:
        return f"failed: {type(e).__name__}: {' '.join(str(e).split())[:300]}"


def _named(value: Any) -> Any:
    """A setting as JSON: code by its name."""
    return f"{value.__module__}:{value.__qualname__}" if callable(value) else value


def _content(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of the files below a folder."""
    if not path.is_dir():
        return digest(path)
    files = sorted(p for p in path.rglob("*") if p.is_file())
    listed = [(p.relative_to(path).as_posix(), digest(p)) for p in files]
    return hashlib.sha256(repr(listed).encode()).hexdigest()
