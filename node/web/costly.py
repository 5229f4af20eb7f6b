"""Answers that take long to compute: onlookers who ask often get the last one, and the node keeps its time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

TIME_SHARE_MAX = 0.05
"""At most this share of the time goes into computing one such answer anew."""

Answer = TypeVar("Answer")


class CostlyView(Generic[Answer]):
    """A function of the set of batches, computed again when batches came and enough time has passed."""

    def __init__(self, compute: Callable[[], Answer], clock: Callable[[], float]) -> None:
        self._compute = compute
        self._clock = clock
        self._last: tuple[int, Answer] | None = None
        self._computed_at = 0.0
        self._computed_in = 0.0

    def read(self, batches: int) -> Answer:
        """The answer for the first `batches` batches, or one that lies a little back."""
        now = self._clock()
        if self._last is not None:
            # A clock that was set back must not keep an old answer for ever: hence the absolute value.
            is_recent = abs(now - self._computed_at) * TIME_SHARE_MAX < self._computed_in
            if self._last[0] == batches or is_recent:
                return self._last[1]
        answer = self._compute()
        self._last = batches, answer
        self._computed_at, self._computed_in = now, max(0.0, self._clock() - now)
        return answer
