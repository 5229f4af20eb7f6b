"""An honest member that asks the victim for its frontier, again and again: one line for each answer.

    python -m scripts.attacks.probing SEED_HEX VICTIM_ADDRESS

Prints `SECONDS MILLISECONDS` on a steady clock that all processes share, or `SECONDS -` where no answer came.
"""

from __future__ import annotations

import sys
import time

import trio

from node.network.libp2p_transport import Libp2pTransport
from node.network.sync import SYNC_PROTOCOL
from node.network.transport import RequestFailed, UnreachablePeer
from protocol.errors import InvalidInput
from protocol.messages import decode_frontier, encode_probe

PAUSE_SECONDS = 0.1
PROBE_SECONDS = 10.0


async def _ignore(_peer: str, _topic: str, _payload: bytes) -> None:
    """Nobody gossips here."""


async def probe(seed: bytes, address: str) -> None:
    """Ask until cancelled."""
    victim = address.rpartition("/p2p/")[2]
    transport = Libp2pTransport(
        seed,
        ["/ip4/127.0.0.1/tcp/0"],
        topics=(),
        validate=lambda *_: False,
        on_gossip=_ignore,
        is_admitted=lambda peer: peer == victim,
    )
    async with transport.run():
        transport.set_peers({victim: [address]})
        while True:
            started = time.monotonic()
            try:
                decode_frontier(await transport.request(victim, SYNC_PROTOCOL, encode_probe(bytes(32)), PROBE_SECONDS))
                print(f"{started:.3f} {(time.monotonic() - started) * 1000:.1f}", flush=True)
            except (UnreachablePeer, RequestFailed, InvalidInput):
                print(f"{started:.3f} -", flush=True)
            await trio.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    trio.run(probe, bytes.fromhex(sys.argv[1]), sys.argv[2])
