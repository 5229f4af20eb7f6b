"""Attacks of a member on connections, streams and the sync protocol."""

from __future__ import annotations

import contextlib
import random
import struct
from collections import Counter
from collections.abc import Awaitable, Callable

import trio

from node.network.sync import SYNC_PROTOCOL
from node.network.transport import REQUEST_BYTES_MAX
from protocol.codec import encode
from protocol.limits import MEMBERS_MAX
from protocol.messages import LOCATORS_PER_LOG_MAX, PULL, LogLocator, encode_probe, encode_pull
from scripts.attacks.attacker import IDENTIFY, MESHSUB, PING, Attacker
from scripts.attacks.scene import HONEST, Scene

PROTOCOLS = (IDENTIFY, PING, MESHSUB, SYNC_PROTOCOL, "/no/such/1")
STREAMS = 200
AT_ONCE = 8
PULL_EVERYTHING = encode_pull([LogLocator(HONEST, 0, ())])


def frame(content: bytes) -> bytes:
    """A question of the sync protocol."""
    return len(content).to_bytes(4, "big") + content


async def describe_standing(attacker: Attacker) -> str:
    """What the victim thinks of the attacker afterwards."""
    return "still let in" if await attacker.is_let_in() else "shunned"


async def repeat(seconds: float, work: Callable[[], Awaitable[object]], at_once: int = AT_ONCE) -> Counter[str]:
    """Do something over and over, several at a time, until the time is over; how often it worked and how often not."""
    outcomes: Counter[str] = Counter()

    async def loop() -> None:
        while True:
            try:
                await work()
                outcomes["done"] += 1
            except Exception:  # whatever the victim does to us
                outcomes["cut off"] += 1
                await trio.sleep(0.05)

    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for _ in range(at_once):
                nursery.start_soon(loop)
    return outcomes


def count(outcomes: Counter[str]) -> str:
    """In words."""
    return ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items(), reverse=True)) or "nothing"


async def _abuse(scene: Scene, seconds: float, work: Callable[[Attacker], Awaitable[object]], at_once: int) -> str:
    async with scene.attacker() as (attacker, _):
        outcomes = await repeat(seconds, lambda: work(attacker), at_once)
        return f"{count(outcomes)}; {await describe_standing(attacker)}"


async def say_garbage(scene: Scene, seconds: float) -> str:
    """Random bytes on each protocol."""
    chance = random.Random(2)

    async def work(attacker: Attacker) -> None:
        await attacker.say(chance.choice(PROTOCOLS[:4]), chance.randbytes(20_000))

    return await _abuse(scene, seconds, work, AT_ONCE)


async def say_too_much(scene: Scene, seconds: float) -> str:
    """Frames that announce 4 GiB, followed by 8 MB of them."""
    chance = random.Random(3)

    async def work(attacker: Attacker) -> None:
        stream = await attacker.open(chance.choice(PROTOCOLS[:4]))
        await stream.write(chance.choice((b"\xff\xff\xff\xff", b"\xff\xff\xff\xff\x0f")) + bytes(8_000_000))

    return await _abuse(scene, seconds, work, AT_ONCE)


async def negotiate_nothing(scene: Scene, seconds: float) -> str:
    """Streams on which a protocol is never agreed."""

    async def work(attacker: Attacker) -> None:
        stream = await attacker.open_bare()
        await stream.write(b"\x13/multistream/1.0.0\n" + b"\x0b/no/such/1\n" * 1000)
        await stream.reset()

    return await _abuse(scene, seconds, work, AT_ONCE)


async def send_garbage_below(scene: Scene, seconds: float) -> str:
    """Random frames below the streams; each costs the connection."""
    chance = random.Random(4)

    async def work(attacker: Attacker) -> None:
        await attacker.dial()
        await attacker.write_below(chance.randbytes(3000))
        await attacker.host.get_network().close_peer(attacker.victim_id)

    return await _abuse(scene, seconds, work, 1)


async def stuff_windows(scene: Scene, seconds: float) -> str:
    """Frames of 1 MB on streams whose window is smaller and that nobody reads."""
    payload = bytes(1_000_000)
    numbers = iter(range(1001, 100_001, 2))

    async def work(attacker: Attacker) -> None:
        number = next(numbers)
        await attacker.write_below(struct.pack("!BBHII", 0, 1, 1, number, 0))  # opens a stream
        for _ in range(16):
            await attacker.write_below(struct.pack("!BBHII", 0, 0, 0, number, len(payload)) + payload)

    return await _abuse(scene, seconds, work, 1)


async def ping_below(scene: Scene, seconds: float) -> str:
    """Pings of the multiplexer, without listening to the answers."""
    pings = struct.pack("!BBHII", 0, 2, 1, 0, 7) * 1000

    async def work(attacker: Attacker) -> None:
        await attacker.write_below(pings)

    return await _abuse(scene, seconds, work, 1)


async def open_many_streams(scene: Scene, seconds: float) -> str:
    """As many streams as can be had, all left open."""
    async with scene.attacker() as (attacker, _):
        opened = 0
        with trio.move_on_after(seconds), contextlib.suppress(Exception):
            for _ in range(STREAMS):
                await attacker.open(SYNC_PROTOCOL)
                opened += 1
        return f"{opened} of {STREAMS} streams; {await describe_standing(attacker)}"


async def drip_questions(scene: Scene, seconds: float) -> str:
    """Questions that come a byte a second."""

    async def work(attacker: Attacker) -> None:
        stream = await attacker.open(SYNC_PROTOCOL)
        for byte in frame(bytes(1000)):
            await stream.write(bytes([byte]))
            await trio.sleep(1)

    return await _abuse(scene, seconds, work, 32)


async def flood_probes(scene: Scene, seconds: float) -> str:
    """Comparing frontiers without pause."""

    async def work(attacker: Attacker) -> None:
        await attacker.say(SYNC_PROTOCOL, frame(encode_probe(bytes(32))))

    return await _abuse(scene, seconds, work, 16)


async def pull_everything(scene: Scene, seconds: float) -> str:
    """The whole ledger, again and again, read as fast as it comes."""

    async def work(attacker: Attacker) -> None:
        if not await attacker.say(SYNC_PROTOCOL, frame(PULL_EVERYTHING)):
            raise ConnectionError

    return await _abuse(scene, seconds, work, 16)


async def pull_without_reading(scene: Scene, seconds: float) -> str:
    """The whole ledger on many streams, of which nothing is read."""

    async def work(attacker: Attacker) -> None:
        stream = await attacker.open(SYNC_PROTOCOL)
        await stream.write(frame(PULL_EVERYTHING))

    return await _abuse(scene, seconds, work, 32)


async def send_huge_locators(scene: Scene, seconds: float) -> str:
    """Pulls that name as many places as fit, and some more."""
    chance = random.Random(5)
    known = tuple((number, chance.randbytes(32)) for number in range(LOCATORS_PER_LOG_MAX))
    full = encode_pull([LogLocator(member, 0, known) for member in range(1, MEMBERS_MAX + 1)])
    more = encode((PULL, tuple((member, 0, known) for member in range(1, 400))))[:REQUEST_BYTES_MAX]
    contents = [frame(full)] * 9 + [frame(more)]

    async def work(attacker: Attacker) -> None:
        await attacker.say(SYNC_PROTOCOL, chance.choice(contents))

    return await _abuse(scene, seconds, work, AT_ONCE)


async def connect_and_leave(scene: Scene, seconds: float) -> str:
    """One connection after the other."""

    async def work(attacker: Attacker) -> None:
        await attacker.dial()
        await attacker.host.get_network().close_peer(attacker.victim_id)

    return await _abuse(scene, seconds, work, 1)
