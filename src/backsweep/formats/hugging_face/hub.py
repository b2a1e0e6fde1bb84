"""Models of the Hugging Face hub, `hf://owner/name@revision`: config, preprocessing and safetensors, no more.

They are fetched when a user names one, by huggingface_hub into its own cache, and at one commit: that is what
reports name. What the hub says of files is checked before they are fetched.
"""

from __future__ import annotations

import importlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backsweep.core.errors import BadInput
from backsweep.core.text import one_line, some
from backsweep.formats.hugging_face import files

PREFIX = "hf://"
MOST_BYTES = 2**35  # of weights
_MOST_TEXT = 2**26  # of a config or an index
_TIMEOUT = 10.0  # seconds
_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ETAG = re.compile(r"[\w.-]+", re.ASCII)
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors", re.ASCII)


@dataclass(frozen=True)
class Fetched:
    """Where the files of a model are, and its name with the commit."""

    folder: Path
    name: str


def fetch(name: str) -> Fetched:
    """Bring a model of the hub to this machine, if it is not here yet.

    Args:
        name: hf://owner/name, with @revision (a branch, a tag, a commit) or without: the main branch.

    Raises:
        BadInput: no such name, model or revision, the hub cannot be reached, or nothing there is read.
    """
    match = _NAME.fullmatch(name.removeprefix(PREFIX))
    if match is None or ".." in name:
        raise BadInput(f"{one_line(name)[:100]!r} is no model of the hub; name it hf://owner/name@revision")
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ImportError as e:
        raise BadInput("models of the hub are fetched by huggingface_hub; pip install 'backsweep[hf]'") from e
    try:
        return _fetched(hub, match["repo"], match["revision"] or "main")
    except BadInput as e:
        raise BadInput(one_line(f"{name}: {e}")) from e
    except Exception as e:
        raise BadInput(one_line(f"{name}: {_reason(hub, e)}")) from e


def _fetched(hub: Any, repo: str, revision: str) -> Fetched:
    endpoint = os.environ.get("HF_ENDPOINT") or None
    try:
        info = hub.HfApi(endpoint=endpoint).model_info(
            repo, revision=revision, files_metadata=True, timeout=_TIMEOUT
        )
    except Exception as e:
        if (here := _cached(hub, repo, revision, e)) is not None:
            return here
        raise
    commit = str(info.sha)
    if not _COMMIT.fullmatch(commit):
        raise BadInput("the hub does not say which commit this is; try again later")
    sizes = {str(f.rfilename): f.size for f in info.siblings or ()}
    wanted = _wanted(sizes)
    folder: Path | None = None
    for name in wanted:
        most = _MOST_TEXT if name.endswith((".json", ".jinja")) else MOST_BYTES
        size = _checked(hub, repo, name, commit, endpoint, most)
        place = Path(
            hub.hf_hub_download(
                repo, name, revision=commit, endpoint=endpoint, etag_timeout=_TIMEOUT,
                tqdm_class=_counter(hub, size),
            )
        )  # fmt: skip
        if (place.parent.name, place.name) != (commit, name) or place.stat().st_size != size:
            raise BadInput(f"{name} is not as the hub said; try again later")
        folder = place.parent
        if name == wanted[0]:  # what will be refused need not be fetched
            config, _ = files.configs(files.Folder(folder))
            wanted[1:1] = [n for n in files.tokenizer_files(config) if n in sizes]
    if folder is None:
        raise BadInput("there is nothing to fetch")
    return Fetched(folder, f"{PREFIX}{repo}@{commit}")


def _wanted(sizes: dict[str, Any]) -> list[str]:
    """Names of the files that are read, config.json first.

    Raises:
        BadInput: what has to be there is not, it is too large, or a name leads elsewhere.
    """
    if outside := [n for n in sizes if n.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", n)]:
        raise BadInput(f"it lists files outside of itself ({some(outside)}); do not use it")
    if "config.json" not in sizes:
        raise BadInput("it has no config.json, so it is no model of transformers or timm; name another")
    weights = ["model.safetensors"]
    if weights[0] not in sizes:
        weights = sorted(n for n in sizes if _SHARD.fullmatch(n))
        if files.INDEX not in sizes or not weights:
            raise BadInput(
                "it has no weights as safetensors, and pickles are not fetched; ask its owner for them, or "
                "download it and name the folder"
            )
        weights.append(files.INDEX)
    total = sum(int(sizes[n] or 0) for n in weights)
    if total > MOST_BYTES:
        raise BadInput(f"its weights have {total:,} bytes, more than {MOST_BYTES:,}; download it yourself")
    return [*(n for n in files.CONFIGS if n in sizes), *weights]


def _checked(hub: Any, repo: str, name: str, commit: str, endpoint: str | None, most: int) -> int:
    """Size of a file, once all that is said of it can be."""
    url = hub.hf_hub_url(repo, name, revision=commit, endpoint=endpoint)
    said = hub.get_hf_file_metadata(url, timeout=_TIMEOUT, endpoint=endpoint)
    size = said.size
    if said.commit_hash != commit or not _ETAG.fullmatch(str(said.etag)) or type(size) is not int:
        raise BadInput(f"the hub does not say what {name} is at commit {commit[:12]}; try again later")
    if not 0 < size <= most:
        raise BadInput(f"{name} has {size:,} bytes, and at most {most:,} are fetched; download it yourself")
    return size


def _counter(hub: Any, size: int) -> Any:
    """A progress bar that shows nothing, and ends a download that is larger than was said."""

    class Counter(hub.utils.tqdm):  # type: ignore[misc]
        count = 0

        def __init__(self, *args: Any, **settings: Any) -> None:
            settings["disable"] = True
            super().__init__(*args, **{k: v for k, v in settings.items() if k != "name"})

        def update(self, n: float | None = 1) -> bool | None:
            self.count += int(n or 0)
            if self.count > size:
                raise BadInput("the hub sends more bytes than it said; try again later")
            return None

    return Counter


def _cached(hub: Any, repo: str, revision: str, error: Exception) -> Fetched | None:
    """What was fetched before, where the hub cannot be reached."""
    errors = hub.errors
    if isinstance(error, errors.HfHubHTTPError) and not isinstance(error, errors.OfflineModeIsEnabled):
        return None
    try:
        folder = Path(hub.snapshot_download(repo, revision=revision, local_files_only=True))
        files.digest(folder)
    except Exception:
        return None
    return Fetched(folder, f"{PREFIX}{repo}@{folder.name}") if _COMMIT.fullmatch(folder.name) else None


def _reason(hub: Any, error: Exception) -> str:
    """Why a model could not be fetched, and what to do."""
    errors = hub.errors
    if isinstance(error, errors.GatedRepoError):
        return "its owner has to let you in; ask for access on its page, and log in (hf auth login)"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "there is no such model on the hub, or it is private; check the name, or log in (hf auth login)"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return "it has no such revision; name a branch, a tag or a commit"
    if isinstance(error, errors.HFValidationError):
        return "the hub has no such names; name it hf://owner/name@revision"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"the hub answers with status {status}; try again later"
    return (
        f"the hub cannot be reached ({type(error).__name__}: {str(error).strip()[:100]}); check the network, "
        "or name a folder"
    )
