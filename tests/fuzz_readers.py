"""What strangers' files are read by: for each reader some good files, and how one is read and used.

A new reader needs an entry in `READERS`, and nothing else.
"""

from __future__ import annotations

import importlib
import importlib.util
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import fuzz_data
import fuzz_models
import fuzz_saved


@dataclass(frozen=True)
class Reader:
    """One way in.

    Attributes:
        name: in the table.
        make: writes good files or folders into an empty folder, each entry of which is one.
        read: reads one as a user's command would, and uses what it got; raises BadInput where it is bad.
        needs: modules without which the reader is not there.
        share: how many of the files are for this one, in parts.
        good: whether what `make` writes can be read before it is changed.
        mend: makes what was changed agree with itself again, so that the damage is met further in.
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], object]
    needs: tuple[str, ...] = ()
    share: int = 2
    good: bool = True
    mend: Callable[[Path], None] = lambda _: None

    @property
    def there(self) -> bool:
        """Whether it can be tried here."""
        return all(_there(m) for m in self.needs)


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


READERS = (
    Reader(
        "checkpoint (zip)", lambda p: fuzz_models.make_checkpoints(p, True), fuzz_models.read_weights, share=3
    ),
    Reader(
        "checkpoint (legacy)",
        lambda p: fuzz_models.make_checkpoints(p, False),
        fuzz_models.read_weights,
        share=3,
    ),
    Reader("pickle with payload", fuzz_models.make_pickles, fuzz_models.read_weights, share=1, good=False),
    Reader("safetensors", fuzz_models.make_safetensors, fuzz_models.read_weights),
    Reader("torch.export (.pt2)", fuzz_models.make_exported, fuzz_models.read_model, share=3),
    Reader("sharded safetensors", fuzz_models.make_shards, fuzz_models.read_weights, share=1),
    Reader("TorchScript", fuzz_models.make_torchscript, fuzz_models.read_model, share=3),
    Reader("ONNX", fuzz_models.make_onnx, fuzz_models.read_model, needs=("onnx",), share=3),
    Reader(
        "Hugging Face",
        fuzz_models.make_hugging_face,
        fuzz_models.read_model,
        needs=("transformers",),
        share=3,
    ),
    Reader("npz", fuzz_data.make_arrays, fuzz_data.read_data),
    Reader("image folder", fuzz_data.make_pictures, fuzz_data.read_data),
    Reader("manifest", fuzz_data.make_manifests, fuzz_data.read_data),
    Reader("tar shards", fuzz_data.make_tars, fuzz_data.read_data),
    Reader("Parquet and Arrow", fuzz_data.make_tables, fuzz_data.read_data, needs=("pyarrow",)),
    Reader("trigger", fuzz_saved.make_trigger_files, fuzz_saved.read_trigger),
    Reader("report", fuzz_saved.make_reports, fuzz_saved.read_report, share=3, mend=fuzz_saved.consistent),
    Reader("audit", fuzz_saved.make_audits, fuzz_saved.read_audit, share=3, mend=fuzz_saved.consistent),
    Reader("guard", fuzz_saved.make_guards, fuzz_saved.read_guard, mend=fuzz_saved.signed),
    Reader("bank", fuzz_saved.make_banks, fuzz_saved.read_bank),
    Reader("evidence log", fuzz_saved.make_logs, fuzz_saved.read_log, share=1),
    Reader("store", fuzz_saved.make_stores, fuzz_saved.read_store),
    Reader("kept verdicts", fuzz_saved.make_verdict_files, fuzz_saved.read_verdicts, share=1),
    Reader("bill of materials", fuzz_saved.make_bills, fuzz_saved.read_bill, share=1),
)


def pick(rng: random.Random, names: tuple[str, ...] = ()) -> Reader:
    """A reader that is there, by its share."""
    there = [r for r in READERS if r.there and (not names or r.name in names)]
    return rng.choices(there, [r.share for r in there])[0]
