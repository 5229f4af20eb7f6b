"""Every limit of the protocol in one place, with its unit and its reason.

Two replicas must agree on these, so they are part of the protocol version, not of any configuration (spec 2.5).
"""

from __future__ import annotations

PROTOCOL_VERSION = 1
"""First field of every record, batch header, charter and receipt."""

INTEGER_MAX = 2**53 - 1
"""Integers are exact in every language that an auditor may use, JavaScript's doubles included."""

RECORD_BYTES_MAX = 24 * 1024
"""A transfer with 256 outputs is the largest record; 256 * 81 bytes plus head and two signatures is 21.1 kB."""

RECORDS_PER_BATCH_MAX = 1024
"""Bounds one bitmap to 128 bytes and a Merkle path to 10 hashes."""

STATEMENTS_PER_BATCH_MAX = 1024
"""Single votes and commits that one batch may carry beside the whole-batch ones."""

SEEN_PER_BATCH_MAX = 256
"""Heads of other logs that one batch may name; forked logs count once per head."""

BATCH_BYTES_MAX = 256 * 1024
"""A batch must pass as one gossip message (under 1 MiB) and be received within a second on a slow line."""

STATEMENT_BYTES_MAX = 32 * 1024
"""A statement that carries a proposal or a receipt is the largest."""

OUTPUTS_MAX = 256
"""Outputs of one transfer or grant: a course of 250 people is paid by one record."""

DRAWS_MAX = 64
"""Lots that one hold may draw on."""

MEMO_BYTES_MAX = 128
NAME_BYTES_MAX = 64
PURPOSE_BYTES_MAX = 512
JOB_CLASS_BYTES_MAX = 32
JOB_CLASSES_MAX = 32

APPEAL_BYTES_MAX = 128
"""An address to which the owner of a suspended account can turn."""

REASON_CODE_MAX = 255
SUSPENSION_SECONDS_MAX = 90 * 24 * 3600
"""A suspension is provisional: whoever wants a longer one has to decide again, in public."""

DISPUTE_SECONDS_MAX = 90 * 24 * 3600
"""After the end of a hold; whole epochs, rounded up. By then logs and results are gone, and nobody could answer."""

CHARTER_BYTES_MAX = RECORD_BYTES_MAX - 512
"""A charter must fit into one record, so that it can be amended. 100 members with names of 20 bytes take 16 kB; the
rest holds 200 devices."""

SIGNERS_MAX = 2
"""An enrolment or a leave is signed by a member and by the person, a rotation by the old and the new key; everything
else by one key."""

MEMBERS_MAX = 100
"""More members than that want a federation of federations: every member answers every batch."""

MEMBER_NUMBER_MAX = MEMBERS_MAX * 1000
"""Numbers of members that left are never used again; this leaves room for all who ever come."""

WEIGHT_MAX = 1_000_000
EPOCH_MAX = 2**31
"""Epochs go on after the last one with a cap: people can still pay and redeem what they hold."""

EPOCHS_MAX = 120
"""Ten years of months; a charter names its issuance caps for these."""

RATES_MAX = 512
"""Devices in a rate table."""

FRONTIER_HEADS_MAX = 1024
"""Heads that one frontier message may name."""

SYNC_BYTES_MAX = 4 * 1024 * 1024
"""One piece of a sync answer: bounded memory on both sides, resumable after each piece."""

GRACE_SECONDS_MIN = 60
GRACE_SECONDS_MAX = 30 * 24 * 3600

MEMBERS_SAFE_MIN = 4
"""Fewer members tolerate no fault at all; their charter must say `dev`."""

assert OUTPUTS_MAX * 81 + 512 <= RECORD_BYTES_MAX <= BATCH_BYTES_MAX // 8
assert STATEMENT_BYTES_MAX <= BATCH_BYTES_MAX // 8
assert BATCH_BYTES_MAX <= SYNC_BYTES_MAX // 4
