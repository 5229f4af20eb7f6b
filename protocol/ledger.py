"""Who owns what: the fold of all final records into balances, the same at every replica in whatever order they come.

A final record applies when its predecessor in its scope has applied, the records that it names have applied and every
lot that it draws on suffices; until then it waits. Nothing else is checked here: signatures, keys, clocks, enrolment
are voting rules. Each condition stays true once true: a predecessor never un-applies, and only an account's own next
record can take from it. So the set of applied records does not depend on order (spec 6.1 to 6.3).
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from protocol.charter import Charter
from protocol.codec import encode
from protocol.identifiers import Tag
from protocol.limits import EPOCHS_MAX
from protocol.merkle import compute_leaf, compute_root
from protocol.records import (
    FREE_LOT,
    NONE,
    Draw,
    Enrol,
    Grant,
    Hold,
    Kind,
    Lot,
    Program,
    Record,
    Settle,
    Sponsor,
    Terms,
    Transfer,
    account_scope,
    get_named_records,
    get_outgoing,
)

NO_MEMBER = 0
"""Stands where a member's number is expected and the writer was none. Voters never let such a record pass; the fold
is total all the same."""


class Head(NamedTuple):
    """The last applied slot of a scope."""

    sequence: int
    record: bytes


class ProgramState(NamedTuple):
    """An applied program and the member that declared it."""

    member: int
    body: Program


class EnrolmentState(NamedTuple):
    """An applied enrolment."""

    tag: bytes
    member: int
    account: bytes


class SponsorState(NamedTuple):
    """An applied sponsor record."""

    member: int
    donor: bytes
    until_epoch: int


class HoldState(NamedTuple):
    """A hold: its escrow while open; what was paid when settled."""

    payer: bytes
    payee: bytes
    draws: tuple[Draw, ...]
    terms: Terms
    epoch: int
    paid: int
    """-1 while open, afterwards the millicredits that the payee got or gave away."""

    @property
    def is_open(self) -> bool:
        """True until a settle has applied."""
        return self.paid < 0

    @property
    def amount(self) -> int:
        """Millicredits that were put into the escrow."""
        return sum(draw.amount for draw in self.draws)


class Ledger:
    """The state of the federation's money.

    Invariants, asserted with every record: no balance is ever below 0; what is taken is what is given
    (conservation: balances + escrows = issued).
    """

    def __init__(self, charter: Charter) -> None:
        self.charter = charter
        self.charters = {charter.version: charter}
        self.balances: dict[bytes, dict[Lot, int]] = {}
        self.heads: dict[bytes, Head] = {}
        self.programs: dict[bytes, ProgramState] = {}
        self.enrolments: dict[bytes, EnrolmentState] = {}
        self.sponsors: dict[bytes, SponsorState] = {}
        self.holds: dict[bytes, HoldState] = {}
        self.allowances: dict[tuple[bytes, bytes, bytes], int] = {}
        """(issuance account, program, enrolled account) -> millicredits granted: what voters hold a grant against."""
        self.backing: dict[tuple[int, int], int] = {}
        """(member, epoch) -> millicredits of settled work that raised the member's cap, up to its ceiling."""
        self.issued = 0
        self.escrowed = 0
        self.applied_count = 0
        self._waiting: dict[bytes, dict[int, Record]] = {}
        self._blocked_by: dict[bytes, list[bytes]] = {}
        for number, member in charter.members.items():
            for epoch, cap in enumerate(member.issuance_caps, start=1):
                if cap:
                    self._credit(charter.get_issuance_account(number, epoch), FREE_LOT, cap)
                    self.issued += cap

    # -- reading ------------------------------------------------------------------------------------------------

    def get_balance(self, account: bytes, lot: Lot) -> int:
        """Millicredits of one lot; 0 for what was never heard of."""
        return self.balances.get(account, {}).get(lot, 0)

    def get_next_sequence(self, scope: bytes) -> int:
        """The lowest slot of the scope in which nothing has applied."""
        head = self.heads.get(scope)
        return head.sequence + 1 if head else 0

    def is_decided(self, scope: bytes, sequence: int) -> bool:
        """True when a record in this slot has applied, or is final and waits."""
        head = self.heads.get(scope)
        return (head is not None and sequence <= head.sequence) or sequence in self._waiting.get(scope, ())

    def is_funded(self, account: bytes, outgoing: dict[Lot, int]) -> bool:
        """True when every lot suffices."""
        lots = self.balances.get(account, {})
        return all(lots.get(lot, 0) >= amount for lot, amount in outgoing.items())

    def is_applied(self, kind: Kind, record_id: bytes) -> bool:
        """True when the program, enrolment, sponsor record or hold with this id has applied."""
        match kind:
            case Kind.PROGRAM:
                return record_id in self.programs
            case Kind.ENROL:
                return record_id in self.enrolments
            case Kind.SPONSOR:
                return record_id in self.sponsors
            case Kind.HOLD:
                return record_id in self.holds
        return False

    def count_waiting(self) -> int:
        """Final records that wait for their predecessor, for a named record or for funds."""
        return sum(map(len, self._waiting.values()))

    # -- applying -----------------------------------------------------------------------------------------------

    def offer(self, record: Record) -> list[Record]:
        """Take in a final record and apply all that can apply now, in an order that respects causes.

        Returns what has applied. Repeating it changes nothing.
        """
        if record.sequence < self.get_next_sequence(record.scope):
            return []
        self._waiting.setdefault(record.scope, {}).setdefault(record.sequence, record)
        applied: list[Record] = []
        ready = deque([record.scope])
        while ready:
            scope = ready.popleft()
            while (candidate := self._take_applicable(scope)) is not None:
                ready.extend(self._apply(candidate))
                applied.append(candidate)
        return applied

    def _take_applicable(self, scope: bytes) -> Record | None:
        """The scope's next record if it waits here and nothing hinders it."""
        waiting = self._waiting.get(scope)
        if not waiting:
            return None
        head = self.heads.get(scope)
        sequence = head.sequence + 1 if head else 0
        record = waiting.get(sequence)
        if record is None or record.prev != (head.record if head else NONE):
            return None
        for kind, name in get_named_records(record):
            if not self.is_applied(kind, name):
                self._blocked_by.setdefault(name, []).append(scope)
                return None
        if not self.is_funded(record.account, get_outgoing(record)):
            return None
        del waiting[sequence]
        if not waiting:
            del self._waiting[scope]
        return record

    def _apply(self, record: Record) -> list[bytes]:
        """Change the state; returns the scopes whose next record may have become applicable."""
        outgoing = get_outgoing(record)
        for lot, amount in outgoing.items():
            self._debit(record.account, lot, amount)
        taken, given = sum(outgoing.values()), 0
        touched: list[bytes] = []
        match record.body:
            case Transfer():
                given = self._apply_transfer(record.body, touched)
            case Grant():
                given = self._apply_grant(record, record.body, touched)
            case Hold():
                given = self._apply_hold(record, record.body)
            case Settle():
                self._apply_settle(record, record.body, touched)
            case Program():
                member = self.charter.member_accounts.get(record.account, NO_MEMBER)
                self.programs[record.id] = ProgramState(member, record.body)
            case Enrol():
                tag = record.account
                self.enrolments[record.id] = EnrolmentState(tag, record.body.member, record.body.account)
            case Sponsor():
                member = self.charter.member_accounts.get(record.account, NO_MEMBER)
                self.sponsors[record.id] = SponsorState(member, record.body.donor, record.body.until_epoch)
        assert given == taken, "conservation: a record gives what it takes"
        self.heads[record.scope] = Head(record.sequence, record.id)
        self.applied_count += 1
        if record.id in self._blocked_by:
            touched.extend(self._blocked_by.pop(record.id))
        return touched

    def _apply_transfer(self, body: Transfer, touched: list[bytes]) -> int:
        given = 0
        for account, program, expiry_epoch, amount in body.outputs:
            self._credit(account, Lot(program, expiry_epoch), amount)
            touched.append(account_scope(account))
            given += amount
        return given

    def _apply_grant(self, record: Record, body: Grant, touched: list[bytes]) -> int:
        given = 0
        lot = Lot(body.program, body.expiry_epoch)
        for _, account, amount in body.outputs:
            self._credit(account, lot, amount)
            touched.append(account_scope(account))
            key = (record.account, body.program, account)
            self.allowances[key] = self.allowances.get(key, 0) + amount
            given += amount
        return given

    def _apply_hold(self, record: Record, body: Hold) -> int:
        state = HoldState(record.account, body.payee, body.draws, body.terms, record.epoch, -1)
        self.holds[record.id] = state
        self.escrowed += state.amount
        return state.amount

    def _apply_settle(self, record: Record, body: Settle, touched: list[bytes]) -> None:
        """Pay from the escrow in the order of the hold's draws; what is left returns to the lots it came from."""
        hold = self.holds[record.account]
        assert hold.is_open, "a hold has one slot"
        paid = min(body.amount, hold.amount)
        due = paid
        backed = 0
        sponsor = self.sponsors[hold.terms.sponsor]
        for draw in hold.draws:
            part = min(due, draw.amount)
            due -= part
            program = self.programs.get(draw.program)
            if program is not None and program.member != sponsor.member:
                backed += part
            if draw.amount > part:
                self._credit(hold.payer, Lot(draw.program, draw.expiry_epoch), draw.amount - part)
        gift_member = self.programs[body.gift_program].member if body.gift_program else NO_MEMBER
        gift = min(body.gift_amount, paid) if gift_member in self.charter.members else 0
        if gift:
            account = self.charter.get_issuance_account(gift_member, record.epoch)
            self._credit(account, FREE_LOT, gift)
            touched.append(account_scope(account))
        if paid > gift:
            self._credit(hold.payee, FREE_LOT, paid - gift)
        self.escrowed -= hold.amount
        self.holds[record.account] = hold._replace(paid=paid)
        touched.extend((account_scope(hold.payer), account_scope(hold.payee)))
        self._apply_backing(sponsor.member, record.epoch + 1, backed, touched)

    def _apply_backing(self, member: int, epoch: int, amount: int, touched: list[bytes]) -> None:
        """Delivered compute raises the sponsor's next cap: min(ceiling, sum), so order plays no part (spec 7.8)."""
        counted = amount * self.charter.policy.backing_permille // 1000
        if not counted or member not in self.charter.members or epoch > EPOCHS_MAX:
            return
        before = self.backing.get((member, epoch), 0)
        after = min(self.charter.members[member].backing_ceiling, before + counted)
        raised = after - before
        if raised:
            self.backing[member, epoch] = after
            account = self.charter.get_issuance_account(member, epoch)
            self._credit(account, FREE_LOT, raised)
            self.issued += raised
            touched.append(account_scope(account))

    def _credit(self, account: bytes, lot: Lot, amount: int) -> None:
        lots = self.balances.setdefault(account, {})
        lots[lot] = lots.get(lot, 0) + amount

    def _debit(self, account: bytes, lot: Lot, amount: int) -> None:
        lots = self.balances[account]
        rest = lots[lot] - amount
        assert rest >= 0, "no balance below 0"
        if rest:
            lots[lot] = rest
        else:
            del lots[lot]

    # -- auditing -----------------------------------------------------------------------------------------------

    def check_conservation(self) -> None:
        """Assert, over the whole state, that balances + escrows = issued and that nothing is negative."""
        amounts = [amount for lots in self.balances.values() for amount in lots.values()]
        assert all(amount > 0 for amount in amounts)
        held = sum(hold.amount for hold in self.holds.values() if hold.is_open)
        assert held == self.escrowed
        assert sum(amounts) + held == self.issued, "conservation: balances + escrows = issued"

    def compute_state_leaves(self) -> list[bytes]:
        """The leaves of the state root, sorted: each says one fact of the state (spec 6.5)."""
        facts: list[tuple[object, ...]] = [("charter", self.charter.encoded)]
        for account, lots in self.balances.items():
            facts += [("balance", account, *lot, amount) for lot, amount in lots.items()]
        facts += [("head", scope, *head) for scope, head in self.heads.items()]
        facts += [("program", key, state.member) for key, state in self.programs.items()]
        facts += [("enrolment", key, *state) for key, state in self.enrolments.items()]
        facts += [("sponsor", key, *state) for key, state in self.sponsors.items()]
        facts += [("hold", key, hold.payer, hold.payee, hold.paid + 1) for key, hold in self.holds.items()]
        facts += [("allowance", *key, amount) for key, amount in self.allowances.items()]
        facts += [("backing", *key, amount) for key, amount in self.backing.items()]
        for scope, waiting in self._waiting.items():
            facts += [("waiting", scope, sequence, record.id) for sequence, record in waiting.items()]
        return sorted(compute_leaf(Tag.STATE_LEAF, encode(fact)) for fact in facts)

    def compute_state_root(self) -> bytes:
        """The hash of the whole state: equal exactly when two replicas agree on everything."""
        return compute_root(self.compute_state_leaves())
