"""The service over a real connection: what is answered, and that nothing which is sent ends it."""

from __future__ import annotations

import http.client
import io
import json
import pickle
import socket
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.guarding import service
from backsweep.guarding.detectors.strip import Strip
from backsweep.guarding.guard import Guard, guard
from backsweep.guarding.service import Metrics, app, listen, server
from backsweep.inputs.image.pictures import to_image
from conftest import Twins

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

LIMIT = 2**18
JSON = {"Content-Type": "application/json"}
NAMES = [f"digit {i}" for i in range(10)]


class Client:
    """Speaks HTTP with a running service."""

    def __init__(self, port: int) -> None:
        self.port = port

    def __call__(
        self, path: str, body: Any = None, headers: dict[str, str] | None = None, method: str | None = None
    ) -> tuple[int, Any]:
        """Status, and the answer as JSON if it is."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            link.request(method or ("GET" if body is None else "POST"), path, body, headers or {})
            answer = link.getresponse()
            text = answer.read().decode()
            said = answer.headers["Content-Type"]
            return answer.status, json.loads(text) if said == "application/json" else text
        finally:
            link.close()

    def predict(self, x: Any) -> tuple[int, Any]:
        """Inputs as JSON."""
        return self("/predict", json.dumps({"inputs": x.tolist() if isinstance(x, Tensor) else x}), JSON)


@pytest.fixture(scope="module")
def fitted(twins: Twins) -> Guard:
    clean, _ = twins.data.split(3)
    return guard(twins.infected, clean, Strip(overlays=10), fpr=0.05, device="cpu")


@pytest.fixture(scope="module")
def client(fitted: Guard) -> Iterator[Client]:
    with listen(port=0) as listening:
        running = server(app(fitted, labels=NAMES, limit_mb=LIMIT / 2**20, most_inputs=50))
        thread = threading.Thread(target=running.run, args=([listening],))
        thread.start()
        try:
            yield Client(listening.getsockname()[1])
        finally:
            running.should_exit = True
            thread.join(20)
    assert not thread.is_alive()


def png(x: Tensor, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    to_image(x).save(content, kind)
    return content.getvalue()


def npy(x: Any, **how: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, x, **how)
    return content.getvalue()


# ---------------------------------------------------------------------- what is answered


def test_a_batch_is_answered_as_the_guard_does(client: Client, fitted: Guard, twins: Twins) -> None:
    fresh = twins.data.split(3)[1].x[:10]
    x = torch.cat([fresh, twins.trigger(fresh)])
    status, found = client.predict(x)
    labels, scores, flagged = fitted.predict(x)
    assert status == 200
    rows = found["predictions"]
    assert [r["label"] for r in rows] == labels.tolist()
    assert [r["name"] for r in rows] == [NAMES[i] for i in labels]
    assert [r["score"] for r in rows] == pytest.approx(scores.tolist(), abs=1e-3)
    assert [r["flagged"] for r in rows] == flagged.tolist() == [r["abstained"] for r in rows]
    assert {r["threshold"] for r in rows} == {fitted.threshold}
    assert sum(r["flagged"] for r in rows[:10]) < sum(r["flagged"] for r in rows[10:])


def test_every_form_of_one_input_is_answered_alike(client: Client, twins: Twins) -> None:
    x = (twins.data.x[5] * 255).round() / 255
    raw = (x * 255).round().byte().numpy()
    plain = {"Content-Type": "application/x-www-form-urlencoded"}  # what curl says unasked
    answers = [
        client.predict(x),
        client.predict(x[0]),
        client.predict(x[None]),
        client("/predict", png(x), {"Content-Type": "image/png"}),
        client("/predict", png(x), plain),
        client("/predict", png(x), {}),
        client("/predict", npy(x.numpy()), {"Content-Type": "application/octet-stream"}),
        client("/predict", npy(raw), {}),
        client("/predict", npy(raw[None].astype(">f8") / 255), {}),
        client("/predict", npy(np.asfortranarray(x[0].numpy())), {}),
    ]
    assert {status for status, _ in answers} == {200}
    first = answers[0][1]["predictions"][0]
    for _, found in answers:
        (row,) = found["predictions"]
        assert row["label"] == first["label"]
        assert row["score"] == pytest.approx(first["score"], abs=1e-3)
    status, found = client("/predict", png(x, "JPEG"), {"Content-Type": "image/jpeg"})
    assert status == 200
    assert len(found["predictions"]) == 1


def test_health_and_metrics(client: Client, fitted: Guard, twins: Twins) -> None:
    before = numbers(client("/metrics")[1])
    client.predict(twins.data.x[:30])
    client.predict("nothing")
    status, health = client("/health")
    assert (status, health["status"], health["passes"]) == (200, "ok", 11)
    status, text = client("/metrics")
    assert status == 200
    after = numbers(text)

    def gained(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert gained("backsweep_inputs_total") == 30
    assert gained('backsweep_requests_total{path="/predict",status="200"}') == 1
    assert gained('backsweep_errors_total{status="422"}') == 1
    assert gained("backsweep_predict_seconds_count") == 2
    assert after['backsweep_predict_seconds_bucket{le="+Inf"}'] == after["backsweep_predict_seconds_count"]
    ladder = [v for k, v in after.items() if k.startswith("backsweep_predict_seconds_bucket")]
    assert ladder == sorted(ladder)
    assert after["backsweep_threshold"] == pytest.approx(fitted.threshold)
    kinds = [line.split()[2:] for line in text.splitlines() if line.startswith("# TYPE")]
    assert ["backsweep_predict_seconds", "histogram"] in kinds


def numbers(text: str) -> dict[str, float]:
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def test_the_drift_gauge_follows_the_inputs(fitted: Guard) -> None:
    metrics = Metrics(fitted)
    assert numbers(metrics.text())["backsweep_drifted"] == 0
    low = torch.full((300,), float(fitted.calibration.min()) - 1)
    metrics.answered(low, torch.zeros(300, dtype=torch.bool))
    begin = time.process_time()
    found = numbers(metrics.text())
    assert time.process_time() - begin < 0.5, "it is made in the event loop"
    assert found["backsweep_drifted"] == 1
    assert found["backsweep_drift_distance"] == 1


# ---------------------------------------------------------------------- what is not


def bomb() -> bytes:
    """A PNG of a few hundred kB that says it has 50,000 x 50,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = (50_000).to_bytes(4, "big") * 2 + b"\x08\x00\x00\x00\x00"
    return (
        service.PNG + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10**7))) + chunk(b"IEND", b"")
    )


def header(shape: str, descr: str = "'<f4'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


class Evil:
    """Unpickling this would make the test fail."""

    def __reduce__(self) -> Any:
        return sys.exit, ("unpickled",)


GREY = torch.full((1, 8, 8), 0.5)
BINARY = {"Content-Type": "application/octet-stream"}
HOSTILE: dict[str, tuple[bytes, dict[str, str], int]] = {
    "empty": (b"", JSON, 400),
    "nothing at all": (b"", {}, 415),
    "no JSON": (b"{", JSON, 400),
    "no UTF-8": (b'{"inputs": "\xff\xfe"}', JSON, 400),
    "deep lists": (b'{"inputs": ' + b"[" * 120_000, JSON, 400),
    "deep and closed": (b'{"inputs": ' + b"[" * 500 + b"]" * 500 + b"}", JSON, 422),
    "deep dicts": (b'{"a":' * 40_000, JSON, 400),
    "a list": (b"[1, 2]", JSON, 422),
    "other keys": (b'{"input": [1]}', JSON, 422),
    "text": (b'{"inputs": "abc"}', JSON, 422),
    "null": (b'{"inputs": null}', JSON, 422),
    "a number": (b'{"inputs": 1}', JSON, 422),
    "true": (b'{"inputs": [[true]]}', JSON, 422),
    "ragged": (b'{"inputs": [[1, 2], [3]]}', JSON, 422),
    "no inputs": (b'{"inputs": []}', JSON, 422),
    "NaN": (json.dumps({"inputs": [[float("nan")] * 8] * 8}).encode(), JSON, 422),
    "infinite": (json.dumps({"inputs": [[1.0] * 8] * 8}).replace("1.0", "1e999").encode(), JSON, 422),
    "huge number": (json.dumps({"inputs": [[10**400] * 8] * 8}).encode(), JSON, 422),
    "huge digits": (b'{"inputs": [' + b"9" * 100_000 + b"]}", JSON, 400),
    "beyond float32": (json.dumps({"inputs": [[1e300] * 8] * 8}).encode(), JSON, 422),
    "out of range": (json.dumps({"inputs": [[255] * 8] * 8}).encode(), JSON, 422),
    "wrong shape": (json.dumps({"inputs": [[0.5] * 9] * 8}).encode(), JSON, 422),
    "three channels": (json.dumps({"inputs": [[[[0.5] * 8] * 8] * 3]}).encode(), JSON, 422),
    "too many inputs": (npy(np.zeros((51, 1, 8, 8), np.uint8)), BINARY, 413),
    "too large": (b"x" * (LIMIT + 1), BINARY, 413),
    "far too large": (b"x" * (9 * LIMIT), JSON, 413),
    "compressed": (b"x", {**JSON, "Content-Encoding": "gzip"}, 415),
    "unknown type": (b"<xml/>", {"Content-Type": "text/xml"}, 415),
    "a form": (b"--a\r\n", {"Content-Type": "multipart/form-data; boundary=a"}, 415),
    "odd type": (b"abc", {"Content-Type": "\t;;;"}, 415),
    "cut PNG": (png(GREY)[:50], {"Content-Type": "image/png"}, 400),
    "head of a PNG": (service.PNG, BINARY, 400),
    "head of a JPEG": (service.JPEG, BINARY, 400),
    "other size": (png(torch.rand(9, 8)), {"Content-Type": "image/png"}, 422),
    "colour": (png(torch.rand(3, 8, 8)), {"Content-Type": "image/png"}, 422),
    "bomb": (bomb(), {"Content-Type": "image/png"}, 422),
    "a GIF": (png(GREY, "GIF"), {"Content-Type": "image/gif"}, 415),
    "head of a .npy": (service.NPY, BINARY, 400),
    "huge .npy": (header("(1000000, 1, 1000, 1000)"), BINARY, 400),
    "negative .npy": (header("(-1, 1, 8, 8)") + bytes(256), BINARY, 400),
    "short .npy": (header("(1, 1, 8, 8)") + bytes(200), BINARY, 400),
    "empty .npy": (npy(np.zeros((0, 1, 8, 8), np.float32)), BINARY, 400),
    "scalar .npy": (npy(np.float32(1)), BINARY, 400),
    "strange .npy": (header("(((((("), BINARY, 400),
    "deep .npy": (header("(" * 60), BINARY, 400),
    "NaN .npy": (npy(np.full((1, 8, 8), np.nan, np.float32)), BINARY, 422),
    "complex .npy": (npy(np.zeros((1, 8, 8), complex)), BINARY, 422),
    "records .npy": (npy(np.zeros(4, [("a", "f4")])), BINARY, 422),
    "pickled .npy": (npy(np.array([Evil()], dtype=object), allow_pickle=True), BINARY, 422),
    "a pickle": (pickle.dumps(Evil()), BINARY, 415),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_used_is_refused_and_the_service_goes_on(client: Client, name: str) -> None:
    body, headers, expected = HOSTILE[name]
    status, found = client("/predict", body, headers, "POST")
    assert status == expected, found
    assert set(found) == {"error"}
    assert "\n" not in found["error"]
    assert 5 < len(found["error"]) <= 500
    assert client.predict(GREY)[0] == 200


def test_bodies_without_a_length_are_cut_off_too(client: Client) -> None:
    parts = (b"x" * 65_536 for _ in range(12))
    assert client("/predict", parts, BINARY, "POST")[0] == 413
    whole = iter([json.dumps({"inputs": GREY.tolist()}).encode()])
    assert client("/predict", whole, JSON, "POST")[0] == 200


def test_other_paths_and_methods_are_refused(client: Client) -> None:
    assert client("/nothing")[0] == 404
    assert client("/predict")[0] == 405
    assert client("/docs")[0] == 404
    assert client("/health", b"x", method="DELETE")[0] == 405


def test_broken_connections_are_survived(client: Client) -> None:
    for sent in (
        b"\x00\xff\x00", b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc",
        b"GET / HTTP/9\r\n\r\n", b"POST /predict HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
    ):  # fmt: skip
        with socket.create_connection(("127.0.0.1", client.port), 10) as link:
            link.sendall(sent)
    assert client.predict(GREY)[0] == 200


def test_an_answer_does_not_wait_for_the_network(client: Client) -> None:
    """Nagle's algorithm would hold every answer back for 40 ms."""
    link = http.client.HTTPConnection("127.0.0.1", client.port, timeout=30)
    body, took = json.dumps({"inputs": "nothing"}), []
    for _ in range(15):
        begin = time.perf_counter()
        link.request("POST", "/predict", body, JSON)
        link.getresponse().read()
        took.append(time.perf_counter() - begin)
    link.close()
    assert min(took) < 0.03


def test_many_clients_at_once_get_their_own_answers(client: Client, fitted: Guard, twins: Twins) -> None:
    wanted = fitted.predict(twins.data.x[:24]).labels.tolist()

    def ask(i: int) -> tuple[int, int]:
        status, found = client.predict(twins.data.x[i])
        return status, found["predictions"][0]["label"] if status == 200 else -1

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(24)))
    assert found == [(200, label) for label in wanted]


def test_a_slow_model_blocks_neither_health_nor_others_for_ever(
    client: Client, fitted: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    predict = Guard.predict

    def slow(self: Guard, x: Any) -> Any:
        go.wait(20)
        return predict(self, x)

    monkeypatch.setattr(Guard, "predict", slow)
    monkeypatch.setattr(service, "MOST_WAITING", 2)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(client.predict, GREY) for _ in range(2)]
        time.sleep(0.5)
        assert client("/health")[0] == 200
        status, found = client.predict(GREY)
        assert status == 503
        assert "too many" in found["error"]
        go.set()
        assert [w.result()[0] for w in waiting] == [200, 200]


def test_a_model_that_fails_is_503_and_the_service_goes_on(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Guard, x: Any) -> Any:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as m:
        m.setattr(Guard, "predict", fail)
        status, found = client.predict(GREY)
    assert status == 503
    assert "memory" not in found["error"], "what happens inside is for the log"
    assert client.predict(GREY)[0] == 200


def test_a_body_that_does_not_come_is_given_up(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "READ_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", client.port), 10) as link:
        link.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc")
        assert b" 408 " in link.recv(1000)


# ---------------------------------------------------------------------- settings


def test_images_are_resized_where_asked(fitted: Guard) -> None:
    large = png(torch.rand(20, 30))
    with pytest.raises(service.Refused, match="20 x 30"):
        service.parsed(large, "image/png", fitted)
    assert service.parsed(large, "image/png", fitted, resize=True).shape == (1, 1, 8, 8)
    with pytest.raises(service.Refused, match="too many pixels"):
        service.parsed(bomb(), "image/png", fitted, resize=True)


@pytest.mark.parametrize("how", [{"limit_mb": 0}, {"most_inputs": 0}, {"labels": ["one"]}])
def test_wrong_settings_are_refused(fitted: Guard, how: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        app(fitted, **how)


def test_what_is_not_installed_is_named(fitted: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(BadInput, match=r"pip install 'backsweep\[serve\]'"):
        app(fitted)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(BadInput, match=r"pip install 'backsweep\[serve\]'"):
        server(None)


def test_a_port_that_is_taken_is_refused() -> None:
    with listen(port=0) as one, pytest.raises(BadInput, match="cannot listen"):
        listen(port=one.getsockname()[1])


def test_a_grey_picture_is_what_the_folder_reader_makes_of_it(fitted: Guard) -> None:
    content = io.BytesIO()
    Image.new("1", (8, 8), 1).save(content, "PNG")
    assert bool((service.parsed(content.getvalue(), "", fitted) == 255).all())


# ---------------------------------------------------------------------- what people see of it


def test_openapi_says_what_is_sent_and_answered(client: Client) -> None:
    status, said = client("/openapi.json")
    asked = said["paths"]["/predict"]["post"]
    assert status == 200 and asked["requestBody"]["required"]
    content = asked["requestBody"]["content"]
    assert {"application/json", "image/png", "image/jpeg", "application/octet-stream"} == set(content)
    check = jsonschema.Draft202012Validator(content["application/json"]["schema"])
    assert all(check.is_valid({"inputs": x}) for x in (torch.zeros(2, 1, 8, 8).tolist(), ["text"]))
    assert not check.is_valid({"inputs": torch.zeros(1, 8, 8).tolist()})
    assert not check.is_valid({"images": []})
    answered = asked["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.validate(client.predict(torch.zeros(2, 1, 8, 8))[1], answered)
    assert {"400", "413", "415", "422", "503"} <= set(asked["responses"])


@pytest.mark.browser
def test_an_input_is_tried_on_the_page(client: Client, browser: Any, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "digit.png")
    context = browser.new_context()
    page = context.new_page()
    seen: list[str] = []
    page.on("console", lambda m: seen.append(m.text))
    page.on("pageerror", lambda e: seen.append(str(e)))
    page.goto(f"http://127.0.0.1:{client.port}/")
    page.get_by_text("Inputs of 1 × 8 × 8, 10 classes").wait_for()  # noqa: RUF001
    page.get_by_role("button", name="Ask").click()
    assert "Choose a file" in page.get_by_role("status").inner_text()
    page.get_by_label("A file").set_input_files(tmp_path / "digit.png")
    page.get_by_role("button", name="Ask").click()
    page.get_by_role("cell", name="digit ", exact=False).wait_for()
    assert page.get_by_role("cell", name="flagged").count() == 1
    assert page.get_by_alt_text("The chosen image").is_visible()
    page.get_by_label("A file").set_input_files([])
    page.get_by_label("Or texts").fill("<img src=x onerror=window.pwned=1>")
    page.get_by_role("button", name="Ask").click()
    page.get_by_text("takes no texts").or_(page.locator("p.flagged")).first.wait_for()
    assert page.evaluate("window.pwned") is None
    assert [s for s in seen if "422" not in s] == []
    context.close()
