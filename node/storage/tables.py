"""The tables of the ledger's file, as peewee sees them. `migrations.py` makes them; a test holds both together.

The batches are the ledger; everything else here is post that is kept for others, or marks of this node alone, and may
be lost without harm to the ledger. The models hang on no database: a query is run with `query.execute(database)`, so
one process may hold several stores (a simulation does).
"""

from __future__ import annotations

import peewee

NOWHERE = peewee.SqliteDatabase(None)
"""Gives the models SQLite's dialect; it is never opened."""


class Row(peewee.Model):
    """Base of all tables."""

    class Meta:
        database = NOWHERE


class Ledger(Row):
    """One row: which federation this file belongs to."""

    federation = peewee.BlobField()

    class Meta:
        table_name = "ledger"
        primary_key = False


class Batch(Row):
    """All admitted batches. `number` counts them from 1 in the order of admission; what is archived leaves a gap."""

    number = peewee.IntegerField(primary_key=True)
    id = peewee.BlobField(unique=True)
    encoded = peewee.BlobField()

    class Meta:
        table_name = "batch"


class Fact(Row):
    """Where this ledger begins, when not at the genesis charter: the facts of a certified checkpoint (spec 10.6)."""

    number = peewee.IntegerField(primary_key=True)
    encoded = peewee.BlobField()

    class Meta:
        table_name = "fact"


class Receipt(Row):
    """Receipts of finality of amendments: they prove the charter also where the batches before are not here."""

    record = peewee.BlobField(primary_key=True)
    encoded = peewee.BlobField()

    class Meta:
        table_name = "receipt"


class BudgetRequest(Row):
    """People who ask this institution for a budget."""

    number = peewee.AutoField()
    id = peewee.BlobField(unique=True)
    program = peewee.BlobField()
    account = peewee.BlobField()
    is_approved = peewee.BooleanField()
    encoded = peewee.BlobField()

    class Meta:
        table_name = "budget_request"
        indexes = ((("program", "is_approved", "account"), False),)


class Offer(Row):
    """The latest offer of each donor."""

    donor = peewee.BlobField(primary_key=True)
    expires_seconds = peewee.IntegerField(index=True)
    encoded = peewee.BlobField()

    class Meta:
        table_name = "offer"


class Message(Row):
    """Letters in mailboxes. Numbers only grow, in all mailboxes together, and none is used twice."""

    number = peewee.AutoField()
    mailbox = peewee.BlobField()
    content_bytes = peewee.IntegerField()
    posted_seconds = peewee.IntegerField(index=True)
    content = peewee.BlobField()

    class Meta:
        table_name = "message"
        indexes = ((("mailbox", "number", "content_bytes"), False),)


class Mark(Row):
    """What this node remembers beside the ledger: small numbers by kind and name (`MarkKind` of the store)."""

    kind = peewee.IntegerField()
    name = peewee.BlobField()
    value = peewee.IntegerField()

    class Meta:
        table_name = "mark"
        primary_key = peewee.CompositeKey("kind", "name")


class Metering(Row):
    """Jobs whose meter this node answers for a wallet that is away, by the name that only the two know."""

    ticket = peewee.BlobField(primary_key=True)
    account = peewee.BlobField()
    is_active = peewee.BooleanField()
    expires_seconds = peewee.IntegerField()
    encoded = peewee.BlobField()

    class Meta:
        table_name = "metering"


TABLES: tuple[type[Row], ...] = (Ledger, Batch, BudgetRequest, Offer, Message, Mark, Fact, Receipt, Metering)
