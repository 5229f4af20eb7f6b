"""What a correct member refuses of people who move, holds taken back, suspensions, new keys and new charters.

Each case differs in one thing from a record that is voted for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from protocol.credits import AMOUNT_MAX
from protocol.errors import Reason, Rejected
from protocol.ledger import Ledger
from protocol.records import Amend, Draw, Kind, Record, Rotate, account_scope, charter_scope, hold_scope, person_scope
from protocol.rules import Circumstances, check_record, find_turn
from tests.strategies import get_public_key, make_economy, make_federation, make_id, make_key, rekey

FEDERATION = make_federation()
ECONOMY = make_economy(FEDERATION)
ALICE, BOB = ECONOMY.people
DONOR, PROGRAM, SPONSOR = ECONOMY.donor, ECONOMY.program, ECONOMY.sponsor
ENROL_ALICE = ECONOMY.enrolments[0]
HELD = FEDERATION.hold(ALICE, DONOR, SPONSOR, [Draw(*ECONOMY.lot, 100)])
REQUEST = FEDERATION.reclaim_request(ALICE, HELD, sequence=1, prev=HELD.id)
RECLAIM = FEDERATION.reclaim(ALICE, HELD, REQUEST)
AFTER_HELD: dict[str, Any] = {"sequence": 1, "prev": HELD.id}
OWN: dict[str, Any] = {"sequence": 1, "prev": PROGRAM.id}
"""The place of member 1's next record."""


def judge(
    record: Record,
    *before: Record,
    epochs: range = range(1, 2),
    ripe: Iterable[bytes] = (),
    is_approved: bool = True,
) -> Reason | None:
    """The reason why the record gets no vote after the economy's records, the hold and those `before`."""
    ledger = make_ledger(*before)
    approved = {record.id} if is_approved else set()
    try:
        check_record(record, ledger, Circumstances(epochs, 0, frozenset(ripe), approved))
    except Rejected as rejection:
        return rejection.reason
    return None


def make_ledger(*records: Record) -> Ledger:
    ledger = Ledger(FEDERATION.charter)
    for record in (*ECONOMY.records, HELD, *records):
        ledger.offer(record)
    assert ledger.count_waiting() == 0
    return ledger


# -- leaving and moving -----------------------------------------------------------------------------------------------

LEAVE = FEDERATION.leave(1, ALICE, ENROL_ALICE)
AFTER_ENROL: dict[str, Any] = {"sequence": 1, "prev": ENROL_ALICE.id}
TAG = ENROL_ALICE.account


def test_a_person_leaves_or_is_handed_over():
    assert judge(LEAVE) is None
    assert judge(FEDERATION.enrol(2, ALICE, TAG, **AFTER_ENROL)) is None
    assert judge(FEDERATION.enrol(1, ALICE, TAG, sequence=2, prev=LEAVE.id), LEAVE) is None


def test_only_the_enrolment_that_runs_is_ended():
    assert judge(FEDERATION.leave(2, ALICE, ENROL_ALICE)) is Reason.TERMS_WRONG
    assert judge(FEDERATION.leave(1, BOB, ENROL_ALICE)) is Reason.TERMS_WRONG
    assert judge(FEDERATION.leave(1, ALICE, LEAVE), LEAVE) is Reason.TERMS_WRONG


def test_a_tag_is_handed_over_by_its_person_alone_and_to_another_member():
    assert judge(FEDERATION.enrol(2, BOB, TAG, **AFTER_ENROL)) is Reason.TERMS_WRONG
    assert judge(FEDERATION.enrol(1, ALICE, TAG, **AFTER_ENROL)) is Reason.TERMS_WRONG


def test_neither_has_a_grace_period():
    for record in (LEAVE, FEDERATION.enrol(2, ALICE, TAG, **AFTER_ENROL)):
        assert judge(record, epochs=range(1, 3)) is Reason.EPOCH_WRONG
    assert judge(FEDERATION.enrol(2, ALICE, make_id("new tag")), epochs=range(1, 3)) is None


def test_an_enrolment_counts_to_the_end_of_the_epoch_in_which_it_was_left():
    after: dict[str, Any] = {"sequence": 1, "prev": ECONOMY.grant.id}
    assert judge(FEDERATION.grant(PROGRAM, [(ENROL_ALICE, 1)], **after), LEAVE) is None
    later = FEDERATION.grant(PROGRAM, [(ENROL_ALICE, 1)], epoch=2)
    assert judge(later, epochs=range(2, 3)) is None
    assert judge(later, LEAVE, epochs=range(2, 3)) is Reason.TERMS_WRONG


def test_a_hand_over_counts_from_the_next_epoch_on():
    moved = FEDERATION.enrol(2, ALICE, TAG, **AFTER_ENROL)
    program = FEDERATION.program(2, sequence=1, prev=SPONSOR.id)
    assert judge(FEDERATION.grant(program, [(moved, 1)]), moved, program) is Reason.TERMS_WRONG
    assert judge(FEDERATION.grant(program, [(moved, 1)], epoch=2), moved, program, epochs=range(2, 3)) is None


# -- taking a hold back -----------------------------------------------------------------------------------------------


def test_a_payer_asks_once_for_an_open_hold_of_its_own():
    assert judge(REQUEST) is None
    assert judge(FEDERATION.reclaim_request(BOB, HELD)) is Reason.TERMS_WRONG
    assert judge(REQUEST, FEDERATION.settle(DONOR, HELD, 1)) is Reason.TERMS_WRONG
    again = FEDERATION.reclaim_request(ALICE, HELD, sequence=2, prev=REQUEST.id)
    assert judge(again, REQUEST) is Reason.TERMS_WRONG


def test_a_reclaim_waits_for_its_request_and_for_the_grace():
    assert judge(RECLAIM) is Reason.REFERENCE_MISSING
    assert judge(RECLAIM, REQUEST) is Reason.GRACE_RUNNING
    assert judge(RECLAIM, REQUEST, ripe=[REQUEST.id]) is None
    assert judge(FEDERATION.settle(DONOR, HELD, 1), REQUEST) is None
    assert judge(RECLAIM, REQUEST, FEDERATION.settle(DONOR, HELD, 1), ripe=[REQUEST.id]) is Reason.SLOT_TAKEN


def test_only_the_payer_reclaims_and_by_the_request_for_this_hold():
    assert judge(FEDERATION.reclaim(DONOR, HELD, REQUEST), REQUEST, ripe=[REQUEST.id]) is Reason.WRITER_WRONG
    other = FEDERATION.hold(ALICE, DONOR, SPONSOR, [Draw(*ECONOMY.lot, 1)], sequence=2, prev=REQUEST.id)
    wrong = FEDERATION.reclaim(ALICE, other, REQUEST)
    assert judge(wrong, REQUEST, other, ripe=[REQUEST.id]) is Reason.TERMS_WRONG


# -- suspensions ------------------------------------------------------------------------------------------------------

SUSPEND = FEDERATION.suspend(1, ALICE, **OWN)


def test_only_a_member_that_enrolled_or_sponsored_an_account_suspends_it():
    assert judge(SUSPEND) is None
    assert judge(FEDERATION.suspend(1, DONOR, **OWN)) is Reason.TERMS_WRONG
    at_second: dict[str, Any] = {"sequence": 1, "prev": SPONSOR.id}
    assert judge(FEDERATION.suspend(2, DONOR, **at_second)) is None
    assert judge(FEDERATION.suspend(2, ALICE, **at_second)) is Reason.TERMS_WRONG
    foreign = FEDERATION.sign(Kind.SUSPEND, SUSPEND.scope, SUSPEND.body, [FEDERATION.member(2)], **OWN)
    assert judge(foreign) is Reason.WRITER_WRONG


def test_a_suspension_lasts_ninety_days_at_the_most():
    """An epoch of this charter is an hour."""
    assert judge(FEDERATION.suspend(1, ALICE, 1 + 90 * 24, **OWN)) is None
    assert judge(FEDERATION.suspend(1, ALICE, 2 + 90 * 24, **OWN)) is Reason.TERMS_WRONG
    ended = FEDERATION.suspend(1, ALICE, 1, epoch=2, **OWN)
    assert judge(ended, epochs=range(2, 3)) is Reason.TERMS_WRONG


def test_a_suspended_account_neither_pays_nor_holds_nor_is_granted_anything():
    pay = FEDERATION.transfer(ALICE, [ECONOMY.output(BOB, 1)], **AFTER_HELD)
    hold = FEDERATION.hold(ALICE, DONOR, SPONSOR, [Draw(*ECONOMY.lot, 1)], **AFTER_HELD)
    grant = FEDERATION.grant(PROGRAM, [(ENROL_ALICE, 1)], sequence=1, prev=ECONOMY.grant.id)
    lifted = FEDERATION.reinstate(1, ALICE, sequence=2, prev=SUSPEND.id)
    for record in (pay, hold, grant):
        assert judge(record) is None
        assert judge(record, SUSPEND) is Reason.SUSPENDED
        assert judge(record, SUSPEND, lifted) is None
    no_donor = FEDERATION.suspend(2, DONOR, sequence=1, prev=SPONSOR.id)
    assert judge(hold, no_donor) is Reason.SUSPENDED


def test_a_suspension_ends_by_itself():
    pay = FEDERATION.transfer(ALICE, [ECONOMY.output(BOB, 1)], epoch=2, **AFTER_HELD)
    short = FEDERATION.suspend(1, ALICE, 1, **OWN)
    assert judge(pay, SUSPEND, epochs=range(2, 3)) is Reason.SUSPENDED
    assert judge(pay, short, epochs=range(2, 3)) is None


def test_what_was_promised_is_kept_under_a_suspension():
    no_donor = FEDERATION.suspend(2, DONOR, sequence=1, prev=SPONSOR.id)
    rotate = FEDERATION.rotate(ALICE, rekey(ALICE, "next"), **AFTER_HELD)
    for record in (FEDERATION.settle(DONOR, HELD, 1), LEAVE, rotate, REQUEST):
        assert judge(record, SUSPEND, no_donor) is None
    assert judge(RECLAIM, SUSPEND, REQUEST, ripe=[REQUEST.id]) is None


def test_only_a_suspension_of_its_own_is_lifted():
    assert judge(FEDERATION.reinstate(1, ALICE, **OWN)) is Reason.TERMS_WRONG
    assert judge(FEDERATION.reinstate(2, ALICE, sequence=1, prev=SPONSOR.id), SUSPEND) is Reason.TERMS_WRONG


# -- keys -------------------------------------------------------------------------------------------------------------

NEXT_ALICE, NEXT_DONOR = rekey(ALICE, "next alice"), rekey(DONOR, "next donor")
ROTATE = FEDERATION.rotate(ALICE, NEXT_ALICE, **AFTER_HELD)


def test_after_a_rotation_the_new_key_writes_and_the_old_one_no_more():
    pay: dict[str, Any] = {"outputs": [ECONOMY.output(BOB, 1)], "sequence": 2, "prev": ROTATE.id}
    assert judge(ROTATE) is None
    assert judge(FEDERATION.transfer(NEXT_ALICE, **pay), ROTATE) is None
    assert judge(FEDERATION.transfer(ALICE, **pay), ROTATE) is Reason.WRITER_WRONG
    assert judge(LEAVE, ROTATE) is Reason.WRITER_WRONG
    assert judge(FEDERATION.leave(1, NEXT_ALICE, ENROL_ALICE), ROTATE) is None


def test_both_ends_of_a_hold_are_written_by_keys_in_force():
    turned = FEDERATION.rotate(DONOR, NEXT_DONOR)
    assert judge(FEDERATION.settle(NEXT_DONOR, HELD, 1), turned) is None
    assert judge(FEDERATION.settle(DONOR, HELD, 1), turned) is Reason.WRITER_WRONG
    after = FEDERATION.rotate(ALICE, NEXT_ALICE, sequence=2, prev=REQUEST.id)
    assert judge(FEDERATION.reclaim(NEXT_ALICE, HELD, REQUEST), REQUEST, after, ripe=[REQUEST.id]) is None
    assert judge(RECLAIM, REQUEST, after, ripe=[REQUEST.id]) is Reason.WRITER_WRONG


def test_a_rotation_needs_the_key_in_force_and_the_very_key_that_it_names():
    scope, body = account_scope(ALICE.account), Rotate(NEXT_ALICE.public_key)
    for signers in ([BOB, NEXT_ALICE], [ALICE, BOB]):
        assert judge(FEDERATION.sign(Kind.ROTATE, scope, body, signers, **AFTER_HELD)) is Reason.WRITER_WRONG
    assert judge(FEDERATION.rotate(ALICE, ALICE, **AFTER_HELD)) is Reason.TERMS_WRONG


def test_only_an_account_that_somebody_knows_rotates_its_key():
    stranger = FEDERATION.person("a stranger")
    assert judge(FEDERATION.rotate(stranger, rekey(stranger, "next"))) is Reason.TERMS_WRONG
    assert judge(FEDERATION.rotate(DONOR, NEXT_DONOR)) is None  # it was sponsored and has earned nothing yet


def test_a_members_key_changes_by_amendment_alone():
    own = FEDERATION.member(1)
    assert judge(FEDERATION.rotate(own, rekey(own, "next"), **OWN)) is Reason.WRITER_WRONG
    key = make_key("the next member key")
    amendment = FEDERATION.amend(members=FEDERATION.change_member(1, member_key=get_public_key(key)))
    after = FEDERATION.amended(amendment, {1: key})
    assert judge(FEDERATION.program(1, **OWN), amendment) is Reason.WRITER_WRONG
    assert judge(after.program(1, **OWN), amendment) is None
    grant: dict[str, Any] = {"sequence": 1, "prev": ECONOMY.grant.id}
    assert judge(FEDERATION.grant(PROGRAM, [(ENROL_ALICE, 1)], **grant), amendment) is Reason.WRITER_WRONG
    assert judge(after.grant(PROGRAM, [(ENROL_ALICE, 1)], **grant), amendment) is None


# -- charters ---------------------------------------------------------------------------------------------------------

JOINED = FEDERATION.amend(members=FEDERATION.change_member(5, issuance_caps=(10,)))
GROWN = FEDERATION.amended(JOINED, {5: make_key("Testland member 5")})
LEFT = GROWN.amend(JOINED, members=FEDERATION.charter.fields.members)
SHRUNK = GROWN.amended(LEFT)


def test_an_amendment_needs_the_approval_of_people_and_a_member_key():
    assert judge(JOINED) is None
    assert judge(JOINED, is_approved=False) is Reason.NOT_APPROVED
    stranger = FEDERATION.sign(Kind.AMEND, charter_scope(FEDERATION.id), JOINED.body, [ALICE])
    assert judge(stranger) is Reason.WRITER_WRONG


def test_an_amendment_is_a_charter_that_may_follow_the_one_in_force():
    scope, own = charter_scope(FEDERATION.id), [FEDERATION.member(1)]
    assert judge(FEDERATION.sign(Kind.AMEND, scope, Amend(b"no charter"), own)) is Reason.TERMS_WRONG
    heavy = FEDERATION.change_member(1, weight=50)
    for changes in ({"version": 2}, {"prev": bytes(32)}, {"epoch_seconds": 60}, {"members": heavy}):
        assert judge(FEDERATION.amend(**changes)) is Reason.TERMS_WRONG
    lower = FEDERATION.change_member(1, issuance_caps=(1,))
    assert judge(FEDERATION.amend(members=lower)) is Reason.TERMS_WRONG


def test_the_number_of_a_member_that_left_never_comes_back():
    assert judge(LEFT, JOINED) is None
    back = SHRUNK.amend(LEFT, members=SHRUNK.change_member(5))
    assert judge(back, JOINED, LEFT) is Reason.TERMS_WRONG
    assert judge(SHRUNK.amend(LEFT, members=SHRUNK.change_member(6)), JOINED, LEFT) is None


def test_what_members_that_left_could_issue_counts_on():
    half = (AMOUNT_MAX // 2,)
    rich = FEDERATION.amend(members=FEDERATION.change_member(5, issuance_caps=half))
    after = FEDERATION.amended(rich)
    left = after.amend(rich, members=FEDERATION.charter.fields.members)
    again = after.amended(left)
    too_much = again.amend(left, members=again.change_member(6, issuance_caps=half))
    assert judge(too_much, rich, left) is Reason.TERMS_WRONG
    assert judge(again.amend(left, members=again.change_member(6, issuance_caps=(1,))), rich, left) is None


def test_a_hold_is_priced_by_the_charter_in_force_or_the_one_before():
    def make_hold(version: int) -> Record:
        draws = [Draw(*ECONOMY.lot, 1)]
        return FEDERATION.hold(ALICE, DONOR, SPONSOR, draws, charter_version=version, **AFTER_HELD)

    for amendments, verdicts in (
        ((), (None, Reason.TERMS_WRONG, Reason.TERMS_WRONG)),
        ((JOINED,), (None, None, Reason.TERMS_WRONG)),
        ((JOINED, LEFT), (Reason.TERMS_WRONG, None, None)),
    ):
        assert tuple(judge(make_hold(version), *amendments) for version in range(3)) == verdicts


# -- turns ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "turns"),
    [
        (account_scope(ALICE.account), {ALICE: (0, 1), BOB: None}),
        (account_scope(FEDERATION.member(2).account), {FEDERATION.member(2): (0, 1), ALICE: None}),
        (account_scope(FEDERATION.charter.get_issuance_account(2, 9)), {FEDERATION.member(2): (0, 1), ALICE: None}),
        (hold_scope(HELD.id), {ALICE: (0, 2), DONOR: (1, 2), BOB: None}),
        (hold_scope(make_id("unknown")), {ALICE: None}),
        (person_scope(TAG), {FEDERATION.member(1): (0, 4), FEDERATION.member(4): (3, 4), ALICE: None}),
        (charter_scope(FEDERATION.id), {FEDERATION.member(3): (2, 4), ALICE: None}),
    ],
)
def test_writers_of_a_slot_take_turns_in_a_fixed_order(scope, turns):
    ledger = make_ledger()
    for person, turn in turns.items():
        assert find_turn(ledger, scope, person.public_key) == turn


def test_turns_follow_the_keys_in_force():
    ledger = make_ledger(ROTATE, JOINED)
    assert find_turn(ledger, hold_scope(HELD.id), ALICE.public_key) is None
    assert find_turn(ledger, hold_scope(HELD.id), NEXT_ALICE.public_key) == (0, 2)
    assert find_turn(ledger, person_scope(TAG), GROWN.member(5).public_key) == (4, 5)
