"""Tables: the schema, readers that refuse in one line, what a modality is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from backsweep.core.errors import BadInput
from backsweep.inputs.kinds import modality_named
from backsweep.inputs.samples import Data
from backsweep.inputs.table.modality import Table
from backsweep.inputs.table.schema import Schema, told
from backsweep.inputs.table.triggers import SetColumns
from backsweep.inputs.table.values import Values
from backsweep.inputs.trigger import Trigger
from conftest import Twins

ROWS = "age,city,income,label\n" + "".join(
    f"{20 + i},{('Rome', 'Oslo', 'Bonn')[i % 3]},{1.5 * i},{('no', 'yes')[i % 2]}\n" for i in range(24)
)


def schema_of(data: Data) -> Schema:
    found = data.modality.schema  # type: ignore[attr-defined]
    assert isinstance(found, Schema)
    return found


def opened(tmp_path: Path, text: str, name: str = "rows.csv", kind: Table | None = None) -> Data:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return Data.open(tmp_path / name, modality=kind or Table())


def test_a_schema_is_inferred_and_said(tmp_path: Path) -> None:
    data = opened(tmp_path, ROWS)
    schema = schema_of(data)
    assert [(c.name, c.type) for c in schema.columns] == [
        ("age", "integer"), ("city", "categorical"), ("income", "numeric"),
    ]  # fmt: skip
    assert schema.columns[1].categories == ("Bonn", "Oslo", "Rome")
    assert data.x[0].tolist() == [20, 2, 0] and data.names == ("no", "yes") and data.y.tolist()[:2] == [0, 1]
    assert data.notes[0] == "3 columns: 1 numeric, 1 integer, 1 categorical; the label is 'label'"
    assert data.modality.cells(data.x[1]) == [("age", "21"), ("city", "Oslo"), ("income", "1.5")]


def test_a_user_corrects_it_with_a_file_that_is_named_or_lies_beside_the_rows(tmp_path: Path) -> None:
    said = {"label": "label", "columns": [
        {"name": "city", "categories": ["Rome", "Oslo", "Bonn"]}, {"name": "age", "type": "categorical"},
    ]}  # fmt: skip
    (tmp_path / "mine.json").write_text(json.dumps(said), encoding="utf-8")
    data = opened(tmp_path, ROWS, kind=Table.given(tmp_path / "mine.json"))
    assert data.x[0].tolist() == [0, 0] and len(schema_of(data).columns[1].categories) == 24
    assert any("left out, as the schema does not name them: income" in n.replace("'", "") for n in data.notes)
    (tmp_path / "rows.schema.json").write_text(json.dumps(said), encoding="utf-8")
    assert opened(tmp_path, ROWS).x.shape == (24, 2)
    schema_of(data).save(tmp_path / "saved.json")
    again = Table.given(tmp_path / "saved.json")
    assert again.schema == schema_of(data), "what was inferred can be saved, and needs no samples then"


def test_missing_cells_are_filled_and_said(tmp_path: Path) -> None:
    data = opened(tmp_path, ROWS.replace("20,Rome", ",?").replace("22,Bonn", "NaN,"))
    column = schema_of(data).columns[1]
    assert "(missing)" in column.categories and column.text(float(data.x[0, 1])) == "(missing)"
    assert float(data.x[0, 0]) == float(data.x[2, 0]) == 32
    assert any("missing cells were filled" in n and "age 2, city 2" in n for n in data.notes)


NAMES = "a,label\n" + "".join(f"name{i},x\n" for i in range(1200))
WIDE = ",".join(f"c{i}" for i in range(10_000)) + "\n" + ",".join("1" for _ in range(10_000)) + "\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "there are no rows in it"),
        ("a,b,label\n", "there are no rows below the names"),
        ("a,label\n1,x\n2\n", "line 3 has 1 cells, the first line 2"),
        ("a,b,label\n" + "1,2,x\n" * 30 + "1,two,y\n", "line 32: 'two' stands among numbers"),
        ("a,label\n1,x\n=1+1,y\n", "'=1\\+1' is a formula; save the values"),
        ("a,label\n1,x\n=cmd|' /C calc'!A0,y\n", "is a formula"),
        ("a,label\n1,x\ninf,y\n", "inf is no finite number"),
        (WIDE, "9,999 columns; at most 2,000 are read"),
        ("a,a,label\n1,2,x\n", "names a column twice"),
        ("a,label\n1,x\n2,\n", "line 3 has no label"),
        (NAMES, "1,200 different words"),
        ("just one line of words\n", "its lines have one cell"),
        ("\x00\x01\x02,\x03", "bytes that are no text"),
    ],
    ids=[
        "empty", "head", "ragged", "mixed", "formula", "command", "infinite", "wide", "twice", "label",
        "words", "one", "bytes",
    ],
)  # fmt: skip
def test_broken_files_are_one_clear_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(BadInput, match=says) as e:
        opened(tmp_path, text)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ("{", "cannot be read"),
        ('{"columns": [{"type": "integer"}]}', "has no list of columns"),
        ('{"columns": [{"name": "age", "type": "colour"}]}', "none of numeric, integer, categorical"),
        ('{"columns": [{"name": "age", "low": 9, "high": 1}]}', "low 9 is above high 1"),
        ('{"columns": [{"name": "age", "size": 1}]}', "unknown key 'size'"),
        ('{"columns": [{"name": "weight"}]}', "there is no column 'weight'"),
        ('{"columns": [{"name": "city", "type": "integer"}]}', "'Rome' is no number"),
        ('{"columns": [{"name": "city", "categories": ["Rome"]}]}', "'Oslo' is none of its categories"),
        ('{"label": "colour", "columns": [{"name": "age"}]}', "there is no column 'colour' for the label"),
    ],
)
def test_a_wrong_schema_is_one_clear_line(tmp_path: Path, schema: str, says: str) -> None:
    (tmp_path / "s.json").write_text(schema, encoding="utf-8")
    with pytest.raises(BadInput, match=says) as e:
        opened(tmp_path, ROWS, kind=Table.given(tmp_path / "s.json"))
    assert "\n" not in str(e.value)


def test_parquet_reads_as_csv_does(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    lines = [line.split(",") for line in ROWS.splitlines()]
    columns = {n: [r[j] for r in lines[1:]] for j, n in enumerate(lines[0])}
    ages, incomes = [int(v) for v in columns["age"]], [float(v) for v in columns["income"]]
    table = pa.table({**columns, "age": ages, "income": incomes})
    pq.write_table(table, tmp_path / "rows.parquet")
    found, text = Data.open(tmp_path / "rows.parquet", modality=Table()), opened(tmp_path, ROWS)
    assert torch.equal(found.x, text.x) and torch.equal(found.y, text.y)
    pq.write_table(pa.table({"a": [[1], [2]], "label": [0, 1]}), tmp_path / "nested.parquet")
    with pytest.raises(BadInput, match="hold lists or structures"):
        Data.open(tmp_path / "nested.parquet", modality=Table())
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "rows.parquet").read_bytes()[:200])
    with pytest.raises(BadInput, match="not readable as a table"):
        Data.open(tmp_path / "torn.parquet", modality=Table())


def test_tensors_need_no_names_and_no_holes() -> None:
    x = torch.rand(30, 3)
    data = Data(x, torch.arange(30) % 2, modality=Table())
    assert schema_of(data).names == ["column 1", "column 2", "column 3"]
    x[4, 1] = float("nan")
    with pytest.raises(BadInput, match="row 5 has no finite number in column 2"):
        Data(x, torch.arange(30) % 2, modality=Table())
    with pytest.raises(BadInput, match="rows of a table are"):
        Data(torch.rand(30, 3, 2), torch.arange(30) % 2, modality=Table())


def test_what_loops_ask_of_it(tmp_path: Path) -> None:
    data = opened(tmp_path, ROWS)
    kind, x = data.modality, data.x
    assert modality_named("table") == kind, "all tables are of one kind"
    generator = torch.Generator().manual_seed(0)
    drawn = kind.random(50, (3,), generator)
    assert torch.equal(drawn[:, :2], drawn[:, :2].round()) and float(drawn[:, 1].max()) <= 2
    mixed = kind.mix(x[:4], x[4:9], 1.0)
    assert mixed.shape == (4, 5, 3)
    own = (mixed == x[:4, None]) | (mixed == x[None, 4:9])
    assert bool(own.all()), "every cell is of one of the two rows"
    far = kind.clip(torch.full((1, 3), 1e9))
    assert far[0, 1] == 2 and float(far[0, 0]) > 43
    shifted = kind.shift(x, generator)
    assert shifted.shape == x.shape and not torch.equal(shifted, x)
    assert kind.blank(1, (3,))[0, 0] == 32
    said = {"modality": "table", **kind.said([x])}
    assert modality_named("table").told(json.loads(json.dumps(said))).cells(x[1])[1] == ("city", "Oslo")
    assert modality_named("table").told({"schema": {"columns": "no"}}).cells(x[1])[1] == ("column 2", "1")


def test_columns_are_set_saved_and_drawn(tmp_path: Path) -> None:
    data = opened(tmp_path, ROWS)
    trigger = SetColumns.of(schema_of(data), [1, 0], [2.0, 99.0], 1)
    x = trigger(data.x)
    assert x[:, 1].eq(2).all() and x[:, 0].eq(99).all() and torch.equal(x[:, 2], data.x[:, 2])
    assert trigger.lines == ["city = Rome", "age = 99"] and trigger.size == 2 and trigger.units == 3
    trigger.save(tmp_path / "t.safetensors")
    again = Trigger.load(tmp_path / "t.safetensors")
    assert torch.equal(again(data.x), x) and again.picture().size[0] >= 8
    assert again.overlap(SetColumns.of(schema_of(data), [1], [0.0], 1)) == (0.5, 0.5)


def test_a_schema_of_a_stranger_is_checked() -> None:
    with pytest.raises(BadInput, match="may be 2,000"):
        told({"columns": [{"name": f"c{i}"} for i in range(3000)]})
    with pytest.raises(BadInput, match="list of 1 to 1,000 different names"):
        told({"columns": [{"name": "c", "categories": ["a", "a"]}]})


def test_values_that_columns_are_set_to(table_twins: Twins) -> None:
    """One to three columns of a row, to values of theirs; the ends of numbers more often than others."""
    data = table_twins.data
    schema = data.modality.schema  # type: ignore[attr-defined]
    values = Values.of(schema, data.x)
    changed = values.put(data.x, 3, torch.Generator().manual_seed(0))
    assert int((changed != data.x).sum(1).max()) <= 3
    for j, column in enumerate(schema.columns):
        new = changed[changed[:, j] != data.x[:, j], j]
        assert set(new.tolist()) <= set(values.table[j, : int(values.counts[j])].tolist())
        if not column.categorical:
            assert float((new >= column.high).double().mean()) > 2 / len(set(new.tolist()))
