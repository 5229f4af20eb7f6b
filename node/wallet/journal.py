"""The wallet's memory: the exact bytes of everything it signed, on disk before anybody else sees them.

The one law: for a slot (scope, sequence) and attempt this wallet signs at most one record, whatever crashes
and however many wallet commands run at once. A second one would contest the slot and stop the account until
its owner unlocks it. So a record enters here first, under a lock of the whole journal, and a retry sends
these bytes again.

SQLite in WAL mode with synchronous FULL: what was added is on disk when `add` returns. The file also keeps
the state of jobs, with the keys of their meters: mode 0600.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import peewee

from node.errors import UserError
from node.files import sync_directory

SCHEMA_VERSION = 1
APPLICATION_ID = 0x414C574A  # "ALWJ": tells this file from any other database
BUSY_SECONDS = 10  # how long one wallet command waits for another; each holds the lock for milliseconds
SEQUENCE_END = 2**53

# States beyond `signed` only say what became of a record; its bytes never change.
SCHEMA = (
    """CREATE TABLE entry (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        scope BLOB NOT NULL,
        sequence INTEGER NOT NULL,
        attempt INTEGER NOT NULL,
        record_id BLOB NOT NULL,
        record BLOB NOT NULL,
        purpose TEXT NOT NULL,
        state TEXT NOT NULL,
        reason TEXT NOT NULL,
        receipt BLOB,
        signed_at_seconds INTEGER NOT NULL,
        UNIQUE (scope, sequence, attempt)
    )""",
    "CREATE INDEX entry_by_record ON entry (record_id)",
    "CREATE TABLE job (job_id TEXT PRIMARY KEY, document TEXT NOT NULL) WITHOUT ROWID",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)
COLUMNS = "number, scope, sequence, attempt, record_id, record, purpose, state, reason, receipt, signed_at_seconds"


class State(StrEnum):
    """What the wallet knows of a record that it signed."""

    SIGNED = "signed"  # perhaps never sent
    SENT = "sent"  # a node has seen it; no answer yet
    FINAL = "final"  # a receipt proves it
    REJECTED = "rejected"  # a node refused it, or another record became final in its slot


@dataclass(frozen=True)
class Entry:
    """A signed record in the journal. `number` counts the entries and orders the history."""

    number: int
    scope: bytes
    sequence: int
    attempt: int
    record_id: bytes
    record: bytes
    purpose: str
    state: State
    reason: str
    receipt: bytes | None
    signed_at_seconds: int


class SlotTaken(UserError):
    """This wallet has signed another record for the slot already."""


class Journal:
    """The journal file of one wallet, open. Several processes may have it open at once.

    Resource handling: one connection; close it, or use the journal as a context manager.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Open the journal, and make it when there is none.

        Raises: UserError when the file is no journal, of a later version, or cannot be used.
        """
        self.path = path
        self._clock = clock
        with self._explain():
            if not path.exists():
                self._create()
            self._database = self._connect(path)
            try:
                self._check_version()
            except BaseException:
                self._database.close()
                raise

    def _connect(self, path: Path) -> Any:  # Any: peewee's stubs leave execute_sql untyped
        # FULL: a signature that is out in the world is never forgotten by a power cut.
        database = peewee.SqliteDatabase(str(path), pragmas={"synchronous": "full"}, timeout=BUSY_SECONDS)
        database.connect()
        return database

    def _create(self) -> None:
        """Make the file under another name and give it its own when it is ready; the first of several wins.

        So nobody ever opens a half-made journal, and the switch to WAL, which does not wait for others, meets
        none. The descriptor that makes it private is closed before SQLite opens it: closing one drops a
        process's locks.
        """
        fresh = self.path.with_name(f".{self.path.name}.{os.urandom(8).hex()}.new")
        try:
            os.close(os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            database = self._connect(fresh)
            with closing(database):
                database.execute_sql("PRAGMA journal_mode = WAL")
                with database.atomic("IMMEDIATE"):
                    for statement in SCHEMA:
                        database.execute_sql(statement)
            with suppress(FileExistsError):
                os.link(fresh, self.path)
        finally:
            fresh.unlink(missing_ok=True)
        sync_directory(self.path.parent)

    def _check_version(self) -> None:
        if self._one("PRAGMA application_id") != APPLICATION_ID:
            raise UserError(f"{self.path} is not a wallet journal: move it away")
        if self._one("PRAGMA user_version") > SCHEMA_VERSION:
            raise UserError(f"{self.path} was written by a later version: update allmende")

    def close(self) -> None:
        """Give the file back. Closing twice is fine."""
        self._database.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Records.

    def add(
        self, scope: bytes, sequence: int, record_id: bytes, record: bytes, purpose: str, *, attempt: int = 0
    ) -> Entry:
        """Write a signed record down, before it is sent. The same bytes again change nothing.

        `attempt` above 0 is for a proposal of an unlock, which may bring another record into the same slot.

        Raises: SlotTaken when this wallet signed another record for this slot and attempt.
        """
        with self._explain(), self._writing():
            return self._add(scope, sequence, attempt, record_id, record, purpose)

    def append(
        self,
        scope: bytes,
        purpose: str,
        make_record: Callable[[int, bytes | None], tuple[bytes, bytes]],
        *,
        sequence_min: int = 0,
    ) -> Entry:
        """Sign and write down the next record of a scope, as one step that no other process can come between.

        `make_record(sequence, previous record id)` returns (record id, record bytes); it runs while the
        journal is locked, so it signs and does nothing slow. The previous id is None when the journal does
        not know it. A wallet that was restored passes the sequence that its node knows as `sequence_min`.

        Raises: UserError when the record before was refused: what comes after it could never become final.
        """
        with self._explain(), self._writing():
            before = self.latest(scope)
            if before is not None and before.state is State.REJECTED and before.sequence >= sequence_min:
                raise UserError(
                    f"the last record of this account, {before.purpose}, was refused ({before.reason}): run "
                    "`allmende wallet unlock` first"
                )
            sequence = max(sequence_min, 0 if before is None else before.sequence + 1)
            previous = before.record_id if before is not None and before.sequence + 1 == sequence else None
            record_id, record = make_record(sequence, previous)
            return self._add(scope, sequence, 0, record_id, record, purpose)

    def _add(self, scope: bytes, sequence: int, attempt: int, record_id: bytes, record: bytes, purpose: str) -> Entry:
        assert 0 <= sequence < SEQUENCE_END
        assert attempt >= 0
        slot = (scope, sequence, attempt)
        found = self._entries("scope = ? AND sequence = ? AND attempt = ?", *slot)
        if not found:
            self._run(
                f"INSERT INTO entry ({COLUMNS}) VALUES (NULL, ?, ?, ?, ?, ?, ?, 'signed', '', NULL, ?)",
                *(*slot, record_id, record, purpose, int(self._clock())),
            )
            found = self._entries("scope = ? AND sequence = ? AND attempt = ?", *slot)
        elif (found[0].record_id, found[0].record) != (record_id, record):
            raise SlotTaken(
                f"this wallet has signed something else in its place already ({found[0].purpose}): "
                "see `allmende wallet pending`"
            )
        return found[0]

    def next_sequence(self, scope: bytes) -> int:
        """One past the highest sequence that was signed for; refused ones count: they may still be somewhere.

        Another process may take it in the next moment: `append` signs under the lock.
        """
        before = self.latest(scope)
        return 0 if before is None else before.sequence + 1

    def latest(self, scope: bytes) -> Entry | None:
        """What was signed for a scope's highest slot: the final record, else that of the last attempt."""
        with self._explain():
            found = self._entries("scope = ? ORDER BY sequence DESC, state = 'final' DESC, attempt DESC LIMIT 1", scope)
        return found[0] if found else None

    def find(self, record_id: bytes) -> Entry | None:
        """The entry of a record; of several attempts with one record the last."""
        with self._explain():
            found = self._entries("record_id = ? ORDER BY attempt DESC LIMIT 1", record_id)
        return found[0] if found else None

    def slot(self, scope: bytes, sequence: int) -> list[Entry]:
        """All that was signed for a slot, by attempt."""
        with self._explain():
            return self._entries("scope = ? AND sequence = ? ORDER BY attempt", scope, sequence)

    def pending(self) -> list[Entry]:
        """What still waits for an answer, in the order in which it must be sent."""
        with self._explain():
            return self._entries("state IN ('signed', 'sent') ORDER BY scope, sequence, attempt")

    def history(self, limit: int = 50, before: int | None = None) -> list[Entry]:
        """The newest entries first; `before` is the number of the last one on the page before."""
        with self._explain():
            if before is None:
                return self._entries("TRUE ORDER BY number DESC LIMIT ?", limit)
            return self._entries("number < ? ORDER BY number DESC LIMIT ?", before, limit)

    def mark_sent(self, record_id: bytes) -> None:
        """A node has taken the record. Nothing changes when the answer is known already."""
        with self._explain(), self._writing():
            self._check_known(record_id)
            self._run("UPDATE entry SET state = 'sent' WHERE record_id = ? AND state = 'signed'", record_id)

    def mark_final(self, record_id: bytes, receipt: bytes) -> None:
        """A receipt proves the record, whatever was said before; other records of its slot can't be final.

        The first receipt is kept. The caller has verified it.
        """
        with self._explain(), self._writing():
            self._check_known(record_id)
            self._run(
                "UPDATE entry SET state = 'final', reason = '', receipt = ? WHERE record_id = ? AND state <> 'final'",
                *(receipt, record_id),
            )
            self._run(
                "UPDATE entry SET state = 'rejected', reason = 'another record became final in its place' "
                "WHERE record_id <> ?1 AND state <> 'final' AND (scope, sequence) IN "
                "(SELECT scope, sequence FROM entry WHERE record_id = ?1)",
                record_id,
            )

    def mark_rejected(self, record_id: bytes, reason: str) -> bool:
        """A node refused the record. A final one stays final: then False is returned.

        The slot stays taken, since another node may have seen the record; an unlock frees it.
        """
        with self._explain(), self._writing():
            self._check_known(record_id)
            cursor = self._run(
                "UPDATE entry SET state = 'rejected', reason = ? WHERE record_id = ? AND state <> 'final'",
                *(reason, record_id),
            )
            return bool(cursor.rowcount)

    # Jobs.

    def save_job(self, job_id: str, document: dict[str, Any]) -> None:
        """Keep what is needed to take up a job again (its keys in hex), in place of what was kept before."""
        text = json.dumps(document, sort_keys=True, allow_nan=False)
        with self._explain(), self._writing():
            self._run("INSERT OR REPLACE INTO job (job_id, document) VALUES (?, ?)", job_id, text)

    def job(self, job_id: str) -> dict[str, Any] | None:
        """What was kept of a job, or None."""
        return self.jobs().get(job_id)

    def jobs(self) -> dict[str, dict[str, Any]]:
        """Every job that was not removed: id -> document, in the order of the ids."""
        with self._explain():
            return {
                job_id: json.loads(text)
                for job_id, text in self._run("SELECT job_id, document FROM job ORDER BY job_id")
            }

    def remove_job(self, job_id: str) -> None:
        """Forget a job and its keys. Only for one that is settled: its meter key can't be made again."""
        with self._explain(), self._writing():
            self._run("DELETE FROM job WHERE job_id = ?", job_id)

    # Inside.

    def _check_known(self, record_id: bytes) -> None:
        known = self._one("SELECT count(*) FROM entry WHERE record_id = ?", record_id)
        assert known, "a record is in the journal before it is sent"

    def _entries(self, condition: str, *values: Any) -> list[Entry]:
        rows = self._run(f"SELECT {COLUMNS} FROM entry WHERE {condition}", *values)
        return [replace(Entry(*row), state=State(row[7])) for row in rows]

    def _run(self, statement: str, *values: Any) -> Any:
        return self._database.execute_sql(statement, values)

    def _one(self, statement: str, *values: Any) -> Any:
        return self._run(statement, *values).fetchone()[0]

    def _writing(self) -> Any:
        """A transaction with the write lock from its start: what it reads is still true when it writes."""
        return self._database.atomic("IMMEDIATE")

    @contextmanager
    def _explain(self) -> Iterator[None]:
        """Say in one line why the file cannot be used."""
        try:
            yield
        except OSError as error:
            raise UserError(f"cannot open the wallet journal {self.path}: {error.strerror}") from error
        except peewee.DatabaseError as error:
            raise UserError(f"cannot use the wallet journal {self.path}: {error}") from error
