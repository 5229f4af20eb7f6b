"""Who is at fault when something is refused: the sender of bad bytes, the asker of a forbidden thing, or we.

Three classes of failure, each caught in one place (spec 3.1):

- `InvalidInput`: the bytes are not in the one canonical form, or a signature does not hold. The sender's fault;
  the input is dropped and nothing else happens.
- `Rejected`: well-formed, but a rule forbids it. It carries a `Reason`.
- `AssertionError`: an invariant of ours is broken. The process stops; it never goes on with a wrong ledger.
"""

from __future__ import annotations

from enum import IntEnum, unique


class InvalidInput(Exception):
    """Bytes of somebody else that are not in canonical form, or whose signature does not hold."""


@unique
class Reason(IntEnum):
    """Why a member does not vote for a record, or a node or a donor takes something not in.

    When several apply, the lowest number is reported (spec 6.3).
    """

    WRONG_FEDERATION = 1
    """Reserved, as is the next: such records have other ids or are malformed, so both fail before any rule."""
    UNKNOWN_KIND = 2
    SIGNATURE_INVALID = 3
    WRITER_WRONG = 4
    EPOCH_WRONG = 5
    SLOT_TAKEN = 6
    SLOT_CONTESTED = 7
    PREDECESSOR_WRONG = 8
    PREDECESSOR_MISSING = 9
    REFERENCE_MISSING = 10
    SUSPENDED = 11
    NOT_APPROVED = 12
    """Stands before all that costs a look into the amendment."""
    TERMS_WRONG = 13
    LOT_EXPIRED = 14
    LOT_NOT_TRANSFERABLE = 15
    ALLOWANCE_EXCEEDED = 16
    POLICY = 17
    GRACE_RUNNING = 18
    FUNDS_MISSING = 19
    LIMIT_EXCEEDED = 20
    ATTEMPT_CLOSED = 21
    TURN_WRONG = 22
    CHARTER_CHANGING = 23


WAITING_REASONS = frozenset(
    {
        Reason.PREDECESSOR_MISSING,
        Reason.REFERENCE_MISSING,
        Reason.NOT_APPROVED,
        Reason.GRACE_RUNNING,
        Reason.FUNDS_MISSING,
        Reason.CHARTER_CHANGING,
    }
)
"""Reasons that may pass by themselves when more of the ledger arrives, people approve or time goes by: such a record
waits instead of failing."""


class Rejected(Exception):
    """A well-formed request that a rule forbids."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason.name.lower().replace('_', ' ')}{': ' + detail if detail else ''}")
        self.reason = reason
        self.detail = detail
