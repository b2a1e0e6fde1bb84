"""The store: one verdict for every model and settings, claims that die with their holder, clear errors."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from backsweep.core.errors import BadInput
from backsweep.inventory.store import Record, Store
from many import SOURCE, make_record
from postgres import PASSWORD, Postgres


def test_a_verdict_comes_back_as_it_went_in(url: str) -> None:
    record = make_record(bad=(3,), source="nets/ä \u202e.pt")
    with Store(url) as store:
        assert store.get(record.model, record.settings_key) is None
        assert store.put(record)
    with Store(url) as again:
        assert again.records(reports=True) == [record]
        assert again.get(record.model, record.settings_key) == replace(record, report=None)
        assert again.get(record.model, "0" * 64) is None
    assert Record.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_the_first_verdict_stays(url: str) -> None:
    first, second = make_record(bad=(3,)), make_record(source="later.pt")
    with Store(url) as store, Store(url) as other:
        assert store.put(first)
        assert not other.put(second)
        assert [r.source for r in store.records()] == [first.source]
        assert store.put(replace(second, settings_key="1" * 64))
        assert len(other.records()) == 2


def test_records_are_filtered(url: str) -> None:
    with Store(url) as store:
        store.put(make_record("a" * 64, (3,), time="2026-01-01T00:00:00Z"))
        store.put(make_record("b" * 64, time="2026-02-01T00:00:00Z"))
        assert [r.model[0] for r in store.records()] == ["a", "b"]
        assert [r.model[0] for r in store.records(verdict="backdoored")] == ["a"]
        assert [r.model[0] for r in store.records(since="2026-01-15T00:00:00Z")] == ["b"]


def test_a_claim_has_one_holder(url: str) -> None:
    with Store(url) as one, Store(url) as other:
        assert one.claim("m", "s") and not one.claim("m", "s")
        assert not other.claim("m", "s")
        assert other.claim("n", "s")
        one.release("m", "s")
        assert other.claim("m", "s") and not one.claim("m", "s")
    with Store(url) as later:
        assert later.claim("m", "s") and later.claim("n", "s"), "a store that was closed holds nothing"


HOLD = """
import sys, time
from backsweep.inventory.store import Store
store = Store(sys.argv[1])
assert store.claim("m", "s")
print("held", flush=True)
time.sleep(60)
"""


def test_a_claim_dies_with_its_holder(url: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    words = [sys.executable, "-c", HOLD, url]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with Store(url) as store:
            assert not store.claim("m", "s")
            holder.send_signal(signal.SIGKILL)
            holder.wait()
            end = time.monotonic() + 20
            while not store.claim("m", "s"):
                assert time.monotonic() < end, "the claim of a dead process is still held"
                time.sleep(0.05)


def test_many_writers_at_once(url: str) -> None:
    """Stores are made and written by several at once; nothing is lost, nothing is kept twice."""
    kept: list[bool] = []

    def write(own: int) -> None:
        with Store(url) as store:
            for i in range(20):
                kept.append(store.put(make_record(f"{i:064}", source=f"writer {own}")))

    threads = [threading.Thread(target=write, args=(own,)) for own in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(kept) == 80 and sum(kept) == 20
    with Store(url) as store:
        assert len(store.records()) == 20


# ---------------------------------------------------------------------- a database that goes away


def test_the_server_is_started_again(postgres: Postgres) -> None:
    """The connection is lost in mid-run: the verdict is stored all the same, claims are taken again."""
    url = postgres.fresh()
    with Store(url) as store, Store(url) as other:
        assert store.claim("m", "s")
        postgres.stop()
        starter = threading.Timer(1.5, postgres.start)
        starter.start()
        assert store.put(make_record())
        starter.join()
        assert store.claim("n", "s")
        assert not other.claim("m", "s"), "the claim was taken again"
        assert len(other.records()) == 1


def test_a_verdict_that_cannot_be_stored_is_kept_in_a_file(postgres: Postgres, tmp_path: Path) -> None:
    url, record = postgres.fresh(), make_record(bad=(2,))
    with Store(url, patience=0.3) as store:
        postgres.stop()
        try:
            with pytest.raises(BadInput, match=r"is lost .*--add") as caught:
                store.put(record, tmp_path)
            with pytest.raises(BadInput, match="cannot be used"):
                store.get("m", "s")
        finally:
            postgres.start()
    assert PASSWORD not in str(caught.value)
    (file,) = tmp_path.glob("verdict-*.json")
    assert str(file) in str(caught.value)
    assert [Record.from_json(r) for r in json.loads(file.read_text())] == [record]


# ---------------------------------------------------------------------- errors


def refused(url: str | Path, match: str, create: bool = True) -> None:
    with pytest.raises(BadInput, match=match) as caught:
        Store(str(url), create=create)
    message = str(caught.value)
    assert "\n" not in message and PASSWORD not in message and len(message) < 300, message


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is no database, and it is long enough to be looked at" * 100)
    refused(tmp_path / "text.db", "cannot be opened: file is not a database")
    refused(tmp_path / "none.db", "there is no store", create=False)
    assert not (tmp_path / "none.db").exists()
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE things (name TEXT)")
    other.close()
    refused(tmp_path / "other.db", "is no store of Backsweep", create=False)
    refused(tmp_path, "cannot be opened")
    refused(tmp_path / "text.db" / "store.db", "cannot write to")


def test_a_store_of_a_newer_version(url: str) -> None:
    with Store(url) as store, store._engine.begin() as connection:
        connection.execute(sa.text("UPDATE backsweep_store SET schema = 99"))
    refused(url, "has schema 99; this version reads schema 1")


def test_a_damaged_row(tmp_path: Path) -> None:
    with Store(str(tmp_path / "s.db")) as store:
        store.put(make_record())
        with store._engine.begin() as connection:
            connection.execute(sa.text("UPDATE backsweep_verdicts SET targets = '{'"))
        with pytest.raises(BadInput, match="damaged"):
            store.records()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda u: u.replace(PASSWORD, "wr0ng-word"), "password authentication failed"),
        (lambda u: u.replace("/postgres", "/nothing"), "does not exist"),
        (lambda u: u.replace("@127.0.0.1:", "@127.0.0.1:1"), "cannot be opened|address of a store"),
    ],
)
def test_a_server_that_refuses(postgres: Postgres, change: Callable[[str], str], match: str) -> None:
    refused(change(postgres.url), match)
    with pytest.raises(BadInput) as caught:
        Store(change(postgres.url))
    assert "wr0ng-word" not in str(caught.value) and "tester:" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["mysql://a:b@c/d", "sqlite://", "sqlite:///:memory:", "http://x", "postgresql+psycopg2://a/b", "://"],
)
def test_an_address_that_is_none(text: str) -> None:
    refused(text, "address of a store|kept in a file")


@given(st.text(max_size=40))
def test_an_address_never_repeats_a_password(rest: str) -> None:
    for kind in ("mysql", "postgresql+nothing", rest):
        with pytest.raises(BadInput) as caught:
            Store(f"{kind}://user:{PASSWORD}@{rest}/x\0")
        assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("raw", [None, [], {}, {"model": 3}, "text"])
def test_a_record_that_is_none(raw: object) -> None:
    with pytest.raises(BadInput, match="not a verdict"):
        Record.from_json(raw)


@pytest.mark.parametrize(
    ("field", "value"), [("verdict", "fine"), ("targets", ["x"]), ("settings", 3), ("time", 5)]
)
def test_a_record_with_a_wrong_field(field: str, value: object) -> None:
    with pytest.raises(BadInput, match="not a verdict"):
        Record.from_json({**make_record().to_json(), field: value})
