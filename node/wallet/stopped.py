"""An account that can't pay: a member has stopped it for a while (spec 7.11), or two of its records became final in one
slot (spec 8.8).

As the node says it. One that invents such a thing only keeps its own client from paying.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from node.errors import Refused
from node.terminal import format_moment, make_printable

if TYPE_CHECKING:
    from node import api
    from node.wallet.wallet import Wallet


def list_stops(wallet: Wallet, account: api.Account) -> list[str]:
    """What stops the account: who suspended it, until when, and to whom its owner can turn; or that it is frozen."""
    stops = []
    for entry in account.suspensions:
        member = make_printable(entry.member_name) or f"member {entry.member}"
        end = format_moment(wallet.compute_epoch_end(entry.until_epoch))
        stops.append(
            f"suspended by {member} until {end}, the end of epoch {entry.until_epoch} (reason {entry.reason} of that "
            f"member's own list); appeal: {make_printable(entry.appeal) or 'that member'}"
        )
    if account.is_frozen:
        stops.append(
            "frozen for good: two of its payments became final that exclude each other; see allmende evidence ls"
        )
    return stops


def check_not_stopped(wallet: Wallet, account: api.Account) -> None:
    """Raise Refused, before anything is signed, when no member votes for what this account would pay."""
    if stops := list_stops(wallet, account):
        raise Refused(f"this account is {'; '.join(stops)}. Nothing was signed")
