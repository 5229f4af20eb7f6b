"""What a replica's batches prove is found, by every replica alike, and a correct member is never accused."""

from __future__ import annotations

from random import Random

import pytest

from protocol.detection import SLOTS_SHOWN_MAX
from protocol.equivocation import EvidenceKind
from protocol.records import decode_record
from protocol.statements import Commit, Vote
from tests.local_members import Gathering
from tests.protocol.test_contest import FAULTY, gather_contest, make_contested_records
from tests.protocol.test_unlock import run_unlocking
from tests.strategies import make_economy, make_federation
from tests.wrongdoing import find, gather_prefix, make_disaster, make_rivals, say

FEDERATION = make_federation()
PAYER = make_economy(FEDERATION).people[0]
LEFT, RIGHT = make_rivals(FEDERATION)
MEMBERS_KINDS = {EvidenceKind.FORK, EvidenceKind.VOTES, EvidenceKind.COMMITS, EvidenceKind.HIDDEN_COMMIT}


def list_charges(gathering: Gathering) -> set[tuple[str, tuple[int, ...]]]:
    return {(evidence.verdict.kind.name, evidence.verdict.members) for evidence in find(gathering)}


def test_where_nothing_is_contested_nobody_is_accused():
    assert find(gather_prefix(FEDERATION)) == []


def test_everything_that_goes_wrong_in_a_slot_is_found():
    assert list_charges(make_disaster()) == {
        ("FORK", (3,)),
        ("VOTES", (3,)),
        ("VOTES", (4,)),
        ("COMMITS", (3,)),
        ("COMMITS", (4,)),
        ("HIDDEN_COMMIT", (3,)),
        ("FINALS", (3, 4)),
        ("RECORDS", ()),
    }


@pytest.mark.parametrize("seed", range(5))
def test_replicas_with_the_same_batches_convict_the_same(seed):
    disaster = make_disaster()
    other = Gathering(FEDERATION)
    other.merge(disaster, Random(seed))
    found = [find(gathering) for gathering in (disaster, other)]
    names = [[evidence.verdict.compute_name() for evidence in proofs] for proofs in found]
    assert sorted(names[0]) == sorted(names[1])
    assert len(set(names[0])) == len(names[0])


def test_a_double_vote_is_found_after_one_of_the_records_became_final():
    gathering = gather_prefix(FEDERATION)
    left, right = say(gathering, 1, record=LEFT), say(gathering, 2, record=RIGHT)
    say(gathering, 4, Vote(left.id, 0, 0, b"", 0), Vote(right.id, 0, 0, b"", 0))
    say(gathering, 3, Vote(left.id, 0, 0, b"", 0))
    for member in (1, 3, 4):
        say(gathering, member, Commit(left.id, 0, 0))
    later = FEDERATION.transfer(PAYER, [make_economy(FEDERATION).output(PAYER, 1)], sequence=1, prev=LEFT.id)
    third = say(gathering, 1, record=later)
    for member in (1, 3, 4):
        say(gathering, member, Commit(third.id, 0, 0))
    assert gathering.replica.ledger.get_next_sequence(LEFT.scope) == 2
    assert list_charges(gathering) == {("VOTES", (4,)), ("RECORDS", ())}


def test_a_vote_through_a_second_introduction_counts_for_the_same_record():
    gathering = gather_prefix(FEDERATION)
    left, right = say(gathering, 1, record=LEFT), say(gathering, 2, record=RIGHT)
    again = say(gathering, 3, record=LEFT)
    say(gathering, 4, Vote(left.id, 0, 0, b"", 0), Vote(again.id, 0, 0, b"", 0))
    assert list_charges(gathering) == {("RECORDS", ())}
    say(gathering, 3, Vote(right.id, 0, 0, b"", 0))
    assert list_charges(gathering) == {("VOTES", (3,)), ("RECORDS", ())}


def test_an_owner_is_not_accused_by_records_that_somebody_else_made_up():
    gathering = gather_prefix(FEDERATION)
    say(gathering, 1, record=LEFT)
    say(gathering, 4, record=decode_record(FEDERATION.id, RIGHT.encoded[:-64] + bytes(64)))
    assert list_charges(gathering) == set()


def test_the_list_of_accounts_that_contradicted_themselves_ends_somewhere():
    gathering = gather_prefix(FEDERATION)
    output = make_economy(FEDERATION).output(PAYER, 1)
    strangers = [FEDERATION.person(f"stranger {number}") for number in range(SLOTS_SHOWN_MAX + 5)]
    for memo in ("one", "two"):
        records = [FEDERATION.transfer(stranger, [output], memo) for stranger in strangers]
        log = gathering.replica.get_log((1, 0))
        gathering.receive(FEDERATION.batch(1, after=gathering.batches[log[len(log) - 1][0]], records=records))
    assert len(find(gathering)) == SLOTS_SHOWN_MAX


def test_contests_convict_the_faulty_member_whenever_it_spoke_twice_and_never_a_correct_one():
    payer_key = make_contested_records(FEDERATION)[0].signers[0]
    strategies = set()
    for seed in range(200):
        outcome, union = gather_contest(seed)
        verdicts = [evidence.verdict for evidence in find(union)]
        strategies.add(outcome.strategy)
        expected = {EvidenceKind.COMMITS}
        if outcome.strategy != "commits only":
            expected.add(EvidenceKind.VOTES)
        if outcome.strategy == "forked":
            expected.add(EvidenceKind.FORK)
        assert all(verdict.members == (FAULTY,) for verdict in verdicts if verdict.kind in MEMBERS_KINDS), seed
        assert {verdict.kind for verdict in verdicts} == expected | {EvidenceKind.RECORDS}, seed
        assert {key for verdict in verdicts for key in verdict.keys} == {payer_key}
    assert strategies == {"both", "forked", "commits only"}


def test_members_that_unlock_a_slot_are_never_accused_and_the_one_that_lies_is():
    found = set()
    for seed in range(60):
        _, union = run_unlocking(seed)
        charges = list_charges(union)
        assert all(members in ((), (FAULTY,)) for _, members in charges), f"seed {seed}"
        found |= charges
    assert {("VOTES", (FAULTY,)), ("COMMITS", (FAULTY,)), ("HIDDEN_COMMIT", (FAULTY,))} <= found


def test_a_quorum_of_one_half_lets_two_finals_be_found():
    """The mutant: two finals that need no member in both quorums convict none by themselves."""
    half = FEDERATION.charter.total_weight // 2
    found = 0
    for seed in range(20):
        outcome, union = gather_contest(seed, half)
        with_mutant = union.replica.charter
        quorum, with_mutant.quorum = with_mutant.quorum, half
        try:
            verdicts = [evidence.verdict for evidence in find(union)]
        finally:
            with_mutant.quorum = quorum
        finals = [verdict for verdict in verdicts if verdict.kind is EvidenceKind.FINALS]
        assert len(finals) == (outcome.final_count == 2)
        assert all(set(verdict.members) <= {FAULTY} for verdict in verdicts)
        found += len(finals)
    assert found
