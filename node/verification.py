"""Checking signatures on all cores: the one costly step of taking records in.

`cryptography` lets other threads run while it verifies, so each core gets one equal share of the signatures; a
handful is checked at once, for a hand-over to a thread costs as much as two signatures.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import trio

T = TypeVar("T")

SHARE_MIN = 32
"""Fewer items than this are not worth a thread of their own: a hand-over is then above 5 % of the work."""

INLINE_MAX = 3


async def check_all(items: Sequence[T], check: Callable[[T], bool]) -> list[bool]:
    """`check` of every item, in their order. `check` must be pure: it runs in threads.

    A share of the largest batch is 1,024 signatures, 80 ms; the event loop runs on meanwhile.
    """
    if len(items) <= INLINE_MAX:
        return [check(item) for item in items]
    limiter = _limiter()
    shares = min(int(limiter.total_tokens), -(-len(items) // SHARE_MIN))
    results = [False] * len(items)

    async def check_share(number: int) -> None:
        share = items[number::shares]
        results[number::shares] = await trio.to_thread.run_sync(
            lambda: [check(item) for item in share], limiter=limiter
        )

    async with trio.open_nursery() as nursery:
        for number in range(shares):
            nursery.start_soon(check_share, number)
    return results


_LIMITER: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("verification")


def _limiter() -> trio.CapacityLimiter:
    try:
        return _LIMITER.get()
    except LookupError:
        limiter = trio.CapacityLimiter(len(os.sched_getaffinity(0)))
        _LIMITER.set(limiter)
        return limiter
