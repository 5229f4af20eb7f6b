"""Checking signatures on all cores: the one costly step of taking records in.

`cryptography` lets other threads run while it verifies, so chunks of signatures go to a few threads; a handful is
checked at once, for a hand-over costs as much as two signatures.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import trio

T = TypeVar("T")

CHUNK = 64
"""Items of one hand-over: 5 ms of work, so the event loop is never far behind."""

INLINE_MAX = 3


async def check_all(items: Sequence[T], check: Callable[[T], bool]) -> list[bool]:
    """`check` of every item, in their order. `check` must be pure: it runs in threads."""
    if len(items) <= INLINE_MAX:
        return [check(item) for item in items]
    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    results: list[list[bool]] = [[] for _ in chunks]

    async def check_chunk(number: int) -> None:
        chunk = chunks[number]
        results[number] = await trio.to_thread.run_sync(lambda: [check(item) for item in chunk], limiter=_limiter())

    async with trio.open_nursery() as nursery:
        for number in range(len(chunks)):
            nursery.start_soon(check_chunk, number)
    return [result for part in results for result in part]


_LIMITER: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("verification")


def _limiter() -> trio.CapacityLimiter:
    try:
        return _LIMITER.get()
    except LookupError:
        limiter = trio.CapacityLimiter(os.cpu_count() or 1)
        _LIMITER.set(limiter)
        return limiter
