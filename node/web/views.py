"""The ledger in the shapes that people and programs read (`node/api.py`): nothing is decided here.

All of it is public, and all that counts carries its proof: the founding document, canonical bytes, receipts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple

from node import api, job_api
from node.addresses import Kind as AddressKind
from node.addresses import encode_address
from node.evidence import describe_verdict, list_accounts
from node.member import LedgerMember
from node.web.costly import CostlyView
from protocol.attempts import FIRST_ROUND
from protocol.charter import find_member
from protocol.disputes import DisputeReason
from protocol.identifiers import Slot
from protocol.messages import compute_frontier_digest
from protocol.records import Kind, Record, ScopeKind, Settle, Suspend, account_scope, hold_scope
from protocol.rules import find_turn
from protocol.statements import UnlockRequest, encode_signed, is_signed_by_writer
from protocol.states import HoldPhase, HoldState, ProgramState

JOBS_MAX = 500
"""Newest jobs in one list."""

_ACCOUNT_FIELDS = frozenset({"account", "payee", "donor"})
_PROGRAM_FIELDS = frozenset({"program", "gift_program"})
_RECORD_FIELDS = frozenset({"enrolment", "sponsor", "hold", "request"})


def name_account(account: bytes) -> str:
    """An account's address."""
    return encode_address(AddressKind.ACCOUNT, account)


def name_record(record_id: bytes) -> str:
    """A record's id as text; a hold's too."""
    return encode_address(AddressKind.RECORD, record_id)


def name_program(program: bytes) -> str:
    """A program's id as text."""
    return encode_address(AddressKind.PROGRAM, program)


def describe_body(content: Any, field: str = "") -> Any:
    """A record's body for reading: field names, ids as text, bytes in hex."""
    if isinstance(content, bytes):
        if not content:
            return None
        if field in _ACCOUNT_FIELDS:
            return name_account(content)
        if field in _PROGRAM_FIELDS:
            return name_program(content)
        return name_record(content) if field in _RECORD_FIELDS else content.hex()
    if isinstance(content, tuple):
        if hasattr(content, "_fields"):
            fields = zip(content._fields, content, strict=True)
            return {name: describe_body(value, name) for name, value in fields}
        return [describe_body(value, field) for value in content]
    return content


_HOLD_STATES: dict[HoldPhase, Literal["HELD", "SETTLED", "RECLAIMED"]] = {
    HoldPhase.OPEN: "HELD",
    HoldPhase.SETTLED: "SETTLED",
    HoldPhase.RECLAIMED: "RECLAIMED",
}


class _Digests(NamedTuple):
    state_root: str
    frontier: str


class LedgerViews:
    """Reads one member's replica; every method is one moment's state."""

    def __init__(self, member: LedgerMember, clock: Callable[[], float]) -> None:
        self._member = member
        self._clock = clock
        self._ledger = member.replica.ledger
        self._digests = CostlyView(self._compute_digests, clock)
        self._evidence = CostlyView(self._find_evidence, clock)
        self._evidence_seen: dict[str, int] = {}
        self._enrolments_of: dict[bytes, list[bytes]] = {}
        self._enrolments_read = 0
        self._sponsors_of: dict[bytes, list[bytes]] = {}
        self._sponsors_read = 0
        self._granted: dict[bytes, int] = {}
        self._granted_at = -1
        self._open_records: dict[bytes, list[Record]] = {}
        self._open_at = (-1, -1)

    @property
    def epoch(self) -> int:
        """The epoch now; 0 before the federation's first."""
        return self._member.charter.compute_epoch(int(self._clock()))

    def build_status(self, version: str, peers: Sequence[api.Peer], bytes_received: dict[str, int]) -> api.Status:
        """How this node stands. The root and the frontier are of one moment, which may lie a little back."""
        member, replica = self._member, self._member.replica
        digests = self._digests.read(len(replica.entries))
        return api.Status(
            version=version,
            federation=encode_address(AddressKind.FEDERATION, member.charter.federation),
            member=member.number,
            name=self._find_own_name(),
            epoch=self.epoch,
            batches=len(replica.entries),
            records_final=replica.final_count,
            records_waiting=self._ledger.count_waiting(),
            state_root=digests.state_root,
            frontier=digests.frontier,
            peers=list(peers),
            forked_members=sorted(replica.forked_members),
            charter_version=replica.version,
            notice=member.signing.find_obstacle() or "",
            bytes_received=bytes_received,
            frozen_count=len(self._ledger.frozen),
            evidence=[evidence.text for evidence in self.list_evidence()],
        )

    def _find_own_name(self) -> str:
        """Our name in the version in force or, when that does not name us, in the latest that does."""
        own = self._member.charter.members.get(self._member.number)
        own = own or find_member(self._ledger.charters, self._member.number)
        return own.name if own is not None else ""

    def _compute_digests(self) -> _Digests:
        replica = self._member.replica
        return _Digests(replica.compute_state_root().hex(), compute_frontier_digest(replica).hex())

    def list_evidence(self) -> list[api.Evidence]:
        """The proofs of wrongdoing that this node's batches hold; like the root, they may lie a little back."""
        return self._evidence.read(len(self._member.replica.entries))

    def _find_evidence(self) -> list[api.Evidence]:
        charters, found = self._ledger.charters, []
        for encoded, verdict in self._member.archive.find_evidence():
            name = verdict.compute_name().hex()
            found.append(
                api.Evidence(
                    id=name,
                    kind=verdict.kind.name.lower(),
                    members=list(verdict.members),
                    accounts=list_accounts(self._member.replica.federation, verdict),
                    text=describe_verdict(charters, verdict),
                    seen_seconds=self._evidence_seen.get(name, int(self._clock())),
                    encoded=encoded,
                )
            )
        self._evidence_seen = {evidence.id: evidence.seen_seconds for evidence in found}
        return found

    def build_account(self, account: bytes) -> api.Account:
        """What an account holds; one that was never heard of is empty, not missing."""
        self._read_indexes()
        ledger, epoch = self._ledger, self.epoch
        scope = account_scope(account)
        head = ledger.heads.get(scope)
        lots = [
            api.Lot(
                program=name_program(lot.program) if lot.program else None,
                program_name=ledger.programs[lot.program].body.name if lot.program in ledger.programs else "",
                expiry_epoch=lot.expiry_epoch,
                millicredits=amount,
            )
            for lot, amount in sorted(ledger.balances.get(account, {}).items())
            if amount
        ]
        enrolments = ((record, ledger.enrolments[record]) for record in self._enrolments_of.get(account, ()))
        sponsors = ((record, ledger.sponsors[record]) for record in self._sponsors_of.get(account, ()))
        return api.Account(
            address=name_account(account),
            epoch=epoch,
            next_sequence=head.sequence + 1 if head else 0,
            head=name_record(head.record) if head else None,
            millicredits=sum(lot.millicredits for lot in lots if not 0 < lot.expiry_epoch < epoch),
            lots=lots,
            enrolments=[
                api.Enrolment(name_record(record), state.member, state.until_epoch, self._name_member(state.member))
                for record, state in enrolments
            ],
            sponsorships=[
                api.Sponsorship(name_record(record), state.member, state.until_epoch) for record, state in sponsors
            ],
            key=ledger.get_key(account),
            suspensions=self._describe_suspensions(account),
            is_frozen=scope in ledger.frozen,
            overdraft_millicredits=sum(ledger.overdrafts.get(scope, {}).values()),
            pending=[
                name_record(record.id)
                for record in (*self._list_open_records(scope), *self._member.submissions.list_of(account))
            ],
        )

    def _name_member(self, number: int) -> str:
        """Its name in the newest version that knows it; nothing when none does."""
        member = find_member(self._ledger.charters, number)
        return member.name if member else ""

    def list_suspensions(self) -> list[api.Suspension]:
        """Every suspension that lasts, of any member."""
        return [entry for account in self._ledger.suspensions for entry in self._describe_suspensions(account)]

    def _describe_suspensions(self, account: bytes) -> list[api.Suspension]:
        """Those that last; reason and appeal as far as this node has the record."""
        charter, found = self._ledger.charter, []
        for member_account, until_epoch in self._ledger.suspensions.get(account, {}).items():
            if until_epoch < self.epoch:
                continue
            name = self._member.history.suspensions.get((account, member_account))
            record = self._member.get_record(name) if name is not None else None
            body = record.body if record is not None and isinstance(record.body, Suspend) else None
            number = charter.member_accounts.get(member_account, 0)
            found.append(
                api.Suspension(
                    account=name_account(account),
                    member=number,
                    member_name=charter.members[number].name if number else "a member that left",
                    until_epoch=until_epoch,
                    reason=body.reason if body else 0,
                    appeal=body.appeal if body else "",
                    evidence=(body.evidence.hex() or None) if body else None,
                    record=name_record(record.id) if record else None,
                    until_seconds=charter.compute_epoch_end(until_epoch),
                )
            )
        return found

    def _read_indexes(self) -> None:
        """Take in what has applied since the last call: both tables only grow, in the order of application."""
        for record, enrolment in islice(self._ledger.enrolments.items(), self._enrolments_read, None):
            self._enrolments_of.setdefault(enrolment.account, []).append(record)
        self._enrolments_read = len(self._ledger.enrolments)
        for record, sponsor in islice(self._ledger.sponsors.items(), self._sponsors_read, None):
            self._sponsors_of.setdefault(sponsor.donor, []).append(record)
        self._sponsors_read = len(self._ledger.sponsors)

    def _list_open_records(self, scope: bytes) -> list[Record]:
        """Records of a scope that stand in a batch and are not final."""
        replica = self._member.replica
        moment = (len(replica.entries), replica.final_count)
        if moment != self._open_at:
            self._open_records = {}
            for introduction in replica.get_open_introductions():
                for record in introduction.records.values():
                    self._open_records.setdefault(record.scope, []).append(record)
            self._open_at = moment
        return self._open_records.get(scope, [])

    def build_record(self, record: Record, *, with_receipt: bool) -> api.Record:
        """A record, and how far it has come."""
        by_account = record.scope[0] == ScopeKind.ACCOUNT
        if by_account:
            name = name_account(record.account)
        else:
            name = name_record(record.account) if record.scope[0] == ScopeKind.HOLD else record.account.hex()
        return api.Record(
            id=name_record(record.id),
            kind=Kind(record.kind).name.lower(),
            epoch=record.epoch,
            account=name,
            sequence=record.sequence,
            state=self._member.get_state(record.id) or "waiting",
            body=describe_body(record.body),
            encoded=record.encoded,
            receipt=self._member.build_receipt(record.id) if with_receipt else None,
        )

    def build_slot(self, account: bytes) -> api.AccountSlot:
        """An account's next slot. Only requests that its owner signed count: any member may carry any bytes."""
        scope = account_scope(account)
        slot = (scope, self._ledger.get_next_sequence(scope))
        request = self._find_last_request(slot)
        records = self._list_claims(slot)
        return api.AccountSlot(
            sequence=slot[1],
            attempt=request.attempt if request else 0,
            request=encode_signed(request) if request else None,
            records=[record.encoded for record in records],
            is_contested=request is not None or len(records) > 1,
        )

    def _find_last_request(self, slot: Slot) -> UnlockRequest | None:
        contest = self._member.replica.contests.get(slot)
        requests = sorted(contest.requests.values(), key=lambda request: -request.attempt) if contest else ()
        for request in requests:
            is_writer = find_turn(self._ledger, slot[0], request.signer) is not None
            if is_writer and is_signed_by_writer(self._member.charter.federation, request):
                return request
        return None

    def _list_claims(self, slot: Slot) -> list[Record]:
        """Records that claim an open slot: in a batch, or waiting here for one."""
        waiting = [record for record in self._member.submissions.list_of(slot[0][1:]) if record.sequence == slot[1]]
        found = {record.id: record for record in (*self._member.replica.get_claims(slot), *waiting)}
        return list(found.values())

    def build_promises(self, slot: Slot, attempt: int) -> api.Promises:
        """What members promised for an attempt, as far as a certificate that is here stands behind each report."""
        member = self._member
        promises = []
        for batch, (number, report) in member.unlocking.get_promises(slot, attempt).items():
            version, reported = report.round if report else FIRST_ROUND
            record = name_record(report.record) if report else None
            promises.append(api.SlotPromise(batch, number, record, version, reported))
        weight = sum(member.charter.weights.get(promise.member, 0) for promise in promises)
        return api.Promises(
            version=member.replica.version,
            attempt=attempt,
            is_decided=self._ledger.is_decided(*slot),
            has_quorum=weight >= member.charter.quorum,
            promises=promises,
            records=[record.encoded for record in self._list_claims(slot)],
        )

    def build_page(self, account: bytes, limit: int, before: int | None) -> api.RecordPage:
        """What touched an account, newest first."""
        ids, next_before = self._member.get_history(account, before, limit)
        records = [record for record_id in ids if (record := self._member.get_record(record_id)) is not None]
        return api.RecordPage([self.build_record(record, with_receipt=False) for record in records], next_before)

    def list_programs(self) -> list[api.Program]:
        """All compute budgets that were declared."""
        self._sum_grants()
        return [self._build_program(program, state) for program, state in self._ledger.programs.items()]

    def _build_program(self, program: bytes, state: ProgramState) -> api.Program:
        return api.Program(
            id=name_program(program),
            member=state.member,
            member_name=self._name_member(state.member),
            name=state.body.name,
            purpose=state.body.purpose,
            allowance=state.body.allowance,
            expiry_epochs=state.body.expiry_epochs,
            is_transferable=bool(state.body.is_transferable),
            job_classes=list(state.body.job_classes),
            granted=self._granted.get(program, 0),
        )

    def _sum_grants(self) -> None:
        if self._granted_at == self._ledger.applied_count:
            return
        self._granted = {}
        for (_, program, _), amount in self._ledger.allowances.items():
            self._granted[program] = self._granted.get(program, 0) + amount
        self._granted_at = self._ledger.applied_count

    def list_jobs(self) -> list[job_api.Job]:
        """The newest jobs."""
        newest = islice(reversed(self._ledger.holds.items()), JOBS_MAX)
        return [self._build_job(hold, state) for hold, state in newest]

    def build_job(self, hold: bytes) -> job_api.Job | None:
        """One job, named by its hold."""
        state = self._ledger.holds.get(hold)
        return None if state is None else self._build_job(hold, state)

    def _build_job(self, hold: bytes, state: HoldState) -> job_api.Job:
        receipts = list(self._find_job_receipt(hold))
        end = self._ledger.heads.get(hold_scope(hold))
        return job_api.Job(
            hold=name_record(hold),
            payer=name_account(state.payer),
            payee=name_account(state.payee),
            job_class=state.terms.job_class,
            epoch=state.epoch,
            held=state.amount,
            paid=None if state.is_open else state.paid,
            state=_HOLD_STATES[state.phase],
            quote=state.terms.quote.hex(),
            receipt=receipts[0].hex() if receipts else None,
            ended_by=name_record(end.record) if end else None,
            grace_seconds=state.terms.grace_seconds,
            reclaim_request=name_record(state.request) if state.request else None,
            reclaim_seconds_left=self._member.running_clock.compute_seconds_left(state.request),
            end_epoch=state.end_epoch,
            disputes=[
                job_api.Dispute(
                    record=name_record(record),
                    by="payer" if dispute.account == state.payer else "payee",
                    account=name_account(dispute.account),
                    reason=DisputeReason(dispute.reason).name.lower(),
                    evidence=dispute.evidence.hex(),
                    epoch=dispute.epoch,
                )
                for record, dispute in sorted(self._ledger.disputes.get(hold, {}).items())
            ],
        )

    def _find_job_receipt(self, hold: bytes) -> Iterator[bytes]:
        head = self._ledger.heads.get(hold_scope(hold))
        record = self._member.get_record(head.record) if head else None
        if record is not None and isinstance(record.body, Settle) and record.body.job_receipt:
            yield record.body.job_receipt
