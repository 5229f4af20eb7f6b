"""Finding wrongdoing: every proof that the batches of a replica hold, made from them when somebody asks.

Nothing is kept for it: what is found is a function of the set of batches, so it is found again after a restart, and
every replica with the same batches convicts the same. Only contested slots need a look: who never signed two records,
or spoke of two, contradicted nobody. It costs a pass over the log entries when there is a contested slot, so it is
meant to be asked now and then, not with every batch (spec 8.7).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from protocol.attempts import Claim, Round
from protocol.batches import Batch
from protocol.contests import Place
from protocol.equivocation import EvidenceKind
from protocol.evidence import (
    ShownStatement,
    Verdict,
    build_hidden_commit,
    build_two_finals,
    build_two_records,
    build_two_statements,
    list_signers,
    show_statement,
    show_unlock,
    verify_evidence,
)
from protocol.identifiers import Slot
from protocol.receipts import FetchProvable, build_receipt, get_attempt
from protocol.records import Record, has_valid_signatures
from protocol.replica import Replica
from protocol.statements import (
    Commit,
    CommitBatch,
    Promise,
    Unlock,
    Vote,
    VoteBatch,
    decode_unlock_request,
)

SLOTS_SHOWN_MAX = 100
"""Slots for which two finals, and as many for which two signed records are listed. Anybody can make new keys and sign
with them what contradicts itself, so that list must end somewhere; members are convicted whatever its length."""

RECORDS_CHECKED_MAX = 64
"""Records of one slot whose signatures are checked for that."""


class Evidence(NamedTuple):
    """A proof and what it proves."""

    encoded: bytes
    verdict: Verdict


class _Mention(NamedTuple):
    """Where a member spoke of a record."""

    introduction: Place
    batch: bytes
    position: int


class _Promised(NamedTuple):
    """Where a member promised to do nothing more below a round of a slot, and what it reported."""

    slot: Slot
    promised: Round
    report: Claim | None
    batch: bytes
    position: int
    request: Place


Statements = dict[tuple[Slot, int, EvidenceKind, Round], dict[bytes, _Mention]]
"""(slot, member, votes or commits, round) -> record -> where it was said first."""


def find_evidence(replica: Replica, fetch: FetchProvable) -> list[Evidence]:
    """The proofs that this replica's batches hold: of each member one of each kind, which is enough to convict it;
    of contested slots two finals and two records signed by one key, in the order of the slots.
    """
    charters = replica.ledger.charters
    contested = list_contested_slots(replica, fetch)
    proofs = [evidence.encode() for _, evidence in sorted(replica.forks.items())]
    proofs += _find_contradictions(replica, fetch, contested)
    proofs += islice(_find_two_finals(replica, fetch, contested), SLOTS_SHOWN_MAX)
    proofs += islice(_find_two_records(replica, fetch, contested), SLOTS_SHOWN_MAX)
    # What is shown was verified as anybody else would: a mistake here must never accuse somebody.
    return [Evidence(proof, verify_evidence(charters, proof)) for proof in proofs]


# -- contested slots --------------------------------------------------------------------------------------------------


def list_contested_slots(replica: Replica, fetch: FetchProvable) -> dict[Slot, list[bytes]]:
    """Slots for which the set holds two records or more, with the ids of all of them, ascending."""
    claims: dict[Slot, set[bytes]] = {}
    introductions = replica.get_open_introductions()
    claiming = [record for introduction in introductions for record in introduction.records.values()]
    for record in (*claiming, *replica.get_losers()):
        claims.setdefault(record.slot, set()).add(record.id)
    for slot, ids in claims.items():
        ids.update(_find_applied(replica, fetch, slot))
    return {slot: sorted(ids) for slot, ids in sorted(claims.items()) if len(ids) > 1}


def _find_applied(replica: Replica, fetch: FetchProvable, slot: Slot) -> Iterator[bytes]:
    """The record that has applied in a slot: back from the scope's head, each record names the one before."""
    scope, sequence = slot
    head = replica.get_chain_head(scope)
    if head is None or head.sequence < sequence or replica.was_decided_before(scope, sequence):
        return
    record_id = head.record
    for _ in range(head.sequence - sequence):
        record_id = _read_record(replica, fetch, record_id).prev
    yield record_id


def _read_record(replica: Replica, fetch: FetchProvable, record_id: bytes) -> Record:
    located = replica.locate(record_id)
    assert located is not None, "a record of a closed set stands in some batch"
    return fetch(located[0].batch).batch.records[located[1]]


# -- what members said ------------------------------------------------------------------------------------------------


def _find_contradictions(replica: Replica, fetch: FetchProvable, contested: dict[Slot, list[bytes]]) -> Iterator[bytes]:
    """Of each member one proof of two votes, one of two commits and one of a hidden commit, if there are any."""
    reader = _Reader(replica, fetch, contested)
    statements, promises = reader.statements, reader.promises
    convicted: set[tuple[int, EvidenceKind]] = set()
    for (_, member, kind, _), said in sorted(statements.items(), key=lambda item: item[0]):
        if len(said) > 1 and (member, kind) not in convicted:
            convicted.add((member, kind))
            first, second = (_show(fetch, said[record_id]) for record_id in sorted(said)[:2])
            yield build_two_statements(kind, first, second)
    for (slot, member, kind, commit_round), said in sorted(statements.items(), key=lambda item: item[0]):
        if kind is EvidenceKind.COMMITS and (member, EvidenceKind.HIDDEN_COMMIT) not in convicted:
            hiding = _find_hiding(promises.get((slot, member), ()), commit_round)
            if hiding is not None:
                convicted.add((member, EvidenceKind.HIDDEN_COMMIT))
                promise = fetch(hiding.batch).prove_statement(hiding.position)
                unlock = show_unlock(fetch(hiding.request[0]), hiding.request[1])
                yield build_hidden_commit(_show(fetch, said[min(said)]), promise, unlock)


def _find_hiding(promises: Iterable[_Promised], commit_round: Round) -> _Promised | None:
    """A promise for a later round of the commit's charter version that reports nothing as high as the commit."""
    for promise in promises:
        is_later = promise.promised.version == commit_round.version and commit_round < promise.promised
        if is_later and (promise.report is None or promise.report.round < commit_round):
            return promise
    return None


def _show(fetch: FetchProvable, said: _Mention) -> ShownStatement:
    batch_id, position = said.introduction
    return show_statement(fetch(batch_id), position, fetch(said.batch), said.position)


class _Reader:
    """Goes once through the log, parents first, and notes what members said about contested slots."""

    def __init__(self, replica: Replica, fetch: FetchProvable, contested: dict[Slot, list[bytes]]) -> None:
        self.statements: Statements = {}
        self.promises: dict[tuple[Slot, int], list[_Promised]] = {}
        self._slots = {record_id: slot for slot, ids in contested.items() for record_id in ids}
        self._places: dict[bytes, list[tuple[int, bytes]]] = {}
        """Introducing batch -> positions and ids of records of contested slots."""
        self._requests = {
            place: request for contest in replica.contests.values() for place, request in contest.requests.items()
        }
        for record_id in self._slots:
            for introduction, position in replica.get_introductions(record_id):
                self._places.setdefault(introduction.batch, []).append((position, record_id))
        self._named = set(self._places) | {batch_id for batch_id, _ in self._requests}
        """Batches of which a statement that counts here must speak."""
        for batch_id, entry in replica.entries.items() if self._slots else ():
            if batch_id in self._named or not self._named.isdisjoint(entry.parents):
                self._read(fetch(batch_id).batch)

    def _read(self, batch: Batch) -> None:
        for position, statement in enumerate(batch.statements):
            match statement:
                case VoteBatch() | CommitBatch() | Vote() | Commit():
                    self._note_spoken(batch, position, statement)
                case Unlock():
                    request = decode_unlock_request(statement.request)
                    self._requests[batch.id, position] = request
                    self._named.add(batch.id)
                case Promise():
                    self._note_promise(batch, position, statement)

    def _note_spoken(self, batch: Batch, position: int, statement: VoteBatch | CommitBatch | Vote | Commit) -> None:
        introducing = statement.batch or batch.id
        kind = EvidenceKind.VOTES if isinstance(statement, (VoteBatch, Vote)) else EvidenceKind.COMMITS
        for place, record_id in self._places.get(introducing, ()):
            attempt = get_attempt(statement, batch.id, (introducing, place))
            if attempt is not None:
                spoken_round = Round(batch.header.charter_version, attempt)
                said = self.statements.setdefault((self._slots[record_id], batch.header.member, kind, spoken_round), {})
                said.setdefault(record_id, _Mention((introducing, place), batch.id, position))

    def _note_promise(self, batch: Batch, position: int, statement: Promise) -> None:
        place = (statement.unlock_batch or batch.id, statement.unlock_position)
        request = self._requests.get(place)
        if request is not None:
            slot = request.slot
            promised = Round(batch.header.charter_version, request.attempt)
            given = _Promised(slot, promised, statement.report, batch.id, position, place)
            self.promises.setdefault((slot, batch.header.member), []).append(given)


# -- finals and owners ------------------------------------------------------------------------------------------------


def _find_two_finals(replica: Replica, fetch: FetchProvable, contested: dict[Slot, list[bytes]]) -> Iterator[bytes]:
    """Of each slot with two finals, one proof."""
    for ids in contested.values():
        finals = [record_id for record_id in ids if replica.is_final(record_id)]
        if len(finals) > 1:
            first, second = (build_receipt(replica, record_id, fetch) for record_id in finals[:2])
            if first is not None and second is not None:
                yield build_two_finals(first, second)


def _find_two_records(replica: Replica, fetch: FetchProvable, contested: dict[Slot, list[bytes]]) -> Iterator[bytes]:
    """Of each contested slot a proof against the key that signed two of its records, if one did."""
    for ids in contested.values():
        signed: dict[bytes, Record] = {}
        for record_id in ids[:RECORDS_CHECKED_MAX]:
            record = _read_signed(replica, fetch, record_id)
            signers = list_signers(record)
            before = [signed[key] for key in sorted(signers) if key in signed]
            if before:
                yield build_two_records(before[0], record)
                break
            signed.update(dict.fromkeys(signers, record))


def _read_signed(replica: Replica, fetch: FetchProvable, record_id: bytes) -> Record:
    """The record in a spelling whose signatures hold, if some batch spells it so: one that introduces it may break
    them."""
    places = replica.get_introductions(record_id)
    spellings = [fetch(introduction.batch).batch.records[position] for introduction, position in places]
    return next((record for record in spellings if has_valid_signatures(record)), spellings[0])
