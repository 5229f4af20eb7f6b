"""How often a member speaks: soon when little happens, in larger batches when much does.

Every batch costs each other member about as much as 1.6 signature checks, whatever is in it, and each gossip message
several milliseconds on top. So when many payments are made and batches carry few of them each, the interval grows up
to a ceiling; when the federation is quiet a payment waits for the shortest interval only.
"""

from __future__ import annotations

WINDOW_SECONDS = 1.0
RECORDS_PER_WINDOW_FREE = 20
"""So few payments a second don't wait for one another: nothing would be gained."""

BATCHES_PER_WINDOW_MAX = 100
"""About a third of a core: more than that, whatever is in them, slows everybody down."""

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
        is_busy = self._records > RECORDS_PER_WINDOW_FREE or self._batches > BATCHES_PER_WINDOW_MAX
        if is_busy and self._records < RECORDS_PER_BATCH_GOAL * self._batches:
            self.interval_seconds = min(max(INTERVAL_CEILING_SECONDS, self._shortest), self.interval_seconds * 1.5)
        else:
            self.interval_seconds = max(self._shortest, self.interval_seconds / 1.5)

    def note_spoken(self, now: float) -> None:
        """We sent a batch."""
        self._spoken_at = now

    def compute_delay(self, now: float) -> float:
        """Seconds until the next batch may go out; a clock that jumps back delays it by one interval at most."""
        return min(self.interval_seconds, max(0.0, self._spoken_at + self.interval_seconds - now))
