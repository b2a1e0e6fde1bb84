"""A real MLflow registry on loopback: what is in it is scanned, nothing in it runs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from backsweep.core.errors import BadInput
from backsweep.inventory import mlflow_registry
from backsweep.inventory.sources import find
from backsweep.inventory.store import Store
from backsweep.inventory.sweep import sweep
from many import make_data, make_models, quick_scan

pytest.importorskip("mlflow", reason="MLflow's client is not installed (backsweep[mlflow])")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server; it needs the whole of MLflow, here or in the environment that $BACKSWEEP_MLFLOW names."""
    pythons = [p for p in (os.environ.get("BACKSWEEP_MLFLOW"), sys.executable) if p and Path(p).exists()]
    check = "import alembic, flask, mlflow.server"
    installed = (p for p in pythons if not subprocess.call([p, "-c", check], stderr=subprocess.DEVNULL))
    python = next(installed, None)
    if python is None:
        pytest.skip("MLflow's server is not installed (pip install mlflow)")
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [
        python, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/m.db",
        "--host", "127.0.0.1",
        "--artifacts-destination", folder / "artifacts", "--port", port, "--workers", 1,
    ]  # fmt: skip
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(
        list(map(str, words)), cwd=folder, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as server:  # fmt: skip
        try:
            yield ready(f"http://127.0.0.1:{port}")
        finally:
            os.killpg(server.pid, signal.SIGKILL)


def ready(address: str) -> str:
    end = time.monotonic() + 90
    while True:
        try:
            with urllib.request.urlopen(f"{address}/health") as answer:  # noqa: S310
                assert answer.status == 200
            return address
        except OSError:
            assert time.monotonic() < end, "the server does not answer"
            time.sleep(0.2)


def register(address: str, name: str, file: Path, folder: str = "model/data") -> None:
    """A new version of a registered model with one artifact, as `mlflow.pytorch.log_model` leaves it."""
    client = mlflow_registry._mlflow(address).MlflowClient()
    run = client.create_run("0").info
    client.log_artifact(run.run_id, str(file), folder)
    if not client.search_registered_models(f"name='{name}'"):
        client.create_registered_model(name)
    client.create_model_version(name, f"{run.artifact_uri}/model", run.run_id)


@pytest.mark.slow
def test_models_of_a_registry(address: str, tmp_path: Path) -> None:
    first, second = make_models(tmp_path / "nets", 2)
    torch.save({"epoch": 3}, tmp_path / "model.pth")
    (tmp_path / "notes.txt").write_text("nothing to scan")
    register(address, "digits", first)
    register(address, "digits", second)
    register(address, "empty", tmp_path / "model.pth")
    register(address, "words", tmp_path / "notes.txt")
    scan, name = quick_scan(make_data(tmp_path)), f"mlflow:{address}"
    assert [s.name for s in find([name])] == ["models:/digits/2", "models:/empty/1", "models:/words/1"]
    with Store(str(tmp_path / "s.db")) as store:
        newest = {o.source: o for o in sweep([name], scan, store)}
        again = {o.source: o for o in sweep(find([name], all_versions=True), scan, store)}
        assert [r.source for r in store.records()] == ["models:/digits/2", "models:/digits/1"]
    assert newest["models:/digits/2"].fresh and not again["models:/digits/2"].fresh
    assert again["models:/digits/1"].fresh
    assert "it holds no weights" in again["models:/empty/1"].reason
    assert "no model file is among its artifacts" in again["models:/words/1"].reason


def test_a_registry_that_does_not_answer() -> None:
    begin = time.monotonic()
    with pytest.raises(BadInput, match=r"registry http://127\.0\.0\.1:9 cannot be read") as caught:
        list(find(["mlflow:http://user:word@127.0.0.1:9"]))
    assert time.monotonic() - begin < 30
    assert "word@" not in str(caught.value) and "\n" not in str(caught.value)


def test_without_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(BadInput, match=r"pip install 'backsweep\[mlflow\]'"):
        list(find(["mlflow:http://127.0.0.1:9"]))
