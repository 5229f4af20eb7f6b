"""Hosts that a job may reach, as donors lend them and job files ask for them: `name:port` (spec 12.2)."""

from __future__ import annotations

import re
from typing import NamedTuple

from node.errors import UserError

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_]([A-Za-z0-9._-]{0,251}[A-Za-z0-9_])?):([0-9]{1,5})")


class Host(NamedTuple):
    """A place on the network."""

    name: str
    """A name of the DNS in lower case, or an address."""
    port: int

    def __str__(self) -> str:
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"


def parse_host(text: str) -> Host:
    """A host such as `pypi.org:443`, `192.0.2.1:80` or `[2001:db8::1]:80`. Raises: UserError."""
    matched = _HOST.fullmatch(text)
    if matched is None or not 0 < int(matched[3]) < 65_536:
        raise UserError(f"{text!r} is no host: write name:port, such as pypi.org:443")
    return Host(matched[1].strip("[]").lower(), int(matched[3]))
