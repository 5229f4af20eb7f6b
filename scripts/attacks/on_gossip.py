"""Attacks of a member on gossip, with batches that it signs itself."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils import encode_varint_prefixed

from node.network.gossip import batches_topic
from protocol.batches import LogPosition
from scripts.attacks.attacker import Attacker, make_frame
from scripts.attacks.on_streams import count, describe_standing, repeat
from scripts.attacks.scene import Scene, make_log

SMALL_MESSAGES = 4000
NAMED_MESSAGES = 20_000


Make = Callable[[Attacker, int], Iterator[bytes]]
"""(the attacker, its member number) -> the frames that it sends."""


async def _send_frames(scene: Scene, seconds: float, make: Make) -> str:
    async with scene.attacker() as (attacker, number):
        stream = await attacker.join(batches_topic(scene.cast.federation))
        frames = make(attacker, number)

        async def work() -> None:
            await stream.write(next(frames))

        outcomes = await repeat(seconds, work, 1)
        heard = len(attacker.heard) / 1e6
        return f"{count(outcomes)}; {heard:.1f} MB came back; {await describe_standing(attacker)}"


def _publish(attacker: Attacker, topic: str, *payloads: bytes) -> bytes:
    return make_frame(publish=[attacker.sign_message(topic, payload) for payload in payloads])


async def publish_garbage(scene: Scene, seconds: float) -> str:
    """Signed messages that hold no batch."""
    topic, chance = batches_topic(scene.cast.federation), random.Random(6)

    def make(attacker: Attacker, _number: int) -> Iterator[bytes]:
        while True:
            yield _publish(attacker, topic, chance.randbytes(1000))

    return await _send_frames(scene, seconds, make)


async def publish_again(scene: Scene, seconds: float) -> str:
    """One good batch, under a new number each time."""
    topic = batches_topic(scene.cast.federation)

    def make(attacker: Attacker, number: int) -> Iterator[bytes]:
        (batch,) = make_log(scene.cast, number, 1, LogPosition(0, b""))
        while True:
            yield _publish(attacker, topic, batch.encoded)

    return await _send_frames(scene, seconds, make)


async def publish_without_past(scene: Scene, seconds: float) -> str:
    """Batches with a valid signature whose past nobody has."""
    topic, chance = batches_topic(scene.cast.federation), random.Random(7)

    def make(attacker: Attacker, number: int) -> Iterator[bytes]:
        for salt in range(1_000_000):
            position = LogPosition(chance.randrange(1, 1_000_000), chance.randbytes(32))
            (batch,) = make_log(scene.cast, number, 1, position, salt)
            yield _publish(attacker, topic, batch.encoded)

    return await _send_frames(scene, seconds, make)


async def publish_above_the_rate(scene: Scene, seconds: float) -> str:
    """A well-formed log, far faster than the charter allows."""
    topic = batches_topic(scene.cast.federation)

    def make(attacker: Attacker, number: int) -> Iterator[bytes]:
        for batch in make_log(scene.cast, number, 1_000_000, LogPosition(0, b"")):
            yield _publish(attacker, topic, batch.encoded)

    return await _send_frames(scene, seconds, make)


async def publish_many_at_once(scene: Scene, seconds: float) -> str:
    """Frames of four thousand small messages, each of which must be checked."""
    topic, chance = batches_topic(scene.cast.federation), random.Random(8)

    def make(attacker: Attacker, _number: int) -> Iterator[bytes]:
        while True:
            yield _publish(attacker, topic, *(chance.randbytes(8) for _ in range(SMALL_MESSAGES)))

    return await _send_frames(scene, seconds, make)


async def ask_for_one_message_often(scene: Scene, seconds: float) -> str:
    """One message that the victim passed on, wanted back twenty thousand times in each frame."""
    topic = batches_topic(scene.cast.federation)

    def make(attacker: Attacker, number: int) -> Iterator[bytes]:
        (batch,) = make_log(scene.cast, number, 1, LogPosition(0, b""))
        message = attacker.sign_message(topic, batch.encoded)
        yield encode_varint_prefixed(rpc_pb2.RPC(publish=[message]).SerializeToString())
        name = message.from_id + message.seqno
        size = 900_000 // (len(name) + 2)
        wanted = rpc_pb2.ControlIWant(messageIDs=[name] * min(NAMED_MESSAGES, size))
        while True:
            yield make_frame(control=rpc_pb2.ControlMessage(iwant=[wanted]))

    return await _send_frames(scene, seconds, make)


async def offer_messages_without_end(scene: Scene, seconds: float) -> str:
    """Names of messages that don't exist."""
    topic, chance = batches_topic(scene.cast.federation), random.Random(9)

    def make(_attacker: Attacker, _number: int) -> Iterator[bytes]:
        while True:
            names = [chance.randbytes(46) for _ in range(9000)]
            have = rpc_pb2.ControlIHave(topicID=topic, messageIDs=names)
            yield make_frame(control=rpc_pb2.ControlMessage(ihave=[have]))

    return await _send_frames(scene, seconds, make)


async def join_and_leave(scene: Scene, seconds: float) -> str:
    """Subscriptions, grafts and prunes without end."""
    topic = batches_topic(scene.cast.federation)
    control = rpc_pb2.ControlMessage(
        graft=[rpc_pb2.ControlGraft(topicID=topic)] * 500, prune=[rpc_pb2.ControlPrune(topicID=topic)] * 500
    )
    subscriptions = [rpc_pb2.RPC.SubOpts(subscribe=bool(n % 2), topicid=topic) for n in range(900)]
    content = make_frame(subscriptions=subscriptions, control=control)

    def make(_attacker: Attacker, _number: int) -> Iterator[bytes]:
        while True:
            yield content

    return await _send_frames(scene, seconds, make)
