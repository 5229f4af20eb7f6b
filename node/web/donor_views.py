"""How reliable donors are, in the shapes that people and programs read: counts from the ledger, and the score of them.

All holds are looked at when an answer is computed anew, which takes a small share of the node's time at the most; until
then readers get the last one (spec 12.13).
"""

from __future__ import annotations

from collections.abc import Callable

from node import job_api
from node.addresses import Kind, encode_address
from node.member import LedgerMember
from node.web.costly import CostlyView
from protocol.limits import EPOCH_MAX
from protocol.reliability import Reliability, compute_reliability


class DonorViews:
    """Reads one member's ledger."""

    def __init__(self, member: LedgerMember, clock: Callable[[], float]) -> None:
        self._member = member
        self._clock = clock
        self._found = CostlyView(self._compute, clock)

    def list_donors(self) -> list[job_api.Donor]:
        """Every donor, the most reliable first."""
        epoch, found = self._read()
        donors = [
            job_api.Donor(encode_address(Kind.ACCOUNT, account), _describe(reliability, epoch))
            for account, reliability in found.items()
        ]
        return sorted(donors, key=lambda donor: (-donor.reliability.score, donor.address))

    def find(self, account: bytes) -> job_api.Reliability | None:
        """What the ledger tells of an account; None for one that is no donor."""
        epoch, found = self._read()
        return _describe(found[account], epoch) if account in found else None

    def _read(self) -> tuple[int, dict[bytes, Reliability]]:
        return self._found.read(self._member.replica.ledger.applied_count * (EPOCH_MAX + 1) + self._compute_epoch())

    def _compute_epoch(self) -> int:
        return self._member.charter.compute_epoch(int(self._clock()))

    def _compute(self) -> tuple[int, dict[bytes, Reliability]]:
        epoch = self._compute_epoch()
        return epoch, compute_reliability(self._member.replica.ledger, epoch)


def _describe(reliability: Reliability, epoch: int) -> job_api.Reliability:
    return job_api.Reliability(score=reliability.score, epoch=epoch, **reliability._asdict())
