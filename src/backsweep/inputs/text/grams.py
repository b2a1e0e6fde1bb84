"""What texts have in common: words that stand together, how they begin, which marks they have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

MOST = 3  # words of an n-gram
FIRST = 2  # words of a beginning


def grams(rows: Iterable[Sequence[str]], most: int = MOST, forms: bool = True) -> list[list[str]]:
    """Names of the features of every text, each once: n-grams, and what tells of its syntax.

    Args:
        rows: the words of every text, untrusted text.
        most: words of an n-gram.
        forms: whether to add the first word, the first two, and the marks in their order.
    """
    found = []
    for words in rows:
        own = {
            " ".join(words[i : i + n]) for n in range(1, most + 1) for i in range(max(0, len(words) - n + 1))
        }
        if forms and words:
            own |= {f"begins with: {' '.join(words[:n])}" for n in range(1, FIRST + 1)}
            marks = " ".join(w for w in words if not any(c.isalnum() for c in w))
            own.add(f"has the marks: {marks}" if marks else "has no marks")
        found.append(sorted(own))
    return found
