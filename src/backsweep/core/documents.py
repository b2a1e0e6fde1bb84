"""JSON that Backsweep wrote and reads again: parsed strictly, and checked against its published schema.

The schemas are files of the package, `reports/schemas/KIND.json` (docs/report.md says what they promise).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from backsweep.core.text import one_line

DEEPEST = 32  # lists and tables inside each other
LARGEST = 1e150  # of a number; what is squared beyond it is infinite
LEAST_WHOLE, MOST_WHOLE = -(2**63), 2**64 - 1  # of a number without a point
_LONGEST = 100  # characters of a value in a message


class Misfit(ValueError):
    """A document is not what its schema says: one line that names the place; it may quote the document."""


def parsed(text: str | bytes) -> Any:
    """JSON in which every key stands once, numbers are finite and nothing is nested without end.

    Raises:
        Misfit: it is not.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        value = json.loads(
            text, parse_constant=_constant, parse_float=_number, parse_int=_whole, object_pairs_hook=_once
        )
    except Misfit:
        raise
    except RecursionError as e:
        raise Misfit(f"it is nested deeper than {DEEPEST}") from e
    except (ValueError, TypeError) as e:
        raise Misfit(one_line(f"no JSON: {e}")[:200]) from e
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        level = [v for part in level for v in _parts(part)]
        if not level:
            return value
    raise Misfit(f"it is nested deeper than {DEEPEST}")


def check(kind: str, value: Any, part: str = "") -> None:
    """Check what was parsed, or is about to be written, against a schema.

    Args:
        kind: name of the schema, as its file is called.
        part: one of its definitions, to check such a record alone.

    Raises:
        Misfit: it does not fit; the first place where it does not.
    """
    for error in _validator(kind, part).iter_errors(value):
        raise Misfit(one_line(_said(error)))


def read(kind: str, text: str | bytes) -> Any:
    """Parse and check.

    Raises:
        Misfit: it is not such a document.
    """
    value = parsed(text)
    check(kind, value)
    return value


def schema(kind: str) -> dict[str, Any]:
    """A published schema."""
    file = files("backsweep") / "reports" / "schemas" / f"{kind}.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def place(path: Iterable[str | int]) -> str:
    """Where a value stands: findings[3].p_value"""
    text = ""
    for step in path:
        name = str(step) if len(str(step)) <= 60 else f"{str(step)[:59]}…"
        text += f"[{step}]" if isinstance(step, int) else f".{name}" if text else name
    return text or "it"


def finite(value: Any) -> Any:
    """Strict JSON has neither infinity nor NaN: null instead, and for what is too large to count with."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not abs(value) <= LARGEST else value


# ---------------------------------------------------------------------- parsing


def _constant(word: str) -> Any:
    raise Misfit(f"{word} is no number of JSON")


def _number(text: str) -> float:
    value = float(text)
    if not -LARGEST <= value <= LARGEST:
        raise Misfit(f"the number {text[:40]} is too large")
    return value


def _whole(text: str) -> int:
    value = int(text) if len(text) <= 20 else MOST_WHOLE + 1
    if not LEAST_WHOLE <= value <= MOST_WHOLE:
        raise Misfit(f"the number {text[:40]} is too large")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise Misfit(f"the key {_shown(key)} stands twice in one table")
            seen.add(key)
    return table


def _parts(value: Any) -> Sequence[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ()


# ---------------------------------------------------------------------- checking


@cache
def _validator(kind: str, part: str) -> Any:
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend
    from referencing import Registry, Resource

    def whole(_: Any, value: object) -> bool:  # 3.0 is no index; True is no number
        return isinstance(value, int) and not isinstance(value, bool)

    def number(_: Any, value: object) -> bool:  # a database may hold what JSON cannot
        return whole(_, value) or (isinstance(value, float) and abs(value) <= LARGEST)

    types = Draft202012Validator.TYPE_CHECKER.redefine_many({"integer": whole, "number": number})
    strict = extend(Draft202012Validator, type_checker=types)
    others: Any = Registry()  # fetches nothing: what a schema refers to is here
    for name in ("report",):
        found = schema(name)
        others = others.with_resource(found["$id"], Resource.from_contents(found))
    published = schema(kind)
    wanted = {"$ref": f"{published['$id']}#/$defs/{part}"} if part else published
    return strict(wanted, registry=others)


_TYPES = {
    "object": "a table", "array": "a list", "string": "text", "number": "a number",
    "integer": "a whole number", "boolean": "true or false", "null": "null",
}  # fmt: skip


def _said(error: Any) -> str:
    """A violation in words."""
    where, rule, value, got = (
        place(error.absolute_path),
        error.validator,
        error.validator_value,
        error.instance,
    )
    if rule == "type":
        kinds = [value] if isinstance(value, str) else value
        return f"{where} is {_kind(got)}, {_or(_TYPES[k] for k in kinds)} is wanted"
    if rule == "required":
        name = next(n for n in value if n not in got)
        return f"{place([*error.absolute_path, name])} is missing"
    if rule == "additionalProperties":
        known = error.schema.get("properties", {})
        return f"{where} has {_shown(next(k for k in got if k not in known))}, which no such record has"
    if rule in ("enum", "const"):
        wanted = value if rule == "enum" else [value]
        return f"{where} is {_shown(got)}, {_or(_shown(v) for v in wanted)} is wanted"
    if rule in ("minItems", "maxItems", "minProperties"):
        side = "at most" if rule == "maxItems" else "at least"
        return f"{where} has {len(got)} entries, {side} {value} are wanted"
    wanted = {
        "minimum": f"at least {value}", "maximum": f"at most {value}",
        "exclusiveMinimum": f"more than {value}", "exclusiveMaximum": f"less than {value}",
        "minLength": "text that is not empty", "maxLength": f"at most {value} characters",
        "pattern": error.schema.get("description", f"text like {value}"),
    }.get(rule, f"something else ({rule})")  # fmt: skip
    return f"{where} is {_shown(got)}, {wanted} is wanted"


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not abs(value) <= LARGEST:
        return "no finite number" if value != value or abs(value) == float("inf") else "too large"
    names = {str: "a string", int: "a number", float: "a number", list: "a list", dict: "a table"}
    return names.get(type(value), f"a {type(value).__name__}")


def _shown(value: object) -> str:
    text = repr(value) if not isinstance(value, bool | None) else _kind(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _or(words: Iterable[str]) -> str:
    several = list(words)
    return " or ".join([", ".join(several[:-1]), several[-1]]) if len(several) > 1 else several[0]
