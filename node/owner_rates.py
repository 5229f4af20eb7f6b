"""How often an account's owner may have something introduced by this node.

Payments cost no fee, so one who owns a millicredit could crowd out others with payments to itself, or with requests to
unlock a slot. Each account may hand in so many a minute here; what is above that is asked to come again in a moment. It
slows one account; who spreads credits over a thousand has a thousand rates, and meets the limits of the queue.
Members' own accounts are exempt: they grant, declare and sponsor for many, and their logs have a rate (spec 10.5).
"""

from __future__ import annotations

from protocol.charter import Charter
from protocol.records import ScopeKind

RECORDS_PER_MINUTE_MAX = 60
BURST_RECORDS_MAX = 2 * RECORDS_PER_MINUTE_MAX
"""What an account that was quiet may hand in at once."""

ACCOUNTS_KEPT_MAX = 65_536
"""About 20 MB. When there are more, those that may hand in a whole burst again are forgotten."""


assert RECORDS_PER_MINUTE_MAX % 60 == 0, "a second's share is a whole number"


class OwnerRates:
    """What each account has left.

    Invariant: an account that is not named has a whole burst left.
    """

    def __init__(self) -> None:
        self._left: dict[bytes, tuple[int, int]] = {}
        """Scope -> (what was left, at this second)."""

    def may_hand_in(self, charter: Charter, scope: bytes, now: int) -> bool:
        """Count one more; False when the account has to wait a moment. `now` is in seconds of running time."""
        name = scope[1:]
        if scope[0] != ScopeKind.ACCOUNT or name in charter.member_accounts or name in charter.issuance_accounts:
            return True
        left = self._compute_left(scope, now)
        if left < 1:
            return False
        if scope not in self._left and len(self._left) >= ACCOUNTS_KEPT_MAX:
            self._left = {
                it: left for it, left in self._left.items() if self._compute_left(it, now) < BURST_RECORDS_MAX
            }
        self._left[scope] = (left - 1, now)
        return True

    def _compute_left(self, scope: bytes, now: int) -> int:
        left, noted = self._left.get(scope, (BURST_RECORDS_MAX, now))
        return min(BURST_RECORDS_MAX, left + (now - noted) * RECORDS_PER_MINUTE_MAX // 60)
