"""A network behind an address: images are posted as JSON, class scores come back."""

from __future__ import annotations

import http.client
import ipaddress
import json
import math
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from backsweep.core.errors import BadInput
from backsweep.core.text import one_line
from backsweep.models.model import Model

PREFIX = "predict:"  # before the address, where a model is named
TIMEOUT = 60.0  # seconds for one answer
MOST_BYTES = 2**24  # of one answer
MOST_VALUES = 2**19  # in one request, about five megabytes of JSON
MOST_IMAGES = 64  # in one request
RATE = 50.0  # requests in a second, at most
PATIENCE = 10.0  # seconds before the second and last try, at most
_AGAIN = {408, 425, 429, 500, 502, 503, 504}


class Service:
    """A function from images to class scores that asks an address.

    POST {"inputs": [...]}, images (N, *shape) in [0, 1]; the answer is {"scores": [[...], ...]}.

    Args:
        url: https, or http to this very machine.
        rate: requests in a second, at most.
        timeout: seconds for one answer.

    Raises:
        BadInput: another kind of address.
    """

    def __init__(self, url: str, rate: float = RATE, timeout: float = TIMEOUT) -> None:
        self.url, self.rate, self.timeout = _checked(url), rate, timeout
        self._last = -math.inf

    @property
    def shown(self) -> str:
        """The address without what may be secret."""
        parts = urllib.parse.urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}{parts.path}"

    def __call__(self, x: Tensor) -> list[Any]:
        """Scores of a batch.

        Raises:
            BadInput: no answer, or none that is understood.
        """
        body = json.dumps({"inputs": np.round(x.double().numpy(), 7).tolist()}).encode()
        answer = self._asked(body)
        try:
            found = json.loads(answer, parse_constant=_refuse)
            scores = found["scores"]
            if not isinstance(scores, list) or len(scores) != len(x):
                raise ValueError(f"{len(scores)} scores for {len(x)} inputs")
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            raise self._trouble(
                f'answers with something else than {{"scores": [[...], ...]}} ({one_line(str(e))[:80]})'
            ) from e
        return scores

    def _asked(self, body: bytes) -> bytes:
        """One answer, with one more try."""
        for last in (False, True):
            self._wait()
            try:
                return self._posted(body)
            except urllib.error.HTTPError as e:
                reason, wait = f"answers with status {e.code}", _seconds(e.headers.get("Retry-After"))
                e.close()
                if 300 <= e.code < 400:
                    raise self._trouble("leads to another address; give that one") from e
                if last or e.code not in _AGAIN:
                    raise self._trouble(f"{reason}; look at its log") from e
            except (OSError, http.client.HTTPException) as e:  # urllib's errors are OSErrors
                reason, wait = one_line(str(getattr(e, "reason", None) or e or type(e).__name__))[:120], 1.0
                if last:
                    raise self._trouble(
                        f"gives no answer ({reason}); check the address and the service"
                    ) from e
            time.sleep(wait)
        raise AssertionError("unreachable")

    def _posted(self, body: bytes) -> bytes:
        request = urllib.request.Request(  # noqa: S310  (the scheme was checked)
            self.url, body, {"Content-Type": "application/json", "Accept": "application/json"}
        )
        until = time.monotonic() + self.timeout
        parts, size = [], 0
        with _opener(self.url).open(request, timeout=self.timeout) as response:
            while part := response.read1(2**16):
                size += len(part)
                if size > MOST_BYTES:
                    raise self._trouble(f"answers with more than {MOST_BYTES:,} bytes; it is to give scores")
                if time.monotonic() > until:
                    raise TimeoutError(f"no whole answer within {self.timeout:.0f} s")
                parts.append(part)
            if response.length:  # said, and not sent
                raise http.client.IncompleteRead(b"", response.length)
        return b"".join(parts)

    def _wait(self) -> None:
        """No more requests than the rate allows."""
        pause = self._last + 1 / self.rate - time.monotonic()
        if pause > 0:
            time.sleep(pause)
        self._last = time.monotonic()

    def _trouble(self, what: str) -> BadInput:
        return BadInput(one_line(f"{self.shown} {what}"))


def is_remote(name: str) -> bool:
    """Whether a name, of a model, is of something that a host has to be asked for."""
    return name.startswith((PREFIX, "hf://"))


def model(
    name: str, shape: Sequence[int] | None, classes: int | None, given: Sequence[Any] = (), **settings: Any
) -> Model:
    """The network behind `predict:ADDRESS`, as a black box.

    Args:
        name: with the address.
        shape: of one input.
        classes, settings: as for a `Model`.
        given: what only a network at hand could have.

    Raises:
        BadInput: another kind of address, no answer, or none that is understood.
    """
    if any(one is not None for one in given):
        raise BadInput(
            "a service only answers; leave out arch=, weights= and layer= (--arch, --weights, --layer)"
        )
    if shape is None:
        raise BadInput("the shape of its inputs is not known; say shape=(3, 32, 32) (--shape 3,32,32)")
    service = Service(name.removeprefix(PREFIX), RATE)
    batch = max(1, min(MOST_IMAGES, MOST_VALUES // math.prod(shape)))
    return Model.black_box(
        service, shape, batch=batch, classes=classes, source=f"{PREFIX}{service.shown}", **settings
    )


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows nobody to another address."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _opener(url: str) -> urllib.request.OpenerDirector:
    handlers: list[Any] = [_Stay()]
    if urllib.parse.urlsplit(url).scheme == "http":  # this machine is not behind a proxy
        handlers.append(urllib.request.ProxyHandler({}))
    return urllib.request.build_opener(*handlers)


def _checked(url: str) -> str:
    shown = one_line(url)[:100]
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as e:
        raise BadInput(f"{shown!r} is no address ({e})") from e
    if parts.username is not None:
        raise BadInput("the address holds a name or a password, which would stand in reports; leave it out")
    if not host or (parts.scheme != "https" and not (parts.scheme == "http" and _here(host))):
        raise BadInput(
            f"{shown!r} is no address that is asked; give https://..., or http:// to this machine (127.0.0.1)"
        )
    return url


def _here(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _seconds(said: str | None) -> float:
    """How long to wait before the second try."""
    return min(PATIENCE, float(said)) if said is not None and said.isdecimal() else 1.0


def _refuse(text: str) -> float:
    raise ValueError(f"it holds {text}")
