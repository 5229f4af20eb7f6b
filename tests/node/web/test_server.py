"""The server bounds what anybody can make it hold, and no connection harms another."""

from __future__ import annotations

import logging
import os
import socket
import stat
from contextlib import suppress
from hashlib import sha256

import msgspec
import pytest
import trio

from node import api
from node.errors import Unreachable, UserError
from node.storage.database import StoreFailed
from node.web import exchange, server
from node.web.server import open_private_listener, open_public_listeners

MAILBOX = sha256(b"mailbox").digest()
POLL = f"GET /v1/mailboxes/{MAILBOX.hex()}/messages?wait=30 HTTP/1.1\r\nHost: x\r\n\r\n".encode()
HEALTH = b"GET /v1/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def post_record(length: int, content: bytes = b"") -> bytes:
    return b"POST /v1/records HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % length + content


def read_problem(answer: bytes) -> api.Problem:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    return msgspec.json.decode(body, type=api.Problem)


async def read_answer(stream: trio.SocketStream) -> bytes:
    """One answer with a content length."""
    answer = b""
    with trio.fail_after(10):
        while b"\r\n\r\n" not in answer:
            answer += await stream.receive_some() or pytest.fail("the node closed")
        head = answer.partition(b"\r\n\r\n")[0].lower()
        length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
        while len(answer) < len(head) + 4 + length:
            answer += await stream.receive_some() or pytest.fail("the node closed")
    return answer


async def connect(node) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", node.port)


async def test_a_body_that_is_announced_too_large_is_refused_at_once(node, monkeypatch):
    monkeypatch.setattr(server, "LINGER_SECONDS_MAX", 0.1)
    async with await connect(node) as stream:
        await stream.send_all(post_record(10**9, b"x" * 1000))
        problem = read_problem(await read_answer(stream))
    assert (problem.status, problem.detail) == (413, "the content is too large")


async def test_a_large_body_gets_its_answer_and_not_a_reset(node):
    with pytest.raises(UserError, match="too large"):
        await node.call("submit_record", bytes(3_000_000))
    with pytest.raises(UserError, match="too large"):
        await node.call("put_blob", bytes(api.BLOB_BYTES_MAX + 1))
    with pytest.raises(UserError, match="too large"):
        await node.call("post_message", MAILBOX, bytes(api.MESSAGE_BYTES_MAX + 1))
    assert await node.call("post_message", MAILBOX, bytes(api.MESSAGE_BYTES_MAX))


async def test_a_body_without_end_is_cut_off(node, monkeypatch):
    monkeypatch.setattr(server, "LINGER_SECONDS_MAX", 0.2)
    async with await connect(node) as stream:
        head = b"POST /v1/records HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        await stream.send_all(head)
        with trio.fail_after(10), suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n")
    await node.wait_until(lambda: node.server._connections == 0)


async def test_a_client_that_is_too_slow_is_told_so(node, monkeypatch):
    monkeypatch.setattr(exchange, "BODY_SECONDS_MAX", 0.1)
    monkeypatch.setattr(exchange.iterate_body, "__defaults__", (0.1,))
    monkeypatch.setattr(server, "LINGER_SECONDS_MAX", 0.1)
    async with await connect(node) as stream:
        await stream.send_all(post_record(100, b"only this"))
        problem = read_problem(await read_answer(stream))
    assert problem.status == 408
    await node.wait_until(lambda: node.server._connections == 0)


async def test_headers_that_never_end_are_cut_off(start, monkeypatch):
    monkeypatch.setattr(server, "HEADER_SECONDS_MAX", 0.2)
    async with start() as node, await connect(node) as stream:
        await stream.send_all(b"GET /v1/health HTTP/1.1\r\nHost:")
        with trio.fail_after(10):
            assert await stream.receive_some() == b""


async def test_headers_that_are_too_large_are_refused(node):
    answer = await node.talk(b"GET /v1/health HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 200_000 + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 431")


@pytest.mark.parametrize(
    "noise",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xff" * 100, b"\r\n" * 100, b"GET\r\n\r\n", b"\0" * 70_000],
)
async def test_noise_is_no_harm(node, noise):
    async with await connect(node) as stream:
        await stream.send_all(noise)
        await stream.send_eof()
        with trio.fail_after(10), suppress(trio.BrokenResourceError):
            while await stream.receive_some():
                pass
    assert (await node.talk(HEALTH)).startswith(b"HTTP/1.1 200")
    await node.wait_until(lambda: node.server._connections == 0)


async def test_http2_and_websockets_are_not_spoken(node):
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"
    headers = b"\0\0\x0e\x01\x05\0\0\0\x01\x82\x86\x84\x41\x09localhost"
    for content in (preface, preface + headers):
        assert await node.talk(content) == b""
    h2c = b"GET /v1/health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    assert b"\0\0\0\x04" not in await node.talk(h2c + b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n")
    upgrade = b"GET /v1/health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    assert b" 101 " not in await node.talk(upgrade + b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n\r\n")
    await node.wait_until(lambda: node.server._connections == 0)


async def test_a_poll_ends_when_its_client_goes_away(node):
    stream = await connect(node)
    await stream.send_all(POLL)
    await node.wait_until(lambda: bool(node.services.mailboxes._bells))
    await stream.aclose()
    await node.wait_until(lambda: not node.services.mailboxes._bells and node.server._connections == 0)


async def test_one_connection_serves_many_requests(node):
    async with await connect(node) as stream:
        for _ in range(5):
            await stream.send_all(b"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await read_answer(stream)).endswith(b'{"status":"ok"}')
        assert node.server._connections == 1


async def test_connections_are_bounded_and_free_again(start):
    async with start(connections_max=2) as node:
        async with await connect(node) as first, await connect(node) as second:
            for stream in (first, second):
                await stream.send_all(POLL)
            await node.wait_until(lambda: node.server._connections == 2)
            assert (await node.talk(HEALTH)).startswith(b"HTTP/1.1 503")
            with pytest.raises(Unreachable, match="busy"):
                await node.call("get_health")
        await node.wait_until(lambda: node.server._connections == 0)
        assert await node.call("get_health") == api.Health("ok")


async def test_a_client_that_reads_nothing_is_dropped(node, monkeypatch):
    monkeypatch.setattr(server, "SEND_SECONDS_MAX", 0.2)
    digest = await node.call("put_blob", bytes(20_000_000))
    stream = await connect(node)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await stream.send_all(b"GET /v1/blobs/%s HTTP/1.1\r\nHost: x\r\n\r\n" % digest.hex().encode())
    await node.wait_until(lambda: node.server._connections > 0)
    await node.wait_until(lambda: node.server._connections == 0)
    await stream.aclose()


async def test_a_stopping_node_ends_polls_with_later_and_finishes_quickly(node):
    async with await connect(node) as stream:
        await stream.send_all(POLL)
        await node.wait_until(lambda: bool(node.services.mailboxes._bells))
        started = trio.current_time()
        node.serving.cancel()
        assert read_problem(await read_answer(stream)).status == 503
        await node.stopped.wait()
    assert trio.current_time() - started < 2.5
    assert not node.socket.exists()
    with pytest.raises(OSError, match="connect"):
        await trio.open_tcp_stream("127.0.0.1", node.port)


async def test_a_failure_of_ours_tells_the_log_and_not_the_client(node, monkeypatch, caplog):
    def fail(*arguments: object) -> None:
        raise RuntimeError("the secret inside")

    monkeypatch.setattr(node.services.mailboxes, "post", fail)
    with caplog.at_level(logging.ERROR, "allmende.web"), pytest.raises(Unreachable) as failed:
        await node.call("post_message", MAILBOX, b"x")
    assert "secret" not in str(failed.value)
    assert "the secret inside" in caplog.text
    assert await node.call("get_health") == api.Health("ok")


async def test_a_failing_disk_is_told_without_its_place(node, monkeypatch):
    def fail(*arguments: object) -> None:
        raise StoreFailed("the disk that holds /home/secret/ledger.sqlite is full")

    monkeypatch.setattr(node.services.mailboxes, "post", fail)
    with pytest.raises(Unreachable, match="can't store") as failed:
        await node.call("post_message", MAILBOX, b"x")
    assert "/home" not in str(failed.value)


async def test_problems_are_documents(node):
    for request, status in (
        (b"GET /nowhere HTTP/1.1", 404),
        (b"DELETE /v1/health HTTP/1.1", 405),
        (b"GET /v1/records/abc HTTP/1.1", 404),
        (b"GET /v1/records/abc?wait=31 HTTP/1.1", 400),
        (b"GET /v1/records/abc?wait=x HTTP/1.1", 400),
        (b"GET /v1/mailboxes/abc/messages HTTP/1.1", 400),
        (b"GET /v1/operator/budget-requests HTTP/1.1", 404),
    ):
        problem = read_problem(await node.talk(request + b"\r\nHost: x\r\nConnection: close\r\n\r\n"))
        assert problem.status == status, request
        assert problem.detail
        assert "Traceback" not in problem.detail


async def test_an_address_that_is_taken_is_named():
    (listener,) = await open_public_listeners("127.0.0.1", 0)
    async with listener:
        port = listener.socket.getsockname()[1]
        with pytest.raises(UserError, match=rf"127.0.0.1:{port} .* choose another"):
            await open_public_listeners("127.0.0.1", port)


async def test_the_private_socket_belongs_to_its_owner_alone(node):
    mode = node.socket.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    assert await node.call("get_health", place=node.socket) == api.Health("ok")


async def test_a_socket_left_behind_is_replaced_and_a_file_is_not(tmp_path):
    path = tmp_path / "operator.sock"
    before = os.umask(0)
    try:
        for _ in range(2):  # the first one is never removed, as after a kill
            listener = open_private_listener(path)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            listener.socket.close()
    finally:
        os.umask(before)
    file = tmp_path / "file"
    file.write_bytes(b"precious")
    with pytest.raises(UserError, match="in the way"):
        open_private_listener(file)
    assert file.read_bytes() == b"precious"
    with pytest.raises(UserError, match="too long"):
        open_private_listener(tmp_path / ("x" * 120))
    with pytest.raises(UserError, match="can't open"):
        open_private_listener(tmp_path / "nowhere" / "operator.sock")
