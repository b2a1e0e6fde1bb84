"""A service that answers with class scores: asked politely, and its answers read with distrust."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backsweep.core.errors import BadInput
from backsweep.formats import predicting
from backsweep.formats.opening import load
from backsweep.formats.predicting import Service
from backsweep.models.model import Model
from conftest import Twins
from shells import Shell

Answer = tuple[int, dict[str, str], bytes]


class Server:
    """A service on this machine, and what it was asked."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.bodies: list[Any] = []
        self.times: list[float] = []


@contextmanager
def serving(answer: Callable[[Any, int], Answer | None]) -> Iterator[Server]:
    """Answers from a function of the body and the number of the request; None never comes."""
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            server.bodies.append(body)
            server.times.append(time.monotonic())
            found = answer(body, len(server.bodies))
            if found is None:
                ended.wait(20)
                return
            status, headers, content = found
            self.send_response(status)
            for key, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = Server(f"http://127.0.0.1:{http.server_address[1]}/predict")
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        ended.set()
        http.shutdown()
        http.server_close()
        thread.join()


def scores(rows: Any) -> Answer:
    return 200, {}, json.dumps({"scores": rows}).encode()


def firsts(body: Any, _number: int) -> Answer:
    """Four times the first three pixels of every image as its logits."""
    return scores([(4 * np.ravel(image)[:3]).tolist() for image in body["inputs"]])


def test_images_are_posted_and_scores_come_back_in_bounded_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicting, "MOST_VALUES", 16 * 5)
    with serving(firsts) as server:
        model = load(f"predict:{server.url}?key=secret", shape=(1, 4, 4))
        assert (model.classes, model.shape, model.gives) == (3, (1, 4, 4), frozenset())
        assert model.source == f"predict:{server.url}", "what follows ? may be secret"
        assert {len(b["inputs"]) for b in server.bodies} <= set(range(1, 6))
        server.bodies.clear()
        x = torch.rand(12, 1, 4, 4)
        assert torch.allclose(model.logits(x), 4 * x.flatten(1)[:, :3], atol=1e-5)
        assert [len(b["inputs"]) for b in server.bodies] == [5, 5, 2]
        assert np.shape(server.bodies[0]["inputs"]) == (5, 1, 4, 4)
        assert list(server.bodies[0]) == ["inputs"]


def test_no_more_requests_than_the_rate_and_one_more_try() -> None:
    def busy(body: Any, number: int) -> Answer:
        return (503, {"Retry-After": "0"}, b"") if number % 2 else firsts(body, number)

    with serving(busy) as server:
        service = Service(server.url, rate=20)
        for _ in range(2):
            assert service(torch.zeros(1, 1, 4, 4)) == [[0.0, 0.0, 0.0]]
        assert len(server.bodies) == 4
        gaps = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
        assert sum(gaps) >= 3 / 20 * 0.8


@pytest.mark.parametrize(
    ("answer", "tries", "says"),
    [
        ((503, {"Retry-After": "0"}, b""), 2, "answers with status 503"),
        ((404, {}, b"not here"), 1, "answers with status 404"),
        ((302, {"Location": "http://127.0.0.1:1/other"}, b""), 1, "leads to another address"),
        ((200, {}, b"<html>"), 1, "something else than"),
        ((200, {}, b'{"scores": [[NaN, 1, 2]]}'), 1, "it holds NaN"),
        ((200, {}, b'{"scores": [[1e999, 1, 2]]}'), 1, "finite number"),
        ((200, {}, b'{"predictions": []}'), 1, "something else than"),
        ((200, {}, b"[" * 4000), 1, "something else than"),
        ((200, {}, b'{"scores": [[1, 2, 3], [1, 2, 3]]}'), 1, "2 scores for 1 inputs"),
        ((200, {}, b'{"scores": "abc"}'), 1, "something else than"),
        ((200, {}, b'{"scores": [["a", "b"]]}'), 1, "the black box fails"),
        ((200, {}, b" " * 5000), 1, "more than 4,096 bytes"),
        ((200, {"Content-Length": "90"}, b"{"), 2, "gives no answer"),
    ],
)
def test_an_answer_that_is_none_is_one_line(
    answer: Answer, tries: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicting, "MOST_BYTES", 4096)
    with serving(lambda body, number: answer) as server:
        model = Model.black_box(lambda x: 4 * x.flatten(1)[:, :3], (1, 4, 4), batch=1)
        model.net.answer = Service(server.url)  # type: ignore[assignment]
        with pytest.raises(BadInput, match=says) as e:
            model.logits(torch.zeros(1, 1, 4, 4))
        assert "\n" not in str(e.value)
        assert len(server.bodies) == tries


def test_an_answer_that_does_not_come_is_not_waited_for() -> None:
    with serving(lambda body, number: None) as server:
        begin = time.monotonic()
        with pytest.raises(BadInput, match="gives no answer"):
            Service(server.url, timeout=0.2)(torch.zeros(1, 1, 4, 4))
        assert time.monotonic() - begin < 15
        assert len(server.bodies) == 2


def test_nobody_listens() -> None:
    with pytest.raises(BadInput, match="gives no answer"):
        load("predict:http://127.0.0.1:9/predict", shape=(1, 4, 4))


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://example.com/predict", "no address that is asked"),
        ("file:///etc/passwd", "no address that is asked"),
        ("ftp://127.0.0.1/x", "no address that is asked"),
        ("http://127.0.0.1.example.com/x", "no address that is asked"),
        ("example.com", "no address that is asked"),
        ("https://user:secret@example.com/x", "would stand in reports"),
        ("http://127.0.0.1:99999/x", "no address"),
        ("http://[::1", "no address"),
    ],
)
def test_other_addresses_are_not_asked(url: str, says: str) -> None:
    with pytest.raises(BadInput, match=says) as e:
        Service(url)
    assert "secret" not in str(e.value)
    assert Service("http://[::1]:8000/x").shown == "http://[::1]:8000/x"
    assert Service("https://example.com/x?key=1").shown == "https://example.com/x"


def test_what_only_a_network_at_hand_could_have_is_refused() -> None:
    with pytest.raises(BadInput, match="a service only answers"):
        load("predict:http://127.0.0.1:9/x", "a:b", shape=(1, 4, 4))
    with pytest.raises(BadInput, match="shape of its inputs is not known"):
        load("predict:http://127.0.0.1:9/x")


@pytest.mark.slow
def test_a_service_is_scanned_and_guarded_from_the_shell(
    twins: Twins, tmp_path: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicting, "RATE", 1e6)
    np.savez(tmp_path / "data.npz", x=twins.data.x.numpy(), y=twins.data.y.numpy())
    lock = threading.Lock()
    for name, expected in (("infected", 1), ("clean", 0)):
        net = copy.deepcopy(getattr(twins, name).net).eval()

        def answer(body: Any, _number: int, net: Any = net) -> Answer:
            with lock, torch.no_grad():
                return scores(net(torch.tensor(body["inputs"])).softmax(1).tolist())

        with serving(answer) as server:
            status, _, err = shell(
                "scan", "--predict", server.url, "--data", tmp_path / "data.npz", "--out", tmp_path / name,
                "-p", "black_box_path.steps=20", "-p", "black_box_path.pool=128",
            )  # fmt: skip
            assert status == expected, err
            assert "answers only" in err
            if name == "clean":
                continue
            kept = tmp_path / "guard"
            where = f"predict:{server.url}"
            status, _, err = shell(
                "guard", "fit", where, "--data", tmp_path / "data.npz", "--out", kept, "--shape", "1,8,8",
                "-d", "strip", "--fpr", "0.05",
            )  # fmt: skip
            assert status == 0, err
            asked = len(server.bodies)
            record = json.loads((kept / "guard.json").read_text())
            record["model"]["is_path"] = True  # a file that wants an address to be asked
            (kept / "guard.json").write_text(json.dumps(record))
            status, _, err = shell("guard", "check", kept, "--inputs", tmp_path / "data.npz")
            assert (status, len(server.bodies)) == (2, asked)
            assert "--model" in err
            assert shell("guard", "check", kept, "--inputs", tmp_path / "data.npz", "--model", where)[0] in (
                0,
                1,
            )
    report = json.loads((tmp_path / "infected" / "report.json").read_text())
    assert report["targets"] == [twins.trigger.target]
    assert report["model"]["source"].startswith("predict:http://127.0.0.1:")
    status, _, err = shell("scan", "x", "--predict", "http://127.0.0.1:9/x", "--data", tmp_path / "data.npz")
    assert (status, "not both" in err) == (2, True)
