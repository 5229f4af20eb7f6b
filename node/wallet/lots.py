"""Which credits a payment spends: those that expire soonest, because they are worth least tomorrow.

A lot is credits of one program with one expiry. A payment may take from several; credits without an end, which
a donor earned, go last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from node.addresses import Kind, decode_address
from node.errors import UserError
from protocol.credits import format_credits
from protocol.limits import OUTPUTS_MAX
from protocol.records import NONE, Lot

if TYPE_CHECKING:
    from node.api import Account

__all__ = ["Lot", "choose_lots", "is_expired", "read_lots"]


def read_lots(account: Account) -> dict[Lot, int]:
    """Millicredits by lot, out of a node's answer."""
    return {
        Lot(decode_address(Kind.PROGRAM, lot.program) if lot.program else NONE, lot.expiry_epoch): lot.millicredits
        for lot in account.lots
        if lot.millicredits > 0
    }


def is_expired(lot: Lot, epoch: int) -> bool:
    """Whether a record of this epoch may no longer spend the lot."""
    return 0 < lot.expiry_epoch < epoch


def choose_lots(
    lots: Mapping[Lot, int],
    amount: int,
    epoch: int,
    is_usable: Callable[[Lot], bool],
    verb: str,
    *,
    count_max: int = OUTPUTS_MAX,
) -> list[tuple[Lot, int]]:
    """Parts that add up to `amount` millicredits, each of another lot; soonest expiry first, those without end last.

    `verb` is for the wording of the error alone: what the credits can't be ("sent"). `count_max` is how many lots the
    record may name: OUTPUTS_MAX for a transfer, DRAWS_MAX for a hold.

    Raises: UserError when what is usable does not suffice; it says what there is, and why the rest does not count.
    """
    usable = [lot for lot in lots if not is_expired(lot, epoch) and is_usable(lot)]
    usable.sort(key=lambda lot: (lot.expiry_epoch == 0, lot.expiry_epoch, lot.program))
    chosen, due = [], amount
    for lot in usable:
        part = min(due, lots[lot])
        if part:
            chosen.append((lot, part))
            due -= part
    if len(chosen) > count_max:
        raise UserError(
            f"{format_credits(amount)} credits are spread over {len(chosen)} lots, and one record takes {count_max}: "
            "split the amount"
        )
    if due:
        raise UserError(_explain_shortage(lots, amount, epoch, amount - due, verb))
    return chosen


def _explain_shortage(lots: Mapping[Lot, int], amount: int, epoch: int, usable: int, verb: str) -> str:
    expired = sum(part for lot, part in lots.items() if is_expired(lot, epoch))
    bound = sum(lots.values()) - usable - expired
    text = f"{format_credits(amount)} credits are needed, and {format_credits(usable)} can be {verb}"
    if bound:
        text += f"; {format_credits(bound)} more belong to programs whose credits can't be {verb}"
    if expired:
        text += f"; {format_credits(expired)} have expired"
    return text
