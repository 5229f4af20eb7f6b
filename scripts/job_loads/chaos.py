"""What goes wrong meanwhile: kill -9 of agents, nodes and the scheduler, one after the other, each started again."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import NamedTuple

PAUSE_SECONDS_MAX = 2.0
"""How long a killed process stays away."""


class Victim(NamedTuple):
    """A process that may be killed at any moment."""

    name: str
    kind: str
    kill: Callable[[], None]
    start: Callable[[], None]


class Chaos:
    """Kills until it is left. Use as a context manager; at its end every victim runs."""

    def __init__(self, victims: list[Victim], kill_seconds: float, random: Random) -> None:
        self.kills: Counter[str] = Counter()
        self._victims = victims
        self._kill_seconds = kill_seconds
        self._random = random
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Chaos:
        if self._kill_seconds:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        if self._kill_seconds:
            self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(self._random.uniform(0.5, 1.5) * self._kill_seconds):
            victim = self._random.choice(self._victims)
            victim.kill()
            self.kills[victim.kind] += 1
            self._is_over.wait(self._random.uniform(0, PAUSE_SECONDS_MAX))
            victim.start()
