"""A hold's slot that payee and payer both claim is freed by either of them, in its turn (spec 5.8)."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from node import api
from node.addresses import Kind, encode_address
from node.hold_slots import HoldSlot
from node.web.views import LedgerViews
from protocol.errors import Reason, Rejected
from protocol.receipts import verify_receipt
from protocol.statements import decode_unlock_request
from protocol.states import HoldPhase
from protocol.turns import PAYEE_TURN, PAYER_TURN
from scripts.benchmarks.federation_in_memory import exchange
from tests.node.test_reclaim import (
    FEDERATION,
    GRACE_SECONDS,
    HOLD,
    RECLAIM,
    SETTLE,
    clocks,
    get_phases,
    members,
    pass_time,
)
from tests.node.test_reclaim import (
    PAYEE as DONOR,
)
from tests.node.test_reclaim import (
    PAYER as PERSON,
)

__all__ = ["clocks", "members"]
PAYEES_TURN_SECONDS = 10
PAYERS_TURN_SECONDS = 20


class Link:
    """One member's node, as its client sees it; all members hear each other before it answers."""

    def __init__(self, members, number=1):
        self.members = members
        self.member = members[number - 1]

    def post_unlock(self, request, wait=0):
        slot = self.member.unlocking.submit_request_at_once(request)
        trio.from_thread.run(exchange, self.members)
        return LedgerViews(self.member, lambda: 0.0).build_promises(slot, decode_unlock_request(request).attempt)

    def post_proposal(self, proposal, record, wait=0):
        name = self.member.unlocking.submit_proposal_at_once(proposal, record)
        trio.from_thread.run(exchange, self.members)
        return api.Submitted(name.hex(), "waiting", self.member.build_receipt(name))


def make_slot(place, attempted=0, kept=None):
    person = PERSON if place == PAYER_TURN else DONOR
    kept = [] if kept is None else kept
    return HoldSlot(FEDERATION.id, place, person.key, attempted, lambda *proposed: kept.append(proposed))


OWN = {PAYER_TURN: RECLAIM, PAYEE_TURN: SETTLE}


async def take_turn(slot, link, record):
    return await trio.to_thread.run_sync(slot.take_turn, link, record, 0)


@pytest.fixture
async def contested(members, clocks):
    """Two members vote for the settlement, and two for the reclaim: neither has a quorum."""
    pass_time(members, clocks, GRACE_SECONDS)
    await members[0].submit(SETTLE.encoded)
    said = await exchange(members[:2])
    await members[2].submit(RECLAIM.encoded)
    said += await exchange(members[2:])
    await tell(members, said)
    assert get_phases(members) == {HoldPhase.OPEN}
    return members


async def tell(members, said):
    for member in members:
        await member.ingest(said, "peer")
    await exchange(members)


@pytest.mark.parametrize(
    ("place", "seconds", "phase"),
    [
        (PAYEE_TURN, PAYEES_TURN_SECONDS, HoldPhase.SETTLED),
        (PAYER_TURN, PAYERS_TURN_SECONDS, HoldPhase.RECLAIMED),
    ],
)
async def test_either_frees_the_slot_once_its_turn_has_begun(contested, clocks, place, seconds, phase):
    kept: list[Any] = []
    slot, link, record = make_slot(place, kept=kept), Link(contested), OWN[place]
    pass_time(contested, clocks, seconds - 1)
    assert await take_turn(slot, link, record) is None
    assert get_phases(contested) == {HoldPhase.OPEN}
    assert kept == []
    pass_time(contested, clocks, 1)
    receipt = await take_turn(slot, link, record)
    assert verify_receipt({0: FEDERATION.charter}, receipt).record == record
    assert get_phases(contested) == {phase}
    assert [proposed for proposed, _ in kept] == [record]
    assert await take_turn(slot, link, record) is None  # it is decided


async def test_a_turn_that_was_overtaken_is_followed_by_the_next(contested, clocks):
    payee, payer, link = make_slot(PAYEE_TURN), make_slot(PAYER_TURN), Link(contested)
    pass_time(contested, clocks, PAYERS_TURN_SECONDS)
    asked = await trio.to_thread.run_sync(payer._ask, link, RECLAIM, 0)  # and is never heard of again
    assert asked.has_quorum
    assert await take_turn(payee, link, SETTLE) is None
    pass_time(contested, clocks, 10 * PAYERS_TURN_SECONDS)
    assert await take_turn(payee, link, SETTLE) is not None
    assert get_phases(contested) == {HoldPhase.SETTLED}


@pytest.mark.parametrize(
    ("place", "attempted", "attempt"),
    [(PAYEE_TURN, 0, 1), (PAYEE_TURN, 1, 3), (PAYER_TURN, 0, 2), (PAYER_TURN, 2, 4), (PAYER_TURN, 3, 4)],
)
def test_no_attempt_is_used_twice_after_a_restart(place, attempted, attempt):
    assert make_slot(place, attempted).attempt == attempt


def promise(record=None):
    name = encode_address(Kind.RECORD, record.id) if record else None
    return api.SlotPromise(b"b" * 32, 1, name, 0, 0)


@pytest.mark.parametrize(
    ("reported", "handed_over", "chosen"),
    [(SETTLE, [SETTLE], SETTLE), (SETTLE, [], None), (RECLAIM, [], RECLAIM), (None, [SETTLE], RECLAIM)],
)
def test_what_the_promises_force_is_proposed_whoever_signed_it(reported, handed_over, chosen):
    records = [record.encoded for record in handed_over]
    promises = api.Promises(0, 2, False, True, [promise(), promise(reported)], records)
    assert make_slot(PAYER_TURN)._choose(RECLAIM, promises) == chosen


async def test_a_record_that_is_refused_uses_up_its_attempt(contested, clocks):
    pass_time(contested, clocks, PAYEES_TURN_SECONDS)
    slot = make_slot(PAYEE_TURN)
    with pytest.raises(Rejected) as caught:
        await take_turn(slot, Link(contested), FEDERATION.settle(DONOR, HOLD, 100, epoch=2))
    assert caught.value.reason is Reason.EPOCH_WRONG
    assert slot.attempt == 3
