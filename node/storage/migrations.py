"""How a ledger file of an older version becomes one of today: forward only, a step at a time, each whole or not.

A step that was released is never changed; a new one is added at the end. The table `schema_version` holds a row for
each step that was taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import peewee

from node.addresses import Kind, encode_address
from node.errors import UserError

APPLICATION_ID = 0x414C4C44
"""`ALLD`, in the file's header: tells it from any other SQLite file."""

STEPS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE ledger (federation BLOB NOT NULL)",
        # The content stands last, so that a look at the other columns never walks through it.
        "CREATE TABLE batch (number INTEGER NOT NULL PRIMARY KEY, id BLOB NOT NULL UNIQUE, encoded BLOB NOT NULL)",
        """CREATE TABLE budget_request (
            number INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
            id BLOB NOT NULL UNIQUE,
            program BLOB NOT NULL,
            account BLOB NOT NULL,
            is_approved INTEGER NOT NULL,
            encoded BLOB NOT NULL
        )""",
        "CREATE INDEX budget_request_by_program ON budget_request (program, is_approved, account)",
        """CREATE TABLE offer (
            donor BLOB NOT NULL PRIMARY KEY,
            expires_seconds INTEGER NOT NULL,
            encoded BLOB NOT NULL
        )""",
        "CREATE INDEX offer_by_end ON offer (expires_seconds)",
        # AUTOINCREMENT: a reader waits for numbers above the last it saw, also after everything was deleted.
        """CREATE TABLE message (
            number INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
            mailbox BLOB NOT NULL,
            content_bytes INTEGER NOT NULL,
            posted_seconds INTEGER NOT NULL,
            content BLOB NOT NULL
        )""",
        "CREATE INDEX message_by_mailbox ON message (mailbox, number, content_bytes)",
        "CREATE INDEX message_by_age ON message (posted_seconds)",
    ),
    (
        """CREATE TABLE mark (
            kind INTEGER NOT NULL,
            name BLOB NOT NULL,
            value INTEGER NOT NULL,
            PRIMARY KEY (kind, name)
        ) WITHOUT ROWID""",
    ),
    (
        "CREATE TABLE fact (number INTEGER NOT NULL PRIMARY KEY, encoded BLOB NOT NULL)",
        "CREATE TABLE receipt (record BLOB NOT NULL PRIMARY KEY, encoded BLOB NOT NULL)",
    ),
    (
        """CREATE TABLE metering (
            ticket BLOB NOT NULL PRIMARY KEY,
            account BLOB NOT NULL,
            is_active INTEGER NOT NULL,
            expires_seconds INTEGER NOT NULL,
            encoded BLOB NOT NULL
        )""",
    ),
)


def run_sql(database: peewee.SqliteDatabase, text: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
    """All rows of one statement."""
    return list(database.execute_sql(text, parameters).fetchall())  # type: ignore[no-untyped-call]  # of peewee


def check_whose(database: peewee.SqliteDatabase, place: str, federation: bytes, newest: int) -> int:
    """The version of an open database, 0 when it is empty. Nothing is written.

    Raises: UserError when the file is another program's, of a newer version, or of another federation.
    """
    application = run_sql(database, "PRAGMA application_id")[0][0]
    tables = {name for (name,) in run_sql(database, "SELECT name FROM sqlite_master WHERE type = 'table'")}
    if application != APPLICATION_ID and (application or tables):
        raise UserError(f"{place} is a database, but no ledger: name another directory")
    if "schema_version" not in tables:
        return 0
    version = int(run_sql(database, "SELECT max(version) FROM schema_version")[0][0])
    if version > newest:
        raise UserError(
            f"{place} was written by a newer allmende (its version is {version}, this program knows {newest}):"
            " update allmende"
        )
    rows = run_sql(database, "SELECT federation FROM ledger")
    if rows != [(federation,)]:
        owner = encode_address(Kind.FEDERATION, rows[0][0]) if rows else "nobody"
        raise UserError(
            f"{place} belongs to the federation {owner}, not to {encode_address(Kind.FEDERATION, federation)}:"
            " name another directory"
        )
    return version


def migrate(
    database: peewee.SqliteDatabase, federation: bytes, version: int, steps: Sequence[Sequence[str]] = STEPS
) -> None:
    """Take the steps that a database of this version lacks, each in a transaction of its own."""
    for number, statements in enumerate(steps[version:], version + 1):
        with database.atomic():
            for statement in statements:
                run_sql(database, statement)
            if number == 1:
                run_sql(database, f"PRAGMA application_id = {APPLICATION_ID}")
                run_sql(database, "CREATE TABLE schema_version (version INTEGER NOT NULL PRIMARY KEY)")
                run_sql(database, "INSERT INTO ledger (federation) VALUES (?)", (federation,))
            run_sql(database, "INSERT INTO schema_version (version) VALUES (?)", (number,))
