"""What a job reaches of the network: the hosts that its donor has listed (spec 12.2), through the agent's HTTP proxy.

The job's network stays empty but for this proxy's door, a socket that listens inside and is answered outside. The
proxy resolves names itself and connects to the very address that it has checked. A listed name that leads to this
machine or to its neighbours (loopback, private, link-local, multicast and the like) is refused, because whoever keeps
that name's records would otherwise choose what the job reaches here. A donor who means such an address lists the
address.

A client either asks for a tunnel (CONNECT: all that speaks TLS does) or for one plain request, after which the
connection ends.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from contextlib import suppress
from urllib.parse import urlsplit

import h11
import trio

from node.errors import UserError
from node.hosts import Host, parse_host

CONNECTIONS_MAX = 64
BYTES_MAX = 64 << 30  # in both directions together, for one job
_ADDRESSES_MAX = 4  # of one name that are tried
_HEAD_BYTES_MAX = 16 << 10
_HEAD_SECONDS = 30.0
_CONNECT_SECONDS = 10.0
_IDLE_SECONDS = 600.0
_AGAIN_SECONDS = 0.1
_READ_BYTES = 1 << 16

_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_WRAPPING = tuple(map(ipaddress.ip_network, ("2001::/32", "2002::/16")))  # an IPv4 address lies inside


class Refused(Exception):
    """A request that is not carried out: the status to answer with, and one line why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def is_public(address: str) -> bool:
    """Whether an address is one of the public internet's, and not one inside another's clothes."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:  # such as an address with an interface's name
        return False
    if isinstance(parsed, ipaddress.IPv6Address) and (
        parsed not in _GLOBAL_UNICAST or any(parsed in network for network in _WRAPPING)
    ):
        return False
    return parsed.is_global and not parsed.is_multicast


class HostProxy:
    """The proxy of one job. Invariant: it has connections to hosts of the list alone, `CONNECTIONS_MAX` at most."""

    def __init__(self, hosts: Iterable[str], bytes_max: int = BYTES_MAX) -> None:
        """Raises: UserError if one of `hosts` is none."""
        self._hosts = frozenset(map(parse_host, hosts))
        self._bytes_left = bytes_max
        self._places = trio.Semaphore(CONNECTIONS_MAX)

    async def serve(self, door: trio.socket.SocketType) -> None:
        """Answers at `door`, a socket that listens, until it is cancelled; then no connection is left."""
        with door:
            async with trio.open_nursery() as nursery:
                while True:
                    await self._places.acquire()
                    try:
                        client, _ = await door.accept()
                    except OSError:  # given up by the client already, or this process has too many files open
                        self._places.release()
                        await trio.sleep(_AGAIN_SECONDS)
                        continue
                    nursery.start_soon(self._answer, trio.SocketStream(client))

    async def _answer(self, client: trio.SocketStream) -> None:
        try:
            async with client:
                try:
                    with trio.fail_after(_HEAD_SECONDS):
                        request, rest = await _read_request(client)
                    host, head = _read_target(request)
                    server = await self._connect(host)
                except Refused as refused:
                    await client.send_all(_make_refusal(refused))
                    return
                async with server:
                    if head is None:
                        await client.send_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    await self._relay(client, server, (head or b"") + rest)
        except (OSError, trio.BrokenResourceError, trio.TooSlowError):
            return
        finally:
            self._places.release()

    async def _connect(self, host: Host) -> trio.SocketStream:
        """Raises: Refused."""
        name, port = host
        if host not in self._hosts:
            raise Refused(403, f"this donor lets jobs not reach {name}:{port}")
        if self._bytes_left <= 0:
            raise Refused(403, "the job has sent and received as much as this donor lets it")
        is_literal = _is_address(name)
        try:
            with trio.fail_after(_CONNECT_SECONDS):
                found = await trio.socket.getaddrinfo(name, port, type=trio.socket.SOCK_STREAM)
        except (OSError, UnicodeError, trio.TooSlowError):
            raise Refused(502, f"{name} is not known") from None
        allowed = [one for one in found if is_literal or is_public(str(one[4][0]))]
        if not allowed:
            raise Refused(403, f"{name} leads to an address that is not public: the donor may list the address itself")
        for family, kind, protocol, _, address in allowed[:_ADDRESSES_MAX]:
            connection = trio.socket.socket(family, kind, protocol)
            with suppress(OSError, trio.TooSlowError):
                with trio.fail_after(_CONNECT_SECONDS):
                    await connection.connect(address)
                # A public address may be this machine's own, which no firewall protects from here.
                if is_literal or connection.getsockname()[0] != connection.getpeername()[0]:
                    return trio.SocketStream(connection)
            connection.close()
        raise Refused(502, f"{name}:{port} can't be reached")

    async def _relay(self, client: trio.SocketStream, server: trio.SocketStream, first: bytes) -> None:
        """Carries both directions until both have ended, one breaks, nothing moves for long, or all is used up."""
        with trio.CancelScope(deadline=trio.current_time() + _IDLE_SECONDS) as scope:

            async def carry(source: trio.SocketStream, sink: trio.SocketStream, block: bytes) -> None:
                try:
                    while block := block or bytes(await source.receive_some(_READ_BYTES)):
                        self._bytes_left -= len(block)
                        if self._bytes_left < 0:
                            scope.cancel()
                        await sink.send_all(block)
                        scope.deadline = trio.current_time() + _IDLE_SECONDS
                        block = b""
                    await sink.send_eof()
                except (OSError, trio.BrokenResourceError):
                    scope.cancel()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(carry, client, server, first)
                nursery.start_soon(carry, server, client, b"")


async def _read_request(client: trio.SocketStream) -> tuple[h11.Request, bytes]:
    """The head of a request, and what the client has sent behind it. Raises: Refused."""
    reader = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_BYTES_MAX)
    try:
        while (event := reader.next_event()) is h11.NEED_DATA:
            reader.receive_data(bytes(await client.receive_some(_READ_BYTES)))
    except h11.RemoteProtocolError as error:
        raise Refused(400, f"this is no request: {error}") from None
    if not isinstance(event, h11.Request):
        raise Refused(400, "this is no request")
    return event, reader.trailing_data[0]


def _read_target(request: h11.Request) -> tuple[Host, bytes | None]:
    """What a request wants to reach; for a plain one also the head to send there. Raises: Refused."""
    target = request.target.decode("ascii", "replace")
    try:
        if request.method == b"CONNECT":
            return parse_host(target), None
        parts = urlsplit(target)
        if parts.scheme != "http" or parts.hostname is None:
            raise ValueError(target)
        authority = parts.netloc.rpartition("@")[2]
        host = parse_host(authority if parts.port is not None else f"{authority.removesuffix(':')}:80")
    except (ValueError, UserError):
        raise Refused(400, "ask for a tunnel to name:port, or for http://name/") from None
    path = parts.path or "/"
    lines = [f"{request.method.decode()} {path}{'?' + parts.query if parts.query else ''} HTTP/1.1".encode()]
    lines += [b"Host: " + authority.encode(), b"Connection: close"]
    for name, value in request.headers:
        if name not in (b"host", b"connection", b"keep-alive") and not name.startswith(b"proxy-"):
            lines.append(name + b": " + value)
    return host, b"\r\n".join(lines) + b"\r\n\r\n"


def _make_refusal(refused: Refused) -> bytes:
    text = f"{refused}\n".encode()
    head = f"HTTP/1.1 {refused.status} Refused\r\nContent-Type: text/plain; charset=utf-8\r\n"
    return f"{head}Content-Length: {len(text)}\r\nConnection: close\r\n\r\n".encode() + text


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
