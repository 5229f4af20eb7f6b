"""A member's log grows at the charter's rate and no faster, except where correct members hold it already."""

import pytest
import trio

from node.log_rate import BURST_SECONDS
from node.member import LedgerMember
from node.network.gossip import Gossip
from node.storage.store import Store
from protocol.batches import Batch, LogPosition, build_batch
from protocol.messages import LogHead
from protocol.statements import Vote
from scripts.benchmarks.federation_in_memory import Cast

RATE = 1024
FLOODER, OTHER, ANOTHER = 4, 2, 3
PADDING = tuple(Vote(b"", position, 0, b"", 0) for position in range(60))


class Watched:
    """A member whose clock stands still until a test moves it, under a charter with a low rate."""

    def __init__(self) -> None:
        self.cast = Cast(4, 1, RATE)
        self.charter = self.cast.founded.charter
        self.now = float(self.charter.fields.genesis_seconds)
        self.faults: list[str] = []
        self.member = self.open(1)

    def open(self, number: int) -> LedgerMember:
        store = Store.open(":memory:", self.charter.federation)
        member = LedgerMember(self.cast.founded, number, self.cast.held_vote_keys[number], store, lambda: self.now)
        member.on_fault.append(self.faults.append)
        return member

    def make_log(self, number: int, count: int, seen: tuple[bytes, ...] = ()):
        """Well-formed batches of one member that say nothing of use."""
        batches: list[Batch] = []
        for index in range(count):
            position = LogPosition(index, batches[-1].id if batches else b"")
            key = self.cast.vote_keys[number]
            batches.append(
                build_batch(self.charter, key, number, position, seen=seen, time_ms=0, records=(), statements=PADDING)
            )
        return batches

    def count_bytes(self, number: int = FLOODER) -> int:
        log = self.member.replica.get_log((number, 0))
        return sum(len(self.member.archive.read_bytes(batch) or b"") for ids in log.values() for batch in ids)

    async def take_in(self, batches) -> int:
        return await self.member.ingest([batch.encoded for batch in batches], "peer")

    def tell(self, teller: int, batch) -> None:
        head = LogHead(batch.header.member, 0, batch.header.index, batch.id)
        self.member.log_rates.note_heads(teller, [head])


@pytest.fixture
async def watched():
    return Watched()


async def test_a_log_grows_by_the_burst_at_once_and_then_at_the_rate(watched):
    flood = watched.make_log(FLOODER, 100)
    size = len(flood[1].encoded)
    await watched.take_in(flood)
    assert 0 <= watched.count_bytes() - RATE * BURST_SECONDS <= size
    for seconds in range(1, 6):
        watched.now += 1
        for held in watched.member.log_rates.release(watched.now):
            await watched.member.take_in([held.batch], held.peer)
        assert abs(watched.count_bytes() - RATE * (BURST_SECONDS + seconds)) <= size


async def test_batches_above_the_rate_all_enter_in_time_and_their_forwarder_is_not_blamed(watched, autojump_clock):
    flood = watched.make_log(FLOODER, 30)
    await watched.take_in(flood)
    assert len(watched.member.replica.get_log((FLOODER, 0))) < 30
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watched.member.watch_rates)
        for _ in range(60):
            await trio.sleep(1)
            watched.now += 1
        nursery.cancel_scope.cancel()
    assert len(watched.member.replica.get_log((FLOODER, 0))) == 30
    assert watched.faults == []


async def test_a_flood_delays_no_batch_of_another_member(watched):
    await watched.take_in(watched.make_log(FLOODER, 100))
    assert await watched.take_in(watched.make_log(OTHER, 1)) == 1


async def test_what_rests_on_a_held_batch_waits_for_it(watched):
    flood = watched.make_log(FLOODER, 100)
    await watched.take_in(flood)
    resting = watched.make_log(OTHER, 1, seen=(flood[-1].id,))
    assert await watched.take_in(resting) == 0
    watched.tell(OTHER, flood[-1])
    watched.tell(ANOTHER, flood[-1])
    for held in watched.member.log_rates.release(watched.now):
        await watched.member.take_in([held.batch], held.peer)
    assert resting[0].id in watched.member.replica


async def test_history_that_a_correct_member_holds_enters_at_once(watched):
    history = watched.make_log(FLOODER, 200)
    watched.tell(OTHER, history[-1])
    watched.tell(ANOTHER, history[-1])
    assert await watched.take_in(history) == 200


async def test_members_that_may_all_be_faulty_vouch_for_nothing(watched):
    flood = watched.make_log(FLOODER, 100)
    watched.tell(FLOODER, flood[-1])
    await watched.take_in(flood)
    assert len(watched.member.replica.get_log((FLOODER, 0))) < 50


async def test_history_counts_so_that_a_log_cannot_grow_at_each_replica_in_turn(watched):
    flood = watched.make_log(FLOODER, 100)
    watched.tell(OTHER, flood[49])
    watched.tell(ANOTHER, flood[49])
    await watched.take_in(flood)
    assert len(watched.member.replica.get_log((FLOODER, 0))) == 50


async def test_a_log_that_may_not_grow_is_not_fetched_until_it_may(watched):
    flood = watched.make_log(FLOODER, 100)
    await watched.take_in(flood)
    assert (FLOODER, 0) in watched.member.list_ignored_logs()
    watched.now += 1
    watched.member.log_rates.release(watched.now)
    assert watched.member.list_ignored_logs() == frozenset()


async def test_gossip_of_a_log_that_may_not_grow_is_not_passed_on(watched):
    flood = watched.make_log(FLOODER, 100)
    gossip = Gossip({0: watched.charter}, watched.member.take_in, watched.member.list_ignored_logs)
    topic = gossip.topics[0]
    assert gossip.is_worth_forwarding("peer", topic, flood[0].encoded)
    await watched.take_in(flood)
    assert not gossip.is_worth_forwarding("peer", topic, flood[99].encoded)
    assert gossip.is_worth_forwarding("peer", topic, watched.make_log(OTHER, 1)[0].encoded)


async def test_a_member_keeps_its_own_log_to_the_rate(watched, autojump_clock):
    member = watched.member
    spoken: list[bytes] = []
    for number in (1, 2, 3):
        member.signing.note_heard(number)
    for batch in watched.make_log(1, 20):
        member.log_rates.count_own(batch, watched.now)
    wait_seconds = member.log_rates.compute_wait(1, watched.now)
    assert wait_seconds > 5
    member.on_spoken.append(spoken.append)
    await member.submit(watched.cast.make_setup()[0][0].encoded)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(member.speak)
        await trio.sleep(wait_seconds - 1)
        assert not spoken
        await trio.sleep(2)
        assert spoken
        nursery.cancel_scope.cancel()


def test_a_clock_that_jumps_back_gives_nothing_and_takes_nothing():
    watched = Watched()
    rates = watched.member.log_rates
    batch = watched.make_log(FLOODER, 1)[0]
    assert rates.admit(batch, "peer", watched.now)
    before = rates._compute_level(FLOODER, watched.now)
    assert rates._compute_level(FLOODER, watched.now - 1000) == before
