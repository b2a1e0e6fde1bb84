"""Which models take rows of a table: what a user, or a file beside the samples, says."""

from __future__ import annotations

import os
from pathlib import Path

from backsweep.inputs.modality import Modality
from backsweep.inputs.table.modality import Table
from backsweep.inputs.table.readers import beside


def kind_told(data: str, schema: str | os.PathLike[str] | None) -> tuple[Modality, str] | None:
    """A table and its schema, where one is named or lies beside the samples; None where nothing is told.

    Raises:
        BadInput: the schema cannot be read.
    """
    found = schema if schema is not None else beside(Path(data))
    return None if found is None else (Table.given(str(found)), str(found))
