"""The file of a guard: what it says, checked as far as others rely on it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from backsweep.core.errors import BadInput
from backsweep.core.text import one_line
from backsweep.inputs.modality import modality_of

SCHEMA, KIND = 1, "backsweep guard"
RECORD, TENSORS = "guard.json", "guard.safetensors"


def read_record(folder: Path) -> dict[str, Any]:
    """What guard.json says, checked as far as others rely on it.

    Raises:
        BadInput: there is none, it is damaged, or of another schema.
    """
    path = folder / RECORD
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["kind"] != KIND or not isinstance(raw["schema"], int):
            raise ValueError(f"kind {raw['kind']!r}, schema {raw['schema']!r}")
        if raw["schema"] != SCHEMA:
            raise BadInput(f"{path} has schema {raw['schema']}; this version reads schema {SCHEMA}")
        tables = all(isinstance(raw[k], dict) for k in ("model", "data", "versions", "detectors"))
        sizes = [int(n) for n in raw["model"]["shape"]]
        fine = modality_of(raw["model"]).fits(sizes) and 0 < math.prod(sizes) < 2**28 and min(sizes) > 0
        if not tables or not fine or not raw["detectors"] or not 0 < float(raw["fpr"]) < 1:
            raise ValueError("a value is missing or impossible")
        return dict(raw)
    except OSError as e:
        raise BadInput(
            f"cannot read {path}: {e.strerror}; give the folder of a guard (guard fit --out)"
        ) from e
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as e:
        raise BadInput(one_line(f"{path} is not a guard of Backsweep, or is damaged ({e})")) from e
