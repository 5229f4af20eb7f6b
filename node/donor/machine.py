"""What of this machine is lent, and to which jobs it is given at the moment: never more than there is.

A job gets all that it asks for, or nothing: cores, memory, disk and GPUs are counted, and a disk that lies in memory
counts as both. Which cores and which GPUs a job gets is the executor's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from protocol.quotes import QuoteRequest


class Share(NamedTuple):
    """An amount of everything that is lent."""

    cores: int
    memory_bytes: int
    disk_bytes: int
    gpus: int


class Machine:
    """Invariant: no job is given a share unless all shares together are within what is lent, in every part."""

    def __init__(self, read_lent: Callable[[], Share], is_disk_in_memory: Callable[[], bool]) -> None:
        """Both are asked whenever it matters: the owner may lend less or more at any time."""
        self._read_lent = read_lent
        self._is_disk_in_memory = is_disk_in_memory
        self._taken: dict[str, Share] = {}
        self._is_closed = False

    @property
    def is_idle(self) -> bool:
        """True when no job has any of it."""
        return not self._taken

    @property
    def free(self) -> Share:
        """What no job has; below 0 where less is lent now than when a job began."""
        taken = self._taken.values()
        return Share(*(lent - sum(parts) for lent, *parts in zip(self._read_lent(), *taken, strict=True)))

    def has_room(self, request: QuoteRequest) -> bool:
        """Whether the job could have all that it asks for now."""
        return not self._is_closed and all(
            wanted <= free for wanted, free in zip(self._compute_share(request), self.free, strict=True)
        )

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Inside, no further job gets a share."""
        self._is_closed = True
        try:
            yield
        finally:
            self._is_closed = False

    def take(self, conversation: str, request: QuoteRequest) -> bool:
        """Give the job its share; False, and nothing happens, when there is not enough. May be repeated."""
        if conversation not in self._taken:
            if not self.has_room(request):
                return False
            self._taken[conversation] = self._compute_share(request)
        return True

    def keep(self, conversation: str, request: QuoteRequest) -> None:
        """A job that runs already has its share, also when less is lent now than when it began."""
        self._taken[conversation] = self._compute_share(request)

    def give_back(self, conversation: str) -> None:
        """The job needs its share no more. Repeating it changes nothing."""
        self._taken.pop(conversation, None)

    def _compute_share(self, request: QuoteRequest) -> Share:
        in_memory = request.disk_bytes if self._is_disk_in_memory() else 0
        return Share(request.cores, request.memory_bytes + in_memory, request.disk_bytes, request.gpus)
