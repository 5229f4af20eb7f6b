"""Proofs of a forked log: they convict the member that signed twice, and nobody else."""

from __future__ import annotations

from itertools import combinations

import msgpack
import pytest
from hypothesis import given, settings

from protocol.codec import encode
from protocol.equivocation import EvidenceKind, ForkEvidence, build_fork_evidence
from protocol.errors import InvalidInput
from protocol.evidence import verify_evidence
from protocol.statements import VoteBatch
from tests.local_members import Gathering
from tests.protocol.test_contest import FAULTY, run_contest
from tests.protocol.test_convergence import Case as ConvergenceCase
from tests.protocol.test_convergence import Schedule, gather
from tests.strategies import SEEDS, Federation, make_federation, make_key

FEDERATION = make_federation()
CHARTERS = {0: FEDERATION.charter}
STATEMENTS = [VoteBatch(b"", 0)]
LEFT = FEDERATION.batch(3, statements=STATEMENTS, time_ms=1)
RIGHT = FEDERATION.batch(3, statements=STATEMENTS, time_ms=2)
NEXT = FEDERATION.batch(3, after=LEFT, statements=STATEMENTS)
OTHER = FEDERATION.batch(2, statements=STATEMENTS)
EVIDENCE = build_fork_evidence(LEFT, RIGHT)


def show(*parts: bytes) -> bytes:
    return encode((1, int(EvidenceKind.FORK), *parts))


def test_two_batches_for_one_place_convict_their_member():
    verdict = verify_evidence(CHARTERS, EVIDENCE.encode())
    assert (verdict.kind, verdict.members, verdict.keys) == (EvidenceKind.FORK, (3,), ())
    assert verdict.sequence == LEFT.header.index
    assert build_fork_evidence(RIGHT, LEFT) == EVIDENCE


@pytest.mark.parametrize(
    "pair",
    [(LEFT, LEFT), (LEFT, NEXT), (LEFT, OTHER), (RIGHT, NEXT)],
    ids=["one batch twice", "two indexes", "two members", "a branch and the next of the other"],
)
def test_what_is_no_fork_convicts_nobody(pair):
    first, second = sorted(pair, key=lambda batch: batch.id)
    evidence = ForkEvidence(first.header_bytes, first.signature, second.header_bytes, second.signature)
    with pytest.raises(InvalidInput):
        verify_evidence(CHARTERS, evidence.encode())


def test_a_proof_has_one_order():
    with pytest.raises(InvalidInput):
        verify_evidence(CHARTERS, show(EVIDENCE[2], EVIDENCE[3], EVIDENCE[0], EVIDENCE[1]))


def test_signatures_of_somebody_else_convict_nobody():
    for forger in ("vote 2", "member 3"):
        key = make_key(f"{FEDERATION.name} vote 2") if forger == "vote 2" else FEDERATION.member_keys[3]
        parts = list(EVIDENCE)
        parts[1] = key.sign(LEFT.id)
        parts[3] = key.sign(RIGHT.id)
        with pytest.raises(InvalidInput, match="not signed"):
            verify_evidence(CHARTERS, show(*parts))


def test_a_proof_is_for_one_federation():
    for charter in (make_federation((1, 1, 1, 1), "Elsewhere").charter, Federation((1, 1, 1, 1, 1)).charter):
        with pytest.raises(InvalidInput):
            verify_evidence({0: charter}, EVIDENCE.encode())


def test_a_replica_keeps_a_proof_of_the_first_fork_that_it_finds():
    for order in ((LEFT, RIGHT, NEXT), (NEXT, RIGHT, LEFT), (RIGHT, LEFT, NEXT)):
        gathering = Gathering(FEDERATION)
        forks = [admission.fork for batch in order for admission in gathering.receive(batch)]
        assert sum(fork is not None for fork in forks) == 1
        assert set(gathering.replica.forks) == {3}
        assert gathering.replica.forks[3] == EVIDENCE
        assert gathering.replica.get_frontier() == {(3, 0): tuple(sorted((NEXT.id, RIGHT.id)))}


@settings(max_examples=100)
@given(SEEDS)
def test_every_proof_in_a_random_run_convicts_the_faulty_member_alone(seed):
    schedule = Schedule(seed)
    schedule.run()
    charters = {0: schedule.federation.charter}
    batches = list(schedule.batches.values())
    gathering = gather(ConvergenceCase(schedule.federation, batches), batches)
    for member, evidence in gathering.replica.forks.items():
        assert member == schedule.faulty
        assert verify_evidence(charters, evidence.encode()).members == (member,)
    places: dict[tuple[int, int], list[object]] = {}
    for batch in batches:
        places.setdefault((batch.header.member, batch.header.index), []).append(batch)
    forked = {member for (member, _), found in places.items() if len(found) > 1}
    assert forked == set(gathering.replica.forks)
    for (_, _), found in places.items():
        for left, right in combinations(found, 2):
            proof = build_fork_evidence(left, right)  # type: ignore[arg-type]
            assert verify_evidence(charters, proof.encode()).members == (schedule.faulty,)


def test_a_contest_leaves_a_proof_when_the_faulty_member_forked_its_log():
    outcomes = [run_contest(seed) for seed in range(40)]
    assert {o.strategy for o in outcomes if o.forks} == {"forked"}
    assert all(o.forks <= {FAULTY} for o in outcomes)


def test_the_encoding_holds_version_kind_and_four_parts():
    assert msgpack.unpackb(EVIDENCE.encode(), use_list=False)[:2] == (1, EvidenceKind.FORK)
    assert len(msgpack.unpackb(EVIDENCE.encode(), use_list=False)) == 6
