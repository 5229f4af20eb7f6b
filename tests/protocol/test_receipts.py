"""Receipts: they prove finality offline, and no change of any of them proves anything."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given, settings

from protocol.batches import compute_batch_id, compute_record_leaf, decode_header
from protocol.charter import Charter
from protocol.codec import encode
from protocol.errors import InvalidInput
from protocol.receipts import RECEIPT_BYTES_MAX, verify_receipt
from protocol.records import decode_record
from protocol.statements import (
    Commit,
    CommitBatch,
    Vote,
    VoteBatch,
    decode_statement,
    encode_statement,
)
from tests.local_members import Cluster, Gathering, build_gathered_receipt, make_prefix
from tests.protocol.test_convergence import build_case, gather
from tests.strategies import SEEDS, Federation, make_economy, make_federation, make_records_of_every_kind

FEDERATION = make_federation()
CHARTER = FEDERATION.charter
CHARTERS = {0: CHARTER}


def make_cluster() -> Cluster:
    cluster = Cluster(FEDERATION)
    for batch in make_prefix(FEDERATION):
        cluster.hand_out(batch)
    cluster.settle_down()
    cluster.finalise(make_records_of_every_kind(FEDERATION)[5:8])
    return cluster


CLUSTER = make_cluster()
ECONOMY = make_economy(FEDERATION)
TRANSFER = make_records_of_every_kind(FEDERATION)[5]
RECEIPT = CLUSTER.members[1].receipt(TRANSFER)
RAW: tuple[Any, ...] = msgpack.unpackb(RECEIPT, use_list=False)
INTRODUCTION, COMMITS = RAW[2][0], RAW[3]


def check_refused(*, record: Any = RAW[1], introductions: Any = RAW[2], commits: Any = RAW[3]) -> None:
    with pytest.raises(InvalidInput):
        verify_receipt(CHARTERS, encode((1, record, introductions, commits)))


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_every_member_can_give_a_receipt_of_every_final_record(number):
    member = CLUSTER.members[number]
    finals = member.collect_final_records()
    assert len(finals) == 8
    for record in finals:
        verified = verify_receipt(CHARTERS, member.receipt(record))
        assert verified.record.id == record.id
        assert verified.round.attempt == 0
        assert sum(CHARTER.weights[m] for m in verified.members) >= CHARTER.quorum


def test_a_receipt_is_small():
    assert len(RECEIPT) < 2000
    assert len(COMMITS) == 3


@settings(max_examples=60)
@given(SEEDS)
def test_every_final_record_of_a_random_run_with_a_faulty_member_has_a_receipt(seed):
    case = build_case(seed)
    gathering = gather(case, case.batches)
    for record in gathering.collect_final_records():
        verified = verify_receipt({0: case.federation.charter}, build_gathered_receipt(gathering, record))
        assert verified.record.id == record.id


def test_every_changed_byte_is_refused():
    for place in range(len(RECEIPT)):
        for bit in (0, 7):
            changed = bytearray(RECEIPT)
            changed[place] ^= 1 << bit
            with pytest.raises(InvalidInput):
                verify_receipt(CHARTERS, bytes(changed))


def test_a_byte_more_or_less_is_refused():
    for changed in (RECEIPT + b"\0", RECEIPT[:-1], RECEIPT[1:], b"", bytes(RECEIPT_BYTES_MAX + 1)):
        with pytest.raises(InvalidInput):
            verify_receipt(CHARTERS, changed)


def test_a_receipt_proves_nothing_under_another_charter():
    elsewhere = make_federation((1, 1, 1, 1), "Elsewhere").charter
    with pytest.raises(InvalidInput):
        verify_receipt({0: elsewhere}, RECEIPT)
    # The same members and keys, founded again: only the 16 random bytes differ.
    again = Charter(CHARTER.fields._replace(nonce=bytes(16)))
    with pytest.raises(InvalidInput):
        verify_receipt({0: again}, RECEIPT)


def test_a_receipt_needs_a_quorum():
    for left_out in range(3):
        check_refused(commits=COMMITS[:left_out] + COMMITS[left_out + 1 :])
    check_refused(commits=COMMITS[:1] * 3)
    check_refused(commits=(COMMITS[0], COMMITS[1], COMMITS[1]))


def test_weight_counts_and_not_heads():
    federation = Federation((3, 3, 2, 2, 2), name="Weighted")
    cluster = Cluster(federation, (1, 2, 3, 4))
    record = federation.program(1)
    cluster.finalise([record])
    receipt = cluster.members[1].receipt(record)
    assert verify_receipt({0: federation.charter}, receipt).members == (1, 2, 3, 4)
    raw = msgpack.unpackb(receipt, use_list=False)
    with pytest.raises(InvalidInput, match="no quorum"):
        verify_receipt({0: federation.charter}, encode((*raw[:3], raw[3][:3])))


def test_commits_stand_in_the_order_of_their_members():
    check_refused(commits=COMMITS[::-1])
    check_refused(commits=(COMMITS[1], COMMITS[0], COMMITS[2]))


def test_another_record_is_refused():
    for other in make_records_of_every_kind(FEDERATION):
        if other.id != TRANSFER.id:
            check_refused(record=other.encoded)
    swapped = TRANSFER.encoded[:-1] + bytes([TRANSFER.encoded[-1] ^ 1])
    assert decode_record(FEDERATION.id, swapped).id == TRANSFER.id
    check_refused(record=swapped)


def test_an_introduction_that_nobody_uses_is_refused():
    check_refused(introductions=(INTRODUCTION, INTRODUCTION))
    unused = (COMMITS[0][1], (), 0, ())
    check_refused(introductions=(INTRODUCTION, unused))
    check_refused(introductions=())


def test_signatures_that_the_record_has_anyway_are_refused():
    header, _, position, path = INTRODUCTION
    check_refused(introductions=((header, TRANSFER.signatures, position, path),))


def test_every_other_position_and_path_is_refused():
    header, _, position, path = INTRODUCTION
    for other in range(8):
        if other != position:
            check_refused(introductions=((header, (), other, path),))
    check_refused(introductions=((header, (), position, (*path, bytes(32))),))
    number, header, signature, statement, position, path = COMMITS[0]
    for other in range(8):
        if other != position:
            check_refused(commits=((number, header, signature, statement, other, path), *COMMITS[1:]))
    check_refused(commits=((number, header, signature, statement, position, (*path, bytes(32))), *COMMITS[1:]))
    check_refused(commits=((number + 1, header, signature, statement, position, path), *COMMITS[1:]))


def test_a_signature_of_another_member_is_refused():
    first, second = COMMITS[:2]
    check_refused(commits=((*first[:2], second[2], *first[3:]), *COMMITS[1:]))


class HandMade:
    """A receipt whose commits are made one by one, to leave out one rule at a time."""

    def __init__(self) -> None:
        self.record = FEDERATION.program(1)
        self.rival = FEDERATION.program(1, name="Rival")
        self.introduction = FEDERATION.batch(1, records=[self.record, self.rival])

    def build(self, statements: list[Any]) -> bytes:
        """A receipt that shows these statements of members 2, 3 and 4."""
        commits = []
        for member, statement in zip((2, 3, 4), statements, strict=True):
            batch = FEDERATION.batch(member, seen=[self.introduction], statements=[statement])
            commits.append((0, batch.header_bytes, batch.signature, batch.statement_bytes[0], 0, ()))
        path = (compute_record_leaf(self.rival),)
        introductions = ((self.introduction.header_bytes, (), 0, path),)
        return encode((1, self.record.encoded, introductions, tuple(commits)))


def test_only_commits_to_this_record_in_one_round_count():
    made = HandMade()
    name = made.introduction.id
    good = Commit(name, 0, 0)
    proof = made.build([good, CommitBatch(name, 0), CommitBatch(name, 0b10)])
    assert verify_receipt(CHARTERS, proof).members == (2, 3, 4)
    assert verify_receipt(CHARTERS, made.build([Commit(name, 0, 7)] * 3)).round.attempt == 7
    wrong = [
        Commit(name, 1, 0),
        Commit(name, 0, 1),
        CommitBatch(name, 0b01),
        CommitBatch(b"", 0),
        Commit(b"", 0, 0),
        Vote(name, 0, 0, b"", 0),
        VoteBatch(name, 0),
    ]
    for statement in wrong:
        with pytest.raises(InvalidInput):
            verify_receipt(CHARTERS, made.build([good, good, statement]))


def test_the_statements_in_a_receipt_are_those_that_were_signed():
    for number, commit in enumerate(COMMITS):
        statement = decode_statement(commit[3])
        assert isinstance(statement, (Commit, CommitBatch))
        header = decode_header(commit[1])
        assert header.member == number + 1
        other = encode_statement(CommitBatch(compute_batch_id(FEDERATION.id, INTRODUCTION[0]), 1 << 9))
        changed = (*commit[:3], other, *commit[4:])
        check_refused(commits=(*COMMITS[:number], changed, *COMMITS[number + 1 :]))


def test_commits_through_two_spellings_of_one_record_make_one_receipt():
    """A faulty member shows a copy under a broken signature first to some: both kinds of commit must add up."""
    record = FEDERATION.program(1)
    broken = decode_record(FEDERATION.id, record.encoded[:-1] + bytes([record.encoded[-1] ^ 1]))
    good, spoilt = FEDERATION.batch(3, records=[record]), FEDERATION.batch(4, records=[broken])
    for order in ((good, spoilt), (spoilt, good)):
        gathering = Gathering(FEDERATION)
        for batch in order:
            gathering.receive(batch)
        for number, name in ((1, good.id), (2, spoilt.id), (3, good.id)):
            after = good if number == 3 else None
            statements = [Commit(name, 0, 0)]
            gathering.receive(FEDERATION.batch(number, after=after, seen=[spoilt], statements=statements))
        receipt = build_gathered_receipt(gathering, record)
        verified = verify_receipt(CHARTERS, receipt)
        assert (verified.record.id, verified.members) == (record.id, (1, 2, 3))
        raw = msgpack.unpackb(receipt, use_list=False)
        assert len(raw[2]) == 2
        left_out = tuple((header, (), position, path) for header, _, position, path in raw[2])
        with pytest.raises(InvalidInput):
            verify_receipt(CHARTERS, encode((1, raw[1], left_out, raw[3])))
