"""The zoo: attacked and clean networks whose truth is known.

A plan names task x attack x seeds. Every attacked net gets a clean twin: same start weights, same
order of samples, same number of updates; the backdoor is the only difference. The network files of
both have one layout, and the truth lies beside them in a manifest that no detector reads.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from backsweep.core.discovery import make
from backsweep.core.errors import BadInput
from backsweep.core.files import home, writable_folder, write_bytes, write_json
from backsweep.core.provenance import provenance
from backsweep.core.seeds import derive_seed
from backsweep.engine.engine import Engine
from backsweep.engine.jobs import Lost
from backsweep.inputs.samples import Data
from backsweep.inputs.trigger import Trigger
from backsweep.models.model import Model
from backsweep.models.training import Recipe, fit
from backsweep.zoo.attack import Attack, Setup
from backsweep.zoo.tasks import TASKS, Task, factory, loaded

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MIN_ATTACK_SUCCESS, MAX_ACCURACY_LOSS = 0.9, 0.03  # the gate of the zoo
MAX_TWIN_SUCCESS = 0.5  # what moves the clean twin as well is a perturbation, not a backdoor
CHOOSING, JUDGING, CALIBRATION = SPLITS = ("choosing", "judging", "calibration")
JUDGING_SEEDS = 10  # networks with a smaller seed are for choosing constants, the others for judging ...
CALIBRATION_SEEDS = 1000  # ... up to here; from here on, clean networks for the null tables


@dataclass(frozen=True)
class Entry:
    """One network of a plan.

    Attributes:
        task: name in `tasks.TASKS`.
        attack: name of an attack, None for the clean twin.
        seed: of the start weights, the training and the trigger.
        options: settings of the attack.
        recipe: fields of the training recipe that differ from the task's.
        arch: name of a network in `architectures`, None for the task's own.
        samples: it is trained on so many of the training samples, None for all.
        start: name of a task from whose clean network, trained alike, it is fine-tuned.
    """

    task: str
    attack: str | None
    seed: int
    options: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    arch: str | None = None
    samples: int | None = None
    start: str | None = None

    @property
    def id(self) -> str:
        """Name of its folder; settings that differ from the defaults enter as a short hash."""
        settings = [self.options, self.recipe, *filter(None, (self.samples, self.start))]
        extra = json.dumps(settings, sort_keys=True) if any(settings) else ""
        tag = "-" + hashlib.sha256(extra.encode()).hexdigest()[:6] if extra else ""
        parts = [self.task, *([self.arch] if self.arch else []), self.attack or "clean"]
        return f"{'-'.join(parts)}{tag}-s{self.seed}"

    @property
    def twin(self) -> Entry:
        """The clean net that was trained in the same way."""
        return replace(self, attack=None, options={})

    @property
    def before(self) -> Entry | None:
        """The clean network that it is fine-tuned from, one for all of a kind."""
        return replace(self.twin, task=self.start, start=None, seed=JUDGING_SEEDS) if self.start else None


@dataclass(frozen=True)
class Net:
    """A network of the zoo on disk: `model()` for detectors, the rest is the truth for judging."""

    folder: Path
    truth: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Net:
        """The network whose manifest lies in `folder`."""
        return cls(folder, json.loads((folder / "manifest.json").read_text(encoding="utf-8")))

    @property
    def id(self) -> str:
        return str(self.truth["id"])

    @property
    def task(self) -> Task:
        return TASKS[self.truth["task"]]

    def model(self) -> Model:
        """The network, as a user would load it."""
        net = self.task.net(0, self.truth.get("arch"))
        net.load_state_dict(load_file(self.folder / "model.safetensors"))
        return self.task.model(net.eval(), self.id)

    def triggers(self) -> list[Trigger]:
        """The planted triggers, none for a clean net."""
        return [Trigger.load(self.folder / t["file"]) for t in self.truth["triggers"]]


def split_of(seed: int) -> str:
    """What a network is for: choosing constants, the null tables, or judging; never two of them."""
    if seed >= CALIBRATION_SEEDS:
        return CALIBRATION
    return JUDGING if seed >= JUDGING_SEEDS else CHOOSING


def read_plan(path: Path) -> dict[str, Any]:
    """A TOML plan as a dictionary.

    Raises:
        BadInput: unreadable, or no `[[nets]]` in it.
    """
    try:
        plan = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise BadInput(f"cannot read the plan {path}: {e}") from e
    if not isinstance(plan.get("nets", plan.get("kinds")), list):
        raise BadInput(f"{path} is not a plan: it has no [[nets]] table")
    return plan | {"nets": [*plan.get("nets", []), *kinds(plan)]}


def kinds(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """The tables of nets that `[[kinds]]` stand for: every kind with every attack of the list it names.

    A list of attacks is `[[attacks.NAME]]`. The i-th attack has the i-th seed of the kind, so that each
    attacked net has a clean twin of its own.
    """
    lists, tables = plan.get("attacks", {}), []
    for kind in plan.get("kinds", []):
        if kind.get("attacks") not in lists:
            raise BadInput(f"unknown list of attacks {kind.get('attacks')!r}; there are {', '.join(lists)}")
        for i, attack in enumerate(lists[kind["attacks"]]):
            own = {key: value for key, value in kind.items() if key not in ("attacks", "seed")}
            tables.append({**own, **attack, "seeds": [kind.get("seed", JUDGING_SEEDS) + i]})
    return tables


def entries(plan: dict[str, Any]) -> list[Entry]:
    """The networks that a plan asks for, each attacked one with its clean twin, without repetition.

    Raises:
        BadInput: a task, attack, setting or key that does not exist.
    """
    found: dict[str, Entry] = {}
    for table in plan["nets"]:
        for key in set(table) - {"task", "attack", "seeds", "options", "recipe", "arch", "samples", "start"}:
            raise BadInput(f"unknown key {key!r} under [[nets]]")
        if table.get("task") not in TASKS:
            raise BadInput(f"unknown task {table.get('task')!r}; there are {', '.join(TASKS)}")
        if table.get("arch") is not None:
            factory(str(table["arch"]))
        attack, arch = table.get("attack"), table.get("arch")
        for i, seed in enumerate(table.get("seeds", [0])):
            options, recipe = _deal(table.get("options", {}), i), _deal(table.get("recipe", {}), i)
            if attack is not None:
                needed = make(Attack, attack, options).modality
                if needed != TASKS[table["task"]].kind:
                    raise BadInput(f"the attack {attack} needs {needed}, the task {table['task']} has none")
            for key in set(recipe) - {f.name for f in fields(Recipe)}:
                raise BadInput(
                    f"unknown key {key!r} in a recipe; there are {', '.join(r.name for r in fields(Recipe))}"
                )
            if table.get("start") is not None and table["start"] not in TASKS:
                raise BadInput(f"unknown task {table['start']!r} to start from")
            if not isinstance(table.get("samples", 1), int) or table.get("samples", 1) < 1:
                raise BadInput(f"samples = {table['samples']!r} is no number of samples")
            entry = Entry(
                table["task"], attack, int(seed), options, recipe, arch,
                table.get("samples"), table.get("start"),
            )  # fmt: skip
            found[entry.twin.id] = entry.twin
            found[entry.id] = entry
    return sorted(found.values(), key=lambda e: (e.task, e.attack is not None, e.id))


def _deal(settings: dict[str, Any], i: int) -> dict[str, Any]:
    """The settings of the i-th seed: a list is dealt out to the seeds in turn."""
    return {k: v[i % len(v)] if isinstance(v, list) else v for k, v in settings.items()}


def load_data(task: str) -> tuple[Data, Data]:
    return loaded(TASKS[task])


def training_data(entry: Entry) -> Data:
    """The clean samples that a network of the zoo is trained on, before an attacker had them."""
    train, _ = load_data(entry.task)
    if entry.samples is None or entry.samples >= len(train):
        return train
    return train.sample(entry.samples, derive_seed(0, "zoo", entry.task, entry.samples))


def fresh_net(entry: Entry, folder: Path, seed: int) -> nn.Module:
    """A network before its training: drawn from `seed`, then what fits of the network it starts from.

    Args:
        folder: of the zoo; that network is built there first.
    """
    net = TASKS[entry.task].net(seed, entry.arch)
    if entry.before is not None:
        known, own = build_net(entry.before, folder).model().net.state_dict(), net.state_dict()
        net.load_state_dict(own | {k: v for k, v in known.items() if k in own and own[k].shape == v.shape})
    return net


def build_net(entry: Entry, folder: Path) -> Net:
    """Train one network on one core, measure it, and write it; what is there already is read.

    An attacked net needs its clean twin, which is built first. The manifest is written last: a net
    without one is built anew.
    """
    place = folder / entry.id
    manifest = place / "manifest.json"
    if manifest.is_file():
        return Net.read(place)
    twin = None if entry.attack is None else build_net(entry.twin, folder)
    place.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    task, clock = TASKS[entry.task], time.process_time()
    _, test = load_data(entry.task)
    train, recipe = training_data(entry), replace(task.recipe, **entry.recipe)
    net, planted, brought = fresh_net(entry, folder, entry.seed), [], {}
    if twin is None:
        fit(net, train, recipe, entry.seed)
    else:
        setup = setup_of(entry, train, lambda: twin, folder)
        attack = make(Attack, entry.attack or "", entry.options)
        planted, brought = attack.plant(net, setup), provenance([attack])
    seconds = time.process_time() - clock
    model, clean = task.model(net), twin.model() if twin else None
    triggers: list[dict[str, Any]] = []
    for i, trigger in enumerate(planted):
        trigger.save(place / f"trigger-{i}.safetensors")
        triggers.append({
            "file": f"trigger-{i}.safetensors", "family": trigger.family, "target": trigger.target,
            "source": trigger.source, "size": trigger.size,
            "attack_success_rate": model.success_rate(trigger, test),
            "twin_success_rate": clean.success_rate(trigger, test) if clean else None,
        })  # fmt: skip
    weights = save(net.state_dict())
    write_bytes(place / "model.safetensors", weights)
    truth: dict[str, Any] = {
        **asdict(entry),
        "id": entry.id,
        "twin": entry.twin.id,
        "triggers": triggers,
        "clean_accuracy": model.accuracy(test.x, test.y),
        "twin_accuracy": twin.truth["clean_accuracy"] if twin else None,
        "attack_success_rate": min((t["attack_success_rate"] for t in triggers), default=None),
        "sha256": hashlib.sha256(weights).hexdigest(),
        "training": asdict(recipe),
        "torch": torch.__version__,
        "cpu_seconds": round(seconds, 1),
        **brought,
    }
    write_json(manifest, truth)
    return Net(place, truth)


def entry_of(net: Net) -> Entry:
    """The entry that a network was built from."""
    return Entry(**{f.name: net.truth[f.name] for f in fields(Entry) if f.name in net.truth})


def poisoned(net: Net) -> tuple[Data, Tensor]:
    """The training set of a network, as the attack left it, and the indices of the poisoned samples.

    Raises:
        BadInput: the attack has no poisoned set: it controls the training, or changes weights.
    """
    entry = entry_of(net)
    train = training_data(entry)
    if entry.attack is None:
        return train, torch.empty(0, dtype=torch.long)
    attack = make(Attack, entry.attack, entry.options)
    folder = net.folder.parent
    setup = setup_of(entry, train, lambda: Net.read(folder / entry.twin.id), folder)
    by_poisoning = type(attack).plant is Attack.plant or getattr(attack, "poisons", False)
    if not by_poisoning:
        raise BadInput(f"{entry.attack} controls the training, there is no poisoned training set")
    return attack.poison(setup, attack.triggers(setup))


def setup_of(entry: Entry, train: Data, twin: Callable[[], Net], folder: Path) -> Setup:
    """What the attacker of a network has."""
    task = TASKS[entry.task]
    recipe = replace(task.recipe, **entry.recipe)
    setup = task.setup(train, entry.seed, recipe, entry.arch, clean=lambda: twin().model().net.eval())
    return replace(setup, net=partial(fresh_net, entry, folder)) if entry.start else setup


def build(plan: Sequence[Entry], folder: Path, engine: Engine | None = None) -> Iterator[Net]:
    """Build every network of a plan on an engine; yields each as it is finished.

    The clean nets come first, since every attacked net looks at its twin.

    Raises:
        Lost: the worker of a network died at every try; raised when the others are built.
    """
    place, lost = writable_folder(folder).resolve(), []
    for attacked in (False, True):
        part = [e for e in plan if (e.attack is not None) == attacked]
        for index, net in (engine or Engine()).run(partial(build_net, e, place) for e in part):
            if isinstance(net, Lost):
                lost.append(f"{part[index].id}: {net}")
            else:
                yield net
    if lost:
        raise Lost(
            f"{len(lost)} of {len(plan)} networks were not built, the same command tries again: {lost[0]}"
        )


def failed_gate(net: Net) -> str:
    """Why a net may not enter the bench, "" when it may."""
    truth = net.truth
    if truth["attack"] is None:
        return ""
    if truth["attack_success_rate"] < MIN_ATTACK_SUCCESS:
        return f"attack success rate {truth['attack_success_rate']:.1%} is below 90 %"
    by_chance = max(t["twin_success_rate"] for t in truth["triggers"])
    if by_chance > MAX_TWIN_SUCCESS:
        return f"the trigger moves the clean twin too, success rate {by_chance:.1%}"
    loss = truth["twin_accuracy"] - truth["clean_accuracy"]
    return f"clean accuracy is {loss:.1%} below its twin's" if loss > MAX_ACCURACY_LOSS else ""


def home_folder() -> Path:
    """Where the zoo's networks lie unless said otherwise."""
    return home() / "zoo"


def nets(folder: Path) -> list[Net]:
    """All finished networks in a folder, in the order of their names."""
    manifests = sorted(folder.glob("*/manifest.json"))
    return [Net.read(manifest.parent) for manifest in manifests]


def summary(net: Net) -> dict[str, Any]:
    """What is published of a network: digests of its weights and of its manifest, and its figures."""
    keys = ("id", "attack", "options", "recipe", "sha256", "clean_accuracy", "twin_accuracy")
    manifest = (net.folder / "manifest.json").read_bytes()
    return {
        **{key: net.truth[key] for key in keys},
        "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
        "attack_success_rates": [t["attack_success_rate"] for t in net.truth["triggers"]],
        "twin_success_rates": [t["twin_success_rate"] for t in net.truth["triggers"]],
        "gate": failed_gate(net),
    }


def find(name: str, folder: Path) -> Net:
    """The network called `name`.

    Raises:
        BadInput: there is none; names that are near.
    """
    known = {net.id: net for net in nets(folder)}
    if name not in known:
        near = difflib.get_close_matches(name, known, 3)
        hint = f"did you mean {', '.join(near)}?" if near else f"`backsweep zoo list` names {len(known)}"
        raise BadInput(f"there is no network {name!r} in {folder}; {hint}")
    return known[name]
