"""Defaults of options: `backsweep.toml`, or `[tool.backsweep]` in `pyproject.toml`, of the current folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backsweep.core.errors import BadInput
from backsweep.core.text import one_line

if TYPE_CHECKING:
    from typer import Context

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OWN, SHARED = "backsweep.toml", "pyproject.toml"
CODE = ("arch", "train")  # they name code that is run; a folder of a stranger must not


def read(path: Path | None) -> tuple[str, dict[str, Any]]:
    """The file that defaults are taken from, and what it says; "" and nothing where there is none.

    Args:
        path: a file that the user names; None looks in the current folder.

    Raises:
        BadInput: it cannot be read, or is no TOML.
    """
    candidates = [path] if path is not None else [Path(OWN), Path(SHARED)]
    for file in candidates:
        try:
            text = file.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as e:
            raise BadInput(f"{file} cannot be read ({e.strerror}); check the file") from e
        try:
            found = tomllib.loads(text.decode())
        except (ValueError, RecursionError) as e:
            if path is None and file.name == SHARED:  # it is of other programs too
                continue
            raise BadInput(f"{file} is no TOML ({one_line(str(e))[:200]}); mend it") from e
        if file.name == SHARED:
            tools = found.get("tool")
            found = tools.get("backsweep") if isinstance(tools, dict) else None
        if isinstance(found, dict) and found:
            return str(file), found
    if path is not None and not path.is_file():
        raise BadInput(f"{path}: there is no such file; check --config")
    return "", {}


def apply(context: Context, path: Path | None, words: list[str]) -> list[str]:
    """Make what a file says the defaults of the commands; what the called command takes of it, in words.

    A key is an option's long name, `-` or `_`, for all commands that have it; a table such as `[scan]` or
    `[guard.fit]` is for one command. What runs code (`--arch`, `--train`) is taken from a file that the user
    names alone, not from one that happens to lie in the current folder.

    Args:
        context: of the root command.
        path: as for `read`.
        words: of the command line after the root's own options.

    Raises:
        BadInput: an option that no command has, a value that is none, or an option that names code.
    """
    file, found = read(path)
    if not found:
        return []
    if path is None and (named := [k for k in _keys(found) if k in CODE]):
        raise BadInput(
            f"{file} names code ({named[0]}), and what happens to lie in a folder is not run; say "
            f"--{named[0]} yourself, or name the file: backsweep --config {file} ..."
        )
    used: set[str] = set()
    context.default_map = _mapped(context.command, found, {}, used, "")
    unknown = sorted(set(_paths(found, "")) - used)
    if unknown:
        raise BadInput(f"{file}: no command has {unknown[0]!r}; backsweep COMMAND --help lists the options")
    taken: Any = context.default_map
    for word in words:
        if not isinstance(taken, dict) or not isinstance(taken.get(word), dict):
            break
        taken = taken[word]
    said = [f"{k}={v}" for k, v in taken.items() if not isinstance(v, dict)]
    return [f"defaults of {file}: {', '.join(said)}"] if said else []


def _mapped(
    command: Any, own: dict[str, Any], inherited: dict[str, Any], used: set[str], where: str
) -> dict[str, Any]:
    """The defaults of a command and of those below it, by the names of their parameters."""
    scalars = {_key(k): (where + k, v) for k, v in own.items() if not isinstance(v, dict)}
    given = {**inherited, **scalars}
    below = getattr(command, "commands", None)
    if below is None:
        names = {_key(o): p for p in command.params for o in [p.name, *p.opts]}
        made = {}
        for key, (path, value) in given.items():
            if key in names:
                used.add(path)
                many = names[key].multiple or names[key].nargs == -1
                made[str(names[key].name)] = _value(path, value, many)
        return made
    inner = {name: own[name] if isinstance(own.get(name), dict) else {} for name in below}
    return {name: _mapped(sub, inner[name], given, used, f"{where}{name}.") for name, sub in below.items()}


def _value(path: str, value: Any, many: bool) -> Any:
    parts = value if isinstance(value, list) else [value]
    plain = all(isinstance(p, str | int | float | bool) for p in parts)
    if not plain or (isinstance(value, list) and not many):
        raise BadInput(f"the default of {path} cannot be {one_line(repr(value))[:80]}; give one value")
    return parts if many else value


def _key(name: str) -> str:
    return str(name).lstrip("-").replace("-", "_")


def _keys(table: dict[str, Any]) -> list[str]:
    return [_key(p.rpartition(".")[2]) for p in _paths(table, "")]


def _paths(table: dict[str, Any], where: str) -> list[str]:
    found = []
    for key, value in table.items():
        found += _paths(value, f"{where}{key}.") if isinstance(value, dict) else [where + key]
    return found
