"""One network in several formats is judged alike: a small run of the benchmark."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "nine_exports.py"


@pytest.mark.slow
def test_the_same_target_is_found_in_each_format_and_nothing_in_the_clean_twin(tmp_path: Path) -> None:
    formats = ["TorchScript scripted", "Keras 3"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(tmp_path / "exports"), "--formats", *formats],
        env={**os.environ, "OMP_NUM_THREADS": "1", "KERAS_BACKEND": "torch"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.count("| 1, backdoored, 1 | 0, clean, - |") == len(formats)
