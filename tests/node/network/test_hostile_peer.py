"""What a hostile peer may send, from outside or as a member: the node goes on serving an honest one."""

from __future__ import annotations

import contextlib
import os
import random

import pytest
import trio
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils import encode_varint_prefixed

from node.network import hardening
from node.network.transport import ANSWERS_PER_PEER_MAX
from scripts.attacks.attacker import MESHSUB, MULTISTREAM, Attacker, make_frame

HONEST, HOSTILE, VICTIM = 1, 2, 3


@pytest.fixture
async def victim(lab):
    """A node under attack. It must still run when the test ends."""
    node = lab.node(VICTIM, {lab.peer_id_of(HONEST), lab.peer_id_of(HOSTILE)})
    async with node.transport.run():
        yield node
        await check_it_still_serves(lab, node)


async def check_it_still_serves(lab, victim, seconds=15):
    """A new honest node finds the victim, asks it and tells it something."""
    honest = lab.node(HONEST)
    async with honest.transport.run():
        honest.call(victim)
        await lab.until(honest.transport.connected, seconds)
        assert await honest.transport.request(victim.peer_id, lab.ECHO, b"abc", 5) == b"cba"
        await lab.gossip_until(honest, victim, b"still there")


def port_of(victim):
    return int(victim.transport.listen_addresses()[0].split("/")[4])


async def open_raw(victim):
    return await trio.open_tcp_stream("127.0.0.1", port_of(victim))


async def read_to_end(stream):
    """Everything that the victim says until it hangs up: it took in what was sent, and gave up."""
    received = b""
    with trio.fail_after(15), contextlib.suppress(trio.BrokenResourceError):
        while chunk := await stream.receive_some():
            received += chunk
    return received


FROM_OUTSIDE = {
    "random bytes": random.Random(1).randbytes(100_000),
    "a web browser": b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n",
    "zeros": bytes(10_000),
    "an endless length": b"\xff" * 1000,
    "a long protocol name": MULTISTREAM + b"\xff\xff\x7f" + b"a" * 70_000,
    "half a handshake": MULTISTREAM + b"\x07/noise\n" + (32).to_bytes(2, "big") + os.urandom(32),
    "a huge handshake": MULTISTREAM + b"\x07/noise\n" + b"\xff\xff" + os.urandom(65535),
    "an empty handshake": MULTISTREAM + b"\x07/noise\n" + bytes(2),
    "hanging up": b"",
}


@pytest.mark.parametrize("sent", FROM_OUTSIDE.values(), ids=FROM_OUTSIDE)
async def test_bytes_from_outside_are_hung_up_on(victim, sent):
    stream = await open_raw(victim)
    async with stream:
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(sent)
            await stream.send_eof()
        await read_to_end(stream)


@pytest.mark.parametrize("protocol", [b"/plaintext/2.0.0", b"/secio/1.0.0", b"/tls/1.0.0", b"/yamux/1.0.0"])
async def test_no_other_security_protocol_is_spoken_than_noise(victim, protocol):
    stream = await open_raw(victim)
    async with stream:
        await stream.send_all(MULTISTREAM + bytes([len(protocol) + 1]) + protocol + b"\n")
        await stream.send_eof()
        received = await read_to_end(stream)
    assert received == MULTISTREAM + b"\x03na\n"


async def test_idle_connections_are_closed_and_do_not_shut_out_a_member(lab, victim):
    async with contextlib.AsyncExitStack() as stack:
        idle = [await stack.enter_async_context(await open_raw(victim)) for _ in range(150)]
        await check_it_still_serves(lab, victim)
        for stream in idle:
            await read_to_end(stream)


@pytest.fixture
async def attacker(lab, victim):
    async with Attacker(lab.seed_of(HOSTILE), victim.transport.listen_addresses()[0]).run() as attacker:
        yield attacker


def make_message(**fields):
    defaults = {"from_id": b"\x00\x01x", "seqno": bytes(8), "data": b"x", "topicIDs": ["batches"]}
    return make_frame(publish=[rpc_pb2.Message(**(defaults | fields))])


BAD_GRAFT = make_frame(control=rpc_pb2.ControlMessage(graft=[rpc_pb2.ControlGraft(topicID="topi")]))

# True: the sender must lose standing. Text that is no UTF-8 is made by replacing bytes in a good frame.
GOSSIP_FRAMES = {
    "garbage": (encode_varint_prefixed(b"\xff" * 100), True),
    "random garbage": (encode_varint_prefixed(random.Random(2).randbytes(1000)), True),
    "an oversized frame": (b"\xff\xff\xff\x7f" + bytes(2_000_000), True),
    "an endless length": (b"\xff" * 20, False),
    "a topic that is no text": (BAD_GRAFT.replace(b"topi", b"\xff\xfe\xfd\xfc"), False),
    "an unknown key": (make_message(signature=b"s", key=b"\x08\x63\x12\x01x"), True),
    "a key that is no key": (make_message(signature=b"s", key=b"\xff\xff"), True),
    "no signature": (make_message(), False),
    "one message for many topics": (make_message(topicIDs=["batches"] * 1000, signature=b"s"), True),
    "many subscriptions": (
        make_frame(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=str(n)) for n in range(6000)]),
        False,
    ),
    "a bad address record": (make_frame(senderRecord=b"\xff" * 50), False),
}


@pytest.mark.parametrize(("frame", "is_fault"), GOSSIP_FRAMES.values(), ids=GOSSIP_FRAMES)
async def test_bad_gossip_frames_cost_the_sender_and_nobody_else(lab, victim, attacker, frame, is_fault):
    stream = await attacker.open(MESHSUB)
    with contextlib.suppress(Exception):
        await stream.write(frame)
    if is_fault:
        await lab.until(lambda: attacker.peer_id in victim.transport._peers._standings)
    assert not victim.received


async def test_a_peer_that_never_stops_sending_garbage_is_ignored(lab, victim, attacker):
    for _ in range(6):
        with contextlib.suppress(Exception):
            await attacker.say(MESHSUB, GOSSIP_FRAMES["garbage"][0])
    await lab.until(lambda: attacker.peer_id not in victim.transport.connected())
    with contextlib.suppress(Exception):
        await attacker.dial()
    await check_it_still_serves(lab, victim)
    assert attacker.peer_id not in victim.transport.connected()


async def test_an_oversized_question_is_refused_before_it_is_read(lab, victim, attacker):
    await attacker.say(lab.ECHO, b"\xff\xff\xff\xff" + bytes(100_000))
    await lab.until(lambda: attacker.peer_id in victim.transport._peers._standings)
    assert victim.transport.traffic.received[lab.ECHO] == 4


async def test_half_questions_and_closed_streams_end_nothing(lab, victim, attacker):
    for content in (b"", b"\x00", b"\x00\x00\x00\x05abc"):
        stream = await attacker.open(lab.ECHO)
        await stream.write(content)
        await stream.close_write()
        stream = await attacker.open(lab.ECHO)
        await stream.write(content)
        await stream.reset()


async def test_bad_negotiations_of_a_stream_end_nothing(lab, victim, attacker):
    network = attacker.host.get_network()
    for content in (random.Random(3).randbytes(5000), b"\xff" * 100, MULTISTREAM + b"\x0a/no/such/1\n", b""):
        stream = await network.new_stream(attacker.victim_id)
        with contextlib.suppress(Exception):
            await stream.write(content)
            await stream.close_write()


@pytest.mark.parametrize("protocol", ["/ipfs/id/1.0.0", "/ipfs/ping/1.0.0", MESHSUB])
async def test_garbage_on_the_protocols_of_libp2p_ends_nothing(victim, attacker, protocol):
    stream = await attacker.open(protocol)
    with contextlib.suppress(Exception):
        await stream.write(random.Random(4).randbytes(100_000))
        await stream.close_write()


@pytest.mark.parametrize(
    "frame",
    [
        b"\xff" * 12,
        b"\x00\x09\x00\x00" + bytes(8),
        b"\x00\x00\x00\x00" + b"\x00\x00\x00\x63" + b"\xff\xff\xff\xff",
        b"\x00\x01\x00\x01" + bytes(8),
        b"\x00\x03\x00\x00" + bytes(8),
        random.Random(5).randbytes(6000),
    ],
)
async def test_garbage_below_the_streams_ends_nothing(victim, attacker, frame):
    (connection,) = attacker.host.get_network().get_connections(attacker.victim_id)
    with contextlib.suppress(Exception):
        await connection.muxed_conn.secured_conn.write(frame)


async def test_one_peer_may_hold_only_so_many_streams(lab, victim, attacker):
    opened = 0
    with trio.fail_after(30), contextlib.suppress(Exception):
        for _ in range(3 * hardening.STREAMS_PER_PEER_MAX):
            await attacker.open(lab.ECHO)
            opened += 1
    assert opened <= hardening.STREAMS_PER_PEER_MAX


async def serve_large(peer_id, question):
    return bytes(16 * 1024 * 1024)


async def test_a_reader_that_stands_still_holds_up_nobody(lab, victim, attacker):
    victim.transport.serve("/large/1", serve_large)
    for _ in range(4):
        stream = await attacker.open("/large/1")
        await stream.write(bytes(4))
    await check_it_still_serves(lab, victim)


def wire_of(connection):
    return connection.muxed_conn.secured_conn.conn.read_writer.read_write_closer.stream


async def take_nothing(content):
    """What sending does when the other program leaves its socket alone and all buffers are full."""
    await trio.sleep_forever()


async def test_a_peer_that_takes_no_bytes_is_disconnected_and_does_not_stop_gossip(lab, victim, attacker, monkeypatch):
    monkeypatch.setattr(hardening, "STALL_SECONDS", 0.5)
    heard = trio.Event()

    async def listen(stream):
        while await stream.read(65536):
            heard.set()

    attacker.host.set_stream_handler(TProtocol(MESHSUB), listen)
    honest = lab.node(HONEST)
    async with honest.transport.run():
        honest.call(victim)
        stream = await attacker.open(MESHSUB)
        subscription = rpc_pb2.RPC.SubOpts(subscribe=True, topicid=lab.TOPIC)
        await stream.write(make_frame(subscriptions=[subscription]))
        await lab.gossip_until(victim, honest, b"ready")
        with trio.fail_after(15):
            await heard.wait()
        (accepted,) = victim.transport._network.get_connections(ID.from_base58(attacker.peer_id))
        monkeypatch.setattr(wire_of(accepted).stream, "send_all", take_nothing)
        # Pings would find out too, but not within ten seconds.
        with trio.fail_after(8):
            number = 0
            while attacker.peer_id in victim.transport.connected():
                number += 1
                await victim.transport.publish(lab.TOPIC, number.to_bytes(4, "big") + bytes(100_000))
        await lab.gossip_until(victim, honest, b"after the attack")
        assert victim.transport.connected() == {honest.peer_id}


async def test_a_peer_gets_so_many_answers_at_a_time_and_the_others_are_not_made(lab, victim, attacker):
    made = 0

    async def serve_counted(peer_id, question):
        nonlocal made
        made += 1
        return bytes(16 * 1024 * 1024)

    victim.transport.serve("/large/1", serve_counted)
    for _ in range(12):
        stream = await attacker.open("/large/1")
        await stream.write(bytes(4))
    await lab.until(lambda: made == ANSWERS_PER_PEER_MAX)
    await check_it_still_serves(lab, victim)
    assert made == ANSWERS_PER_PEER_MAX


def make_wanted(*names):
    return make_frame(control=rpc_pb2.ControlMessage(iwant=[rpc_pb2.ControlIWant(messageIDs=names)]))


async def test_a_message_that_is_wanted_a_thousand_times_is_sent_once(lab, victim, attacker):
    stream = await attacker.join(lab.TOPIC)
    payloads = [random.Random(number).randbytes(100_000) for number in (1, 2)]
    messages = [attacker.sign_message(lab.TOPIC, payload) for payload in payloads]
    await stream.write(make_frame(publish=messages))
    await lab.until(lambda: set(payloads) <= victim.payloads())
    first, second = (message.from_id + message.seqno for message in messages)
    await stream.write(make_wanted(*[first] * 1000))
    await stream.write(make_wanted(second))
    await lab.until(lambda: payloads[1] in attacker.heard)
    assert attacker.heard.count(payloads[0]) == 1


async def test_messages_that_are_wanted_at_once_fill_one_frame_and_no_more(lab, victim, attacker):
    stream, received = await attacker.join(lab.TOPIC), attacker.heard
    names, payloads = [], [random.Random(number).randbytes(200_000) for number in range(12)]
    for payload in payloads:
        message = attacker.sign_message(lab.TOPIC, payload)
        names.append(message.from_id + message.seqno)
        await stream.write(make_frame(publish=[message]))
    await lab.until(lambda: set(payloads) <= victim.payloads())
    await stream.write(make_wanted(*names))
    await lab.until(lambda: payloads[4] in received)
    await stream.write(make_wanted(names[-1]))
    await lab.until(lambda: payloads[-1] in received)
    assert sum(payload in received for payload in payloads) == 6


async def test_a_frame_of_thousands_of_messages_keeps_nobody_waiting(lab, victim, attacker):
    honest = lab.node(HONEST)
    async with honest.transport.run():
        honest.call(victim)
        await lab.until(honest.transport.connected)
        stream = await attacker.join(lab.TOPIC)
        messages = [attacker.sign_message(lab.TOPIC, number.to_bytes(4, "big")) for number in range(2000)]
        await stream.write(make_frame(publish=messages))
        await lab.until(lambda: victim.received)
        heard_before = len(victim.received)
        assert await honest.transport.request(victim.peer_id, lab.ECHO, b"abc", 5) == b"cba"
        assert len(victim.received) - heard_before < 500
