"""Amounts of money: integer millicredits on the ledger, credits with three decimals for people.

1 credit pays for one second of the reference GPU; 1 credit = 1,000 millicredits (spec 1.3). No floats anywhere:
`parse_credits(format_credits(m)) == m` for every amount.
"""

from __future__ import annotations

import re

from protocol.errors import InvalidInput
from protocol.limits import INTEGER_MAX

MILLICREDITS_PER_CREDIT = 1000
AMOUNT_MAX = INTEGER_MAX

_CREDITS = re.compile(r"(\d{1,13})(?:\.(\d{1,3}))?", re.ASCII)


def format_credits(millicredits: int) -> str:
    """The amount in credits, always with three decimals: 12500 -> "12.500"."""
    sign = "-" if millicredits < 0 else ""
    whole, rest = divmod(abs(millicredits), MILLICREDITS_PER_CREDIT)
    return f"{sign}{whole}.{rest:03d}"


def parse_credits(text: str) -> int:
    """Millicredits of an amount that a person typed ("12", "12.5", "12.500").

    Raises: InvalidInput when it is no non-negative decimal with at most three places, or too large.
    """
    match = _CREDITS.fullmatch(text.strip())
    if match is None:
        raise InvalidInput(f"{text!r} is no amount of credits; write it like 12.500")
    whole, fraction = match.groups()
    amount = int(whole) * MILLICREDITS_PER_CREDIT + int((fraction or "").ljust(3, "0"))
    if amount > AMOUNT_MAX:
        raise InvalidInput(f"{text} credits is more than the ledger can hold")
    return amount
