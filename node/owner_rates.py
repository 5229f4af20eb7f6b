"""How often an account's owner may have something introduced by this node.

Payments cost no fee, so one who owns a millicredit could fill the ledger with payments to itself, or with requests to
unlock a slot. Each account may hand in so many a minute here; what is above that is asked to come again in a moment.
Members' own accounts are exempt: they grant, declare and sponsor for many, and their logs have a rate (spec 10.5).
"""

from __future__ import annotations

from protocol.charter import Charter
from protocol.records import ScopeKind

PER_MINUTE = 60
BURST = 2 * PER_MINUTE
"""What an account that was quiet may hand in at once."""

ACCOUNTS_KEPT_MAX = 65_536
"""About 20 MB. When there are more, those that may hand in a whole burst again are forgotten."""


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
            self._left = {it: left for it, left in self._left.items() if self._compute_left(it, now) < BURST}
        self._left[scope] = (left - 1, now)
        return True

    def _compute_left(self, scope: bytes, now: int) -> int:
        left, noted = self._left.get(scope, (BURST, now))
        return min(BURST, left + (now - noted) * PER_MINUTE // 60)
