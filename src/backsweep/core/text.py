"""Text in messages: untrusted, and of durations."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable

# Marks of Markdown, "_" at the edge of a word, and what makes a link of a bare address
_MARKDOWN = re.compile(r"[\\`*|\[\]~$]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.", re.IGNORECASE)


def policy_hash(source: bytes) -> str:
    """What a Content-Security-Policy calls a script or a style that may run (CSP level 3, hash-source)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source).digest()).decode()}'"


def one_line(text: str) -> str:
    """A message as one printable line; what a file calls things may hold anything."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def in_markdown(text: str) -> str:
    """One line that Markdown shows as it is, within a line of its own."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(lambda m: "\\" + m.group(), text)


def some(names: Iterable[object], most: int = 3) -> str:
    """The first few of a list of names, which are untrusted text."""
    texts = [repr(n)[:80] for n in names]
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def duration(seconds: float) -> str:
    """Seconds, as people say it."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def seconds_of(text: str) -> float:
    """How many seconds a duration is: "90", "90s", "10m", "2h".

    Raises:
        ValueError: it is none.
    """
    number, unit = (text[:-1], text[-1]) if text[-1:] in ("s", "m", "h") else (text, "s")
    return float(number) * {"s": 1, "m": 60, "h": 3600}[unit]
