"""An account that can't pay: a member has stopped it for a while (spec 7.11), or two of its records became final in one
slot (spec 8.8).

As the node says it. One that invents such a thing only keeps its own client from paying.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from node.errors import Refused
from node.terminal import make_printable

if TYPE_CHECKING:
    from node import api


def list_stops(account: api.Account) -> list[str]:
    """What stops the account: who suspended it, until when, and to whom its owner can turn; or that it is frozen."""
    stops = [
        f"suspended by {make_printable(entry.member_name) or f'member {entry.member}'} until the end of epoch "
        f"{entry.until_epoch} (reason {entry.reason}); appeal: {make_printable(entry.appeal) or 'that member'}"
        for entry in account.suspensions
    ]
    if account.is_frozen:
        stops.append("frozen for good: two records became final in one of its slots; see allmende evidence ls")
    return stops


def check_not_stopped(account: api.Account) -> None:
    """Raise Refused, before anything is signed, when no member votes for what this account would pay."""
    if stops := list_stops(account):
        raise Refused(f"this account is {'; '.join(stops)}. Nothing was signed")
