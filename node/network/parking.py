"""A waiting room for batches whose past is not here yet, bounded for each peer that sends them.

A parked batch is not stored, counted or forwarded; when its parents have come, it is let in. What does not fit is
dropped: anti-entropy brings it again.
"""

from __future__ import annotations

from collections import Counter

from protocol.batches import Batch
from protocol.limits import BATCH_BYTES_MAX

PARKED_BYTES_PER_PEER_MAX = 16 * BATCH_BYTES_MAX
"""A peer may run ahead of anti-entropy by a few seconds of full batches."""


class Parking:
    """Parked batches by what they wait for.

    Invariants: each batch is parked once; the bytes parked for one peer never exceed the limit.
    """

    def __init__(self) -> None:
        self._parked: dict[bytes, tuple[Batch, str]] = {}
        self._waiting_for: dict[bytes, set[bytes]] = {}
        self._bytes: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._parked)

    @property
    def wanted(self) -> frozenset[bytes]:
        """The batches for which others wait."""
        return frozenset(self._waiting_for)

    def park(self, batch: Batch, missing: list[bytes], peer: str) -> bool:
        """Keep the batch until the first of `missing` comes; False when the peer's room is full."""
        assert missing
        if batch.id in self._parked:
            return True
        if self._bytes[peer] + len(batch.encoded) > PARKED_BYTES_PER_PEER_MAX:
            return False
        self._parked[batch.id] = (batch, peer)
        self._bytes[peer] += len(batch.encoded)
        self._waiting_for.setdefault(missing[0], set()).add(batch.id)
        return True

    def release(self, admitted: bytes) -> list[tuple[Batch, str]]:
        """Take out the batches that waited for `admitted`; the caller looks whether another parent is missing."""
        released = [self._parked.pop(waiting) for waiting in sorted(self._waiting_for.pop(admitted, ()))]
        for batch, peer in released:
            self._bytes[peer] -= len(batch.encoded)
        return released
