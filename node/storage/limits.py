"""What a node keeps for others is bounded: every table and folder that strangers can grow has its limit here.

These are the node's own limits, not the protocol's: two nodes need not agree on them.
"""

from __future__ import annotations

from protocol.budgets import BUDGET_REQUEST_BYTES_MAX

BUDGET_REQUESTS_OPEN_MAX = 10_000
"""A large university in the week a program opens; 10 MB at the most."""

OFFERS_MAX = 10_000
"""Donors of a federation; 80 MB at the most, a few MB in practice."""

MAILBOX_BYTES_MAX = 8 * 1024 * 1024
MAILBOX_MESSAGES_MAX = 4096
"""One conversation: a job of a day with a tick every 30 s sends 2,880 messages."""

POST_BYTES_MAX = 1024**3
POST_MESSAGES_MAX = 500_000
"""All mailboxes together: what a small machine can spare for others' letters."""

MESSAGE_SECONDS_MAX = 7 * 24 * 3600
"""A letter that nobody fetched in a week belongs to a job that failed long ago."""

READ_MESSAGES_MAX = 256
READ_BYTES_MAX = 1024 * 1024
"""One answer of a mailbox; the reader asks again after the last."""

BLOBS_BYTES_MAX = 10 * 1024**3
BLOBS_MAX = 100_000
"""Inputs and outputs of the jobs of one week; the second bound is for the inodes of the disk."""

BLOB_SECONDS_MAX = MESSAGE_SECONDS_MAX
"""As long as the messages that name the blob."""

METERED_MAX = 128
METERED_PER_ACCOUNT_MAX = 8
"""Jobs that are followed for absent wallets at a time: each holds a connection to its donor's node."""

METERED_ROWS_MAX = 20_000
"""With those that are over and wait to be fetched: 15 kB each."""

METERED_SECONDS_MAX = 7 * 24 * 3600
"""How long the state of one that is over is kept, after the end that its order named."""

WAL_PAGES_MAX = 4000
"""16 MB of log before SQLite copies it into the file: fewer copies of the pages that every commit touches."""

CHUNK_BATCHES_MAX = 64
"""Read at once while the log is replayed: at 256 kB a batch, 16 MB of memory at the most."""

FACTS_PER_READ = 1024
"""Facts read at once at the start: 0.1 MB in practice."""

assert MAILBOX_BYTES_MAX * 16 <= POST_BYTES_MAX
assert BUDGET_REQUEST_BYTES_MAX * BUDGET_REQUESTS_OPEN_MAX <= 16 * 1024 * 1024
