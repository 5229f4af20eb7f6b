"""Checking signatures on all cores: the one costly step of taking records in.

`cryptography` lets other threads run while it verifies, so each core gets one equal share of the signatures; a
handful is checked at once, for a hand-over to a thread costs as much as two signatures.

What the member does with signatures is written as *steps*: a plain generator that hands out checks and goes on with
their answers. `run_in_threads` works them off beside the event loop; `run_at_once` needs neither loop nor threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, TypeVar

import trio

T = TypeVar("T")

SHARE_MIN = 32
"""Fewer items than this are not worth a thread of their own: a hand-over is then above 5 % of the work."""

INLINE_MAX = 3


class Checks(NamedTuple):
    """Items whose answers steps wait for. `check` must be pure: it runs in threads."""

    items: Sequence[Any]
    check: Callable[[Any], bool]


PAUSE = Checks((), bool)
"""Steps that did much without a check hand this out, so that others get their turn."""

Steps = Generator[Checks, list[bool], T]


def run_at_once(steps: Steps[T]) -> T:
    """Work steps off here and now."""
    try:
        items, check = next(steps)
        while True:
            items, check = steps.send([check(item) for item in items])
    except StopIteration as end:
        result: T = end.value
        return result


async def run_in_threads(steps: Steps[T]) -> T:
    """Work steps off with `check_all`."""
    try:
        wanted = next(steps)
        while True:
            if wanted is PAUSE:
                await trio.lowlevel.checkpoint()
            wanted = steps.send(await check_all(*wanted))
    except StopIteration as end:
        result: T = end.value
        return result


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
