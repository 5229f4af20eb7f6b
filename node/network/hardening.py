"""What stands between libp2p and a hostile peer: each part closes a hole of libp2p 0.8 that was tried out.

- `GatedNoise`: libp2p lets any key in; we ask after the handshake whether the proved peer is admitted.
- `GuardedYamux`, `guard_writes`: a write that is cancelled half-way leaves a torn frame, and a peer that stops reading
  blocks everybody who writes to it; writes are therefore never torn, and a connection that takes no bytes
  for a while is closed.
- `GuardedPubsub`: a frame that does not parse, a topic that is no text or a key of an unknown kind ends the
  whole host; here it ends the stream and lowers the peer's standing. libp2p starts a task for each message of a
  frame, so that thousands of small ones keep everybody waiting; here a peer's messages are taken one after the
  other. And it answers a message that is wanted a thousand times in one frame by a thousand copies of it, gigabytes;
  here each is sent once, and no more than fills a frame. And several of its tasks write to one stream, so that the
  pieces of large frames mix; here a frame is written whole before the next.
- `guard_streams`: any error in the handler of a stream ends the host; here it resets the stream. One peer
  may hold only so many streams.
- `free_inbound_slots`: libp2p gives the slot of an inbound connection back only when the host ends, so a
  node would refuse everybody after some hundred reconnections; here a slot ends with its connection.
- `keep_to_known_addresses`: libp2p calls any address that a peer tells. Members know each other's addresses
  from their operators; what peers say of themselves is neither asked nor believed.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import trio
from libp2p.abc import IMuxedConn, INetStream, IRawConnection, ISecureConn
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as create_x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.identity.identify_push.identify_push import ID_PUSH
from libp2p.io.exceptions import IncompleteReadError, IOException, MessageTooLarge
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.security.exceptions import HandshakeFailure
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.utils import read_varint_prefixed_bytes_limited

from node.network.transport import GOSSIP, Traffic

log = logging.getLogger(__name__)

STALL_SECONDS = 10.0
"""A frame has at most 64 KiB: a peer that can't take that in this time is gone or hostile."""

STREAMS_PER_PEER_MAX = 32
"""An honest peer holds eight requests, as many that are just ending, and a few for gossip and pings."""

HALF_OPEN_PER_ADDRESS_MAX = 32
"""Handshakes that one network address may have open, so that idle connections can't take every slot."""

NAMES_PER_FRAME_MAX = 1024
"""Messages that one frame may offer or want; a federation says some fifty a second."""

RESET_SECONDS = 1.0

REFUSAL_TOLD_SECONDS = 3600.0
"""How often the log says of one and the same peer that it is refused."""

REFUSED_PEERS_MAX = 1000
"""Peers of which that is remembered: strangers can make as many keys as they like."""


def move_on_shielded(seconds: float) -> trio.CancelScope:
    """A block that a cancellation from outside does not interrupt, but that ends after some seconds."""
    scope = trio.CancelScope(deadline=trio.current_time() + seconds)
    scope.shield = True
    return scope


class GatedNoise(NoiseTransport):
    """The Noise handshake, followed by the question whether this peer may be here: in both directions."""

    def __init__(self, key_pair: KeyPair, is_open_to: Callable[[str], bool]) -> None:
        super().__init__(key_pair, noise_privkey=create_x25519_key_pair().private_key)
        self._is_open_to = is_open_to
        self._told: dict[str, float] = {}
        """When it was last told of a peer that it was refused."""

    async def secure_inbound(self, conn: IRawConnection) -> ISecureConn:
        return await self._check(await super().secure_inbound(conn))

    async def secure_outbound(self, conn: IRawConnection, peer_id: ID) -> ISecureConn:
        return await self._check(await super().secure_outbound(conn, peer_id))

    async def _check(self, secured: ISecureConn) -> ISecureConn:
        peer_id = secured.get_remote_peer().to_base58()
        try:
            is_open = self._is_open_to(peer_id)
        except Exception:
            log.exception("asking whether %s is admitted failed", peer_id)
            is_open = False
        if is_open:
            return secured
        await secured.close()
        self._tell(peer_id, trio.current_time())
        raise HandshakeFailure("peer is not admitted")

    def _tell(self, peer_id: str, now: float) -> None:
        """Say it, but not each time that a member that left calls again, twice a minute for years."""
        if now - self._told.get(peer_id, -REFUSAL_TOLD_SECONDS) < REFUSAL_TOLD_SECONDS:
            return
        if len(self._told) >= REFUSED_PEERS_MAX:
            self._told.clear()
        self._told[peer_id] = now
        log.info("refused %s: not admitted, or ignored for a while", peer_id)


class GuardedYamux(Yamux):
    """Yamux whose frames are written whole or not at all. Invariant: after a torn write nothing follows."""

    _is_stalled = False

    async def _write_frame(self, data: bytes) -> None:
        async with self._write_lock:
            if self._is_stalled:
                raise MuxedConnUnavailable("the peer stopped reading")
            # Shielded: the caller's deadline may pass in the middle of a frame, and half a frame would
            # make everything after it unreadable for the peer.
            with move_on_shielded(STALL_SECONDS) as scope:
                await self.secured_conn.write(data)
            if not scope.cancelled_caught:
                return
            self._is_stalled = True
        log.info("closing the connection to %s: it takes no data", self.peer_id.to_base58())
        with move_on_shielded(RESET_SECONDS):
            await self.secured_conn.close()
        raise MuxedConnUnavailable("the peer stopped reading")


def guard_writes(network: Swarm) -> None:
    """Make every new connection a `GuardedYamux`; libp2p builds its own class, whatever class it is given."""
    negotiate = network.upgrader.muxer_multistream.new_conn

    async def negotiate_guarded(conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        muxed_conn = await negotiate(conn, peer_id)
        assert type(muxed_conn) is Yamux
        # Nothing has been written yet, and the guard has no state that a constructor would have to make.
        muxed_conn.__class__ = GuardedYamux
        return muxed_conn

    network.upgrader.muxer_multistream.new_conn = negotiate_guarded  # type: ignore[method-assign]


class _CountedStream:
    """A stream for reading that counts its bytes; everything else is the stream's own."""

    def __init__(self, stream: INetStream, traffic: Traffic) -> None:
        self._stream = stream
        self._traffic = traffic

    async def read(self, n: int | None = None) -> bytes:
        chunk = await self._stream.read(n)
        self._traffic.received[GOSSIP] += len(chunk)
        return chunk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class GuardedPubsub(Pubsub):
    """Gossip in which a bad frame costs its sender the stream, and nobody else anything.

    Messages reach the node through the topic's validator, which alone knows the neighbour that handed them
    over; the subscription queues of libp2p stay empty.
    """

    def __init__(
        self,
        host: BasicHost,
        router: Any,
        *,
        topics: Collection[str],
        traffic: Traffic,
        blame: Callable[[str], None],
        **options: Any,
    ) -> None:
        super().__init__(host, router, allowed_topics=frozenset(topics), **options)
        self._topics = topics
        self._writing = WeakKeyDictionary[INetStream, trio.Lock]()
        self._traffic = traffic
        self._blame = blame

    async def push_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
        # Validators run once per topic, and a message would be delivered as often.
        if len(msg.topicIDs) != 1:
            self._blame(msg_forwarder.to_base58())
            return
        try:
            await super().push_msg(msg_forwarder, msg)
        except Exception as error:
            log.info("dropped a message of %s: %r", msg_forwarder.to_base58(), error)
            self._blame(msg_forwarder.to_base58())

    async def continuously_read_stream(self, stream: INetStream) -> None:
        peer_id = stream.muxed_conn.peer_id
        counted = _CountedStream(stream, self._traffic)
        try:
            while True:
                content = await read_varint_prefixed_bytes_limited(counted, self.max_inbound_rpc_size)  # type: ignore[arg-type]
                frame = rpc_pb2.RPC()
                frame.ParseFromString(content)
                await self._handle_frame(frame, stream)
        except IncompleteReadError:
            raise  # libp2p forgets the peer, and tries again while it is connected
        except Exception as error:
            is_fault = isinstance(error, MessageTooLarge) or not isinstance(error, IOException)
            if not is_fault:
                log.debug("the gossip stream of %s ended: %r", peer_id.to_base58(), error)
                return
            log.info("closed the gossip stream of %s: %r", peer_id.to_base58(), error)
            # A connection that breaks in the middle of a frame also leaves one that does not parse: no fault.
            if not _is_ending(stream):
                self._blame(peer_id.to_base58())
            await reset(stream)
            self._handle_dead_peer(peer_id)

    async def _handle_frame(self, frame: rpc_pb2.RPC, stream: INetStream) -> None:
        """What a frame says, in order. Others get their turn after each message."""
        peer_id = stream.muxed_conn.peer_id
        for message in frame.publish:
            if self._is_subscribed_to_msg(message):
                await self.push_msg(peer_id, message)
            await trio.lowlevel.checkpoint()
            if _is_ending(stream):
                return
        subscriptions = {entry.topicid: entry for entry in frame.subscriptions if entry.topicid in self._topics}
        for subscription in subscriptions.values():
            self.handle_subscription(peer_id, subscription)
        if frame.HasField("control"):
            control = self._bound_control(frame.control)
            await self.router.handle_rpc(rpc_pb2.RPC(control=control), peer_id)

    def _bound_control(self, control: rpc_pb2.ControlMessage) -> rpc_pb2.ControlMessage:
        """The part of a control message that an honest peer could have sent: our topics, each thing once."""
        topics = self._topics
        offered = [
            rpc_pb2.ControlIHave(topicID=topic, messageIDs=names)
            for topic in sorted(topics)
            if (names := _list_names(entry for entry in control.ihave if entry.topicID == topic))
        ]
        wanted = _list_names(control.iwant)
        return rpc_pb2.ControlMessage(
            ihave=offered,
            iwant=[rpc_pb2.ControlIWant(messageIDs=self._bound_wanted(wanted))] if wanted else [],
            graft={entry.topicID: entry for entry in control.graft if entry.topicID in topics}.values(),
            prune={entry.topicID: entry for entry in control.prune if entry.topicID in topics}.values(),
        )

    def _bound_wanted(self, names: list[bytes]) -> list[bytes]:
        """As many of the wanted messages as fill a frame; what is more, anti-entropy brings."""
        router: Any = self.router
        size, bounded = 0, []
        for name in names:
            message = router.mcache.get(name)
            size += message.ByteSize() if message is not None else 0
            if size > self.max_inbound_rpc_size:
                break
            bounded.append(name)
        return bounded

    async def write_msg(self, stream: INetStream, rpc_msg: rpc_pb2.RPC) -> bool:
        frame_bytes = rpc_msg.ByteSize()
        self._traffic.sent[GOSSIP] += frame_bytes + max(1, (frame_bytes.bit_length() + 6) // 7)
        async with self._writing.setdefault(stream, trio.Lock()):
            return await super().write_msg(stream, rpc_msg)

    def notify_subscriptions(self, publish_message: rpc_pb2.Message) -> None:
        """Nobody reads these queues."""


def _list_names(entries: Iterable[rpc_pb2.ControlIHave | rpc_pb2.ControlIWant]) -> list[bytes]:
    """The names of messages in control entries, each once, as many as may be."""
    names = dict.fromkeys(name for entry in entries for name in entry.messageIDs)
    return list(islice(names, NAMES_PER_FRAME_MAX))


def _is_ending(stream: INetStream) -> bool:
    muxed_conn = stream.muxed_conn
    return isinstance(muxed_conn, Yamux) and muxed_conn.event_shutting_down.is_set()


async def reset(stream: INetStream) -> None:
    """End a stream at once, whatever state it is in and whether or not we are cancelled."""
    with move_on_shielded(RESET_SECONDS):
        try:
            await stream.reset()
        except Exception as error:
            log.debug("resetting a stream failed: %r", error)


def guard_streams(host: BasicHost) -> None:
    """No error in the handler of a stream leaves the stream, and no peer holds too many."""
    open_streams: Counter[ID] = Counter()
    handle = host._swarm_stream_handler

    async def handle_guarded(stream: INetStream) -> None:
        peer_id = stream.muxed_conn.peer_id
        if open_streams[peer_id] >= STREAMS_PER_PEER_MAX:
            await reset(stream)
            return
        open_streams[peer_id] += 1
        try:
            await handle(stream)
        except Exception as error:
            log.info("a stream of %s failed: %r", peer_id.to_base58(), error)
            await reset(stream)
        finally:
            open_streams[peer_id] -= 1
            if not open_streams[peer_id]:
                del open_streams[peer_id]

    host.get_network().set_stream_handler(handle_guarded)


def free_inbound_slots(network: Swarm) -> None:
    """Tie the slot of an inbound connection to its life, and bound the handshakes of one address."""
    half_open: Counter[str] = Counter()
    upgrade = network.upgrade_inbound_raw_conn

    async def upgrade_and_stay(raw_conn: IRawConnection, maddr: Any) -> Any:
        remote = raw_conn.get_remote_address()
        address = remote[0] if remote else ""
        if half_open[address] >= HALF_OPEN_PER_ADDRESS_MAX:
            raise SwarmException("too many handshakes from this address")
        half_open[address] += 1
        try:
            muxed_conn = await upgrade(raw_conn, maddr)
        finally:
            half_open[address] -= 1
            if not half_open[address]:
                del half_open[address]
        for connection in network.get_connections(muxed_conn.peer_id):
            if connection.muxed_conn is muxed_conn:
                await connection.event_closed.wait()  # type: ignore[attr-defined]
        # The caller would now wait for the end of the host, holding the slot; an error makes it clean up.
        raise SwarmException("the connection has ended")

    network.upgrade_inbound_raw_conn = upgrade_and_stay  # type: ignore[method-assign]


def keep_to_known_addresses(host: BasicHost, network: Swarm) -> None:
    """Neither ask peers who and where they are, nor believe it when they tell, nor call anybody unasked."""

    async def call_nobody() -> None:
        await trio.lowlevel.checkpoint()

    host._schedule_identify = lambda peer_id, *, reason: None  # type: ignore[method-assign]
    host.remove_stream_handler(TProtocol(ID_PUSH))
    # Every gossip frame carries its sender's addresses; True means "taken note of".
    network.peerstore.consume_peer_record = lambda envelope, ttl: True  # type: ignore[method-assign]
    network.auto_connector.maybe_connect = call_nobody  # type: ignore[method-assign]


class _Relay(logging.Handler):
    """Hands libp2p's records to our own log. A peer's trouble is no error of ours: at most INFO."""

    def emit(self, record: logging.LogRecord) -> None:
        _libp2p_log.log(min(record.levelno, logging.INFO), "%s", record.getMessage())


_libp2p_log = logging.getLogger("node.network.libp2p")


def relay_logging() -> None:
    """libp2p's log is cut off from everything when it is imported; join it to ours. May be called again."""
    logger = logging.getLogger("libp2p")
    if not any(isinstance(handler, _Relay) for handler in logger.handlers):
        logger.addHandler(_Relay())
        logger.setLevel(logging.WARNING)
