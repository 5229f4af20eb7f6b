"""The network between members: libp2p over TCP, secured by Noise, with gossipsub 1.1 as the loudspeaker.

Keeps the contract of `transport.Transport`. Chosen and left out, with the reason:

- TCP, Noise and Yamux only. libp2p's default set also accepts an unencrypted protocol in which a peer's name
  is merely claimed; QUIC of libp2p 0.8 loses data of slow readers.
- gossipsub 1.1, not 1.2: "I don't want" messages double the cost in a mesh this small. Adaptive gossip slows
  the heartbeat to 30 s in a small network, and the spam filter drops a node's own bursts; both are off.
- One new stream per request: 4 ms, and no state to tidy up after an error. Length-prefixed frames,
  big-endian.

    question:  length (4 bytes)  payload
    answer:    status (1 byte: 0 answer, 1 refusal)  length (4 bytes)  payload

The holes of libp2p that a peer could use are closed in `hardening`.
"""

from __future__ import annotations

import logging
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial

import trio
from libp2p import new_host
from libp2p.abc import INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import KeyPair
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.network.config import ConnectionConfig
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_PROTOCOL_ID
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_PROTOCOL_ID
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from node.errors import UserError
from node.network.addresses import check_listenable, parse_address
from node.network.answering import Fuse, compute_reply, read_refusal
from node.network.hardening import (
    GatedNoise,
    GuardedPubsub,
    free_inbound_slots,
    guard_streams,
    guard_writes,
    keep_to_known_addresses,
    move_on_shielded,
    relay_logging,
    reset,
)
from node.network.inbox import Inbox
from node.network.peers import FAULT_SEVERITY, Peers
from node.network.transport import (
    ANSWERS_PER_PEER_MAX,
    GOSSIP_BYTES_MAX,
    REQUEST_BYTES_MAX,
    REQUESTS_PER_PEER_MAX,
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

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 300
"""Three for each of a hundred members: one each way and one that is just being replaced."""

CONNECTIONS_PER_PEER_MAX = 3
UPGRADE_SECONDS = 3.0
"""A handshake is three messages; who needs longer holds a slot that others want."""

NEGOTIATION_SECONDS = 5.0
CALL_SECONDS = 10.0
QUESTION_SECONDS = 10.0
HANDLER_SECONDS = 60.0
ANSWER_SECONDS = 60.0
"""16 MiB at 2.2 Mbit/s. A reader that stands still is given up by Yamux after 5 s."""

HEARTBEAT_SECONDS = 1
INBOUND_FRAME_BYTES_MAX = 1024 * 1024
GOSSIP_HISTORY_HEARTBEATS = 10
GOSSIP_WINDOW_HEARTBEATS = 5
"""A peer that was away for a few seconds still gets what was said; what is older is for anti-entropy, and memory stays
bounded when somebody fills the history."""

QUEUED_FRAMES_PACE = 8
"""libp2p drops frames silently when 32 wait for a peer; publishing waits when a quarter of that do."""

PACE_SECONDS_MAX = 0.5
CLOSE_SECONDS = 3.0
TICK_SECONDS = 0.25
TRIM_SECONDS = 60.0

_ANSWER, _REFUSAL = 0, 1


class Libp2pTransport:
    """One node on the real network; keeps the contract of `Transport`. It can be run once."""

    def __init__(
        self,
        identity_seed: bytes,
        listen: Sequence[str],
        *,
        topics: Sequence[str],
        validate: Validate,
        on_gossip: OnGossip,
        is_admitted: IsAdmitted,
    ) -> None:
        relay_logging()
        self._key_pair = create_new_key_pair(identity_seed)
        self._peer_id = ID.from_pubkey(self._key_pair.public_key).to_base58()
        self._listen = [parse_address(address) for address in listen]
        self._topics = frozenset(topics)
        self._is_admitted = is_admitted
        self._traffic = Traffic()
        self._peers = Peers(random.Random())
        self._inbox = Inbox(validate, on_gossip, self.note_fault)
        self._fuse = Fuse()
        self._wake = trio.Event()
        self._asking = defaultdict[str, trio.Semaphore](lambda: trio.Semaphore(REQUESTS_PER_PEER_MAX))
        self._answering = defaultdict[str, trio.Semaphore](lambda: trio.Semaphore(ANSWERS_PER_PEER_MAX))
        self._behind: set[ID] = set()
        self._closing: set[str] = set()
        self._host = self._make_host(self._key_pair)
        self._network = self._host.get_network()
        assert isinstance(self._network, Swarm)
        guard_writes(self._network)
        free_inbound_slots(self._network)
        keep_to_known_addresses(self._host, self._network)
        self._router = GossipSub(
            [PROTOCOL_ID_V11],
            degree=6,
            degree_low=4,
            degree_high=12,
            heartbeat_interval=HEARTBEAT_SECONDS,
            gossip_history=GOSSIP_HISTORY_HEARTBEATS,
            gossip_window=GOSSIP_WINDOW_HEARTBEATS,
            adaptive_gossip_enabled=False,
            spam_protection_enabled=False,
        )
        self._pubsub = self._make_pubsub()

    def _make_host(self, key_pair: KeyPair) -> BasicHost:
        host = new_host(
            key_pair=key_pair,
            sec_opt={NOISE_PROTOCOL_ID: GatedNoise(key_pair, self._is_open_to)},
            muxer_opt={TProtocol(YAMUX_PROTOCOL_ID): Yamux},
            disable_identify_address_discovery=True,
            connection_config=ConnectionConfig(
                max_connections=CONNECTIONS_MAX,
                # No connections beyond those that `Peers` asks for.
                min_connections=0,
                low_watermark=0,
                high_watermark=CONNECTIONS_MAX,
                max_connections_per_peer=CONNECTIONS_PER_PEER_MAX,
                inbound_upgrade_timeout=UPGRADE_SECONDS,
                outbound_upgrade_timeout=UPGRADE_SECONDS,
                inbound_stream_protocol_negotiation_timeout=NEGOTIATION_SECONDS,
                outbound_stream_protocol_negotiation_timeout=NEGOTIATION_SECONDS,
                # A peer whose machine has vanished never closes its connection; pings find out within 15 s.
                enable_health_monitoring=True,
                health_initial_delay=10.0,
                health_check_interval=10.0,
                ping_timeout=5.0,
                abort_connection_on_ping_failure=True,
            ),
        )
        assert isinstance(host, BasicHost)
        guard_streams(host)
        return host

    def _make_pubsub(self) -> GuardedPubsub:
        pubsub = GuardedPubsub(
            self._host,
            self._router,
            topics=self._topics,
            traffic=self._traffic,
            blame=self.note_fault,
            strict_signing=True,
            max_inbound_rpc_size=INBOUND_FRAME_BYTES_MAX,
        )
        # libp2p starts at whole seconds: a node that restarts would repeat numbers, and be taken for an echo.
        pubsub.counter = time.time_ns()
        for topic in self._topics:
            pubsub.set_topic_validator(topic, partial(self._take_in, topic), False)
        return pubsub

    @property
    def peer_id(self) -> str:
        return self._peer_id

    @property
    def traffic(self) -> Traffic:
        return self._traffic

    def listen_addresses(self) -> list[str]:
        """Where we really listen, with the port that the system chose for port 0, and our peer id."""
        return [f"{address}/p2p/{self._peer_id}" for address in self._host.get_transport_addrs()]

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        for address in self._listen:
            await check_listenable(address)
        try:
            async with self._run_nested():
                yield
        except BaseExceptionGroup as group:
            # libp2p wraps an error ten deep, where no log shows it any more.
            raise _find_only_cause(group) from None

    @asynccontextmanager
    async def _run_nested(self) -> AsyncIterator[None]:
        async with (
            self._host.run(listen_addrs=self._listen),
            background_trio_service(self._pubsub),
            background_trio_service(self._router),
            trio.open_nursery() as nursery,
        ):
            # libp2p only logs a listener that fails.
            if len(self._host.get_transport_addrs()) < len(self._listen):
                raise UserError(f"Can't listen on {', '.join(map(str, self._listen))}: choose another address.")
            await self._pubsub.wait_until_ready()
            for topic in sorted(self._topics):
                await self._pubsub.subscribe(topic)
            nursery.start_soon(self._inbox.deliver)
            nursery.start_soon(self._fuse.watch)
            nursery.start_soon(self._trim)
            nursery.start_soon(self._keep_connections, nursery)
            try:
                yield
            finally:
                # Without it sockets outlive the block, and peers go on believing in us.
                with move_on_shielded(CLOSE_SECONDS):
                    await self._host.close()
                nursery.cancel_scope.cancel()

    def set_peers(self, peers: Mapping[str, Sequence[str]]) -> None:
        """As in `Transport`. Raises UserError for a malformed address or one of another peer."""
        for peer_id, addresses in peers.items():
            for address in addresses:
                parse_address(address, peer_id)
        others = {peer_id: addresses for peer_id, addresses in peers.items() if peer_id != self._peer_id}
        self._peers.set_addresses(others, trio.current_time())
        self._wake.set()

    def serve(self, protocol: str, handler: Handler) -> None:
        self._host.set_stream_handler(TProtocol(protocol), partial(self._answer, protocol, handler))

    def connected(self) -> frozenset[str]:
        return frozenset(
            peer_id.to_base58()
            for peer_id, connections in self._network.connections.items()
            if any(not connection.is_closed for connection in connections)
        )

    def note_fault(self, peer_id: str, severity: float = FAULT_SEVERITY) -> None:
        if not self._peers.note_fault(peer_id, trio.current_time(), severity):
            self._wake.set()

    def _is_open_to(self, peer_id: str) -> bool:
        return self._is_admitted(peer_id) and self._peers.is_welcome(peer_id, trio.current_time())

    def _take_in(self, topic: str, forwarder: ID, message: rpc_pb2.Message) -> bool:
        """The validator of a topic. What we publish passes; what comes back from others as our own is no news."""
        sender = forwarder.to_base58()
        if sender == self._peer_id:
            return True
        if message.from_id == self._network.get_peer_id().to_bytes() or len(message.data) > GOSSIP_BYTES_MAX:
            return False
        return self._inbox.offer(sender, topic, message.data)

    async def publish(self, topic: str, payload: bytes) -> None:
        check_publishable(self._topics, topic, payload)
        await self._pace()
        await self._pubsub.publish(topic, payload)
        # publish() itself may not yield, and a loop of publishing would starve the tasks that send.
        await trio.lowlevel.checkpoint()

    async def _pace(self) -> None:
        """Wait for neighbours that are behind, but not for those that stay behind: gossip is a hint."""

        def list_full() -> set[ID]:
            return {peer for peer, queue in self._pubsub.peer_queues.items() if len(queue) >= QUEUED_FRAMES_PACE}

        self._behind &= list_full()
        with trio.move_on_after(PACE_SECONDS_MAX):
            while list_full() - self._behind:
                await trio.sleep(0.005)
        self._behind |= list_full()

    async def request(
        self,
        peer_id: str,
        protocol: str,
        payload: bytes,
        timeout_seconds: float,
        response_bytes_max: int = RESPONSE_BYTES_MAX,
    ) -> bytes:
        check_request(payload, response_bytes_max)
        if peer_id not in self.connected():
            raise UnreachablePeer(f"{peer_id} is not connected")
        try:
            with trio.fail_after(timeout_seconds):
                async with self._asking[peer_id]:
                    stream = await self._host.new_stream(ID.from_base58(peer_id), [TProtocol(protocol)])
                    try:
                        return await self._exchange(stream, protocol, payload, response_bytes_max)
                    finally:
                        await _close(stream)
        except (InvalidInput, RequestFailed):
            raise
        except trio.TooSlowError:
            raise UnreachablePeer(f"{peer_id} did not answer within {timeout_seconds} s") from None
        except Exception as error:
            raise UnreachablePeer(f"{peer_id} did not answer: {error!r}") from error

    async def _exchange(self, stream: INetStream, protocol: str, payload: bytes, response_bytes_max: int) -> bytes:
        await self._write(stream, protocol, len(payload).to_bytes(4, "big") + payload)
        head = await self._read(stream, protocol, 5)
        status, length = head[0], int.from_bytes(head[1:], "big")
        if status not in (_ANSWER, _REFUSAL) or length > response_bytes_max:
            await reset(stream)
            raise InvalidInput(f"an answer of status {status} and {length} bytes, of at most {response_bytes_max}")
        content = await self._read(stream, protocol, length)
        if status == _REFUSAL:
            raise RequestFailed(read_refusal(content))
        return content

    async def _answer(self, protocol: str, handler: Handler, stream: INetStream) -> None:
        """Serve one stream: one question, one answer. Whatever fails ends this stream only."""
        peer_id = stream.muxed_conn.peer_id.to_base58()
        try:
            with trio.fail_after(QUESTION_SECONDS):
                length = int.from_bytes(await self._read(stream, protocol, 4), "big")
                if length > REQUEST_BYTES_MAX:
                    raise InvalidInput(f"a question of {length} bytes")
                question = await self._read(stream, protocol, length)
            with trio.fail_after(HANDLER_SECONDS + ANSWER_SECONDS):
                async with self._answering[peer_id]:
                    with trio.fail_after(HANDLER_SECONDS):
                        reply = await compute_reply(handler, peer_id, question, blame=self.note_fault, fuse=self._fuse)
                    status = _ANSWER if reply.is_answer else _REFUSAL
                    head = bytes([status]) + len(reply.content).to_bytes(4, "big")
                    with trio.fail_after(ANSWER_SECONDS):
                        await self._write(stream, protocol, head)
                        await self._write(stream, protocol, reply.content)
        except InvalidInput as error:
            log.info("%s broke %s: %s", peer_id, protocol, error)
            self.note_fault(peer_id)
            await reset(stream)
        except Exception as error:
            log.info("answering %s on %s failed: %r", peer_id, protocol, error)
            await reset(stream)
        else:
            await _close(stream)

    async def _read(self, stream: INetStream, protocol: str, count: int) -> bytes:
        """Exactly `count` bytes. Memory grows with what has arrived, not with what was announced."""
        content = bytearray()
        while len(content) < count:
            chunk = await stream.read(count - len(content))
            if not chunk:
                raise UnreachablePeer("the stream ended early")
            self._traffic.received[protocol] += len(chunk)
            content += chunk
        return bytes(content)

    async def _write(self, stream: INetStream, protocol: str, content: bytes) -> None:
        await stream.write(content)
        self._traffic.sent[protocol] += len(content)

    async def _keep_connections(self, nursery: trio.Nursery) -> None:
        """Call peers that are due, and hang up on those that are no longer welcome."""
        while True:
            now = trio.current_time()
            connected = self.connected()
            for peer_id in connected:
                if peer_id not in self._closing and not self._is_open_to(peer_id):
                    self._closing.add(peer_id)
                    nursery.start_soon(self._disconnect, peer_id)
            self._peers.observe(connected, now)
            for peer_id, addresses in self._peers.take_due(now):
                nursery.start_soon(self._call, peer_id, addresses)
            with trio.move_on_after(TICK_SECONDS):
                await self._wake.wait()
            self._wake = trio.Event()

    async def _call(self, peer_id: str, addresses: tuple[str, ...]) -> None:
        """Try the addresses one after the other. libp2p itself would try only the first of a kind."""
        for address in addresses:
            if peer_id in self.connected() or not self._is_open_to(peer_id):
                break
            try:
                with trio.fail_after(CALL_SECONDS):
                    await self._network.dial_addr(Multiaddr(address), ID.from_base58(peer_id))
            except Exception as error:
                log.debug("calling %s at %s failed: %r", peer_id, address, error)
        self._peers.note_call_ended(peer_id, trio.current_time(), is_connected=peer_id in self.connected())

    async def _disconnect(self, peer_id: str) -> None:
        log.info("closing the connection to %s: not admitted, or ignored for a while", peer_id)
        try:
            await self._network.close_peer(ID.from_base58(peer_id))
        finally:
            self._closing.discard(peer_id)

    async def _trim(self) -> None:
        """libp2p remembers every delivery for adaptive gossip, also when that is off; forget them."""
        while True:
            await trio.sleep(TRIM_SECONDS)
            self._router.recent_message_deliveries.clear()


async def _close(stream: INetStream) -> None:
    """Say goodbye, within bounds, also when cancelled. A broken stream needs no goodbye."""
    with move_on_shielded(CLOSE_SECONDS):
        try:
            await stream.close()
        except Exception as error:
            log.debug("closing a stream failed: %r", error)


def _find_only_cause(error: BaseException) -> BaseException:
    """The error inside groups of one; a group of several stays as it is."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
