"""Statements and what slot owners sign: formats that stay, each value spelled in one way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec import encode
from protocol.errors import InvalidInput
from protocol.signatures import is_valid_signature
from protocol.statements import (
    ATTEMPT_MAX,
    Adopt,
    Checkpoint,
    Commit,
    CommitBatch,
    Promise,
    Proof,
    Proposal,
    SlotProposal,
    Unlock,
    UnlockRequest,
    Vote,
    VoteBatch,
    decode_slot_proposal,
    decode_statement,
    decode_unlock_request,
    encode_signed,
    encode_statement,
)
from tests.strategies import make_federation, make_id, make_key, make_public_key

FEDERATION = make_federation().id
REFERENCES = st.sampled_from((b"", make_id("one batch"), make_id("another")))
POSITIONS = st.integers(0, 1023)
ATTEMPTS = st.integers(0, ATTEMPT_MAX)
BITMAPS = st.one_of(st.integers(0, 2**1024 - 1), st.sets(POSITIONS).map(lambda s: sum(1 << i for i in s)))
SCOPE = b"\x01" + make_id("account")
UNLOCK = UnlockRequest(SCOPE, 5, 1, make_public_key("owner"), bytes(64))
PROPOSAL = SlotProposal(SCOPE, 5, 1, make_id("record"), (make_id("batch"),), make_public_key("owner"), bytes(64))

STATEMENTS = st.one_of(
    st.builds(VoteBatch, REFERENCES, BITMAPS),
    st.builds(CommitBatch, REFERENCES, BITMAPS),
    st.builds(Vote, REFERENCES, POSITIONS, st.integers(1, ATTEMPT_MAX), REFERENCES, POSITIONS),
    st.builds(Vote, REFERENCES, POSITIONS, st.just(0), st.just(b""), st.just(0)),
    st.builds(Commit, REFERENCES, POSITIONS, ATTEMPTS),
    st.builds(Promise, REFERENCES, POSITIONS, st.just(b""), st.just(0), st.just(0)),
    st.builds(Promise, REFERENCES, POSITIONS, st.just(make_id("record")), st.integers(0, 9), ATTEMPTS),
    st.builds(Adopt, st.integers(0, 9), st.just(make_id("amendment"))),
    st.builds(Checkpoint, REFERENCES, st.just(make_id("root"))),
    st.builds(Proof, st.binary(min_size=1, max_size=100)),
    st.just(Unlock(encode_signed(UNLOCK))),
    st.just(Proposal(encode_signed(PROPOSAL))),
)


@given(STATEMENTS)
def test_a_statement_decodes_to_itself(statement):
    encoded = encode_statement(statement)
    assert (type(decode_statement(encoded)), decode_statement(encoded)) == (type(statement), statement)
    assert encode_statement(decode_statement(encoded)) == encoded


@given(STATEMENTS, st.data())
def test_a_changed_byte_is_refused_or_is_another_statement(statement, draws):
    encoded = bytearray(encode_statement(statement))
    encoded[draws.draw(st.integers(0, len(encoded) - 1))] ^= 1 << draws.draw(st.integers(0, 7))
    try:
        decoded = decode_statement(bytes(encoded))
    except InvalidInput:
        return
    # A named tuple equals any tuple of its items: the kind counts, too.
    assert (type(decoded), decoded) != (type(statement), statement)
    assert encode_statement(decoded) == encoded


SOME = make_id("one batch")
BROKEN = {
    "no array": b"\x05",
    "an empty array": b"\x90",
    "kind 0": encode((0, SOME, b"")),
    "an unknown kind": encode((11, SOME, b"")),
    "a kind that is text": encode(("1", SOME, b"")),
    "a kind that is true": b"\x93\xc3\xc4\x00\xc4\x00",
    "a bitmap with a trailing zero": encode((1, SOME, b"\x01\x00")),
    "a bitmap of one zero": encode((1, SOME, b"\x00")),
    "a bitmap of 129 bytes": encode((1, SOME, bytes(128) + b"\x01")),
    "a reference of 31 bytes": encode((1, SOME[:31], b"")),
    "position 1024": encode((4, SOME, 1024, 0)),
    "attempt 1001": encode((4, SOME, 0, ATTEMPT_MAX + 1)),
    "a proposal at attempt 0": encode((3, SOME, 0, 0, SOME, 0)),
    "a proposal's position at attempt 0": encode((3, SOME, 0, 0, b"", 1)),
    "a promise that names a round without a record": encode((5, SOME, 0, b"", 0, 1)),
    "a promise that names a version without a record": encode((5, SOME, 0, b"", 1, 0)),
    "an item too many": encode((4, SOME, 0, 0, 0)),
    "an item too few": encode((4, SOME, 0)),
    "an empty proof": encode((8, b"")),
    "an unlock request that is none": encode((9, b"\x90")),
    "a proposal in place of an unlock request": encode((9, encode_signed(PROPOSAL))),
    "an unlock request in place of a proposal": encode((10, encode_signed(UNLOCK))),
}


@pytest.mark.parametrize("encoded", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_statement_is_refused(encoded):
    with pytest.raises(InvalidInput):
        decode_statement(encoded)


def test_speaking_of_a_whole_batch_costs_a_few_bytes():
    assert len(encode_statement(VoteBatch(SOME, 0))) == 38
    assert len(encode_statement(CommitBatch(b"", 0))) == 6
    assert len(encode_statement(VoteBatch(SOME, 1 << 1023))) == 38 + 128


def test_owner_signed_values_decode_to_themselves():
    assert decode_unlock_request(encode_signed(UNLOCK)) == UNLOCK
    assert decode_slot_proposal(encode_signed(PROPOSAL)) == PROPOSAL


@pytest.mark.parametrize(
    "changes",
    [{"attempt": 0}, {"attempt": ATTEMPT_MAX + 1}, {"scope": SCOPE[:32]}, {"sequence": 2**53}, {"signature": b""}],
)
def test_owner_signed_values_out_of_range_are_refused(changes):
    with pytest.raises(InvalidInput):
        decode_unlock_request(encode_signed(UNLOCK._replace(**changes)))
    with pytest.raises(InvalidInput):
        decode_slot_proposal(encode_signed(PROPOSAL._replace(**changes)))


def test_a_proposals_promises_are_a_set_and_not_empty():
    ordered = tuple(sorted((make_id("a"), make_id("b"))))
    assert decode_slot_proposal(encode_signed(PROPOSAL._replace(promise_batches=ordered)))
    for wrong in ((), ordered[::-1], ordered[:1] * 2):
        with pytest.raises(InvalidInput):
            decode_slot_proposal(encode_signed(PROPOSAL._replace(promise_batches=wrong)))


def test_an_owners_signature_covers_every_field_and_one_purpose():
    key = make_key("owner")
    signature = key.sign(UNLOCK.compute_id(FEDERATION))
    assert is_valid_signature(UNLOCK.signer, UNLOCK.compute_id(FEDERATION), signature)
    others = [
        UNLOCK._replace(sequence=6).compute_id(FEDERATION),
        UNLOCK._replace(attempt=2).compute_id(FEDERATION),
        UNLOCK._replace(scope=b"\x02" + SCOPE[1:]).compute_id(FEDERATION),
        UNLOCK._replace(signer=make_public_key("other")).compute_id(FEDERATION),
        UNLOCK.compute_id(make_id("another federation")),
        PROPOSAL.compute_id(FEDERATION),
        PROPOSAL._replace(record=make_id("other record")).compute_id(FEDERATION),
        PROPOSAL._replace(promise_batches=(make_id("other batch"),)).compute_id(FEDERATION),
    ]
    assert len({UNLOCK.compute_id(FEDERATION), *others}) == 9
    assert UNLOCK._replace(signature=signature).compute_id(FEDERATION) == UNLOCK.compute_id(FEDERATION)
