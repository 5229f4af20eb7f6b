"""A dispute: the payer or the payee of a hold says, signed and for ever, that the other side broke the job's rules.

It moves no credits: the ledger can't see who is right. It says in public who accuses whom of what, and binds the
accuser to the evidence that it had by then, so that a jury of people, or anybody, can judge it later (spec 7.14).
"""

from __future__ import annotations

from enum import IntEnum, unique
from typing import NamedTuple

from protocol.codec import binary, items, uint
from protocol.identifiers import ID_BYTES


@unique
class DisputeReason(IntEnum):
    """What the other side is accused of. A small closed list: words would carry what nobody can take back."""

    AMOUNT_NOT_DUE = 1
    """More was taken, or asked for, than quote, meter and end of the job allow."""
    WORK_LOST = 2
    """The donor lost the work by its own fault, and was paid for it."""
    RESULTS_WRONG = 3
    """The results are not what the inputs make."""
    RESULTS_WITHHELD = 4
    """There are none, or they can't be opened."""
    INPUTS_UNUSABLE = 5
    JOB_ABUSIVE = 6
    """The job broke the acceptable-use policy or attacked the machine."""
    METER_UNANSWERED = 7
    """Work was done for which no voucher came."""


PAYER_REASONS = frozenset(
    {
        DisputeReason.AMOUNT_NOT_DUE,
        DisputeReason.WORK_LOST,
        DisputeReason.RESULTS_WRONG,
        DisputeReason.RESULTS_WITHHELD,
    }
)
PAYEE_REASONS = frozenset(DisputeReason) - PAYER_REASONS


class Dispute(NamedTuple):
    """The body of a record in the account of the side that disputes."""

    hold: bytes
    reason: int
    """A `DisputeReason`."""
    evidence: bytes
    """SHA-256 of the evidence file (spec 12.12)."""


DISPUTE_SHAPE = items(binary(ID_BYTES), uint(len(DisputeReason), 1), binary(ID_BYTES))
