"""Proofs of wrongdoing: each kind convicts exactly the guilty, and what is forged or altered convicts nobody."""

from __future__ import annotations

from itertools import combinations, product
from random import Random
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings

from protocol.attempts import Round
from protocol.batches import Batch
from protocol.codec import encode
from protocol.equivocation import EvidenceKind
from protocol.errors import InvalidInput
from protocol.evidence import (
    EVIDENCE_BYTES_MAX,
    ShownStatement,
    build_hidden_commit,
    build_two_finals,
    build_two_records,
    build_two_statements,
    show_statement,
    show_unlock,
    verify_evidence,
)
from protocol.receipts import ProvableBatch
from protocol.records import decode_record
from protocol.statements import Commit, Statement, Vote, VoteBatch
from tests.local_members import Gathering, build_gathered_receipt
from tests.protocol.test_contest import gather_contest, make_contested_records
from tests.strategies import SEEDS, make_economy, make_federation
from tests.wrongdoing import (
    GUILTY,
    gather_prefix,
    make_disaster,
    make_evidence,
    make_rivals,
    make_unlock,
    promise,
    say,
    speak_of,
)

FEDERATION = make_federation()
CHARTERS = {0: FEDERATION.charter}
PAYER = make_economy(FEDERATION).people[0]
LEFT, RIGHT = make_rivals(FEDERATION)
SLOT = (LEFT.scope, LEFT.sequence)
PROOFS = make_evidence()
FIRST = Round(0, 0)
KINDS = list(EvidenceKind)


def check_refused(encoded: bytes) -> None:
    with pytest.raises(InvalidInput):
        verify_evidence(CHARTERS, encoded)


@pytest.mark.parametrize(
    ("kind", "members", "keys", "rounds"),
    [
        (EvidenceKind.VOTES, {(3,), (4,)}, (), (FIRST,)),
        (EvidenceKind.COMMITS, {(3,), (4,)}, (), (FIRST,)),
        (EvidenceKind.HIDDEN_COMMIT, {(3,)}, (), (FIRST, Round(0, 1))),
        (EvidenceKind.FINALS, {GUILTY}, (), (FIRST,)),
        (EvidenceKind.RECORDS, {()}, (PAYER.public_key,), ()),
    ],
    ids=lambda value: value.name if isinstance(value, EvidenceKind) else "",
)
def test_each_kind_convicts_exactly_the_guilty(kind, members, keys, rounds):
    verdict = verify_evidence(CHARTERS, PROOFS[kind].encoded)
    assert verdict == PROOFS[kind].verdict
    assert verdict.members in members
    assert (verdict.kind, verdict.keys, verdict.rounds) == (kind, keys, rounds)
    assert (verdict.scope, verdict.sequence) == SLOT


def test_two_finals_of_one_round_convict_members_of_weight_2q_minus_w():
    charter = FEDERATION.charter
    verdict = PROOFS[EvidenceKind.FINALS].verdict
    assert sum(charter.weights[member] for member in verdict.members) >= 2 * charter.quorum - charter.total_weight


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_changed_bit_convicts_nobody(kind):
    encoded = PROOFS[kind].encoded
    for place in range(len(encoded)):
        changed = bytearray(encoded)
        changed[place] ^= 1 << place % 8
        check_refused(bytes(changed))


def list_leaves(tree: Any, path: tuple[int, ...] = ()) -> list[tuple[tuple[int, ...], Any]]:
    if not isinstance(tree, tuple):
        return [(path, tree)]
    return [leaf for number, part in enumerate(tree) for leaf in list_leaves(part, (*path, number))]


def replace_leaf(tree: Any, path: tuple[int, ...], leaf: Any) -> Any:
    if not path:
        return leaf
    number, *rest = path
    return (*tree[:number], replace_leaf(tree[number], tuple(rest), leaf), *tree[number + 1 :])


@settings(max_examples=300)
@given(SEEDS)
def test_parts_of_several_proofs_put_together_convict_nobody_else(seed):
    """Real headers, signatures, statements and paths, each where another one belongs."""
    random = Random(seed)
    trees = [msgpack.unpackb(evidence.encoded, use_list=False) for evidence in PROOFS.values()]
    tree = random.choice(trees)
    spare = [leaf for other in trees for _, leaf in list_leaves(other)]
    for _ in range(random.randint(1, 3)):
        path, old = random.choice(list_leaves(tree)[1:])
        alike = [leaf for leaf in spare if type(leaf) is type(old)]
        tree = replace_leaf(tree, path, random.choice(alike))
    try:
        verdict = verify_evidence(CHARTERS, encode(tree))
    except InvalidInput:
        return
    assert set(verdict.members) <= set(GUILTY)
    assert set(verdict.keys) <= {PAYER.public_key}


@settings(max_examples=200)
@given(SEEDS)
def test_arbitrary_bytes_and_cut_proofs_convict_nobody(seed):
    random = Random(seed)
    encoded = random.choice(list(PROOFS.values())).encoded
    start = random.randrange(len(encoded))
    check_refused(encoded[:start])
    check_refused(encoded[:start] + random.randbytes(random.randint(1, 40)) + encoded[start:])
    check_refused(random.randbytes(random.randint(0, 200)))


def test_a_proof_has_one_order_and_one_size():
    for kind in KINDS:
        raw = msgpack.unpackb(PROOFS[kind].encoded, use_list=False)
        if kind not in (EvidenceKind.FORK, EvidenceKind.HIDDEN_COMMIT):
            check_refused(encode((*raw[:2], raw[3], raw[2])))
            check_refused(encode((*raw[:2], raw[2], raw[2])))
        check_refused(encode((2, *raw[1:])))
        check_refused(encode((*raw, b"")))
    check_refused(bytes(EVIDENCE_BYTES_MAX + 1))


def test_a_proof_is_for_one_federation():
    elsewhere = {0: make_federation((1, 1, 1, 1), "Elsewhere").charter}
    for evidence in PROOFS.values():
        with pytest.raises(InvalidInput):
            verify_evidence(elsewhere, evidence.encoded)


def test_a_proof_needs_the_charter_of_its_version():
    for evidence in PROOFS.values():
        with pytest.raises(InvalidInput, match="version 0"):
            verify_evidence({}, evidence.encoded)


# -- what no proof can be made of -------------------------------------------------------------------------------------


class Slots:
    """Two rivals and an innocent payment, each in a batch of its own, and what member 3 says of them."""

    def __init__(self) -> None:
        self.gathering = gather_prefix(FEDERATION)
        payer = make_economy(FEDERATION).people[1]
        output = make_economy(FEDERATION).output(PAYER, 5)
        self.left = say(self.gathering, 1, record=LEFT)
        self.right = say(self.gathering, 2, record=RIGHT)
        self.other = say(self.gathering, 1, record=FEDERATION.transfer(payer, [output]))

    def show(self, about: Batch, spoken: Batch, said_at: int = 0) -> ShownStatement:
        return show_statement(ProvableBatch(about), 0, ProvableBatch(spoken), said_at)


def test_votes_in_two_rounds_for_two_slots_or_of_two_members_convict_nobody():
    slots = Slots()
    votes = [
        Vote(slots.left.id, 0, 0, b"", 0),
        Vote(slots.right.id, 0, 1, slots.left.id, 0),
        Vote(slots.other.id, 0, 0, b"", 0),
    ]
    spoken = say(slots.gathering, 3, *votes, Commit(slots.right.id, 0, 0))
    of_another = say(slots.gathering, 4, Vote(slots.right.id, 0, 0, b"", 0))
    left = slots.show(slots.left, spoken, 0)
    for shown in (
        slots.show(slots.left, spoken, 0),
        slots.show(slots.right, spoken, 1),
        slots.show(slots.other, spoken, 2),
        slots.show(slots.right, spoken, 3),
        slots.show(slots.right, of_another, 0),
        slots.show(slots.right, spoken, 0),
    ):
        for kind, pair in product((EvidenceKind.VOTES, EvidenceKind.COMMITS), ((left, shown), (shown, left))):
            check_refused(build_two_statements(kind, *pair))


def test_votes_of_one_attempt_contradict_each_other_whatever_proposals_they_name():
    slots = Slots()
    votes = [Vote(slots.left.id, 0, 2, slots.left.id, 0), Vote(slots.right.id, 0, 2, slots.right.id, 5)]
    spoken = say(slots.gathering, 3, *votes)
    shown = [slots.show(about, spoken, number) for number, about in enumerate((slots.left, slots.right))]
    verdict = verify_evidence(CHARTERS, build_two_statements(EvidenceKind.VOTES, shown[0], shown[1]))
    assert (verdict.members, verdict.rounds) == ((3,), (Round(0, 2),))


def test_one_statement_for_a_whole_batch_can_contradict_itself():
    gathering = gather_prefix(FEDERATION)
    log = gathering.replica.get_log((2, 0))
    after = gathering.batches[log[len(log) - 1][0]]
    both = FEDERATION.batch(2, after=after, records=[LEFT, RIGHT], statements=[VoteBatch(b"", 2)])
    spoken = FEDERATION.batch(4, seen=[both], statements=[VoteBatch(both.id, 0)])
    for speaker, is_guilty in ((both, False), (spoken, True)):
        shown = [show_statement(ProvableBatch(both), number, ProvableBatch(speaker), 0) for number in (0, 1)]
        proof = build_two_statements(EvidenceKind.VOTES, shown[0], shown[1])
        if is_guilty:
            assert verify_evidence(CHARTERS, proof).members == (4,)
        else:
            check_refused(proof)


def test_a_single_vote_speaks_of_one_position_alone():
    gathering = gather_prefix(FEDERATION)
    log = gathering.replica.get_log((2, 0))
    after = gathering.batches[log[len(log) - 1][0]]
    both = FEDERATION.batch(2, after=after, records=[LEFT, RIGHT], statements=[Vote(b"", 0, 0, b"", 0)])
    shown = [show_statement(ProvableBatch(both), number, ProvableBatch(both), 0) for number in (0, 1)]
    check_refused(build_two_statements(EvidenceKind.VOTES, shown[0], shown[1]))


def hide(slots: Slots, commit: Batch, said_at: int, hiding: Batch, promised_at: int, request: Batch, at: int) -> bytes:
    shown = slots.show(slots.left, commit, said_at)
    return build_hidden_commit(
        shown, ProvableBatch(hiding).prove_statement(promised_at), show_unlock(ProvableBatch(request), at)
    )


def test_a_promise_that_reports_the_commit_or_one_of_its_round_hides_nothing():
    slots = Slots()
    request = say(slots.gathering, 1, make_unlock(FEDERATION, LEFT))
    said = say(
        slots.gathering, 3, *(promise(request, 0, record.id) for record in (LEFT, RIGHT)), Commit(slots.left.id, 0, 0)
    )
    for promised_at in (0, 1):
        check_refused(hide(slots, said, 2, said, promised_at, request, 0))


@pytest.mark.parametrize("is_promise_first", [True, False])
def test_a_promise_that_hides_a_commit_convicts_in_either_order(is_promise_first):
    slots = Slots()
    request = say(slots.gathering, 1, make_unlock(FEDERATION, LEFT))
    statements: list[Statement] = [Commit(slots.left.id, 0, 0), promise(request, 0)]
    said = say(slots.gathering, 3, *(statements[::-1] if is_promise_first else statements))
    proof = hide(slots, said, int(is_promise_first), said, int(not is_promise_first), request, 0)
    verdict = verify_evidence(CHARTERS, proof)
    assert (verdict.members, verdict.rounds) == ((3,), (FIRST, Round(0, 1)))


def test_a_commit_in_the_promised_round_or_of_another_slot_or_member_is_not_hidden():
    slots = Slots()
    request = say(slots.gathering, 1, make_unlock(FEDERATION, LEFT))
    elsewhere = say(slots.gathering, 1, make_unlock(FEDERATION, slots.other.records[0]))
    said = say(
        slots.gathering,
        3,
        promise(request, 0),
        Commit(slots.left.id, 0, 1),
        Commit(slots.left.id, 0, 0),
        promise(elsewhere, 0),
    )
    by_another = say(slots.gathering, 4, promise(request, 0))
    check_refused(hide(slots, said, 1, said, 0, request, 0))
    check_refused(hide(slots, said, 2, said, 3, elsewhere, 0))
    check_refused(hide(slots, said, 2, said, 0, elsewhere, 0))
    check_refused(hide(slots, said, 2, by_another, 0, request, 0))
    assert verify_evidence(CHARTERS, hide(slots, said, 2, said, 0, request, 0)).members == (3,)


# -- two finals, two records ------------------------------------------------------------------------------------------


def test_two_finals_of_two_rounds_prove_it_and_name_nobody():
    """A correct member may commit to one record, see a later certificate for another and commit to that."""
    slots = Slots()
    for members, batch, attempt in (((1, 3, 4), slots.left, 0), ((2, 3, 4), slots.right, 1)):
        for member in members:
            say(slots.gathering, member, *speak_of(batch, attempt))
    receipts = [build_gathered_receipt(slots.gathering, record) for record in (LEFT, RIGHT)]
    verdict = verify_evidence(CHARTERS, build_two_finals(receipts[0], receipts[1]))
    assert (verdict.members, verdict.keys, verdict.rounds) == ((), (), (FIRST, Round(0, 1)))
    check_refused(build_two_finals(receipts[1], receipts[0]))


def test_two_spellings_of_one_record_are_one_record():
    respelled = decode_record(FEDERATION.id, LEFT.encoded[:-64] + bytes(64))
    check_refused(build_two_records(LEFT, respelled))


def test_a_record_whose_signature_does_not_hold_convicts_no_key():
    respelled = decode_record(FEDERATION.id, RIGHT.encoded[:-64] + bytes(64))
    check_refused(build_two_records(LEFT, respelled))


def test_of_two_enrolments_the_key_that_signed_both_is_convicted():
    people = [FEDERATION.person(name) for name in ("Ada", "Grace")]
    enrolments = [FEDERATION.enrol(1, person, tag=b"t" * 32) for person in people]
    verdict = verify_evidence(CHARTERS, build_two_records(*enrolments))
    assert verdict.keys == (FEDERATION.member(1).public_key,)
    by_two = [FEDERATION.enrol(number, person, tag=b"t" * 32) for number, person in zip((1, 2), people, strict=True)]
    check_refused(build_two_records(*by_two))


def test_no_two_statements_of_a_correct_member_make_a_proof():
    rivals = {record.id for record in make_contested_records(FEDERATION)}
    pair_count = sum(
        count_innocent_pairs(gather_contest(seed)[1], member, rivals) for seed in range(20) for member in (1, 2, 3)
    )
    assert pair_count > 300
    assert count_innocent_pairs(make_disaster(), 1, {LEFT.id, RIGHT.id})


def count_innocent_pairs(gathering: Gathering, member: int, rivals: set[bytes]) -> int:
    """Try each two things that the member said, whatever a batch of the rivals may have to do with them."""
    shown = []
    introducing = [batch for batch in gathering.batches.values() if rivals & {record.id for record in batch.records}]
    for speaking in (batch for batch in gathering.batches.values() if batch.header.member == member):
        for about, said_at in product(introducing, range(len(speaking.statements))):
            shown.append(show_statement(ProvableBatch(about), 0, ProvableBatch(speaking), said_at))
    pairs = list(combinations(shown, 2))
    for pair in pairs:
        for kind, order in product((EvidenceKind.VOTES, EvidenceKind.COMMITS), (pair, pair[::-1])):
            check_refused(build_two_statements(kind, *order))
    return len(pairs)
