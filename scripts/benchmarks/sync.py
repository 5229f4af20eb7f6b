"""What it costs a node that was away to become equal again, by what it lacks and by how large the ledger is.

The real sync protocol between two members over the in-memory network; bytes are counted above the encryption. The cost
should grow with the difference, and hardly with the ledger. Last, four real processes: one is killed, misses payments,
and starts again.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import trio

from node.member import LedgerMember
from node.network.simulated_transport import SimulatedNetwork, SimulatedTransport
from node.network.sync import SYNC_PROTOCOL, Synchronizer
from node.storage.store import Store
from scripts.benchmarks.federation import run_clients
from scripts.benchmarks.federation_in_memory import Cast, make_final
from scripts.benchmarks.local_federation import LocalFederation, wait_until

PEOPLE = 100
ROUNDS = (10, 40)
"""Payments of everybody, after which the cost is measured."""

ROUNDS_MISSED = (0, 1, 10)
AWAY_PEOPLE, AWAY_ROUNDS = 500, 20
CLIENTS = 100
SECONDS_MAX = 300


async def _ignore(_peer: str, _topic: str, _payload: bytes) -> None:
    """Nobody gossips here."""


def _connect(network: SimulatedNetwork, name: str, member: LedgerMember) -> tuple[SimulatedTransport, Synchronizer]:
    transport = SimulatedTransport(network, name, topics=(), validate=lambda *_: True, on_gossip=_ignore)
    return transport, Synchronizer(member.replica, transport, member.archive.read_bytes, member.ingest)


async def _pull(cast: Cast, here: LedgerMember, before: bytes) -> int:
    """Bytes that a node receives which has what stood in a store before, until it is equal."""
    away = cast.open_member(4, Store.restore(before, cast.federation))
    await away.restore()
    network = SimulatedNetwork()
    near, _ = _connect(network, "near", here)
    far, synchronizer = _connect(network, "far", away)
    far.set_peers({"near": ["near"]})
    async with near.run(), far.run():
        await synchronizer.pull("near")
    assert away.replica.compute_state_root() == here.replica.compute_state_root()
    return far.traffic.received[SYNC_PROTOCOL]


async def _measure_by_size() -> dict[str, object]:
    cast = Cast(4, PEOPLE)
    members = [cast.open_member(number, Store.open(":memory:", cast.federation)) for number in (1, 2, 3)]
    for group in cast.make_setup():
        await make_final(members, group)
    stores = [members[0].store.serialize()]
    payload = 0
    found: dict[str, object] = {}
    for done in range(1, ROUNDS[-1] + 1):
        payments = cast.make_payments()
        payload += sum(len(payment.encoded) for payment in payments)
        await make_final(members, payments)
        stores.append(members[0].store.serialize())
        if done in ROUNDS:
            found[f"payments_in_the_ledger {done * PEOPLE}"] = {
                f"bytes_when_{missed * PEOPLE}_are_missing": await _pull(cast, members[0], stores[done - missed])
                for missed in ROUNDS_MISSED
            }
    return {"bytes_of_a_payment": round(payload / ROUNDS[-1] / PEOPLE, 1), **found}


def _measure_process() -> dict[str, object]:
    """A node is killed, the others make payments final without it, and it starts again: real processes and disks."""
    cast = Cast(4, AWAY_PEOPLE)
    with tempfile.TemporaryDirectory() as folder, LocalFederation(Path(folder), cast) as federation:
        for group in cast.make_setup():
            run_clients(federation, [group[start::CLIENTS] for start in range(min(CLIENTS, len(group)))])
        federation.wait_equal(SECONDS_MAX)
        away = federation.numbers.pop()
        federation.kill(away)
        shares = [
            [p for _ in range(AWAY_ROUNDS) for p in cast.make_payments_of(range(c, AWAY_PEOPLE, CLIENTS))]
            for c in range(CLIENTS)
        ]
        run_clients(federation, shares)
        equal = federation.wait_equal(SECONDS_MAX)
        started = time.perf_counter()
        federation.start(away)

        def has_caught_up() -> bool:
            status = federation.read_status(away)
            return status is not None and status.records_final >= equal.records_final

        wait_until(has_caught_up, "the node that was away has everything", SECONDS_MAX)
        seconds = time.perf_counter() - started
        federation.numbers.append(away)
        status = federation.wait_equal(SECONDS_MAX)
        received = federation.read_status(away)
        assert received is not None
    missing = sum(map(len, shares))
    return {
        "missing_records": missing,
        "ledger_records": status.records_final,
        "seconds_from_start_to_equal": round(seconds, 2),
        "bytes_received_per_missing_record": round(sum(received.bytes_received.values()) / missing, 1),
    }


def measure() -> dict[str, object]:
    """Bytes that a node which was away receives; and how long a real process takes."""
    return {**trio.run(_measure_by_size), "process": _measure_process()}
