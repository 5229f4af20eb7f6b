"""Plain second implementations that the fast ones of the protocol are held against.

Each is written from the law alone, as simply as can be, without looking at cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from protocol.charter import Charter
from protocol.ledger import Ledger
from protocol.records import Enrol, Grant, Hold, Program, Record, Settle, Sponsor, Transfer

Purse = tuple[bytes, bytes, int]
"""(account, program, expiry epoch)."""


class NaiveFold:
    """Every final record, tried again and again in a fixed order until nothing more applies."""

    def __init__(self, charter: Charter, final_records: Iterable[Record]) -> None:
        self.charter = charter
        self.money: Counter[Purse] = Counter()
        self.done: dict[bytes, Record] = {}
        self.last: dict[bytes, Record] = {}
        self.escrows: dict[bytes, int] = {}
        self.paid: dict[bytes, int] = {}
        self.backed: Counter[tuple[int, int]] = Counter()
        self.granted: Counter[tuple[bytes, bytes, bytes]] = Counter()
        for number, member in charter.members.items():
            for epoch, cap in enumerate(member.issuance_caps, start=1):
                self.money[charter.get_issuance_account(number, epoch), b"", 0] += cap
        open_records = sorted(final_records, key=lambda record: record.id)
        while True:
            ready = next((record for record in open_records if self._can_apply(record)), None)
            if ready is None:
                break
            open_records.remove(ready)
            self._apply(ready)
        self.waiting = {record.id for record in open_records}

    def _taken(self, record: Record) -> Counter[Purse]:
        taken: Counter[Purse] = Counter()
        body = record.body
        if isinstance(body, Transfer):
            for output in body.outputs:
                taken[record.account, output.program, output.expiry_epoch] += output.amount
        if isinstance(body, Hold):
            for draw in body.draws:
                taken[record.account, draw.program, draw.expiry_epoch] += draw.amount
        if isinstance(body, Grant):
            for grant_output in body.outputs:
                taken[record.account, b"", 0] += grant_output.amount
        return taken

    def _has(self, body_type: type, record_id: bytes) -> bool:
        return record_id in self.done and isinstance(self.done[record_id].body, body_type)

    def _can_apply(self, record: Record) -> bool:
        last = self.last.get(record.scope)
        if last is None and record.sequence != 0:
            return False
        if last is not None and (record.sequence != last.sequence + 1 or record.prev != last.id):
            return False
        body = record.body
        if isinstance(body, Grant) and not (
            self._has(Program, body.program) and all(self._has(Enrol, o.enrolment) for o in body.outputs)
        ):
            return False
        if isinstance(body, Hold) and not self._has(Sponsor, body.terms.sponsor):
            return False
        if isinstance(body, Settle) and not (
            self._has(Hold, record.account) and (not body.gift_program or self._has(Program, body.gift_program))
        ):
            return False
        return all(self.money[purse] >= amount for purse, amount in self._taken(record).items())

    def _apply(self, record: Record) -> None:
        self.money.subtract(self._taken(record))
        body = record.body
        if isinstance(body, Transfer):
            for output in body.outputs:
                self.money[output.account, output.program, output.expiry_epoch] += output.amount
        if isinstance(body, Grant):
            for grant_output in body.outputs:
                self.money[grant_output.account, body.program, body.expiry_epoch] += grant_output.amount
                self.granted[record.account, body.program, grant_output.account] += grant_output.amount
        if isinstance(body, Hold):
            self.escrows[record.id] = sum(draw.amount for draw in body.draws)
        if isinstance(body, Settle):
            self._settle(record, body)
        self.done[record.id] = record
        self.last[record.scope] = record

    def _declarer(self, record_id: bytes) -> int:
        """The member whose account declared a program or a sponsor record; 0 for nobody."""
        return self.charter.member_accounts.get(self.done[record_id].account, 0)

    def _settle(self, record: Record, settle: Settle) -> None:
        hold_record = self.done[record.account]
        hold = hold_record.body
        assert isinstance(hold, Hold)
        put_aside = self.escrows.pop(hold_record.id)
        amount = min(settle.amount, put_aside)
        gift = min(settle.gift_amount, amount) if settle.gift_program else 0
        sponsor = self._declarer(hold.terms.sponsor)
        earned_elsewhere = 0
        # One millicredit after the other, from the first draw to the last.
        coins = [(draw.program, draw.expiry_epoch) for draw in hold.draws for _ in range(draw.amount)]
        for number, (program, expiry) in enumerate(coins):
            if number >= amount:
                self.money[hold_record.account, program, expiry] += 1
            elif program and self._declarer(program) != sponsor:
                earned_elsewhere += 1
        self.money[hold.payee, b"", 0] += amount - gift
        if gift:
            giver = self._declarer(settle.gift_program)
            self.money[self.charter.get_issuance_account(giver, record.epoch), b"", 0] += gift
        self.paid[hold_record.id] = amount
        self._back(sponsor, record.epoch + 1, earned_elsewhere)

    def _back(self, member: int, epoch: int, earned: int) -> None:
        ceiling = self.charter.members[member].backing_ceiling
        before = min(ceiling, self.backed[member, epoch])
        self.backed[member, epoch] += earned * self.charter.policy.backing_permille // 1000
        after = min(ceiling, self.backed[member, epoch])
        self.money[self.charter.get_issuance_account(member, epoch), b"", 0] += after - before

    def check_equals(self, ledger: Ledger) -> None:
        """Assert that the incremental ledger says the same about everything."""
        assert flatten(ledger.balances) == {purse: held for purse, held in self.money.items() if held}
        assert {scope: (head.sequence, head.record) for scope, head in ledger.heads.items()} == {
            scope: (record.sequence, record.id) for scope, record in self.last.items()
        }
        assert ledger.applied_count == len(self.done)
        assert ledger.count_waiting() == len(self.waiting)
        assert {key for key, hold in ledger.holds.items() if hold.is_open} == set(self.escrows)
        assert {key: hold.paid for key, hold in ledger.holds.items() if not hold.is_open} == self.paid
        assert ledger.allowances == self.granted
        assert ledger.issued == sum(self.money.values()) + sum(self.escrows.values())


def flatten(balances: Mapping[bytes, Mapping[Any, int]]) -> dict[Purse, int]:
    """(account, program, expiry epoch) -> millicredits."""
    return {(account, *lot): held for account, lots in balances.items() for lot, held in lots.items()}


class NaiveTally:
    """Weights in a dictionary, position by position."""

    def __init__(self) -> None:
        self.weights: Counter[int] = Counter()
        self.counted: set[tuple[int, int]] = set()

    def add(self, member: int, weight: int, positions: Iterable[int], quorum: int) -> set[int]:
        """The positions that reach the quorum now."""
        reached = set()
        for position in positions:
            if (member, position) not in self.counted:
                self.counted.add((member, position))
                before = self.weights[position]
                self.weights[position] += weight
                if before < quorum <= self.weights[position]:
                    reached.add(position)
        return reached
