"""A clock that counts only while the node runs, so that nobody's grace passes while the node could not see it.

A payer may take an escrow back when the donor had its time to settle. Wall clocks jump and nodes stop; so each member
counts the seconds for which it ran, and saves them each minute. What it did not save before a crash counts again: a
grace gets longer by that, never shorter (spec 7.10).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container

from node.storage.store import MarkKind, Store
from protocol.ledger import Ledger
from protocol.records import Reclaim, ReclaimRequest, Record, Settle

SAVE_SECONDS = 60


class RunningClock:
    """Running seconds since the node's first start, and the requests whose grace runs on this clock."""

    def __init__(self, store: Store, steady_clock: Callable[[], float] = time.monotonic) -> None:
        """`steady_clock` gives seconds of any clock that never jumps."""
        self._store = store
        self._steady_clock = steady_clock
        self._before = store.get_marks(MarkKind.RUNNING_SECONDS).get(b"", 0)
        self._started = steady_clock()
        self._saved = self._before
        self._ripe_seconds: dict[bytes, int] = store.get_marks(MarkKind.GRACE_ENDS)

    def read(self) -> int:
        """Running seconds; never less than at the call before."""
        return self._before + int(self._steady_clock() - self._started)

    def note_applied(self, record: Record, ledger: Ledger) -> None:
        """A reclaim request starts its hold's grace, unless an earlier run saw it; the hold's end stops it."""
        match record.body:
            case ReclaimRequest(hold=hold_id) if ledger.holds[hold_id].request == record.id:
                grace_seconds = ledger.holds[hold_id].terms.grace_seconds
                self._ripe_seconds.setdefault(record.id, self.read() + grace_seconds)
            case Settle() | Reclaim():
                request = ledger.holds[record.account].request
                if self._ripe_seconds.pop(request, None) is not None:
                    self._store.remove_mark(MarkKind.GRACE_ENDS, request)

    def note_open_requests(self, ledger: Ledger) -> None:
        """At a ledger's beginning with a checkpoint: each open request starts its grace, unless it has begun."""
        for hold in ledger.holds.values():
            if hold.is_open and hold.request:
                self._ripe_seconds.setdefault(hold.request, self.read() + hold.terms.grace_seconds)

    @property
    def ripe_requests(self) -> Container[bytes]:
        """The requests whose grace is over."""
        now = self.read()
        return frozenset(request for request, ripe_seconds in self._ripe_seconds.items() if ripe_seconds <= now)

    def compute_seconds_left(self, request: bytes) -> int | None:
        """Running seconds until this request's grace is over; None when it is not known or its hold has ended."""
        ripe_seconds = self._ripe_seconds.get(request)
        return None if ripe_seconds is None else max(0, ripe_seconds - self.read())

    def save(self, *, at_once: bool = False) -> None:
        """Write the clock down, if a minute has passed since the last time."""
        now = self.read()
        if at_once or now - self._saved >= SAVE_SECONDS:
            self._store.put_marks(MarkKind.GRACE_ENDS, self._ripe_seconds)
            self._store.put_marks(MarkKind.RUNNING_SECONDS, {b"": now})
            self._saved = now
