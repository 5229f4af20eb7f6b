"""What a node expects of the network: tell everybody, ask one, know who is there.

Two promises are kept apart. `publish` is a **hint**: it may be lost, doubled or reordered and nobody is
told. `request` is an **answer or an error**. Whatever must arrive is therefore fetched by requests, and
gossip only makes it quick. A peer is named by its peer id, which the transport has proved by a handshake
before anything is delivered.

Errors by fault: a peer that is not there raises `UnreachablePeer`; a peer that says no raises
`RequestFailed`; a peer that breaks the framing or a limit raises `InvalidInput`; a caller that asks for too
much gets `ValueError`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from protocol.limits import BATCH_BYTES_MAX, SYNC_BYTES_MAX

GOSSIP_BYTES_MAX = 512 * 1024
"""One published message. Peers silently drop frames above 1 MiB: the sender must refuse long before."""

REQUEST_BYTES_MAX = 1024 * 1024
"""One question: a frontier of every log, or a list of what is missing."""

RESPONSE_BYTES_MAX = 16 * 1024 * 1024
"""One answer, held in memory by both sides; a caller that expects less says so."""

REQUESTS_PER_PEER_MAX = 8
"""Questions of ours that one peer has open."""

ANSWERS_PER_PEER_MAX = 2
"""Answers to one peer that are made or sent at a time, each of up to 16 MiB; further questions of its wait."""

INBOX_MESSAGES_MAX = 256
"""Gossip that waits for the node; the newest is dropped when it is full, as anti-entropy fetches it later."""

assert 2 * BATCH_BYTES_MAX <= GOSSIP_BYTES_MAX
assert SYNC_BYTES_MAX <= RESPONSE_BYTES_MAX

Validate = Callable[[str, str, bytes], bool]
"""(peer id, topic, payload) -> deliver and forward it? Must be cheap: every message passes it first."""

OnGossip = Callable[[str, str, bytes], Awaitable[None]]
"""(peer id, topic, payload) of a message that passed `Validate`. The peer is the neighbour that sent it."""

Handler = Callable[[str, bytes], Awaitable[bytes]]
"""(peer id, question) -> answer. The texts of `Rejected` and `UserError` reach the peer, others do not."""

IsAdmitted = Callable[[str], bool]
"""Does this peer belong to the federation? Asked in every handshake, in both directions."""


class UnreachablePeer(Exception):
    """The peer is not connected or did not answer in time. The request may have arrived."""


class RequestFailed(Exception):
    """The peer answered that it can't or won't serve this. The text is the peer's: do not trust it."""


@dataclass
class Traffic:
    """Bytes above the encryption, per protocol, since the start (for metrics and tests)."""

    received: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)


GOSSIP = "gossip"
"""The key under which `Traffic` counts all that is published, doubles and control messages included."""


class Transport(Protocol):
    """One node's end of the network.

    Invariants: nothing that a peer sends ends the process; every queue, frame and wait is bounded; a peer
    that is not admitted, or whose standing is too low, neither gets nor delivers anything.
    """

    @property
    def peer_id(self) -> str: ...

    @property
    def traffic(self) -> Traffic: ...

    def run(self) -> AbstractAsyncContextManager[None]:
        """Be on the network inside this block. Raises UserError when the listen address can't be had."""

    def set_peers(self, peers: Mapping[str, Sequence[str]]) -> None:
        """Keep connections to these peers (peer id -> addresses), in place of the former set."""

    def serve(self, protocol: str, handler: Handler) -> None:
        """Answer requests of this protocol."""

    def connected(self) -> frozenset[str]:
        """The peers that can be asked now."""

    def note_fault(self, peer_id: str, severity: float = ...) -> None:
        """Lower a peer's standing; a peer that falls below zero is disconnected and ignored for a while."""

    async def publish(self, topic: str, payload: bytes) -> None:
        """Tell everybody, as a hint; waits briefly for slow neighbours. Raises ValueError above the limit."""

    async def request(
        self,
        peer_id: str,
        protocol: str,
        payload: bytes,
        timeout_seconds: float,
        response_bytes_max: int = RESPONSE_BYTES_MAX,
    ) -> bytes:
        """Ask one peer.

        Raises: UnreachablePeer; RequestFailed (the peer refused); InvalidInput (its answer is malformed or
        too long); ValueError (our question is).
        """


def check_publishable(topics: frozenset[str], topic: str, payload: bytes) -> None:
    """Raises ValueError for a topic that was not named at the start and for a payload above the limit."""
    if topic not in topics:
        raise ValueError(f"topic {topic!r} was not named when the transport was made")
    if len(payload) > GOSSIP_BYTES_MAX:
        raise ValueError(f"a message of {len(payload)} bytes is above the limit of {GOSSIP_BYTES_MAX}")


def check_request(payload: bytes, response_bytes_max: int) -> None:
    """Raises ValueError for a question above the limit, or for expecting a longer answer than may be sent."""
    if len(payload) > REQUEST_BYTES_MAX:
        raise ValueError(f"a request of {len(payload)} bytes is above the limit of {REQUEST_BYTES_MAX}")
    if not 0 <= response_bytes_max <= RESPONSE_BYTES_MAX:
        raise ValueError(f"answers are limited to {RESPONSE_BYTES_MAX} bytes, not {response_bytes_max}")
