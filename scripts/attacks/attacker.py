"""A member's key in the hands of a program without any manners: bare libp2p, and frames of its own making."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import trio
from libp2p import new_host
from libp2p.abc import INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.validators import PUBSUB_SIGNING_PREFIX
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.utils import encode_varint_prefixed
from multiaddr import Multiaddr

IDENTIFY, PING, MESHSUB = "/ipfs/id/1.0.0", "/ipfs/ping/1.0.0", "/meshsub/1.1.0"
MULTISTREAM = b"\x13/multistream/1.0.0\n"
DIAL_SECONDS = 5
CLOSE_SECONDS = 3


class Attacker:
    """One hostile peer with an admitted identity."""

    def __init__(self, seed: bytes, address: str) -> None:
        """`address` is the victim's, with its peer id."""
        self.key_pair = create_new_key_pair(seed)
        noise = NoiseTransport(self.key_pair, noise_privkey=create_x25519_key_pair().private_key)
        self.host = new_host(key_pair=self.key_pair, sec_opt={NOISE: noise}, muxer_opt={TProtocol(YAMUX): Yamux})
        self.id = ID.from_pubkey(self.key_pair.public_key)
        self.peer_id = self.id.to_base58()
        self.address = Multiaddr(address)
        self.victim_id = ID.from_base58(address.rpartition("/p2p/")[2])
        self.heard = bytearray()
        """What the victim gossiped to us."""
        self._sequence = 0
        # Before the call: the victim asks for it once, as soon as it is connected.
        self.host.set_stream_handler(TProtocol(MESHSUB), self._listen)

    async def _listen(self, stream: INetStream) -> None:
        with contextlib.suppress(Exception):
            while chunk := await stream.read(65536):
                self.heard += chunk

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[Attacker]:
        """Be on the network, connected to the victim, inside this block."""
        async with self.host.run(listen_addrs=[]):
            await self.dial()
            try:
                yield self
            finally:
                with trio.CancelScope(deadline=trio.current_time() + CLOSE_SECONDS, shield=True):
                    await self.host.close()

    async def dial(self) -> Any:
        """A new connection to the victim."""
        with trio.fail_after(DIAL_SECONDS):
            return await self.host.get_network().dial_addr(self.address, self.victim_id)

    async def is_let_in(self) -> bool:
        """True when the victim still takes calls of this peer."""
        try:
            await self.host.get_network().close_peer(self.victim_id)
            await self.dial()
            await trio.sleep(0.2)
            await self.open(PING)
        except Exception:  # libp2p has a dozen kinds of no
            return False
        return True

    async def join(self, topic: str) -> INetStream:
        """Be in the mesh of a topic; returns the stream on which the victim listens."""
        stream = await self.open(MESHSUB)
        await stream.write(make_subscription(topic))
        with trio.fail_after(DIAL_SECONDS):
            while not self.heard:
                await trio.sleep(0.01)
        return stream

    async def open(self, protocol: str) -> INetStream:
        """A stream of a protocol."""
        with trio.fail_after(DIAL_SECONDS):
            return await self.host.new_stream(self.victim_id, [TProtocol(protocol)])

    async def open_bare(self) -> INetStream:
        """A stream on which no protocol was agreed."""
        return await self.host.get_network().new_stream(self.victim_id)

    async def say(self, protocol: str, content: bytes) -> bytes:
        """Send on a new stream and read until the victim ends it."""
        stream = await self.open(protocol)
        received = bytearray()
        with trio.fail_after(15), contextlib.suppress(Exception):
            await stream.write(content)
            while chunk := await stream.read(65536):
                received += chunk
        return bytes(received)

    async def write_below(self, content: bytes) -> None:
        """Bytes below the streams, in place of the frames of the multiplexer."""
        connection = self.host.get_network().get_connections(self.victim_id)[0]
        await connection.muxed_conn.secured_conn.write(content)  # type: ignore[attr-defined]

    def sign_message(self, topic: str, payload: bytes) -> rpc_pb2.Message:
        """A message of gossip as pubsub wants it, under a new number."""
        self._sequence += 1
        message = rpc_pb2.Message(
            from_id=self.id.to_bytes(),
            seqno=self._sequence.to_bytes(8, "big"),
            data=payload,
            topicIDs=[topic],
        )
        message.signature = self.key_pair.private_key.sign(PUBSUB_SIGNING_PREFIX.encode() + message.SerializeToString())
        return message


def make_frame(**fields: Any) -> bytes:
    """A frame of gossip."""
    return encode_varint_prefixed(rpc_pb2.RPC(**fields).SerializeToString())


def make_subscription(topic: str) -> bytes:
    """The frame that says one listens to a topic, and wants to be in its mesh."""
    graft = rpc_pb2.ControlMessage(graft=[rpc_pb2.ControlGraft(topicID=topic)])
    return make_frame(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=topic)], control=graft)
