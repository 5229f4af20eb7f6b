"""Jobs that found no free machine: the oldest that fits gets the next one. A large job lets smaller ones pass."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from protocol.quotes import QuoteRequest
from scripts.replays.jobs import Job


class WaitingRoom:
    """First come, first served, among the jobs that fit; those of equal demand never overtake one another."""

    def __init__(self) -> None:
        self._queues: dict[QuoteRequest, deque[tuple[int, Job]]] = {}
        self._count = 0

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def is_waited_for(self, demand: QuoteRequest) -> bool:
        """Whether a job of this demand waits already."""
        return bool(self._queues.get(demand))

    def add(self, job: Job) -> None:
        """The job waits from now on."""
        self._queues.setdefault(job.demand, deque()).append((self._count, job))
        self._count += 1

    def take(self, fits: Callable[[Job], bool]) -> Job | None:
        """The job that has waited longest of those that fit; it waits no more."""
        heads = [queue[0] for queue in self._queues.values() if queue and fits(queue[0][1])]
        if not heads:
            return None
        _, job = min(heads, key=lambda head: head[0])
        self._queues[job.demand].popleft()
        return job
