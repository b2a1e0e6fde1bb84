"""Many models by a few names: files, folders of models, registries; and what appears there later."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

from backsweep.core.errors import BadInput
from backsweep.formats.hugging_face.hub import PREFIX, fetch
from backsweep.formats.hugging_face.language import modality_told
from backsweep.inventory.mlflow_registry import versions
from backsweep.inventory.source import Source, is_model, models_in

REGISTRY = "mlflow:"


def find(names: Sequence[str], all_versions: bool = False) -> Iterator[Source]:
    """The models behind some names, in the order of the names, those of a folder in alphabetical order.

    Args:
        names: files, folders, models of the Hugging Face hub as `hf://`, and registries as `mlflow:` with
            their address.
        all_versions: of the models of a registry; else the newest of each.

    Raises:
        BadInput: a name is of nothing, or a registry cannot be read.
    """
    for name in names:
        if name.startswith(REGISTRY):
            yield from versions(name.removeprefix(REGISTRY), all_versions)
        elif name.startswith(PREFIX):
            fetched = fetch(name)
            yield Source(fetched.name, fetched.name, lambda path=fetched.folder: nullcontext(path))  # type: ignore[misc]
        elif not Path(name).exists():
            raise BadInput(f"{name}: there is no such file or folder; check the path")
        else:
            for path in models_in(Path(name)) if is_collection(name) else [Path(name)]:
                yield Source(str(path), _stamp(path), lambda path=path: nullcontext(path))  # type: ignore[misc]


def is_collection(name: str) -> bool:
    """Whether a name stands for any number of models."""
    return name.startswith(REGISTRY) or (Path(name).is_dir() and not is_model(Path(name)))


def kinds_told(names: Sequence[str]) -> set[str]:
    """What the models that are there now say of themselves (`modality_told`)."""
    there = [n for n in names if Path(n).exists()]
    found = {modality_told(p) for n in there for p in (models_in(Path(n)) if is_collection(n) else [Path(n)])}
    return found | ({""} if len(there) < len(names) or not found else set())


def watch(
    names: Sequence[str], every: float, trouble: Callable[[str], None], all_versions: bool = False
) -> Iterator[list[Source]]:
    """Look again and again, without end; yields what is new or has changed at each look.

    A model is taken once it has stood still from one look to the next, so that a file which is still
    being written is left alone.

    Args:
        names, all_versions: as for `find`.
        every: seconds between two looks.
        trouble: told why a look failed, other than the first.

    Raises:
        BadInput: the first look fails.
    """
    before: dict[str, object] = {}
    taken: dict[str, object] = {}
    now = list(find(names, all_versions))
    while True:
        new = [s for s in now if before.get(s.name) == s.stamp != taken.get(s.name)]
        taken.update((s.name, s.stamp) for s in new)
        yield new
        before = {s.name: s.stamp for s in now}
        time.sleep(every)
        try:
            now = list(find(names, all_versions))
        except BadInput as e:
            trouble(str(e))


def _stamp(path: Path) -> object:
    """Sizes and times of a file, or of the files of a folder."""
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    try:
        return tuple((p.name, (s := p.stat()).st_size, s.st_mtime_ns) for p in files)
    except OSError:  # it has just gone
        return time.monotonic()
