"""Real nodes on the loopback interface, each with a record of what it was told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.network.libp2p_transport import Libp2pTransport
from node.network.peer_ids import compute_peer_id

TOPIC = "batches"
ECHO = "/echo/1"


class Node:
    """A transport that echoes requests and remembers gossip; payloads in `refuses` are invalid to it."""

    def __init__(self, number: int, admitted: set[str] | None, listen: str) -> None:
        self.admitted = admitted
        self.refuses: set[bytes] = set()
        self.received: list[tuple[str, bytes]] = []
        self.transport = Libp2pTransport(
            seed_of(number),
            [listen],
            topics=[TOPIC],
            validate=self.validate,
            on_gossip=self.take_in,
            is_admitted=lambda peer_id: self.admitted is None or peer_id in self.admitted,
        )
        self.peer_id = self.transport.peer_id
        self.transport.serve(ECHO, self.echo)

    def validate(self, peer_id: str, topic: str, payload: bytes) -> bool:
        return payload not in self.refuses

    async def take_in(self, peer_id: str, topic: str, payload: bytes) -> None:
        self.received.append((peer_id, payload))

    async def echo(self, peer_id: str, question: bytes) -> bytes:
        return question[::-1]

    def payloads(self) -> set[bytes]:
        return {payload for _, payload in self.received}

    def call(self, *others: Node) -> None:
        self.transport.set_peers({other.peer_id: other.transport.listen_addresses() for other in others})


def seed_of(number: int) -> bytes:
    return bytes([number]) * 32


def peer_id_of(number: int) -> str:
    key = Ed25519PrivateKey.from_private_bytes(seed_of(number)).public_key()
    return compute_peer_id(key.public_bytes_raw())


async def until(is_true: Callable[[], Any], seconds: float = 15) -> None:
    """Wait for a state that must come; the limit only bounds a failing test."""
    with trio.fail_after(seconds):
        while not is_true():
            await trio.sleep(0.01)


class Lab:
    """What the tests of this folder share."""

    TOPIC = TOPIC
    ECHO = ECHO
    until = staticmethod(until)
    seed_of = staticmethod(seed_of)
    peer_id_of = staticmethod(peer_id_of)

    @staticmethod
    def node(number: int, admitted: set[str] | None = None, listen: str = "/ip4/127.0.0.1/tcp/0") -> Node:
        return Node(number, admitted, listen)

    @staticmethod
    async def gossip_until(speaker: Node, listener: Node, payload: bytes, seconds: float = 15) -> None:
        """Publish until it arrives: gossip is a hint, and a new connection takes a moment to join."""
        with trio.fail_after(seconds):
            while payload not in listener.payloads():
                await speaker.transport.publish(TOPIC, payload)
                await trio.sleep(0.05)


@pytest.fixture
def lab() -> Lab:
    return Lab()
