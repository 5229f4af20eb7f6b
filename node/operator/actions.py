"""The acts of an institution: declare a budget, admit people to it, grant, vouch for a donor.

Each act is one or more records signed by the member key. Within the member's own account and each issuance account
slots follow one another, so these are signed one at a time, each after the one before has applied; enrolments stand in
a scope of their own each and go side by side. Signed bytes are in the outbox before they are sent. Whatever is asked
twice is done once: an act whose record is on its way, or has applied, is answered with that record.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import trio

from node import api
from node.addresses import Kind as AddressKind
from node.addresses import decode_address, encode_address
from node.errors import UserError
from node.keystore import Key
from node.member import LedgerMember
from node.operator.grants import GrantPlan, plan_grant
from node.operator.outbox import Outbox
from node.storage.store import StoredRequest
from node.submissions import Busy
from node.terminal import format_moment
from protocol.budgets import BudgetRequest, decode_budget_request
from protocol.charter import Charter, find_member
from protocol.credits import AMOUNT_MAX, format_credits
from protocol.errors import WAITING_REASONS, Reason, Rejected
from protocol.limits import (
    EPOCHS_MAX,
    JOB_CLASS_BYTES_MAX,
    JOB_CLASSES_MAX,
    NAME_BYTES_MAX,
    OUTPUTS_MAX,
    PURPOSE_BYTES_MAX,
)
from protocol.records import Body, Grant, Kind, Program, Record, RecordDraft, Sponsor, account_scope
from protocol.rules import check_record
from protocol.signatures import NO_SIGNATURE

log = logging.getLogger("allmende.operator")

FINAL_SECONDS = 20.0
"""How long an act waits for a quorum; after that it goes on by itself."""
ACT_SECONDS_MAX = 60.0
"""How long an act of many records goes on; a client gives up after two minutes."""
RESUME_SECONDS = 30.0
"""How often what is on its way is sent again."""
_CHECKPOINT_REQUESTS = 64

LATER = "Not final yet: it is sent again by itself until a quorum of members answers."


class OperatorActions:
    """What one member may do with its member key.

    Invariants: of our own records at most one is on its way in an account; its bytes are in the outbox.
    """

    def __init__(
        self, member: LedgerMember, member_key: Key, outbox: Outbox, final_seconds: float = FINAL_SECONDS
    ) -> None:
        """`member_key` is the private key of the charter's member key; `final_seconds` bounds the wait for a quorum."""
        self.member = member
        self.outbox = outbox
        self._ledger = member.replica.ledger
        self.key = member_key
        self._final_seconds = final_seconds
        self.public_key = member_key.public_key
        self.account = self._charter.get_member_account(member.number)
        self.turn = trio.Lock()

    @property
    def _charter(self) -> Charter:
        """The newest version: by it records are judged."""
        return self._ledger.charter

    # -- sending again ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Endless: from the start on, send again what was signed and is not final."""
        while True:
            await self.resume()
            await trio.sleep(RESUME_SECONDS)

    async def resume(self) -> None:
        """Send everything that is on its way once more, the very same bytes, and forget what has become final."""
        for record in self.outbox.get_pending():
            try:
                await self.settle(record, 0)
            except (Rejected, UserError) as error:
                log.warning("%s of ours is not taken: %s", _describe(record), error)

    async def settle(self, record: Record, timeout_seconds: float | None = None) -> api.Submitted:
        """Hand in a record that lies in the outbox and wait for a quorum; the answer says how far it came.

        A record that is refused for good before anybody but us has seen it leaves the outbox: its slot is free.
        Raises: Rejected then.
        """
        try:
            self._check_not_overtaken(record)
            await self.member.submit(record.encoded)
            wait_seconds = self._final_seconds if timeout_seconds is None else timeout_seconds
            await self.member.wait_final(record.id, wait_seconds)
        except Rejected as rejection:
            if not self.member.replica.is_final(record.id) and rejection.reason not in WAITING_REASONS:
                if self.member.replica.locate(record.id) is None or rejection.reason is Reason.SLOT_TAKEN:
                    self.outbox.remove(record)
                raise
        except Busy:
            log.info("this node is busy; %s of ours is sent again later", _describe(record))
        submitted = self.describe_state(record.id)
        if submitted.state in ("final", "applied"):
            self._mark_approved(record)
            self.outbox.remove(record)
        return submitted

    def _check_not_overtaken(self, record: Record) -> None:
        is_past = record.sequence < self._ledger.get_next_sequence(record.scope)
        if is_past and not self.member.replica.is_final(record.id):
            raise Rejected(
                Reason.SLOT_TAKEN, "another record became final in its place: is the member key used elsewhere?"
            )

    def describe_state(self, record_id: bytes) -> api.Submitted:
        """How far a record has come."""
        state = self.member.get_state(record_id) or "waiting"
        receipt = self.member.build_receipt(record_id)
        return api.Submitted(encode_address(AddressKind.RECORD, record_id), state, receipt)

    # -- signing ------------------------------------------------------------------------------------------------

    def compute_epoch(self) -> int:
        """The epoch that runs. Raises: UserError after the last one."""
        epoch = self.member.compute_open_epochs()[-1]
        if epoch > EPOCHS_MAX:
            raise UserError(f"the charter's {EPOCHS_MAX} epochs are over: found a federation anew")
        return epoch

    def draft(self, kind: Kind, epoch: int, scope: bytes, bodies: Sequence[Body]) -> list[RecordDraft]:
        """One draft of ours for each body, in the scope's next slots, each naming the one before."""
        head = self._ledger.heads.get(scope)
        sequence, prev = (head.sequence + 1, head.record) if head else (0, b"")
        drafts = []
        for body in bodies:
            drafts.append(RecordDraft(kind, epoch, scope, sequence, prev, body, (self.public_key,)))
            sequence, prev = sequence + 1, drafts[-1].compute_id(self._charter.federation)
        return drafts

    def check(self, draft: RecordDraft) -> None:
        """Raises: Rejected when no correct member would vote for it, which is known before anything is signed."""
        unsigned = draft.assemble(self._charter.federation, [NO_SIGNATURE] * len(draft.signers))
        check_record(unsigned, self._ledger, self.member.compute_circumstances())

    def check_ready(self) -> None:
        """Raises: UserError when this node signs nothing, or holds another member key than the charter's."""
        self.member.signing.check()
        own = self._charter.members.get(self.member.number)
        if own is None or own.member_key != self.public_key:
            raise UserError("the charter names another member key than member.key: put that one there and restart")

    def sign(self, draft: RecordDraft) -> Record:
        """The record that a draft of ours becomes."""
        federation = self._charter.federation
        return draft.assemble(federation, [self.key.sign(draft.compute_id(federation))])

    async def _finish_earlier(self, account: bytes) -> None:
        """Raises: UserError while an earlier record of the account is not final."""
        earlier = self.outbox.find(account_scope(account))
        if earlier is None:
            return
        submitted = await self.settle(earlier)
        if submitted.state != "applied":
            raise UserError(
                f"{_describe(earlier)} ({submitted.id}) was signed before and is not final yet: see with "
                "`allmende node status` whether enough members answer, and try again later"
            )

    async def _carry_out(self, drafts: Sequence[RecordDraft], dry_run: bool) -> list[api.Submitted]:
        """Sign and send drafts of one account one after the other; it ends early when one takes too long."""
        self.check(drafts[0])
        federation = self._charter.federation
        if dry_run:
            ids = [encode_address(AddressKind.RECORD, draft.compute_id(federation)) for draft in drafts]
            return [api.Submitted(record_id, "waiting", None) for record_id in ids]
        answers: list[api.Submitted] = []
        deadline = trio.current_time() + ACT_SECONDS_MAX
        for draft in drafts:
            self.check(draft)
            record = self.sign(draft)
            self.outbox.add(record)
            answers.append(await self.settle(record))
            if answers[-1].state != "applied" or trio.current_time() > deadline:
                break
        return answers

    # -- programs -----------------------------------------------------------------------------------------------

    async def create_program(self, draft: api.ProgramDraft, *, dry_run: bool = False) -> api.Signed:
        """Declare a compute budget. Raises: UserError, also when we have a program of this name; Rejected."""
        body = _build_program(draft, self.member.number)
        async with self.turn:
            self.check_ready()
            earlier = self.outbox.find(account_scope(self.account))
            if earlier is not None and earlier.body == body and not dry_run:
                return self._answer_program(body, [await self.settle(earlier)], dry_run)
            if any(
                state.member == self.member.number and state.body.name == body.name
                for state in self._ledger.programs.values()
            ):
                raise UserError(f"there is a program called {body.name!r} already: choose another name")
            if not dry_run:
                await self._finish_earlier(self.account)
            drafts = self.draft(Kind.PROGRAM, self.compute_epoch(), account_scope(self.account), [body])
            return self._answer_program(body, await self._carry_out(drafts, dry_run), dry_run)

    def _answer_program(self, body: Program, records: list[api.Submitted], dry_run: bool) -> api.Signed:
        program = encode_address(AddressKind.PROGRAM, decode_address(AddressKind.RECORD, records[0].id))
        text = f"Program {body.name}: {program}, up to {format_credits(body.allowance)} credits a person and epoch."
        return answer(records, text, dry_run)

    def _get_own_program(self, program: bytes) -> Program:
        state = self._ledger.programs.get(program)
        if state is None:
            raise UserError("this node knows no such program: see `allmende program ls`")
        if state.member != self.member.number:
            member = find_member(self._ledger.charters, state.member)
            owner = member.name if member is not None else f"member {state.member}"
            raise UserError(f"the program {state.body.name} is {owner}'s: only {owner} gives from it")
        return state.body

    # -- people -------------------------------------------------------------------------------------------------

    async def list_budget_requests(self, program: str | None = None) -> list[api.BudgetRequest]:
        """Who asked us for a budget, open and approved, in the order in which they came."""
        program_id = None if program is None else decode_address(AddressKind.PROGRAM, program)
        answers = []
        for count, stored in enumerate(self.member.store.list_budget_requests(program_id)):
            if count % _CHECKPOINT_REQUESTS == 0:
                await trio.lowlevel.checkpoint()
            request = decode_budget_request(self._charter, stored.encoded)
            answers.append(
                api.BudgetRequest(
                    encode_address(AddressKind.RECORD, stored.id),
                    encode_address(AddressKind.PROGRAM, stored.program),
                    encode_address(AddressKind.ACCOUNT, stored.account),
                    request.text,
                    "approved" if stored.is_approved else "open",
                )
            )
        return answers

    async def approve(self, request_id: str, *, dry_run: bool = False) -> api.Signed:
        """Admit the person who asked: complete the enrolment, or use the one that the account has with us.

        Raises: UserError; Rejected.
        """
        stored, request = self._find_request(request_id)
        program = self._get_own_program(stored.program)
        person = encode_address(AddressKind.ACCOUNT, stored.account)
        async with self.turn:
            self.check_ready()
            enrolment = self._find_enrolments(None).get(stored.account)
            if enrolment is not None:
                if not dry_run:
                    self.member.store.mark_approved(stored.id)
                text = f"{person} is enrolled with us and takes part in {program.name}."
                return answer([self.describe_state(enrolment)], text, dry_run)
            draft = request.build_enrolment(self._charter)
            record = self._find_enrolment_on_its_way(stored.account)
            if record is None:
                self._check_enrolment(draft, request)
                record = self._complete_enrolment(draft, request)
                if not dry_run:
                    self.outbox.add(record)
        if dry_run:
            submitted = api.Submitted(encode_address(AddressKind.RECORD, record.id), "waiting", None)
        else:
            submitted = await self.settle(record)
            if submitted.state == "applied":
                self.member.store.mark_approved(stored.id)
        return answer([submitted], f"{person} is enrolled and takes part in {program.name}.", dry_run)

    def _find_request(self, text: str) -> tuple[StoredRequest, BudgetRequest]:
        stored = self.member.store.get_budget_request(decode_address(AddressKind.RECORD, text))
        if stored is None:
            raise UserError("there is no such request for a budget: see `allmende program requests`")
        return stored, decode_budget_request(self._charter, stored.encoded)

    def _check_enrolment(self, draft: RecordDraft, request: BudgetRequest) -> None:
        epochs = self.member.compute_open_epochs()
        if request.member != self.member.number:
            raise UserError("this request is addressed to another member: the person should ask that one")
        if request.epoch not in epochs:
            raise UserError(
                f"the person signed this request for epoch {request.epoch}, and now is epoch {epochs[-1]}: "
                "ask for a new request"
            )
        if self._ledger.get_next_sequence(draft.scope):
            raise UserError("the tag of this request belongs to somebody who is enrolled: ask for a new request")
        self.check(draft)

    def _complete_enrolment(self, draft: RecordDraft, request: BudgetRequest) -> Record:
        """The person signed first; our signature stands first. Ed25519 signs alike each time, so this is repeatable."""
        own_signature = self.key.sign(draft.compute_id(self._charter.federation))
        return draft.assemble(self._charter.federation, [own_signature, request.enrolment_signature])

    def _find_enrolments(self, epoch: int | None) -> dict[bytes, bytes]:
        """Account -> enrolment, of the people that we enrolled: those that count in an epoch or, without one, those
        that nobody has left."""
        return {
            state.account: key
            for key, state in self._ledger.enrolments.items()
            if state.member == self.member.number
            and (state.counts_in(epoch) if epoch is not None else not state.until_epoch)
        }

    def _find_enrolment_on_its_way(self, account: bytes) -> Record | None:
        for record in self.outbox.get_pending():
            if record.kind == Kind.ENROL and getattr(record.body, "account", None) == account:
                return record
        return None

    def _mark_approved(self, record: Record) -> None:
        """An enrolment is final: whose request it completes is approved, also when this comes after a restart."""
        if record.kind != Kind.ENROL:
            return
        for stored in self.member.store.list_budget_requests(is_approved=False):
            if stored.account == getattr(record.body, "account", None):
                request = decode_budget_request(self._charter, stored.encoded)
                if request.build_enrolment(self._charter).compute_id(self._charter.federation) == record.id:
                    self.member.store.mark_approved(stored.id)

    # -- granting and vouching ----------------------------------------------------------------------------------

    async def grant(self, order: api.GrantOrder, *, dry_run: bool = False) -> api.Signed:
        """Pay allowances of this epoch, 256 people a record. Raises: UserError before anything is signed; Rejected."""
        program_id = decode_address(AddressKind.PROGRAM, order.program)
        program = self._get_own_program(program_id)
        accounts = None if order.accounts is None else _decode_accounts(order.accounts)
        if accounts is not None and not accounts:
            raise UserError("name at least one account, or none at all for everybody whose request was approved")
        async with self.turn:
            self.check_ready()
            epoch = self.compute_epoch()
            source = self._charter.get_issuance_account(self.member.number, epoch)
            if not dry_run:
                await self._finish_earlier(source)
            enrolments = self._find_enrolments(epoch)
            if accounts is None:
                approved = self.member.store.list_participants(program_id)
                participants = [account for account in approved if account in enrolments]
            else:
                participants = accounts
            plan = plan_grant(
                self._ledger, source, program_id, participants, enrolments, order.amount, accounts is None
            )
            if not plan.outputs:
                nobody = "everybody has this epoch's allowance already" if participants else "nobody was approved yet"
                return api.Signed([], f"Nothing to grant from {program.name}: {nobody}.")
            pieces = [
                Grant(program_id, epoch + program.expiry_epochs, plan.outputs[start : start + OUTPUTS_MAX])
                for start in range(0, len(plan.outputs), OUTPUTS_MAX)
            ]
            drafts = self.draft(Kind.GRANT, epoch, account_scope(source), pieces)
            records = await self._carry_out(drafts, dry_run)
            return answer(records, self._describe_grant(plan, program, epoch, len(drafts) - len(records)), dry_run)

    def _describe_grant(self, plan: GrantPlan, program: Program, epoch: int, left_out: int) -> str:
        text = (
            f"{format_credits(plan.total)} credits from {program.name} for {len(plan.outputs)} people in epoch {epoch}."
        )
        if plan.capped:
            text += f" {plan.capped} of them get less than asked, because no more of their allowance is left."
        if left_out:
            text += f" {left_out} more records were not signed: give the same order again later."
        return text

    async def sponsor(self, order: api.SponsorOrder, *, dry_run: bool = False) -> api.Signed:
        """Vouch for a donor for some epochs from this one on. Raises: UserError; Rejected."""
        donor = decode_address(AddressKind.ACCOUNT, order.donor)
        async with self.turn:
            self.check_ready()
            epoch = self.compute_epoch()
            last = EPOCHS_MAX - epoch + 1
            if not 1 <= order.epochs <= last:
                raise UserError(f"a donor is vouched for during 1 to {last} epochs from now on, not {order.epochs}")
            body = Sponsor(self.member.number, donor, epoch + order.epochs - 1)
            for record_id, state in self._ledger.sponsors.items():
                if (state.member, state.donor) == (self.member.number, donor) and state.until_epoch >= body.until_epoch:
                    text = self._describe_vouching(donor, state.until_epoch)
                    return answer([self.describe_state(record_id)], text, dry_run)
            text = self._describe_vouching(donor, body.until_epoch)
            return await self.sign_own(Kind.SPONSOR, body, text, dry_run)

    def _describe_vouching(self, donor: bytes, until_epoch: int) -> str:
        end = format_moment(self._charter.compute_epoch_end(until_epoch))
        return f"We vouch for {encode_address(AddressKind.ACCOUNT, donor)} until {end}, the end of epoch {until_epoch}."

    async def sign_own(self, kind: Kind, body: Body, text: str, dry_run: bool) -> api.Signed:
        """Sign a record in our own account once the one before is final; the same on its way is sent again.

        The caller holds `turn`. Raises: UserError; Rejected.
        """
        earlier = self.outbox.find(account_scope(self.account))
        if earlier is not None and earlier.body == body and not dry_run:
            return answer([await self.settle(earlier)], text, dry_run)
        if not dry_run:
            await self._finish_earlier(self.account)
        drafts = self.draft(kind, self.compute_epoch(), account_scope(self.account), [body])
        return answer(await self._carry_out(drafts, dry_run), text, dry_run)


def _build_program(draft: api.ProgramDraft, member: int) -> Program:
    """The record's body. Raises: UserError that names the field."""
    name_bytes = len(draft.name.encode("utf-8", "surrogatepass"))
    if not 1 <= name_bytes <= NAME_BYTES_MAX or not draft.name.isprintable() or draft.name != draft.name.strip():
        raise UserError(f"a program's name has 1 to {NAME_BYTES_MAX} bytes of plain text")
    if len(draft.purpose.encode("utf-8", "surrogatepass")) > PURPOSE_BYTES_MAX:
        raise UserError(f"a program's purpose has at most {PURPOSE_BYTES_MAX} bytes")
    if not 1 <= draft.allowance <= AMOUNT_MAX:
        raise UserError("the allowance must be more than 0 credits, and no more than the ledger can count")
    if not 0 <= draft.expiry_epochs <= EPOCHS_MAX:
        raise UserError(f"credits may be spent for 0 to {EPOCHS_MAX} epochs after the one in which they were granted")
    classes = sorted(set(draft.job_classes))
    if len(classes) > JOB_CLASSES_MAX:
        raise UserError(f"a program names at most {JOB_CLASSES_MAX} job classes")
    for job_class in classes:
        if not 1 <= len(job_class.encode("utf-8", "surrogatepass")) <= JOB_CLASS_BYTES_MAX:
            raise UserError(f"a job class has 1 to {JOB_CLASS_BYTES_MAX} bytes, not {job_class!r}")
    return Program(
        member,
        draft.name,
        draft.purpose,
        draft.allowance,
        draft.expiry_epochs,
        int(draft.is_transferable),
        tuple(classes),
    )


def _decode_accounts(addresses: Sequence[str]) -> list[bytes]:
    return list(dict.fromkeys(decode_address(AddressKind.ACCOUNT, address) for address in addresses))


def _describe(record: Record) -> str:
    return f"the {Kind(record.kind).name.lower()} record"


def answer(records: list[api.Submitted], text: str, dry_run: bool) -> api.Signed:
    """What was done in words, or what would be."""
    if dry_run:
        text = f"Would be signed: {text}"
    elif any(submitted.state != "applied" for submitted in records):
        text = f"{text} {LATER}"
    return api.Signed(records, text)
