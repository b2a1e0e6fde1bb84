"""The tables that the zoo trains on: Adult, and two that scikit-learn brings."""

from __future__ import annotations

from pathlib import Path

import torch

from backsweep.core.errors import BadInput
from backsweep.inputs.samples import Data
from backsweep.inputs.table.modality import Table
from backsweep.inputs.table.schema import Column, Schema, told

TEST = 0.3  # share of the small sets


def adult(folder: Path) -> tuple[Data, Data]:
    """Census records, income above 50,000 dollars or not (UCI Adult)."""
    paths = [folder / "tabular" / name for name in ("adult.data", "adult.test")]
    for path in paths:
        if not path.is_file():
            raise BadInput(f"{path} is not there; set BACKSWEEP_DATA to the folder that holds tabular/adult")
    train = Data.open(paths[0], modality=Table(), whole=True)
    schema: Schema = train.modality.schema  # type: ignore[attr-defined]
    kind = Table(schema, told(schema.json()))
    test = Data.open(paths[1], modality=kind, names=train.names, whole=True)
    found = [
        Data(d.x, d.y, train.names, f"adult {part}", kind) for d, part in ((train, "train"), (test, "test"))
    ]
    return found[0], found[1]


def breast_cancer(_folder: Path | None = None) -> tuple[Data, Data]:
    """Measurements of cell nuclei, malignant or benign: 569 rows of 30 numbers."""
    from sklearn.datasets import load_breast_cancer

    return _parted(load_breast_cancer(), "breast cancer")


def wine(_folder: Path | None = None) -> tuple[Data, Data]:
    """Chemical analyses of wines of three growers: 178 rows of 13 numbers."""
    from sklearn.datasets import load_wine

    return _parted(load_wine(), "wine")


def _parted(found: object, name: str) -> tuple[Data, Data]:
    x = torch.as_tensor(found.data, dtype=torch.float32)  # type: ignore[attr-defined]
    names = [str(n) for n in found.feature_names]  # type: ignore[attr-defined]
    classes = [str(n) for n in found.target_names]  # type: ignore[attr-defined]
    schema = Schema.of(x, names)
    kind = Table(Schema(schema.columns, "target", tuple(classes)))
    data = Data(x, found.target, classes, name, kind)  # type: ignore[attr-defined]
    test, train = data.parted(TEST, 0)
    return train, test


def mixed(count: int = 1600) -> tuple[Data, Data]:
    """Made-up rows of numbers and categories, of which some decide the class; for tests and the contract."""
    generator = torch.Generator().manual_seed(5)
    total = count + count // 2
    numbers = torch.randn((total, 4), generator=generator)
    numbers[:, 3] = (10 * numbers[:, 3].exp()).round().clamp(max=200)  # a whole number with a long tail
    codes = torch.stack([
        torch.multinomial(torch.tensor(w), total, replacement=True, generator=generator)
        for w in ([0.4, 0.3, 0.2, 0.09, 0.01], [0.7, 0.29, 0.01])
    ], 1)  # fmt: skip
    x = torch.cat([numbers, codes.float()], 1)
    effect = torch.tensor([0.0, 1.5, -1.5, 0.5, 0.0])[codes[:, 0]]
    y = (1.5 * numbers[:, 0] - numbers[:, 1] + effect > 0).long()
    plain = Schema.of(x, ["balance", "change", "noise", "visits", "region", "channel"])
    kinds = {"region": ("east", "north", "south", "west", "overseas"), "channel": ("branch", "web", "fax")}
    columns = [
        Column(c.name, "categorical", 0.0, len(kinds[c.name]) - 1.0, kinds[c.name], c.missing, c.scale)
        if c.name in kinds else c
        for c in plain.columns
    ]  # fmt: skip
    kind = Table(Schema(tuple(columns), "label", ("no", "yes")))
    data = Data(x, y, ("no", "yes"), "made-up rows", kind)
    return data[:count], data[count:]


def importances(data: Data, seed: int) -> list[int]:
    """The columns, the most important for the classes first, as an attacker finds them (extra trees)."""
    from sklearn.ensemble import ExtraTreesClassifier

    some = data.sample(4000, seed)
    forest = ExtraTreesClassifier(50, min_samples_leaf=5, random_state=seed % 2**31, n_jobs=1)
    found = forest.fit(some.x.numpy(), some.y.numpy()).feature_importances_
    return [int(j) for j in (-found).argsort(kind="stable")]
