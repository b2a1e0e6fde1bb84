"""The file of a guard: what it says, checked as far as others rely on it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from backsweep.core import documents
from backsweep.core.errors import BadInput
from backsweep.core.text import one_line
from backsweep.inputs.kinds import modality_of
from backsweep.reports.report import known_schema

SCHEMA, KIND = 1, "backsweep guard"
RECORD, TENSORS = "guard.json", "guard.safetensors"


def read_record(folder: Path) -> dict[str, Any]:
    """What guard.json says, checked as far as others rely on it.

    Raises:
        BadInput: there is none, it is damaged, or of another schema.
    """
    path = folder / RECORD
    try:
        raw = documents.parsed(path.read_bytes())
        known_schema(raw, str(path), SCHEMA)
        documents.check("guard", raw)
        sizes = raw["model"]["shape"]
        if not modality_of(raw["model"]).fits(sizes) or math.prod(sizes) >= 2**28:
            raise ValueError(f"model.shape is {sizes}, no such input can be")
        return dict(raw)
    except OSError as e:
        raise BadInput(
            f"cannot read {path}: {e.strerror}; give the folder of a guard (guard fit --out)"
        ) from e
    except ValueError as e:
        raise BadInput(one_line(f"{path} is not a guard of Backsweep, or is damaged ({e})")) from e
