"""One SQLite file, its one connection and its failures in words.

*Durability.* WAL with `synchronous = FULL`: when a transaction returns, its rows are on the disk; when the process
or the machine stops in the middle, none is there.

*One writer.* The connection holds SQLite's exclusive lock from opening to closing: a second process is told so, and
the kernel frees the lock of one that died. Within the process a lock lets one thread at a time through.

*Failures.* A full disk undoes the transaction and leaves the store usable. After any other failure of the disk
nobody can say what is on it (Linux forgets dirty pages that it could not write), so the store stays closed for good
and the process has to stop.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Literal, NoReturn

import peewee

from node.errors import UserError
from node.storage.limits import WAL_PAGES_MAX
from node.storage.migrations import STEPS, check_whose, migrate, run_sql

MEMORY: Literal[":memory:"] = ":memory:"
_LOCK_SECONDS_MAX = 1.0  # a backup that just ends; a running node never lets go
_REMEDY = "move it away and start the node again, which fetches the ledger from the other members"
_PRAGMAS = (
    ("journal_mode", "WAL"),
    ("synchronous", "FULL"),
    ("wal_autocheckpoint", str(WAL_PAGES_MAX)),
    ("journal_size_limit", str(4 * 4096 * WAL_PAGES_MAX)),
    ("trusted_schema", "OFF"),  # a file from elsewhere runs no functions
)


DATABASE_ERRORS = (peewee.DatabaseError, peewee.InterfaceError, sqlite3.Error)


class StoreFailed(UserError):
    """The disk did not take what had to be kept. What the store confirmed before is safe."""


class Database:
    """An open ledger file. Use `transaction()` to change it and `reading()` to look."""

    def __init__(self, peewee_database: peewee.SqliteDatabase, place: str) -> None:
        self.peewee = peewee_database
        self.place = place
        self.lock = threading.Lock()
        self._failure: StoreFailed | None = None

    def transaction(self) -> Transaction:
        """Everything inside is on disk when the block ends, or nothing is. Raises: StoreFailed."""
        return Transaction(self)

    @cached_property
    def connection(self) -> sqlite3.Connection:
        """For statements that go past peewee, inside `transaction()` or `reading()` only."""
        connection: sqlite3.Connection = self.peewee.connection()  # type: ignore[no-untyped-call]  # of peewee
        return connection

    @contextmanager
    def reading(self) -> Iterator[peewee.SqliteDatabase]:
        """For one query or several that need not agree with each other. Raises: StoreFailed."""
        with self.lock:
            self.check_usable()
            try:
                yield self.peewee
            except DATABASE_ERRORS as error:
                self.fail(error)

    def check_usable(self) -> None:
        """Raises: StoreFailed, for ever, once the disk failed or the store was closed."""
        if self._failure is not None:
            raise self._failure

    def fail(self, error: BaseException) -> NoReturn:
        """Undo what is open and tell a person why. Raises: StoreFailed."""
        failed, is_for_good = explain_failure(error, self.place)
        self._end_transaction()
        if is_for_good:
            self._failure = failed
        raise failed from error

    def _end_transaction(self) -> None:
        # peewee has tried; SQLite itself may have done it before (a second ROLLBACK is an error of no meaning).
        with suppress(sqlite3.Error, peewee.DatabaseError):
            if self.connection.in_transaction:
                self.connection.rollback()

    def close(self) -> None:
        """Let go of the file. What was committed is safe without this, too."""
        with self.lock:
            with suppress(peewee.DatabaseError, sqlite3.Error):
                self.peewee.close()
            self._failure = StoreFailed(f"{self.place} is closed")


class Transaction:
    """A block whose changes are durable when it ends, and undone when it raises.

    A class and not a generator: this is the hot path, and the smallest transaction takes but 60 us.
    """

    __slots__ = ("_database", "_inner")

    def __init__(self, database: Database) -> None:
        self._database = database

    def __enter__(self) -> sqlite3.Connection:
        database = self._database
        database.lock.acquire()
        try:
            database.check_usable()
            # `atomic()` less its look for an outer transaction: the lock lets no second one in.
            self._inner = database.peewee.transaction()
            try:
                self._inner.__enter__()
                return database.connection
            except DATABASE_ERRORS as error:
                database.fail(error)
        except BaseException:
            database.lock.release()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        database = self._database
        try:
            self._inner.__exit__(kind, error, trace)
        except DATABASE_ERRORS as failure:
            # A rollback that fails after another error says nothing: SQLite has rolled back by itself.
            database.fail(error if isinstance(error, DATABASE_ERRORS) else failure)
        else:
            if isinstance(error, DATABASE_ERRORS):
                database.fail(error)
        finally:
            database.lock.release()


def explain_failure(error: BaseException, place: str) -> tuple[StoreFailed, bool]:
    """One line for a person, and whether the store must not be used any more."""
    causes = _find_causes(error)
    codes = {getattr(cause, "sqlite_errorname", "") or "" for cause in causes}
    text = str(causes[0]) if causes else str(error)
    if any(code.startswith("SQLITE_FULL") for code in codes):
        return StoreFailed(f"the disk that holds {place} is full: free some space"), False
    if any(code.startswith("SQLITE_READONLY") for code in codes):
        return StoreFailed(f"{place} is on a disk that can only be read: name another directory"), True
    if any(code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")) for code in codes):
        return StoreFailed(f"another allmende works with {place}: stop it first"), False
    if any(code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")) for code in codes):
        return StoreFailed(f"{place} is damaged ({text}): {_REMEDY}"), True
    if any(code.startswith("SQLITE_CANTOPEN") for code in codes):
        return StoreFailed(f"{place} can't be opened: check that its directory exists and may be written"), True
    if any(code.startswith("SQLITE_IOERR") for code in codes):
        return StoreFailed(f"the disk that holds {place} fails ({text}): check its space and health"), True
    return StoreFailed(f"{place} can't be used: {text}"), True


def _find_causes(error: BaseException) -> list[sqlite3.Error]:
    """The errors of SQLite behind one of peewee, the first one first (a failed rollback comes last and says less)."""
    found: list[sqlite3.Error] = []
    current: BaseException | None = error
    while current is not None:
        inner = current.args[0] if current.args else None
        found += [each for each in (inner, current) if isinstance(each, sqlite3.Error) and each not in found]
        current = current.__cause__ or current.__context__
    return found[::-1]


def open_database(
    path: Path | Literal[":memory:"], federation: bytes, steps: Sequence[Sequence[str]] = STEPS
) -> Database:
    """Open or make the ledger file of a federation, in the newest version, checked for damage.

    Raises: UserError when the file is damaged, another program's or federation's, of a newer version, in use, or
    can't be written.
    """
    place = str(path)
    if isinstance(path, Path):
        _create_private(path)
    peewee_database = peewee.SqliteDatabase(
        place, thread_safe=False, check_same_thread=False, timeout=_LOCK_SECONDS_MAX, cached_statements=256
    )
    database = Database(peewee_database, place)
    try:
        with database.reading() as opened:
            opened.connect()
            # Before anything is read: then no other process gets in, and the index of the log lies in memory.
            run_sql(opened, "PRAGMA locking_mode = EXCLUSIVE")
            version = check_whose(opened, place, federation, len(steps))
            for name, setting in _PRAGMAS:
                run_sql(opened, f"PRAGMA {name} = {setting}")
            run_sql(opened, "BEGIN IMMEDIATE")  # takes the lock now, not at the first payment
            run_sql(opened, "COMMIT")
            _check_sound(opened, place)
            migrate(opened, federation, version, steps)
    except BaseException:
        database.close()
        raise
    return database


def _create_private(path: Path) -> None:
    """The post of others lies in the file: only its owner may read it. SQLite gives the log the same mode."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StoreFailed(f"{path} can't be opened ({error.strerror}): name another directory") from error


def _check_sound(database: peewee.SqliteDatabase, place: str) -> None:
    """Look for damage before anything rests on the file; it reads every page once."""
    rows = run_sql(database, "PRAGMA quick_check(1)")
    if rows != [("ok",)]:
        found = " ".join(str(rows[0][0]).split())
        raise StoreFailed(f"{place} is damaged ({found}): {_REMEDY}")
