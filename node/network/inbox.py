"""Where gossip waits for the node, behind a guard: what a peer sends may be wrong, but harms nobody.

Both transports hand every message to `Inbox.offer`, which asks the caller's `validate` and keeps what passed
in a bounded queue; one task gives it to the caller's `on_gossip`, one message at a time. Errors by fault:
`InvalidInput` lowers the peer's standing; `AssertionError` in `on_gossip` is ours and stops the node;
anything else is logged and forgotten, as gossip is only a hint.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from node.network.transport import INBOX_MESSAGES_MAX, OnGossip, Validate
from protocol.errors import InvalidInput

log = logging.getLogger(__name__)


class Inbox:
    """The queue of messages that passed validation. Invariant: at most `INBOX_MESSAGES_MAX` messages wait."""

    def __init__(self, validate: Validate, on_gossip: OnGossip, blame: Callable[[str], None]) -> None:
        self._validate = validate
        self._on_gossip = on_gossip
        self._blame = blame
        self._send, self._receive = trio.open_memory_channel[tuple[str, str, bytes]](INBOX_MESSAGES_MAX)
        self.dropped_messages = 0

    def offer(self, peer_id: str, topic: str, payload: bytes) -> bool:
        """Validate, and keep it for the node. True: it may be forwarded. Never raises, never waits."""
        if not self.is_valid(peer_id, topic, payload):
            return False
        try:
            self._send.send_nowait((peer_id, topic, payload))
        except trio.WouldBlock:
            self.dropped_messages += 1
        return True

    def is_valid(self, peer_id: str, topic: str, payload: bytes) -> bool:
        """The caller's verdict; an exception counts as no, because nothing was stored yet."""
        try:
            return bool(self._validate(peer_id, topic, payload))
        except InvalidInput as error:
            log.info("gossip of %s is malformed: %s", peer_id, error)
            self._blame(peer_id)
        except Exception:
            log.exception("validating gossip of %s failed", peer_id)
        return False

    async def deliver(self) -> None:
        """Give the messages to the node, in order, for ever."""
        async for peer_id, topic, payload in self._receive:
            try:
                await self._on_gossip(peer_id, topic, payload)
            except AssertionError:
                raise
            except InvalidInput as error:
                log.info("gossip of %s is invalid: %s", peer_id, error)
                self._blame(peer_id)
            except Exception:
                log.exception("taking in gossip of %s failed", peer_id)
