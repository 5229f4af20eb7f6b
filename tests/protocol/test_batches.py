"""Batches: the header binds everything, and the vote key signs the header."""

from __future__ import annotations

import msgpack
import pytest

from protocol.batches import (
    HEADER_BYTES_MAX,
    compute_record_leaf,
    compute_seen_digest,
    compute_statement_leaf,
    decode_batch,
    decode_header,
    is_signed_batch,
)
from protocol.codec import encode
from protocol.errors import InvalidInput
from protocol.merkle import EMPTY_ROOT, compute_root
from protocol.records import decode_record
from protocol.replica import Replica
from protocol.statements import Commit, Statement, Vote, VoteBatch, encode_statement
from tests.local_members import Gathering, make_prefix
from tests.strategies import make_federation, make_id, make_public_key, make_records_of_every_kind

FEDERATION = make_federation()
FIRST = FEDERATION.batch(2, records=make_records_of_every_kind(FEDERATION), statements=[VoteBatch(b"", 0)])
OTHER = FEDERATION.batch(3, statements=[VoteBatch(FIRST.id, 1)])
SECOND = FEDERATION.batch(
    2, after=FIRST, seen=[OTHER], statements=[Commit(FIRST.id, 2, 0), VoteBatch(FIRST.id, 5)], time_ms=1234
)
BATCHES = [FIRST, OTHER, SECOND]


@pytest.mark.parametrize("batch", BATCHES, ids=["records", "statement", "later"])
def test_a_batch_decodes_to_what_was_built(batch):
    assert decode_batch(FEDERATION.id, batch.encoded) == batch
    assert decode_header(batch.header_bytes) == batch.header
    assert is_signed_batch(FEDERATION.charter, batch)


def test_the_parents_are_the_batch_before_and_the_seen_heads():
    assert FIRST.parents == ()
    assert set(SECOND.parents) == {FIRST.id, OTHER.id}
    assert (SECOND.header.index, SECOND.header.prev) == (1, FIRST.id)


@pytest.mark.parametrize("batch", BATCHES, ids=["records", "statement", "later"])
def test_every_changed_byte_is_refused_or_breaks_the_signature(batch):
    for place in range(len(batch.encoded)):
        changed = bytearray(batch.encoded)
        changed[place] ^= 1
        try:
            decoded = decode_batch(FEDERATION.id, bytes(changed))
        except InvalidInput:
            continue
        assert not is_signed_batch(FEDERATION.charter, decoded), place


def test_a_batch_is_for_one_federation_and_one_charter_version():
    elsewhere = decode_batch(make_id("another federation"), OTHER.encoded)
    assert elsewhere.id != OTHER.id
    assert not is_signed_batch(FEDERATION.charter, elsewhere)
    later = OTHER._replace(header=OTHER.header._replace(charter_version=1))
    assert not is_signed_batch(FEDERATION.charter, later)


def test_another_members_signature_is_none():
    other = FEDERATION.batch(4, statements=[VoteBatch(FIRST.id, 1)])
    assert not is_signed_batch(FEDERATION.charter, OTHER._replace(signature=other.signature))
    assert not is_signed_batch(FEDERATION.charter, OTHER._replace(header=OTHER.header._replace(member=9)))
    # The long-lived member key signs no batches; only this version's vote key does.
    by_member_key = FEDERATION.member_keys[3].sign(OTHER.id)
    assert not is_signed_batch(FEDERATION.charter, OTHER._replace(signature=by_member_key))
    assert make_public_key("Testland vote 3") == FEDERATION.charter.members[3].vote_key


def rebuild(batch, *, header=None, seen=None, records=None, statements=None):
    """The encoding with some parts changed; the header is the old one unless `header` changes its fields."""
    raw = msgpack.unpackb(batch.encoded, use_list=False)
    header_bytes = encode((1, *batch.header._replace(**header))) if header else raw[0]
    return encode(
        (
            header_bytes,
            raw[1],
            raw[2] if seen is None else seen,
            raw[3] if records is None else records,
            raw[4] if statements is None else statements,
        )
    )


def bind(records=(), statements=(), seen=()):
    """Header fields that bind these parts."""
    decoded = [decode_record(FEDERATION.id, record) for record in records]
    return {
        "record_count": len(records),
        "record_root": compute_root([compute_record_leaf(record) for record in decoded]),
        "statement_count": len(statements),
        "statement_root": compute_root([compute_statement_leaf(statement) for statement in statements]),
        "seen_digest": compute_seen_digest(seen),
    }


RECORD = FIRST.records[0].encoded
STATEMENT = encode_statement(VoteBatch(b"", 0))


def test_a_rebuilt_batch_is_well_formed_when_its_header_binds_it():
    seen = tuple(sorted((make_id("a"), make_id("b"))))
    parts = {"records": (RECORD,), "statements": (STATEMENT,), "seen": seen}
    decoded = decode_batch(FEDERATION.id, rebuild(FIRST, header=bind(**parts), **parts))
    assert decoded.seen == seen
    assert len(decoded.records) == 1


BROKEN = {
    "an empty batch": ({}, {"records": (), "statements": ()}),
    "a record twice": ({}, {"records": (RECORD, RECORD)}),
    "a seen head twice": ({}, {"seen": (make_id("a"), make_id("a")), "statements": (STATEMENT,)}),
    "seen heads out of order": (
        {},
        {"seen": tuple(sorted((make_id("a"), make_id("b")), reverse=True)), "statements": (STATEMENT,)},
    ),
    "another record count": ({"record_count": 2}, {"records": (RECORD,)}),
    "another record root": ({"record_root": EMPTY_ROOT}, {"records": (RECORD,)}),
    "another statement count": ({"statement_count": 0}, {"statements": (STATEMENT,)}),
    "another statement root": ({"statement_root": EMPTY_ROOT}, {"statements": (STATEMENT,)}),
    "another seen digest": ({"seen_digest": EMPTY_ROOT}, {"statements": (STATEMENT,)}),
    "a first batch with a predecessor": ({"prev": make_id("before")}, {"statements": (STATEMENT,)}),
    "a later batch without one": ({"index": 1}, {"statements": (STATEMENT,)}),
    "member number 0": ({"member": 0}, {"statements": (STATEMENT,)}),
}


@pytest.mark.parametrize(("fields", "parts"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_batch_is_refused(fields, parts):
    parts = {"records": (), "statements": (), "seen": ()} | parts
    with pytest.raises(InvalidInput):
        decode_batch(FEDERATION.id, rebuild(FIRST, header=bind(**parts) | fields, **parts))


def test_an_undecodable_record_or_statement_makes_the_batch_ill_formed():
    broken = RECORD[:-1]
    root = {"record_count": 1, "record_root": EMPTY_ROOT}
    with pytest.raises(InvalidInput):
        decode_batch(FEDERATION.id, rebuild(FIRST, header=root, records=(broken,)))
    statements = (b"\x91\x63",)
    with pytest.raises(InvalidInput):
        decode_batch(FEDERATION.id, rebuild(OTHER, header=bind(statements=statements), statements=statements))


def test_a_signature_in_a_record_is_bound_by_the_root():
    """Nobody can swap a record's signature for another, valid or not, while the batch travels."""
    swapped = RECORD[:-1] + bytes([RECORD[-1] ^ 1])
    assert decode_record(FEDERATION.id, swapped).id == FIRST.records[0].id
    rest = msgpack.unpackb(FIRST.encoded, use_list=False)[3][1:]
    with pytest.raises(InvalidInput, match="record root"):
        decode_batch(FEDERATION.id, rebuild(FIRST, records=(swapped, *rest)))


def test_the_largest_header_fits():
    far = SECOND._replace(header=SECOND.header._replace(index=2**53 - 2))
    batch = FEDERATION.batch(1, after=far, statements=[VoteBatch(b"", 0)], time_ms=2**53 - 1)
    assert len(batch.header_bytes) <= HEADER_BYTES_MAX
    assert decode_batch(FEDERATION.id, batch.encoded) == batch


def test_a_log_continues_its_own_last_batch_only():
    """Else a member could branch its log between two indexes, and no pair of headers would convict it."""
    gathering = Gathering(FEDERATION)
    for batch in make_prefix(FEDERATION):
        gathering.receive(batch)
    own = next(b for b in gathering.batches.values() if b.header.member == 2 and b.header.index == 1)
    stranger = next(b for b in gathering.batches.values() if b.header.member == 1)
    good = FEDERATION.batch(2, after=own, statements=[VoteBatch(b"", 0)])
    skipping = own._replace(header=own.header._replace(index=5))
    assert gathering.replica.is_linked(good, {})
    later = FEDERATION.batch(2, after=good, statements=[VoteBatch(b"", 0)])
    assert gathering.replica.is_linked(later, {good.id: good})
    for after in (skipping, stranger):
        crooked = FEDERATION.batch(2, after=after, statements=[VoteBatch(b"", 0)])
        assert not gathering.replica.is_linked(crooked, {})
        assert not gathering.replica.is_linked(later._replace(header=crooked.header), {after.id: after})


def test_what_a_statement_speaks_of_is_a_parent_so_nobody_has_to_remember_what_nobody_has():
    unknown, proposal = make_id("batch"), make_id("proposal")
    statements: list[Statement] = [Commit(unknown, 0, 0), Vote(b"", 0, 1, proposal, 2), VoteBatch(b"", 0)]
    batch = FEDERATION.batch(3, statements=statements)
    assert batch.parents == (unknown, proposal)
    assert Replica(FEDERATION.charter).get_missing_parents(batch) == [unknown, proposal]
