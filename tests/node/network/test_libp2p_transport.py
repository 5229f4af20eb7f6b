"""Nodes on real sockets: they talk when both are admitted, and only then."""

from __future__ import annotations

import logging
import random

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2

from node.errors import UserError
from node.network.peer_ids import compute_peer_id
from node.network.transport import (
    GOSSIP,
    GOSSIP_BYTES_MAX,
    REQUEST_BYTES_MAX,
    RequestFailed,
    Transport,
    UnreachablePeer,
)
from protocol.errors import InvalidInput, Reason, Rejected
from scripts.attacks.attacker import Attacker


async def test_two_admitted_nodes_gossip_and_ask_each_other(lab):
    first, second = lab.node(1, {lab.peer_id_of(2)}), lab.node(2, {lab.peer_id_of(1)})
    transport: Transport = first.transport
    async with transport.run(), second.transport.run():
        second.call(first)
        await lab.until(lambda: first.transport.connected() and second.transport.connected())
        assert first.transport.connected() == {second.peer_id}
        assert await second.transport.request(first.peer_id, lab.ECHO, b"abc", 5) == b"cba"
        assert await first.transport.request(second.peer_id, lab.ECHO, b"", 5) == b""
        await lab.gossip_until(first, second, b"from first")
        await lab.gossip_until(second, first, b"from second")
        assert second.received[0] == (first.peer_id, b"from first")
        assert second.transport.traffic.received[lab.ECHO] == 3 + 5 + 4
        assert second.transport.traffic.sent[lab.ECHO] == 3 + 4 + 5
        assert first.transport.traffic.sent[GOSSIP] > 0
        assert second.transport.traffic.received[GOSSIP] > 0


async def test_a_large_answer_arrives_whole_and_an_unexpectedly_large_one_is_refused(lab):
    first, second = lab.node(1), lab.node(2)
    large = random.Random(1).randbytes(12 * 1024 * 1024)

    async def serve_large(peer_id: str, question: bytes) -> bytes:
        return large

    first.transport.serve("/large/1", serve_large)
    async with first.transport.run(), second.transport.run():
        second.call(first)
        await lab.until(second.transport.connected)
        assert await second.transport.request(first.peer_id, "/large/1", b"", 30) == large
        with pytest.raises(InvalidInput, match="of at most 1000"):
            await second.transport.request(first.peer_id, "/large/1", b"", 30, response_bytes_max=1000)
        assert await second.transport.request(first.peer_id, lab.ECHO, b"abc", 5) == b"cba"


async def test_many_questions_at_once_are_all_answered(lab):
    first, second = lab.node(1), lab.node(2)
    answers = []

    async def ask(number: int) -> None:
        answers.append(await second.transport.request(first.peer_id, lab.ECHO, b"%d" % number, 20))

    async with first.transport.run(), second.transport.run():
        second.call(first)
        await lab.until(second.transport.connected)
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(ask, number)
    assert sorted(answers) == sorted((b"%d" % number)[::-1] for number in range(100))


async def test_an_outsider_is_refused_in_both_directions(lab):
    inside = lab.node(1, {lab.peer_id_of(2)})
    friend = lab.node(2)
    outsider = lab.node(3)
    async with inside.transport.run(), friend.transport.run(), outsider.transport.run():
        outsider.call(inside)
        inside.call(friend, outsider)
        friend.call(outsider)
        await lab.until(lambda: friend.peer_id in inside.transport.connected())
        await lab.until(lambda: friend.peer_id in outsider.transport.connected())
        await lab.gossip_until(outsider, friend, b"hello")
        assert outsider.peer_id not in inside.transport.connected()
        with pytest.raises(UnreachablePeer):
            await inside.transport.request(outsider.peer_id, lab.ECHO, b"", 2)
        with pytest.raises(UnreachablePeer):
            await outsider.transport.request(inside.peer_id, lab.ECHO, b"", 2)
        assert inside.transport.traffic.received[lab.ECHO] == 0


async def test_a_peer_whose_admission_ends_is_disconnected(lab):
    first, second = lab.node(1, {lab.peer_id_of(2)}), lab.node(2)
    async with first.transport.run(), second.transport.run():
        second.call(first)
        await lab.until(first.transport.connected)
        first.admitted = set()
        await lab.until(lambda: not first.transport.connected())


async def test_a_refused_peer_that_calls_again_and_again_stands_in_the_log_once(lab, caplog):
    class Nobody(set[str]):
        asked = 0

        def __contains__(self, peer_id: object) -> bool:
            self.asked += 1
            return False

    caplog.set_level(logging.INFO)
    first, second = lab.node(1, Nobody()), lab.node(2)
    async with first.transport.run(), second.transport.run():
        second.call(first)
        await lab.until(lambda: first.admitted.asked >= 2)
    assert [record.getMessage() for record in caplog.records].count(
        f"refused {second.peer_id}: not admitted, or ignored for a while"
    ) == 1


async def test_a_peer_that_keeps_doing_wrong_is_ignored_for_a_while(lab):
    first, second = lab.node(1), lab.node(2)
    async with first.transport.run(), second.transport.run():
        second.call(first)
        await lab.until(first.transport.connected)
        first.transport.note_fault(second.peer_id)
        assert first.transport.connected()
        first.transport.note_fault(second.peer_id, severity=100)
        await lab.until(lambda: not first.transport.connected())
        await lab.until(lambda: not second.transport.connected())


async def test_errors_of_a_handler_reach_the_asker_as_text_and_end_nothing(lab):
    first, second = lab.node(1), lab.node(2)
    errors = {
        b"bug": KeyError("a secret of ours"),
        b"rule": Rejected(Reason.FUNDS_MISSING, "needs 5"),
        b"bytes": InvalidInput("not canonical"),
        b"user": UserError("Not now: try again."),
    }

    async def fail(peer_id: str, question: bytes) -> bytes:
        raise errors[question]

    first.transport.serve("/fail/1", fail)
    async with first.transport.run(), second.transport.run():
        second.call(first)
        await lab.until(second.transport.connected)
        for question, text in [
            (b"bug", "^failed$"),
            (b"rule", "funds missing: needs 5"),
            (b"bytes", "not canonical"),
            (b"user", "Not now"),
        ]:
            with pytest.raises(RequestFailed, match=text):
                await second.transport.request(first.peer_id, "/fail/1", question, 5)
        assert await second.transport.request(first.peer_id, lab.ECHO, b"abc", 5) == b"cba"


async def test_a_broken_invariant_in_a_handler_stops_the_node(lab):
    first, second = lab.node(1), lab.node(2)

    async def break_down(peer_id: str, question: bytes) -> bytes:
        raise AssertionError("balances must add up")

    first.transport.serve("/break/1", break_down)

    async def ask() -> None:
        async with second.transport.run(), first.transport.run():
            second.call(first)
            await lab.until(second.transport.connected)
            with pytest.raises((RequestFailed, UnreachablePeer)):
                await second.transport.request(first.peer_id, "/break/1", b"", 5)
            await trio.sleep_forever()

    with trio.fail_after(20), pytest.raises(AssertionError, match="balances must add up"):
        await ask()


async def test_a_validator_that_raises_means_no_and_ends_nothing(lab):
    first, second = lab.node(1), lab.node(2)

    def validate(peer_id: str, topic: str, payload: bytes) -> bool:
        if payload == b"bad":
            raise ZeroDivisionError
        return True

    second.transport._inbox._validate = validate
    async with first.transport.run(), second.transport.run():
        second.call(first)
        await lab.gossip_until(first, second, b"one")
        await first.transport.publish(lab.TOPIC, b"bad")
        await lab.gossip_until(first, second, b"two")
        assert b"bad" not in second.payloads()


async def test_a_failing_receiver_of_gossip_loses_only_that_message(lab):
    first, second = lab.node(1), lab.node(2)
    keep = second.take_in

    async def take_in(peer_id: str, topic: str, payload: bytes) -> None:
        if payload == b"bad":
            raise KeyError(payload)
        await keep(peer_id, topic, payload)

    second.transport._inbox._on_gossip = take_in
    async with first.transport.run(), second.transport.run():
        second.call(first)
        await lab.gossip_until(first, second, b"one")
        await first.transport.publish(lab.TOPIC, b"bad")
        await lab.gossip_until(first, second, b"two")


async def test_gossip_is_relayed_but_never_what_a_relay_finds_invalid(lab):
    first, relay, last = lab.node(1), lab.node(2), lab.node(3)
    relay.refuses = {b"bad"}
    async with first.transport.run(), relay.transport.run(), last.transport.run():
        relay.call(first, last)
        await lab.gossip_until(first, last, b"one")
        await first.transport.publish(lab.TOPIC, b"bad")
        await lab.gossip_until(first, last, b"two")
        assert b"bad" not in last.payloads()
        assert {peer_id for peer_id, _ in last.received} == {relay.peer_id}


async def test_what_is_too_large_is_refused_before_it_is_sent(lab):
    node = lab.node(1)
    async with node.transport.run():
        with pytest.raises(ValueError, match="above the limit"):
            await node.transport.publish(lab.TOPIC, bytes(GOSSIP_BYTES_MAX + 1))
        with pytest.raises(ValueError, match="not named"):
            await node.transport.publish("another topic", b"")
        with pytest.raises(ValueError, match="above the limit"):
            await node.transport.request(lab.peer_id_of(2), lab.ECHO, bytes(REQUEST_BYTES_MAX + 1), 5)


async def test_the_largest_gossip_arrives(lab):
    first, second = lab.node(1), lab.node(2)
    async with first.transport.run(), second.transport.run():
        second.call(first)
        await lab.gossip_until(first, second, b"ready")
        await lab.gossip_until(first, second, bytes(GOSSIP_BYTES_MAX))


async def test_a_peer_that_is_absent_or_silent_or_ignorant_is_unreachable(lab):
    first, second = lab.node(1), lab.node(2)

    async def stay_silent(peer_id: str, question: bytes) -> bytes:
        await trio.sleep_forever()
        raise AssertionError("unreachable")

    first.transport.serve("/silence/1", stay_silent)
    async with first.transport.run(), second.transport.run():
        with pytest.raises(UnreachablePeer, match="not connected"):
            await second.transport.request(first.peer_id, lab.ECHO, b"", 1)
        second.call(first)
        await lab.until(second.transport.connected)
        with pytest.raises(UnreachablePeer, match="within"):
            await second.transport.request(first.peer_id, "/silence/1", b"", 0.2)
        with pytest.raises(UnreachablePeer):
            await second.transport.request(first.peer_id, "/unknown/1", b"", 5)
        assert await second.transport.request(first.peer_id, lab.ECHO, b"abc", 5) == b"cba"


async def test_a_restarted_peer_is_called_again_and_heard_again(lab):
    caller = lab.node(1)
    async with caller.transport.run():
        listen = "/ip4/127.0.0.1/tcp/0"
        for _ in range(3):
            peer = lab.node(2, listen=listen)
            async with peer.transport.run():
                # From now on the same port, at once after it was closed.
                listen = peer.transport.listen_addresses()[0].split("/p2p/")[0]
                caller.call(peer)
                await lab.until(caller.transport.connected, seconds=10)
                caller.received.clear()
                await lab.gossip_until(peer, caller, b"after the restart")
            await lab.until(lambda: not caller.transport.connected(), seconds=10)


async def test_connections_that_ended_hold_no_slot(lab):
    node = lab.node(1)
    async with node.transport.run():
        for _ in range(5):
            visitor = lab.node(2)
            async with visitor.transport.run():
                visitor.call(node)
                # Both sides: a host that ends while its own side is being set up leaves its socket to the process.
                await lab.until(node.transport.connected)
                await lab.until(visitor.transport.connected)
                assert node.transport._network._inbound_limiter.borrowed_tokens == 1
            await lab.until(lambda: node.transport._network._inbound_limiter.borrowed_tokens == 0)


async def test_a_second_address_is_tried_when_the_first_does_not_answer(lab):
    first, second = lab.node(1), lab.node(2)
    async with first.transport.run(), second.transport.run():
        address = first.transport.listen_addresses()[0]
        second.transport.set_peers({first.peer_id: ["/ip4/127.0.0.1/tcp/1", address]})
        await lab.until(second.transport.connected)


async def test_the_real_port_is_reported_and_a_taken_one_is_an_error(lab):
    first = lab.node(1)
    async with first.transport.run():
        (address,) = first.transport.listen_addresses()
        assert address.endswith(f"/p2p/{first.peer_id}")
        assert "/tcp/0/" not in address
        second = lab.node(2, listen=address.split("/p2p/")[0])
        with pytest.raises(UserError, match=r"can't listen on .*: stop the other program"):
            async with second.transport.run():
                raise AssertionError("two nodes share a port")


@pytest.mark.parametrize("address", ["", "127.0.0.1:4001", "/ip4/127.0.0.1/udp/1", "/ip4/300.0.0.1/tcp/1", "/ip4"])
async def test_an_address_that_cannot_be_read_is_refused_in_one_line(lab, address):
    with pytest.raises(UserError, match="address: write it like /ip4"):
        lab.node(1).transport.set_peers({lab.peer_id_of(2): [address]})


async def test_an_address_of_another_peer_is_refused(lab):
    with pytest.raises(UserError, match="belongs to another peer"):
        lab.node(1).transport.set_peers({lab.peer_id_of(2): [f"/ip4/127.0.0.1/tcp/1/p2p/{lab.peer_id_of(3)}"]})


@pytest.mark.parametrize("number", range(20))
def test_peer_ids_are_those_of_libp2p(number):
    seed = random.Random(number).randbytes(32)
    public_key = create_new_key_pair(seed).public_key
    peer_id = compute_peer_id(public_key.to_bytes())
    assert peer_id == ID.from_pubkey(public_key).to_base58()


async def test_large_frames_of_several_writers_do_not_mix(lab):
    speaker, listener = lab.node(1), lab.node(2)
    async with speaker.transport.run(), listener.transport.run():
        speaker.call(listener)
        await lab.gossip_until(speaker, listener, b"ready")
        pubsub = speaker.transport._pubsub
        (stream,) = pubsub.peers.values()
        writer = Attacker(lab.seed_of(3), listener.transport.listen_addresses()[0])
        payloads = [bytes([number]) * 300_000 for number in range(6)]
        async with trio.open_nursery() as nursery:
            for payload in payloads:
                frame = rpc_pb2.RPC(publish=[writer.sign_message(lab.TOPIC, payload)])
                nursery.start_soon(pubsub.write_msg, stream, frame)
        await lab.until(lambda: set(payloads) <= listener.payloads())
