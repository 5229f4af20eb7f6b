"""Free ports of this machine for processes that are about to start."""

from __future__ import annotations

import random
import socket

LOWEST, HIGHEST = 20_000, 32_000
"""Below the range from which systems take ports for outgoing connections, which could take ours away again."""


def find_free_port() -> int:
    """A loopback port that nobody listens on."""
    while True:
        port = random.randrange(LOWEST, HIGHEST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
