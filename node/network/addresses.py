"""Network addresses as operators write them: /ip4/192.0.2.7/tcp/4001, with or without /p2p/ and a peer id."""

from __future__ import annotations

import socket

import trio
from multiaddr import Multiaddr

from node.config import P2P_EXAMPLE
from node.errors import UserError

_HOSTS = (["ip4"], ["ip6"], ["dns"], ["dns4"], ["dns6"])


def parse_address(text: str, peer_id: str | None = None) -> Multiaddr:
    """Read an address of ours, or of the given peer. Raises UserError, also when it names another peer."""
    try:
        address = Multiaddr(text)
        names = [protocol.name for protocol in address.protocols()]
        named = address.value_for_protocol("p2p") if "p2p" in names else peer_id
    except Exception:
        raise UserError(f"{text!r} is no network address: {P2P_EXAMPLE}") from None
    if names[:1] not in _HOSTS or names[1:] not in (["tcp"], ["tcp", "p2p"]):
        raise UserError(f"{text!r} is no TCP address: {P2P_EXAMPLE}")
    if named != peer_id:
        raise UserError(f"the address {text!r} belongs to another peer than {peer_id}: correct one of the two")
    return address


async def check_listenable(address: Multiaddr) -> None:
    """Raises UserError when another program listens there or the address is not this machine's.

    libp2p listens with SO_REUSEPORT, by which two nodes would share a port without noticing and each get
    half of the calls. A trial without that flag finds the other listener; SO_REUSEADDR only ignores the
    remains of past connections, so that a node can restart at once.
    """
    protocols = {protocol.name for protocol in address.protocols()}
    if not protocols & {"ip4", "ip6"}:
        raise UserError(f"can't listen on {address}: name an IP address of this machine, or 0.0.0.0 for all")
    family = socket.AF_INET if "ip4" in protocols else socket.AF_INET6
    host = address.value_for_protocol("ip4" if "ip4" in protocols else "ip6")
    port = int(address.value_for_protocol("tcp"))
    with trio.socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            await trial.bind((host, port))
        except OSError as error:
            raise UserError(
                f"can't listen on {address} ({error.strerror}): stop the other program or choose another address"
            ) from None
