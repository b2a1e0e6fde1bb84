"""The dashboard: what it shows, who may ask, that text of strangers is text, that many models are quick."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backsweep.cli.ui import allowed, is_loopback
from backsweep.core.documents import check
from backsweep.inventory import overview
from backsweep.inventory.running import CLAIM, Logbook, sweeps
from backsweep.inventory.store import Record, Store
from backsweep.inventory.tables import VERDICTS
from backsweep.render.dashboard.app import HEADERS, application, read
from many import make_data, make_models, make_record, quick_scan
from reporting import make_report
from shells import Shell

pytest.importorskip("fastapi")
testclient = pytest.importorskip("starlette.testclient")

TOKEN = "a token that is long enough"  # noqa: S105
HOSTILE = 'nets/<script>alert(1)</script>/"><img src=x onerror=alert(2)>\u202e.pt'


def records() -> list[Record]:
    """Three models; the first with three verdicts."""
    early, late = "2026-11-20T10:00:00Z", "2026-11-21T10:00:00Z"
    return [
        make_record("a" * 64, source="nets/a.pt", time=early, settings={"seed": 0}),
        make_record("a" * 64, (3,), source="nets/a.pt", time=late, settings={"seed": 1}),
        make_record("a" * 64, (3, 5), source="nets/copy.pt", time=early, settings={"seed": 2}),
        make_record("b" * 64, source="nets/b_100%.pt", time=early),
        make_record("c" * 64, source=HOSTILE, time=late),
    ]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(str(tmp_path / "store.db")) as found:
        for record in records():
            assert found.put(record)
        yield found


@pytest.fixture
def client(store: Store) -> Any:
    return testclient.TestClient(application(store), base_url="http://localhost")


def names(text: str) -> list[str]:
    """Models in the rows of a page."""
    return re.findall(r'<th scope="row"><a href="/models/(\w)', text)


# ---------------------------------------------------------------------- what is shown


def test_models_with_their_newest_verdict(client: Any) -> None:
    page = client.get("/").text
    assert names(page) == ["c", "a", "b"], "the newest first"
    assert "3 verdicts" in page
    assert page.count("evidence found</span>") == 1
    assert "1–3 of 3" in page  # noqa: RUF001
    assert names(client.get("/?verdict=backdoored").text) == ["a"]
    assert names(client.get("/?text=B_100%25").text) == ["b"], "no wildcards, capitals or not"
    assert names(client.get("/?text=_").text) == ["b"]
    assert names(client.get("/?text=" + "c" * 10).text) == ["c"]
    assert names(client.get("/?since=2026-11-21").text) == ["c", "a"]
    assert names(client.get("/?order=p-value").text)[0] == "a"
    assert "No model is like this" in client.get("/?text=nothing").text


def test_pages_of_a_long_list(store: Store, client: Any) -> None:
    for i in range(120):
        store.put(make_record(f"{i:064x}", source=f"more/{i:03}.pt", time="2026-01-01T00:00:00Z"))
    seen = [
        re.findall(r"</span>(\d{3}\.pt)</bdi>", client.get(f"/?text=more&order=name&page={p}").text)
        for p in (1, 2, 3)
    ]
    assert [len(s) for s in seen] == [50, 50, 20]
    assert [name for part in seen for name in part] == [f"{i:03}.pt" for i in range(120)]
    page = client.get("/?text=more&page=2").text
    assert (
        'href="?text=more&amp;page=1" rel="prev"' in page
        and 'href="?text=more&amp;page=3" rel="next"' in page
    )


def test_the_history_of_a_model_and_its_files(client: Any, store: Store) -> None:
    page = client.get("/models/" + "a" * 64).text
    assert page.count('name="id"') == 3
    assert "nets/a.pt, nets/copy.pt" in page or "nets/copy.pt" in page
    number = overview.ids(store, "a" * 64)[0]
    assert "Evidence of a backdoor" in client.get(f"/reports/{number}").text
    found = client.get(f"/reports/{number}/report.json")
    check("report", found.json())
    assert found.headers["content-disposition"] == f'attachment; filename="{"a" * 12}-report.json"'
    assert client.get(f"/reports/{number}/report.sarif").json()["version"] == "2.1.0"
    bom = client.get(f"/reports/{number}/bom.json").json()
    assert bom["components"][0]["hashes"][0]["content"] == "a" * 64 and bom["vulnerabilities"]


def test_two_reports_side_by_side(client: Any, store: Store) -> None:
    found = overview.ids(store, "a" * 64)
    page = client.get(f"/compare?id={found[0]}&id={found[1]}").text
    assert "Two verdicts on one model" in page
    assert "no such finding" in page, "class 5 was found by one scan alone"
    rows = re.findall(r"<tr( class=\"hot\")?><th scope=\"row\"><code>([^<]+)</code>", page)
    assert ("seed" in [name for hot, name in rows if hot]) and ("alpha" in [n for hot, n in rows if not hot])
    assert [bool(hot) for hot, _ in rows] == sorted((bool(hot) for hot, _ in rows), reverse=True)
    other = overview.ids(store, "b" * 64)[0]
    assert "on two models" in client.get(f"/compare?id={found[0]}&id={other}").text


def test_triggers_come_from_the_folder_of_the_sweep(store: Store, tmp_path: Path) -> None:
    report = make_report(bad=(3,))
    report.model |= {"sha256": "d" * 64, "source": "nets/d.pt", "sha256_of": "file", "layout": "0" * 16}
    report.save(tmp_path / "reports" / ("d" * 16))
    record = replace(make_record("d" * 64, (3,)), report=json.loads(json.dumps(report.to_json())))
    store.put(record)
    assert all(f.trigger is None for f in read(record, None).findings)
    assert any(f.trigger is not None for f in read(record, tmp_path / "reports").findings)
    other = replace(record, report={**(record.report or {}), "timings": {"total_seconds": 1.0}})
    assert all(f.trigger is None for f in read(other, tmp_path / "reports").findings), "of another scan"
    client = testclient.TestClient(
        application(store, reports=tmp_path / "reports"), base_url="http://localhost"
    )
    number = overview.ids(store, "d" * 64)[0]
    assert client.get(f"/compare?id={number}&id={number}").text.count("data:image/png") >= 2


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/models/nothing", 404), ("/reports/999", 404), ("/reports/1/secret.txt", 404), ("/reports/x", 400),
        ("/compare?id=1", 400), ("/compare?id=1&id=2&id=3", 400), ("/compare", 400),
        ("/compare?id=1&id=99", 404),
        ("/?page=0", 400), ("/?order=drop", 400), ("/?verdict=x", 400), ("/?since=soon", 400),
        ("/nowhere", 404),
        ("/reports/99999999999999999999", 404), ("/docs", 404), ("/openapi.json", 404),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_is_said_on_a_page(client: Any, path: str, status: int) -> None:
    answer = client.get(path)
    assert answer.status_code == status
    assert "This cannot be shown" in answer.text


def test_a_damaged_row_is_said(store: Store, client: Any) -> None:
    store.note(VERDICTS.update().where(VERDICTS.c.id == 1).values(report="{", targets="[["))
    answer = client.get("/reports/1")
    assert (answer.status_code, "damaged" in answer.text) == (503, True)
    assert client.get("/").status_code == 200


# ---------------------------------------------------------------------- who may ask


def test_text_of_strangers_is_text(client: Any, store: Store) -> None:
    found = overview.ids(store, "c" * 64)[0]
    for path in (
        "/",
        "/models/" + "c" * 64,
        f"/reports/{found}",
        f"/compare?id={found}&id=1",
        "/?text=<script>",
    ):
        answer = client.get(path)
        assert answer.status_code == 200
        assert (
            "<script" not in answer.text and "<img src=x" not in answer.text and "\u202e" not in answer.text
        )
        for header, value in HEADERS.items():
            assert answer.headers[header] == value
        assert not re.findall(r'(?:src|href)="(?:https?:)?//', answer.text), "nothing from elsewhere"


def test_a_token_is_needed_where_one_is_set(store: Store) -> None:
    def new() -> Any:
        return testclient.TestClient(
            application(store, TOKEN), base_url="http://localhost", follow_redirects=False
        )

    client = new()
    assert client.get("/").status_code == 401 and "nets" not in client.get("/").text
    assert client.get("/reports/1/report.json").status_code == 401
    assert client.get("/health").json() == {"status": "ok"}
    page = client.get("/", headers={"accept": "text/html"})
    assert page.status_code == 401 and 'action="/login"' in page.text and "store.db" not in page.text
    assert client.post("/login", data={"token": "wrong"}).status_code == 401
    assert client.post("/login", content=b"token=" + b"x" * 10_000).status_code == 413
    entered = client.post("/login", data={"token": TOKEN})
    assert (entered.status_code, entered.headers["location"]) == (303, "/")
    cookie = entered.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and TOKEN not in cookie
    assert client.get("/").status_code == 200
    assert new().get("/", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert new().get("/", headers={"authorization": "Bearer nothing"}).status_code == 401
    assert new().get("/", headers={"cookie": f"backsweep={TOKEN}"}).status_code == 401


def test_a_page_of_a_stranger_cannot_ask_through_a_browser(store: Store) -> None:
    client = testclient.TestClient(
        application(store, hosts=allowed("127.0.0.1", [])), base_url="http://localhost"
    )
    assert client.get("/").status_code == 200
    assert client.get("/", headers={"host": "[::1]:8080"}).status_code == 200
    assert client.get("/", headers={"host": "evil.example:8080"}).status_code == 400
    assert allowed("0.0.0.0", []) == [] and "scans.example" in allowed("0.0.0.0", ["scans.example"])  # noqa: S104
    assert [is_loopback(h) for h in ("localhost", "127.0.0.9", "::1", "10.0.0.1", "host.example")] == [
        True, True, True, False, False,
    ]  # fmt: skip


def test_the_command_refuses_what_cannot_be(shell: Shell, tmp_path: Path) -> None:
    assert "there is no store" in shell("ui", "--store", tmp_path / "none.db")[2]
    status, _, stderr = shell("ui", "--store", tmp_path / "none.db", "--token", "short")
    assert (status, stderr.count("\n")) == (2, 1) and "the token is short" in stderr


def test_a_history_as_a_page_that_needs_no_server(shell: Shell, store: Store, tmp_path: Path) -> None:
    status, stdout, _ = shell(
        "history", "--store", tmp_path / "store.db", "-f", "html", "--out", tmp_path / "h.html"
    )
    page = (tmp_path / "h.html").read_text()
    assert (status, stdout) == (0, "")
    assert page.count("<tr>") == 6 and "5 verdicts" in page
    assert page.index("evidence found</span></td>") < page.index("nothing found</span></td>")
    assert "<script" not in page and "\u202e" not in page and "<form" not in page


# ---------------------------------------------------------------------- sweeps


def test_a_sweep_is_seen_while_it_runs_and_after(tmp_path: Path) -> None:
    from backsweep.inventory.sweep import sweep

    models, data = make_models(tmp_path / "nets", 3), make_data(tmp_path)
    with Store(str(tmp_path / "store.db")) as store, Store(str(tmp_path / "store.db")) as shown:
        client = testclient.TestClient(application(shown), base_url="http://localhost")
        assert "No sweep is recorded" in client.get("/sweeps").text
        seen = []
        for _ in sweep(models, quick_scan(data), store):
            seen.append(sweeps(shown)[0])
            assert "refresh" not in client.get("/sweeps").headers
            assert client.get("/sweeps?live=1").headers["refresh"] == "5"
        assert [s.alive for s in seen] == [True] * 3
        assert seen[0].total == 3 and 0 < len(seen[0].doing) + len(seen[0].waiting) <= 3
        (ended,) = sweeps(shown)
        assert (ended.alive, ended.done, ended.known, ended.doing) == (False, 3, 0, ())
        page = client.get("/sweeps?live=1")
        assert "3 of 3" in page.text and "<td>done</td>" in page.text and "refresh" not in page.headers


def test_a_sweep_that_died_is_said_to_have_died(url: str) -> None:
    with Store(url) as watching:
        with Store(url) as store:
            book = Logbook(store, {"seed": 0}, 10)
            book.tell(4, 1, [HOSTILE], ["x.pt"], soon=True)
            assert [(s.alive, s.done, s.known, s.doing) for s in sweeps(watching)] == [
                (True, 4, 1, (HOSTILE,))
            ]
            page = (
                testclient.TestClient(application(watching), base_url="http://localhost").get("/sweeps").text
            )
            assert "4 of 10" in page and "<script" not in page and "and 4 more" in page
        assert [(s.alive, s.ended) for s in sweeps(watching)] == [(False, None)]
        assert not watching.held(CLAIM, book.id)
        page = testclient.TestClient(application(watching), base_url="http://localhost").get("/sweeps").text
        assert "<td>died</td>" in page


def test_a_store_of_an_older_version_is_shown_and_completed(tmp_path: Path) -> None:
    import shutil

    kept = Path(__file__).parents[1] / "compatibility" / "store.db"
    shutil.copy(kept, tmp_path / "store.db")
    with Store(str(tmp_path / "store.db"), create=False) as store:
        assert not store.knows_sweeps() and sweeps(store) == []
        client = testclient.TestClient(application(store), base_url="http://localhost")
        assert client.get("/").status_code == 200 and names(client.get("/").text)
    with Store(str(tmp_path / "store.db")) as store:
        assert store.knows_sweeps()


def test_ten_thousand_models_stay_quick(tmp_path: Path) -> None:
    row: dict[str, Any] = {
        k: v if isinstance(v, int | float | str) or v is None else json.dumps(v)
        for k, v in make_record(bad=(3,)).to_json().items()
    }
    padded = json.dumps({**json.loads(row["report"]), "padding": "x" * 20_000})
    rows = [
        {**row, "model": f"{i:064x}", "source": f"team-{i % 7}/{i:05}.pt", "report": padded}
        for i in range(10_000)
    ]
    with Store(str(tmp_path / "store.db")) as store:
        store.note(VERDICTS.insert().values(rows[0]))
        with store._engine.begin() as connection:
            connection.execute(VERDICTS.insert(), rows[1:])
        client = testclient.TestClient(application(store), base_url="http://localhost")
        client.get("/")
        begin = time.process_time()
        for path in ("/", "/?page=150", "/?text=team-3", "/?order=p-value"):
            assert client.get(path).status_code == 200
        assert (time.process_time() - begin) / 4 < 2
