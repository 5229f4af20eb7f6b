"""Who owns what: the fold of all final records into balances, the same at every replica in whatever order they come.

A final record applies when its predecessor in its scope has applied, the records that it names and the charter version
that priced it have applied and every lot that it draws on suffices; until then it waits. Nothing else is checked here:
signatures, keys, clocks, enrolment are voting rules. Each condition stays true once true: a predecessor never
un-applies, and only an account's own next record can take from it. So the set of applied records does not depend on
order (spec 6.1 to 6.3). For the same reason nothing here asks which charter is in force: records name members by number
and holds name their charter version.

Should two records ever become final in one slot, more was faulty than the quorum tolerates. Then their scope is frozen:
all finals of it apply, as sums that need no order, and what an account lacks for that is its overdraft (spec 8.8).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from functools import lru_cache

from protocol.causes import get_named_records, get_outgoing
from protocol.charter import Charter, Member, decode_charter
from protocol.codec import encode
from protocol.credits import AMOUNT_MAX
from protocol.disputes import Dispute
from protocol.errors import InvalidInput
from protocol.identifiers import compute_issuance_account_id
from protocol.limits import EPOCHS_MAX
from protocol.records import (
    FREE_LOT,
    NONE,
    Amend,
    Enrol,
    Grant,
    Hold,
    Kind,
    Leave,
    Lot,
    Program,
    Reclaim,
    ReclaimRequest,
    Record,
    Reinstate,
    Rotate,
    ScopeKind,
    Settle,
    Sponsor,
    Suspend,
    Transfer,
    account_scope,
)
from protocol.states import DisputeState, EnrolmentState, Head, HoldPhase, HoldState, ProgramState, SponsorState

LOTS_PER_FACT = 512
"""An account with more lots has several facts about its balance, each of which tells how many there are."""


@lru_cache(maxsize=16)
def _read_charter(federation: bytes, encoded: bytes) -> Charter | None:
    try:
        return decode_charter(encoded, federation)
    except InvalidInput:
        return None


def read_amendment(federation: bytes, record: Record) -> Charter | None:
    """The charter that an amendment brings, or None when its bytes are none for its slot.

    Such a record is never voted for (spec 7.13); in the fold it waits for ever, as its bytes never change. Its signers
    are voters' business, like the rest of what a charter may change.
    """
    assert isinstance(record.body, Amend)
    charter = _read_charter(federation, record.body.charter)
    return charter if charter is not None and charter.version == record.sequence + 1 else None


class Ledger:
    """The state of the federation's money.

    Invariants, asserted with every record: no balance is ever below 0; only a frozen scope is overdrawn; what is taken
    is what is given (conservation: balances + escrows = issued + overdrafts).
    """

    def __init__(self, charter: Charter) -> None:
        self.charter = charter
        """The newest applied version."""
        self.charters = {charter.version: charter}
        """All versions that have applied."""
        self.caps: dict[tuple[int, int], int] = {}
        """(member, epoch) -> millicredits credited for the caps that charters named; also of members that left."""
        self.ceilings: dict[int, int] = {}
        """Every member that ever was -> its backing ceiling."""
        self.balances: dict[bytes, dict[Lot, int]] = {}
        self.heads: dict[bytes, Head] = {}
        self.programs: dict[bytes, ProgramState] = {}
        self.enrolments: dict[bytes, EnrolmentState] = {}
        self.sponsors: dict[bytes, SponsorState] = {}
        self.holds: dict[bytes, HoldState] = {}
        self.allowances: dict[tuple[bytes, bytes, bytes], int] = {}
        """(issuance account, program, enrolled account) -> millicredits granted: what voters hold a grant against."""
        self.backing: dict[tuple[int, int], int] = {}
        """(member, epoch) -> millicredits of settled work that count toward the member's cap; of these, as many as its
        ceiling lets through were credited."""
        self.requests: dict[bytes, bytes] = {}
        """Reclaim-request -> hold."""
        self.suspensions: dict[bytes, dict[bytes, int]] = {}
        """Account -> account of the member that suspended it -> last epoch of the suspension."""
        self.disputes: dict[bytes, dict[bytes, DisputeState]] = {}
        """Hold -> the records that dispute it; nothing is ever taken out, so order plays no part (spec 7.14)."""
        self.keys: dict[bytes, bytes] = {}
        """Account -> key in force, of those that rotated theirs."""
        self.tags: dict[bytes, bytes] = {}
        """Tag -> its newest enrolment."""
        self.vouchings: dict[bytes, set[int]] = {}
        """Account -> members that ever enrolled or sponsored it: who may suspend it."""
        self.frozen: set[bytes] = set()
        """Scopes in which two records became final in one slot: nobody writes there any more."""
        self.overdrafts: dict[bytes, dict[Lot, int]] = {}
        """Frozen scope of an account or a hold -> millicredits that its finals took and that were not there."""
        self.issued = self.escrowed = self.applied_count = 0
        self._waiting: dict[bytes, dict[bytes, Record]] = {}
        """Scope -> final records that can't apply yet, by id."""
        self._blocked_by: dict[bytes, list[bytes]] = {}
        for member in charter.fields.members:
            self._apply_limits(member, [])

    # -- reading ------------------------------------------------------------------------------------------------

    def get_balance(self, account: bytes, lot: Lot) -> int:
        """Millicredits of one lot; 0 for what was never heard of."""
        return self.balances.get(account, {}).get(lot, 0)

    def get_next_sequence(self, scope: bytes) -> int:
        """The lowest slot of the scope in which nothing has applied."""
        head = self.heads.get(scope)
        return head.sequence + 1 if head else 0

    def is_decided(self, scope: bytes, sequence: int) -> bool:
        """True when a record in this slot has applied, or is final and waits; and for all slots of a frozen scope."""
        head = self.heads.get(scope)
        if scope in self.frozen or (head is not None and sequence <= head.sequence):
            return True
        return any(record.sequence == sequence for record in self._waiting.get(scope, {}).values())

    def is_funded(self, account: bytes, outgoing: dict[Lot, int]) -> bool:
        """True when every lot suffices."""
        lots = self.balances.get(account, {})
        return all(lots.get(lot, 0) >= amount for lot, amount in outgoing.items())

    def is_known(self, account: bytes) -> bool:
        """True for members and for whoever ever received credits or was vouched for: only they take up slots."""
        return account in self.balances or account in self.vouchings or account in self.charter.member_accounts

    def is_applied(self, kind: Kind, record_id: bytes) -> bool:
        """True when the program, enrolment, sponsor record, hold or reclaim-request with this id has applied."""
        tables: dict[Kind, Container[bytes]] = {
            Kind.PROGRAM: self.programs,
            Kind.ENROL: self.enrolments,
            Kind.SPONSOR: self.sponsors,
            Kind.HOLD: self.holds,
            Kind.RECLAIM_REQUEST: self.requests,
        }
        return record_id in tables[kind]

    def get_key(self, account: bytes) -> bytes | None:
        """The account's key in force; None when it never rotated its first one, whose hash is the account."""
        return self.keys.get(account)

    def is_suspended(self, account: bytes, epoch: int) -> bool:
        """True when some member's suspension of the account has not ended before this epoch."""
        return any(until_epoch >= epoch for until_epoch in self.suspensions.get(account, {}).values())

    def list_waiting(self) -> list[Record]:
        """Final records that wait for their predecessor, for a named record or for funds."""
        return [record for waiting in self._waiting.values() for record in waiting.values()]

    def count_waiting(self) -> int:
        """How many wait."""
        return sum(map(len, self._waiting.values()))

    # -- applying -----------------------------------------------------------------------------------------------

    def offer(self, record: Record) -> list[Record]:
        """Take in a final record and apply all that can apply now, in an order that respects causes.

        Returns what has applied. Repeating it changes nothing.
        """
        if record.sequence < self.get_next_sequence(record.scope):
            return []
        return self.take_in(record)

    def offer_rival(self, record: Record) -> list[Record]:
        """Take in a record that became final in a slot that has another final one; its scope is frozen from now on.

        Returns what has applied. Requires: it was never offered before.
        """
        if record.scope not in self.frozen:
            self._freeze(record.scope)
        return self.take_in(record)

    def take_in(self, record: Record) -> list[Record]:
        """Let a final record wait and apply all that can apply; wherever it stands in its scope."""
        self._waiting.setdefault(record.scope, {}).setdefault(record.id, record)
        applied: list[Record] = []
        ready = deque([record.scope])
        while ready:
            scope = ready.popleft()
            while (candidate := self._take_applicable(scope)) is not None:
                ready.extend([touched for touched in self._apply(candidate) if touched in self._waiting])
                applied.append(candidate)
        return applied

    def _take_applicable(self, scope: bytes) -> Record | None:
        """The scope's next record if it waits here and nothing hinders it; in a frozen scope any such record."""
        waiting = self._waiting.get(scope, {})
        for record in waiting.values():
            if (scope in self.frozen or self._is_next(record)) and self._has_all_it_names(record):
                del waiting[record.id]
                if not waiting:
                    del self._waiting[scope]
                return record
        return None

    def _is_next(self, record: Record) -> bool:
        """True when the record follows the last applied one of its scope, and the funds are there."""
        head = self.heads.get(record.scope)
        follows = (head.sequence + 1, head.record) if head else (0, NONE)
        return (record.sequence, record.prev) == follows and self.is_funded(record.account, get_outgoing(record))

    def _has_all_it_names(self, record: Record) -> bool:
        """True when what the record names has applied; else its scope is looked at again once that has."""
        for kind, name in get_named_records(record):
            if not self.is_applied(kind, name):
                self._blocked_by.setdefault(name, []).append(record.scope)
                return False
        if isinstance(record.body, Hold) and record.body.terms.charter_version not in self.charters:
            self._blocked_by.setdefault(self.charter.federation, []).append(record.scope)
            return False
        return not isinstance(record.body, Amend) or read_amendment(self.charter.federation, record) is not None

    def _freeze(self, scope: bytes) -> None:
        """Forget what hangs on the order of the scope's records: its finals apply in any order from now on."""
        self.frozen.add(scope)
        name = scope[1:]
        if scope[0] == ScopeKind.PERSON:
            self.tags.pop(name, None)
            for key, enrolment in self.enrolments.items():
                if enrolment.tag == name:
                    self.enrolments[key] = enrolment._replace(until_epoch=enrolment.from_epoch)
        if scope[0] == ScopeKind.ACCOUNT:
            self.keys.pop(name, None)
            for suspensions in self.suspensions.values():
                suspensions.pop(name, None)
            for key, hold in self.holds.items():
                if hold.payer == name:
                    self.holds[key] = hold._replace(request=NONE)

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
            case Settle() | Reclaim():
                self._end_hold(record, record.body, touched)
            case Amend():
                self._apply_amendment(record, touched)
            case _:
                self._apply_fact(record)
        assert given == taken, "conservation: a record gives what it takes"
        head = Head(record.sequence, record.id)
        self.heads[record.scope] = max(head, self.heads.get(record.scope, head))
        self.applied_count += 1
        if record.id in self._blocked_by:
            touched.extend(self._blocked_by.pop(record.id))
        return touched

    def _apply_fact(self, record: Record) -> None:
        """Records that move no money."""
        is_frozen = record.scope in self.frozen
        match record.body:
            case Leave() | Suspend() | Reinstate() | Rotate() if is_frozen:
                pass  # which of them is the last one is not decided
            case Program(member=member):
                self.programs[record.id] = ProgramState(member, record.body)
            case Sponsor(member=member, donor=donor, until_epoch=until_epoch):
                self.sponsors[record.id] = SponsorState(member, donor, until_epoch)
                self.vouchings.setdefault(donor, set()).add(member)
            case Enrol(member=member, account=account):
                self._apply_leave(record)
                begin = record.epoch + 1 if record.sequence else record.epoch
                end = begin if is_frozen else 0
                self.enrolments[record.id] = EnrolmentState(record.account, member, account, begin, end)
                if not is_frozen:
                    self.tags[record.account] = record.id
                self.vouchings.setdefault(account, set()).add(member)
            case Leave():
                self._apply_leave(record)
            case ReclaimRequest(hold=hold):
                self.requests[record.id] = hold
                state = self.holds[hold]
                if state.payer == record.account and not state.request and not is_frozen:
                    self.holds[hold] = state._replace(request=record.id)
            case Suspend(account=account, until_epoch=until_epoch):
                self.suspensions.setdefault(account, {})[record.account] = until_epoch
            case Reinstate(account=account):
                self.suspensions.get(account, {}).pop(record.account, None)
            case Rotate(key=key):
                self.keys[record.account] = key
            case Dispute(hold=hold) as body:
                self.disputes.setdefault(hold, {})[record.id] = DisputeState(record.account, record.epoch, *body[1:])

    def _apply_leave(self, record: Record) -> None:
        """The tag's enrolment before, if it has not ended yet, counts to the end of this epoch (spec 7.9)."""
        before = self.tags.get(record.account)
        if before is not None and not self.enrolments[before].until_epoch:
            self.enrolments[before] = self.enrolments[before]._replace(until_epoch=record.epoch)

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
        state = HoldState(record.account, body.payee, body.draws, body.terms, record.epoch)
        self.holds[record.id] = state
        self.escrowed += state.amount
        return state.amount

    def _end_hold(self, record: Record, body: Settle | Reclaim, touched: list[bytes]) -> None:
        """Pay from the escrow in the order of the hold's draws; what is left returns to the lots it came from."""
        hold = self.holds[record.account]
        assert hold.is_open or record.scope in self.frozen, "a hold has one slot"
        paid = min(body.amount, hold.amount) if isinstance(body, Settle) else 0
        due, backed = paid, 0
        sponsor = self.sponsors[hold.terms.sponsor]
        for draw in hold.draws:
            part = min(due, draw.amount)
            due -= part
            program = self.programs.get(draw.program)
            if program is not None and program.member != sponsor.member:
                backed += part
            if draw.amount > part:
                self._credit(hold.payer, Lot(draw.program, draw.expiry_epoch), draw.amount - part)
        gift = 0
        if isinstance(body, Settle) and body.gift_program and (gift := min(body.gift_amount, paid)):
            account = self._get_issuance_account(self.programs[body.gift_program].member, record.epoch)
            self._credit(account, FREE_LOT, gift)
            touched.append(account_scope(account))
        if paid > gift:
            self._credit(hold.payee, FREE_LOT, paid - gift)
        if hold.is_open:
            self.escrowed -= hold.amount
        else:
            for draw in hold.draws:
                self._overdraw(record.scope, Lot(draw.program, draw.expiry_epoch), draw.amount)
        is_settled = isinstance(body, Settle) or hold.phase is HoldPhase.SETTLED
        phase = HoldPhase.SETTLED if is_settled else HoldPhase.RECLAIMED
        end_epoch = max(record.epoch, hold.end_epoch)
        self.holds[record.account] = hold._replace(phase=phase, paid=hold.paid + paid, end_epoch=end_epoch)
        touched.extend((account_scope(hold.payer), account_scope(hold.payee)))
        permille = self.charters[hold.terms.charter_version].policy.backing_permille
        self._apply_backing(sponsor.member, record.epoch + 1, backed * permille // 1000, touched)

    def _apply_backing(self, member: int, epoch: int, amount: int, touched: list[bytes]) -> None:
        """Delivered compute raises the sponsor's next cap: min(ceiling, sum), so order plays no part (spec 7.8).

        The sum stops at what an integer can hold; it is no less a sum in every order for that.
        """
        if not amount or epoch > EPOCHS_MAX:
            return
        before, ceiling = self.backing.get((member, epoch), 0), self.ceilings.get(member, 0)
        after = min(before + amount, AMOUNT_MAX)
        self.backing[member, epoch] = after
        self._issue(member, epoch, min(after, ceiling) - min(before, ceiling), touched)

    def _apply_amendment(self, record: Record, touched: list[bytes]) -> None:
        """A new charter; holds that it priced may have waited for it."""
        charter = read_amendment(self.charter.federation, record)
        assert charter is not None
        self.charter = self.charters[charter.version] = charter
        for member in charter.fields.members:
            self._apply_limits(member, touched)
        touched.extend(self._blocked_by.pop(charter.federation, ()))

    def _apply_limits(self, member: Member, touched: list[bytes]) -> None:
        """Credit what a charter names beyond what was named before. Nothing is ever taken back (spec 7.13)."""
        number = member.number
        for epoch, cap in enumerate(member.issuance_caps, start=1):
            before = self.caps.get((number, epoch), 0)
            if cap > before:
                self.caps[number, epoch] = cap
                self._issue(number, epoch, cap - before, touched)
        ceiling = self.ceilings.get(number, 0)
        self.ceilings[number] = max(ceiling, member.backing_ceiling)
        for epoch, earned in [(key[1], earned) for key, earned in self.backing.items() if key[0] == number]:
            self._issue(number, epoch, min(earned, self.ceilings[number]) - min(earned, ceiling), touched)

    def _issue(self, member: int, epoch: int, amount: int, touched: list[bytes]) -> None:
        """Make new credits: the one place where any come from."""
        if amount:
            account = self._get_issuance_account(member, epoch)
            self._credit(account, FREE_LOT, amount)
            self.issued += amount
            touched.append(account_scope(account))

    def _get_issuance_account(self, member: int, epoch: int) -> bytes:
        return compute_issuance_account_id(self.charter.federation, member, epoch)

    def _credit(self, account: bytes, lot: Lot, amount: int) -> None:
        lots = self.balances.setdefault(account, {})
        if self.overdrafts:
            amount = self._pay_back(account_scope(account), lot, amount)
        if amount:
            lots[lot] = lots.get(lot, 0) + amount

    def _debit(self, account: bytes, lot: Lot, amount: int) -> None:
        lots = self.balances.get(account, {})
        rest = lots.pop(lot, 0) - amount
        if rest > 0:
            lots[lot] = rest
        if rest < 0:
            self._overdraw(account_scope(account), lot, -rest)

    def _overdraw(self, scope: bytes, lot: Lot, amount: int) -> None:
        """A frozen account, or hold, lacks what its finals took."""
        assert scope in self.frozen, "no balance below 0"
        lots = self.overdrafts.setdefault(scope, {})
        lots[lot] = lots.get(lot, 0) + amount

    def _pay_back(self, scope: bytes, lot: Lot, amount: int) -> int:
        """What comes in covers the overdraft first; returns what is left of it."""
        owed = self.overdrafts.get(scope, {})
        rest = owed.pop(lot, 0) - amount
        if rest > 0:
            owed[lot] = rest
        return max(0, -rest)

    # -- auditing -----------------------------------------------------------------------------------------------

    def check_conservation(self) -> None:
        """Assert, over the whole state, that balances + escrows = issued + overdrafts and that nothing is negative."""
        amounts = [amount for lots in self.balances.values() for amount in lots.values()]
        assert all(amount > 0 for amount in amounts)
        held = sum(hold.amount for hold in self.holds.values() if hold.is_open)
        assert held == self.escrowed
        lacking = sum(amount for lots in self.overdrafts.values() for amount in lots.values())
        assert sum(amounts) + held == self.issued + lacking, "conservation: balances + escrows = issued + overdrafts"

    def compute_facts(self) -> list[bytes]:
        """The state as a list of facts, from which it can be restored: a function of the applied and waiting records
        alone. `snapshot.py` reads them back (spec 6.5)."""
        facts: list[tuple[object, ...]] = [("charter", charter.encoded) for charter in self.charters.values()]
        facts.append(("applied", self.applied_count))
        for account, lots in self.balances.items():
            ordered = [(*lot, amount) for lot, amount in sorted(lots.items())]
            parts = [tuple(ordered[i : i + LOTS_PER_FACT]) for i in range(0, len(ordered), LOTS_PER_FACT)] or [()]
            facts += [("balance", account, number, len(parts), part) for number, part in enumerate(parts)]
        facts += [("head", scope, *head) for scope, head in self.heads.items()]
        facts += [("program", key, state.member, state.body) for key, state in self.programs.items()]
        facts += [("enrolment", key, *state) for key, state in self.enrolments.items()]
        facts += [("sponsor", key, *state) for key, state in self.sponsors.items()]
        facts += [("hold", key, *hold[:5], int(hold.phase), *hold[6:]) for key, hold in self.holds.items()]
        facts += [("allowance", *key, amount) for key, amount in self.allowances.items()]
        facts += [("backing", *key, amount) for key, amount in self.backing.items()]
        facts += [("cap", *key, amount) for key, amount in self.caps.items()]
        facts += [("ceiling", *item) for item in self.ceilings.items()]
        facts += [("request", *item) for item in self.requests.items()]
        facts += [("suspension", account, *item) for account, ends in self.suspensions.items() for item in ends.items()]
        facts += [("dispute", hold, key, *it) for hold, found in self.disputes.items() for key, it in found.items()]
        facts += [("key", *item) for item in self.keys.items()]
        facts += [("tag", *item) for item in self.tags.items()]
        facts += [("frozen", scope) for scope in self.frozen]
        facts += [("overdraft", scope, *lot, n) for scope, lots in self.overdrafts.items() for lot, n in lots.items()]
        for record in self.list_waiting():
            # Without the signatures: they are no part of the id, and who came first with which is chance.
            facts.append(("waiting", record.encoded.removesuffix(record.signature_tail), len(record.signatures)))
        return list(map(encode, facts))
