"""Anti-entropy alone makes two nodes equal, at a cost that grows with what is missing."""

from contextlib import AsyncExitStack

import pytest
import trio

from node.network.simulated_transport import SimulatedNetwork, SimulatedTransport
from node.network.sync import SYNC_PROTOCOL, Synchronizer
from node.storage.store import Store
from protocol.batches import LogPosition, build_batch
from protocol.messages import (
    LogHead,
    LogLocator,
    Piece,
    decode_frontier,
    decode_piece,
    decode_request,
    encode_frontier,
    encode_piece,
    encode_probe,
    encode_pull,
)
from protocol.statements import VoteBatch
from scripts.benchmarks.federation_in_memory import Cast, make_final


@pytest.fixture
async def cast():
    return Cast(4, 50)


@pytest.fixture
async def members(cast):
    members = [cast.open_member(number, Store.open(":memory:", cast.federation)) for number in (1, 2, 3)]
    for group in cast.make_setup():
        await make_final(members, group)
    return members


class Linked:
    """Two members on a network, each with its synchronizer."""

    def __init__(self, network, members):
        names = ["left", "right"]
        self.transports = [
            SimulatedTransport(
                network,
                name,
                topics=(),
                validate=lambda *_: True,
                on_gossip=self._ignore,
                is_admitted=lambda _: True,
            )
            for name in names
        ]
        self.synchronizers = [
            Synchronizer(member.replica, transport, member.archive.read_bytes, member.ingest)
            for member, transport in zip(members, self.transports, strict=True)
        ]
        self.transports[0].set_peers({"right": ["right"]})
        self.transports[1].set_peers({"left": ["left"]})

    async def _ignore(self, *_):
        raise AssertionError("nobody gossips here")

    async def pull(self):
        """The right one pulls from the left one; returns (batches that were new, bytes received)."""
        async with AsyncExitStack() as stack:
            for transport in self.transports:
                await stack.enter_async_context(transport.run())
            with trio.fail_after(5):
                while "left" not in self.transports[1].connected():
                    await trio.sleep(0.01)
            received = self.transports[1].traffic.received
            before = received[SYNC_PROTOCOL]
            admitted = await self.synchronizers[1].pull("left")
            return admitted, received[SYNC_PROTOCOL] - before


async def test_a_node_that_was_away_for_1000_records_catches_up_by_sync_alone(cast, members):
    away = cast.open_member(4, Store.restore(members[0].store.serialize(), cast.federation))
    await away.restore()
    for _ in range(20):
        await make_final(members, cast.make_payments())
    missing = len(members[0].replica.entries) - len(away.replica.entries)

    admitted, received = await Linked(SimulatedNetwork(), (members[0], away)).pull()
    assert admitted == missing
    assert away.replica.final_count == members[0].replica.final_count
    assert away.replica.compute_state_root() == members[0].replica.compute_state_root()
    assert received / 1000 < 400

    admitted, received = await Linked(SimulatedNetwork(), (members[0], away)).pull()
    assert admitted == 0
    assert received < 100


async def test_a_new_node_fetches_everything_in_bounded_pieces(cast, members, monkeypatch):
    monkeypatch.setattr("node.network.sync.PIECE_BATCHES_MAX", 3)
    new = cast.open_member(4, Store.open(":memory:", cast.federation))
    admitted, _ = await Linked(SimulatedNetwork(), (members[0], new)).pull()
    assert admitted == len(members[0].replica.entries) > 9
    assert new.replica.get_frontier() == members[0].replica.get_frontier()


async def test_both_branches_of_a_forked_log_reach_everybody(cast, members):
    left, right = members[0], members[1]
    log = left.replica.get_log((4, 0))
    tips = {}
    for name, time_ms in (("left", 1), ("right", 2)):
        position = LogPosition(len(log), b"")
        branch = []
        for _ in range(5):
            batch = build_batch(
                cast.founded.charter,
                cast.vote_keys[4],
                4,
                position,
                seen=(),
                time_ms=time_ms,
                records=(),
                statements=(VoteBatch(b"", 0),),
            )
            branch.append(batch.encoded)
            position = LogPosition(position.index + 1, batch.id)
        tips[name] = branch
    await left.ingest(tips["left"], "peer")
    await right.ingest(tips["right"], "peer")
    for pair in ((left, right), (right, left)):
        admitted, _ = await Linked(SimulatedNetwork(), pair).pull()
        assert admitted == 5
    assert left.replica.get_frontier() == right.replica.get_frontier()
    assert left.replica.compute_state_root() == right.replica.compute_state_root()
    assert left.replica.forks[4] == right.replica.forks[4]


@pytest.mark.parametrize(
    ("encode", "decode", "value"),
    [
        (encode_probe, decode_request, bytes(32)),
        (encode_pull, decode_request, (LogLocator(1, 0, ((3, bytes(32)),)), LogLocator(1, 1, ()))),
        (encode_frontier, decode_frontier, (LogHead(1, 2, 7, bytes(32)),)),
        (encode_piece, decode_piece, Piece(1, (b"batch",))),
    ],
)
def test_what_nodes_say_is_read_as_it_was_meant(encode, decode, value):
    assert decode(encode(value)) == value


async def test_a_malformed_answer_lowers_the_peers_standing_and_nothing_else(cast, members, monkeypatch):
    linked = Linked(SimulatedNetwork(), (members[0], members[1]))
    faults: list[str] = []
    monkeypatch.setattr(linked.transports[1], "note_fault", faults.append)

    async def answer_garbage(_peer, _request):
        return b"\xc1garbage"

    linked.transports[0].serve(SYNC_PROTOCOL, answer_garbage)
    assert await linked.pull() == (0, pytest.approx(0, abs=100))
    assert faults == ["left"]
