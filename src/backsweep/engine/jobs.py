"""What all engines know of a job: it is computed by one thread, and its worker may die."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from backsweep.core.errors import BacksweepError


class Lost(BacksweepError):
    """Stands in place of the result of a job whose worker died at every try."""


class Died(Exception):
    """The worker died before the job was done, `times` times."""

    def __init__(self, why: str, times: int = 1) -> None:
        super().__init__(why)
        self.times = times


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread, and as before afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def only_one_thread() -> None:
    """Compute with one thread, in the thread that calls this, from now on."""
    import torch

    torch.set_num_threads(1)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
