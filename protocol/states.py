"""What the ledger keeps of each thing that a record made: plain values, restored from facts as they are."""

from __future__ import annotations

from enum import IntEnum, unique
from typing import NamedTuple

from protocol.records import NONE, Draw, Program, Terms


class Head(NamedTuple):
    """The last applied slot of a scope."""

    sequence: int
    record: bytes


class ProgramState(NamedTuple):
    """An applied program and the member that declared it."""

    member: int
    body: Program


@unique
class HoldPhase(IntEnum):
    """What has become of a hold."""

    OPEN = 0
    SETTLED = 1
    RECLAIMED = 2


class EnrolmentState(NamedTuple):
    """An applied enrolment. It counts in the epochs from `from_epoch` to `until_epoch`."""

    tag: bytes
    member: int
    account: bytes
    from_epoch: int
    until_epoch: int
    """0 while the person has not left."""

    def counts_in(self, epoch: int) -> bool:
        """True when a grant of this epoch may name it."""
        return self.from_epoch <= epoch and (not self.until_epoch or epoch <= self.until_epoch)


class SponsorState(NamedTuple):
    """An applied sponsor record."""

    member: int
    donor: bytes
    until_epoch: int


class DisputeState(NamedTuple):
    """An applied dispute: which side of the hold says what of the other."""

    account: bytes
    epoch: int
    reason: int
    """A `DisputeReason`."""
    evidence: bytes
    """SHA-256 of the evidence file."""


class HoldState(NamedTuple):
    """A hold: its escrow while open; what was paid when it has ended."""

    payer: bytes
    payee: bytes
    draws: tuple[Draw, ...]
    terms: Terms
    epoch: int
    phase: HoldPhase = HoldPhase.OPEN
    paid: int = 0
    """Millicredits that the payee got or gave away; 0 unless settled."""
    request: bytes = NONE
    """Id of the payer's first reclaim-request, if there is one."""
    end_epoch: int = 0
    """The epoch in which it was settled or reclaimed; 0 while it is open."""

    @property
    def is_open(self) -> bool:
        """True until a settle or a reclaim has applied."""
        return self.phase is HoldPhase.OPEN

    @property
    def amount(self) -> int:
        """Millicredits that were put into the escrow."""
        return sum(draw.amount for draw in self.draws)
