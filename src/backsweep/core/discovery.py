"""Finding methods: every module of a package of methods is looked through, then the entry points of packages
from outside; nothing is registered.

A method from outside never hides one of ours, and is imported only when it is asked for or listed: what
is wrong with it is said there and stops nothing else.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import json
import pkgutil
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from backsweep.core.errors import BadInput
from backsweep.core.method import Method
from backsweep.core.text import one_line

M = TypeVar("M", bound=Method)

NAME = re.compile(r"[a-z][a-z0-9_]*")  # names of methods are parts of files' names
PLAIN = "numbers, text, truth values, None, and lists or tables of them"
_OWN: dict[type[Method], object] = {}
_PLUGINS: dict[type[Method], object] = {}


# ---------------------------------------------------------------------- ours, and those of other packages


def own(kind: type[M]) -> dict[str, type[M]]:
    """Our methods of a kind by name."""
    if kind in _OWN:
        return cast("dict[str, type[M]]", _OWN[kind])
    package = importlib.import_module(kind.package)
    found: dict[str, type[M]] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for cls in vars(module).values():
            if isinstance(cls, type) and issubclass(cls, kind) and cls.__module__ == module.__name__:
                found[cls.name] = cls
    found = dict(sorted(found.items()))
    _OWN[kind] = found
    return found


@dataclass(frozen=True)
class Plugin(Generic[M]):
    """An entry point by which a package from outside brings a method.

    Attributes:
        name: of the entry point, which is the method's.
        package: name and version of the distribution.
        cls: the method; None where it is broken.
        reason: why it is broken, one line of untrusted text.
    """

    name: str
    package: str
    cls: type[M] | None = None
    reason: str = ""


@functools.cache
def _entries(group: str) -> tuple[tuple[metadata.EntryPoint, str], ...]:
    """The entry points of a group, with name and version of the distribution of each, in their order."""
    try:
        found = [(e, f"{e.dist.name} {e.dist.version}" if e.dist else "") for e in _of(group)]
    except Exception:  # the record of some package is damaged; our own methods are found without it
        return ()
    return tuple(sorted(found, key=lambda f: (f[0].name, f[1])))


def _of(group: str) -> metadata.EntryPoints:
    return metadata.entry_points(group=group)


def plugins(kind: type[M]) -> list[Plugin[M]]:
    """What packages from outside bring of a kind, the broken ones too; imports them."""
    if kind in _PLUGINS:
        return cast("list[Plugin[M]]", _PLUGINS[kind])
    taken = dict.fromkeys(own(kind), "Backsweep")
    found: list[Plugin[M]] = []
    for entry, package in _entries(kind.group):
        if entry.name in taken:
            reason = f"the name is taken by a method of {taken[entry.name]}"
            found.append(Plugin[M](entry.name, package, None, reason))
            continue
        taken[entry.name] = package
        found.append(_opened(kind, entry, package))
    _PLUGINS[kind] = found
    return found


def _opened(kind: type[M], entry: metadata.EntryPoint, package: str) -> Plugin[M]:
    try:
        cls = entry.load()
        if not (isinstance(cls, type) and issubclass(cls, kind)):
            raise BadInput(f"{entry.value} is no {kind.__name__}")
        if cls.name != entry.name or not NAME.fullmatch(entry.name):
            raise BadInput(
                f"{entry.value} is named {cls.name!r}; entry point and method need one name of small "
                "letters, digits and _"
            )
        if reason := unfit(build(cls, {})):
            raise BadInput(reason)
    except BadInput as e:
        return Plugin[M](entry.name, package, None, one_line(str(e))[:300])
    except (Exception, SystemExit) as e:  # whatever a stranger's module does when it is imported
        reason = f"{entry.value} cannot be used ({type(e).__name__}: {e})"
        return Plugin[M](entry.name, package, None, one_line(reason)[:300])
    return Plugin[M](entry.name, package, cls)


def discover(kind: type[M]) -> dict[str, type[M]]:
    """All methods of a kind by name, in the order of their names."""
    outside = {p.name: p.cls for p in plugins(kind) if p.cls is not None}
    return dict(sorted({**outside, **own(kind)}.items()))


def kind_of(kinds: Sequence[type[M]], name: str) -> type[M] | None:
    """The kind that a method is of; ours come before those from outside, whatever their kind."""
    key = _key(name)
    for known in (own, discover):
        for kind in kinds:
            if key in known(kind):
                return kind
    return None


def class_named(kinds: Sequence[type[Method]], name: str, namespace: str) -> type[Method]:
    """The method whose class is called `name`, as a public namespace gives it.

    Raises:
        AttributeError: there is none.
    """
    if not name.startswith("_"):
        for known in (own, discover):
            for kind in kinds:
                for cls in known(kind).values():
                    if cls.__name__ == name:
                        return cls
    raise AttributeError(f"module {namespace!r} has no attribute {name!r}")


def class_names(kinds: Sequence[type[Method]]) -> list[str]:
    """Names of the classes of all methods of some kinds."""
    return sorted({cls.__name__ for kind in kinds for cls in discover(kind).values()})


def find(kind: type[M], name: str) -> type[M]:
    """The method called `name`; `neural-cleanse` and `neural_cleanse` are the same."""
    key = _key(name)
    if key in (ours := own(kind)):
        return ours[key]
    known = discover(kind)
    if key not in known:
        for plugin in plugins(kind):
            if key == plugin.name:
                raise BadInput(f"the {kind.noun} {key!r} of {plugin.package} is broken: {plugin.reason}")
        near = difflib.get_close_matches(key, known, 1)
        hint = f"did you mean {near[0]}?" if near else "there are: " + ", ".join(known)
        raise BadInput(f"there is no {kind.noun} {name!r}; {hint}")
    return known[key]


def _key(name: str) -> str:
    return name.strip().lower().replace("-", "_")


# ---------------------------------------------------------------------- methods and their settings


def make(kind: type[M], name: str, options: Mapping[str, Any] | None = None) -> M:
    """Build a method from its name and its settings, which may come as text (`-p`)."""
    return build(find(kind, name), options or {})


def build(cls: type[M], options: Mapping[str, Any]) -> M:
    """A method from its class and its settings.

    Raises:
        BadInput: there is no such setting, or it cannot have this value.
    """
    try:
        hints = get_type_hints(cls)
    except (NameError, TypeError, AttributeError) as e:
        raise BadInput(f"{cls.name}: the types of its settings cannot be read ({e})") from e
    known = {f.name: hints[f.name] for f in fields(cls)}
    values: dict[str, Any] = {}
    for field, value in options.items():
        if field not in known:
            raise BadInput(f"{cls.name} has no setting {field!r}; it has: {', '.join(known)}")
        values[field] = _convert(cls.name, field, value, known[field])
    try:
        return cls(**values)
    except (ValueError, TypeError) as e:
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
    """Text, or a value of TOML or JSON -> the type of the field."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
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
    for kind in kinds:  # what methods from outside may have besides
        holds = get_origin(kind) or kind
        if holds is Literal:
            for choice in get_args(kind):
                if value in (choice, str(choice)):
                    return choice
        if holds in (tuple, list) and isinstance(value, list | tuple):
            return holds(value)
        if holds is dict and isinstance(value, dict):
            return value
    raise BadInput(f"{method}.{field} cannot be {value!r}; it is {getattr(hint, '__name__', hint)}")


def unfit(method: Method) -> str:
    """Why a method cannot be told from others in a report, "" when it can."""
    if not isinstance(method.name, str) or not NAME.fullmatch(method.name):
        return (
            f"{type(method).__name__} needs a name of small letters, digits and _, such as "
            f"name: ClassVar[str] = 'mine'; it has {method.name!r}"
        )
    try:
        json.dumps(method.settings())
    except (TypeError, ValueError) as e:
        return f"{method.name}: settings are {PLAIN}, so that a report can hold them ({e})"
    return ""


def write_beside(record: Any, folder: Path) -> None:
    """Write the pages, and the files for other programs, of a report that has just been saved.

    Reports know no page: what draws them is found by the name of its module, as methods are.
    """
    importlib.import_module("backsweep.render.write").write(record, folder)


def drawn(result: Any) -> str:
    """What a notebook shows of a result, as HTML; found by its name for the same reason."""
    return str(importlib.import_module("backsweep.render.notebook").html(result))
