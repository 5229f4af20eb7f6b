"""The network between the members: it loses, delays, repeats and reorders messages, and falls apart and heals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from random import Random

from tests.simulation.plan import Line

GOOD_LINE = Line(5, 0, 0, 0)
"""When faults have stopped."""

SLOW_MS = 3_000


class Network:
    """Decides for each message whether, when and how often it arrives."""

    def __init__(self, line: Line, random: Random, after: Callable[[float, Callable[[], None]], None]) -> None:
        """`after` lets something happen some seconds later."""
        self.line = line
        self.counts: Counter[str] = Counter()
        self._random = random
        self._after = after
        self._sides: list[frozenset[int]] = []

    def send(self, source: int, target: int, deliver: Callable[[], None]) -> None:
        """`deliver` is called when the message arrives, if it does."""
        if any((source in side) != (target in side) for side in self._sides):
            self.counts["cut off"] += 1
            return
        chance = self._random.random
        if chance() * 1000 < self.line.loss_permille:
            self.counts["lost"] += 1
            return
        self._after(self._draw_delay(), deliver)
        if chance() * 1000 < self.line.repeat_permille:
            self.counts["repeated"] += 1
            self._after(self._draw_delay(), deliver)

    def _draw_delay(self) -> float:
        chance = self._random.random
        mean = self.line.delay_ms * (0.5 + chance())
        if chance() * 1000 < self.line.slow_permille:
            self.counts["slow"] += 1
            mean += SLOW_MS * chance()
        return mean / 1000

    def part(self, side: Collection[int], seconds: float) -> None:
        """Cut these members off from the others for a while."""
        parted = frozenset(side)
        self._sides.append(parted)
        self._after(seconds, lambda: self._sides.remove(parted) if parted in self._sides else None)

    def heal(self) -> None:
        """From now on everything arrives, once and soon."""
        self._sides.clear()
        self.line = GOOD_LINE
