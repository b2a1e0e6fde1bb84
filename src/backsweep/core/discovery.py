"""Finding methods: every module of a package of methods is looked through, and the entry points of packages
from outside; nothing is registered."""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from backsweep.core.errors import BadInput
from backsweep.core.method import Method

M = TypeVar("M", bound=Method)


def discover(kind: type[M]) -> dict[str, type[M]]:
    """All methods of a kind by name, in the order of their names; those from outside do not hide ours."""
    package = importlib.import_module(kind.package)
    found: dict[str, type[M]] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for cls in vars(module).values():
            if isinstance(cls, type) and issubclass(cls, kind) and cls.__module__ == module.__name__:
                found[cls.name] = cls
    outside, _ = _outside(kind)
    return dict(sorted({**outside, **found}.items()))


def broken(kind: type[M]) -> dict[str, str]:
    """Entry points of a kind that bring no method, and why, in one line each."""
    return _outside(kind)[1]


@functools.cache
def _entries(group: str) -> tuple[metadata.EntryPoint, ...]:
    return tuple(metadata.entry_points(group=group))


def _outside(kind: type[M]) -> tuple[dict[str, type[M]], dict[str, str]]:
    found: dict[str, type[M]] = {}
    bad: dict[str, str] = {}
    for entry in _entries(kind.group):
        try:
            cls = entry.load()
        except Exception as e:
            bad[entry.name] = (
                f"{entry.value} cannot be imported ({type(e).__name__}: {' '.join(str(e).split())})"
            )
            continue
        if isinstance(cls, type) and issubclass(cls, kind) and cls.name:
            found[cls.name] = cls
        else:
            bad[entry.name] = f"{entry.value} is no {kind.__name__} with a name"
    return found, bad


def origin(method: Method) -> str | None:
    """Import path, "package.module:Class", of a method that is no plugin; None for one found by its name."""
    cls = type(method)
    kind: type[Method] = next(c for c in cls.__mro__ if vars(c).get("package"))
    return None if discover(kind).get(cls.name) is cls else f"{cls.__module__}:{cls.__qualname__}"


def imported(kind: type[M], path: str) -> type[M] | None:
    """The method at an import path, if its module has been imported already.

    The path comes from a saved report, which is untrusted: nothing is imported because a file names it.
    """
    module, _, qualname = path.partition(":")
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = vars(found).get(part) if found is not None and hasattr(found, "__dict__") else None
    return found if isinstance(found, type) and issubclass(found, kind) else None


def class_named(kinds: Sequence[type[Method]], name: str, namespace: str) -> type[Method]:
    """The method whose class is called `name`, as a public namespace gives it.

    Raises:
        AttributeError: there is none.
    """
    if not name.startswith("_"):
        for kind in kinds:
            for cls in discover(kind).values():
                if cls.__name__ == name:
                    return cls
    raise AttributeError(f"module {namespace!r} has no attribute {name!r}")


def class_names(kinds: Sequence[type[Method]]) -> list[str]:
    """Names of the classes of all methods of some kinds."""
    return sorted({cls.__name__ for kind in kinds for cls in discover(kind).values()})


def find(kind: type[M], name: str) -> type[M]:
    """The method called `name`; `neural-cleanse` and `neural_cleanse` are the same."""
    known = discover(kind)
    key = name.strip().lower().replace("-", "_")
    if key not in known:
        near = difflib.get_close_matches(key, known, 1)
        hint = f"did you mean {near[0]}?" if near else "there are: " + ", ".join(known)
        if name in (bad := broken(kind)):
            raise BadInput(f"the {kind.noun} {name!r} is broken: {bad[name]}")
        raise BadInput(f"there is no {kind.noun} {name!r}; {hint}")
    return known[key]


def make(kind: type[M], name: str, options: Mapping[str, Any] | None = None) -> M:
    """Build a method from its name and its settings, which may come as text (`-p`)."""
    cls = find(kind, name)
    hints = get_type_hints(cls)
    known = {f.name: hints[f.name] for f in fields(cls)}
    values: dict[str, Any] = {}
    for field, value in (options or {}).items():
        if field not in known:
            raise BadInput(f"{cls.name} has no setting {field!r}; it has: {', '.join(known)}")
        values[field] = _convert(cls.name, field, value, known[field])
    try:
        return cls(**values)
    except ValueError as e:
        raise BadInput(f"{cls.name}: {e}") from e


def configure(kind: type[M], names: Sequence[str], settings: Sequence[str]) -> list[M]:
    """Methods from a command line: names and `NAME.FIELD=VALUE` settings.

    Raises:
        BadInput: no such method or field, or a setting for a method that was not asked for.
    """
    options: dict[str, dict[str, str]] = {find(kind, n).name: {} for n in names}
    for setting in settings:
        path, equals, value = setting.partition("=")
        name, dot, field = path.partition(".")
        if not equals or not dot:
            raise BadInput(
                f"setting {setting!r} is not NAME.FIELD=VALUE, e.g. {next(iter(options))}.steps=400"
            )
        name = find(kind, name).name
        if name not in options:
            flag = "--method" if kind.noun == "repair" else f"--{kind.noun}"
            raise BadInput(f"{setting!r} sets {name}, which does not run; add {flag} {name}")
        options[name][field] = value
    return [make(kind, name, given) for name, given in options.items()]


def _convert(method: str, field: str, value: Any, hint: Any) -> Any:
    """Text or a TOML value -> the type of the field."""
    kinds = getattr(hint, "__args__", (hint,))
    if type(None) in kinds and (value is None or str(value).lower() == "none"):
        return None
    for kind in (bool, int, float, str):
        if kind not in kinds:
            continue
        if not isinstance(value, str):
            if isinstance(value, kind) or (kind is float and isinstance(value, int)):
                return kind(value)
        elif kind is bool:
            if value.lower() in ("true", "yes", "1", "false", "no", "0"):
                return value.lower() in ("true", "yes", "1")
        else:
            try:
                return kind(value)
            except ValueError:
                continue
    raise BadInput(f"{method}.{field} cannot be {value!r}; it is {getattr(hint, '__name__', hint)}")


def write_beside(record: Any, folder: Path) -> None:
    """Write the pages, and the files for other programs, of a report that has just been saved.

    Reports know no page: what draws them is found by the name of its module, as methods are.
    """
    importlib.import_module("backsweep.render.write").write(record, folder)
