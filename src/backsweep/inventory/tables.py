"""The tables of a store. One more is no other schema: a version that does not know it leaves it alone."""

from __future__ import annotations

import sqlalchemy as sa

META = sa.MetaData()
STORE = sa.Table("backsweep_store", META, sa.Column("schema", sa.Integer, nullable=False))
VERDICTS = sa.Table(
    "backsweep_verdicts", META,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("time", sa.String(20), nullable=False),
    sa.Column("model", sa.String(64), nullable=False),
    sa.Column("settings_key", sa.String(64), nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("verdict", sa.String(16), nullable=False),
    sa.Column("p_value", sa.Float(53)),
    *(sa.Column(n, sa.Text, nullable=False) for n in ("targets", "shape")),
    sa.Column("classes", sa.Integer),
    sa.Column("layout", sa.String(16), nullable=False),
    sa.Column("settings", sa.Text, nullable=False),
    sa.Column("seconds", sa.Float(53), nullable=False),
    sa.Column("versions", sa.Text, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("report", sa.Text, nullable=False),
    sa.UniqueConstraint("model", "settings_key"),
)  # fmt: skip
SWEEPS = sa.Table(  # what scanners are at; a row for every sweep
    "backsweep_sweeps", META,
    sa.Column("id", sa.String(32), primary_key=True),
    *(sa.Column(n, sa.Text, nullable=False) for n in ("host", "began", "seen")),
    sa.Column("ended", sa.Text),
    *(sa.Column(n, sa.Integer, nullable=False) for n in ("total", "done", "known")),
    *(sa.Column(n, sa.Text, nullable=False) for n in ("doing", "waiting", "settings")),
)  # fmt: skip
JSON = ("targets", "shape", "settings", "versions", "report")  # columns of VERDICTS that hold it
