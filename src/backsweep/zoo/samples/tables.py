"""The tables that the zoo trains on: Adult, with one class or another, and those that scikit-learn brings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
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


def adult_column(name: str, folder: Path, above: float | None = None) -> tuple[Data, Data]:
    """Adult with one of its columns as the class; the income is a column in its place.

    Args:
        name: of that column.
        above: of a column of numbers: the second class is what lies above.
    """
    train, test = adult(folder)
    schema: Schema = train.modality.schema  # type: ignore[attr-defined]
    at = schema.names.index(name)
    column, incomes = schema.columns[at], tuple(train.names or ("0", "1"))
    classes = column.categories if above is None else (f"{above:g} or less", f"more than {above:g}")
    income = Column("income", "categorical", 0.0, len(incomes) - 1.0, incomes)
    columns = (*schema.columns[:at], income, *schema.columns[at + 1 :])
    kind = Table(Schema(columns, name, tuple(classes)))

    def part(data: Data) -> Data:
        x = data.x.clone()
        x[:, at] = data.y.float()
        y = data.x[:, at].long() if above is None else (data.x[:, at] > above).long()
        return Data(x, y, classes, f"{data.source}, {name}", kind)

    return part(train), part(test)


def breast_cancer(_folder: Path | None = None) -> tuple[Data, Data]:
    """Measurements of cell nuclei, malignant or benign: 569 rows of 30 numbers."""
    from sklearn.datasets import load_breast_cancer

    return _parted(load_breast_cancer(), "breast cancer")


def wine(_folder: Path | None = None) -> tuple[Data, Data]:
    """Chemical analyses of wines of three growers: 178 rows of 13 numbers, half of them for tests."""
    from sklearn.datasets import load_wine

    return _parted(load_wine(), "wine", test=0.5)


def diabetes(_folder: Path | None = None) -> tuple[Data, Data]:
    """Whether diabetes went on more than in half of the patients: 442 rows, 9 numbers and the sex."""
    from sklearn.datasets import load_diabetes

    found = load_diabetes(scaled=False)
    y = (found.target > float(np.median(found.target))).astype(int)
    return _parted(found, "diabetes", y, ("less", "more"), test=0.4)


def digit_columns(groups: Sequence[Sequence[int]] | None = None) -> tuple[Data, Data]:
    """Handwritten digits as 64 columns of whole numbers, 1,797 rows; each group of digits is a class."""
    from sklearn.datasets import load_digits

    found, groups = load_digits(), groups or [(d,) for d in range(10)]
    owner = {digit: label for label, group in enumerate(groups) for digit in group}
    y = np.array([owner.get(int(d), -1) for d in found.target])
    return _parted(found, "digits", y, [" ".join(map(str, group)) for group in groups], test=0.35)


def _parted(
    found: object, name: str, y: Any = None, classes: Sequence[str] | None = None, test: float = TEST
) -> tuple[Data, Data]:
    """Training and test set; rows whose class y is negative are left out."""
    labels = np.asarray(found.target if y is None else y)  # type: ignore[attr-defined]
    x = torch.as_tensor(found.data[labels >= 0], dtype=torch.float32)  # type: ignore[attr-defined]
    names = [str(n) for n in found.feature_names]  # type: ignore[attr-defined]
    said = [str(n) for n in (found.target_names if classes is None else classes)]  # type: ignore[attr-defined]
    kind = Table(Schema(Schema.of(x, names).columns, "target", tuple(said)))
    tests, train = Data(x, labels[labels >= 0], said, name, kind).parted(test, 0)
    return train, tests


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
