"""Proof that a member lied: two different batches of its log under one number, both signed by it.

A correct member never signs two, for it stores each batch before anybody sees it. The proof is kept, shown and can be
checked by anyone offline with the charter alone (spec 8).
"""

from __future__ import annotations

from typing import NamedTuple

from protocol.batches import (
    HEADER_BYTES_MAX,
    Batch,
    compute_batch_id,
    decode_header,
    is_signed_header,
)
from protocol.charter import Charter
from protocol.codec import binary, binary_up_to, decode, encode, items
from protocol.errors import InvalidInput
from protocol.signatures import SIGNATURE_BYTES

_SIGNED_HEADER = (binary_up_to(HEADER_BYTES_MAX), binary(SIGNATURE_BYTES))
_EVIDENCE = items(*_SIGNED_HEADER, *_SIGNED_HEADER)


class ForkEvidence(NamedTuple):
    """Two signed headers of one log with one index; the one with the lower id comes first."""

    first_header: bytes
    first_signature: bytes
    second_header: bytes
    second_signature: bytes

    def encode(self) -> bytes:
        """The canonical bytes, for export."""
        return encode(tuple(self))


def build_fork_evidence(left: Batch, right: Batch) -> ForkEvidence:
    """The proof made of two batches with one place in one log."""
    assert left.id != right.id
    assert left.header[:3] == right.header[:3], "charter version, member and index"
    first, second = sorted((left, right), key=lambda batch: batch.id)
    return ForkEvidence(first.header_bytes, first.signature, second.header_bytes, second.signature)


def verify_fork_evidence(charter: Charter, encoded: bytes) -> int:
    """The number of the member that the proof convicts. Raises: InvalidInput when it convicts nobody."""
    evidence = ForkEvidence._make(decode(_EVIDENCE, encoded, 4 * HEADER_BYTES_MAX))
    first, second = decode_header(evidence.first_header), decode_header(evidence.second_header)
    first_id = compute_batch_id(charter.federation, evidence.first_header)
    second_id = compute_batch_id(charter.federation, evidence.second_header)
    if first_id >= second_id:
        raise InvalidInput("the two headers must differ, the lower id first")
    if first[:3] != second[:3]:  # charter version, member and index
        raise InvalidInput("the two headers don't claim one place in one log")
    if not is_signed_header(charter, first, first_id, evidence.first_signature):
        raise InvalidInput("the first header is not signed by its member")
    if not is_signed_header(charter, second, second_id, evidence.second_signature):
        raise InvalidInput("the second header is not signed by its member")
    return first.member
