"""Plain second implementations that the fast ones of the protocol are held against.

Each is written from the law alone, as simply as can be, without looking at cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from protocol.charter import Charter, decode_charter
from protocol.disputes import Dispute
from protocol.ledger import Ledger
from protocol.records import (
    SCOPE_BYTES,
    Amend,
    Enrol,
    Grant,
    Hold,
    Leave,
    Program,
    Reclaim,
    ReclaimRequest,
    Record,
    Reinstate,
    Rotate,
    Settle,
    Sponsor,
    Suspend,
    Transfer,
    account_scope,
    hold_scope,
)

Purse = tuple[bytes, bytes, int]
"""(account, program, expiry epoch)."""


class NaiveFold:
    """Every final record, tried again and again in a fixed order until nothing more applies."""

    def __init__(self, charter: Charter, final_records: Iterable[Record]) -> None:
        self.charters = {0: charter}
        self.money: Counter[Purse] = Counter()
        self.done: dict[bytes, Record] = {}
        self.last: dict[bytes, Record] = {}
        self.escrows: dict[bytes, int] = {}
        self.paid: dict[bytes, int] = {}
        self.backed: Counter[tuple[int, int]] = Counter()
        self.granted: Counter[tuple[bytes, bytes, bytes]] = Counter()
        open_records = sorted(final_records, key=lambda record: record.id)
        finals = Counter({record.id: record.slot for record in open_records}.values())
        self.frozen = {scope for (scope, _), count in finals.items() if count > 1}
        """Scopes in which two records are final in one slot: all their finals apply, on credit if they must."""
        while True:
            ready = next((record for record in open_records if self._can_apply(record)), None)
            if ready is None:
                break
            open_records.remove(ready)
            self._apply(ready)
        self.waiting = {record.id for record in open_records}
        self._issue()

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
        is_frozen = record.scope in self.frozen
        if last is None and record.sequence != 0 and not is_frozen:
            return False
        if last is not None and (record.sequence != last.sequence + 1 or record.prev != last.id) and not is_frozen:
            return False
        body = record.body
        if isinstance(body, Grant) and not (
            self._has(Program, body.program) and all(self._has(Enrol, o.enrolment) for o in body.outputs)
        ):
            return False
        if isinstance(body, Hold) and not self._has(Sponsor, body.terms.sponsor):
            return False
        if isinstance(body, Hold) and not all(self._has(Program, draw.program) for draw in body.draws if draw.program):
            return False
        if isinstance(body, Hold) and body.terms.charter_version not in self.charters:
            return False
        if isinstance(body, (ReclaimRequest, Dispute)) and not self._has(Hold, body.hold):
            return False
        if isinstance(body, Reclaim) and not (
            self._has(Hold, record.account) and self._has(ReclaimRequest, body.request)
        ):
            return False
        if isinstance(body, Settle) and not (
            self._has(Hold, record.account) and (not body.gift_program or self._has(Program, body.gift_program))
        ):
            return False
        issued = self._compute_issued()
        taken = self._taken(record).items()
        return is_frozen or all(self.money[purse] + issued[purse] >= amount for purse, amount in taken)

    def _compute_issued(self) -> Counter[Purse]:
        """What all charters so far and all settled work so far let members grant: the law, computed afresh."""
        issued: Counter[Purse] = Counter()
        genesis = self.charters[0]
        members = {m.number: m for version in sorted(self.charters) for m in self.charters[version].fields.members}
        for number, member in members.items():
            for epoch in range(1, 121):
                cap = member.issuance_caps[epoch - 1] if epoch <= len(member.issuance_caps) else 0
                backed = min(member.backing_ceiling, self.backed[number, epoch])
                issued[genesis.get_issuance_account(number, epoch), b"", 0] = cap + backed
        return issued

    def _issue(self) -> None:
        self.money.update(self._compute_issued())

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
        if isinstance(body, Reclaim):
            self._reclaim(record)
        if isinstance(body, Amend):
            self.charters[record.sequence + 1] = decode_charter(body.charter, self.charters[0].federation)
        self.done[record.id] = record
        last = self.last.get(record.scope, record)
        self.last[record.scope] = max(last, record, key=lambda each: (each.sequence, each.id))

    def _declarer(self, record_id: bytes) -> int:
        """The member that declared a program or a sponsor record."""
        body = self.done[record_id].body
        assert isinstance(body, (Program, Sponsor))
        return body.member

    def _reclaim(self, record: Record) -> None:
        hold_record = self.done[record.account]
        assert isinstance(hold_record.body, Hold)
        self._open_escrow(hold_record)
        for draw in hold_record.body.draws:
            self.money[hold_record.account, draw.program, draw.expiry_epoch] += draw.amount
        self.paid.setdefault(hold_record.id, 0)

    def _open_escrow(self, hold: Record) -> int:
        """What the hold put aside. A second end of it takes the same on credit."""
        assert isinstance(hold.body, Hold)
        if hold.id not in self.escrows:
            for draw in hold.body.draws:
                self.money[hold_scope(hold.id), draw.program, draw.expiry_epoch] -= draw.amount
        return self.escrows.pop(hold.id, sum(draw.amount for draw in hold.body.draws))

    def _settle(self, record: Record, settle: Settle) -> None:
        hold_record = self.done[record.account]
        hold = hold_record.body
        assert isinstance(hold, Hold)
        amount = min(settle.amount, self._open_escrow(hold_record))
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
            self.money[self.charters[0].get_issuance_account(giver, record.epoch), b"", 0] += gift
        self.paid[hold_record.id] = self.paid.get(hold_record.id, 0) + amount
        permille = self.charters[hold.terms.charter_version].policy.backing_permille
        self.backed[sponsor, record.epoch + 1] += earned_elsewhere * permille // 1000

    def _last(self, *kinds: type) -> list[Record]:
        """The applied records of these kinds, each scope's in order; none where the order is not decided."""
        chosen = [r for r in self.done.values() if isinstance(r.body, kinds) and r.scope not in self.frozen]
        return sorted(chosen, key=lambda record: record.slot)

    def _check_facts(self, ledger: Ledger) -> None:
        assert ledger.charters.keys() == self.charters.keys()
        assert ledger.charter.version == max(self.charters)
        keys = {r.account: r.body.key for r in self._last(Rotate) if isinstance(r.body, Rotate)}
        assert ledger.keys == keys
        ends: dict[tuple[bytes, bytes], int] = {}
        for record in self._last(Suspend, Reinstate):
            assert isinstance(record.body, (Suspend, Reinstate))
            until = record.body.until_epoch if isinstance(record.body, Suspend) else 0
            ends[record.body.account, record.account] = until
        for (account, writer), until in ends.items():
            assert ledger.suspensions[account].get(writer, 0) == until
        for record in self._last(Enrol):
            after = next((r for r in self._last(Enrol, Leave) if r.prev == record.id), None)
            state = ledger.enrolments[record.id]
            assert state.from_epoch == record.epoch + (record.sequence > 0)
            assert state.until_epoch == (after.epoch if after else 0)
        for hold in self._last(Hold):
            asked = [r.id for r in self._last(ReclaimRequest) if getattr(r.body, "hold", b"") == hold.id]
            assert ledger.holds[hold.id].request == (asked[0] if asked else b"")
        self._check_jobs(ledger)

    def _check_jobs(self, ledger: Ledger) -> None:
        """Disputes stand for ever, in frozen scopes, too; and a hold knows the last epoch in which it was ended."""
        disputes = {r.id: r for r in self.done.values() if isinstance(r.body, Dispute)}
        stated = {name: (hold, *it) for hold, found in ledger.disputes.items() for name, it in found.items()}
        assert stated == {
            name: (r.body.hold, r.account, r.epoch, r.body.reason, r.body.evidence)
            for name, r in disputes.items()
            if isinstance(r.body, Dispute)
        }
        for name, hold in ledger.holds.items():
            ends = [r.epoch for r in self.done.values() if r.scope == hold_scope(name)]
            assert hold.end_epoch == max(ends, default=0)

    def check_equals(self, ledger: Ledger) -> None:
        """Assert that the incremental ledger says the same about everything."""
        assert flatten(ledger.balances) == {purse: held for purse, held in self.money.items() if held > 0}
        owed = {purse: -held for purse, held in self.money.items() if held < 0}
        assert flatten(ledger.overdrafts) == {(_get_scope(it[0]), *it[1:]): held for it, held in owed.items()}
        assert ledger.frozen == self.frozen
        assert {scope: (head.sequence, head.record) for scope, head in ledger.heads.items()} == {
            scope: (record.sequence, record.id) for scope, record in self.last.items()
        }
        assert ledger.applied_count == len(self.done)
        assert ledger.count_waiting() == len(self.waiting)
        assert {key for key, hold in ledger.holds.items() if hold.is_open} == set(self.escrows)
        assert {key: hold.paid for key, hold in ledger.holds.items() if not hold.is_open} == self.paid
        assert ledger.allowances == self.granted
        self._check_facts(ledger)
        assert ledger.issued == sum(self.money.values()) + sum(self.escrows.values())


def _get_scope(name: bytes) -> bytes:
    """Of an account; what is a scope already stays."""
    return name if len(name) == SCOPE_BYTES else account_scope(name)


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
