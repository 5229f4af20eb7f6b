"""What members say about records: votes, commits, and the formats of everything that unlocks and hands over.

A statement stands in a member's signed log. The usual one speaks of *all records that batch B introduced, except
those in this bitmap*, so a whole batch costs a few bytes (spec 4.3). A reference to the batch that carries the
statement is an empty byte string.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum, unique
from typing import Any, NamedTuple

from protocol.attempts import Claim, Round
from protocol.codec import (
    VERSION_SHAPE,
    Shape,
    binary,
    binary_up_to,
    check_canonical,
    decode,
    encode,
    items,
    optional_binary,
    set_of,
    uint,
    unpack,
)
from protocol.errors import InvalidInput
from protocol.identifiers import ID_BYTES, Slot, Tag, compute_id
from protocol.limits import (
    MEMBERS_MAX,
    PROTOCOL_VERSION,
    RECORDS_PER_BATCH_MAX,
    STATEMENT_BYTES_MAX,
    STATEMENTS_PER_BATCH_MAX,
)
from protocol.records import SCOPE_BYTES
from protocol.signatures import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Signer, is_valid_signature

ATTEMPT_MAX = 1000


@unique
class StatementKind(IntEnum):
    """The first item of a statement."""

    VOTE_BATCH = 1
    COMMIT_BATCH = 2
    VOTE = 3
    COMMIT = 4
    PROMISE = 5
    ADOPT = 6
    CHECKPOINT = 7
    PROOF = 8
    UNLOCK = 9
    PROPOSAL = 10


class VoteBatch(NamedTuple):
    """Votes at attempt 0 for every record introduced in `batch` but the excluded positions."""

    batch: bytes
    excluded: int
    """Bit i set: position i is excluded."""


class CommitBatch(NamedTuple):
    """Commits at attempt 0 to every record introduced in `batch` but the excluded positions."""

    batch: bytes
    excluded: int


class Vote(NamedTuple):
    """A vote for one record. At attempt 1 and above it names the owner's proposal (batch, position)."""

    batch: bytes
    position: int
    attempt: int
    proposal_batch: bytes
    proposal_position: int


class Commit(NamedTuple):
    """A commit to one record."""

    batch: bytes
    position: int
    attempt: int


class Promise(NamedTuple):
    """An answer to the unlock request at (batch, position): nothing is said below its attempt from now on, and this
    is the highest certificate that the member acted on so far: a record in a round, or none, 0 and 0."""

    unlock_batch: bytes
    unlock_position: int
    record: bytes
    version: int
    attempt: int

    @property
    def report(self) -> Claim | None:
        """The reported record in its round."""
        return Claim(Round(self.version, self.attempt), self.record) if self.record else None


class Adopt(NamedTuple):
    """The member's last statement under the charter version before `charter_version`."""

    charter_version: int
    charter: bytes
    """Id of that version."""


class Checkpoint(NamedTuple):
    """The state root of the causal past of `batch`."""

    batch: bytes
    root: bytes


class Proof(NamedTuple):
    """Carries a receipt of finality. It is kept, and counts for nothing yet."""

    receipt: bytes


class Unlock(NamedTuple):
    """Carries a slot owner's signed unlock request."""

    request: bytes


class Proposal(NamedTuple):
    """Carries a slot owner's signed proposal."""

    proposal: bytes


Statement = VoteBatch | CommitBatch | Vote | Commit | Promise | Adopt | Checkpoint | Proof | Unlock | Proposal

_KINDS: dict[type, StatementKind] = {
    VoteBatch: StatementKind.VOTE_BATCH,
    CommitBatch: StatementKind.COMMIT_BATCH,
    Vote: StatementKind.VOTE,
    Commit: StatementKind.COMMIT,
    Promise: StatementKind.PROMISE,
    Adopt: StatementKind.ADOPT,
    Checkpoint: StatementKind.CHECKPOINT,
    Proof: StatementKind.PROOF,
    Unlock: StatementKind.UNLOCK,
    Proposal: StatementKind.PROPOSAL,
}
_TYPES = {kind: statement_type for statement_type, kind in _KINDS.items()}

_REFERENCE = optional_binary(ID_BYTES)
_ID = binary(ID_BYTES)
_POSITION = uint(RECORDS_PER_BATCH_MAX - 1)
_STATEMENT_POSITION = uint(STATEMENTS_PER_BATCH_MAX - 1)
_BITMAP_BYTES_MAX = RECORDS_PER_BATCH_MAX // 8


def _bitmap(value: Any) -> None:
    """A set of positions as little-endian bits without trailing zero bytes, so each set has one spelling."""
    binary_up_to(_BITMAP_BYTES_MAX)(value)
    if value and value[-1] == 0:
        raise InvalidInput("a bitmap must not end with a zero byte")


_SHAPES: dict[int, Shape] = {
    StatementKind.VOTE_BATCH: items(uint(), _REFERENCE, _bitmap),
    StatementKind.COMMIT_BATCH: items(uint(), _REFERENCE, _bitmap),
    StatementKind.VOTE: items(uint(), _REFERENCE, _POSITION, uint(ATTEMPT_MAX), _REFERENCE, _STATEMENT_POSITION),
    StatementKind.COMMIT: items(uint(), _REFERENCE, _POSITION, uint(ATTEMPT_MAX)),
    StatementKind.PROMISE: items(uint(), _REFERENCE, _STATEMENT_POSITION, _REFERENCE, uint(), uint(ATTEMPT_MAX)),
    StatementKind.ADOPT: items(uint(), uint(), _ID),
    StatementKind.CHECKPOINT: items(uint(), _REFERENCE, _ID),
    StatementKind.PROOF: items(uint(), binary_up_to(STATEMENT_BYTES_MAX, 1)),
    StatementKind.UNLOCK: items(uint(), binary_up_to(STATEMENT_BYTES_MAX, 1)),
    StatementKind.PROPOSAL: items(uint(), binary_up_to(STATEMENT_BYTES_MAX, 1)),
}


def encode_statement(statement: Statement) -> bytes:
    """The canonical bytes of a statement."""
    kind = int(_KINDS[type(statement)])
    if isinstance(statement, (VoteBatch, CommitBatch)):
        excluded = statement.excluded
        bitmap = excluded.to_bytes((excluded.bit_length() + 7) // 8, "little")
        return encode((kind, statement.batch, bitmap))
    return encode((kind, *statement))


def decode_statement(encoded: bytes) -> Statement:
    """The statement that `encoded` spells. Raises: InvalidInput."""
    raw = unpack(encoded, STATEMENT_BYTES_MAX)
    if not isinstance(raw, tuple) or not raw or type(raw[0]) is not int or raw[0] not in _SHAPES:
        raise InvalidInput("no statement of a known kind")
    kind = StatementKind(raw[0])
    _SHAPES[kind](raw)
    check_canonical(raw, encoded)
    if kind in (StatementKind.VOTE_BATCH, StatementKind.COMMIT_BATCH):
        excluded = int.from_bytes(raw[2], "little")
        return VoteBatch(raw[1], excluded) if kind is StatementKind.VOTE_BATCH else CommitBatch(raw[1], excluded)
    statement: Statement = _TYPES[kind]._make(raw[1:])  # type: ignore[attr-defined]
    if isinstance(statement, Vote) and statement.attempt == 0 and statement[3:] != (b"", 0):
        raise InvalidInput("a vote at attempt 0 names no proposal")
    if isinstance(statement, Promise) and not statement.record and statement[3:] != (0, 0):
        raise InvalidInput("a promise that reports nothing names no round")
    if isinstance(statement, Unlock):
        decode_unlock_request(statement.request)
    if isinstance(statement, Proposal):
        decode_slot_proposal(statement.proposal)
    return statement


def get_referenced_batches(statement: Statement) -> tuple[bytes, ...]:
    """The other batches that a statement speaks of: they belong to the past of the batch that carries it."""
    named: tuple[bytes, ...] = ()
    match statement:
        case VoteBatch() | CommitBatch() | Commit() | Checkpoint():
            named = (statement.batch,)
        case Vote():
            named = (statement.batch, statement.proposal_batch)
        case Promise():
            named = (statement.unlock_batch,)
        case Proposal():
            named = decode_slot_proposal(statement.proposal).promise_batches
    return tuple(batch for batch in named if batch)


class UnlockRequest(NamedTuple):
    """A slot's owner asks for a new attempt; signed over its id (spec 5.6). It has one spelling, so that whoever
    signs it again signs the same bytes."""

    scope: bytes
    sequence: int
    attempt: int
    signer: bytes
    signature: bytes

    def compute_id(self, federation: bytes) -> bytes:
        """What the owner signs."""
        return compute_id(Tag.UNLOCK, federation, encode((PROTOCOL_VERSION, *self[:-1])))

    @property
    def slot(self) -> Slot:
        """The slot that it is about."""
        return self.scope, self.sequence


class SlotProposal(NamedTuple):
    """A slot's owner names the record that the attempt's promises allow, and those promises' batches (spec 5.6)."""

    scope: bytes
    sequence: int
    attempt: int
    record: bytes
    promise_batches: tuple[bytes, ...]
    signer: bytes
    signature: bytes

    def compute_id(self, federation: bytes) -> bytes:
        """What the owner signs."""
        return compute_id(Tag.PROPOSAL, federation, encode((PROTOCOL_VERSION, *self[:-1])))

    @property
    def slot(self) -> Slot:
        """The slot that it is about."""
        return self.scope, self.sequence


_UNLOCK_SHAPE = items(
    VERSION_SHAPE,
    binary(SCOPE_BYTES),
    uint(),
    uint(ATTEMPT_MAX, 1),
    binary(PUBLIC_KEY_BYTES),
    binary(SIGNATURE_BYTES),
)
_PROPOSAL_SHAPE = items(
    VERSION_SHAPE,
    binary(SCOPE_BYTES),
    uint(),
    uint(ATTEMPT_MAX, 1),
    _ID,
    set_of(_ID, MEMBERS_MAX, 1),
    binary(PUBLIC_KEY_BYTES),
    binary(SIGNATURE_BYTES),
)


def decode_unlock_request(encoded: bytes) -> UnlockRequest:
    """Raises: InvalidInput."""
    return UnlockRequest._make(decode(_UNLOCK_SHAPE, encoded, STATEMENT_BYTES_MAX)[1:])


def decode_slot_proposal(encoded: bytes) -> SlotProposal:
    """Raises: InvalidInput."""
    return SlotProposal._make(decode(_PROPOSAL_SHAPE, encoded, STATEMENT_BYTES_MAX)[1:])


def speak_once(whole_batch: type[VoteBatch | CommitBatch], batch: bytes, position: int) -> Vote | Commit:
    """What a vote or commit for a whole batch says, for one of its records alone."""
    return Vote(batch, position, 0, b"", 0) if whole_batch is VoteBatch else Commit(batch, position, 0)


def sign_unlock_request(federation: bytes, slot: Slot, attempt: int, signer: bytes, key: Signer) -> UnlockRequest:
    """The request of the slot's writer `signer`, who holds `key`."""
    unsigned = UnlockRequest(*slot, attempt, signer, b"")
    return unsigned._replace(signature=key.sign(unsigned.compute_id(federation)))


def sign_slot_proposal(
    federation: bytes,
    slot: Slot,
    attempt: int,
    record: bytes,
    promise_batches: Iterable[bytes],
    signer: bytes,
    key: Signer,
) -> SlotProposal:
    """The proposal of the slot's writer `signer`, who holds `key`."""
    unsigned = SlotProposal(*slot, attempt, record, tuple(sorted(set(promise_batches))), signer, b"")
    return unsigned._replace(signature=key.sign(unsigned.compute_id(federation)))


def is_signed_by_writer(federation: bytes, value: UnlockRequest | SlotProposal) -> bool:
    """True when the signature holds; whether the signer may write in the slot is a voting rule."""
    return is_valid_signature(value.signer, value.compute_id(federation), value.signature)


def encode_signed(value: UnlockRequest | SlotProposal) -> bytes:
    """The canonical bytes of an owner-signed request or proposal."""
    return encode((PROTOCOL_VERSION, *value))
