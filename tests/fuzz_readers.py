"""What strangers' files are read by: for each reader some good files, and how one is read and used.

A new reader needs an entry in `READERS`, and nothing else.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import io
import json
import random
import shutil
import tarfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from backsweep.auditing import audit as audits
from backsweep.cli.inventory import _read_records
from backsweep.core.errors import BadInput
from backsweep.formats.opening import load
from backsweep.formats.timm import mobilenet
from backsweep.guarding.guard import Guard, guard
from backsweep.guarding.record import RECORD, TENSORS, read_record
from backsweep.inputs.image import triggers as families
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.inventory.store import Record, Store
from backsweep.models.model import Model
from backsweep.models.training import Recipe, fit
from backsweep.render.exchange.cyclonedx import cyclonedx
from backsweep.render.exchange.sarif import sarif
from backsweep.render.pages import audit as audit_page
from backsweep.render.pages import scan as scan_page
from backsweep.render.terminal import audit as audit_text
from backsweep.render.terminal import history
from backsweep.render.terminal import scan as scan_text
from backsweep.reports.audit import Audit
from backsweep.reports.report import Evidence, Finding, Note, Report, evidence_json
from backsweep.scanning import scan as scans
from backsweep.scanning.collect import LOG, _read_log
from backsweep.shadows import meta_classifier
from backsweep.shadows.bank import Bank
from backsweep.shadows.meta_classifier import Meta
from backsweep.zoo.tasks import TASKS
from fuzz_mutations import payload
from reporting import make_audit, make_cascade_report, make_report

SHAPE = (3, 8, 8)


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


# ---------------------------------------------------------------------- models


class Net(nn.Module):
    """A small network with what exports and checkpoints hold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        z = nn.functional.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        out: Tensor = self.head(z.view(z.size(0), -1))
        return out


def net() -> nn.Module:
    """The network, always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net().eval()


def _saved(value: Any, path: Path, new: bool = True) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=new)


def _checkpoints(folder: Path, new: bool) -> None:
    state = net().state_dict()
    _saved(state, folder / "plain.pth", new)
    _saved(
        {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, folder / "wrapped.pth", new
    )
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    _saved({"state_dict": half, "lr": np.float64(0.1)}, folder / "scalar.pth", new)
    _saved(net(), folder / "whole.pth", new)


def _pickles(folder: Path) -> None:
    for i, blob in enumerate(payload("/nonexistent/ran")):
        (folder / f"{i}.pkl").write_bytes(
            b"\x80\x02" + blob.removeprefix(b"\x80\x02").removeprefix(b"\x80\x04")
        )


def _safetensors(folder: Path) -> None:
    said = json.dumps(
        {"shape": SHAPE, "classes": 5, "labels": list("abcde"), "mean": [0.5] * 3, "std": [0.2] * 3}
    )
    save_file(net().state_dict(), folder / "plain.safetensors")
    save_file(net().state_dict(), folder / "said.safetensors", metadata={"backsweep.model": said})


def _exported(folder: Path) -> None:
    x = torch.rand((2, *SHAPE), generator=torch.Generator().manual_seed(0))
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(net(), (x,), dynamic_shapes=shapes), folder / "net.pt2")


def _torchscript(folder: Path) -> None:
    x = torch.rand((2, *SHAPE), generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(net(), x).save(str(folder / "traced.pt"))
        torch.jit.script(net()).save(str(folder / "scripted.pt"))
        torch.jit.freeze(torch.jit.script(net())).save(str(folder / "frozen.pt"))


def _shards(folder: Path) -> None:
    state, place = net().state_dict(), folder / "net"
    place.mkdir()
    table = {name: f"{i % 2}.safetensors" for i, name in enumerate(state)}
    for file in set(table.values()):
        save_file({k: v for k, v in state.items() if table[k] == file}, place / file)
    (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))


def _onnx(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net(), (torch.rand(2, *SHAPE),), str(folder / "net.onnx"), dynamo=False,
                          dynamic_axes={"x": {0: "batch"}}, input_names=["x"])  # fmt: skip


def _hugging_face(folder: Path) -> None:
    transformers: Any = importlib.import_module("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(
        image_size=8, patch_size=4, id2label={0: "cat", 1: "dog", 2: "owl"}, **sizes
    )
    prep = {
        "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_rescale": True,
        "rescale_factor": 1 / 255, "size": {"height": 8, "width": 8},
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        transformers.ViTForImageClassification(config).save_pretrained(folder / "vit")
    (folder / "vit" / "preprocessor_config.json").write_text(json.dumps(prep))
    pickled = folder / "pickled"
    shutil.copytree(folder / "vit", pickled)
    _saved(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    _timm(folder / "timm")


def _timm(folder: Path) -> None:
    config = {
        "architecture": "mobilenetv2_050", "num_classes": 3, "label_names": ["cat", "dog", "owl"],
        "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3},
    }  # fmt: skip
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = mobilenet.mobilenet_v2(3, 3, 0.5)
    save_file(made.state_dict(), folder / "model.safetensors")


def _used(model: Model) -> Tensor:
    """What a scan does first."""
    small = model.shape if np.prod(model.shape) < 2**20 else None
    return model.logits(torch.rand(3, *small)) if small is not None else torch.empty(0)


@torch.no_grad()
def _weights(path: Path) -> object:
    return _used(load(path, net, data_shape=SHAPE))


@torch.no_grad()
def _model(path: Path) -> object:
    return _used(load(path, data_shape=SHAPE))


# ---------------------------------------------------------------------- data


def _arrays(folder: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8), np.arange(24) % 3
    np.savez(folder / "bytes.npz", x=x, y=y)
    np.savez_compressed(folder / "floats.npz", x=(x / 255).astype(np.float32), y=y)
    np.savez(
        folder / "medmnist.npz",
        train_images=x,
        train_labels=y[:, None],
        test_images=x,
        test_labels=y[:, None],
    )
    np.savez(folder / "words.npz", images=x, labels=np.array(["cat", "dog", "owl"])[y])
    np.savez(folder / "one-hot.npz", x_train=x, y_train=np.eye(3)[y], x_test=x, y_test=np.eye(3)[y])


def _pictures(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for i, suffix in enumerate(("png", "jpg", "bmp", "gif", "webp", "tif")):
        for label in ("cat", "dog"):
            place = folder / suffix / label
            place.mkdir(parents=True)
            for n in range(2):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{i}{n}.{suffix}")


def _png(i: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _manifests(folder: Path) -> None:
    for suffix, comma in ((".csv", ","), (".tsv", "\t")):
        place = folder / suffix[1:]
        place.mkdir()
        lines = [["path", "label", "split"]]
        for i in range(8):
            (place / f"{i}.png").write_bytes(_png(i))
            lines.append([f"{i}.png", "cat" if i % 2 else "dog", "train" if i < 4 else "test"])
        (place / f"images{suffix}").write_text("\n".join(comma.join(line) for line in lines))


def _tars(folder: Path) -> None:
    for kind in ("cls", "json"):
        place = folder / kind
        place.mkdir()
        for shard in range(2):
            with tarfile.open(place / f"train-{shard:03d}.tar", "w") as tar:
                for i in range(4):
                    label = json.dumps({"label": i % 2}) if kind == "json" else str(i % 2)
                    for name, body in ((f"{i}.png", _png(i)), (f"{i}.{kind}", label.encode())):
                        member = tarfile.TarInfo(name)
                        member.size = len(body)
                        tar.addfile(member, io.BytesIO(body))


def _tables(folder: Path) -> None:
    """As the library datasets keeps images, on the hub and on the disk, and a manifest."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
    said = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    rows = {
        "image": [{"bytes": _png(i), "path": f"{i}.png"} for i in range(8)],
        "label": [i % 2 for i in range(8)],
    }
    table = pa.table({k: pa.array(v) for k, v in rows.items()}).replace_schema_metadata(said)
    for name in ("hub", "disk", "manifest"):
        (folder / name).mkdir()
    for kind, packing in (("train", "snappy"), ("test", "none")):
        pq.write_table(table, folder / "hub" / f"{kind}-00000-of-00001.parquet", compression=packing)
    for kind, writer in (("stream", pa.ipc.new_stream), ("file", pa.ipc.new_file)):
        path = folder / "disk" / f"data-{kind}.arrow"
        with pa.OSFile(str(path), "wb") as f, writer(f, table.schema) as writing:
            writing.write_table(table, max_chunksize=5)
    for i in range(8):
        (folder / "manifest" / f"{i}.png").write_bytes(_png(i))
    paths = pa.table({"path": [f"{i}.png" for i in range(8)], "label": [f"class {i % 2}" for i in range(8)]})
    pq.write_table(paths, folder / "manifest" / "images.parquet")


def _data(path: Path) -> object:
    """A set of samples; of a folder with a manifest, what that names."""
    listed = [p for p in sorted(path.glob("images.*")) if path.is_dir()]
    data = Data.open(listed[0] if listed else path)
    return data.digest, data.sample(10, 0), repr(data)


# ---------------------------------------------------------------------- what Backsweep itself saved


def _triggers() -> list[Trigger]:
    g = torch.Generator().manual_seed(0)
    image = torch.rand(SHAPE, generator=g)
    nets = [
        torch.rand(sum(s.numel() + s[0] for s in families.generator_layers(3, 2, out)), generator=g)
        for out in (1, 3)
    ]
    strip = torch.rand((2, *SHAPE), generator=g)
    return [
        families.Patch.square(SHAPE, 2, 0, 3), families.Additive(1, None, image - 0.5),
        families.Warp(None, 2, torch.rand((2, 8, 8), generator=g)), families.Quantise(0, None, 4),
        families.Recolour(2, None, torch.eye(3), torch.zeros(3)),
        families.Generated(1, 2, nets[0], nets[1], 2, image),
        families.SampleWise(1, None, strip, strip / 9, image / 9),
    ]  # fmt: skip


def _trigger_files(folder: Path) -> None:
    for trigger in _triggers():
        trigger.save(folder / f"{trigger.family}.safetensors")


def _trigger(path: Path) -> object:
    found = Trigger.load(path)
    return found.size, found.picture(), found.area, found.units, found.overlap(found), found.stamped_at(4)


def _reports(folder: Path) -> None:
    notes = [Note("mntd", "no bank")]
    shown = [
        make_report(5, shape=SHAPE, labels=list("abcde"), skipped=notes, errors=notes),
        make_cascade_report(4, pairs=[(1, 2)], natural=[0], shape=SHAPE), make_report(3, bad=(), shape=SHAPE),
    ]  # fmt: skip
    families_of = iter(_triggers())
    for i, e in enumerate(shown[0].evidence):  # other families than patches
        shown[0].evidence[i] = Evidence(e.detector, e.unit, e.target, e.source, e.values, next(families_of))
    for i, report in enumerate(shown):
        report.data["example_labels"] = [0, 1, 2, 3]
        report.save(folder / str(i))


def _shown(report: Report, page: Callable[[Any], str], text: Callable[..., None]) -> None:
    page(report)
    text(report, Console(file=io.StringIO(), width=100), folder=Path("x"))
    json.dumps(sarif(report), allow_nan=False)
    json.dumps(report.to_json(), allow_nan=False)


def _report(path: Path) -> object:
    report = Report.load(path)
    _shown(report, scan_page.html, scan_text.show)
    scans.judge(report, 0.1)
    _shown(report, scan_page.html, scan_text.show)
    return report.save(path / "again")


def _audits(folder: Path) -> None:
    made = [
        make_audit(3, bad=(1,), samples=20, poisoned=5, shape=SHAPE, retrained=True),
        make_audit(3, bad=(), samples=9),
    ]
    for i, audit in enumerate(made):
        audit.save(folder / str(i))


def _audit(path: Path) -> object:
    report = Audit.load(path)
    _shown(report, audit_page.html, audit_text.show)
    audits.judge(report, 0.1)
    _shown(report, audit_page.html, audit_text.show)
    return report.save(path / "again")


def _consistent(path: Path) -> None:
    """What follows from the findings of a changed report is made to follow again."""
    file = path / "report.json"
    raw = json.loads(file.read_text())
    found = Report(
        findings=[Finding(**f) for f in raw["findings"]], evidence=[Evidence(**e) for e in raw["evidence"]]
    )
    raw |= {"verdict": found.verdict, "p_value": found.p_value, "targets": list(found.targets)}
    file.write_text(json.dumps(raw))


@functools.cache
def guarded() -> tuple[Model, Data]:
    """A model that a guard can be fitted to, and its clean samples."""
    train, test = TASKS["digits"].load()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    fit(small, train, Recipe(epochs=4, lr=1e-2, batch_size=64, bf16=False), seed=0)
    return Model(small.eval(), (1, 8, 8), 10), test.sample(240, 0)


def _guards(folder: Path) -> None:
    model, data = guarded()
    for names in (["strip", "scale_up", "teco"], ["confused_expert"]):
        guard(model, data, names, fpr=0.05).save(folder / names[0])


def _guard(path: Path) -> object:
    model, data = guarded()
    read_record(path)
    return Guard.load(path, model).predict(data.x[:3])


def _signed(path: Path) -> None:
    """The record names the digest of the changed tensors."""
    raw = json.loads((path / RECORD).read_text())
    raw["tensors_sha256"] = hashlib.sha256((path / TENSORS).read_bytes()).hexdigest()
    (path / RECORD).write_text(json.dumps(raw))


def _banks(folder: Path) -> None:
    g, k, hidden = torch.Generator().manual_seed(0), meta_classifier.QUERIES, meta_classifier.HIDDEN

    def rand(*size: int) -> Tensor:
        return torch.rand(size, generator=g)

    metas = tuple(
        Meta(
            variant, 8, 0, meta_classifier.LOGITS, queries=rand(2, k, *SHAPE),
            weights=(rand(2, hidden, k * 5), rand(2, hidden), rand(2, hidden), rand(2)), scale=rand(2, 2),
            null=rand(9), held_out=rand(9), reach=rand(2), clean=rand(3, 2),
        )
        for variant in meta_classifier.VARIANTS
    )  # fmt: skip
    about = {
        "archs": ["gap_cnn"], "layouts": ["0" * 16], "shape": list(SHAPE), "classes": 5, "seed": 0,
        "shadows": 8,
        "held_out": 24, "data": {"source": "x.npz", "sha256": "0" * 64, "samples": 99},
        "recipe": {"epochs": 3},
        "accuracy": 0.9, "success": 0.8, "work": 1.0, "backsweep": "0.1.0", "torch": "2.13", "python": "3.11",
    }  # fmt: skip
    Bank(about, rand(*SHAPE), rand(*SHAPE), metas).save(folder / "small.bank")


def _bank(path: Path) -> object:
    bank = Bank.load(path)
    model, data = guarded()
    return bank.outside(model, data), [m.scores(rand) for m in bank.metas for rand in (torch.rand(
        len(m.queries), meta_classifier.QUERIES, 1, int(bank.about["classes"])),)]  # fmt: skip


def _records() -> list[Record]:
    found = []
    for i, report in enumerate(
        (make_report(4, shape=SHAPE, labels=list("abcd")), make_report(3, bad=(), shape=SHAPE))
    ):
        report.model |= {"layout": "0" * 16, "sha256": str(i) * 64}
        settings = {"alpha": 0.05, "detectors": report.settings["detectors"]}
        found.append(Record.of(report.to_json(), "key", settings, f"models/{i}.safetensors"))
    return found


def _stores(folder: Path) -> None:
    with Store(str(folder / "store.db")) as store:
        for record in _records():
            store.put(record)
    shutil.rmtree(folder / "store.db.locks")


def _told(records: list[Record]) -> object:
    history.show_records(records, Console(file=io.StringIO(), width=120))
    history.to_csv(records)
    json.dumps([asdict(r) for r in records], allow_nan=False)
    whole = [r for r in records if r.report is not None]
    return json.dumps([history.to_sarif(whole), cyclonedx(whole)], allow_nan=False)


def _store(path: Path) -> object:
    with Store(str(path), create=False, patience=0.05) as store:
        return _told(store.records()), _told(store.records(reports=True))


def _verdict_files(folder: Path) -> None:
    (folder / "verdicts.json").write_text(json.dumps([r.to_json() for r in _records()]))


def _bills(folder: Path) -> None:
    (folder / "bill.json").write_text(json.dumps(cyclonedx(_records())))


def _bill(path: Path) -> object:
    from backsweep.cli.inventory import _read_json

    return json.dumps(cyclonedx(_records(), _read_json(path)), allow_nan=False)


def _logs(folder: Path) -> None:
    for i, report in enumerate((make_report(4, shape=SHAPE), make_cascade_report(3, shape=SHAPE))):
        report.save(folder / str(i))
        lines = [json.dumps({"key": "key", **evidence_json(e)}) + "\n" for e in report.evidence]
        (folder / str(i) / LOG).write_text("".join(lines))


def _log(path: Path) -> object:
    found = [_read_log(path, "key", d) for d in ("neural_cleanse", "cascade")]
    if not any(found):
        raise BadInput("nothing is left of the log")
    return [evidence_json(e) for part in found for e in part.values()]


READERS = (
    Reader("checkpoint (zip)", lambda p: _checkpoints(p, True), _weights, share=3),
    Reader("checkpoint (legacy)", lambda p: _checkpoints(p, False), _weights, share=3),
    Reader("pickle with payload", _pickles, _weights, share=1, good=False),
    Reader("safetensors", _safetensors, _weights),
    Reader("torch.export (.pt2)", _exported, _model, share=3),
    Reader("sharded safetensors", _shards, _weights, needs=("backsweep.formats.weights",), share=1),
    Reader("TorchScript", _torchscript, _model, needs=("backsweep.formats.torchscript",), share=3),
    Reader("ONNX", _onnx, _model, needs=("onnx", "backsweep.formats.onnx"), share=3),
    Reader("Hugging Face", _hugging_face, _model, needs=("transformers",), share=3),
    Reader("npz", _arrays, _data),
    Reader("image folder", _pictures, _data),
    Reader("manifest", _manifests, _data),
    Reader("tar shards", _tars, _data),
    Reader("Parquet and Arrow", _tables, _data, needs=("pyarrow",)),
    Reader("trigger", _trigger_files, _trigger),
    Reader("report", _reports, _report, share=3, mend=_consistent),
    Reader("audit", _audits, _audit, share=3, mend=_consistent),
    Reader("guard", _guards, _guard, mend=_signed),
    Reader("bank", _banks, _bank),
    Reader("evidence log", _logs, _log, share=1),
    Reader("store", _stores, _store),
    Reader("kept verdicts", _verdict_files, lambda p: _told(_read_records(p)), share=1),
    Reader("bill of materials", _bills, _bill, share=1),
)


def pick(rng: random.Random, names: tuple[str, ...] = ()) -> Reader:
    """A reader that is there, by its share."""
    there = [r for r in READERS if r.there and (not names or r.name in names)]
    return rng.choices(there, [r.share for r in there])[0]
