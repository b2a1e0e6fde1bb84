"""Untrusted text in messages."""

from __future__ import annotations

from collections.abc import Iterable


def one_line(text: str) -> str:
    """A message as one printable line; what a file calls things may hold anything."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def some(names: Iterable[object], most: int = 3) -> str:
    """The first few of a list of names, which are untrusted text."""
    texts = [repr(n)[:80] for n in names]
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")
