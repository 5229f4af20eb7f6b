"""A hold's slot that payee and payer both claim is freed by either of them, in its turn (spec 5.8)."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from node import api
from node.addresses import Kind, encode_address
from node.hold_slots import PAYEE, PAYER, HoldSlot
from node.web.views import LedgerViews
from protocol.errors import Rejected
from protocol.receipts import verify_receipt
from protocol.statements import decode_unlock_request
from protocol.states import HoldPhase
from scripts.benchmarks.federation_in_memory import exchange
from tests.node.test_reclaim import (
    FEDERATION,
    GRACE_SECONDS,
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


def make_slot(place, kept=None):
    record, person = (RECLAIM, PERSON) if place == PAYER else (SETTLE, DONOR)
    kept = [] if kept is None else kept
    return HoldSlot(FEDERATION.id, place, record, person.key, lambda *signed: kept.append(signed))


async def take_turn(slot, link, epoch=1):
    return await trio.to_thread.run_sync(slot.take_turn, link, epoch, 0)


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
    [(PAYEE, PAYEES_TURN_SECONDS, HoldPhase.SETTLED), (PAYER, PAYERS_TURN_SECONDS, HoldPhase.RECLAIMED)],
)
async def test_either_frees_the_slot_once_its_turn_has_begun(contested, clocks, place, seconds, phase):
    slot, link = make_slot(place), Link(contested)
    pass_time(contested, clocks, seconds - 1)
    assert await take_turn(slot, link) is None
    assert get_phases(contested) == {HoldPhase.OPEN}
    pass_time(contested, clocks, 1)
    receipt = await take_turn(slot, link)
    assert verify_receipt({0: FEDERATION.charter}, receipt).record == slot.record
    assert get_phases(contested) == {phase}
    assert await take_turn(slot, link) is None  # it is decided


async def test_a_turn_that_was_overtaken_is_followed_by_the_next(contested, clocks):
    payee, payer, link = make_slot(PAYEE), make_slot(PAYER), Link(contested)
    pass_time(contested, clocks, PAYERS_TURN_SECONDS)
    asked = await trio.to_thread.run_sync(payer._ask, link, 0)  # and is never heard of again
    assert asked.has_quorum
    assert await take_turn(payee, link) is None
    pass_time(contested, clocks, 10 * PAYERS_TURN_SECONDS)
    assert await take_turn(payee, link) is not None
    assert get_phases(contested) == {HoldPhase.SETTLED}


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
    assert make_slot(PAYER)._choose(promises, 1) == chosen


async def test_a_record_whose_epoch_has_passed_is_signed_anew_and_kept_before_it_is_proposed(contested, clocks):
    kept: list[Any] = []
    slot, link = make_slot(PAYEE, kept), Link(contested)
    pass_time(contested, clocks, PAYEES_TURN_SECONDS)
    with pytest.raises(Rejected):
        await take_turn(slot, link, epoch=2)  # these members' clocks say epoch 1
    ((record, attempt),) = kept
    assert (record.epoch, record.body, attempt) == (2, SETTLE.body, 1)
    assert slot.record == record
