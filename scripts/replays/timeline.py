"""Simulated time: what shall happen when, in one queue. Nothing sleeps; the clock jumps to the next event.

Events of the same millisecond happen in the order in which they were planned, so a replay is the same in every run.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

Action = Callable[[], None]


class Timeline:
    """Invariant: time never runs backwards."""

    def __init__(self) -> None:
        self.now_ms = 0
        """Milliseconds since the start."""
        self._planned: list[tuple[int, int, Action]] = []
        self._count = 0

    def at(self, time_ms: int, action: Action) -> None:
        """Plan something for a time that is not over yet."""
        assert time_ms >= self.now_ms, "nothing can be planned for the past"
        heapq.heappush(self._planned, (time_ms, self._count, action))
        self._count += 1

    def after(self, pause_ms: int, action: Action) -> None:
        """Plan something for so much later."""
        self.at(self.now_ms + pause_ms, action)

    def run(self) -> None:
        """Until nothing is planned any more."""
        while self._planned:
            self.now_ms, _, action = heapq.heappop(self._planned)
            action()
