"""A guarded model as an HTTP service: /predict, /health, /metrics, and a page at / to try it.

Nothing that a client sends may run code, grow memory without bound, or end the service: a body is cut off
at a limit while it is read, one worker thread reads and answers one request after another, and whatever
cannot be used is a status from 400 on with one line of JSON.
"""

# FastAPI reads the annotations of functions inside `app`, so they are no mere texts here.

import asyncio
import io
import json
import logging
import math
import os
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.core.text import one_line
from backsweep.guarding import front
from backsweep.guarding.guard import Guard

LIMIT_MB, MOST_INPUTS, MOST_WAITING = 16.0, 256, 32
READ_SECONDS = 30.0
WINDOW = 2000  # latest scores that are looked at for drift
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
PNG, JPEG, NPY = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\x93NUMPY"
JSON_TYPES = ("application/json", "text/json")
WANTED = (
    'JSON {"inputs": [...]} with numbers or texts, the bytes of a PNG or JPEG image, or those of a .npy file'
)

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Refused(Exception):
    """A request that is not answered: status and reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Metrics:
    """Counters of the service in the text format of Prometheus."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.lock = threading.Lock()
        self.requests: Counter[tuple[str, int]] = Counter()  # by path and status
        self.inputs = self.flagged = 0
        self.seconds, self.buckets = 0.0, [0] * (len(BUCKETS) + 1)
        self.scores: deque[float] = deque(maxlen=WINDOW)

    def answered(self, scores: Tensor, flagged: Tensor) -> None:
        """Inputs that were answered."""
        with self.lock:
            self.inputs += len(scores)
            self.flagged += int(flagged.sum())
            self.scores.extend(scores.tolist())

    def done(self, path: str, status: int, seconds: float) -> None:
        """A request that has ended."""
        with self.lock:
            self.requests[path, status] += 1
            if path == "/predict":
                self.seconds += seconds
                self.buckets[sum(seconds > b for b in BUCKETS)] += 1

    def text(self) -> str:
        """The page for a scraper."""
        with self.lock:
            requests, buckets, seconds = dict(self.requests), list(self.buckets), self.seconds
            inputs, flagged, scores = self.inputs, self.flagged, list(self.scores)
        drift = self.guard.drift(torch.tensor(scores, dtype=torch.float64))
        errors: Counter[int] = Counter()
        for (_, status), n in requests.items():
            if status >= 400:
                errors[status] += n
        by_path = [(f'{{path="{p}",status="{s}"}}', float(n)) for (p, s), n in sorted(requests.items())]
        by_status = [(f'{{status="{s}"}}', float(n)) for s, n in sorted(errors.items())]
        rows: list[tuple[str, str, str, list[tuple[str, float]]]] = [
            ("requests_total", "counter", "Requests by path and status.", by_path),
            ("errors_total", "counter", "Requests that were refused or failed, by status.", by_status),
            ("inputs_total", "counter", "Inputs that were answered.", [("", inputs)]),
            ("flagged_total", "counter", "Inputs that were flagged.", [("", flagged)]),
        ]
        total = 0
        ladder: list[tuple[str, float]] = []
        for bound, n in zip((*BUCKETS, math.inf), buckets, strict=True):
            total += n
            ladder.append((f'_bucket{{le="{"+Inf" if bound == math.inf else bound}"}}', total))
        ladder += [("_sum", seconds), ("_count", total)]
        rows.append(("predict_seconds", "histogram", "Time that a request to /predict takes.", ladder))
        about = f"of the unflagged among the latest {WINDOW} inputs"
        for name, said, value in (
            ("drift_distance", f"Kolmogorov-Smirnov distance {about}; NaN: too few.", drift.distance),
            ("drift_p_value", f"Kolmogorov-Smirnov p-value {about}; NaN: too few.", drift.p_value),
            ("drifted", "1 when these have drifted from the clean samples.", float(drift.drifted)),
            ("flagged_p_value", f"Chance that so many of the latest {WINDOW} clean inputs are flagged.",
             drift.flagged_p_value),
            ("threshold", "Score above which an input is flagged.", self.guard.threshold),
        ):  # fmt: skip
            rows.append((name, "gauge", said, [("", math.nan if value is None else value)]))
        lines = []
        for name, kind, said, samples in rows:
            lines += [f"# HELP backsweep_{name} {said}", f"# TYPE backsweep_{name} {kind}"]
            lines += [f"backsweep_{name}{where} {_number(value)}" for where, value in samples]
        return "\n".join(lines) + "\n"


def app(
    guard: Guard,
    labels: Sequence[str] | None = None,
    limit_mb: float = LIMIT_MB,
    most_inputs: int = MOST_INPUTS,
    resize: bool = False,
) -> Any:
    """The service as an ASGI application (FastAPI), for any server of such.

    Args:
        guard: a fitted guard.
        labels: class names; None takes the model's.
        limit_mb: largest body of a request.
        most_inputs: in one request.
        resize: resize images to the model's input.

    Raises:
        BadInput: FastAPI is not installed, or the settings are impossible.
    """
    try:
        from fastapi import FastAPI, Request
        from fastapi.exceptions import HTTPException
        from fastapi.responses import JSONResponse, PlainTextResponse, Response
    except ImportError as e:
        raise BadInput(f"the service needs {e.name}; pip install 'backsweep[serve]'") from e
    if not 0 < limit_mb < math.inf or most_inputs < 1:
        raise BadInput(f"limit_mb {limit_mb} and most_inputs {most_inputs} must be above 0")
    if labels is not None and len(labels) != guard.model.classes:
        raise BadInput(f"{len(labels)} labels for {guard.model.classes} classes; give one for each")
    names = [str(n) for n in labels] if labels is not None else None
    metrics, limit = Metrics(guard), int(limit_mb * 2**20)
    worker, waiting = ThreadPoolExecutor(1, "backsweep-guard"), 0
    service = FastAPI(title="Backsweep guard", docs_url=None, redoc_url=None)

    def answer(body: bytes, kind: str) -> dict[str, Any]:
        """Read one body and answer it; in the worker thread."""
        x = parsed(body, kind, guard, resize, most_inputs)
        try:
            x = guard.inputs(x)
        except BadInput as e:
            raise Refused(422, str(e)) from e
        if not len(x):
            raise Refused(422, "there are no inputs in this request")
        if len(x) > most_inputs:
            raise Refused(413, f"{len(x)} inputs are too many for one request; send at most {most_inputs}")
        try:
            found = guard.predict(x)
        except Exception as e:
            logging.getLogger("backsweep").exception("a request could not be answered")
            raise Refused(503, "the model cannot answer now; try again later") from e
        metrics.answered(found.scores, found.flagged)
        rows = zip(found.labels.tolist(), found.scores.tolist(), found.flagged.tolist(), strict=True)
        return {"predictions": [
            {"label": label, "name": names[label] if names else guard.model.label(label), "score": score,
             "flagged": flagged, "abstained": flagged, "threshold": guard.threshold}
            for label, score, flagged in rows
        ]}  # fmt: skip

    @service.get("/", include_in_schema=False)
    async def front_page() -> Response:
        return Response(front.PAGE, media_type="text/html; charset=utf-8", headers=front.HEADERS)

    said = front.described(list(guard.model.shape), most_inputs)

    @service.post("/predict", openapi_extra=said, summary="Answers to inputs, and which are flagged")
    async def predict(request: Request) -> JSONResponse:
        nonlocal waiting
        if waiting >= MOST_WAITING:
            raise HTTPException(503, "too many requests are waiting; try again later", {"Retry-After": "1"})
        waiting += 1
        try:
            if request.headers.get("content-encoding", "identity").lower() != "identity":
                raise Refused(415, "compressed bodies are not read; send it as it is")
            body = await asyncio.wait_for(_body(request.receive, request.headers, limit), READ_SECONDS)
            kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
            loop = asyncio.get_running_loop()
            return JSONResponse(await loop.run_in_executor(worker, answer, body, kind))
        except Refused as e:
            raise HTTPException(e.status, str(e)) from e
        except (TimeoutError, asyncio.TimeoutError) as e:
            raise HTTPException(408, f"the body did not arrive within {READ_SECONDS:.0f} s") from e
        finally:
            waiting -= 1

    @service.get("/health")
    async def health() -> dict[str, Any]:
        return {
            "status": "ok", "detectors": list(guard.scorers), "skipped": [n.what for n in guard.skipped],
            "fpr": guard.fpr, "threshold": guard.threshold, "passes": guard.passes,
            "shape": list(guard.model.shape), "classes": guard.model.classes,
        }  # fmt: skip

    @service.get("/metrics")
    async def page() -> PlainTextResponse:
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    from starlette.exceptions import HTTPException as Status

    @service.exception_handler(Status)
    async def refused(_: Request, e: Status) -> JSONResponse:
        return JSONResponse({"error": one_line(str(e.detail))[:500]}, e.status_code, e.headers)

    service.add_middleware(cast(Any, _Counted), metrics=metrics)
    return service


class _Counted:
    """Counts every request by the status of its answer, whatever becomes of it."""

    PATHS = ("/", "/predict", "/health", "/metrics")

    def __init__(self, app: Any, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, status = time.monotonic(), 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, counted)
        finally:
            path = scope["path"] if scope["path"] in self.PATHS else "other"
            self.metrics.done(path, status, time.monotonic() - begin)


async def _body(receive: Any, headers: Any, limit: int) -> bytes:
    """The body of a request, cut off at the limit; what comes after it is thrown away, up to a few limits."""
    said = headers.get("content-length", "")
    large = said.isdecimal() and int(said[:20]) > limit
    parts, size, more = [], 0, True
    while more and size <= 4 * limit:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "the connection was closed before the body had arrived")
        part, more = message.get("body", b""), message.get("more_body", False)
        size += len(part)
        if size <= limit and not large:
            parts.append(part)
        else:
            parts.clear()
    if large or size > limit:
        raise Refused(413, f"the body is larger than {limit / 2**20:g} MB")
    return b"".join(parts)


def parsed(body: bytes, kind: str, guard: Guard, resize: bool = False, most_inputs: int = MOST_INPUTS) -> Any:
    """Inputs out of a body, numbers of any shape.

    Args:
        body: what was sent.
        kind: the media type that was said.
        guard: whose model is to take them.
        resize: whether images are resized.
        most_inputs: texts that are read at most.

    Raises:
        Refused: it is nothing that is read (415), damaged (400), or no inputs (422).
    """
    try:
        if kind in JSON_TYPES:
            return _json(body, guard, most_inputs)
        if body.startswith((PNG, JPEG)):
            try:
                return guard.model.modality.decode(body, guard.model.shape, resize)
            except BadInput as e:
                raise Refused(400 if "not readable" in str(e) else 422, str(e)) from e
        if body.startswith(NPY):
            return _npy(body)
    except Refused:
        raise
    except Exception as e:  # any error while foreign bytes are read means that the bytes are damaged
        raise Refused(400, f"the body cannot be read ({type(e).__name__})") from e
    shown = repr(one_line(kind)[:60]) if kind else "no media type"
    raise Refused(415, f"{shown} with a body of {len(body)} bytes is not read; send {WANTED}")


def _json(body: bytes, guard: Guard, most_inputs: int) -> Tensor:
    def number(text: str) -> float:
        raise Refused(422, f"the inputs hold {text}")

    try:
        found = json.loads(body, parse_constant=number)
    except (ValueError, RecursionError) as e:
        raise Refused(400, f"the body is no JSON ({one_line(str(e))[:100]})") from e
    if not isinstance(found, dict) or set(found) != {"inputs"}:
        raise Refused(422, 'the JSON is to be {"inputs": [...]}, one input or several')
    given = [found["inputs"]] if isinstance(found["inputs"], str) else found["inputs"]
    if isinstance(given, list) and any(map(_is_text, given)):
        return _spoken(given, guard, most_inputs)
    try:
        numbers = np.array(given)
        if numbers.dtype.kind not in "iuf" or not numbers.ndim:
            raise ValueError("not numbers")
        return torch.from_numpy(numbers.astype(np.float64))
    except (ValueError, TypeError, OverflowError, RecursionError) as e:
        raise Refused(422, '"inputs" is to be a list of numbers, nested as the input is') from e


def _is_text(value: Any) -> bool:
    """Whether a value of JSON is a text, or a list that begins with one: a pair."""
    return isinstance(value, str) or (isinstance(value, list) and isinstance((value or [0])[0], str))


def _spoken(given: list[Any], guard: Guard, most_inputs: int) -> Tensor:
    """Inputs out of texts, where the model takes them."""
    if len(given) > most_inputs:
        raise Refused(413, f"{len(given)} inputs are too many for one request; send at most {most_inputs}")
    try:
        return guard.model.modality.spoken(given, guard.model.shape)
    except BadInput as e:
        raise Refused(422, f'"inputs": {e}') from e


def _npy(body: bytes) -> Tensor:
    """One array; never pickled objects, and never more values than there are bytes."""
    f = io.BytesIO(body)
    version = np.lib.format.read_magic(f)
    if version not in ((1, 0), (2, 0)):
        raise Refused(400, f"version {version} of .npy is not read; save it with numpy.save")
    read = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(f)
    if dtype.hasobject or dtype.kind not in "uf":
        raise Refused(422, f"the array is {one_line(str(dtype))[:40]}; send floats in [0, 1], or uint8")
    data = body[f.tell() :]
    if min(shape, default=0) < 1 or math.prod(shape) * dtype.itemsize != len(data):
        raise Refused(
            400, f"the array is said to be {shape!s:.60}, and the body holds {len(data)} bytes of it"
        )
    flat = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))
    kept = flat if flat.dtype == np.uint8 else flat.astype(np.float64)
    return torch.from_numpy(np.reshape(kept, shape, order="F" if fortran else "C").copy(order="C"))


def _number(value: float) -> str:
    return "NaN" if math.isnan(value) else f"{value:.10g}"


def listen(host: str = "127.0.0.1", port: int = 8000) -> socket.socket:
    """A socket that is listened on; port 0 takes a free one.

    Raises:
        BadInput: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # only where the protocol is said does asyncio turn off Nagle's algorithm, which costs 40 ms an answer
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # elsewhere it would let two services share a port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(128)
        return listening
    except OSError as e:
        listening.close()
        raise BadInput(f"cannot listen on {host}:{port}: {e.strerror}; choose another --port") from e


def server(service: Any) -> Any:
    """A uvicorn server for the service; `run([socket])` serves until it is stopped.

    Raises:
        BadInput: uvicorn is not installed.
    """
    try:
        import uvicorn
    except ImportError as e:
        raise BadInput(f"the service needs {e.name}; pip install 'backsweep[serve]'") from e
    return uvicorn.Server(uvicorn.Config(service, log_level="warning", timeout_keep_alive=5))
