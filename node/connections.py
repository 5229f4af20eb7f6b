"""The three ways to a node: TCP, TCP under TLS, and the operator's unix socket."""

from __future__ import annotations

import socket
from http.client import HTTPConnection


class Connection(HTTPConnection):
    """A TCP connection that remembers when it was last used."""

    idle_since = 0.0


class SocketConnection(Connection):
    """A connection through a unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Raises: OSError."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def make_secure_connection(host: str, port: int | None, timeout_seconds: float) -> Connection:
    """A connection over TLS. The module for it is loaded when it is needed: a command starts faster without."""
    import ssl
    from http.client import HTTPSConnection

    class SecureConnection(HTTPSConnection, Connection):
        """TLS, with the system's certificates."""

    return SecureConnection(host, port, timeout=timeout_seconds, context=ssl.create_default_context())
