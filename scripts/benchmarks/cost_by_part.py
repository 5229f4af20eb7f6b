"""Where a replica's CPU time goes, part by part: a watch that at any instant runs for exactly one part.

While a `Watch` is open the functions of each part are wrapped, and a call stops the watch of the part that made it; so
the times add up to the whole, and what no part claims is "the rest". Being watched costs a call one or two
microseconds, which are measured and taken off again.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import node.member
import node.verification
import protocol.batches
import protocol.records
from node.history import AccountHistory
from node.member import LedgerMember
from node.storage.store import Store
from protocol.ledger import Ledger
from protocol.replica import Replica
from protocol.voting import Voter

Parts = Mapping[str, Sequence[tuple[Any, str]]]
"""Part -> its functions, each as (who holds it, its name there)."""

REST = "the rest"
REPLICA_PARTS: Parts = {
    "signatures": [(node.verification, "check_all")],
    "decode, check, encode again": [(node.member, "decode_batch")],
    "hash ids": [(protocol.records, "compute_id"), (protocol.batches, "compute_id")],
    "Merkle leaves and roots": [(protocol.batches, "compute_record_leaf"), (protocol.batches, "compute_root")],
    "store": [(Store, "append_batches")],
    "admit, tally": [(Replica, "admit")],
    "judge before a vote": [(Voter, "handle_verified")],
    "note what was said": [(Voter, "handle_admission"), (Voter, "take_statements")],
    "fold": [(Ledger, "offer")],
    "history": [(AccountHistory, "note")],
    "own batches": [(LedgerMember, "_sign")],
}


class Watch:
    """CPU seconds of this process by part. For one task at a time: parts nest, they don't interleave."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._switches: Counter[str] = Counter()
        self._open = [REST]
        self._since = 0.0

    @contextmanager
    def watching(self, parts: Parts) -> Iterator[None]:
        """Watch the functions of all parts until the block ends."""
        with ExitStack() as wrapped:
            for part, functions in parts.items():
                for holder, name in functions:
                    wrapped.enter_context(mock.patch.object(holder, name, self._wrap(part, getattr(holder, name))))
            self._since = time.process_time()
            yield
            self._switch()

    def read(self) -> dict[str, float]:
        """CPU seconds by part, less what watching cost."""
        cost = _measure_switch()
        return {part: max(0.0, spent - cost * self._switches[part]) for part, spent in self._seconds.items()}

    def _switch(self) -> None:
        now = time.process_time()
        self._seconds[self._open[-1]] += now - self._since
        self._switches[self._open[-1]] += 1
        self._since = now

    def _enter(self, part: str) -> None:
        self._switch()
        self._open.append(part)

    def _leave(self) -> None:
        self._switch()
        self._open.pop()

    def _wrap(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def watch_task(*args: Any, **kwargs: Any) -> Any:
                self._enter(part)
                try:
                    return await function(*args, **kwargs)
                finally:
                    self._leave()

            return watch_task

        @functools.wraps(function)
        def watch_call(*args: Any, **kwargs: Any) -> Any:
            self._enter(part)
            try:
                return function(*args, **kwargs)
            finally:
                self._leave()

        return watch_call


def _measure_switch() -> float:
    """CPU seconds that watching adds to a part each time that the watch leaves it: half a watched call that is idle."""
    watch = Watch()
    idle = watch._wrap("idle", lambda: None)
    calls = 20_000
    watch._since = started = time.process_time()
    for _ in range(calls):
        idle()
    return (time.process_time() - started) / (2 * calls)
