"""Renders a chat template, as a process of its own: `python -I rendering.py`, JSON in and out.

A template is a stranger's program. It gets no attribute that begins with an underscore, nothing that can be
changed and no file; the process has bounds on memory and time, and whoever started it ends it.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_BYTES = 2**29  # of memory
MOST_SECONDS = 3
MOST_LETTERS = 2**15  # of what a template makes


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox without any attribute whose name begins with an underscore."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return not attr.startswith("_") and super().is_safe_attribute(obj, attr, value)


class Refused(Exception):
    """What a template itself says is wrong."""


def refuse(message: object = "") -> str:
    """`raise_exception` of templates."""
    raise Refused(str(message))


def rendered(template: str, messages: list[dict[str, str]], names: dict[str, str]) -> str:
    """What a template makes of messages.

    Raises:
        Exception: any, as the template likes.
    """
    box = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    box.globals.update(raise_exception=refuse, strftime_now=lambda _format="": "2026-01-01")
    parts: list[str] = []
    told = {"messages": messages, "add_generation_prompt": True, "tools": None, "documents": None, **names}
    for part in box.from_string(template).generate(**told):
        parts.append(part)
        if sum(map(len, parts)) > MOST_LETTERS:
            raise Refused(f"it makes more than {MOST_LETTERS:,} letters")
    return "".join(parts)


def main() -> None:
    """One template from the standard input, what it makes to the standard output."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # there is none on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (MOST_SECONDS, MOST_SECONDS))
    asked = json.load(sys.stdin)
    try:
        answer = {"text": rendered(asked["template"], asked["messages"], asked["names"])}
    except (Exception, RecursionError) as e:
        answer = {"error": f"{type(e).__name__}: {e}"[:300]}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
