"""Whom a donor's lists name: an account (`alm1...`), a program (`almp1...`), or a member, by its name or number.

A member stands for everybody whom it has enrolled, a program for the credits that it granted.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

from node.addresses import Kind, decode_address
from node.errors import UserError
from protocol.limits import NAME_BYTES_MAX


class Who(NamedTuple):
    """One entry of a list."""

    kind: Literal["account", "program", "member"]
    name: bytes | int | str
    """The id of an account or a program; a member's number or name."""


@lru_cache(maxsize=1024)
def parse_who(entry: str) -> Who:
    """What an entry names. Raises: UserError, in one line."""
    text = entry.strip()
    prefix = text.lower().partition("1")[0]
    if prefix == Kind.ACCOUNT.value:
        return Who("account", decode_address(Kind.ACCOUNT, text))
    if prefix == Kind.PROGRAM.value:
        return Who("program", decode_address(Kind.PROGRAM, text))
    if text.isascii() and text.isdigit():
        return Who("member", int(text))
    if not text or not text.isprintable() or len(text.encode()) > NAME_BYTES_MAX:
        raise UserError(f"{entry!r} names nobody: give an account (alm1...), a program (almp1...) or a member's name")
    return Who("member", text)
