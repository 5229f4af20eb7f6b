"""Telling everybody at once: new batches and donors' offers, as hints that may be lost.

A message is validated before it is forwarded: a batch must be well-formed and signed by a member of this federation,
an offer by its donor. Whatever is lost here is fetched by anti-entropy.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from hashlib import sha256

import trio

from node.network.transport import INBOX_MESSAGES_MAX, Transport
from protocol.batches import Batch, decode_batch, is_signed_batch
from protocol.charter import Charters
from protocol.errors import InvalidInput
from protocol.quotes import decode_offer
from protocol.replica import LogName, get_log_name

log = logging.getLogger("allmende.gossip")

OUTBOX_MESSAGES_MAX = 64
"""Own messages that wait for slow neighbours; the oldest is dropped, as anti-entropy brings it anyway."""

CHECKED_BATCHES_MAX = 2 * INBOX_MESSAGES_MAX
RECENT_MESSAGES_MAX = 16 * 1024
"""Digests of messages that came before; anti-entropy repairs what a false start leaves out."""

INGEST_GROUP_MAX = 64
"""Gossiped batches that are stored in one transaction when many wait."""


def batches_topic(federation: bytes) -> str:
    """The topic of new batches."""
    return f"/allmende/{federation.hex()[:16]}/batches/1"


def offers_topic(federation: bytes) -> str:
    """The topic of donors' offers."""
    return f"/allmende/{federation.hex()[:16]}/offers/1"


class Gossip:
    """Between the network's hints and the member: received batches in groups, own batches out."""

    def __init__(
        self,
        charters: Charters,
        take_in: Callable[[Sequence[Batch], str], Awaitable[int]],
        list_ignored_logs: Callable[[], Collection[LogName]] = frozenset,
    ) -> None:
        """`charters` are the versions that are known; it may grow. `list_ignored_logs` names logs of which no further
        batches are wanted."""
        self._charters = charters
        self._federation = charters[0].federation
        self._list_ignored_logs = list_ignored_logs
        self._batches = batches_topic(self._federation)
        self._offers = offers_topic(self._federation)
        self._take_in_batches = take_in
        self.on_unknown_version: list[Callable[[str], None]] = []
        """Called with the peer that passed on a batch of a charter version that is not known here."""
        self.on_offer: list[Callable[[bytes], None]] = []
        self._checked: OrderedDict[bytes, Batch] = OrderedDict()
        """Batches that passed validation and wait to be handed over: decoded and verified once."""
        self._recent: OrderedDict[bytes, None] = OrderedDict()
        self._received: deque[tuple[str, Batch]] = deque()
        self._outbox: deque[tuple[str, bytes]] = deque(maxlen=OUTBOX_MESSAGES_MAX)
        self._has_received = trio.Event()
        self._has_room = trio.Event()
        self._has_sendings = trio.Event()

    @property
    def topics(self) -> tuple[str, str]:
        """What this node listens to."""
        return (self._batches, self._offers)

    def is_worth_forwarding(self, peer_id: str, topic: str, payload: bytes) -> bool:
        """True for a well-formed batch with its member's signature, or a donor's signed offer.

        The whole batch is checked: what an honest node passes on never counts against it. Raises: InvalidInput.
        """
        digest = sha256(payload).digest()
        if digest in self._recent:  # said again under a new number: neither read nor passed on
            return False
        self._recent[digest] = None
        if len(self._recent) > RECENT_MESSAGES_MAX:
            self._recent.popitem(last=False)
        if topic == self._offers:
            decode_offer(self._charters[0], payload)
            return True
        batch = decode_batch(self._federation, payload)
        charter = self._charters.get(batch.header.charter_version)
        if charter is None:  # nobody's fault: the amendment is on its way
            for callback in self.on_unknown_version:
                callback(peer_id)
            return False
        if not is_signed_batch(charter, batch):
            raise InvalidInput("a batch that its member did not sign")
        if get_log_name(batch.header) in self._list_ignored_logs():  # what is wanted of it later, anti-entropy brings
            return False
        self._checked[payload] = batch
        if len(self._checked) > CHECKED_BATCHES_MAX:
            self._checked.popitem(last=False)
        return True

    async def handle(self, peer_id: str, topic: str, payload: bytes) -> None:
        """Take a message that passed validation. Waits while the node is behind, so the transport drops instead."""
        if topic == self._offers:
            for callback in self.on_offer:
                callback(payload)
            return
        while len(self._received) >= INGEST_GROUP_MAX:
            self._has_room = trio.Event()
            await self._has_room.wait()
        batch = self._checked.pop(payload, None)
        if batch is None:  # pushed out by newer ones: anti-entropy will bring it
            return
        self._received.append((peer_id, batch))
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
                await self._take_in_batches(group, peer_id)
