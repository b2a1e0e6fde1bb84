"""What the guard's service stands and costs: clean, triggered and hostile requests from several clients.

    python benchmarks/guard_service.py [--seconds 20] [--clients 4] [--overlays 10] [--out guard_service.json]

A network on scikit-learn's digits is trained here with a backdoor (seconds), guarded with STRIP, and served
on the loopback interface by a process of its own. "bare" is the same service when it looks at nothing.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import random
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backsweep.core.files import write_json
from backsweep.guarding.detectors.strip import Strip
from backsweep.guarding.guard import Guard, guard
from backsweep.guarding.service import app, listen, server
from backsweep.models.model import Model
from backsweep.zoo.attacks.badnets import BadNets
from backsweep.zoo.tasks import TASKS

CLEAN, TRIGGERED, HOSTILE = KINDS = ("clean", "triggered", "malformed")
SLICES = 8
SHARES = (0.6, 0.25, 0.15)  # of the requests
MALFORMED = (
    b"{", b"[" * 50_000, b'{"inputs": [[1, 2], [3]]}', b'{"inputs": [[NaN]]}', b"\x89PNG\r\n\x1a\n",
    b"\x93NUMPY", b"\xff\xd8\xff\xe0 not a picture", b'{"inputs": "text"}', b"x" * 2_000_000, b"",
)  # fmt: skip


class Bare(Guard):
    """Answers without looking: the rate of the service itself and of one forward pass."""

    def answers(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.logits(x), torch.zeros(len(x), dtype=torch.float64)


@dataclass
class Seen:
    """What one client saw."""

    seconds: dict[str, list[float]]
    statuses: Counter[tuple[str, int]]
    flagged: Counter[tuple[str, bool]]
    lost: int = 0


def serve(folder: str, weights: dict[str, Tensor], bare: bool, pipe: Connection) -> None:
    """A process: the service on a free port."""
    torch.set_num_threads(1)
    task = TASKS["digits"]
    net = task.net(0)
    net.load_state_dict(weights)
    fitted = Guard.load(folder, Model(net, task.shape, task.classes))
    if bare:
        fitted = Bare(fitted.model, fitted.detectors, fitted.scorers, fitted.calibration, fitted.fpr)
    with listen(port=0) as listening:
        pipe.send(listening.getsockname()[1])
        server(app(fitted, limit_mb=1)).run([listening])


def client(port: int, bodies: dict[str, list[bytes]], until: float, seed: int, seen: Seen) -> None:
    """Sends one request after another until the time is over."""
    rng = random.Random(seed)
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    while time.monotonic() < until:
        kind = rng.choices(KINDS, SHARES if bodies[HOSTILE] else (1, 0, 0))[0]
        body, begin = rng.choice(bodies[kind]), time.perf_counter()
        try:
            link.request("POST", "/predict", body, {"Content-Type": media(body)})
            answer = link.getresponse()
            found = json.loads(answer.read())
        except (OSError, http.client.HTTPException):
            seen.lost += 1
            link.close()
            continue
        seen.seconds[kind].append(time.perf_counter() - begin)
        seen.statuses[kind, answer.status] += 1
        for row in found.get("predictions", []):
            seen.flagged[kind, row["flagged"]] += 1
    link.close()


def media(body: bytes) -> str:
    """The media type to send a body with."""
    return "application/json" if body[:1] in (b"{", b"[", b"") else "application/octet-stream"


def load_test(port: int, bodies: dict[str, list[bytes]], seconds: float, clients: int) -> dict[str, Any]:
    """Figures of some clients at work."""
    seen = [Seen({k: [] for k in KINDS}, Counter(), Counter()) for _ in range(clients)]
    begin = time.monotonic()
    threads = [
        threading.Thread(target=client, args=(port, bodies, begin + seconds, i, s))
        for i, s in enumerate(seen)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    wall = time.monotonic() - begin
    figures: dict[str, Any] = {"seconds": wall, "clients": clients, "lost": sum(s.lost for s in seen)}
    for kind in KINDS:
        took = sorted(t for s in seen for t in s.seconds[kind])
        if len(took) < 2:
            continue
        cuts = statistics.quantiles(took, n=100, method="inclusive")
        yes, no = (sum(s.flagged[kind, flag] for s in seen) for flag in (True, False))
        codes = sorted({c for s in seen for k, c in s.statuses if k == kind})
        figures[kind] = {
            "requests": len(took), "per_second": len(took) / wall,
            "latency_ms": {f"p{q}": round(1000 * cuts[q - 1], 2) for q in (50, 95, 99)},
            "statuses": {str(c): sum(s.statuses[kind, c] for s in seen) for c in codes},
            "flagged_rate": yes / (yes + no) if yes + no else None,
        }  # fmt: skip
    figures["requests_per_second"] = sum(figures[k]["requests"] for k in KINDS if k in figures) / wall
    return figures


def rate(work: Callable[[Tensor], object], x: Tensor) -> float:
    """Inputs a second, without any service."""
    begin, count = time.perf_counter(), 0
    while (wall := time.perf_counter() - begin) < 1:
        work(x)
        count += len(x)
    return count / wall


def main() -> None:
    """Train, fit, serve, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--overlays", type=int, default=10)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    task = TASKS["digits"]
    train, test = task.load()
    net = task.net(0)
    (trigger,) = BadNets(size=1, margin=0).plant(net, task.setup(train, seed=0))
    model = Model(net, task.shape, task.classes)
    clean, fresh = test.split(3)
    fitted = guard(model, clean, Strip(overlays=given.overlays), fpr=0.05, device="cpu")

    def bodies(x: Tensor) -> list[bytes]:
        return [json.dumps({"inputs": one.tolist()}).encode() for one in x]

    others = fresh[fresh.y != trigger.target]
    mixed = {CLEAN: bodies(fresh.x), TRIGGERED: bodies(trigger(others.x)), HOSTILE: list(MALFORMED)}
    alone = {CLEAN: mixed[CLEAN], TRIGGERED: [], HOSTILE: []}
    figures: dict[str, Any] = {
        "cores": os.cpu_count(), "passes": fitted.passes,
        "inputs_per_second_in_batches": {
            "model": rate(fitted.model.predict, fresh.x), "guard": rate(fitted.predict, fresh.x),
        },
    }  # fmt: skip
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        fitted.save(folder)
        ports, processes = {}, {}
        for name in ("guarded", "bare"):
            here, there = context.Pipe()
            what = (folder, net.state_dict(), name == "bare", there)
            processes[name] = context.Process(target=serve, args=what, daemon=True)
            processes[name].start()
            ports[name] = here.recv()
        try:
            figures["mixed"] = load_test(ports["guarded"], mixed, given.seconds / 2, given.clients)
            slices: dict[str, list[dict[str, Any]]] = {"guarded": [], "bare": []}
            for _ in range(SLICES):  # by turns, as others may use the machine too
                for name, found in slices.items():
                    span = given.seconds / 4 / SLICES
                    found.append(load_test(ports[name], alone, span, given.clients))
            figures["alive_at_the_end"] = all(p.is_alive() for p in processes.values())
        finally:
            for p in processes.values():
                p.terminate()
                p.join()
    for name, found in slices.items():
        figures[f"clean only, {name}"] = {
            "requests_per_second": statistics.median(f["requests_per_second"] for f in found),
            "latency_ms_p50": statistics.median(f[CLEAN]["latency_ms"]["p50"] for f in found),
        }
    figures["guarded_to_bare_throughput"] = statistics.median(
        g["requests_per_second"] / b["requests_per_second"]
        for g, b in zip(slices["guarded"], slices["bare"], strict=True)
    )
    print(json.dumps(figures, indent=2))
    if given.out is not None:
        write_json(given.out, figures)


if __name__ == "__main__":
    main()
