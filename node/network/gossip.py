"""Telling everybody at once: new batches and donors' offers, as hints that may be lost.

A message is validated before it is forwarded: a batch must carry a signature of a member of this federation, an
offer one of its donor. Whatever is lost here is fetched by anti-entropy.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import trio

from node.network.transport import Transport
from protocol.batches import compute_batch_id, decode_header, is_signed_header, unpack_signed_header
from protocol.charter import Charter
from protocol.errors import InvalidInput

log = logging.getLogger("allmende.gossip")

OUTBOX_MESSAGES_MAX = 64
"""Own messages that wait for slow neighbours; the oldest is dropped, as anti-entropy brings it anyway."""

INGEST_GROUP_MAX = 64
"""Gossiped batches that are stored in one transaction when many wait."""


def batches_topic(federation: bytes) -> str:
    """The topic of new batches."""
    return f"/allmende/{federation.hex()[:16]}/batches/1"


def offers_topic(federation: bytes) -> str:
    """The topic of donors' offers."""
    return f"/allmende/{federation.hex()[:16]}/offers/1"


def is_signed_by_member(charter: Charter, encoded: bytes) -> bool:
    """True when the bytes begin like a batch that a member of the charter signed: worth forwarding."""
    try:
        header_bytes, signature = unpack_signed_header(encoded)
        header = decode_header(header_bytes)
    except InvalidInput:
        return False
    return is_signed_header(charter, header, compute_batch_id(charter.federation, header_bytes), signature)


class Gossip:
    """Between the network's hints and the member: received batches in groups, own batches out."""

    def __init__(self, federation: bytes, ingest: Callable[[Sequence[bytes], str], Awaitable[int]]) -> None:
        self._batches = batches_topic(federation)
        self._offers = offers_topic(federation)
        self._ingest = ingest
        self.on_offer: list[Callable[[bytes], None]] = []
        self._received: deque[tuple[str, bytes]] = deque()
        self._outbox: deque[tuple[str, bytes]] = deque(maxlen=OUTBOX_MESSAGES_MAX)
        self._has_received = trio.Event()
        self._has_room = trio.Event()
        self._has_sendings = trio.Event()

    @property
    def topics(self) -> tuple[str, str]:
        """What this node listens to."""
        return (self._batches, self._offers)

    async def handle(self, peer_id: str, topic: str, payload: bytes) -> None:
        """Take a message that passed validation. Waits while the node is behind, so the transport drops instead."""
        if topic == self._offers:
            for callback in self.on_offer:
                callback(payload)
            return
        while len(self._received) >= INGEST_GROUP_MAX:
            self._has_room = trio.Event()
            await self._has_room.wait()
        self._received.append((peer_id, payload))
        self._has_received.set()

    def tell_batch(self, encoded: bytes) -> None:
        """Queue an own batch for everybody."""
        self._outbox.append((self._batches, encoded))
        self._has_sendings.set()

    def tell_offer(self, encoded: bytes) -> None:
        """Queue a donor's offer for everybody."""
        self._outbox.append((self._offers, encoded))
        self._has_sendings.set()

    async def run(self, transport: Transport) -> None:
        """Send and take in until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, transport)
            nursery.start_soon(self._take_in)

    async def _send(self, transport: Transport) -> None:
        while True:
            await self._has_sendings.wait()
            self._has_sendings = trio.Event()
            while self._outbox:
                topic, payload = self._outbox.popleft()
                await transport.publish(topic, payload)

    async def _take_in(self) -> None:
        while True:
            await self._has_received.wait()
            self._has_received = trio.Event()
            while self._received:
                peer_id = self._received[0][0]
                group = []
                while self._received and self._received[0][0] == peer_id:
                    group.append(self._received.popleft()[1])
                self._has_room.set()
                await self._ingest(group, peer_id)
