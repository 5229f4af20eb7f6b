"""The fold: any order gives the same state, money is neither made nor lost, and a plain second fold agrees."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.ledger import Ledger
from protocol.records import FREE_LOT, Draw, Lot, Output, Record
from tests.oracles import NaiveFold
from tests.strategies import (
    GRANTED,
    SEEDS,
    Federation,
    make_economy,
    make_federation,
    make_id,
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
        assert ledger.compute_state_root() == in_order.compute_state_root()
        assert ledger.compute_state_leaves() == in_order.compute_state_leaves()


@settings(max_examples=300)
@given(SEEDS, st.integers(0, 30), st.integers(0, 100))
def test_a_naive_fold_agrees_whatever_is_missing(seed, count, kept_percent):
    random = Random(seed)
    records = [r for r in write_history(FEDERATION, seed, count) if random.random() * 100 <= kept_percent]
    random.shuffle(records)
    ledger = fold(records)
    NaiveFold(FEDERATION.charter, records).check_equals(ledger)
    assert ledger.applied_count + ledger.count_waiting() == len(records)


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
        roots.add(ledger.compute_state_root())
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
    assert ledger.get_balance(ALICE.account, LOT) == GRANTED - 15 - 60
    assert ledger.get_balance(BOB.account, LOT) == GRANTED + 15
    assert ledger.get_balance(ECONOMY.donor.account, FREE_LOT) == 60 - 20
    own = FEDERATION.charter.get_issuance_account(1, 1)
    assert ledger.get_balance(own, FREE_LOT) == 1_000_000 - 2 * GRANTED + 20
    # Member 2 sponsors; half of the 60 that came from member 1's program backs its next cap.
    assert ledger.get_balance(FEDERATION.charter.get_issuance_account(2, 2), FREE_LOT) == 1_000_000 + 30
    assert ledger.issued == 12_000_000 + 30
    assert ledger.escrowed == 0


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
    assert ledger.backing == {(2, 2): 400}


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
    roots = {fold(list(ECONOMY.records[:count])).compute_state_root() for count in range(6)}
    transfers = [FEDERATION.transfer(ALICE, [ECONOMY.output(BOB, amount)]) for amount in (1, 2)]
    roots |= {fold([*ECONOMY.records, transfer]).compute_state_root() for transfer in transfers}
    waiting = FEDERATION.transfer(ALICE, [ECONOMY.output(BOB, 1)], sequence=5, prev=make_id("later"))
    roots.add(fold([*ECONOMY.records, waiting]).compute_state_root())
    assert len(roots) == 9


def test_work_washed_round_and_round_can_still_be_counted():
    """The settled sum has no bound, so the ledger keeps no more of it than the ceiling lets through."""
    federation = Federation(name="Washing", backing_ceiling=1)
    economy = make_economy(federation)
    ledger = Ledger(federation.charter)
    for record in economy.records:
        ledger.offer(record)
    for _ in range(3):
        ledger._apply_backing(2, 2, 2**63, [])
    assert ledger.backing == {(2, 2): 1}
    ledger.compute_state_root()


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
