"""What the benchmarks of language models share: a JSON line for each network, and a table of them on a page.

A run can be stopped at any time, and goes on where it was. Used as `python benchmarks/adapters.py LINES`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

Line = Mapping[str, Any]
Wanted = TypeVar("Wanted")


def main(
    wanted: Iterable[Wanted],
    known: Callable[[Line, Wanted], bool],
    measure: Callable[[Wanted], dict[str, Any]],
    told: Callable[[Line], str],
    page: Callable[[Sequence[Line]], str],
    marks: tuple[str, str],
) -> None:
    """Measure what the file of the command line does not hold, and put the table on the page beside it.

    Args:
        wanted: the networks; with --table none of them is measured.
        known: whether a line is of a network.
        measure: what its line holds.
        told: what is printed of a line.
        page: the table.
        marks: between which it stands on the page.
    """
    torch.set_num_threads(1)
    path, table_only = Path(sys.argv[1]), "--table" in sys.argv
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    done = [json.loads(line) for line in lines]
    for one in [] if table_only else wanted:
        if any(known(line, one) for line in done):
            continue
        done.append(measure(one))
        with path.open("a", encoding="utf-8") as f:
            f.write(json.dumps(done[-1]) + "\n")
        print(told(done[-1]), flush=True)
    text = path.with_suffix(".md").read_text(encoding="utf-8")
    before, _, rest = text.partition(marks[0])
    after = rest.partition(marks[1])[2]
    path.with_suffix(".md").write_text(
        f"{before}{marks[0]}\n{page(done)}\n{marks[1]}{after}", encoding="utf-8"
    )
