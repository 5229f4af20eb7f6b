"""Proof that a member lied: two different batches of its log under one number, both signed by it.

A correct member never signs two, for it stores each batch before anybody sees it. Anybody can check the proof offline
with the charter alone (spec 8.2). A replica acts on this one (spec 4.7), so it stands below; the others, on which
nothing acts, are in `evidence.py`.
"""

from __future__ import annotations

from enum import IntEnum, unique
from typing import NamedTuple

from protocol.batches import Batch, Header, compute_batch_id, decode_header, is_signed_header
from protocol.charter import Charters, get_charter
from protocol.codec import encode
from protocol.errors import InvalidInput
from protocol.limits import PROTOCOL_VERSION


@unique
class EvidenceKind(IntEnum):
    """The second item of a proof: what it shows."""

    FORK = 1
    """Two batches of one member with one index."""
    VOTES = 2
    """Two votes of one member in one slot and round, for two records."""
    COMMITS = 3
    """Two commits of one member in one slot and round, to two records."""
    HIDDEN_COMMIT = 4
    """A commit, and a promise of that member for a later round that does not report it."""
    FINALS = 5
    """Two records of one slot, both final."""
    RECORDS = 6
    """Two records of one slot, signed by one key."""


class ForkEvidence(NamedTuple):
    """Two signed headers of one log with one index; the one with the lower id comes first."""

    first_header: bytes
    first_signature: bytes
    second_header: bytes
    second_signature: bytes

    def encode(self) -> bytes:
        """The canonical bytes, for export."""
        return encode((PROTOCOL_VERSION, int(EvidenceKind.FORK), *self))


def build_fork_evidence(left: Batch, right: Batch) -> ForkEvidence:
    """The proof made of two batches with one place in one log."""
    assert left.id != right.id
    assert left.header[:3] == right.header[:3], "charter version, member and index"
    first, second = sorted((left, right), key=lambda batch: batch.id)
    return ForkEvidence(first.header_bytes, first.signature, second.header_bytes, second.signature)


def verify_fork(charters: Charters, evidence: ForkEvidence) -> Header:
    """The member and the index that were signed twice, as the first header says. Raises: InvalidInput."""
    federation = get_charter(charters, 0).federation
    first, second = decode_header(evidence.first_header), decode_header(evidence.second_header)
    first_id = compute_batch_id(federation, evidence.first_header)
    second_id = compute_batch_id(federation, evidence.second_header)
    if first_id >= second_id:
        raise InvalidInput("the two headers must differ, the lower id first")
    if first[:3] != second[:3]:  # charter version, member and index
        raise InvalidInput("the two headers don't claim one place in one log")
    charter = get_charter(charters, first.charter_version)
    if not is_signed_header(charter, first, first_id, evidence.first_signature):
        raise InvalidInput("the first header is not signed by its member")
    if not is_signed_header(charter, second, second_id, evidence.second_signature):
        raise InvalidInput("the second header is not signed by its member")
    return first
