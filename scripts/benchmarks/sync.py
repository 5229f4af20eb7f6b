"""What it costs a node that was away to become equal again: bytes received per missing record, and when nothing is.

The real sync protocol between two members over the in-memory network; bytes are counted above the encryption.
"""

from __future__ import annotations

import trio

from node.member import LedgerMember
from node.network.simulated_transport import SimulatedNetwork, SimulatedTransport
from node.network.sync import SYNC_PROTOCOL, Synchronizer
from node.storage.store import Store
from scripts.benchmarks.federation_in_memory import Cast, make_final

PEOPLE = 100
ROUNDS = 10


async def _ignore(_peer: str, _topic: str, _payload: bytes) -> None:
    """Nobody gossips here."""


def _connect(network: SimulatedNetwork, name: str, member: LedgerMember) -> tuple[SimulatedTransport, Synchronizer]:
    transport = SimulatedTransport(network, name, topics=(), validate=lambda *_: True, on_gossip=_ignore)
    return transport, Synchronizer(member.replica, transport, member.archive.read_bytes, member.ingest)


async def _measure() -> dict[str, object]:
    cast = Cast(4, PEOPLE)
    members = [cast.open_member(number, Store.open(":memory:", cast.federation)) for number in (1, 2, 3)]
    for group in cast.make_setup():
        await make_final(members, group)
    away = cast.open_member(4, Store.restore(members[0].store.serialize(), cast.federation))
    await away.restore()
    payload = 0
    for _ in range(ROUNDS):
        payments = cast.make_payments()
        payload += sum(len(payment.encoded) for payment in payments)
        await make_final(members, payments)
    network = SimulatedNetwork()
    near, _ = _connect(network, "near", members[0])
    far, synchronizer = _connect(network, "far", away)
    far.set_peers({"near": ["near"]})
    async with near.run(), far.run():
        await synchronizer.pull("near")
        received = far.traffic.received[SYNC_PROTOCOL]
        await synchronizer.pull("near")
        idle = far.traffic.received[SYNC_PROTOCOL] - received
    assert away.replica.compute_state_root() == members[0].replica.compute_state_root()
    missing = PEOPLE * ROUNDS
    return {
        "missing_records": missing,
        "bytes_received_per_missing_record": round(received / missing, 1),
        "bytes_received_per_byte_of_records": round(received / payload, 3),
        "bytes_received_when_nothing_is_missing": idle,
    }


def measure() -> dict[str, object]:
    """Bytes that the node which was away receives."""
    return trio.run(_measure)
