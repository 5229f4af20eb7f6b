"""The three ways to a node: TCP, TCP under TLS, and the operator's unix socket.

Who calls an address that a stranger named calls public addresses only: else the stranger could make this machine send
requests into its own network. The address that was checked is the one that is connected to, whatever a second look
at the name would give.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from http.client import HTTPConnection


class Connection(HTTPConnection):
    """A TCP connection that remembers when it was last used."""

    idle_since = 0.0
    is_public_only = False
    """True: to public addresses of the internet only."""

    def connect(self) -> None:
        """Raises: OSError."""
        if not self.is_public_only:
            super().connect()
            return
        self.sock = _connect_publicly(self.host, self.port, self.timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def is_public_address(text: str) -> bool:
    """True for an IP address that is routed in the internet."""
    import ipaddress

    with suppress(ValueError):
        address = ipaddress.ip_address(text)
        mapped = getattr(address, "ipv4_mapped", None) or address
        return mapped.is_global and not mapped.is_multicast
    return False


def is_loopback(host: str) -> bool:
    """True for a name or IP address of this machine."""
    import ipaddress

    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _connect_publicly(host: str, port: int, timeout_seconds: float | None) -> socket.socket:
    """Raises: OSError, also when the name stands for an address of a private network."""
    failure = OSError("it has no public address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        if not is_public_address(str(address[0])):
            continue
        opened = socket.socket(family, kind, protocol)
        try:
            opened.settimeout(timeout_seconds)
            opened.connect(address)
        except OSError as error:
            opened.close()
            failure = error
        else:
            return opened
    raise failure


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
