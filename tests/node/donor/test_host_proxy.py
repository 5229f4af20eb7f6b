"""What a job reaches of the network: the hosts of the list, by tunnel or plain request, and nothing else."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from node.donor.executors.executor import JobNotStarted
from node.donor.executors.host_proxy import CONNECTIONS_MAX, HostProxy, is_public
from node.donor.executors.sandbox import Sandbox
from tests.node.donor.jailed_jobs import describe, make_command, make_limits, play, python


async def echo(stream: trio.SocketStream) -> None:
    """Answers a plain request with what it was asked, and anything else with itself."""
    async for block in stream:
        if b" HTTP/1.1\r\n" in block:
            body = bytes(block)
            await stream.send_all(
                b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            return
        await stream.send_all(block)
    await stream.send_eof()


@asynccontextmanager
async def serving() -> AsyncIterator[int]:
    """A server on the loopback address; its port."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            lambda task_status: trio.serve_tcp(echo, 0, host="127.0.0.1", task_status=task_status)
        )
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def proxying(*hosts: str, bytes_max: int = 1 << 20) -> AsyncIterator[tuple[str, int]]:
    door = trio.socket.socket()
    await door.bind(("127.0.0.1", 0))
    door.listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(HostProxy(hosts, bytes_max).serve, door)
        yield door.getsockname()
        nursery.cancel_scope.cancel()


async def ask(proxy: tuple[str, int], text: bytes, *, is_ending: bool = True) -> bytes:
    """All that the proxy answers to `text`."""
    answer = b""
    with trio.fail_after(20):
        async with await trio.open_tcp_stream(*proxy) as stream:
            with suppress(trio.BrokenResourceError):
                await stream.send_all(text)
                if is_ending:
                    await stream.send_eof()
            with suppress(trio.BrokenResourceError):  # a connection that is cut off may break
                async for block in stream:
                    answer += block
    return answer


async def test_a_tunnel_leads_to_a_listed_host_and_carries_both_ways():
    async with serving() as port, proxying(f"127.0.0.1:{port}") as proxy:
        answer = await ask(proxy, b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\nhello" % port)
    assert answer == b"HTTP/1.1 200 Connection established\r\n\r\nhello"


async def test_a_plain_request_goes_to_the_host_that_it_names_and_to_no_other():
    """Neither its own words about the host nor what it says to the proxy arrive there."""
    async with serving() as port, proxying(f"127.0.0.1:{port}") as proxy:
        target = b"http://user@127.0.0.1:%d/path?query" % port
        headers = b"Host: other.example\r\nProxy-Authorization: secret\r\nConnection: keep-alive\r\nX-Mine: 1\r\n"
        answer = await ask(proxy, b"GET " + target + b" HTTP/1.1\r\n" + headers + b"\r\n")
    seen = answer.split(b"\r\n\r\n", 1)[1]
    assert seen.startswith(b"GET /path?query HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: close\r\n" % port)
    assert b"x-mine: 1" in seen
    assert b"secret" not in seen
    assert b"other.example" not in seen


@pytest.mark.parametrize(
    "request_line",
    [
        "CONNECT 127.0.0.2:{port}",
        "CONNECT 127.0.0.1:{other}",
        "CONNECT localhost:{port}",
        "CONNECT 127.1:{port}",
        "CONNECT 2130706433:{port}",
        "CONNECT 0.0.0.0:{port}",
        "CONNECT [::ffff:127.0.0.1]:{port}",
        "CONNECT [::1]:{port}",
        "GET http://127.0.0.2:{port}/",
        "GET http://127.0.0.1@127.0.0.2:{port}/",
        "GET http://127.0.0.1/",
    ],
)
async def test_what_is_not_listed_is_refused_before_it_is_looked_up(request_line):
    async with serving() as port, proxying(f"127.0.0.1:{port}", f"listed.example:{port}") as proxy:
        line = request_line.format(port=port, other=port + 1 if port < 65_535 else 1)
        answer = await ask(proxy, f"{line} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\nhello".encode(), is_ending=False)
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"hello" not in answer


@pytest.mark.parametrize(
    "text",
    [
        b"\x16\x03\x01 no request\r\n\r\n",
        b"CONNECT 127.0.0.1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT 127.0.0.1:99999 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET file:///etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET ftp://127.0.0.1:21/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http:// HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://[/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://x:y/ HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
async def test_what_is_no_request_for_a_host_is_refused(text):
    async with proxying("127.0.0.1:80") as proxy:
        assert (await ask(proxy, text, is_ending=False)).startswith(b"HTTP/1.1 400 ")


class Names(trio.abc.HostnameResolver):
    """Names that whoever keeps their records lets lead wherever it likes."""

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):
        address = {b"inside.example": "127.0.0.1", b"near.example": "192.168.1.1"}.get(host)
        if address is None:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    async def getnameinfo(self, sockaddr, flags):
        raise NotImplementedError


async def test_a_listed_name_that_leads_inwards_is_refused():
    trio.socket.set_custom_hostname_resolver(Names())
    async with serving() as port, proxying(f"inside.example:{port}", "near.example:80", "gone.example:80") as proxy:
        inside = await ask(proxy, b"CONNECT inside.example:%d HTTP/1.1\r\nHost: x\r\n\r\nhello" % port)
        near = await ask(proxy, b"GET http://near.example/ HTTP/1.1\r\nHost: x\r\n\r\n")
        gone = await ask(proxy, b"GET http://gone.example/ HTTP/1.1\r\nHost: x\r\n\r\n")
    assert inside.startswith(b"HTTP/1.1 403 ")
    assert b"not public" in inside
    assert near.startswith(b"HTTP/1.1 403 ")
    assert gone.startswith(b"HTTP/1.1 502 ")


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111"])
def test_addresses_of_the_internet_are_public(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.0.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
        ),
        *("239.1.1.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "240.0.0.1"),
        *(
            "::1",
            "::",
            "fe80::1",
            "fe80::1%eth0",
            "fc00::1",
            "ff02::1",
            "::ffff:10.0.0.1",
            "::ffff:8.8.8.8",
            "::8.8.8.8",
        ),
        *("2001:db8::1", "2002:7f00:1::", "2001:0:7f00:1::", "64:ff9b::7f00:1", "noise"),
    ],
)
def test_addresses_of_this_machine_and_its_neighbours_are_not(address):
    assert not is_public(address)


async def test_heads_and_bytes_are_bounded():
    async with serving() as port, proxying(f"127.0.0.1:{port}", bytes_max=10_000) as proxy:
        ask_for = b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\n" % port
        assert (await ask(proxy, ask_for + b"x" * 100)).endswith(b"x" * 100)
        assert b"200" not in await ask(proxy, b"GET /" + b"x" * 1_000_000, is_ending=False)
        assert len(await ask(proxy, ask_for + b"x" * 100_000)) < 20_000
        assert b"as much as" in await ask(proxy, ask_for)


# Inside the sandbox.

FETCH = """
import os, socket, sys, urllib.request
for url in sys.argv[1:]:
    try:
        print(urllib.request.urlopen(url, timeout=10).read().split()[1].decode())
    except OSError as error:
        print(getattr(error, "code", type(error).__name__))
for line in os.listdir("/proc/self/fd"):
    try:
        if os.readlink(f"/proc/self/fd/{line}").startswith("socket"):
            print("holds a socket")
    except OSError:
        pass
for line in open("/proc/1/status"):
    if line.startswith("Threads"):
        print(len([name for name in os.listdir("/proc") if name.isdigit()]), "processes")
"""


@pytest.mark.parametrize("is_listed", [True, False])
def test_a_job_reaches_listed_hosts_alone_and_by_default_none(agent, home, is_listed):
    async def scene(sandbox: Sandbox) -> dict[str, Any]:
        async with serving() as port, serving() as other:
            program = (*python(FETCH), f"http://127.0.0.1:{port}/yes", f"http://127.0.0.1:{other}/no")
            hosts = (f"127.0.0.1:{port}",) if is_listed else ()
            # These servers are this machine's own; a job's own are reached without the proxy.
            command = make_command(program, hosts=hosts, environment={"no_proxy": "", "NO_PROXY": ""})
            return describe(await sandbox.run("job", command, make_limits()))

    told = play(agent, home, scene)
    reached = ["/yes", "403"] if is_listed else ["URLError", "URLError"]
    assert told["log"].split("\n") == [*reached, "2 processes", ""]


def test_a_jobs_connections_end_with_it(agent, home):
    program = """
import os, socket
tunnel = socket.create_connection(("127.0.0.1", 3128))
tunnel.sendall(b"CONNECT %s HTTP/1.1\\r\\nHost: x\\r\\n\\r\\nhello" % os.environ["TARGET"].encode())
received = b""
while not received.endswith(b"hello"):
    received += tunnel.recv(100)
"""

    async def scene(sandbox: Sandbox) -> dict[str, Any]:
        ended = trio.Event()

        async def wait_for_end(stream: trio.SocketStream) -> None:
            await echo(stream)
            ended.set()

        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(
                lambda task_status: trio.serve_tcp(wait_for_end, 0, host="127.0.0.1", task_status=task_status)
            )
            target = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
            command = make_command(python(program), hosts=(target,), environment={"TARGET": target})
            told = describe(await sandbox.run("job", command, make_limits()))
            with trio.fail_after(10):
                await ended.wait()
            nursery.cancel_scope.cancel()
        return told

    told = play(agent, home, scene)
    assert (told["exit_status"], told["log"]) == (0, "")


def test_a_job_that_may_reach_hosts_starts_like_any_other(agent, home):
    """What opened the door has left neither ignored signals nor open files."""

    async def scene(sandbox: Sandbox) -> dict[str, Any]:
        program = "grep -h Sig[IB] /proc/self/status; ls -l /proc/self/fd | grep -c socket"
        plain = describe(await sandbox.run("plain", make_command(program), make_limits()))
        online = describe(await sandbox.run("online", make_command(program, hosts=("pypi.org:443",)), make_limits()))
        return {"plain": plain["log"], "online": online["log"]}

    told = play(agent, home, scene)
    assert told["online"] == told["plain"]
    assert told["plain"].endswith("\n0\n")


async def test_connections_at_once_are_bounded():
    async with serving() as port, proxying(f"127.0.0.1:{port}") as proxy:
        held = []
        for _ in range(CONNECTIONS_MAX):
            held.append(await trio.open_tcp_stream(*proxy))
            await held[-1].send_all(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\n" % port)
            await held[-1].receive_some(100)
        late = await trio.open_tcp_stream(*proxy)
        await late.send_all(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\n" % port)
        with trio.move_on_after(0.2) as waiting:
            await late.receive_some(100)
        assert waiting.cancelled_caught
        await held[0].aclose()
        with trio.fail_after(10):
            assert b"200" in await late.receive_some(100)
        for stream in (late, *held):
            await stream.aclose()


async def test_a_list_with_what_is_no_host_starts_nothing(home: Path):
    sandbox = Sandbox(home / "jobs")
    await sandbox.sweep()
    with pytest.raises(JobNotStarted, match="is no host"):
        await sandbox.run("job", make_command("true", hosts=("everything",)), make_limits())
    sandbox.close()
