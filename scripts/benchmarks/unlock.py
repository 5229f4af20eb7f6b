"""What it costs to free a slot that two machines of one wallet claimed, beside an ordinary payment.

Delays are one-way messages between members, counted in lock step: everybody speaks, then everybody hears. Latencies
are those of a wallet at a real federation of four processes on this machine, where half of the members voted for one
record and half for the other; the pause in which a wallet waits for another machine is left out.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.client import NodeClient
from node.errors import RecordRefused
from node.member import LedgerMember
from node.mnemonics import compute_mnemonic, derive_seed
from node.storage.store import Store
from node.wallet import unlocking
from node.wallet.sending import submit_entry
from node.wallet.wallet import Wallet
from protocol.identifiers import compute_account_id
from protocol.records import Kind, Output, Record, RecordDraft, Transfer, account_scope, sign_record
from protocol.statements import encode_signed, sign_slot_proposal, sign_unlock_request
from scripts.benchmarks.federation_in_memory import Cast, make_final
from scripts.benchmarks.local_federation import LocalFederation, wait_until

ROUNDS = 20
SECONDS_MAX = 60


class _Person:
    """The cast's only person, whose key comes from words so that a wallet can hold it."""

    def __init__(self) -> None:
        self.words = compute_mnemonic(bytes(32))
        self.key = Ed25519PrivateKey.from_private_bytes(derive_seed(self.words, "account"))
        self.public_key = self.key.public_key().public_bytes_raw()
        self.cast = Cast(4, 1)
        self.account = compute_account_id(self.cast.federation, self.public_key)
        self.cast.people, self.cast.accounts = [self.key], [self.account]
        self.setup = self.cast.make_setup()
        self.scope = account_scope(self.account)
        self.last: Record | None = None

    @property
    def sequence(self) -> int:
        """The next slot."""
        return self.last.sequence + 1 if self.last else 0

    def sign(self, amount: int) -> Record:
        """A record for the next slot."""
        body = Transfer((Output(b"r" * 32, self.setup[0][0].id, 2, amount),), "")
        prev = self.last.id if self.last else b""
        draft = RecordDraft(Kind.TRANSFER, 1, self.scope, self.sequence, prev, body, (self.public_key,))
        return sign_record(self.cast.federation, draft, [self.key])


# -- delays -----------------------------------------------------------------------------------------------------------


async def _count_delays(members: Sequence[LedgerMember], is_done: Callable[[], bool]) -> int:
    delays = 0
    while not is_done():
        said = [(member, batch) for member in members if (batch := member.say_next()) is not None]
        for member in members:
            await member.ingest([batch.encoded for speaker, batch in said if speaker is not member], "benchmark")
        delays += 1
        assert delays < 20, "it never became final"
    return delays


async def _measure_delays() -> dict[str, int]:
    person = _Person()
    cast = person.cast
    members = [cast.open_member(number, Store.open(":memory:", cast.federation)) for number in cast.member_keys]
    for group in person.setup:
        await make_final(members, group)
    asked = members[0]
    person.last = ordinary = person.sign(1)
    await asked.submit(ordinary.encoded)
    payment = await _count_delays(members, lambda: asked.replica.is_final(ordinary.id))
    left, right = person.sign(1), person.sign(2)
    for member, record in zip(members, (left, left, right, right), strict=True):
        await member.submit(record.encoded)
    await _count_delays(members, lambda: not any(member.voter.has_statements for member in members[1:]))
    slot = left.slot
    request = sign_unlock_request(cast.federation, slot, 1, person.public_key, person.key)
    await asked.unlocking.submit_request(encode_signed(request))
    promises = await _count_delays(members, lambda: len(asked.unlocking.get_promises(slot, 1)) >= asked.charter.quorum)
    batches = asked.unlocking.get_promises(slot, 1)
    proposal = sign_slot_proposal(cast.federation, slot, 1, left.id, batches, person.public_key, person.key)
    await asked.unlocking.submit_proposal(encode_signed(proposal), left.encoded)
    final = await _count_delays(members, lambda: asked.replica.is_final(left.id))
    return {"payment_delays": payment, "unlock_delays": promises + final}


# -- latency ----------------------------------------------------------------------------------------------------------


class _Requests:
    """Counts the HTTP requests of a client."""

    def __init__(self, client: NodeClient) -> None:
        self.count = 0
        call = client._call

        def count(*arguments: object, **options: object) -> tuple[int, bytes]:
            self.count += 1
            return call(*arguments, **options)  # type: ignore[arg-type]

        client._call = count  # type: ignore[method-assign]


def _claim(client: NodeClient, record: Record) -> None:
    with suppress(RecordRefused):  # the other record was faster there
        client.submit_record(record.encoded)


def _wait_voted(federation: LocalFederation, clients: Sequence[NodeClient], address: str, sequence: int) -> bool:
    """Wait until every node knows both claims or a final record, and nobody has more to say; True when it is split.

    A member says its vote in its next batch, so where all nodes agree twice in a row, all votes went round.
    """

    def is_known(client: NodeClient) -> bool:
        slot = client.get_slot(address)
        return slot.sequence > sequence or len(slot.records) > 1

    before: list[str] = []

    def is_quiet() -> bool:
        last, before[:] = list(before), [federation.wait_equal().frontier]
        return last == before

    wait_until(lambda: all(map(is_known, clients)), "both claims are known", SECONDS_MAX)
    wait_until(is_quiet, "the votes went round", SECONDS_MAX)
    return clients[0].get_slot(address).sequence == sequence


def _measure_latency(folder: Path) -> dict[str, object]:
    person = _Person()
    unlocking.PAUSE_SECONDS_FIRST = 0.0
    payments: list[float] = []
    unlocks: list[float] = []
    counts = {"payment": 0, "unlock": 0}
    with LocalFederation(folder, person.cast) as federation:
        clients = [federation.client(number) for number in federation.numbers]
        for group in person.setup:
            for record in group:
                assert clients[0].submit(record.encoded, SECONDS_MAX).receipt
        with Wallet.create(folder / "wallet", federation.urls[1], person.words, None) as wallet:
            requests = _Requests(wallet.client)
            for amount in range(1, ROUNDS + 1):
                record = person.sign(amount)
                entry = wallet.journal.add(record.scope, record.sequence, record.id, record.encoded, "payment")
                before, started = requests.count, time.perf_counter()
                assert submit_entry(wallet, entry, SECONDS_MAX).verified
                payments.append(time.perf_counter() - started)
                counts["payment"] = requests.count - before
                person.last = record
                left, right = person.sign(amount), person.sign(amount + ROUNDS)
                with ThreadPoolExecutor(len(clients)) as pool:
                    list(pool.map(_claim, clients, (left, left, right, right)))
                is_split = _wait_voted(federation, clients, wallet.address, person.sequence)
                before, started = requests.count, time.perf_counter()
                freed = unlocking.unlock_slot(wallet, person.key, person.sequence, left, SECONDS_MAX)
                if is_split and freed.attempts == 1:
                    unlocks.append(time.perf_counter() - started)
                    counts["unlock"] = requests.count - before
                person.last = freed.record
        for client in clients:
            client.close()
    assert unlocks, "no slot was ever split"
    payment, unlock = statistics.median(payments), statistics.median(unlocks)
    return {
        "payment_requests": counts["payment"],
        "unlock_requests": counts["unlock"],
        "payment_p50_ms": round(payment * 1000, 1),
        "unlock_p50_ms": round(unlock * 1000, 1),
        "unlock_per_payment": round(unlock / payment, 2),
        "unlocks": len(unlocks),
    }


def measure() -> dict[str, object]:
    """Delays, HTTP requests and latency of an unlock, and of a payment beside it."""
    with tempfile.TemporaryDirectory() as folder:
        return {**trio.run(_measure_delays), **_measure_latency(Path(folder))}
