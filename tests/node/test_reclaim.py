"""A hold's grace over real members, each with a clock of running time of its own (spec 7.10)."""

from __future__ import annotations

import pytest

from node.keystore import Key
from node.member import LedgerMember
from node.running_clock import RunningClock
from node.storage.store import Store
from node.vote_keys import VoteKeys
from protocol.errors import Reason, Rejected
from protocol.records import Draw, Lot, account_scope
from protocol.states import HoldPhase
from scripts.benchmarks.federation_in_memory import exchange, make_final
from tests.strategies import Federation, make_economy, make_key

GRACE_SECONDS = 600
FEDERATION = Federation()
ECONOMY = make_economy(FEDERATION)
PAYER, PAYEE = ECONOMY.people[0], ECONOMY.donor
HOLD = FEDERATION.hold(PAYER, PAYEE, ECONOMY.sponsor, [Draw(*ECONOMY.lot, 300)], grace_seconds=GRACE_SECONDS)
REQUEST = FEDERATION.reclaim_request(PAYER, HOLD, sequence=1, prev=HOLD.id)
RECLAIM = FEDERATION.reclaim(PAYER, HOLD, REQUEST)
SETTLE = FEDERATION.settle(PAYEE, HOLD, 100)


class Clock:
    """Seconds of a machine that the test moves."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


def start(number, store, clock):
    vote_key = Key(make_key(f"{FEDERATION.name} vote {number}").private_bytes_raw(), "vote")
    member = LedgerMember(FEDERATION.found(), number, VoteKeys([vote_key]), store, lambda: 1_000_010.0)
    member.running_clock = RunningClock(store, clock)
    return member


@pytest.fixture
def clocks():
    return [Clock() for _ in FEDERATION.numbers]


@pytest.fixture
async def members(clocks):
    """Members that all know the payer's request."""
    members = [
        start(number, Store.open(":memory:", FEDERATION.id), clock)
        for number, clock in zip(FEDERATION.numbers, clocks, strict=True)
    ]
    for group in (ECONOMY.setup, [ECONOMY.grant], [HOLD], [REQUEST]):
        await make_final(members, group)
    return members


def pass_time(members, clocks, seconds):
    """It passes at these members, which then judge what waits, as they do each second."""
    for member, clock in zip(members, clocks, strict=True):
        clock.seconds += seconds
        member.watch_at_once()


def get_phases(members):
    return {member.replica.ledger.holds[HOLD.id].phase for member in members}


async def test_before_the_grace_is_over_a_reclaim_gets_no_vote_and_waits(members, clocks):
    pass_time(members, clocks, GRACE_SECONDS - 1)
    assert {member.running_clock.compute_seconds_left(REQUEST.id) for member in members} == {1}
    with pytest.raises(Rejected) as caught:
        members[0].voter.check_introduction(RECLAIM, members[0].compute_circumstances())
    assert caught.value.reason is Reason.GRACE_RUNNING
    await members[0].submit(RECLAIM.encoded)
    await exchange(members)
    assert get_phases(members) == {HoldPhase.OPEN}
    pass_time(members, clocks, 1)
    await exchange(members)
    assert get_phases(members) == {HoldPhase.RECLAIMED}
    assert members[0].running_clock.compute_seconds_left(REQUEST.id) is None


async def test_a_reclaim_is_final_once_a_quorum_has_counted_the_grace(members, clocks):
    pass_time(members[:2], clocks[:2], GRACE_SECONDS)
    await members[0].submit(RECLAIM.encoded)
    await exchange(members)
    assert get_phases(members) == {HoldPhase.OPEN}, "two of four are no quorum"
    pass_time(members[2:3], clocks[2:3], GRACE_SECONDS)
    await exchange(members)
    assert get_phases(members) == {HoldPhase.RECLAIMED}
    for member in members:
        assert member.replica.ledger.get_balance(PAYER.account, Lot(*ECONOMY.lot)) == 1000
        member.replica.ledger.check_conservation()


async def test_time_in_which_a_node_is_down_does_not_count(members, clocks):
    pass_time(members[:2], clocks[:2], GRACE_SECONDS)
    clocks[2].seconds += 100
    members[2].running_clock.save(at_once=True)
    clocks[2].seconds += GRACE_SECONDS
    members[2] = start(3, Store.restore(members[2].store.serialize(), FEDERATION.id), clocks[2])
    await members[2].restore()
    assert members[2].running_clock.compute_seconds_left(REQUEST.id) == GRACE_SECONDS - 100
    await members[0].submit(RECLAIM.encoded)
    await exchange(members)
    assert get_phases(members) == {HoldPhase.OPEN}
    pass_time(members[2:3], clocks[2:3], GRACE_SECONDS - 100)
    await exchange(members)
    assert get_phases(members) == {HoldPhase.RECLAIMED}


async def test_what_was_not_saved_before_a_crash_counts_again(members, clocks):
    members[2].running_clock.save(at_once=True)
    clocks[2].seconds += GRACE_SECONDS
    members[2] = start(3, Store.restore(members[2].store.serialize(), FEDERATION.id), clocks[2])
    await members[2].restore()
    assert members[2].running_clock.compute_seconds_left(REQUEST.id) == GRACE_SECONDS


async def test_the_payees_settlement_within_the_grace_wins(members, clocks):
    pass_time(members, clocks, GRACE_SECONDS - 1)
    await members[0].submit(RECLAIM.encoded)
    await make_final(members, [SETTLE])
    pass_time(members, clocks, GRACE_SECONDS)
    await exchange(members)
    assert get_phases(members) == {HoldPhase.SETTLED}
    for member in members:
        ledger = member.replica.ledger
        assert ledger.heads[account_scope(PAYER.account)].record == REQUEST.id
        assert ledger.holds[HOLD.id].paid == 100
        ledger.check_conservation()
