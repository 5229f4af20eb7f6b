"""How often a member speaks: soon when little happens, in larger batches when much does.

Every batch costs each other member about as much as 1.6 signature checks, whatever is in it, and each gossip message
several milliseconds on top. So when batches become many, or carry few records each, the interval grows up to a
ceiling; when the federation is quiet a payment waits for the shortest interval only.
"""

from __future__ import annotations

WINDOW_SECONDS = 1.0
BATCHES_PER_WINDOW_FREE = 40
"""Five payments a second, one after the other, among four members take that many: about a tenth of a core."""

RECORDS_PER_BATCH_GOAL = 10
INTERVAL_CEILING_SECONDS = 0.25


class Pacing:
    """The pause between two batches of one member, from the shortest that the charter allows up to the ceiling."""

    def __init__(self, shortest_seconds: float) -> None:
        self.interval_seconds = shortest_seconds
        self._shortest = shortest_seconds
        self._spoken_at = float("-inf")
        self._window_start = float("-inf")
        self._batches = 0
        self._records = 0

    def note_received(self, records: int, now: float) -> None:
        """A batch of another member with so many records came in."""
        if not 0 <= now - self._window_start < WINDOW_SECONDS:
            self._adapt()
            self._window_start, self._batches, self._records = now, 0, 0
        self._batches += 1
        self._records += records

    def _adapt(self) -> None:
        is_crowded = self._batches > BATCHES_PER_WINDOW_FREE
        if is_crowded and self._records < RECORDS_PER_BATCH_GOAL * self._batches:
            self.interval_seconds = min(max(INTERVAL_CEILING_SECONDS, self._shortest), self.interval_seconds * 1.5)
        else:
            self.interval_seconds = max(self._shortest, self.interval_seconds / 1.5)

    def note_spoken(self, now: float) -> None:
        """We sent a batch."""
        self._spoken_at = now

    def compute_delay(self, now: float) -> float:
        """Seconds until the next batch may go out; a clock that jumps back delays it by one interval at most."""
        return min(self.interval_seconds, max(0.0, self._spoken_at + self.interval_seconds - now))
