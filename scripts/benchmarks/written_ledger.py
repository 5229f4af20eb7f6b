"""Writes a long, valid ledger quickly: three of four members' logs signed in turn, with no replica and no network.

What the members would say is known beforehand: each chunk of records is introduced and voted for by the first, voted
for by the others, and committed to by all in their next batches. So only signing costs anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from node.storage.store import Store
from protocol.batches import Batch, LogPosition, build_batch
from protocol.records import Record
from protocol.statements import Checkpoint, CommitBatch, Statement, VoteBatch
from scripts.benchmarks.federation_in_memory import Cast

WRITERS = (1, 2, 3)
PER_PAYMENT_BYTES_MAX = 480


class LedgerWriter:
    """The logs of members 1 to 3, as far as they were written."""

    def __init__(self, cast: Cast, store: Store) -> None:
        self.record_count = 0
        self.batch_count = 0
        self._cast = cast
        self._store = store
        self._tips: dict[int, Batch] = {}
        self._open: bytes = b""
        """The introducing batch that is voted for and not yet committed to."""

    def write_records(self, records: Sequence[Record]) -> None:
        """One chunk: at most what fits a batch."""
        committed: list[Statement] = [CommitBatch(self._open, 0)] if self._open else []
        introducing = self._sign(1, records, [VoteBatch(b"", 0), *committed])
        for member in WRITERS[1:]:
            self._sign(member, (), [VoteBatch(introducing.id, 0), *committed])
        self._open = introducing.id
        self.record_count += len(records)

    def commit(self) -> bytes:
        """Make all that was written final; returns the last batch, whose past is everything."""
        committed = [CommitBatch(self._open, 0)]
        self._open = b""
        return [self._sign(member, (), committed).id for member in WRITERS][-1]

    def certify(self, claim: Checkpoint) -> list[Batch]:
        """All say the root of a checkpoint."""
        return [self._sign(member, (), [claim]) for member in WRITERS]

    def _sign(self, member: int, records: Sequence[Record], statements: Sequence[Statement]) -> Batch:
        own = self._tips.get(member)
        batch = build_batch(
            self._cast.founded.charter,
            self._cast.vote_keys[member],
            member,
            LogPosition(own.header.index + 1, own.id) if own else LogPosition(0, b""),
            seen=[tip.id for other, tip in self._tips.items() if other != member],
            time_ms=0,
            records=records,
            statements=statements,
        )
        self._tips[member] = batch
        self._store.append_batches([(batch.id, batch.encoded)])
        self.batch_count += 1
        return batch


def write_setup(writer: LedgerWriter, cast: Cast, chunk: int) -> None:
    """Everybody is enrolled and gets credits."""
    for group in cast.make_setup():
        for start in range(0, len(group), chunk):
            writer.write_records(group[start : start + chunk])
        writer.commit()


def write_payments(writer: LedgerWriter, cast: Cast, count: int, chunk: int) -> None:
    """This many payments, everybody's in turn."""
    people = len(cast.accounts)
    for start in range(0, count, chunk):
        numbers: Iterable[int] = (number % people for number in range(start, min(start + chunk, count)))
        writer.write_records(cast.make_payments_of(numbers))
