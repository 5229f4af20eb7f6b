"""Nodes are killed at random instants under load: nothing acknowledged is lost, and no node contradicts itself."""

import os
import random
import threading
import time

import pytest

from node.addresses import Kind, encode_address
from node.client import NodeClient
from node.errors import UserError
from protocol.errors import InvalidInput
from protocol.receipts import verify_receipt
from scripts.benchmarks.federation_in_memory import Cast
from scripts.benchmarks.local_federation import LocalFederation

KILLS = int(os.environ.get("ALLMENDE_KILLS", "30"))
PEOPLE = 24
SEED = int(os.environ.get("ALLMENDE_SEED", "1"))


def send_until_final(federation, record, chance, stopped):
    """What a wallet does: the same bytes again, to any node, until a receipt is there."""
    while not stopped.is_set():
        number = chance.choice(federation.numbers)
        try:
            with NodeClient(federation.urls[number], 10) as client:
                submitted = client.submit(record.encoded, 5)
        except (UserError, InvalidInput):
            time.sleep(0.05)
            continue
        if submitted.receipt is not None:
            return verify_receipt({0: federation.cast.founded.charter}, submitted.receipt)
    return None


class Load:
    """A few people pay one another without a pause; each keeps what was acknowledged to it."""

    def __init__(self, federation):
        self.federation = federation
        self.stopped = threading.Event()
        self.acknowledged: list[bytes] = []
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self._pay, args=(number,)) for number in range(4)]

    def _pay(self, number):
        chance = random.Random(f"{SEED}:{number}")
        while not self.stopped.is_set():
            with self.lock:
                payments = self.federation.cast.make_payments_of(range(number, PEOPLE, 4))
            for payment in payments:
                receipt = send_until_final(self.federation, payment, chance, self.stopped)
                if receipt is None:
                    return
                assert receipt.record.id == payment.id
                with self.lock:
                    self.acknowledged.append(payment.id)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        for thread in self.threads:
            thread.join(60)


def fund(federation):
    for group in federation.cast.make_setup():
        for record in group:
            with federation.client(1) as client:
                assert client.submit(record.encoded, 30).receipt is not None


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_when_nodes_are_killed_at_random_instants(tmp_path, record_property):
    chance = random.Random(SEED)
    with LocalFederation(tmp_path, Cast(4, PEOPLE)) as federation:
        fund(federation)
        with Load(federation) as load:
            for _ in range(KILLS):
                victim = chance.choice(federation.numbers)
                time.sleep(chance.uniform(0.05, 0.6))
                federation.kill(victim)
                federation.start(victim)
                federation.wait_ready(victim)
        status = federation.wait_equal()
        assert len(load.acknowledged) > KILLS
        assert status.forked_members == []
        for number in federation.numbers:
            with federation.client(number) as client:
                for record in load.acknowledged:
                    found = client.get_record(encode_address(Kind.RECORD, record))
                    assert found is not None
                    assert found.state == "applied"
        record_property("kills", KILLS)
        record_property("acknowledged", len(load.acknowledged))
