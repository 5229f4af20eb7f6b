"""Which records touched an account, newest first: what a person sees as history.

Kept in memory and rebuilt from the batches at start-up, so the store holds each fact once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from protocol.disputes import Dispute
from protocol.ledger import Ledger
from protocol.records import (
    Enrol,
    Grant,
    Hold,
    Leave,
    Reclaim,
    ReclaimRequest,
    Record,
    Reinstate,
    Settle,
    Sponsor,
    Suspend,
    Transfer,
)


def get_touched_accounts(record: Record, ledger: Ledger) -> Iterable[bytes]:
    """The accounts in whose history an applied record belongs, its writer's first."""
    body = record.body
    match body:
        case Transfer():
            return [record.account, *[output.account for output in body.outputs]]
        case Grant():
            return [record.account, *[output.account for output in body.outputs]]
        case Hold():
            return (record.account, body.payee)
        case Settle() | Reclaim():
            hold = ledger.holds[record.account]
            return (hold.payer, hold.payee)
        case Enrol() | Leave():
            return (body.account,)
        case ReclaimRequest():
            return (record.account, ledger.holds[body.hold].payee)
        case Dispute():
            hold = ledger.holds[body.hold]
            return (record.account, hold.payer, hold.payee)
        case Suspend() | Reinstate():
            return (record.account, body.account)
        case Sponsor():
            return (record.account, body.donor)
    return (record.account,)


class AccountHistory:
    """Account -> ids of the applied records that touched it, in the order of their application here."""

    def __init__(self) -> None:
        self._records: defaultdict[bytes, list[bytes]] = defaultdict(list)
        self.suspensions: dict[tuple[bytes, bytes], bytes] = {}
        """(account, account of the member) -> the record of the member's last suspension of it, unless reinstated."""

    def note(self, record: Record, ledger: Ledger) -> None:
        """Call once for each record that has just been applied."""
        for account in set(get_touched_accounts(record, ledger)):
            self._records[account].append(record.id)
        match record.body:
            case Suspend(account=account):
                self.suspensions[account, record.account] = record.id
            case Reinstate(account=account):
                self.suspensions.pop((account, record.account), None)

    def read(self, account: bytes, before: int | None, limit: int) -> tuple[list[bytes], int | None]:
        """Ids, newest first, from position `before` down; and where the next page starts, if there is one."""
        records = self._records.get(account, [])
        end = len(records) if before is None else max(0, min(before, len(records)))
        start = max(0, end - limit)
        return records[start:end][::-1], start or None
