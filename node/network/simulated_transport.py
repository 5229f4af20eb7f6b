"""A network inside one process, for tests: the same promises as the real one, with chosen misfortune.

`SimulatedNetwork` is the wire between `SimulatedTransport`s. Gossip floods from node to node as on the real
network, so a message reaches a peer behind a cut link through others. Loss, doubles and delay are drawn from
one seed; with a jumping clock and a single seed, a run can be repeated.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from node.errors import UserError
from node.network.answering import Fuse, Reply, compute_reply, read_refusal
from node.network.inbox import Inbox
from node.network.peers import FAULT_SEVERITY, Peers
from node.network.transport import (
    GOSSIP,
    RESPONSE_BYTES_MAX,
    Handler,
    IsAdmitted,
    OnGossip,
    RequestFailed,
    Traffic,
    UnreachablePeer,
    Validate,
    check_publishable,
    check_request,
)
from protocol.errors import InvalidInput


@dataclass(frozen=True)
class Misfortune:
    """What befalls each message on each link: probabilities, and a uniform delay up to the maximum."""

    loss: float = 0.0
    duplication: float = 0.0
    delay_seconds_max: float = 0.0


class SimulatedNetwork:
    """The wire: who is there, which links are cut, and what befalls a message."""

    def __init__(self, seed: int = 0, misfortune: Misfortune | None = None) -> None:
        self.chance = random.Random(seed)
        self.misfortune = misfortune or Misfortune()
        self.transports: dict[str, SimulatedTransport] = {}
        self._cut: set[frozenset[str]] = set()

    def cut(self, one: str, other: str) -> None:
        self._cut.add(frozenset((one, other)))

    def heal(self) -> None:
        self._cut.clear()

    def is_linked(self, one: str, other: str) -> bool:
        """Both run, the link is whole, at least one calls the other, and each lets the other in."""
        first, second = self.transports.get(one), self.transports.get(other)
        if first is None or second is None or one == other or frozenset((one, other)) in self._cut:
            return False
        is_called = other in first.called_peers or one in second.called_peers
        return is_called and first.is_open_to(other) and second.is_open_to(one)

    def draw_delays(self) -> list[float]:
        """One delay in seconds for each copy that arrives: none when lost, two when doubled."""
        draw, misfortune = self.chance.random, self.misfortune
        copies = 0 if draw() < misfortune.loss else 2 if draw() < misfortune.duplication else 1
        return [draw() * misfortune.delay_seconds_max for _ in range(copies)]


class SimulatedTransport:
    """One node's end of a `SimulatedNetwork`; keeps the contract of `Transport`."""

    def __init__(
        self,
        network: SimulatedNetwork,
        peer_id: str,
        *,
        topics: Sequence[str],
        validate: Validate,
        on_gossip: OnGossip,
        is_admitted: IsAdmitted = lambda peer_id: True,
    ) -> None:
        self.called_peers: frozenset[str] = frozenset()
        self._network = network
        self._peer_id = peer_id
        self._topics = frozenset(topics)
        self._is_admitted = is_admitted
        self._handlers: dict[str, Handler] = {}
        self._traffic = Traffic()
        self._peers = Peers(random.Random(network.chance.random()))
        self._inbox = Inbox(validate, on_gossip, self.note_fault)
        self._fuse = Fuse()
        self._seen: set[tuple[str, int]] = set()
        self._sequence = 0
        self._nursery: trio.Nursery | None = None

    @property
    def peer_id(self) -> str:
        return self._peer_id

    @property
    def traffic(self) -> Traffic:
        return self._traffic

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        if self._peer_id in self._network.transports:
            raise UserError(f"{self._peer_id} is already on the network: stop the other node first")
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._network.transports[self._peer_id] = self
            nursery.start_soon(self._inbox.deliver)
            nursery.start_soon(self._fuse.watch)
            try:
                yield
            finally:
                del self._network.transports[self._peer_id]
                self._nursery = None
                nursery.cancel_scope.cancel()

    def set_peers(self, peers: Mapping[str, Sequence[str]]) -> None:
        self.called_peers = frozenset(peers) - {self._peer_id}

    def serve(self, protocol: str, handler: Handler) -> None:
        self._handlers[protocol] = handler

    def connected(self) -> frozenset[str]:
        return frozenset(
            peer_id for peer_id in self._network.transports if self._network.is_linked(self._peer_id, peer_id)
        )

    def is_open_to(self, peer_id: str) -> bool:
        return self._is_admitted(peer_id) and self._peers.is_welcome(peer_id, trio.current_time())

    def note_fault(self, peer_id: str, severity: float = FAULT_SEVERITY) -> None:
        self._peers.note_fault(peer_id, trio.current_time(), severity)

    async def publish(self, topic: str, payload: bytes) -> None:
        check_publishable(self._topics, topic, payload)
        self._sequence += 1
        message = (self._peer_id, self._sequence)
        self._seen.add(message)
        self._forward(message, topic, payload, excluding=self._peer_id)
        await trio.lowlevel.checkpoint()

    def _forward(self, message: tuple[str, int], topic: str, payload: bytes, *, excluding: str) -> None:
        for peer_id in sorted(self.connected() - {excluding}):
            self._traffic.sent[GOSSIP] += len(payload)
            receiver = self._network.transports[peer_id]
            for delay_seconds in self._network.draw_delays():
                if receiver._nursery is not None:
                    receiver._nursery.start_soon(
                        receiver._receive, delay_seconds, self._peer_id, message, topic, payload
                    )

    async def _receive(
        self, delay_seconds: float, sender: str, message: tuple[str, int], topic: str, payload: bytes
    ) -> None:
        await trio.sleep(delay_seconds)
        if not self.is_open_to(sender):
            return
        self._traffic.received[GOSSIP] += len(payload)
        if message in self._seen or topic not in self._topics:
            return
        self._seen.add(message)
        if self._inbox.offer(sender, topic, payload) and self._nursery is not None:
            self._forward(message, topic, payload, excluding=sender)

    async def request(
        self,
        peer_id: str,
        protocol: str,
        payload: bytes,
        timeout_seconds: float,
        response_bytes_max: int = RESPONSE_BYTES_MAX,
    ) -> bytes:
        check_request(payload, response_bytes_max)
        if not self._network.is_linked(self._peer_id, peer_id):
            raise UnreachablePeer(f"{peer_id} is not connected")
        with trio.move_on_after(timeout_seconds):
            self._traffic.sent[protocol] += len(payload)
            await self._travel()
            receiver = self._network.transports.get(peer_id)
            if receiver is None or not self._network.is_linked(self._peer_id, peer_id):
                raise UnreachablePeer(f"{peer_id} has left")
            reply = await receiver._answer(self._peer_id, protocol, payload)
            await self._travel()
            if not self._network.is_linked(self._peer_id, peer_id):
                raise UnreachablePeer(f"{peer_id} has left")
            self._traffic.received[protocol] += len(reply.content)
            if not reply.is_answer:
                raise RequestFailed(read_refusal(reply.content))
            if len(reply.content) > response_bytes_max:
                raise InvalidInput(f"the answer of {peer_id} is above {response_bytes_max} bytes")
            return reply.content
        raise UnreachablePeer(f"{peer_id} did not answer within {timeout_seconds} s")

    async def _travel(self) -> None:
        """One way of a request. A lost one never arrives, and the caller's time runs out."""
        delays = self._network.draw_delays()
        await (trio.sleep(delays[0]) if delays else trio.sleep_forever())

    async def _answer(self, peer_id: str, protocol: str, question: bytes) -> Reply:
        """Run the handler as the receiver would."""
        self._traffic.received[protocol] += len(question)
        handler = self._handlers.get(protocol)
        if handler is None:
            raise UnreachablePeer(f"{self._peer_id} does not speak {protocol}")
        reply = await compute_reply(handler, peer_id, question, blame=self.note_fault, fuse=self._fuse)
        self._traffic.sent[protocol] += len(reply.content)
        return reply
