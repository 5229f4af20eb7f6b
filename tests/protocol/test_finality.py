"""Quorums, and the tally that counts a whole batch at once, against counting one by one."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.charter import compute_quorum
from protocol.finality import Tally, full_mask, iterate_positions
from protocol.statements import Commit, Vote
from tests.local_members import Gathering
from tests.oracles import NaiveTally
from tests.strategies import make_federation

WEIGHTS = st.lists(st.one_of(st.integers(1, 9), st.integers(1, 1_000_000)), min_size=1, max_size=10)


@settings(max_examples=500)
@given(
    WEIGHTS,
    st.lists(st.tuples(st.integers(0, 9), st.sets(st.integers(0, 40))), max_size=25),
    st.booleans(),
)
def test_the_tally_agrees_with_counting_one_by_one(weights, statements, is_dev):
    quorum = compute_quorum(sum(weights), is_dev)
    tally, naive = Tally(), NaiveTally()
    for speaker, positions in statements:
        member = speaker % len(weights)
        mask = sum(1 << position for position in positions)
        reached = tally.add(member, weights[member], mask, quorum)
        assert set(iterate_positions(reached)) == naive.add(member, weights[member], positions, quorum)
        for position in range(41):
            assert tally.weight_at(position) == naive.weights[position]
    assert set(iterate_positions(tally.reached)) == {p for p, w in naive.weights.items() if w >= quorum}


def test_a_member_that_repeats_itself_counts_once():
    tally = Tally()
    for _ in range(5):
        assert tally.add(1, 2, 0b1, 3) == 0
    assert tally.weight_at(0) == 2


@given(WEIGHTS.filter(lambda weights: len(weights) >= 4))
def test_two_quorums_always_share_more_than_a_third_of_the_weight(weights):
    total = sum(weights)
    quorum = compute_quorum(total)
    assert 2 * quorum - total > Fraction(total, 3)
    assert quorum - 1 <= Fraction(2 * total, 3) < quorum


def test_every_two_quorums_of_small_federations_share_a_correct_member():
    for weights in [(1, 1, 1, 1), (1, 1, 1, 1, 1), (2, 2, 1, 1, 1), (3, 2, 2, 2, 1), (1,) * 7]:
        total, members = sum(weights), range(len(weights))
        quorum = compute_quorum(total)
        sets = [[m for m in members if chosen >> m & 1] for chosen in range(1 << len(weights))]
        quorums = [set(s) for s in sets if sum(weights[m] for m in s) >= quorum]
        bearable = [set(s) for s in sets if sum(weights[m] for m in s) <= total - quorum]
        for left in quorums:
            for right in quorums:
                assert all((left & right) - faulty for faulty in bearable)
        # Correct members alone are a quorum, so the faulty can't stop the others.
        assert all(set(members) - faulty in quorums for faulty in bearable)


def test_commits_of_different_attempts_never_add_up():
    federation = make_federation()
    introduction = federation.batch(1, records=[federation.program(1)])
    record_id = introduction.records[0].id
    gathering = Gathering(federation)
    gathering.receive(introduction)
    for number, attempt in ((2, 0), (3, 0), (4, 1)):
        commit = Commit(introduction.id, 0, attempt)
        gathering.receive(federation.batch(number, seen=[introduction], statements=[commit]))
    assert not gathering.replica.is_final(record_id)
    last = federation.batch(1, after=introduction, statements=[Commit(introduction.id, 0, 0)])
    gathering.receive(last)
    assert gathering.replica.is_final(record_id)


def test_votes_of_different_proposals_never_add_up():
    federation = make_federation()
    introduction = federation.batch(1, records=[federation.program(1)])
    gathering = Gathering(federation)
    admissions = gathering.receive(introduction)
    rounds = ((2, 0, b"", 0), (3, 0, b"", 0), (4, 1, introduction.id, 0), (1, 1, introduction.id, 1))
    for number, attempt, proposal, place in rounds:
        after = introduction if number == 1 else None
        seen = [] if number == 1 else [introduction]
        statements = [Vote(introduction.id, 0, attempt, proposal, place)]
        admissions += gathering.receive(federation.batch(number, after=after, seen=seen, statements=statements))
    assert not any(admission.certified for admission in admissions)


@given(st.sets(st.integers(0, 1023)))
def test_positions_and_masks_are_two_spellings_of_one_set(positions):
    mask = sum(1 << position for position in positions)
    assert list(iterate_positions(mask)) == sorted(positions)


def test_the_full_mask_holds_every_position():
    assert list(iterate_positions(full_mask(5))) == [0, 1, 2, 3, 4]
    assert full_mask(0) == 0
