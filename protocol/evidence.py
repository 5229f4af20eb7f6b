"""Proofs of wrongdoing: who contradicted itself, shown by its own signatures to anybody, offline, with the charter.

    proof = [version, kind, ...]

Each kind shows two signed things that no correct member, or no careful owner, ever signs both. `verify_evidence` says
whom a proof convicts and of what; it trusts nothing but the keys in the charter, so a forged proof convicts nobody
(spec 8). Why each pair can't come from a correct member stands beside its rule.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Any, NamedTuple

from protocol.attempts import Round
from protocol.batches import HEADER_BYTES_MAX, compute_batch_id, compute_statement_leaf, decode_header
from protocol.charter import Charters, get_charter
from protocol.codec import VERSION_SHAPE, Shape, binary, binary_up_to, check_canonical, encode, items, uint, unpack
from protocol.equivocation import EvidenceKind, ForkEvidence, verify_fork
from protocol.errors import InvalidInput
from protocol.identifiers import Slot
from protocol.limits import (
    PROTOCOL_VERSION,
    RECORD_BYTES_MAX,
    RECORDS_PER_BATCH_MAX,
    STATEMENT_BYTES_MAX,
)
from protocol.merkle import compute_path, compute_root_from_path
from protocol.receipts import (
    PATH_SHAPE,
    RECEIPT_BYTES_MAX,
    STATEMENT_PROOF_SHAPES,
    IntroductionProof,
    ProvableBatch,
    Spoken,
    StatementProof,
    get_attempt,
    verify_introduction,
    verify_receipt,
    verify_statement,
)
from protocol.records import Record, decode_record
from protocol.signatures import SIGNATURE_BYTES, is_valid_signature
from protocol.statements import (
    Commit,
    CommitBatch,
    Promise,
    Unlock,
    Vote,
    VoteBatch,
    decode_statement,
    decode_unlock_request,
)

EVIDENCE_BYTES_MAX = 2 * RECEIPT_BYTES_MAX + 64
"""Two receipts are the largest proof."""

_STATEMENTS = {EvidenceKind.VOTES: (VoteBatch, Vote), EvidenceKind.COMMITS: (CommitBatch, Commit)}


class Verdict(NamedTuple):
    """Whom a proof convicts, and of what."""

    kind: EvidenceKind
    members: tuple[int, ...]
    """The convicted members, ascending."""
    keys: tuple[bytes, ...]
    """The convicted keys of accounts, ascending."""
    scope: bytes
    """Scope of the slot that it is about; empty for a fork."""
    sequence: int
    """Number of that slot; for a fork the index in the member's log."""
    rounds: tuple[Round, ...]
    """The round in which the member contradicted itself; the two rounds of two finals; commit and promise."""

    def compute_name(self) -> bytes:
        """A name of what is proven; two proofs of the same thing share it."""
        return sha256(encode((int(self.kind), *self[1:]))).digest()


class ShownStatement(NamedTuple):
    """A member's vote or commit, with the introduction that says which record is meant."""

    record_bytes: bytes
    """The record as its introducing batch spells it."""
    introduction_header: bytes
    introduction_position: int
    introduction_path: tuple[bytes, ...]
    statement: StatementProof

    def flatten(self) -> tuple[Any, ...]:
        """As it stands in a proof."""
        return (*self[:4], tuple(self.statement))


class ShownUnlock(NamedTuple):
    """The request that a promise answers, at the position that the promise names."""

    header_bytes: bytes
    statement_bytes: bytes
    path: tuple[bytes, ...]


_SHOWN_STATEMENT = items(
    binary_up_to(RECORD_BYTES_MAX, 1),
    binary_up_to(HEADER_BYTES_MAX),
    uint(RECORDS_PER_BATCH_MAX - 1),
    PATH_SHAPE,
    items(*STATEMENT_PROOF_SHAPES),
)
_SHOWN_UNLOCK = items(binary_up_to(HEADER_BYTES_MAX), binary_up_to(STATEMENT_BYTES_MAX, 1), PATH_SHAPE)
_RECEIPT = binary_up_to(RECEIPT_BYTES_MAX, 1)
_RECORD = binary_up_to(RECORD_BYTES_MAX, 1)
_SIGNED_HEADER = (binary_up_to(HEADER_BYTES_MAX), binary(SIGNATURE_BYTES))
_PARTS: dict[int, tuple[Shape, ...]] = {
    EvidenceKind.FORK: (*_SIGNED_HEADER, *_SIGNED_HEADER),
    EvidenceKind.VOTES: (_SHOWN_STATEMENT, _SHOWN_STATEMENT),
    EvidenceKind.COMMITS: (_SHOWN_STATEMENT, _SHOWN_STATEMENT),
    EvidenceKind.HIDDEN_COMMIT: (_SHOWN_STATEMENT, items(*STATEMENT_PROOF_SHAPES), _SHOWN_UNLOCK),
    EvidenceKind.FINALS: (_RECEIPT, _RECEIPT),
    EvidenceKind.RECORDS: (_RECORD, _RECORD),
}


# -- building ---------------------------------------------------------------------------------------------------------


def show_statement(introducing: ProvableBatch, position: int, speaking: ProvableBatch, said_at: int) -> ShownStatement:
    """The statement at `said_at` of one batch about the record at `position` of another."""
    path = compute_path(introducing.record_levels, position)
    record = introducing.batch.records[position]
    header = introducing.batch.header_bytes
    return ShownStatement(record.encoded, header, position, path, speaking.prove_statement(said_at))


def show_unlock(requesting: ProvableBatch, position: int) -> ShownUnlock:
    """The unlock request at a position of a batch."""
    proof = requesting.prove_statement(position)
    return ShownUnlock(proof.header_bytes, proof.statement_bytes, proof.path)


def build_two_statements(kind: EvidenceKind, first: ShownStatement, second: ShownStatement) -> bytes:
    """The proof of two votes or two commits; first the one for the record with the lower id."""
    return _build(kind, first.flatten(), second.flatten())


def build_hidden_commit(commit: ShownStatement, promise: StatementProof, unlock: ShownUnlock) -> bytes:
    """The proof that a promise hides a commit."""
    return _build(EvidenceKind.HIDDEN_COMMIT, commit.flatten(), tuple(promise), tuple(unlock))


def build_two_finals(first: bytes, second: bytes) -> bytes:
    """The proof made of two receipts; first the one of the record with the lower id."""
    return _build(EvidenceKind.FINALS, first, second)


def build_two_records(left: Record, right: Record) -> bytes:
    """The proof that one key signed two records for one slot."""
    return _build(EvidenceKind.RECORDS, *(record.encoded for record in sorted((left, right), key=lambda r: r.id)))


def _build(kind: EvidenceKind, *parts: Any) -> bytes:
    return encode((PROTOCOL_VERSION, int(kind), *parts))


# -- verifying --------------------------------------------------------------------------------------------------------


def verify_evidence(charters: Charters, encoded: bytes) -> Verdict:
    """Whom the proof convicts, and of what. Raises: InvalidInput when it proves nothing.

    Two finals of different rounds prove that more was faulty than the quorum tolerates and yet name nobody: see
    `_verify_two_finals`.
    """
    raw = unpack(encoded, EVIDENCE_BYTES_MAX)
    if type(raw) is not tuple or len(raw) < 2 or type(raw[1]) is not int or raw[1] not in _PARTS:
        raise InvalidInput("no proof of a known kind")
    kind = EvidenceKind(raw[1])
    items(VERSION_SHAPE, uint(), *_PARTS[kind])(raw)
    check_canonical(raw, encoded)
    return _VERIFY[kind](charters, kind, *raw[2:])


def _verify_fork(charters: Charters, kind: EvidenceKind, *parts: bytes) -> Verdict:
    """A correct member stores each batch before anybody sees it, and so never signs two for one index (spec 4.4)."""
    header = verify_fork(charters, ForkEvidence._make(parts))
    return Verdict(kind, (header.member,), (), b"", header.index, ())


class _Said(NamedTuple):
    """A vote or commit that was proven."""

    spoken: Spoken
    record: Record
    round: Round


def _verify_shown(charters: Charters, kind: EvidenceKind, raw: tuple[Any, ...]) -> _Said:
    shown = ShownStatement._make((*raw[:4], StatementProof._make(raw[4])))
    federation = get_charter(charters, 0).federation
    record = decode_record(federation, shown.record_bytes)
    introduction = IntroductionProof(
        shown.introduction_header, (), shown.introduction_position, shown.introduction_path
    )
    place = verify_introduction(federation, record, introduction)
    spoken = verify_statement(charters, shown.statement)
    if not isinstance(spoken.statement, _STATEMENTS[kind]):
        raise InvalidInput(f"a statement is not of the kind that the proof is about ({kind.name.lower()})")
    attempt = get_attempt(spoken.statement, spoken.batch, place)
    if attempt is None:
        raise InvalidInput("a statement speaks of another record than the proof shows")
    return _Said(spoken, record, Round(spoken.header.charter_version, attempt))


def _verify_two_statements(
    charters: Charters, kind: EvidenceKind, first: tuple[Any, ...], second: tuple[Any, ...]
) -> Verdict:
    """A correct member votes for one record in a slot and round, whatever proposals there are, and commits to one
    (spec 5.2, 5.3). Whether the two statements stand in one batch, one log or two branches does not matter."""
    left, right = _verify_shown(charters, kind, first), _verify_shown(charters, kind, second)
    if left.spoken.header.member != right.spoken.header.member:
        raise InvalidInput("the two statements are of two members")
    if left.round != right.round:
        raise InvalidInput("the two statements belong to two rounds")
    scope, sequence = _check_two_records(left.record, right.record)
    return Verdict(kind, (left.spoken.header.member,), (), scope, sequence, (left.round,))


def _verify_hidden_commit(
    charters: Charters, kind: EvidenceKind, shown: tuple[Any, ...], promise: tuple[Any, ...], unlock: tuple[Any, ...]
) -> Verdict:
    """A correct member's promise reports its highest commit below the promised round, and afterwards it commits to
    nothing there (spec 5.6). So whichever of the two it said first, it never says both, and their order need not be
    shown. Only promises under the commit's own charter version count: what is reported over a change of the charter
    is a certificate, not a commit."""
    commit = _verify_shown(charters, EvidenceKind.COMMITS, shown)
    spoken = verify_statement(charters, StatementProof._make(promise))
    if not isinstance(spoken.statement, Promise):
        raise InvalidInput("the second statement is no promise")
    if spoken.header.member != commit.spoken.header.member:
        raise InvalidInput("the commit and the promise are of two members")
    slot, attempt = _verify_unlock(charters, spoken, ShownUnlock._make(unlock))
    if slot != commit.record.slot:
        raise InvalidInput("the commit and the promise are about two slots")
    promised = Round(spoken.header.charter_version, attempt)
    if commit.round.version != promised.version or not commit.round < promised:
        raise InvalidInput("the promise is not for a later round of the commit's charter version")
    report = spoken.statement.report
    if report is not None and report.round >= commit.round:
        raise InvalidInput("the promise reports the commit, or a later one")
    return Verdict(kind, (spoken.header.member,), (), *slot, (commit.round, promised))


def _verify_unlock(charters: Charters, promise: Spoken, shown: ShownUnlock) -> tuple[Slot, int]:
    """The slot and attempt of the request that a promise answers; its batch is named by its hash alone."""
    assert isinstance(promise.statement, Promise)
    header = decode_header(shown.header_bytes)
    batch_id = compute_batch_id(get_charter(charters, 0).federation, shown.header_bytes)
    if batch_id != (promise.statement.unlock_batch or promise.batch):
        raise InvalidInput("the promise answers another request")
    leaf = compute_statement_leaf(shown.statement_bytes)
    position = promise.statement.unlock_position
    if compute_root_from_path(leaf, position, header.statement_count, shown.path) != header.statement_root:
        raise InvalidInput("the request does not stand in the batch that is named")
    statement = decode_statement(shown.statement_bytes)
    if not isinstance(statement, Unlock):
        raise InvalidInput("what the promise answers is no request")
    request = decode_unlock_request(statement.request)
    return request.slot, request.attempt


def _verify_two_finals(charters: Charters, kind: EvidenceKind, first: bytes, second: bytes) -> Verdict:
    """Finals of one round convict who stands in both commit quorums, of weight 2q - W at the least: each committed
    twice. Finals of two rounds prove as well that members of weight 2q - W were faulty (spec 5.5), but a member may
    rightly commit to one record in one round and to another in the next; so that proof names nobody by itself."""
    get_charter(charters, 0)
    left, right = verify_receipt(charters, first), verify_receipt(charters, second)
    scope, sequence = _check_two_records(left.record, right.record)
    rounds = tuple(sorted({left.round, right.round}))
    members = tuple(sorted(set(left.members) & set(right.members))) if len(rounds) == 1 else ()
    return Verdict(kind, members, (), scope, sequence, rounds)


def _verify_two_records(charters: Charters, kind: EvidenceKind, first: bytes, second: bytes) -> Verdict:
    """A careful owner signs one record for a slot, and another only to free a slot that is contested already."""
    federation = get_charter(charters, 0).federation
    left, right = decode_record(federation, first), decode_record(federation, second)
    scope, sequence = _check_two_records(left, right)
    keys = tuple(sorted(list_signers(left) & list_signers(right)))
    if not keys:
        raise InvalidInput("no key signed both records")
    return Verdict(kind, (), keys, scope, sequence, ())


def list_signers(record: Record) -> set[bytes]:
    """The keys that signed the record; it may hold signatures of others that do not hold."""
    pairs = zip(record.signers, record.signatures, strict=True)
    return {signer for signer, signature in pairs if is_valid_signature(signer, record.id, signature)}


def _check_two_records(left: Record, right: Record) -> tuple[bytes, int]:
    """The slot that two records claim. Raises: InvalidInput unless they are two, of one slot, the lower id first."""
    if left.id >= right.id:
        raise InvalidInput("the two records must differ, the lower id first")
    if left.slot != right.slot:
        raise InvalidInput("the two records claim two slots")
    return left.slot


_VERIFY: dict[EvidenceKind, Callable[..., Verdict]] = {
    EvidenceKind.FORK: _verify_fork,
    EvidenceKind.VOTES: _verify_two_statements,
    EvidenceKind.COMMITS: _verify_two_statements,
    EvidenceKind.HIDDEN_COMMIT: _verify_hidden_commit,
    EvidenceKind.FINALS: _verify_two_finals,
    EvidenceKind.RECORDS: _verify_two_records,
}
