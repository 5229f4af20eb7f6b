"""Attacks of those who are no member: all they have is the address of a port."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Callable

import trio

from protocol.identifiers import compute_account_id
from protocol.records import Enrol, Kind, RecordDraft, person_scope, sign_record
from scripts.attacks.attacker import MULTISTREAM
from scripts.attacks.scene import FIRST_ATTACKER, Scene
from scripts.benchmarks.federation_in_memory import make_key

CONNECTIONS = 400
ENROLMENTS = 20_000
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")
TOO_LATE = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError)


async def _hold(port: int, seconds: float, first: bytes, drip: bytes = b"") -> Counter[str]:
    """Many connections that say a little and then nothing, or a byte a second; how each of them ended."""
    ends: Counter[str] = Counter()

    async def hold_one() -> None:
        try:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
        except OSError:
            ends["refused"] += 1
            return
        async with stream:
            try:
                await stream.send_all(first)
                with trio.move_on_after(seconds):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(_read_to_end, stream, nursery.cancel_scope)
                        while drip:
                            await trio.sleep(1)
                            await stream.send_all(drip)
                    ends["hung up on"] += 1
                    return
                ends["still open"] += 1
            except* TOO_LATE:
                ends["hung up on"] += 1

    async with trio.open_nursery() as nursery:
        for _ in range(CONNECTIONS):
            nursery.start_soon(hold_one)
    return ends


async def _read_to_end(stream: trio.SocketStream, scope: trio.CancelScope) -> None:
    with contextlib.suppress(*TOO_LATE):
        while await stream.receive_some(65536):
            pass
    scope.cancel()


def _describe(ends: Counter[str]) -> str:
    return ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))


async def send_garbage(scene: Scene, seconds: float) -> str:
    """One connection after the other with random bytes."""
    chance = random.Random(1)
    count = 0

    async def send_one(content: bytes) -> None:
        nonlocal count
        with contextlib.suppress(*TOO_LATE), trio.move_on_after(5):
            async with await trio.open_tcp_stream("127.0.0.1", scene.p2p_port) as stream:
                await stream.send_all(content)
                await stream.send_eof()
                while await stream.receive_some(65536):
                    pass
        count += 1

    with trio.move_on_after(seconds):
        while True:
            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    head = chance.choice((b"", MULTISTREAM, MULTISTREAM + b"\x07/noise\n" + b"\xff\xff"))
                    nursery.start_soon(send_one, head + chance.randbytes(20_000))
    return f"{count} connections, each hung up on"


async def hold_idle(scene: Scene, seconds: float) -> str:
    """Connections on which nothing is said."""
    return _describe(await _hold(scene.p2p_port, seconds, b""))


async def drip_handshakes(scene: Scene, seconds: float) -> str:
    """Handshakes that come a byte a second."""
    return _describe(await _hold(scene.p2p_port, seconds, MULTISTREAM, b"\x07"))


async def drip_http_headers(scene: Scene, seconds: float) -> str:
    """HTTP requests whose headers come a byte a second."""
    return _describe(await _hold(scene.http_port, seconds, b"GET /v1/health HTTP/1.1\r\nHost: a\r\nX-", b"a"))


async def _ask_http(scene: Scene, content: bytes) -> bytes:
    """The first bytes of the answer to raw bytes."""
    with trio.move_on_after(5), contextlib.suppress(*TOO_LATE):
        async with await trio.open_tcp_stream("127.0.0.1", scene.http_port) as stream:
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(content)
            return bytes(await stream.receive_some(65536))
    return b""


async def speak_http2(scene: Scene, seconds: float) -> str:
    """The preface of HTTP/2, over and over."""
    answers: Counter[str] = Counter()
    with trio.move_on_after(seconds):
        while True:
            answer = await _ask_http(scene, HTTP2_PREFACE)
            is_http2 = answer[3:4] == b"\x04"
            answers["spoken" if is_http2 else "hung up on" if not answer else answer[9:12].decode()] += 1
            await trio.sleep(0.01)
    return _describe(answers)


async def post_large_bodies(scene: Scene, seconds: float) -> str:
    """Records of 64 MB."""
    answers: Counter[str] = Counter()
    head = b"POST /v1/records HTTP/1.1\r\nHost: a\r\nContent-Type: application/octet-stream\r\n"
    head += b"Content-Length: 67108864\r\n\r\n"

    async def post() -> None:
        while True:
            answers[(await _ask_http(scene, head + bytes(100_000)))[9:12].decode() or "hung up on"] += 1

    await _all_at_once(seconds, post, 16)
    return _describe(answers)


async def post_many_records(scene: Scene, seconds: float) -> str:
    """Enrolments of invented people by one faulty member, as fast as they can be made."""
    cast, answers, made = scene.cast, Counter[str](), iter(range(ENROLMENTS))
    member_key = cast.member_keys[FIRST_ATTACKER]

    async def post() -> None:
        for number in made:
            key = make_key("invented", number)
            public = key.public_key().public_bytes_raw()
            account = compute_account_id(cast.federation, public)
            signers = (member_key.public_key().public_bytes_raw(), public)
            enrol = Enrol(FIRST_ATTACKER, account)
            draft = RecordDraft(Kind.ENROL, 1, person_scope(account), 0, b"", enrol, signers)
            body = sign_record(cast.federation, draft, (member_key, key)).encoded
            head = f"POST /v1/records HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
            head += "Content-Type: application/octet-stream\r\nConnection: close\r\n\r\n"
            answers[(await _ask_http(scene, head.encode() + body))[9:12].decode() or "hung up on"] += 1

    await _all_at_once(seconds, post, 32)
    return _describe(answers)


async def _all_at_once(seconds: float, work: Callable[[], object], count: int) -> None:
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(work)  # type: ignore[arg-type]
