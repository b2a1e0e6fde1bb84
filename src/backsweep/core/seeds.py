"""Seeds and keys that depend on what the work is, and on nothing else."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def derive_seed(seed: int, *parts: object) -> int:
    """A seed that depends on what the work is and not on when or where it is done."""
    text = "/".join(str(p) for p in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def run_key(**parts: Any) -> str:
    """One key for all that a unit's result depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
