"""Who may say on the ledger that the other side of a job broke its rules, when, how often, and that it stands for ever.

Each case differs in one thing from a dispute that is voted for.
"""

from __future__ import annotations

from typing import Any

import pytest

from protocol.disputes import PAYEE_REASONS, PAYER_REASONS, DisputeReason
from protocol.errors import Reason, Rejected
from protocol.ledger import Ledger
from protocol.limits import DISPUTE_SECONDS_MAX
from protocol.records import Draw, Record
from protocol.rules import Circumstances, check_record
from protocol.snapshot import group_facts, restore_ledger
from tests.strategies import make_economy, make_federation, make_id, rekey

FEDERATION = make_federation()
ECONOMY = make_economy(FEDERATION)
ALICE, BOB = ECONOMY.people
DONOR, SPONSOR = ECONOMY.donor, ECONOMY.sponsor
HELD = FEDERATION.hold(ALICE, DONOR, SPONSOR, [Draw(*ECONOMY.lot, 100)])
AFTER: dict[str, Any] = {"sequence": 1, "prev": HELD.id}
BY_PAYER = FEDERATION.dispute(ALICE, HELD, DisputeReason.WORK_LOST, **AFTER)
BY_PAYEE = FEDERATION.dispute(DONOR, HELD, DisputeReason.JOB_ABUSIVE)
SETTLE = FEDERATION.settle(DONOR, HELD, 60)
EPOCHS = -(-DISPUTE_SECONDS_MAX // FEDERATION.charter.fields.epoch_seconds)


def make_ledger(*records: Record) -> Ledger:
    ledger = Ledger(FEDERATION.charter)
    for record in (*ECONOMY.records, HELD, *records):
        ledger.offer(record)
    assert ledger.count_waiting() == 0
    return ledger


def judge(record: Record, *before: Record, epoch: int = 1) -> Reason | None:
    """The reason why the record gets no vote after the economy's records, the hold and those `before`."""
    try:
        check_record(record, make_ledger(*before), Circumstances(range(epoch, epoch + 1)))
    except Rejected as rejection:
        return rejection.reason
    return None


def test_either_side_disputes_an_open_or_an_ended_hold():
    request = FEDERATION.reclaim_request(ALICE, HELD, **AFTER)
    reclaim = FEDERATION.reclaim(ALICE, HELD, request)
    for dispute in (BY_PAYER, BY_PAYEE):
        assert judge(dispute) is None
        assert judge(dispute, SETTLE) is None
    assert judge(BY_PAYEE, request, reclaim) is None


def test_nobody_else_disputes_it():
    assert judge(FEDERATION.dispute(BOB, HELD)) is Reason.TERMS_WRONG
    foreign = FEDERATION.sign(BY_PAYER.kind, BY_PAYER.scope, BY_PAYER.body, [BOB], **AFTER)  # type: ignore[arg-type]
    assert judge(foreign) is Reason.WRITER_WRONG


def test_a_hold_that_nobody_knows_is_waited_for():
    unknown = FEDERATION.hold(BOB, DONOR, SPONSOR, [Draw(*ECONOMY.lot, 1)])
    dispute = FEDERATION.dispute(DONOR, unknown, DisputeReason.JOB_ABUSIVE)
    assert judge(dispute) is Reason.REFERENCE_MISSING
    assert judge(dispute, unknown) is None


@pytest.mark.parametrize("reason", DisputeReason, ids=lambda reason: reason.name)
def test_each_reason_is_one_of_one_side(reason):
    by_payer = judge(FEDERATION.dispute(ALICE, HELD, reason, **AFTER))
    by_payee = judge(FEDERATION.dispute(DONOR, HELD, reason))
    assert (by_payer is None) == (reason in PAYER_REASONS)
    assert (by_payee is None) == (reason in PAYEE_REASONS)
    assert {by_payer, by_payee} == {None, Reason.TERMS_WRONG}


def test_who_pays_itself_has_the_reasons_of_both_sides():
    sponsor = FEDERATION.sponsor(2, ALICE, sequence=1, prev=SPONSOR.id)
    own = FEDERATION.hold(ALICE, ALICE, sponsor, [Draw(*ECONOMY.lot, 1)], sequence=1, prev=HELD.id)
    for reason in DisputeReason:
        assert judge(FEDERATION.dispute(ALICE, own, reason, sequence=2, prev=own.id), sponsor, own) is None


def test_a_side_disputes_a_hold_once_and_each_side_may():
    again = FEDERATION.dispute(ALICE, HELD, DisputeReason.RESULTS_WRONG, sequence=2, prev=BY_PAYER.id)
    assert judge(again, BY_PAYER) is Reason.TERMS_WRONG
    assert judge(BY_PAYEE, BY_PAYER) is None
    other = FEDERATION.hold(ALICE, DONOR, SPONSOR, [Draw(*ECONOMY.lot, 1)], sequence=2, prev=BY_PAYER.id)
    of_other = FEDERATION.dispute(ALICE, other, sequence=3, prev=other.id)
    assert judge(of_other, BY_PAYER, other) is None


def test_an_ended_hold_is_disputed_for_ninety_days():
    """An epoch of this charter is an hour."""
    last = 1 + EPOCHS
    assert judge(FEDERATION.dispute(ALICE, HELD, epoch=last, **AFTER), SETTLE, epoch=last) is None
    late = FEDERATION.dispute(ALICE, HELD, epoch=last + 1, **AFTER)
    assert judge(late, SETTLE, epoch=last + 1) is Reason.TERMS_WRONG
    assert judge(late, epoch=last + 1) is None, "an open hold has no such end"


def test_an_end_that_becomes_final_meanwhile_never_stops_a_dispute_on_its_way():
    """Epochs that are open at one moment lie next to each other, and the time to dispute is longer than that."""
    assert EPOCHS >= 1
    ended_before = FEDERATION.settle(DONOR, HELD, 60, epoch=1)
    assert judge(FEDERATION.dispute(ALICE, HELD, epoch=2, **AFTER), ended_before, epoch=2) is None


def test_a_suspended_account_still_disputes():
    stop_payer = FEDERATION.suspend(1, ALICE, sequence=1, prev=ECONOMY.program.id)
    stop_payee = FEDERATION.suspend(2, DONOR, sequence=1, prev=SPONSOR.id)
    for dispute in (BY_PAYER, BY_PAYEE):
        assert judge(dispute, stop_payer, stop_payee) is None


def test_after_a_rotation_the_new_key_disputes():
    rotate = FEDERATION.rotate(ALICE, rekey(ALICE, "next alice"), **AFTER)
    place: dict[str, Any] = {"sequence": 2, "prev": rotate.id}
    assert judge(FEDERATION.dispute(rekey(ALICE, "next alice"), HELD, **place), rotate) is None
    assert judge(FEDERATION.dispute(ALICE, HELD, **place), rotate) is Reason.WRITER_WRONG


def test_a_dispute_moves_nothing_and_is_a_fact_of_the_state():
    before, after = make_ledger(SETTLE), make_ledger(SETTLE, BY_PAYER, BY_PAYEE)
    assert (after.balances, after.issued, after.escrowed) == (before.balances, before.issued, before.escrowed)
    after.check_conservation()
    assert {(state.account, state.reason) for state in after.disputes[HELD.id].values()} == {
        (ALICE.account, DisputeReason.WORK_LOST),
        (DONOR.account, DisputeReason.JOB_ABUSIVE),
    }
    assert len(set(after.compute_facts()) - set(before.compute_facts())) == 5  # two disputes, two heads, the count
    restored = restore_ledger(FEDERATION.charter, group_facts(after.compute_facts()))
    assert restored.disputes == after.disputes
    assert judge(FEDERATION.dispute(ALICE, HELD, sequence=2, prev=BY_PAYER.id), BY_PAYER) is Reason.TERMS_WRONG


def test_in_a_frozen_account_every_final_dispute_stands_in_whatever_order_they_came():
    rival = FEDERATION.dispute(ALICE, HELD, DisputeReason.RESULTS_WRONG, make_id("other evidence"), **AFTER)
    states = []
    for first, second in ((BY_PAYER, rival), (rival, BY_PAYER)):
        ledger = make_ledger(first)
        ledger.offer_rival(second)
        states.append(sorted(ledger.compute_facts()))
        assert ledger.disputes[HELD.id].keys() == {BY_PAYER.id, rival.id}
    assert states[0] == states[1]
