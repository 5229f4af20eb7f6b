"""Names for a trace: records and batches by words instead of hashes."""

from __future__ import annotations

from protocol.batches import Batch
from protocol.records import Record
from protocol.statements import (
    Commit,
    CommitBatch,
    Promise,
    Proposal,
    Statement,
    Unlock,
    Vote,
    VoteBatch,
    decode_slot_proposal,
    decode_unlock_request,
)


class Names:
    """What a run calls its records."""

    def __init__(self) -> None:
        self._words: dict[bytes, str] = {}
        self._batches: dict[bytes, str] = {}

    def note(self, record: Record, words: str) -> Record:
        """Remember what the record is about; returns it."""
        self._words[record.id] = f"'{words}, slot {record.sequence}, {record.id.hex()[:4]}'"
        return record

    def describe(self, record: Record) -> str:
        """The record in words."""
        return self.describe_id(record.id)

    def describe_id(self, record_id: bytes) -> str:
        """The record with this id in words."""
        return self._words.get(record_id, f"'record {record_id.hex()[:4]}'")

    def describe_batch(self, batch: Batch) -> str:
        """Everything that a batch says."""
        header = batch.header
        own = f"{header.member}#{header.index}"
        self._batches[batch.id] = own if own not in self._batches.values() else f"{own}~{batch.id.hex()[:4]}"
        parts = [f"introduces {self.describe(record)}" for record in batch.records]
        parts += [self._describe_statement(statement, batch) for statement in batch.statements]
        return f"batch {self._batches[batch.id]}: {', '.join(parts)}"

    def _describe_statement(self, statement: Statement, batch: Batch) -> str:
        words = type(statement).__name__
        if isinstance(statement, Promise):
            report = statement.report
            told = f"{self.describe_id(report.record)} at {tuple(report.round)}" if report else "nothing"
            asked = self._batches.get(statement.unlock_batch or batch.id, statement.unlock_batch.hex()[:4])
            return f"Promise to the request in {asked}, reports {told}"
        if isinstance(statement, Unlock):
            request = decode_unlock_request(statement.request)
            return f"Unlock slot {request.sequence} attempt {request.attempt}"
        if isinstance(statement, Proposal):
            proposal = decode_slot_proposal(statement.proposal)
            return f"Proposal of {self.describe_id(proposal.record)} at attempt {proposal.attempt}"
        if not isinstance(statement, (VoteBatch, CommitBatch, Vote, Commit)):
            return words
        place = self._batches.get(statement.batch or batch.id, statement.batch.hex()[:4])
        if isinstance(statement, (VoteBatch, CommitBatch)):
            return f"{words} {place}" + (f" but {statement.excluded:b}" if statement.excluded else "")
        return f"{words} {place} position {statement.position} attempt {statement.attempt}"
