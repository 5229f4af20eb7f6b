"""A receipt of finality: proof on a few kilobytes, checked offline with the charter alone.

It shows the record, where it was introduced, and commits of a quorum in one round, each with the signed header of the
batch that carries it and a Merkle path. A commit quorum is enough: it holds a correct member that saw the certificate
(spec 11). Headers of introducing batches need no signature: their hash is the name that the commits use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

from protocol.attempts import Round
from protocol.batches import (
    HEADER_BYTES_MAX,
    Batch,
    Header,
    compute_batch_id,
    compute_record_leaf,
    compute_statement_leaf,
    decode_header,
    is_signed_header,
)
from protocol.charter import Charter, Charters, get_charter
from protocol.codec import VERSION_SHAPE, binary, binary_up_to, decode, encode, items, list_of, uint
from protocol.contests import Place
from protocol.errors import InvalidInput
from protocol.identifiers import ID_BYTES
from protocol.introductions import Introduction
from protocol.ledger import read_amendment
from protocol.limits import (
    MEMBERS_MAX,
    PROTOCOL_VERSION,
    RECORD_BYTES_MAX,
    RECORDS_PER_BATCH_MAX,
    SIGNERS_MAX,
    STATEMENT_BYTES_MAX,
    STATEMENTS_PER_BATCH_MAX,
)
from protocol.merkle import compute_levels, compute_path, compute_root_from_path
from protocol.records import Kind, Record, charter_scope, decode_record
from protocol.replica import Replica
from protocol.signatures import SIGNATURE_BYTES
from protocol.statements import Commit, CommitBatch, Statement, Vote, VoteBatch, decode_statement

RECEIPT_BYTES_MAX = RECORD_BYTES_MAX + MEMBERS_MAX * 2048
PATH_SHAPE = list_of(binary(ID_BYTES), 16)


class IntroductionProof(NamedTuple):
    """The record stands at `position` of the batch with this header."""

    header_bytes: bytes
    signatures: tuple[bytes, ...]
    """The record's signatures as that batch spells them; empty when they are those of the receipt's record.

    Signatures are no part of an id, so a faulty writer or member can introduce one record under two spellings, and
    correct members may commit to it through either."""
    position: int
    path: tuple[bytes, ...]


class StatementProof(NamedTuple):
    """The statement stands at `position` of the batch with this signed header."""

    header_bytes: bytes
    signature: bytes
    statement_bytes: bytes
    position: int
    path: tuple[bytes, ...]


STATEMENT_PROOF_SHAPES = (
    binary_up_to(HEADER_BYTES_MAX),
    binary(SIGNATURE_BYTES),
    binary_up_to(STATEMENT_BYTES_MAX, 1),
    uint(STATEMENTS_PER_BATCH_MAX - 1),
    PATH_SHAPE,
)


class Spoken(NamedTuple):
    """What a proven statement says, and in which batch."""

    header: Header
    batch: bytes
    statement: Statement


_RECEIPT = items(
    VERSION_SHAPE,
    binary_up_to(RECORD_BYTES_MAX, 1),
    list_of(
        items(
            binary_up_to(HEADER_BYTES_MAX),
            list_of(binary(SIGNATURE_BYTES), SIGNERS_MAX),
            uint(RECORDS_PER_BATCH_MAX - 1),
            PATH_SHAPE,
        ),
        MEMBERS_MAX,
        1,
    ),
    list_of(items(uint(MEMBERS_MAX - 1), *STATEMENT_PROOF_SHAPES), MEMBERS_MAX, 1),
)


class VerifiedReceipt(NamedTuple):
    """What a receipt proves."""

    record: Record
    round: Round
    members: tuple[int, ...]
    """The members whose commits it shows, ascending."""


def verify_receipt(charters: Charters, encoded: bytes) -> VerifiedReceipt:
    """What the receipt proves under these versions of the charter. Raises: InvalidInput when it proves nothing."""
    _, record_bytes, raw_introductions, raw_commits = decode(_RECEIPT, encoded, RECEIPT_BYTES_MAX)
    federation = charters[0].federation
    record = decode_record(federation, record_bytes)
    introductions = []
    for raw in raw_introductions:
        introductions.append(verify_introduction(federation, record, IntroductionProof._make(raw)))
    members: list[int] = []
    rounds = set()
    for raw in raw_commits:
        member, commit_round = _verify_commit(charters, introductions, raw[0], StatementProof._make(raw[1:]))
        members.append(member)
        rounds.add(commit_round)
    if {raw[0] for raw in raw_commits} != set(range(len(introductions))):
        raise InvalidInput("the receipt holds an introduction that no commit in it uses")
    if members != sorted(set(members)):
        raise InvalidInput("the commits must stand in ascending order of their members, each once")
    if len(rounds) != 1:
        raise InvalidInput("the commits don't belong to one round")
    commit_round = rounds.pop()
    charter = charters[commit_round.version]
    weight = sum(charter.weights[member] for member in members)
    if weight < charter.quorum:
        raise InvalidInput(f"commits of weight {weight} are no quorum; {charter.quorum} is needed")
    return VerifiedReceipt(record, commit_round, tuple(members))


def find_charter_version(encoded: bytes) -> int:
    """The charter version by which a receipt is to be checked. Raises: InvalidInput when it is malformed."""
    raw_commits = decode(_RECEIPT, encoded, RECEIPT_BYTES_MAX)[3]
    return decode_header(raw_commits[0][1]).charter_version


def verify_amendments(charters: Charters, receipts: Iterable[bytes]) -> dict[int, Charter]:
    """`charters`, and the versions after them that these receipts prove one by one: each was made final under the
    version before it, so whoever pins the federation's id can check them all (spec 9.5).

    Raises: InvalidInput when a receipt proves nothing, or something else than the next version.
    """
    known = dict(charters)
    federation = known[0].federation
    for receipt in receipts:
        newest = max(known)
        record = verify_receipt(known, receipt).record
        if record.kind != Kind.AMEND or record.slot != (charter_scope(federation), newest):
            raise InvalidInput(f"the receipt is for something else than the amendment of charter version {newest}")
        after = read_amendment(federation, record)
        if after is None:
            raise InvalidInput("the amendment holds no charter")
        known[after.version] = after
    return known


def verify_introduction(federation: bytes, record: Record, proof: IntroductionProof) -> Place:
    """Where the record was introduced. Raises: InvalidInput."""
    header = decode_header(proof.header_bytes)
    if proof.signatures == record.signatures:
        raise InvalidInput("signatures that equal the record's are left out")
    leaf = compute_record_leaf(record, proof.signatures or record.signatures)
    if compute_root_from_path(leaf, proof.position, header.record_count, proof.path) != header.record_root:
        raise InvalidInput("the record does not stand in the batch that is named")
    return compute_batch_id(federation, proof.header_bytes), proof.position


def verify_statement(charters: Charters, proof: StatementProof) -> Spoken:
    """What a member said under the charter version that it names. Raises: InvalidInput when it did not sign it."""
    header = decode_header(proof.header_bytes)
    charter = get_charter(charters, header.charter_version)
    batch_id = compute_batch_id(charter.federation, proof.header_bytes)
    if not is_signed_header(charter, header, batch_id, proof.signature):
        raise InvalidInput("a batch is not signed by a member of this federation")
    leaf = compute_statement_leaf(proof.statement_bytes)
    root = compute_root_from_path(leaf, proof.position, header.statement_count, proof.path)
    if root != header.statement_root:
        raise InvalidInput("a statement does not stand in the batch that is named")
    return Spoken(header, batch_id, decode_statement(proof.statement_bytes))


def get_attempt(statement: Statement, batch: bytes, place: Place) -> int | None:
    """The attempt at which a vote or commit in `batch` speaks of the record at `place`; None when it does not."""
    if not isinstance(statement, (VoteBatch, CommitBatch, Vote, Commit)) or (statement.batch or batch) != place[0]:
        return None
    if isinstance(statement, (VoteBatch, CommitBatch)):
        return None if statement.excluded >> place[1] & 1 else 0
    return statement.attempt if statement.position == place[1] else None


def _verify_commit(
    charters: Charters, introductions: list[Place], number: int, proof: StatementProof
) -> tuple[int, Round]:
    """(member, round) of a commit to the record through introduction `number`."""
    if number >= len(introductions):
        raise InvalidInput("a commit names an introduction that the receipt does not hold")
    spoken = verify_statement(charters, proof)
    if not isinstance(spoken.statement, (CommitBatch, Commit)):
        raise InvalidInput("a statement in the receipt is no commit")
    attempt = get_attempt(spoken.statement, spoken.batch, introductions[number])
    if attempt is None:
        raise InvalidInput("a commit in the receipt speaks of another record")
    return spoken.header.member, Round(spoken.header.charter_version, attempt)


def read_receipt_record(federation: bytes, encoded: bytes) -> Record:
    """The record that a receipt is about; what it proves is asked of `verify_receipt`. Raises: InvalidInput."""
    return decode_record(federation, decode(_RECEIPT, encoded, RECEIPT_BYTES_MAX)[1])


class ProvableBatch:
    """A batch with its Merkle trees, computed once for all the receipts that need it."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    @cached_property
    def record_levels(self) -> list[Sequence[bytes]]:
        """The tree over the records."""
        return compute_levels([compute_record_leaf(record) for record in self.batch.records])

    @cached_property
    def statement_levels(self) -> list[Sequence[bytes]]:
        """The tree over the statements."""
        return compute_levels([compute_statement_leaf(content) for content in self.batch.statement_bytes])

    def prove_statement(self, position: int) -> StatementProof:
        """That the member said the statement at this position."""
        batch = self.batch
        path = compute_path(self.statement_levels, position)
        return StatementProof(batch.header_bytes, batch.signature, batch.statement_bytes[position], position, path)


FetchProvable = Callable[[bytes], ProvableBatch]
"""Reads a stored batch by its id."""


def build_receipt(replica: Replica, record_id: bytes, fetch: FetchProvable) -> bytes | None:
    """The smallest receipt that this replica can give for a final record; None when it was made from a snapshot that
    some of the commits lie before.

    Of the members that committed, the heaviest that make a quorum are shown.
    """
    located = replica.get_introductions(record_id)
    chosen = _choose_commits(replica, located)
    if chosen is None:
        return None
    used = sorted({number for number, *_ in chosen})
    first, first_position = located[used[0]]
    record = fetch(first.batch).batch.records[first_position]
    introductions = []
    for number in used:
        introduction, position = located[number]
        provable = fetch(introduction.batch)
        spelled = provable.batch.records[position].signatures
        signatures = () if spelled == record.signatures else spelled
        path = compute_path(provable.record_levels, position)
        introductions.append((provable.batch.header_bytes, signatures, position, path))
    commits = []
    for number, _member, batch_id, position in sorted(chosen, key=lambda item: item[1]):
        commits.append((used.index(number), *fetch(batch_id).prove_statement(position)))
    return encode((PROTOCOL_VERSION, record.encoded, tuple(introductions), tuple(commits)))


def _choose_commits(
    replica: Replica, located: Iterable[tuple[Introduction, int]]
) -> list[tuple[int, int, bytes, int]] | None:
    """(introduction number, member, batch, statement position) of a quorum in the first round that has one."""
    by_round: dict[Round, dict[int, tuple[int, int, bytes, int]]] = {}
    for number, (introduction, position) in enumerate(located):
        for spoken in introduction.commit_statements:
            if spoken.mask >> position & 1:
                members = by_round.setdefault(spoken.round, {})
                members.setdefault(spoken.member, (number, spoken.member, spoken.batch, spoken.position))
    for commit_round in sorted(by_round):
        charter = replica.ledger.charters[commit_round.version]
        weights = charter.weights
        heaviest = sorted(by_round[commit_round].values(), key=lambda item: (item[0], -weights[item[1]], item[1]))
        chosen, weight = [], 0
        for commit in heaviest:
            chosen.append(commit)
            weight += weights[commit[1]]
            if weight >= charter.quorum:
                return chosen
    assert replica.named_count, "a final record has a commit quorum"
    return None
