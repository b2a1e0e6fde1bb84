"""Finding methods: every module of a plugin package is looked through; nothing is registered."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar, get_type_hints

from backsweep.base import Attack, Method, ModelDetector, Repair
from backsweep.errors import BadInput
from backsweep.screening import SampleDetector, SetDetector

M = TypeVar("M", bound=Method)
KINDS: dict[type[Method], str] = {
    ModelDetector: "detectors", SampleDetector: "detectors", SetDetector: "detectors", Attack: "attacks",
    Repair: "repairs",
}  # fmt: skip


def discover(kind: type[M]) -> dict[str, type[M]]:
    """All methods of a kind by name, in the order of their names."""
    package = importlib.import_module(f"backsweep.{KINDS[kind]}")
    found: dict[str, type[M]] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for cls in vars(module).values():
            if isinstance(cls, type) and issubclass(cls, kind) and cls.__module__ == module.__name__:
                found[cls.name] = cls
    return dict(sorted(found.items()))


def class_named(kinds: Sequence[type[Method]], name: str) -> type[Method]:
    """The method whose class is called `name`, as the plugin packages give it.

    Raises:
        AttributeError: there is none.
    """
    if not name.startswith("_"):
        for kind in kinds:
            for cls in discover(kind).values():
                if cls.__name__ == name:
                    return cls
    raise AttributeError(f"module 'backsweep.{KINDS[kinds[0]]}' has no attribute {name!r}")


def find(kind: type[M], name: str) -> type[M]:
    """The method called `name`; `neural-cleanse` and `neural_cleanse` are the same."""
    known = discover(kind)
    key = name.strip().lower().replace("-", "_")
    if key not in known:
        near = difflib.get_close_matches(key, known, 1)
        hint = f"did you mean {near[0]}?" if near else "there are: " + ", ".join(known)
        raise BadInput(f"there is no {KINDS[kind][:-1]} {name!r}; {hint}")
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
            flag = f"--{KINDS[kind][:-1]}" if kind is not Repair else "--method"
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
