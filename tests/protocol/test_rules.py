"""What a correct member refuses: each rule alone, and every combination of broken rules by its lowest reason.

The one valid record of each kind is judged first, so each case below fails by the one thing that it changes.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from protocol.errors import WAITING_REASONS, Reason, Rejected
from protocol.ledger import Ledger
from protocol.records import Draw, Grant, Kind, Output, Record, account_scope
from protocol.rules import Circumstances, check_record, check_writer
from tests.local_members import LocalMember
from tests.strategies import make_federation, make_id, make_key

FEDERATION = make_federation()
NOW = 3
OPEN = Circumstances(range(NOW, NOW + 1))
ALICE, BOB, DONOR, STRANGER = (FEDERATION.person(name) for name in ("alice", "bob", "donor", "stranger"))
OWN, OTHER = FEDERATION.member(1), FEDERATION.member(2)

LASTING = FEDERATION.program(1, name="Lasting", expiry_epochs=3)
SHORT = FEDERATION.program(1, name="Short", expiry_epochs=1, sequence=1, prev=LASTING.id)
TIED = FEDERATION.program(1, name="Tied", expiry_epochs=3, is_transferable=0, sequence=2, prev=SHORT.id)
GPU = FEDERATION.program(1, name="Gpu", expiry_epochs=3, job_classes=("gpu",), sequence=3, prev=TIED.id)
PROGRAMS = (LASTING, SHORT, TIED, GPU)
FOREIGN = FEDERATION.program(2, name="Foreign")
VOUCHED = FEDERATION.sponsor(2, DONOR, sequence=1, prev=FOREIGN.id)
ENDED = FEDERATION.sponsor(2, DONOR, until_epoch=2, sequence=2, prev=VOUCHED.id)
OF_BOB = FEDERATION.sponsor(2, BOB, sequence=3, prev=ENDED.id)
ENROL_ALICE, ENROL_BOB = FEDERATION.enrol(1, ALICE), FEDERATION.enrol(1, BOB)
ENROL_ELSEWHERE = FEDERATION.enrol(2, STRANGER)


def _make_grants() -> list[Record]:
    grants: list[Record] = []
    for sequence, program in enumerate(PROGRAMS):
        prev = grants[-1].id if grants else b""
        grants.append(FEDERATION.grant(program, [(ENROL_ALICE, 1000)], sequence=sequence, prev=prev))
    return grants


GRANTS = _make_grants()
PAID = FEDERATION.transfer(ALICE, [Output(BOB.account, LASTING.id, 4, 100)])
HELD = FEDERATION.hold(ALICE, DONOR, VOUCHED, [Draw(LASTING.id, 4, 200)], sequence=1, prev=PAID.id)
GRANTED_NOW = FEDERATION.grant(LASTING, [(ENROL_ALICE, 20_000)], epoch=NOW)
HISTORY = (
    *PROGRAMS, FOREIGN, VOUCHED, ENDED, OF_BOB, ENROL_ALICE, ENROL_BOB, ENROL_ELSEWHERE, *GRANTS, PAID, HELD,
    GRANTED_NOW,
)  # fmt: skip


def make_ledger() -> Ledger:
    ledger = Ledger(FEDERATION.charter)
    for record in HISTORY:
        ledger.offer(record)
    assert ledger.applied_count == len(HISTORY)
    return ledger


LEDGER = make_ledger()
NEXT: dict[str, Any] = {"sequence": 2, "prev": HELD.id, "epoch": NOW}
"""The place of Alice's next record."""

AT_ISSUING: dict[str, Any] = {"sequence": 1, "prev": GRANTED_NOW.id, "epoch": NOW}
"""The place of member 1's next grant."""


def judge(record: Record, ledger: Ledger = LEDGER) -> Reason | None:
    try:
        check_record(record, ledger, OPEN)
    except Rejected as rejection:
        return rejection.reason
    return None


def make_transfer(**changes: Any) -> Record:
    outputs = changes.pop("outputs", [Output(BOB.account, LASTING.id, 4, 10)])
    return FEDERATION.transfer(changes.pop("payer", ALICE), outputs, **(NEXT | changes))


def make_hold(**changes: Any) -> Record:
    draws = changes.pop("draws", [Draw(LASTING.id, 4, 10)])
    payee, sponsor = changes.pop("payee", DONOR), changes.pop("sponsor_record", VOUCHED)
    return FEDERATION.hold(ALICE, payee, sponsor, draws, **(NEXT | changes))


def make_settle(**changes: Any) -> Record:
    amount = changes.pop("amount", 50)
    hold = changes.pop("hold", HELD)
    return FEDERATION.settle(changes.pop("payee", DONOR), hold, amount, **({"epoch": NOW} | changes))


def make_grant(**changes: Any) -> Record:
    outputs = changes.pop("outputs", [(ENROL_BOB, 10)])
    program = changes.pop("program", LASTING)
    return FEDERATION.grant(program, outputs, **(AT_ISSUING | changes))


def make_program(**changes: Any) -> Record:
    return FEDERATION.program(1, **({"sequence": 4, "prev": GPU.id, "epoch": NOW} | changes))


def make_sponsor(**changes: Any) -> Record:
    place: dict[str, Any] = {"sequence": 4, "prev": OF_BOB.id, "epoch": NOW}
    return FEDERATION.sponsor(2, DONOR, **(place | changes))


def make_enrol(**changes: Any) -> Record:
    return FEDERATION.enrol(1, STRANGER, make_id("a new tag"), **({"epoch": NOW} | changes))


VALID = {
    "transfer": make_transfer,
    "hold": make_hold,
    "settle": make_settle,
    "grant": make_grant,
    "program": make_program,
    "sponsor": make_sponsor,
    "enrol": make_enrol,
}


@pytest.mark.parametrize("make", VALID.values(), ids=VALID.keys())
def test_a_record_that_breaks_no_rule_is_voted_for(make):
    assert judge(make()) is None


@pytest.mark.parametrize("make", VALID.values(), ids=VALID.keys())
def test_only_an_open_epoch_is_voted_for(make):
    for epoch in (NOW - 1, NOW + 1):
        changes = {"issuance_epoch": NOW, "expiry_epoch": NOW + 3} if make is make_grant else {}
        assert judge(make(epoch=epoch, **changes)) is Reason.EPOCH_WRONG


PLACED = {name: make for name, make in VALID.items() if name not in ("settle", "enrol")}


@pytest.mark.parametrize("make", PLACED.values(), ids=PLACED.keys())
def test_only_the_next_slot_after_its_predecessor_is_voted_for(make):
    place = make().sequence
    assert judge(make(sequence=0, prev=b"")) is Reason.SLOT_TAKEN
    assert judge(make(prev=make_id("something else"))) is Reason.PREDECESSOR_WRONG
    assert judge(make(sequence=place + 1)) is Reason.PREDECESSOR_MISSING


def test_a_settled_hold_and_an_enrolled_person_take_no_second_record():
    ledger = make_ledger()
    ledger.offer(make_settle())
    assert judge(make_settle(amount=1), ledger) is Reason.SLOT_TAKEN
    assert judge(FEDERATION.enrol(1, ALICE, epoch=NOW)) is Reason.SLOT_TAKEN
    again = FEDERATION.enrol(1, ALICE, sequence=1, prev=ENROL_ALICE.id, epoch=NOW)
    assert judge(again) is Reason.TERMS_WRONG


ALICES = account_scope(ALICE.account)
OWNS = account_scope(OWN.account)
ISSUING = account_scope(FEDERATION.charter.get_issuance_account(1, NOW))
WRONG_WRITERS = {
    "a transfer by another person": FEDERATION.sign(Kind.TRANSFER, ALICES, make_transfer().body, [BOB], **NEXT),
    "a hold by another person": FEDERATION.sign(Kind.HOLD, ALICES, make_hold().body, [BOB], **NEXT),
    "a transfer out of an issuance account": FEDERATION.sign(
        Kind.TRANSFER, ISSUING, make_transfer().body, [OWN], **AT_ISSUING
    ),
    "a grant by another member": FEDERATION.sign(Kind.GRANT, ISSUING, make_grant().body, [OTHER], **AT_ISSUING),
    "a grant out of a person's account": FEDERATION.sign(Kind.GRANT, ALICES, make_grant().body, [ALICE], **NEXT),
    "a grant out of a member's own account": FEDERATION.sign(
        Kind.GRANT, OWNS, make_grant().body, [OWN], sequence=4, prev=GPU.id, epoch=NOW
    ),
    "a program by a person": FEDERATION.sign(Kind.PROGRAM, ALICES, make_program().body, [ALICE], **NEXT),
    "a program in another member's account": FEDERATION.sign(
        Kind.PROGRAM, OWNS, make_program().body, [OTHER], sequence=4, prev=GPU.id, epoch=NOW
    ),
    "a sponsor record by a person": FEDERATION.sign(Kind.SPONSOR, ALICES, make_sponsor().body, [ALICE], **NEXT),
    "a settlement by the payer": make_settle(payee=ALICE),
    "an enrolment by another member": FEDERATION.sign(
        Kind.ENROL, make_enrol().scope, make_enrol().body, [OTHER, STRANGER], epoch=NOW
    ),
    "an enrolment by a person": FEDERATION.sign(
        Kind.ENROL, make_enrol().scope, make_enrol().body, [ALICE, STRANGER], epoch=NOW
    ),
    "an enrolment without the person": FEDERATION.sign(
        Kind.ENROL, make_enrol().scope, make_enrol().body, [OWN, BOB], epoch=NOW
    ),
}


@pytest.mark.parametrize("record", WRONG_WRITERS.values(), ids=WRONG_WRITERS.keys())
def test_only_the_writer_of_a_slot_may_write_in_it(record):
    assert judge(record) is Reason.WRITER_WRONG
    with pytest.raises(Rejected):
        check_writer(record, LEDGER)


MISSING_REFERENCES = {
    "a grant from an unknown program": make_grant(program=make_program()),
    "a grant to an unknown enrolment": make_grant(outputs=[(ENROL_BOB, 1), (make_enrol(), 1)]),
    "a hold under an unknown sponsor record": make_hold(sponsor_record=make_sponsor()),
    "a hold that names another record as sponsor": make_hold(sponsor_record=LASTING),
    "a settlement of an unknown hold": make_settle(hold=make_hold()),
    "a gift to an unknown program": make_settle(gift_program=make_program().id, gift_amount=1),
}


@pytest.mark.parametrize("record", MISSING_REFERENCES.values(), ids=MISSING_REFERENCES.keys())
def test_what_a_record_names_must_have_applied(record):
    assert judge(record) is Reason.REFERENCE_MISSING


POLICY = FEDERATION.charter.policy
WRONG_TERMS = {
    "a grant from the account of another epoch": FEDERATION.grant(
        LASTING, [(ENROL_BOB, 1)], epoch=NOW, issuance_epoch=2, expiry_epoch=5
    ),
    "a grant from another member's program": make_grant(program=FOREIGN, member=1, expiry_epoch=NOW + 1),
    "a grant that expires later than the program says": make_grant(expiry_epoch=NOW + 4),
    "a grant that expires sooner": make_grant(expiry_epoch=NOW + 2),
    "a grant to a person of another member": make_grant(outputs=[(ENROL_ELSEWHERE, 1)]),
    "a sponsor record that has ended": make_sponsor(until_epoch=NOW - 1),
    "a hold priced under another charter": make_hold(charter_version=1),
    "a hold with too short a grace": make_hold(grace_seconds=POLICY.hold_grace_seconds_min - 1),
    "a hold with too long a grace": make_hold(grace_seconds=POLICY.hold_grace_seconds_max + 1),
    "a hold under another policy of use": make_hold(acceptable_use=make_id("anything goes")),
    "a hold whose sponsor record has ended": make_hold(sponsor_record=ENDED),
    "a hold for somebody whom nobody sponsors": make_hold(payee=STRANGER),
    "a hold under the sponsor record of another": make_hold(sponsor_record=OF_BOB),
    "a settlement of more than the hold": make_settle(amount=201),
    "a gift larger than the amount": make_settle(gift_program=LASTING.id, gift_amount=51),
    "a gift to nobody": make_settle(gift_amount=1),
    "a gift of nothing": make_settle(gift_program=LASTING.id),
    "a voucher for another amount": make_settle(voucher_sequence=8),
    "a voucher by another key": make_settle(voucher_signature=make_key("other").sign(b"anything")),
}


@pytest.mark.parametrize("record", WRONG_TERMS.values(), ids=WRONG_TERMS.keys())
def test_terms_that_break_the_charter_are_refused(record):
    assert judge(record) is Reason.TERMS_WRONG


def test_a_grant_names_the_account_that_was_enrolled():
    body = make_grant().body
    assert isinstance(body, Grant)
    wrong = body._replace(outputs=(body.outputs[0]._replace(account=STRANGER.account),))
    record = FEDERATION.sign(Kind.GRANT, ISSUING, wrong, [OWN], **AT_ISSUING)
    assert judge(record) is Reason.TERMS_WRONG


def test_expired_credits_can_neither_be_paid_nor_held():
    assert judge(make_transfer(outputs=[Output(BOB.account, SHORT.id, 2, 1)])) is Reason.LOT_EXPIRED
    assert judge(make_hold(draws=[Draw(SHORT.id, 2, 1)])) is Reason.LOT_EXPIRED


def test_credits_that_are_tied_to_their_owner_are_not_passed_on_but_can_be_redeemed():
    assert judge(make_transfer(outputs=[Output(BOB.account, TIED.id, 4, 1)])) is Reason.LOT_NOT_TRANSFERABLE
    assert judge(make_transfer(outputs=[Output(ALICE.account, TIED.id, 4, 1)])) is None, "it may close a slot"
    assert judge(make_hold(draws=[Draw(TIED.id, 4, 1)])) is None


def test_the_allowance_is_per_person_program_and_epoch():
    """The allowance is 50,000; Alice was granted 1,000 in epoch 1 and 20,000 in this one."""
    assert judge(make_grant(outputs=[(ENROL_ALICE, 30_000)])) is None
    assert judge(make_grant(outputs=[(ENROL_ALICE, 30_001)])) is Reason.ALLOWANCE_EXCEEDED
    assert judge(make_grant(outputs=[(ENROL_ALICE, 15_000), (ENROL_ALICE, 15_001)])) is Reason.ALLOWANCE_EXCEEDED
    assert judge(make_grant(program=TIED, outputs=[(ENROL_ALICE, 50_000)])) is None
    assert judge(make_grant(outputs=[(ENROL_BOB, 50_000), (ENROL_ALICE, 30_000)])) is None


def test_a_program_buys_only_its_classes_of_jobs():
    assert judge(make_hold(draws=[Draw(GPU.id, 4, 1)])) is Reason.POLICY
    assert judge(make_hold(draws=[Draw(GPU.id, 4, 1)], job_class="gpu")) is None
    assert judge(make_hold(draws=[Draw(LASTING.id, 4, 1), Draw(GPU.id, 4, 1)])) is Reason.POLICY


def test_nobody_spends_what_is_not_there():
    """Of the lasting lot Alice has 1,000 - 100 - 200 left from epoch 1."""
    assert judge(make_transfer(outputs=[Output(BOB.account, LASTING.id, 4, 700)])) is None
    assert judge(make_transfer(outputs=[Output(BOB.account, LASTING.id, 4, 701)])) is Reason.FUNDS_MISSING
    halves = [Output(BOB.account, LASTING.id, 4, 350), Output(DONOR.account, LASTING.id, 4, 351)]
    assert judge(make_transfer(outputs=halves)) is Reason.FUNDS_MISSING
    assert judge(make_hold(draws=[Draw(LASTING.id, 4, 701)])) is Reason.FUNDS_MISSING
    assert judge(make_transfer(outputs=[Output(BOB.account, b"", 0, 1)])) is Reason.FUNDS_MISSING


def test_a_member_can_t_grant_more_than_its_cap():
    rich = FEDERATION.program(1, name="Rich", allowance=2_000_000, expiry_epochs=3, sequence=4, prev=GPU.id)
    ledger = make_ledger()
    ledger.offer(rich)
    assert judge(make_grant(program=rich, outputs=[(ENROL_BOB, 980_000)]), ledger) is None
    assert judge(make_grant(program=rich, outputs=[(ENROL_BOB, 980_001)]), ledger) is Reason.FUNDS_MISSING


def test_only_waiting_reasons_can_pass_by_themselves():
    assert {
        Reason.PREDECESSOR_MISSING,
        Reason.REFERENCE_MISSING,
        Reason.NOT_APPROVED,
        Reason.GRACE_RUNNING,
        Reason.FUNDS_MISSING,
        Reason.CHARTER_CHANGING,
    } == WAITING_REASONS


# -- precedence -------------------------------------------------------------------------------------------------------

PLACES: dict[Reason | None, dict[str, Any]] = {
    None: {},
    Reason.SLOT_TAKEN: {"sequence": 0, "prev": b""},
    Reason.PREDECESSOR_WRONG: {"prev": make_id("something else")},
    Reason.PREDECESSOR_MISSING: {"sequence": 9},
}


def judge_as_member(record: Record, is_contested: bool) -> Reason | None:
    member = LocalMember(FEDERATION, 1)
    for earlier in HISTORY:
        member.replica.ledger.offer(earlier)
    if is_contested:
        member.voter.note_introduction(record._replace(id=make_id("another record")))
    try:
        member.voter.check_introduction(record, OPEN)
    except Rejected as rejection:
        return rejection.reason
    return None


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_of_all_that_is_wrong_with_a_transfer_the_lowest_reason_is_reported(place):
    names = (Reason.WRITER_WRONG, Reason.EPOCH_WRONG, Reason.SLOT_CONTESTED, Reason.LOT_EXPIRED,
             Reason.LOT_NOT_TRANSFERABLE, Reason.FUNDS_MISSING)  # fmt: skip
    for broken in product((False, True), repeat=len(names)):
        wrong = {name for name, is_broken in zip(names, broken, strict=True) if is_broken}
        outputs = [Output(BOB.account, LASTING.id, 4, 900 if Reason.FUNDS_MISSING in wrong else 1)]
        if Reason.LOT_NOT_TRANSFERABLE in wrong:
            outputs.append(Output(BOB.account, TIED.id, 4, 1))
        if Reason.LOT_EXPIRED in wrong:
            outputs.append(Output(BOB.account, SHORT.id, 2, 1))
        at = NEXT | PLACES[place] | {"epoch": NOW + 1 if Reason.EPOCH_WRONG in wrong else NOW}
        body = make_transfer(outputs=outputs).body
        writer = BOB if Reason.WRITER_WRONG in wrong else ALICE
        record = FEDERATION.sign(Kind.TRANSFER, ALICES, body, [writer], **at)
        expected = min(wrong | ({place} if place else set()), default=None)
        assert judge_as_member(record, Reason.SLOT_CONTESTED in wrong) is expected, wrong


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_of_all_that_is_wrong_with_a_hold_the_lowest_reason_is_reported(place):
    names = (Reason.WRITER_WRONG, Reason.EPOCH_WRONG, Reason.SLOT_CONTESTED, Reason.REFERENCE_MISSING,
             Reason.TERMS_WRONG, Reason.LOT_EXPIRED, Reason.POLICY, Reason.FUNDS_MISSING)  # fmt: skip
    for broken in product((False, True), repeat=len(names)):
        wrong = {name for name, is_broken in zip(names, broken, strict=True) if is_broken}
        draws = [Draw(LASTING.id, 4, 900 if Reason.FUNDS_MISSING in wrong else 1)]
        if Reason.POLICY in wrong:
            draws.append(Draw(GPU.id, 4, 1))
        if Reason.LOT_EXPIRED in wrong:
            draws.append(Draw(SHORT.id, 2, 1))
        at = NEXT | PLACES[place] | {"epoch": NOW + 1 if Reason.EPOCH_WRONG in wrong else NOW}
        use = {"acceptable_use": make_id("anything goes")} if Reason.TERMS_WRONG in wrong else {}
        sponsor = make_sponsor() if Reason.REFERENCE_MISSING in wrong else VOUCHED
        body = make_hold(draws=draws, sponsor_record=sponsor, **use).body
        writer = BOB if Reason.WRITER_WRONG in wrong else ALICE
        record = FEDERATION.sign(Kind.HOLD, ALICES, body, [writer], **at)
        expected = min(wrong | ({place} if place else set()), default=None)
        assert judge_as_member(record, Reason.SLOT_CONTESTED in wrong) is expected, wrong


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_of_all_that_is_wrong_with_a_grant_the_lowest_reason_is_reported(place):
    names = (Reason.WRITER_WRONG, Reason.EPOCH_WRONG, Reason.REFERENCE_MISSING, Reason.TERMS_WRONG,
             Reason.ALLOWANCE_EXCEEDED)  # fmt: skip
    for broken in product((False, True), repeat=len(names)):
        wrong = {name for name, is_broken in zip(names, broken, strict=True) if is_broken}
        outputs = [(ENROL_ALICE, 40_000 if Reason.ALLOWANCE_EXCEEDED in wrong else 1)]
        if Reason.REFERENCE_MISSING in wrong:
            outputs.append((make_enrol(), 1))
        expiry = NOW + 5 if Reason.TERMS_WRONG in wrong else NOW + 3
        at = AT_ISSUING | PLACES[place] | {"epoch": NOW + 1 if Reason.EPOCH_WRONG in wrong else NOW}
        body = make_grant(outputs=outputs, expiry_epoch=expiry).body
        writer = OTHER if Reason.WRITER_WRONG in wrong else OWN
        record = FEDERATION.sign(Kind.GRANT, ISSUING, body, [writer], **at)
        expected = min(wrong | ({place} if place else set()), default=None)
        assert judge_as_member(record, False) is expected, wrong


def test_of_all_that_is_wrong_with_a_settlement_the_lowest_reason_is_reported():
    names = (Reason.WRITER_WRONG, Reason.EPOCH_WRONG, Reason.SLOT_CONTESTED, Reason.REFERENCE_MISSING,
             Reason.TERMS_WRONG)  # fmt: skip
    for broken in product((False, True), repeat=len(names)):
        wrong = {name for name, is_broken in zip(names, broken, strict=True) if is_broken}
        changes: dict[str, Any] = {"epoch": NOW + 1} if Reason.EPOCH_WRONG in wrong else {}
        if Reason.REFERENCE_MISSING in wrong:
            changes |= {"gift_program": make_id("no program"), "gift_amount": 1}
        if Reason.TERMS_WRONG in wrong:
            changes["voucher_signature"] = bytes(64)
        record = make_settle(payee=BOB if Reason.WRITER_WRONG in wrong else DONOR, **changes)
        assert judge_as_member(record, Reason.SLOT_CONTESTED in wrong) is min(wrong, default=None), wrong


def test_a_settlement_of_an_unknown_hold_is_refused_for_its_epoch_first():
    assert judge(make_settle(hold=make_hold(), epoch=NOW + 1)) is Reason.EPOCH_WRONG
