"""How many members stand behind a record: votes make a certificate, commits make it final.

A quorum is any set of members of weight q = floor(2W/3) + 1; any two quorums share more than W/3, so they share a
correct member (spec 5.1). Members speak of whole batches at once, so weights are counted for all records of a batch
together: a `Tally` keeps one integer per binary digit of the weight (bit planes), whose bit i belongs to the record
at position i. Adding a member's vote for a thousand records is then a handful of operations on long integers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from protocol.attempts import Round


class Tally:
    """Weight behind each position of one batch, in one round, for one kind of statement.

    Invariants: each member counts once per position, whatever it repeats; positions only ever enter `reached`.
    """

    __slots__ = ("_planes", "masks", "reached")

    def __init__(self) -> None:
        self._planes: list[int] = []
        self.masks: dict[int, int] = {}
        """Member number -> positions that it stands behind."""
        self.reached = 0
        """Positions with a quorum."""

    def add(self, member: int, weight: int, positions: int, quorum: int) -> int:
        """Count `member` for `positions` (a bit mask); returns the positions that reach the quorum by it."""
        before = self.masks.get(member, 0)
        added = positions & ~before
        if not added:
            return 0
        self.masks[member] = before | added
        self._add_weight(weight, added)
        reached = self._at_least(quorum) & ~self.reached
        self.reached |= reached
        return reached

    def _add_weight(self, weight: int, positions: int) -> None:
        """Ripple-carry addition of `weight` at each of `positions`, one binary digit at a time."""
        carry = 0
        digit = 0
        while weight >> digit or carry:
            if digit == len(self._planes):
                self._planes.append(0)
            plane = self._planes[digit]
            addend = positions if weight >> digit & 1 else 0
            self._planes[digit] = plane ^ addend ^ carry
            carry = (plane & addend) | (carry & (plane ^ addend))
            digit += 1

    def _at_least(self, quorum: int) -> int:
        """Positions whose weight is `quorum` or more: compare digit by digit, the highest first."""
        digits = max(len(self._planes), quorum.bit_length())
        greater, equal = 0, -1
        for digit in range(digits - 1, -1, -1):
            plane = self._planes[digit] if digit < len(self._planes) else 0
            if quorum >> digit & 1:
                equal &= plane
            else:
                greater |= equal & plane
                equal &= ~plane
        return greater | equal

    def weight_at(self, position: int) -> int:
        """The weight behind one position."""
        return sum((plane >> position & 1) << digit for digit, plane in enumerate(self._planes))


def iterate_positions(mask: int) -> Iterator[int]:
    """The set bits of a mask, lowest first."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def full_mask(count: int) -> int:
    """The mask of all positions of a batch with `count` records."""
    return (1 << count) - 1


class CommitStatement(NamedTuple):
    """Where a member committed: the material of a finality receipt."""

    member: int
    batch: bytes
    """Batch that carries the statement."""
    position: int
    """Position of the statement in that batch."""
    round: Round
    mask: int
    """Positions of the introducing batch that it commits to."""
