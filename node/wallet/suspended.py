"""An account that a member has stopped for a while: who, until when, and to whom its owner can turn (spec 7.11).

As the node says it. One that invents a suspension only keeps its own client from paying.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from node.errors import Refused
from node.terminal import make_printable

if TYPE_CHECKING:
    from node import api


def list_suspensions(account: api.Account) -> list[str]:
    """Who stopped the account, until when, and to whom its owner can turn: a line for each."""
    return [
        f"suspended by {make_printable(entry.member_name) or f'member {entry.member}'} until the end of epoch "
        f"{entry.until_epoch} (reason {entry.reason}); appeal: {make_printable(entry.appeal) or 'that member'}"
        for entry in account.suspensions
    ]


def check_not_suspended(account: api.Account) -> None:
    """Raise Refused, before anything is signed, when no member votes for what this account would pay."""
    if account.suspensions:
        raise Refused(f"this account is {'; '.join(list_suspensions(account))}. Nothing was signed")
