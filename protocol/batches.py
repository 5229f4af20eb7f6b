"""A batch is one entry of a member's signed log: the records it introduces and what it says about others' records.

    batch  = [header, signature, seen, records, statements]
    header = [version, charter version, member, index, prev, seen digest, time, record count, record root,
              statement count, statement root]

The vote key signs the batch's id, the hash of the header; the header binds everything else. `prev` and `seen` name
earlier batches, so all batches form a directed acyclic graph (spec 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import NamedTuple

from protocol.charter import Charter
from protocol.codec import (
    VERSION_SHAPE,
    binary,
    binary_up_to,
    check_canonical,
    encode,
    items,
    list_of,
    optional_binary,
    set_of,
    uint,
    unpack,
)
from protocol.codec import decode as decode_value
from protocol.errors import InvalidInput
from protocol.identifiers import ID_BYTES, Tag, compute_id
from protocol.limits import (
    BATCH_BYTES_MAX,
    MEMBER_NUMBER_MAX,
    PROTOCOL_VERSION,
    RECORD_BYTES_MAX,
    RECORDS_PER_BATCH_MAX,
    SEEN_PER_BATCH_MAX,
    STATEMENT_BYTES_MAX,
    STATEMENTS_PER_BATCH_MAX,
)
from protocol.merkle import compute_leaf, compute_root
from protocol.records import Record, decode_record
from protocol.signatures import SIGNATURE_BYTES, Signer, is_valid_signature
from protocol.statements import Statement, decode_statement, encode_statement, get_referenced_batches

HEADER_BYTES_MAX = 256


class Header(NamedTuple):
    """What a member signs for one entry of its log."""

    charter_version: int
    member: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody wants of a header
    """Position in the member's log, from 0."""
    prev: bytes
    """Id of the batch before; empty at index 0."""
    seen_digest: bytes
    time_ms: int
    """Unix milliseconds by the member's own clock; read by no rule."""
    record_count: int
    record_root: bytes
    statement_count: int
    statement_root: bytes


_HEADER = items(
    VERSION_SHAPE,
    uint(),
    uint(MEMBER_NUMBER_MAX, 1),
    uint(),
    optional_binary(ID_BYTES),
    binary(ID_BYTES),
    uint(),
    uint(RECORDS_PER_BATCH_MAX),
    binary(ID_BYTES),
    uint(STATEMENTS_PER_BATCH_MAX),
    binary(ID_BYTES),
)
_BATCH = items(
    binary_up_to(HEADER_BYTES_MAX),
    binary(SIGNATURE_BYTES),
    set_of(binary(ID_BYTES), SEEN_PER_BATCH_MAX),
    list_of(binary_up_to(RECORD_BYTES_MAX, 1), RECORDS_PER_BATCH_MAX),
    list_of(binary_up_to(STATEMENT_BYTES_MAX, 1), STATEMENTS_PER_BATCH_MAX),
)


class Batch(NamedTuple):
    """A well-formed batch; whether its signature holds is asked of a charter by `is_signed_batch`."""

    id: bytes
    header: Header
    header_bytes: bytes
    signature: bytes
    seen: tuple[bytes, ...]
    records: tuple[Record, ...]
    statements: tuple[Statement, ...]
    statement_bytes: tuple[bytes, ...]
    encoded: bytes

    @property
    def parents(self) -> tuple[bytes, ...]:
        """The batches that must be admitted before this one: `prev`, `seen` and what its statements speak of."""
        named = (batch for statement in self.statements for batch in get_referenced_batches(statement))
        return tuple(dict.fromkeys((*((self.header.prev,) if self.header.prev else ()), *self.seen, *named)))


def compute_record_leaf(record: Record, signatures: tuple[bytes, ...] = ()) -> bytes:
    """H(tag, id, signatures): fixes which signatures a receipt shows; the record's own, unless others are given."""
    return compute_leaf(Tag.RECORD_LEAF, record.id + (encode(signatures) if signatures else record.signature_tail))


def compute_statement_leaf(statement_bytes: bytes) -> bytes:
    """H(tag, statement)."""
    return compute_leaf(Tag.STATEMENT_LEAF, statement_bytes)


def compute_seen_digest(seen: Sequence[bytes]) -> bytes:
    """The hash of the heads that a batch names."""
    return sha256(Tag.SEEN + b"".join(seen)).digest()


def decode_header(encoded: bytes) -> Header:
    """Raises: InvalidInput."""
    header = Header._make(decode_value(_HEADER, encoded, HEADER_BYTES_MAX)[1:])
    if (header.index == 0) != (header.prev == b""):
        raise InvalidInput("the first batch of a log has no predecessor, every other batch has one")
    return header


def compute_batch_id(federation: bytes, header_bytes: bytes) -> bytes:
    """What the vote key signs, and how other batches name this one."""
    return compute_id(Tag.BATCH, federation, header_bytes)


def decode_batch(federation: bytes, encoded: bytes) -> Batch:
    """The batch that `encoded` spells, every record and statement decoded.

    Raises: InvalidInput when any part is malformed or the header does not bind the rest (spec 4.2).
    """
    raw = unpack(encoded, BATCH_BYTES_MAX)
    _BATCH(raw)
    check_canonical(raw, encoded)
    header_bytes, signature, seen, record_bytes, statement_bytes = raw
    header = decode_header(header_bytes)
    if (header.record_count, header.statement_count) != (len(record_bytes), len(statement_bytes)):
        raise InvalidInput("the header counts other records or statements than the batch holds")
    if not record_bytes and not statement_bytes:
        raise InvalidInput("a batch must hold a record or a statement")
    records = tuple([decode_record(federation, content) for content in record_bytes])
    if len({record.id for record in records}) != len(records):
        raise InvalidInput("a batch holds one record twice")
    statements = tuple([decode_statement(content) for content in statement_bytes])
    if header.record_root != compute_root([compute_record_leaf(record) for record in records]):
        raise InvalidInput("the record root does not fit the records")
    if header.statement_root != compute_root([compute_statement_leaf(content) for content in statement_bytes]):
        raise InvalidInput("the statement root does not fit the statements")
    if header.seen_digest != compute_seen_digest(seen):
        raise InvalidInput("the seen digest does not fit the seen heads")
    batch_id = compute_batch_id(federation, header_bytes)
    return Batch(batch_id, header, header_bytes, signature, seen, records, statements, statement_bytes, encoded)


def is_signed_header(charter: Charter, header: Header, batch_id: bytes, signature: bytes) -> bool:
    """True when the member named in the header belongs to the charter and its vote key signed the id."""
    member = charter.members.get(header.member)
    if member is None or header.charter_version != charter.version:
        return False
    return is_valid_signature(member.vote_key, batch_id, signature)


def is_signed_batch(charter: Charter, batch: Batch) -> bool:
    """True when the batch is its member's."""
    return is_signed_header(charter, batch.header, batch.id, batch.signature)


class LogPosition(NamedTuple):
    """Where the next batch of a log goes."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody wants of a position
    prev: bytes


def build_batch(
    charter: Charter,
    vote_key: Signer,
    member: int,
    position: LogPosition,
    *,
    seen: Sequence[bytes],
    time_ms: int,
    records: Sequence[Record],
    statements: Sequence[Statement],
) -> Batch:
    """The member's next batch, signed."""
    statement_bytes = tuple(map(encode_statement, statements))
    ordered_seen = tuple(sorted(seen))
    header = Header(
        charter.version,
        member,
        position.index,
        position.prev,
        compute_seen_digest(ordered_seen),
        time_ms,
        len(records),
        compute_root([compute_record_leaf(record) for record in records]),
        len(statement_bytes),
        compute_root([compute_statement_leaf(content) for content in statement_bytes]),
    )
    header_bytes = encode((PROTOCOL_VERSION, *header))
    batch_id = compute_batch_id(charter.federation, header_bytes)
    signature = vote_key.sign(batch_id)
    record_bytes = tuple(record.encoded for record in records)
    encoded = encode((header_bytes, signature, ordered_seen, record_bytes, statement_bytes))
    assert len(encoded) <= BATCH_BYTES_MAX
    return Batch(
        batch_id,
        header,
        header_bytes,
        signature,
        ordered_seen,
        tuple(records),
        tuple(statements),
        statement_bytes,
        encoded,
    )
