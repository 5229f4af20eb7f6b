"""The fold: any order gives the same state, money is neither made nor lost, and a plain second fold agrees."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.credits import AMOUNT_MAX
from protocol.identifiers import Tag
from protocol.ledger import Ledger
from protocol.merkle import compute_set_root
from protocol.records import FREE_LOT, Draw, Lot, Output, Record
from protocol.rules import Circumstances, check_record
from protocol.states import HoldPhase
from tests.oracles import NaiveFold
from tests.strategies import (
    GRANTED,
    SEEDS,
    Federation,
    make_economy,
    make_federation,
    make_id,
    make_key,
    make_public_key,
    make_records_of_every_kind,
    write_history,
)

FEDERATION = make_federation()
ECONOMY = make_economy(FEDERATION)
ALICE, BOB = ECONOMY.people
LOT = Lot(*ECONOMY.lot)


def fold(records: list[Record]) -> Ledger:
    ledger = Ledger(FEDERATION.charter)
    for record in records:
        ledger.offer(record)
        ledger.check_conservation()
    return ledger


def compute_root(ledger: Ledger) -> bytes:
    return compute_set_root(Tag.STATE_LEAF, ledger.compute_facts())


@settings(max_examples=300)
@given(SEEDS, st.integers(0, 30))
def test_any_order_and_any_repetition_gives_the_same_state(seed, count):
    records = write_history(FEDERATION, seed, count)
    in_order = fold(records)
    assert in_order.applied_count == len(records)
    random = Random(seed)
    for _ in range(3):
        shuffled = records + random.sample(records, len(records) // 2)
        random.shuffle(shuffled)
        ledger = fold(shuffled)
        assert sorted(ledger.compute_facts()) == sorted(in_order.compute_facts())


@settings(max_examples=300)
@given(SEEDS, st.integers(0, 30), st.integers(0, 100))
def test_a_naive_fold_agrees_whatever_is_missing(seed, count, kept_percent):
    random = Random(seed)
    records = [r for r in write_history(FEDERATION, seed, count) if random.random() * 100 <= kept_percent]
    random.shuffle(records)
    ledger = fold(records)
    NaiveFold(FEDERATION.charter, records).check_equals(ledger)
    assert ledger.applied_count + ledger.count_waiting() == len(records)


@settings(max_examples=100)
@given(SEEDS, st.integers(0, 40))
def test_every_record_of_a_history_is_voted_for_once_all_before_it_have_applied(seed, count):
    """So the histories are ones that correct members can make; and the rules let through what is in order."""
    ledger = Ledger(FEDERATION.charter)
    for record in write_history(FEDERATION, seed, count):
        check_record(record, ledger, Circumstances(range(1, 2), 0, _EVERYTHING, _EVERYTHING))
        assert ledger.offer(record) == [record]


class _Everything:
    def __contains__(self, _: object) -> bool:
        return True


_EVERYTHING = _Everything()


@settings(max_examples=200)
@given(SEEDS, st.integers(0, 12))
def test_no_order_of_an_overdraft_makes_a_balance_negative(seed, count):
    """Final records that no correct member would vote for: too large, and in every order."""
    random = Random(seed)
    records = list(ECONOMY.records)
    for payer, payee in ((ALICE, BOB), (BOB, ALICE)):
        prev = b""
        for sequence in range(count // 2):
            outputs = [ECONOMY.output(payee, random.randint(1, 2 * GRANTED))]
            record = FEDERATION.transfer(payer, outputs, sequence=sequence, prev=prev)
            records.append(record)
            prev = record.id
    naive = NaiveFold(FEDERATION.charter, records)
    roots = set()
    for _ in range(4):
        random.shuffle(records)
        ledger = fold(records)
        assert all(amount > 0 for lots in ledger.balances.values() for amount in lots.values())
        naive.check_equals(ledger)
        roots.add(compute_root(ledger))
    assert len(roots) == 1


@settings(max_examples=200)
@given(SEEDS)
def test_every_step_reports_what_it_applied_and_touched(seed):
    random = Random(seed)
    records = write_history(FEDERATION, seed, 15)
    random.shuffle(records)
    ledger = Ledger(FEDERATION.charter)
    applied = []
    for record in records:
        before = {scope: ledger.get_next_sequence(scope) for scope in {r.scope for r in records}}
        applied_now = ledger.offer(record)
        applied += applied_now
        for other in applied_now:
            assert ledger.get_next_sequence(other.scope) > before[other.scope]
    assert sorted(r.id for r in applied) == sorted(r.id for r in records)


def test_every_kind_applies_and_the_amounts_are_right():
    records = make_records_of_every_kind(FEDERATION)
    ledger = fold(records)
    assert ledger.applied_count == len(records)
    assert ledger.get_balance(ALICE.account, LOT) == GRANTED - 15 - 60  # and what she held for nothing is back
    assert ledger.get_balance(BOB.account, LOT) == GRANTED + 15
    assert ledger.get_balance(ECONOMY.donor.account, FREE_LOT) == 60 - 20
    own = FEDERATION.charter.get_issuance_account(1, 1)
    assert ledger.get_balance(own, FREE_LOT) == 1_000_000 - 2 * GRANTED + 20
    # Member 2 sponsors; half of the 60 that came from member 1's program backs its next cap.
    # The amendment raised member 2's cap of epoch 2 by half a million.
    assert ledger.get_balance(FEDERATION.charter.get_issuance_account(2, 2), FREE_LOT) == 1_500_000 + 30
    assert ledger.issued == 12_500_000 + 30
    assert ledger.escrowed == 0
    assert {hold.phase for hold in ledger.holds.values()} == {HoldPhase.SETTLED, HoldPhase.RECLAIMED}
    assert ledger.get_key(BOB.account) == make_public_key(f"next key of {BOB.name}")
    assert ledger.charter.version == 1
    assert not ledger.is_suspended(BOB.account, 1)
    assert [state.until_epoch for state in ledger.enrolments.values()] == [0, 1]


def test_issuance_accounts_hold_the_caps_of_the_charter():
    ledger = Ledger(FEDERATION.charter)
    for number in FEDERATION.numbers:
        for epoch in (1, 2, 3):
            account = FEDERATION.charter.get_issuance_account(number, epoch)
            assert ledger.get_balance(account, FREE_LOT) == 1_000_000
        account = FEDERATION.charter.get_issuance_account(number, 4)
        assert ledger.get_balance(account, FREE_LOT) == 0
    ledger.check_conservation()


def test_an_escrow_returns_what_is_left_to_the_lots_that_it_came_from():
    other = FEDERATION.program(1, name="Other", sequence=1, prev=ECONOMY.program.id)
    grant = FEDERATION.grant(other, [(ECONOMY.enrolments[0], 50)], sequence=1, prev=ECONOMY.grant.id)
    draws = [Draw(*ECONOMY.lot, 30), Draw(other.id, 2, 20)]
    hold = FEDERATION.hold(ALICE, ECONOMY.donor, ECONOMY.sponsor, draws)
    settle = FEDERATION.settle(ECONOMY.donor, hold, 35)
    ledger = fold([*ECONOMY.records, other, grant, hold])
    assert ledger.escrowed == 50
    assert (ledger.get_balance(ALICE.account, LOT), ledger.get_balance(ALICE.account, Lot(other.id, 2))) == (970, 30)
    ledger.offer(settle)
    assert (ledger.get_balance(ALICE.account, LOT), ledger.get_balance(ALICE.account, Lot(other.id, 2))) == (970, 45)
    assert ledger.get_balance(ECONOMY.donor.account, FREE_LOT) == 35


def test_a_settlement_of_nothing_returns_everything():
    hold = FEDERATION.hold(ALICE, ECONOMY.donor, ECONOMY.sponsor, [Draw(*ECONOMY.lot, 30)])
    ledger = fold([*ECONOMY.records, hold, FEDERATION.settle(ECONOMY.donor, hold, 0)])
    assert ledger.get_balance(ALICE.account, LOT) == GRANTED
    assert not ledger.holds[hold.id].is_open


@settings(max_examples=60)
@given(st.permutations(range(6)))
def test_backing_is_the_least_of_ceiling_and_sum_in_every_order(order):
    """Six settled jobs of 150 back 6 * 75 = 450; the ceiling is 400."""
    holds, settles, prev = [], [], b""
    for sequence in range(6):
        draws = [Draw(*ECONOMY.lot, 150)]
        hold = FEDERATION.hold(ALICE, ECONOMY.donor, ECONOMY.sponsor, draws, sequence=sequence, prev=prev)
        holds.append(hold)
        settles.append(FEDERATION.settle(ECONOMY.donor, hold, 150))
        prev = hold.id
    ledger = fold([*ECONOMY.records, *holds, *(settles[i] for i in order)])
    assert ledger.get_balance(FEDERATION.charter.get_issuance_account(2, 2), FREE_LOT) == 1_000_400
    assert ledger.backing == {(2, 2): 450}
    # A higher ceiling lets the rest through, whenever it comes.
    raised = FEDERATION.amend(members=FEDERATION.change_member(2, backing_ceiling=425))
    for records in ([raised, *settles], [*settles, raised], [*settles[:4], raised, *settles[4:]]):
        ledger = fold([*ECONOMY.records, *holds, *records])
        assert ledger.get_balance(FEDERATION.charter.get_issuance_account(2, 2), FREE_LOT) == 1_000_425


def test_work_for_the_sponsors_own_program_or_for_free_credits_backs_nothing():
    own = FEDERATION.sponsor(1, ECONOMY.donor, sequence=1, prev=ECONOMY.program.id)
    hold = FEDERATION.hold(ALICE, ECONOMY.donor, own, [Draw(*ECONOMY.lot, 100)])
    settle = FEDERATION.settle(ECONOMY.donor, hold, 100)
    again = FEDERATION.hold(ECONOMY.donor, ECONOMY.donor, ECONOMY.sponsor, [Draw(b"", 0, 100)])
    wash = FEDERATION.settle(ECONOMY.donor, again, 100)
    ledger = fold([*ECONOMY.records, own, hold, settle, again, wash])
    assert ledger.applied_count == 10
    assert ledger.backing == {}
    assert ledger.issued == 12_000_000


def test_a_hold_waits_for_the_charter_version_that_priced_it():
    """Else how much its settlement counts would depend on what came first."""
    policy = FEDERATION.charter.policy._replace(backing_permille=900)
    amendment = FEDERATION.amend(policy=policy)
    hold = FEDERATION.hold(ALICE, ECONOMY.donor, ECONOMY.sponsor, [Draw(*ECONOMY.lot, 100)], charter_version=1)
    settle = FEDERATION.settle(ECONOMY.donor, hold, 100)
    ledger = fold([*ECONOMY.records, settle, hold])
    assert ledger.count_waiting() == 2
    assert ledger.offer(amendment) == [amendment, hold, settle]
    assert ledger.backing == {(2, 2): 90}


def test_a_settlement_counts_as_the_charter_of_its_hold_says():
    hold = FEDERATION.hold(ALICE, ECONOMY.donor, ECONOMY.sponsor, [Draw(*ECONOMY.lot, 100)])
    settle = FEDERATION.settle(ECONOMY.donor, hold, 100)
    amendment = FEDERATION.amend(policy=FEDERATION.charter.policy._replace(backing_permille=900))
    for records in ([amendment, hold, settle], [hold, settle, amendment]):
        assert fold([*ECONOMY.records, *records]).backing == {(2, 2): 50}


def test_work_for_a_member_that_is_still_to_join_counts_when_it_has_joined():
    joined = FEDERATION.change_member(5, issuance_caps=(10, 20), backing_ceiling=30)
    amendment = FEDERATION.amend(members=joined)
    after = FEDERATION.amended(amendment, {5: make_key("Testland member 5")})
    sponsor = after.sponsor(5, ECONOMY.donor)
    hold = FEDERATION.hold(ALICE, ECONOMY.donor, sponsor, [Draw(*ECONOMY.lot, 100)])
    late = [sponsor, hold, FEDERATION.settle(ECONOMY.donor, hold, 100)]
    account = after.charter.get_issuance_account(5, 2)
    for records in ([amendment, *late], [*late, amendment]):
        assert fold([*ECONOMY.records, *records]).get_balance(account, FREE_LOT) == 20 + 30


def test_what_is_no_next_charter_waits_for_ever():
    for changes in ({"version": 2}, {"members": FEDERATION.charter.fields.members[:3]}, {"epoch_seconds": 1}):
        amendment = FEDERATION.amend(**changes)
        ledger = fold([*ECONOMY.records, amendment])
        assert (ledger.count_waiting(), ledger.charter) == (1, FEDERATION.charter)


def test_nothing_that_was_issued_is_ever_taken_back():
    """A removed member's account keeps its credits; lower caps, which nobody votes for, change nothing."""
    removed = FEDERATION.change_member(5, issuance_caps=(10,))
    joined = FEDERATION.amend(members=removed)
    after = FEDERATION.amended(joined)
    left = after.amend(joined, members=FEDERATION.charter.fields.members)
    lowered = FEDERATION.amended(left).amend(left, members=FEDERATION.change_member(1, issuance_caps=(1,)))
    ledger = fold([*ECONOMY.records, lowered, left, joined])
    assert ledger.charter.version == 3
    assert ledger.get_balance(after.charter.get_issuance_account(5, 1), FREE_LOT) == 10
    assert ledger.issued == 12_000_010


def test_lots_never_mix():
    wrong = Output(BOB.account, ECONOMY.program.id, 3, 10)
    ledger = fold([*ECONOMY.records, FEDERATION.transfer(ALICE, [wrong])])
    assert ledger.count_waiting() == 1
    assert ledger.get_balance(BOB.account, Lot(ECONOMY.program.id, 3)) == 0


def test_a_record_after_another_predecessor_waits_for_ever():
    first = FEDERATION.transfer(ALICE, [ECONOMY.output(BOB, 1)])
    stranger = FEDERATION.transfer(ALICE, [ECONOMY.output(BOB, 1)], sequence=1, prev=make_id("stranger"))
    ledger = fold([stranger, *ECONOMY.records, first])
    assert ledger.count_waiting() == 1
    assert ledger.get_next_sequence(first.scope) == 1


def test_a_named_record_of_another_kind_is_not_the_named_record():
    """A hold that names a program as its sponsor waits, though the program has applied."""
    hold = FEDERATION.hold(ALICE, ECONOMY.donor, ECONOMY.program, [Draw(*ECONOMY.lot, 1)])
    assert fold([*ECONOMY.records, hold]).count_waiting() == 1


def test_the_state_root_tells_apart_what_differs():
    roots = {compute_root(fold(list(ECONOMY.records[:count]))) for count in range(6)}
    transfers = [FEDERATION.transfer(ALICE, [ECONOMY.output(BOB, amount)]) for amount in (1, 2)]
    roots |= {compute_root(fold([*ECONOMY.records, transfer])) for transfer in transfers}
    waiting = FEDERATION.transfer(ALICE, [ECONOMY.output(BOB, 1)], sequence=5, prev=make_id("later"))
    roots.add(compute_root(fold([*ECONOMY.records, waiting])))
    assert len(roots) == 9


def test_work_washed_round_and_round_can_still_be_counted():
    """The settled sum has no bound, so the ledger stops counting at the largest integer."""
    federation = Federation(name="Washing", backing_ceiling=1)
    economy = make_economy(federation)
    ledger = Ledger(federation.charter)
    for record in economy.records:
        ledger.offer(record)
    for _ in range(3):
        ledger._apply_backing(2, 2, 2**63, [])
    assert ledger.backing == {(2, 2): AMOUNT_MAX}
    assert ledger.issued == 12_000_001
    assert ledger.compute_facts(), "the sum can be written down"


@pytest.mark.parametrize("amount", [1, 10**6])
def test_a_debit_beyond_the_balance_stops_the_process(amount):
    ledger = Ledger(FEDERATION.charter)
    account = make_public_key("nobody")
    ledger._credit(account, FREE_LOT, amount)
    with pytest.raises(AssertionError, match="below 0"):
        ledger._debit(account, FREE_LOT, amount + 1)


def test_the_audit_notices_money_from_nowhere():
    ledger = fold(list(ECONOMY.records))
    ledger._credit(ALICE.account, FREE_LOT, 1)
    with pytest.raises(AssertionError, match="conservation"):
        ledger.check_conservation()
