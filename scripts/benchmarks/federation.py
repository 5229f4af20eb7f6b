"""How fast a real federation of four is: final transfers per second, and how long one takes to its verified receipt.

Four node processes and the paying clients share this machine, so the figures say what one small machine does with a
whole federation; they are for comparing versions on one machine, not for planning.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from node.client import NodeClient
from protocol.receipts import verify_receipt
from protocol.records import Record
from scripts.benchmarks.federation_in_memory import Cast
from scripts.benchmarks.local_federation import LocalFederation

PEOPLE = 768
CLIENTS = 384
ROUNDS = 4
SINGLE_PAYMENTS = 60
SECONDS_MAX = 60


def _pay(federation: LocalFederation, number: int, payments: Sequence[Record]) -> list[float]:
    """Send payments one after another through one node; seconds from sending to the verified receipt, for each."""
    charter = federation.cast.founded.charter
    latencies = []
    with NodeClient(federation.urls[number], SECONDS_MAX) as client:
        for payment in payments:
            started = time.perf_counter()
            submitted = client.submit(payment.encoded, SECONDS_MAX)
            assert submitted.receipt is not None, "a payment was not final in time"
            assert verify_receipt({0: charter}, submitted.receipt).record.id == payment.id
            latencies.append(time.perf_counter() - started)
    return latencies


def _percentiles(latencies: Sequence[float]) -> dict[str, float]:
    cuts = statistics.quantiles(latencies, n=100)
    return {"p50_ms": round(cuts[49] * 1000, 1), "p99_ms": round(cuts[98] * 1000, 1)}


def measure() -> dict[str, object]:
    """Throughput and latency under load, and the latency of single payments in a quiet federation."""
    cast = Cast(4, PEOPLE)
    with tempfile.TemporaryDirectory() as folder, LocalFederation(Path(folder), cast) as federation:
        for group in cast.make_setup():
            run_clients(federation, [group[start::CLIENTS] for start in range(min(CLIENTS, len(group)))])
        quiet = _pay(federation, 1, [p for _ in range(SINGLE_PAYMENTS) for p in cast.make_payments_of([0])])
        shares = [
            [p for _ in range(ROUNDS) for p in cast.make_payments_of(range(c, PEOPLE, CLIENTS))] for c in range(CLIENTS)
        ]
        started = time.perf_counter()
        busy = run_clients(federation, shares)
        seconds = time.perf_counter() - started
        federation.wait_equal()
    loaded = _percentiles(busy)
    return {
        "federation": {
            "members": 4,
            "transfers": len(busy),
            "transfers_per_second": round(len(busy) / seconds, 1),
            "latency_p50_ms": loaded["p50_ms"],
            "latency_p99_ms": loaded["p99_ms"],
            "clients": CLIENTS,
            "quiet_latency_p50_ms": _percentiles(quiet)["p50_ms"],
            "quiet_latency_p99_ms": _percentiles(quiet)["p99_ms"],
        }
    }


def run_clients(federation: LocalFederation, shares: Sequence[Sequence[Record]]) -> list[float]:
    """One client for each share, spread over the nodes; all latencies."""
    count = len(federation.numbers)
    with ThreadPoolExecutor(len(shares)) as pool:
        futures = [
            pool.submit(_pay, federation, federation.numbers[index % count], share)
            for index, share in enumerate(shares)
        ]
        return [latency for future in futures for latency in future.result()]
