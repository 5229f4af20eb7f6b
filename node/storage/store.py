"""The node's memory: one transaction a call, on disk when the call returns.

*Resource handling.* One file, one connection, one process; calls may come from any thread, one at a time. Nothing
here waits for the network. *Error handling.* `StoreFailed` (a UserError) when the disk fails: the caller must not
send what it could not store. `StoreFull` when a limit of `limits.py` is reached: the asker may try again later.
`:memory:` is the same code without a disk; `serialize` and `restore` make it a disk that can be set back.

Batches take the short way: peewee writes their SQL once, and a call is one transaction with one `executemany`.
Everything else happens rarely and is left to peewee whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import IntEnum, unique
from pathlib import Path
from typing import Literal, NamedTuple

import peewee

from node.storage.database import MEMORY, Database, open_database
from node.storage.limits import (
    BUDGET_REQUESTS_OPEN_MAX,
    CHUNK_BATCHES_MAX,
    FACTS_PER_READ,
    MAILBOX_BYTES_MAX,
    MAILBOX_MESSAGES_MAX,
    MESSAGE_SECONDS_MAX,
    METERED_MAX,
    METERED_PER_ACCOUNT_MAX,
    METERED_ROWS_MAX,
    METERED_SECONDS_MAX,
    OFFERS_MAX,
    POST_BYTES_MAX,
    POST_MESSAGES_MAX,
    READ_BYTES_MAX,
    READ_MESSAGES_MAX,
)
from node.storage.migrations import STEPS, check_whose, run_sql
from node.storage.tables import Batch, BudgetRequest, Mark, Message, Metering, Offer
from protocol.quotes import OFFER_BYTES_MAX

_APPEND = Batch.insert(id=b"", encoded=b"").on_conflict(conflict_target=[Batch.id], action="NOTHING").sql()[0]
_READ = (
    Batch.select(Batch.number, Batch.id, Batch.encoded)
    .where(Batch.number >= 0)
    .order_by(Batch.number)
    .limit(1)
    .sql()[0]
)


@unique
class MarkKind(IntEnum):
    """What the numbers of the table of marks are about; written to disk, so a number is never used again."""

    RUNNING_SECONDS = 1
    """Under no name: for how long this node has run."""
    GRACE_ENDS = 2
    """By reclaim request: the running second at which its hold's grace is over."""
    APPROVED = 3
    """By amendment: this institution's people approved it, at Unix time."""
    SILENCED = 4
    """Under no name: one more than the charter version under which this node signs nothing more."""
    IN_FORCE = 5
    """By charter version (8 bytes): Unix time at which it came into force here."""


class StoreFull(Exception):
    """A limit on what is kept for others is reached; the text says which."""


class StoredRequest(NamedTuple):
    """A person's request for a budget."""

    id: bytes
    program: bytes
    account: bytes
    encoded: bytes
    is_approved: bool


class StoredMetering(NamedTuple):
    """A job that is metered for a wallet."""

    ticket: bytes
    account: bytes
    is_active: bool
    """False: it was given back, or is over."""
    expires_seconds: int
    encoded: bytes


class StoredMessage(NamedTuple):
    """A letter. `sequence` grows with every letter of every mailbox, so a mailbox's own have gaps."""

    sequence: int
    content: bytes


class Store:
    """All that the node keeps, save blobs."""

    def __init__(self, database: Database) -> None:
        self._database = database
        totals = Message.select(peewee.fn.COUNT(Message.number), peewee.fn.SUM(Message.content_bytes)).tuples()
        with database.reading() as reading:
            messages, message_bytes = totals.execute(reading)[0]
        self._messages = int(messages)
        self._message_bytes = int(message_bytes or 0)

    @classmethod
    def open(cls, path: Path | Literal[":memory:"], federation: bytes) -> Store:
        """The store of this federation in the file at `path`, made when there is none.

        Raises: UserError, in one line, when the file is damaged, newer than this program, of another federation or
        program, in use by another process, or can't be written.
        """
        return cls(open_database(path, federation))

    def close(self) -> None:
        """Let go of the file; every later call raises StoreFailed."""
        self._database.close()

    def serialize(self) -> bytes:
        """The whole store as bytes, as it is now: a backup, or a simulated disk before a power cut."""
        with self._database.reading():
            return bytes(self._database.connection.serialize())

    @classmethod
    def restore(cls, content: bytes, federation: bytes) -> Store:
        """A store in memory with the content that `serialize` gave. Raises: UserError for another federation's."""
        database = open_database(MEMORY, federation)
        with database.reading() as reading:
            database.connection.deserialize(content)
            check_whose(reading, MEMORY, federation, len(STEPS))
        return cls(database)

    # Batches: the ledger itself.

    def append_batches(self, batches: Sequence[tuple[bytes, bytes]]) -> None:
        """Keep (id, encoded) in this order, all or none, on disk on return. What is kept already changes nothing.

        Raises: StoreFailed; then none of them may be shown to anybody.
        """
        with self._database.transaction() as connection:
            connection.executemany(_APPEND, batches)

    def count_batches(self) -> int:
        """How many batches are here."""
        with self._database.reading() as reading:
            return int(run_sql(reading, "SELECT count(*) FROM batch")[0][0])

    def get_batch(self, batch_id: bytes) -> bytes | None:
        """The bytes of one batch."""
        with self._database.reading() as reading:
            rows = run_sql(reading, "SELECT encoded FROM batch WHERE id = ?", (batch_id,))
        return rows[0][0] if rows else None

    def get_batches(self, first_number: int, limit: int) -> list[tuple[int, bytes, bytes]]:
        """Up to `limit` (number, id, batch) in order of admission, from `first_number` on (they count from 1)."""
        with self._database.reading() as reading:
            return run_sql(reading, _READ, (first_number, limit))

    def iterate_batches(self) -> Iterator[bytes]:
        """All batches in order of admission, a bounded piece in memory. Batches may be appended meanwhile."""
        number = 0
        while piece := self.get_batches(number + 1, CHUNK_BATCHES_MAX):
            yield from [encoded for _, _, encoded in piece]
            number = piece[-1][0]

    # Where the ledger begins, when not at the genesis charter.

    def begin_with(
        self, facts: Iterable[bytes], receipts: Iterable[tuple[bytes, bytes]] = (), archived: Iterable[bytes] = ()
    ) -> None:
        """The ledger begins with these facts from now on, these (record, receipt) of amendments are kept, and these
        batches go; all or nothing, on disk on return.

        The caller keeps the archived batches elsewhere, and has checked that a quorum certified the facts.
        """
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM fact")
            connection.executemany("INSERT INTO fact (encoded) VALUES (?)", ((fact,) for fact in facts))
            connection.executemany("INSERT OR REPLACE INTO receipt (record, encoded) VALUES (?, ?)", receipts)
            connection.executemany("DELETE FROM batch WHERE id = ?", ((batch,) for batch in archived))

    def get_receipt(self, record_id: bytes) -> bytes | None:
        """The receipt of an amendment that was kept when the ledger's beginning moved."""
        with self._database.reading() as reading:
            rows = run_sql(reading, "SELECT encoded FROM receipt WHERE record = ?", (record_id,))
        return bytes(rows[0][0]) if rows else None

    def compact(self) -> None:
        """Give the space of what is gone back to the disk; the file is written anew."""
        with self._database.reading() as reading:
            run_sql(reading, "VACUUM")

    def iterate_facts(self) -> Iterator[bytes]:
        """The facts with which the ledger begins; none when it begins at the genesis charter."""
        number = 0
        while True:
            with self._database.reading() as reading:
                piece = run_sql(
                    reading,
                    "SELECT number, encoded FROM fact WHERE number > ? ORDER BY number LIMIT ?",
                    (number, FACTS_PER_READ),
                )
            if not piece:
                return
            yield from [bytes(encoded) for _, encoded in piece]
            number = piece[-1][0]

    @property
    def begins_late(self) -> bool:
        """True when the ledger begins with a checkpoint here, so that earlier batches are known by name only."""
        with self._database.reading() as reading:
            return bool(run_sql(reading, "SELECT 1 FROM fact LIMIT 1"))

    # Marks of this node.

    def put_marks(self, kind: MarkKind, marks: Mapping[bytes, int]) -> None:
        """Remember these numbers by name, in place of those before; on disk on return. Raises: StoreFailed."""
        rows = [{"kind": int(kind), "name": name, "value": value} for name, value in marks.items()]
        if rows:
            with self._database.transaction():
                Mark.insert_many(rows).on_conflict_replace().execute(self._database.peewee)

    def get_marks(self, kind: MarkKind) -> dict[bytes, int]:
        """Name -> number."""
        with self._database.reading() as reading:
            rows = run_sql(reading, "SELECT name, value FROM mark WHERE kind = ?", (int(kind),))
        return {bytes(name): int(value) for name, value in rows}

    def remove_mark(self, kind: MarkKind, name: bytes) -> None:
        """Forget one."""
        query = Mark.delete().where(Mark.kind == int(kind), Mark.name == name)
        with self._database.transaction():
            query.execute(self._database.peewee)

    # Requests for budgets.

    def put_budget_request(self, request_id: bytes, program: bytes, account: bytes, encoded: bytes) -> None:
        """Keep a request. A person's newer request takes the place of the open one; the same one changes nothing.

        Raises: StoreFull.
        """
        kept = BudgetRequest
        with self._database.transaction():
            run = self._database.peewee
            if kept.select(kept.number).where(kept.id == request_id).tuples().execute(run)[:]:
                return
            is_replaced = (kept.program == program) & (kept.account == account) & ~kept.is_approved
            kept.delete().where(is_replaced).execute(run)
            ((count,),) = kept.select(peewee.fn.COUNT(kept.number)).where(~kept.is_approved).tuples().execute(run)
            if count >= BUDGET_REQUESTS_OPEN_MAX:
                raise StoreFull("too many requests for budgets wait for an answer")
            kept.insert(id=request_id, program=program, account=account, encoded=encoded, is_approved=False).execute(
                run
            )

    def get_budget_request(self, request_id: bytes) -> StoredRequest | None:
        """One request, open or approved."""
        found = self._read_requests(BudgetRequest.id == request_id)
        return found[0] if found else None

    def list_budget_requests(
        self, program: bytes | None = None, is_approved: bool | None = None, limit: int = BUDGET_REQUESTS_OPEN_MAX
    ) -> list[StoredRequest]:
        """Requests in the order in which they came, of one program or all, open or approved or both."""
        condition = BudgetRequest.number > 0
        if program is not None:
            condition &= BudgetRequest.program == program
        if is_approved is not None:
            condition &= BudgetRequest.is_approved == is_approved
        return self._read_requests(condition, limit)

    def _read_requests(self, condition: peewee.Expression, limit: int = 1) -> list[StoredRequest]:
        kept = BudgetRequest
        query = kept.select(kept.id, kept.program, kept.account, kept.encoded, kept.is_approved).where(condition)
        with self._database.reading() as reading:
            rows = query.order_by(kept.number).limit(limit).tuples().execute(reading)
            return [StoredRequest._make((*map(bytes, row[:4]), bool(row[4]))) for row in rows]

    def mark_approved(self, request_id: bytes) -> bool:
        """Note that the institution enrolled the person. False when there is no such request."""
        query = BudgetRequest.update(is_approved=True).where(BudgetRequest.id == request_id)
        with self._database.transaction():
            return bool(query.execute(self._database.peewee))

    def list_participants(self, program: bytes) -> list[bytes]:
        """Accounts of the people whose request for this program was approved, each once, the earliest first."""
        approved = self.list_budget_requests(program, is_approved=True, limit=-1)
        return list(dict.fromkeys(request.account for request in approved))

    # Offers of donors.

    def put_offer(self, donor: bytes, encoded: bytes, expires_seconds: int) -> bool:
        """Keep a donor's offer unless a later or the same one is known. True when something changed.

        Raises: StoreFull.
        """
        assert len(encoded) <= OFFER_BYTES_MAX
        with self._database.transaction():
            run = self._database.peewee
            known = Offer.select(Offer.expires_seconds).where(Offer.donor == donor).tuples().execute(run)[:]
            if known and known[0][0] >= expires_seconds:
                return False
            ((count,),) = Offer.select(peewee.fn.COUNT(Offer.donor)).tuples().execute(run)
            if not known and count >= OFFERS_MAX:
                raise StoreFull("too many offers are kept here")
            changed = Offer.insert(donor=donor, encoded=encoded, expires_seconds=expires_seconds)
            changed.on_conflict_replace().execute(run)
            return True

    def list_offers(self, now_seconds: int) -> list[tuple[bytes, bytes, int]]:
        """(donor, encoded, expires) of all offers that still hold, by donor."""
        query = Offer.select(Offer.donor, Offer.encoded, Offer.expires_seconds)
        with self._database.reading() as reading:
            rows = query.where(Offer.expires_seconds > now_seconds).order_by(Offer.donor).tuples().execute(reading)
            return [(bytes(donor), bytes(encoded), int(expires)) for donor, encoded, expires in rows]

    # Jobs that are metered for absent wallets.

    def put_metering(self, row: StoredMetering) -> None:
        """Keep a job's state in place of the one before; on disk on return. Raises: StoreFull for one too many."""
        kept = Metering
        with self._database.transaction():
            run = self._database.peewee
            known = kept.select(kept.is_active).where(kept.ticket == row.ticket).tuples().execute(run)[:]
            if row.is_active and not (known and known[0][0]):
                for condition, limit in (
                    (kept.ticket != row.ticket, METERED_ROWS_MAX),
                    (kept.is_active, METERED_MAX),
                    (kept.is_active & (kept.account == row.account), METERED_PER_ACCOUNT_MAX),
                ):
                    query = kept.select(peewee.fn.COUNT(kept.ticket)).where(condition)
                    if query.tuples().execute(run)[0][0] >= limit:
                        raise StoreFull("this node meters too many jobs already")
            kept.insert(**row._asdict()).on_conflict_replace().execute(run)

    def get_metering(self, ticket: bytes) -> StoredMetering | None:
        """The state of one job."""
        found = self._read_metering(Metering.ticket == ticket)
        return found[0] if found else None

    def list_active_metering(self) -> list[StoredMetering]:
        """All jobs that are being followed."""
        return self._read_metering(Metering.is_active == True)  # noqa: E712 - an expression of peewee

    def _read_metering(self, condition: peewee.Expression) -> list[StoredMetering]:
        kept = Metering
        query = kept.select(kept.ticket, kept.account, kept.is_active, kept.expires_seconds, kept.encoded)
        with self._database.reading() as reading:
            rows = query.where(condition).order_by(kept.ticket).tuples().execute(reading)
            return [
                StoredMetering(bytes(row[0]), bytes(row[1]), bool(row[2]), int(row[3]), bytes(row[4])) for row in rows
            ]

    # Mailboxes.

    def append_message(self, mailbox: bytes, content: bytes, now_seconds: int) -> int:
        """Put a letter into a mailbox; its sequence is larger than that of every letter before.

        In a full mailbox it takes the place of the oldest: otherwise anybody could close a donor's inbox, whose name is
        public, by filling it once. Raises: StoreFull when all mailboxes together hold too much.
        """
        size = len(content)
        query = Message.select(peewee.fn.COUNT(Message.number), peewee.fn.SUM(Message.content_bytes))
        with self._database.transaction():
            run = self._database.peewee
            ((count, size_before),) = query.where(Message.mailbox == mailbox).tuples().execute(run)
            self._drop_oldest(mailbox, count + 1 - MAILBOX_MESSAGES_MAX, (size_before or 0) + size - MAILBOX_BYTES_MAX)
            if self._messages >= POST_MESSAGES_MAX or self._message_bytes + size > POST_BYTES_MAX:
                raise StoreFull("the mailboxes of this node are full")
            number = Message.insert(
                mailbox=mailbox, content_bytes=size, posted_seconds=now_seconds, content=content
            ).execute(run)
        self._messages += 1
        self._message_bytes += size
        return int(number)

    def _drop_oldest(self, mailbox: bytes, count: int, size: int) -> None:
        """Drop letters, the oldest first, until `count` of them and `size` bytes are gone; negative is nothing."""
        run = self._database.peewee
        oldest = Message.select(Message.number, Message.content_bytes).where(Message.mailbox == mailbox)
        for number, content_bytes in oldest.order_by(Message.number).tuples().execute(run):
            if count <= 0 and size <= 0:
                return
            Message.delete().where(Message.number == number).execute(run)
            self._messages -= 1
            self._message_bytes -= content_bytes
            count -= 1
            size -= content_bytes

    def read_messages(self, mailbox: bytes, after: int, limit: int = READ_MESSAGES_MAX) -> list[StoredMessage]:
        """Letters with a sequence above `after`, oldest first: as many as fit one answer, at least one if any."""
        query = Message.select(Message.number, Message.content).order_by(Message.number)
        query = query.where(Message.mailbox == mailbox, Message.number > after)
        found: list[StoredMessage] = []
        size = 0
        with self._database.reading() as reading:
            rows = query.limit(min(limit, READ_MESSAGES_MAX)).tuples().execute(reading)
            for number, content in rows.iterator():
                size += len(content)
                if found and size > READ_BYTES_MAX:
                    break
                found.append(StoredMessage(int(number), bytes(content)))
        return found

    def expire(self, now_seconds: int) -> int:
        """Delete letters older than a week and offers that ended; how many rows went. To be called now and then."""
        oldest = now_seconds - MESSAGE_SECONDS_MAX
        aged = Message.select(peewee.fn.COUNT(Message.number), peewee.fn.SUM(Message.content_bytes))
        with self._database.transaction():
            run = self._database.peewee
            ((count, size),) = aged.where(Message.posted_seconds < oldest).tuples().execute(run)
            Message.delete().where(Message.posted_seconds < oldest).execute(run)
            offers = Offer.delete().where(Offer.expires_seconds <= now_seconds).execute(run)
            is_forgotten = ~Metering.is_active & (Metering.expires_seconds < now_seconds - METERED_SECONDS_MAX)
            Metering.delete().where(is_forgotten).execute(run)
        self._messages -= int(count)
        self._message_bytes -= int(size or 0)
        return int(count) + int(offers)
