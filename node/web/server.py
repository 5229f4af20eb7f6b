"""Serves HTTP on sockets, whoever is at the other end: bounded in connections, sizes and times.

hypercorn speaks HTTP over each connection; the sockets, the limits and the shutdown are here, because hypercorn's own
`serve` neither bounds connections nor survives an error in one.

*Resource handling.* `run` ends by cancellation: no new connection is taken, idle ones close at once, long polls are
told to come back, requests in work get a few seconds. *Error handling.* What goes wrong in a connection ends that
connection and is logged in one line.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h11 import H2CProtocolRequiredError, H2ProtocolAssumedError
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState

from node.errors import UserError

log = logging.getLogger("allmende.web")

CONNECTIONS_MAX = 512
"""A donor holds one long poll for each conversation; half of the usual 1024 file descriptors."""

HEADER_BYTES_MAX = 16 * 1024
HEADER_SECONDS_MAX = 15
"""From the opening, or the end of the request before, to the last byte of the headers."""

SILENCE_SECONDS_MAX = 60
"""Longer than the longest poll, which is silent by intention."""

SEND_SECONDS_MAX = 20.0
"""For one piece of an answer (256 kB of a bundle, or a whole JSON document): a reader slower than that is dropped."""

LINGER_SECONDS_MAX = 5.0
"""How long the rest of a refused body is read, so that the client sees the answer and not a reset."""

GRACE_SECONDS = 3.0
ACCEPT_PAUSE_SECONDS = 0.5
SOCKET_BACKLOG = 128
SOCKET_PATH_BYTES_MAX = 107

_REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

Scope = dict[str, Any]
App = Callable[..., Any]
"""An ASGI application."""


async def open_public_listeners(host: str, port: int) -> list[trio.SocketListener]:
    """Sockets for everybody. Raises: UserError when the address can't be had."""
    try:
        return await trio.open_tcp_listeners(port, host=host, backlog=SOCKET_BACKLOG)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"can't listen on {host}:{port} ({reason}): choose another address in config.toml") from error


def open_private_listener(path: Path) -> trio.SocketListener:
    """A unix socket that only this user may open. A socket left by a dead process is replaced.

    The caller holds the directory's lock, so nobody else listens there. The mode is set before the name appears
    (Linux takes it from the unbound socket), so there is no moment in which others may connect.

    Raises: UserError.
    """
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        raise UserError(f"{path} is too long for a socket: choose a home with a shorter path")
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if path.is_symlink() or (path.exists() and not stat.S_ISSOCK(path.stat().st_mode)):
            raise UserError(f"{path} is in the way: move it away")
        path.unlink(missing_ok=True)
        os.fchmod(opened.fileno(), 0o600)
        opened.bind(os.fspath(path))
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            path.unlink()
            raise UserError(f"{path} would be open to others on this system")
        opened.listen(SOCKET_BACKLOG)
    except OSError as error:
        opened.close()
        raise UserError(f"can't open the socket {path}: {error.strerror}") from error
    except UserError:
        opened.close()
        raise
    return trio.SocketListener(trio.socket.from_stdlib_socket(opened))


def describe_listener(listener: trio.SocketListener) -> str:
    """Where a listener can be reached, as a client takes it."""
    address = listener.socket.getsockname()
    if listener.socket.family == socket.AF_UNIX:
        return os.fsdecode(address)
    host, port = address[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class HttpServer:
    """One application on some listeners."""

    def __init__(
        self,
        app: App,
        listeners: Sequence[trio.SocketListener],
        closing: trio.Event,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        """`closing` is set when the server stops; long polls watch it."""
        self.addresses = [describe_listener(listener) for listener in listeners]
        self._app = app
        self._listeners = listeners
        self._closing = closing
        self._connections_max = connections_max
        self._connections = 0
        self._context = WorkerContext(None)
        self._config = Config()
        self._config.errorlog = None
        self._config.include_server_header = False
        self._config.h11_max_incomplete_size = HEADER_BYTES_MAX
        self._config.keep_alive_timeout = HEADER_SECONDS_MAX
        self._config.read_timeout = SILENCE_SECONDS_MAX

    async def run(self, task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. Started with the addresses."""
        async with trio.open_nursery() as nursery:
            connections: trio.Nursery = await nursery.start(self._hold_connections)
            try:
                async with trio.open_nursery() as acceptors:
                    for listener in self._listeners:
                        acceptors.start_soon(self._accept, listener, connections)
                    task_status.started(self.addresses)
            finally:
                self._closing.set()
                for listener, address in zip(self._listeners, self.addresses, strict=True):
                    listener.socket.close()
                    if listener.socket.family == socket.AF_UNIX:
                        with suppress(OSError):
                            os.unlink(address)

    async def _hold_connections(self, task_status: trio.TaskStatus[trio.Nursery]) -> None:
        """The connections live a little longer than the listeners."""
        with trio.CancelScope(shield=True) as scope:
            async with trio.open_nursery() as nursery:
                task_status.started(nursery)
                await self._closing.wait()
                await self._context.terminated.set()
                scope.deadline = trio.current_time() + GRACE_SECONDS

    async def _accept(self, listener: trio.SocketListener, connections: trio.Nursery) -> None:
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise
                log.warning("no connection can be taken at the moment: %s", error.strerror)
                await trio.sleep(ACCEPT_PAUSE_SECONDS)
                continue
            if self._connections >= self._connections_max:
                with suppress(OSError, trio.BrokenResourceError):
                    # Into the kernel's empty buffer, or not at all: nobody is waited for.
                    await trio.lowlevel.cancel_shielded_checkpoint()
                    _send_at_once(stream.socket, _REFUSAL)
                stream.socket.close()
                continue
            self._connections += 1
            connections.start_soon(self._serve_connection, stream)

    async def _serve_connection(self, stream: trio.SocketStream) -> None:
        try:
            with trio.CancelScope() as scope:
                connection = _Connection(self._app, scope)
                # hypercorn needs of both only what they have here; its types name the classes that it makes itself.
                app, patient = cast(AppWrapper, connection.handle), cast(Any, _PatientStream(stream, scope))
                await _HttpConnection(app, self._config, self._context, ConnectionState({}), patient)
        except Exception as error:  # one connection's failure is nobody else's
            log.warning("a connection broke: %s", " ".join(repr(error).split())[:300])
        finally:
            self._connections -= 1
            stream.socket.close()


def _send_at_once(opened: trio.socket.SocketType, content: bytes) -> None:
    descriptor = os.dup(opened.fileno())
    with socket.socket(fileno=descriptor) as copy:
        copy.send(content, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


class _Http1(ProtocolWrapper):
    """hypercorn's choice of a protocol, without HTTP/2, which clients need not speak and which few limits here know."""

    async def handle(self, event: Event) -> None:
        try:
            await self.protocol.handle(event)
        except (H2ProtocolAssumedError, H2CProtocolRequiredError):
            await self.send(Closed())


class _HttpConnection(TCPServer):
    """hypercorn's connection, over at once when the client has closed it (else it stays until an idle one would)."""

    async def _read_data(self) -> None:
        assert type(self.protocol) is ProtocolWrapper
        # It has no state that a constructor would have to make.
        self.protocol.__class__ = _Http1
        await super()._read_data()
        await self.idle_task.stop()


class _PatientStream:
    """A stream that ends its connection when the client does not read. Looks to hypercorn like trio's.

    hypercorn itself would let the application go on writing to nobody.
    """

    def __init__(self, stream: trio.SocketStream, scope: trio.CancelScope) -> None:
        self._stream = stream
        self._scope = scope
        self.socket = stream.socket

    async def receive_some(self, bytes_max: int) -> bytes | bytearray:
        """As trio's."""
        return await self._stream.receive_some(bytes_max)

    async def send_all(self, content: bytes) -> None:
        """As trio's, within a time."""
        try:
            with trio.move_on_after(SEND_SECONDS_MAX) as scope:
                await self._stream.send_all(content)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._scope.cancel()
            raise
        if scope.cancelled_caught:
            self._scope.cancel()
            raise trio.BrokenResourceError("the client does not read")

    async def send_eof(self) -> None:
        """As trio's."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """As trio's."""
        await self._stream.aclose()


class _Connection:
    """What the application sees of one connection.

    A body that the application did not want must not stay behind: hypercorn's queue between socket and application
    is bounded, and its own message "disconnected" would wait in it for ever. So the rest is read and thrown away for
    a while before an answer goes out, and then the connection ends.
    """

    def __init__(self, app: App, scope: trio.CancelScope) -> None:
        self._app = app
        self._scope = scope

    async def handle(
        self, scope: Scope, receive: Callable[[], Any], send: Callable[[Any], Any], *hooks: object
    ) -> None:
        """One request. The hooks are for applications that use threads."""
        if scope["type"] != "http" or not scope["http_version"].startswith("1."):
            self._scope.cancel()
            return
        is_received = False

        async def receive_counted() -> Any:
            nonlocal is_received
            message = await receive()
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                is_received = True
            return message

        async def send_after_body(message: Any) -> None:
            if message["type"] == "http.response.start" and not is_received:
                with trio.move_on_after(LINGER_SECONDS_MAX):
                    while not is_received:
                        await receive_counted()
                if not is_received:
                    message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            if is_received:
                await send(message)
            else:
                await self._send_and_discard(message, receive_counted, send)

        await self._app(scope, receive_counted, send_after_body)
        if not is_received:
            self._scope.cancel()

    async def _send_and_discard(self, message: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        async def discard() -> None:
            while True:
                await receive()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(discard)
            await send(message)
            nursery.cancel_scope.cancel()
