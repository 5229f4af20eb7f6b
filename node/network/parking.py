"""A waiting room for batches whose past is not here yet, bounded for each member that signed them.

A parked batch is not stored or counted; when its parents have come, it is let in. Where there is no room the member's
oldest are dropped: anti-entropy brings them again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import NamedTuple

from protocol.batches import Batch
from protocol.limits import BATCH_BYTES_MAX
from protocol.replica import LogName, get_log_name

PARKED_BYTES_PER_MEMBER_MAX = 16 * BATCH_BYTES_MAX
"""A member may run ahead of anti-entropy by a few seconds of full batches."""


class Parked(NamedTuple):
    batch: Batch
    peer: str
    missing: bytes


class Parking:
    """Parked batches by what they wait for.

    Invariants: each batch is parked once; the bytes parked for one member never exceed the limit.
    """

    def __init__(self) -> None:
        self._parked: dict[bytes, Parked] = {}
        self._waiting_for: dict[bytes, set[bytes]] = {}
        self._bytes: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._parked)

    def has_waiting(self, unwanted: Collection[LogName]) -> bool:
        """True when a batch of another than the `unwanted` logs waits."""
        return any(get_log_name(parked.batch.header) not in unwanted for parked in self._parked.values())

    def park(self, batch: Batch, missing: list[bytes], peer: str) -> None:
        """Keep the batch until the first of `missing` comes; the member's oldest make room for it."""
        assert missing
        if batch.id in self._parked:
            return
        member = batch.header.member
        while self._bytes[member] + len(batch.encoded) > PARKED_BYTES_PER_MEMBER_MAX:
            self._drop(next(parked for parked in self._parked.values() if parked.batch.header.member == member))
        self._parked[batch.id] = Parked(batch, peer, missing[0])
        self._bytes[member] += len(batch.encoded)
        self._waiting_for.setdefault(missing[0], set()).add(batch.id)

    def _drop(self, parked: Parked) -> None:
        batch = parked.batch
        del self._parked[batch.id]
        self._bytes[batch.header.member] -= len(batch.encoded)
        waiting = self._waiting_for[parked.missing]
        waiting.discard(batch.id)
        if not waiting:
            del self._waiting_for[parked.missing]

    def release(self, admitted: bytes) -> list[tuple[Batch, str]]:
        """Take out the batches that waited for `admitted`; the caller looks whether another parent is missing."""
        released = [self._parked[waiting] for waiting in sorted(self._waiting_for.get(admitted, ()))]
        for parked in released:
            self._drop(parked)
        return [(parked.batch, parked.peer) for parked in released]
