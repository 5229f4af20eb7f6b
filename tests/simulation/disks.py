"""Simulated disks: the real store in memory, whose power can be cut at any write and which can be set back.

A disk outlives the process that writes to it. Opening a database costs 5 ms, so disks are opened once and filled with
other content for every seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from node.storage.store import Store

Moment = Literal["before", "after"]
"""Whether a write takes effect before the power goes."""


class PowerCut(BaseException):
    """The process stops here; no part of the program can catch this and go on."""


class Disk(Store):
    """A store whose writes can be counted down to a power cut."""

    writes_left = -1
    """Writes until the power goes; negative: it stays."""
    moment: Moment = "before"
    writes = 0
    """Writes since the disk was filled."""

    def fill(self, content: bytes) -> None:
        """Replace everything by what `serialize` gave: a backup that is put back."""
        self._database.connection.deserialize(content)
        self.writes_left = -1
        self.writes = 0

    def cut_power(self, writes_left: int, moment: Moment) -> None:
        """Let the power go at one of the next writes."""
        self.writes_left, self.moment = writes_left, moment

    def append_batches(self, batches: Sequence[tuple[bytes, bytes]]) -> None:
        """As the store does, unless the power goes."""
        is_last = self.writes_left == 0
        self.writes_left -= 1
        self.writes += 1
        if is_last and self.moment == "before":
            raise PowerCut
        super().append_batches(batches)
        if is_last:
            raise PowerCut


class DiskShelf:
    """Disks that were opened once, handed out filled."""

    def __init__(self, federation: bytes) -> None:
        self._federation = federation
        self._disks: list[Disk] = []

    def take(self, number: int, content: bytes) -> Disk:
        """The disk of a member; whatever it held before is gone."""
        while len(self._disks) <= number:
            opened = Disk.open(":memory:", self._federation)
            assert isinstance(opened, Disk)
            self._disks.append(opened)
        self._disks[number].fill(content)
        return self._disks[number]
