"""How the agent reaches its node: the typed HTTP client, in threads, and every call repeated until it is answered.

A donor's machine is at home behind a router and its line fails now and then. So a node that can't be reached is no
error here: the call is made again, with growing pauses, for as long as it matters to the caller.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import trio

from node import api, job_api
from node.errors import Unreachable, UserError

log = logging.getLogger(__name__)

T = TypeVar("T")

PAUSE_SECONDS_FIRST = 0.5
PAUSE_SECONDS_MAX = 30.0
CALLS_MAX = 64
"""Threads that may wait for the node at a time; most are long polls."""


class NodeLink(Protocol):
    """What the agent uses of `node.client.NodeClient`. Each call blocks; `Unreachable` says: try again."""

    def get_charter(self) -> api.Charter: ...
    def get_account(self, address: str) -> api.Account: ...
    def get_record(self, record_id: str, wait: int = 0) -> api.Record | None: ...
    def get_job(self, hold_id: str) -> job_api.Job | None: ...
    def submit_record(self, record: bytes, wait: int = 0) -> api.Submitted: ...
    def post_unlock(self, request: bytes, wait: int = 0) -> api.Promises: ...
    def post_proposal(self, proposal: bytes, record: bytes, wait: int = 0) -> api.Submitted: ...
    def put_offer(self, offer: bytes) -> Any: ...
    def post_message(self, mailbox: bytes, content: bytes) -> Any: ...
    def get_messages(self, mailbox: bytes, after: int = 0, wait: int = 0) -> Sequence[job_api.Message]: ...
    def put_blob(self, content: bytes) -> Any: ...
    def get_blob(self, digest: bytes) -> bytes: ...


class Post:
    """The agent's way to its node."""

    def __init__(self, link: NodeLink, poll_seconds: int = 20) -> None:
        self.link = link
        self._poll_seconds = poll_seconds
        self._limiter = trio.CapacityLimiter(CALLS_MAX)

    async def call(self, method: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """One call, once. A cancelled long poll is left to end by itself: it changes nothing."""
        return await trio.to_thread.run_sync(
            partial(method, *arguments, **options), limiter=self._limiter, abandon_on_cancel=True
        )

    async def insist(self, method: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """The call's answer, however long the node is away."""
        pause = PAUSE_SECONDS_FIRST
        while True:
            try:
                return await self.call(method, *arguments, **options)
            except Unreachable:
                await trio.sleep(pause)
                pause = min(2 * pause, PAUSE_SECONDS_MAX)

    async def read(self, mailbox: bytes, after: int) -> Sequence[job_api.Message]:
        """Messages after number `after`; waits a while for the first, and may come back with none."""
        try:
            return await self.insist(self.link.get_messages, mailbox, after=after, wait=self._poll_seconds)
        except UserError as error:
            log.warning("the node gives no messages: %s", error)
            await trio.sleep(PAUSE_SECONDS_MAX)
            return ()
