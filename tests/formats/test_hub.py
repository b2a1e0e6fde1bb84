"""Models of the Hugging Face hub, from a server on this machine that speaks enough of its interface."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backsweep.core.errors import BadInput
from backsweep.formats.opening import load
from backsweep.formats.saving import save
from backsweep.inputs.text.modality import Text
from backsweep.inputs.text.tokens import WordTokens
from backsweep.inventory.sources import find
from shells import Shell

transformers = pytest.importorskip("transformers", reason="the extra backsweep[hf] is not installed")
huggingface_hub = pytest.importorskip("huggingface_hub", reason="the extra backsweep[hf] is not installed")
transformers.utils.logging.disable_progress_bar()

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PREP = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"height": 16, "width": 16}}
Change = Callable[[dict[str, Any]], None]


class Hub:
    """A hub with one model, me/net, and what was asked of it.

    Attributes:
        files: what it serves; `listed` and `sizes` are what it says it serves.
        headers: of every file, beside those that belong there.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.listed, self.sizes = files, list(files), {n: len(b) for n, b in files.items()}
        self.headers: dict[str, str] = {}
        self.commit, self.asked = COMMIT, [""]
        self.status = 200

    def info(self) -> dict[str, Any]:
        siblings = [{"rfilename": n, "size": self.sizes.get(n, 1)} for n in self.listed]
        return {"id": "me/net", "modelId": "me/net", "sha": self.commit, "siblings": siblings}


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a small vision transformer, and an empty cache."""
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16,
        patch_size=8, id2label=dict(enumerate("abcd")), label2id={c: i for i, c in enumerate("abcd")},
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "net")
    files = {p.name: p.read_bytes() for p in (tmp_path / "net").iterdir()}
    files["preprocessor_config.json"] = json.dumps(PREP).encode()
    files |= {"README.md": b"hello", "pytorch_model.bin": b"a pickle", "code.py": b"import os"}
    there = Hub(files)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(False)

        def do_GET(self) -> None:
            self._answer(True)

        def _answer(self, body: bool) -> None:
            path = self.path.split("?")[0]
            if path.startswith("/api/models/me/net") and there.status == 200:
                known = path == "/api/models/me/net" or path.rsplit("/", 1)[-1] in ("main", "v1", COMMIT)
                self._send(200 if known else 404, json.dumps(there.info()).encode() if known else b"{}", body,
                           {} if known else {"X-Error-Code": "RevisionNotFound"})  # fmt: skip
                return
            if path.startswith(f"/me/net/resolve/{COMMIT}/") and there.status == 200:
                name = path.rsplit("/", 1)[-1]
                if name in there.files:
                    there.asked.append(name)
                    if name.endswith(".safetensors"):  # as large files are: elsewhere
                        port = self.headers["Host"].rpartition(":")[2]
                        self._send(302, b"", body, {
                            "Location": f"http://localhost:{port}/elsewhere/{name}",
                            "X-Linked-Size": str(there.sizes[name]), "X-Linked-Etag": self._etag(name),
                            **self._said(),
                        })  # fmt: skip
                        return
                    self._send(200, there.files[name], body, {"ETag": self._etag(name), **self._said()})
                    return
            if path.startswith("/elsewhere/"):
                self._send(200, there.files[path.rsplit("/", 1)[-1]], body, {})
                return
            code = {401: "RepoNotFound", 403: "GatedRepo"}.get(
                there.status, "RepoNotFound" if there.status == 200 else ""
            )
            self._send(there.status if there.status != 200 else 404, b"{}", body, {"X-Error-Code": code})

        def _etag(self, name: str) -> str:
            return f'"{hashlib.sha256(there.files[name]).hexdigest()}"'

        def _said(self) -> dict[str, str]:
            return {"X-Repo-Commit": COMMIT, **there.headers}

        def _send(self, status: int, content: bytes, body: bool, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{http.server_address[1]}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    try:
        yield there
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def test_of_a_text_classifier_the_tokenizer_is_fetched_too(served: Hub, tmp_path: Path) -> None:
    tokens = WordTokens.built(["a plot so thin it hurts"])
    config = transformers.BertConfig(
        vocab_size=len(tokens),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "text")
    tokens.save(tmp_path / "text" / "tokenizer.json")
    served.__init__({p.name: p.read_bytes() for p in (tmp_path / "text").iterdir()})  # type: ignore[misc]
    model = load("hf://me/net", shape=(8,))
    assert model.modality == Text(tokens) and model.digest == load(tmp_path / "text").digest


@pytest.mark.parametrize(
    "name", ["hf://me/net", "hf://me/net@main", "hf://me/net@v1", f"hf://me/net@{COMMIT}"]
)
def test_a_model_of_the_hub_is_fetched_at_one_commit(name: str, served: Hub, tmp_path: Path) -> None:
    model = load(name)
    assert model.source == f"hf://me/net@{COMMIT}"
    assert (model.shape, model.classes, model.labels) == ((3, 16, 16), 4, ("a", "b", "c", "d"))
    wanted = {"config.json", "preprocessor_config.json", "model.safetensors"}
    assert set(served.asked[1:]) == wanted, "neither code nor pickles"
    (tmp_path / "net" / "preprocessor_config.json").write_bytes(served.files["preprocessor_config.json"])
    assert model.digest == load(tmp_path / "net").digest
    served.asked.clear()
    served.files["model.safetensors"] = b"other"  # what is here already is not fetched again
    assert load(name).digest == model.digest
    with torch.no_grad():
        model.net.get_parameter("classifier.bias").add_(1)
    save(model, tmp_path / "repaired")
    assert torch.equal(load(tmp_path / "repaired").logits(torch.zeros(1, 3, 16, 16)),
                       model.logits(torch.zeros(1, 3, 16, 16)))  # fmt: skip


def test_what_was_fetched_is_used_where_the_hub_cannot_be_reached(
    served: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = load("hf://me/net@main").digest
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    model = load(f"hf://me/net@{COMMIT}")
    assert (model.digest, model.source) == (digest, f"hf://me/net@{COMMIT}")
    with pytest.raises(BadInput, match="the hub cannot be reached") as e:
        load("hf://me/other")
    assert "\n" not in str(e.value)


def test_shards_are_fetched_and_nothing_besides(served: Hub, tmp_path: Path) -> None:
    net = transformers.ViTForImageClassification.from_pretrained(tmp_path / "net")
    net.save_pretrained(tmp_path / "parts", max_shard_size="5KB")
    whole = load(tmp_path / "net", mean=[0.5], std=[0.25], shape=(3, 16, 16))
    served.files.pop("model.safetensors")
    served.files |= {p.name: p.read_bytes() for p in (tmp_path / "parts").iterdir()}
    served.files["other.safetensors"] = b"not asked for"
    served.listed, served.sizes = list(served.files), {n: len(b) for n, b in served.files.items()}
    model = load("hf://me/net")
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(model.logits(x), whole.logits(x))
    assert "other.safetensors" not in served.asked


def _without(name: str) -> Change:
    return lambda there: there["listed"].remove(name)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t["listed"].append("../../../etc/cron.d/x"), "lists files outside of itself"),
        (lambda t: t["listed"].append("/etc/passwd"), "lists files outside of itself"),
        (_without("model.safetensors"), "pickles are not fetched"),
        (_without("config.json"), "no config.json"),
        (lambda t: t["sizes"].update({"model.safetensors": 2**50}), "download it yourself"),
        (lambda t: t.update(commit="../../x"), "does not say which commit"),
        (lambda t: t["headers"].update({"X-Repo-Commit": "../../x"}), "does not say what"),
        (lambda t: t["headers"].update({"ETag": '"../../x"'}), "does not say what"),
        (lambda t: t["headers"].update({"X-Linked-Size": str(2**50)}), "has 1,125,899,906,842,624 bytes"),
        (
            lambda t: t["headers"].update({"X-Linked-Size": "5"}),
            "hub sends more bytes|hub cannot|as the hub said",
        ),
        (
            lambda t: t["files"].update({"config.json": b'{"auto_map": {}, "model_type": "vit"}'}),
            "code of its own",
        ),
        (lambda t: t.update(status=401), "no such model on the hub, or it is private"),
        (lambda t: t.update(status=403), "ask for access on its page"),
        (lambda t: t.update(status=400), "the hub answers with status 400"),
    ],
)
def test_a_hub_that_is_hostile_or_has_nothing_is_one_line(
    change: Change, says: str, served: Hub, tmp_path: Path
) -> None:
    change(vars(served))
    before = {p for p in tmp_path.parent.rglob("*") if (tmp_path / "cache") not in p.parents}
    with pytest.raises(BadInput, match=says) as e:
        load("hf://me/net@main")
    assert "\n" not in str(e.value)
    after = {p for p in tmp_path.parent.rglob("*") if (tmp_path / "cache") not in p.parents}
    assert after - before <= {tmp_path / "cache"}, "nothing is written elsewhere"
    if "auto_map" in says or "code of its own" in says:
        assert "model.safetensors" not in served.asked


@pytest.mark.parametrize(
    "name", ["hf://net", "hf://me/net/more", "hf://../x", "hf://me/net@../x", "hf://", "hf://a b/c"]
)
def test_names_that_are_none_ask_nobody(name: str, served: Hub) -> None:
    with pytest.raises(BadInput, match="is no model of the hub"):
        load(name)
    assert served.asked == [""]


def test_a_revision_that_is_not_there(served: Hub) -> None:
    with pytest.raises(BadInput, match="no such revision"):
        load("hf://me/net@nowhere")


def test_a_report_names_the_commit_and_the_digest(served: Hub, tmp_path: Path, shell: Shell) -> None:
    generator = np.random.default_rng(0)
    model = load("hf://me/net")
    x = generator.random((80, 3, 16, 16)).astype(np.float32)
    y = model.predict(torch.from_numpy(x)).numpy()
    assert len(set(y.tolist())) > 1
    np.savez(tmp_path / "data.npz", x=x, y=y)
    status, _, err = shell(
        "scan", "hf://me/net@v1", "--data", tmp_path / "data.npz", "--out", tmp_path / "out",
        "-d", "mm_bd", "-p", "mm_bd.steps=1", "-p", "mm_bd.images=1",
    )  # fmt: skip
    assert status in (0, 1, 3), err
    record = json.loads((tmp_path / "out" / "report.json").read_text())["model"]
    assert (record["source"], record["sha256"]) == (f"hf://me/net@{COMMIT}", model.digest)
    (source,) = find(["hf://me/net"])
    assert source.name == f"hf://me/net@{COMMIT}"
    with source.fetch() as path:
        assert load(path).digest == model.digest
