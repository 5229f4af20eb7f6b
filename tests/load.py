"""People who pay one another without a pause at nodes that may come and go, as wallets do."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from node.client import NodeClient
from node.errors import UserError
from protocol.charter import Charters
from protocol.errors import InvalidInput
from protocol.receipts import VerifiedReceipt, verify_receipt
from protocol.records import Record
from scripts.benchmarks.local_federation import LocalFederation

PAYERS = 4


class Load:
    """Each payer keeps what was acknowledged to it. `get_charters` gives the versions that are known by now."""

    def __init__(
        self, federation: LocalFederation, people: int, seed: int, get_charters: Callable[[], Charters]
    ) -> None:
        self.federation = federation
        self.people = people
        self.seed = seed
        self.get_charters = get_charters
        self.stopped = threading.Event()
        self.acknowledged: list[bytes] = []
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self._pay, args=(number,)) for number in range(PAYERS)]

    def _pay(self, number: int) -> None:
        chance = random.Random(f"{self.seed}:{number}")
        while not self.stopped.is_set():
            with self.lock:
                payments = self.federation.cast.make_payments_of(range(number, self.people, PAYERS))
            for payment in payments:
                receipt = self._send_until_final(payment, chance)
                if receipt is None:
                    return
                assert receipt.record.id == payment.id
                with self.lock:
                    self.acknowledged.append(payment.id)

    def _send_until_final(self, record: Record, chance: random.Random) -> VerifiedReceipt | None:
        """What a wallet does: the same bytes again, to any node, until a receipt is there."""
        while not self.stopped.is_set():
            number = chance.choice(self.federation.numbers)
            try:
                with NodeClient(self.federation.urls[number], 10) as client:
                    submitted = client.submit(record.encoded, 5)
                if submitted.receipt is not None:
                    return verify_receipt(self.get_charters(), submitted.receipt)
            except (UserError, InvalidInput):
                time.sleep(0.05)
        return None

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join(60)


def fund(federation: LocalFederation) -> None:
    """Give everybody credits."""
    for group in federation.cast.make_setup():
        for record in group:
            with federation.client(1) as client:
                assert client.submit(record.encoded, 30).receipt is not None
