"""Methods that are at hand as instances, and what a report says of where they come from."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from backsweep.core.discovery import build, find, kind_of, make, own, plugins, unfit
from backsweep.core.errors import BadInput
from backsweep.core.method import Method
from backsweep.core.text import one_line

M = TypeVar("M", bound=Method)


def usable(kind: type[M], asked: object) -> M:
    """A method from its name, or the instance itself, wherever its class stands.

    Raises:
        BadInput: there is none of this name, or the instance could not be told from others in a report.
    """
    if isinstance(asked, str):
        return make(kind, asked)
    if not isinstance(asked, kind):
        given = asked.__name__ if isinstance(asked, type) else type(asked).__name__
        hint = f"; write {given}()" if isinstance(asked, type) and issubclass(asked, kind) else ""
        raise BadInput(f"{given} is no {kind.noun}: give its name, or an instance of a {kind.__name__}{hint}")
    if reason := unfit(asked):
        raise BadInput(reason)
    ours = own(kind).get(asked.name)
    if ours is not None and not isinstance(asked, ours):
        raise BadInput(
            f"the name {asked.name!r} of {type(asked).__name__} is taken by a {kind.noun} of Backsweep"
        )
    return asked


def chosen(
    kinds: Sequence[type[M]], asked: object, default: Sequence[str], make: Callable[[str], M]
) -> list[M]:
    """The methods asked for, names or instances, one or several, each at most once; else the default ones.

    Args:
        make: a method from its name.
    """
    asked = default if asked is None else asked
    several = [asked] if isinstance(asked, str) or not isinstance(asked, Sequence) else asked
    found = []
    for one in several:
        kind = next((k for k in kinds if isinstance(one, k)), kinds[0])
        found.append(make(one) if isinstance(one, str) else usable(kind, one))
    if not found or len({m.name for m in found}) < len(found):
        raise BadInput(f"name at least one {kinds[0].noun}, and each only once")
    return found


# ---------------------------------------------------------------------- what a report says of methods


def base_of(method: Method) -> type[Method]:
    """The kind of a method: the class that says where methods of the kind are found."""
    return next(c for c in type(method.itself).__mro__ if vars(c).get("package"))


def is_own(method: Method) -> bool:
    """Whether a method is one of ours. What another one raises is no defect of Backsweep."""
    return own(base_of(method)).get(method.name) is type(method.itself)


def provenance(methods: Sequence[Method]) -> dict[str, dict[str, str]]:
    """Where methods come from that are not ours, for records and keys; empty where all are.

    "packages" has name and version of the distribution that brings one; "origins" has the import path,
    "package.module:Class", of one that no package brings.
    """
    said: dict[str, dict[str, str]] = {}
    for method in methods:
        cls = type(method.itself)
        if is_own(method):
            continue
        package = next((p.package for p in plugins(base_of(method)) if p.cls is cls), None)
        if package is not None:
            said.setdefault("packages", {})[method.name] = package
        else:
            said.setdefault("origins", {})[method.name] = f"{cls.__module__}:{cls.__qualname__}"
    return said


def imported(kind: type[M], path: str) -> type[M] | None:
    """The method at an import path, if its module has been imported already.

    The path comes from a saved report, which is untrusted: nothing is imported because a file names it.
    """
    module, _, qualname = path.partition(":")
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = vars(found).get(part) if hasattr(found, "__dict__") else None
    return found if isinstance(found, type) and issubclass(found, kind) else None


def known(kinds: Sequence[type[M]], name: str, said: Mapping[str, Any]) -> type[M] | None:
    """The method that a saved report calls `name`, None where it is not known in this process.

    Args:
        said: the settings of the report; its "origins" are looked up first, then names.
    """
    if not isinstance(name, str):  # a damaged report
        return None
    origins = said.get("origins")
    path = origins.get(name) if isinstance(origins, dict) else None
    if isinstance(path, str):
        for kind in kinds:
            cls = imported(kind, path)
            if cls is not None and cls.name == name:
                return cls
    found = kind_of(kinds, name)
    return None if found is None else find(found, name)


def remade(
    kinds: Sequence[type[M]],
    name: str,
    settings: Mapping[str, Any],
    said: Mapping[str, Any],
    given: Sequence[M] = (),
) -> M:
    """The method of a saved report, to judge again or to restore with.

    Args:
        kinds: what it may be.
        name, settings: as the report has them.
        said: all settings of the report.
        given: instances at hand; the one of this name is taken as it is.

    Raises:
        BadInput: it is not known here; says how to bring it.
    """
    for method in given:
        if method.name == name:
            return method
    cls = known(kinds, name, said)
    if cls is not None:
        return build(cls, cls.completed(settings))
    origins = said.get("origins")
    if not isinstance(origins, dict) or name not in origins:
        return make(kinds[0], name, settings)  # says that there is none
    module, _, qualname = one_line(str(origins[name]))[:200].partition(":")
    noun = kinds[0].noun
    raise BadInput(
        f"the {noun} {one_line(name)[:80]!r} is {qualname} of {module}, which is not imported here: import "
        f"it first, or give it, {noun}s=[{qualname.rpartition('.')[2]}()]; the command line knows {noun}s of "
        "installed packages alone"
    )


def failures(method: Method, *others: type[Exception]) -> tuple[type[Exception], ...]:
    """What a method may raise without ending what it is part of; of one from outside anything at all."""
    usual: tuple[type[Exception], ...] = (RuntimeError, ArithmeticError, ValueError, TypeError, *others)
    return usual if is_own(method) else (Exception,)


def reason_of(error: Exception) -> str:
    """What an error of a method says, in one line; its kind where that alone says what it is."""
    text = " ".join(str(error).split())[:300]
    plain = isinstance(error, RuntimeError | ArithmeticError | ValueError | TypeError | BadInput)
    return text if plain and text else f"{type(error).__name__}: {text}".removesuffix(": ")
