"""Which weights of a file belong to which layer, as Keras itself deals them out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from backsweep.core.errors import BadInput
from backsweep.formats.keras.graph import Graph, Node, make
from backsweep.formats.keras.hdf5 import Hdf5, Item
from backsweep.formats.keras.layers.base import STATISTICS, Held
from backsweep.formats.keras.network import Weights

_BEFORE = "_layer_checkpoint_dependencies"  # what the folder of layers was called in 2.13
_MOST_PARTS = 10_000
_AGAIN = "the file is damaged or was changed; get it again"
Path = tuple[str, ...]


def of_archive(graph: Graph, file: Hdf5) -> Weights:
    """Weights of a .keras archive: a folder for each layer, named after its class and counted.

    Raises:
        BadInput: weights are missing, too many, or in two places.
    """
    if {"layers", _BEFORE} <= file.root.members.keys():
        raise BadInput("it holds weights in two places; do not use it")
    return dict(_of_folder(graph, file, "layers", ()))


def _of_folder(graph: Graph, file: Hdf5, folder: str, path: Path) -> Iterator[tuple[Path, dict[str, Held]]]:
    counts: Counter[str] = Counter()
    for node in (graph.nodes[name] for name in graph.order):
        if node.operation:
            continue
        word = _snake(node.kind)
        place = f"{folder}/{word}_{counts[word]}" if counts[word] else f"{folder}/{word}"
        counts[word] += 1
        here = (*path, node.name)
        if node.graph is not None:
            yield from _of_folder(node.graph, file, f"{place}/layers", here)
        elif slots := _slots(node):
            yield here, _of_layer(node, slots, file, place)


def _of_layer(node: Node, slots: list[str], file: Hdf5, place: str) -> dict[str, Held]:
    """Weights in the folders of one layer: each part of it has its own."""
    found = {}
    parts: dict[str, list[str]] = {}
    for slot in slots:
        parts.setdefault(slot.rpartition("/")[0], []).append(slot)
    for part, names in parts.items():
        at = f"{place}/{part}/vars" if part else f"{place}/vars"
        item = next((i for p in (at, at.replace("layers", _BEFORE)) if (i := file.find(p)) is not None), None)
        if item is None or set(item.members) != {str(i) for i in range(len(names))}:
            there = 0 if item is None else len(item.members)
            raise BadInput(f"its layer {node.name[:60]!r} has {there} weights, not {len(names)}; {_AGAIN}")
        for number, name in enumerate(names):
            found[name] = _held(file, file.item(item.members[str(number)]), node.name)
    return found


def of_hdf5(graph: Graph, file: Hdf5) -> Weights:
    """Weights of a whole model in HDF5: lists in the order of layers, those that training moves first."""
    group = file.find("model_weights")
    if group is None:
        raise BadInput(f"it holds no weights (model_weights); {_AGAIN}")
    wanted = [
        (name, slots) for name in graph.order if (slots := list(_all_slots(graph.nodes[name], (), True)))
    ]
    given: list[tuple[str, list[str]]] = []
    for name in _listed(group, "layer_names"):
        item = file.find(f"model_weights/{name}")
        if item is None:
            raise BadInput(f"it lacks the weights of its layer {name[:60]!r}; {_AGAIN}")
        if names := _listed(item, "weight_names"):
            given.append((name, names))
    if len(wanted) != len(given):
        raise BadInput(f"it holds weights of {len(given)} layers, not of {len(wanted)}; {_AGAIN}")
    found: Weights = {}
    for (layer, slots), (name, names) in zip(wanted, given, strict=True):
        if len(slots) != len(names) or layer != name:
            raise BadInput(
                f"its layer {layer[:60]!r} has {len(slots)} weights, and the file {len(names)} of "
                f"{name[:60]!r}; {_AGAIN}"
            )
        moved = [s for s in slots if s[2]] + [s for s in slots if not s[2]]
        for (path, slot, _), weight in zip(moved, names, strict=True):
            item = file.find(f"model_weights/{name}/{weight}")
            if item is None:
                raise BadInput(f"it lacks the weight {weight[:80]!r}; {_AGAIN}")
            found.setdefault(path, {})[slot] = _held(file, item, layer)
    return found


def _all_slots(node: Node, path: Path, trained: bool) -> Iterator[tuple[Path, str, bool]]:
    """Path of the layer, slot, and whether training moves it; of a model, of all its layers."""
    here, trained = (*path, node.name), trained and node.trainable
    if node.graph is not None:
        for name in node.graph.order:
            yield from _all_slots(node.graph.nodes[name], here, trained)
        return
    for slot in _slots(node):
        yield here, slot, trained and slot.rpartition("/")[2] not in STATISTICS


def _listed(item: Item, key: str) -> list[str]:
    """A list of texts in attributes; long ones are in several, numbered ones."""
    if isinstance(whole := item.attributes.get(key), list):
        return whole
    found: list[str] = []
    for i in range(_MOST_PARTS):
        part = item.attributes.get(f"{key}{i}")
        if not isinstance(part, list):
            break
        found += part
    return found


def _slots(node: Node) -> list[str]:
    return [] if node.settings is None else make(node).slots(node.settings)


def _held(file: Hdf5, item: Item, name: str) -> Held:
    if item.dataset is None:
        raise BadInput(f"its layer {name[:60]!r} has a weight without numbers; {_AGAIN}")
    return Held(item.dataset, file.tensor(item.dataset))


def _snake(kind: str) -> str:
    """The name of a class as Keras names a folder after it."""
    parted = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", kind))
    return re.sub("([a-z])([A-Z])", r"\1_\2", parted).lower()
