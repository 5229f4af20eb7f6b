"""People who pay all the time: each one payment after the other, the same bytes again until its receipt is verified.

They keep to a pace rather than to the machine's limit, so that latencies say what the network did and not what the
processors did.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from node.errors import UserError
from protocol.receipts import verify_receipt
from scripts.benchmarks.local_federation import LocalFederation

WAIT_SECONDS = 10
RETRY_SECONDS = 0.5
STOP_SECONDS = 2.0


@dataclass
class Payment:
    """One payment on its way; times in seconds of a steady clock."""

    submitted: float
    final: float | None = None


class Load:
    """One thread for each person, spread over the nodes. Use `run` in a thread of each; `stop` ends them."""

    def __init__(self, federation: LocalFederation, people: int, pause_seconds: float) -> None:
        self.payments: list[Payment] = []
        self.failures: dict[str, int] = {}
        self._federation = federation
        self._pause_seconds = pause_seconds
        self._may_start = threading.Event()
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._pay, args=(person,), daemon=True) for person in range(people)]
        for thread in self._threads:
            thread.start()

    def go_on(self) -> None:
        """People start new payments."""
        self._may_start.set()

    def hold(self) -> None:
        """Nobody starts a new payment; those on their way go on."""
        self._may_start.clear()

    def stop(self) -> None:
        """End, whatever is on its way; threads that wait for a node end with the process."""
        self._stopping.set()
        self._may_start.set()
        deadline = time.monotonic() + STOP_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def count_waiting(self) -> int:
        """Payments on their way."""
        return sum(payment.final is None for payment in list(self.payments))

    def _pay(self, person: int) -> None:
        chance = random.Random(person)
        federation = self._federation
        numbers = federation.numbers
        with federation.client(numbers[person % len(numbers)]) as client:
            while not self._stopping.is_set():
                self._may_start.wait()
                if self._stopping.wait(chance.uniform(0, 2 * self._pause_seconds)) or not self._may_start.is_set():
                    continue
                (record,) = federation.cast.make_payments_of([person])
                payment = Payment(time.monotonic())
                self.payments.append(payment)
                while payment.final is None and not self._stopping.is_set():
                    try:
                        receipt = client.submit(record.encoded, WAIT_SECONDS).receipt
                    except UserError as error:
                        self.failures[str(error)] = self.failures.get(str(error), 0) + 1
                        self._stopping.wait(RETRY_SECONDS)
                        continue
                    if receipt is not None:
                        assert verify_receipt({0: federation.cast.founded.charter}, receipt).record == record
                        payment.final = time.monotonic()


def describe(payments: Sequence[Payment], start: float, end: float) -> dict[str, object]:
    """What happened between two moments."""
    final = [p for p in payments if p.final is not None and start <= p.final < end]
    latencies = [(p.final - p.submitted) * 1000 for p in final if p.final is not None]
    cuts = statistics.quantiles(latencies, n=100) if len(latencies) > 1 else [float("nan")] * 99
    return {
        "seconds": round(end - start, 1),
        "submitted": sum(start <= p.submitted < end for p in payments),
        "final": len(final),
        "waiting": sum(p.submitted < end and (p.final is None or p.final >= end) for p in payments),
        "p50_ms": round(cuts[49]) if latencies[1:] else None,
        "p99_ms": round(cuts[98]) if latencies[1:] else None,
    }
