"""When too many are faulty, two records become final in one slot: replicas still agree, nobody who was paid loses it,
and the members say nothing more that could make it worse (spec 8.8)."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import Reason, Rejected
from protocol.ledger import Ledger
from protocol.records import Amend, Draw, Kind, Lot, Output, Reclaim, Record, RecordDraft, Settle
from protocol.rules import Circumstances, check_record, find_turn
from protocol.signatures import NO_SIGNATURE
from protocol.snapshot import group_facts, restore_ledger, restore_replica
from protocol.statements import Vote, VoteBatch
from tests.local_members import Gathering, LocalMember
from tests.oracles import NaiveFold
from tests.strategies import GRANTED, SEEDS, make_economy, make_federation, make_records_of_every_kind, write_history
from tests.wrongdoing import gather_prefix, make_disaster, make_rivals, say

FEDERATION = make_federation()
ECONOMY = make_economy(FEDERATION)
PAYER, PAYEE = ECONOMY.people
LOT = Lot(*ECONOMY.lot)
HOLD = FEDERATION.hold(PAYER, ECONOMY.donor, ECONOMY.sponsor, [Draw(*LOT, 300)])
CASES = 300
covered: Counter[str] = Counter()


def write_again(record: Record, **changes: object) -> Record:
    """A record like this one, in the same slot. The fold looks at no signature."""
    draft = RecordDraft(
        Kind(record.kind), record.epoch, record.scope, record.sequence, record.prev, record.body, record.signers
    )
    return draft._replace(**changes).assemble(FEDERATION.id, [NO_SIGNATURE] * len(record.signers))  # type: ignore[arg-type]


def add_rivals(records: list[Record], random: Random) -> list[Record]:
    """The records, and rivals of some; for some of these what comes next in their scope rests on the rival."""
    written = list(records)
    ends = [record for record in records if isinstance(record.body, (Settle, Reclaim))]
    contested = [*random.sample(records, min(len(records), 3)), *ends[: random.randint(0, 1)]]
    for record in {record.id: record for record in contested}.values():
        if isinstance(record.body, Amend):
            continue  # two charters for one version are no matter of the fold
        rival = write_again(record, epoch=record.epoch + 1)
        written.append(rival)
        if random.random() < 0.5:
            after = [it for it in records if it.scope == record.scope and it.sequence == record.sequence + 1]
            written += [write_again(it, prev=rival.id) for it in after if not isinstance(it.body, Amend)]
    return written


def fold(records: list[Record]) -> Ledger:
    """As a replica does: what is final in a slot that is decided is a rival."""
    ledger = Ledger(FEDERATION.charter)
    for record in records:
        take_in = ledger.offer_rival if ledger.is_decided(*record.slot) else ledger.offer
        take_in(record)
        ledger.check_conservation()
    return ledger


@settings(max_examples=CASES)
@given(SEEDS, st.integers(0, 30))
def test_any_order_gives_the_same_state_and_a_naive_fold_agrees(seed, count):
    random = Random(seed)
    records = add_rivals(write_history(FEDERATION, seed, count), random)
    ledger = fold(records)
    NaiveFold(FEDERATION.charter, records).check_equals(ledger)
    for _ in range(3):
        again = fold(random.sample(records, len(records)))
        assert sorted(again.compute_facts()) == sorted(ledger.compute_facts())
    covered["frozen"] += bool(ledger.frozen)
    covered["overdrawn"] += any(ledger.overdrafts.values())
    covered.update({f"scopes of kind {scope[0]}": 1 for scope in ledger.frozen})


def test_the_cases_held_what_is_hard():
    kinds = ["frozen", "overdrawn", *(f"scopes of kind {kind}" for kind in (1, 2, 3))]
    assert all(covered[what] >= CASES // 20 for what in kinds), covered


@pytest.mark.parametrize("seed", range(20))
def test_facts_of_a_frozen_ledger_make_it_again(seed):
    random = Random(seed)
    records = add_rivals(make_records_of_every_kind(FEDERATION), random)
    cut = random.randint(0, len(records))
    ledger = fold(records[:cut])
    restored = restore_ledger(FEDERATION.charter, group_facts(ledger.compute_facts()))
    restored.check_conservation()
    assert sorted(restored.compute_facts()) == sorted(ledger.compute_facts())


def test_a_payment_to_the_id_of_a_hold_that_ended_twice_commutes_with_its_ends():
    first, second = (FEDERATION.settle(ECONOMY.donor, HOLD, amount) for amount in (100, 200))
    pay = FEDERATION.transfer(PAYEE, [Output(HOLD.id, *LOT, 50)])
    before = [*ECONOMY.records, HOLD]
    left, right = fold([*before, first, second, pay]), fold([*before, pay, first, second])
    assert sorted(left.compute_facts()) == sorted(right.compute_facts())


def test_a_waiting_final_below_the_head_of_a_frozen_scope_is_restored():
    pay = FEDERATION.transfer(PAYER, [ECONOMY.output(PAYEE, 1)])
    unknown = FEDERATION.sponsor(2, ECONOMY.donor, until_epoch=9, sequence=1, prev=ECONOMY.sponsor.id)
    waiting = FEDERATION.hold(PAYER, ECONOMY.donor, unknown, [Draw(*LOT, 3)])
    ledger = fold([*ECONOMY.records, pay, write_again(pay, epoch=2), waiting])
    restored = restore_ledger(FEDERATION.charter, group_facts(ledger.compute_facts()))
    assert [record.id for record in restored.list_waiting()] == [waiting.id]


# -- among members ----------------------------------------------------------------------------------------------------


def test_both_payees_keep_what_was_final_and_the_payer_pays_for_both():
    gathering = make_disaster()
    ledger = gathering.replica.ledger
    assert ledger.get_balance(PAYEE.account, LOT) == GRANTED + 10 + 20
    assert ledger.get_balance(PAYER.account, LOT) == GRANTED - 10 - 20
    assert ledger.overdrafts == {}
    ledger.check_conservation()


@pytest.mark.parametrize("seed", range(10))
def test_replicas_with_two_finals_have_the_same_state_and_go_on_from_its_facts(seed):
    disaster = make_disaster()
    other = Gathering(FEDERATION)
    other.merge(disaster, Random(seed))
    facts = disaster.replica.compute_facts()
    assert sorted(other.replica.compute_facts()) == sorted(facts)
    assert sorted(restore_replica(FEDERATION.charter, facts).compute_facts()) == sorted(facts)


def test_nobody_writes_in_a_frozen_account_or_frees_its_slots():
    ledger = make_disaster().replica.ledger
    head = ledger.heads[make_rivals(FEDERATION)[0].scope]
    pay = FEDERATION.transfer(PAYER, [ECONOMY.output(PAYEE, 1)], sequence=head.sequence + 1, prev=head.record)
    with pytest.raises(Rejected) as caught:
        check_record(pay, ledger, Circumstances(range(1, 2)))
    assert caught.value.reason is Reason.WRITER_WRONG
    assert find_turn(ledger, pay.scope, PAYER.public_key) is None
    with pytest.raises(Rejected) as caught:  # its key counts nowhere else either
        check_record(FEDERATION.leave(1, PAYER, ECONOMY.enrolments[0]), ledger, Circumstances(range(1, 2)))
    assert caught.value.reason is Reason.WRITER_WRONG
    back = FEDERATION.transfer(PAYEE, [ECONOMY.output(PAYER, 1)])
    check_record(back, ledger, Circumstances(range(1, 2)))


def fork(gathering: Gathering, member: int) -> None:
    """The member signs two batches for one place."""
    log = gathering.replica.get_log((member, 0))
    before = gathering.batches[log[len(log) - 1][0]] if log else None
    for time_ms in (1, 2):
        batch = FEDERATION.batch(member, after=before, statements=[VoteBatch(b"", 0)], time_ms=time_ms)
        assert gathering.receive(batch)


def make_member(forked: tuple[int, ...]) -> LocalMember:
    member = LocalMember(FEDERATION, 1)
    member.replay(gather_prefix(FEDERATION).batches.values())
    for number in forked:
        fork(member, number)
    return member


@pytest.mark.parametrize(("forked", "is_silent"), [((), False), ((3,), False), ((3, 4), True)])
def test_members_are_silent_when_more_contradict_themselves_than_the_quorum_tolerates(forked, is_silent):
    member = make_member(forked)
    left, _ = make_rivals(FEDERATION)
    introduced = say(member, 2, record=left)
    member.judge_all()
    assert member.voter.has_statements is not is_silent  # a vote
    member.voter.take_statements()
    for number in (3, 4):
        say(member, number, Vote(introduced.id, 0, 0, b"", 0))
    assert member.voter.has_statements is not is_silent  # a commit
    assert member.replica.is_outnumbered is is_silent


def test_even_then_members_vote_on_the_next_charter():
    member = make_member((3, 4))
    amendment = FEDERATION.amend(members=FEDERATION.change_member(2, backing_ceiling=2_000_000))
    member.circumstances = member.circumstances._replace(approved={amendment.id})
    member.voter.check_introduction(amendment, member.circumstances)
    left, _ = make_rivals(FEDERATION)
    with pytest.raises(Rejected) as caught:
        member.voter.check_introduction(left, member.circumstances)
    assert caught.value.reason is Reason.CHARTER_CHANGING


def test_what_was_decided_before_the_proofs_came_is_not_said_after_them():
    member = make_member(())
    say(member, 2, record=make_rivals(FEDERATION)[0])
    member.judge_all()
    assert member.voter.has_statements
    for number in (3, 4):
        fork(member, number)
    assert member.replica.is_outnumbered
    assert member.voter.take_statements() == []
    assert not member.voter.has_statements
