"""Models of an MLflow registry. Their artifacts are a stranger's files: read, never run."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

from backsweep.core.errors import BadInput
from backsweep.inventory.source import Source, models_in

_BEST_FIRST = ("", ".pt2", ".onnx", ".safetensors")  # a folder of Hugging Face, and what says its own shape
_QUIET = {  # a scanner reports to nobody, and says within seconds that a server is not there
    "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}  # fmt: skip


def versions(address: str, all_versions: bool = False) -> list[Source]:
    """The newest version of every registered model, by name; or all versions.

    Args:
        address: of the tracking server, http://host:5000, or what else MLflow takes for one.
        all_versions: not only the newest.

    Raises:
        BadInput: MLflow's client is not installed, or the registry cannot be read.
    """
    mlflow, shown = _mlflow(address), _without_password(address)
    found, token = [], None
    try:
        client = mlflow.MlflowClient()
        while token != "":
            page = client.search_model_versions(max_results=1000, page_token=token)
            found += [v for v in page if v.status == "READY"]
            token = page.token or ""
    except ImportError as e:
        raise BadInput(f"{shown} is no server, and to open it {e.name} is needed; pip install mlflow") from e
    except Exception as e:
        raise BadInput(f"the MLflow registry {shown} cannot be read ({_line(e)}); check its address") from e
    found.sort(key=lambda v: (v.name, int(v.version)))
    kept = found if all_versions else list({v.name: v for v in found}.values())
    return [
        Source(f"models:/{v.name}/{v.version}", v.creation_timestamp, partial(_fetched, address, v))
        for v in kept
    ]


@contextmanager
def _fetched(address: str, version: Any) -> Iterator[Path]:
    """A version's model file or folder, for a while."""
    mlflow, name = _mlflow(address), f"models:/{version.name}/{version.version}"
    with tempfile.TemporaryDirectory(prefix="backsweep-") as folder:
        try:
            with redirect_stderr(StringIO()):
                mlflow.artifacts.download_artifacts(artifact_uri=name, dst_path=folder)
        except Exception as e:
            raise BadInput(f"{name}: it cannot be fetched from the registry ({_line(e)})") from e
        paths = sorted(models_in(Path(folder)), key=_rank)
        if not paths:
            raise BadInput(f"{name}: no model file is among its artifacts; log it with mlflow.pytorch")
        yield paths[0]


def _rank(path: Path) -> int:
    suffix = "" if path.is_dir() else path.suffix.lower()
    return _BEST_FIRST.index(suffix) if suffix in _BEST_FIRST else len(_BEST_FIRST)


def _mlflow(address: str) -> Any:
    """MLflow's client, which knows one server at a time."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import mlflow
        import mlflow.artifacts
    except ImportError as e:
        raise BadInput("MLflow's client is not installed; pip install 'backsweep[mlflow]'") from e
    mlflow.set_tracking_uri(address)
    mlflow.set_registry_uri(address)
    return mlflow


def _line(error: Exception) -> str:
    return _without_password(" ".join(str(error).split()))[:200] or type(error).__name__


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//", text)
