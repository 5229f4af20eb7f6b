"""What a correct member votes for: every rule that a record must keep, checked in the order of `Reason`.

These are voting rules, not rules of the fold: a record with a commit quorum has passed them at correct members that
together outweigh the faulty ones, and is applied everywhere (spec 6.3). A reason in `WAITING_REASONS` may pass when
more of the ledger arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any, NamedTuple

from protocol.causes import get_named_records, get_outgoing
from protocol.charter import Charter
from protocol.credits import AMOUNT_MAX
from protocol.disputes import PAYEE_REASONS, PAYER_REASONS, Dispute
from protocol.errors import InvalidInput, Reason, Rejected
from protocol.identifiers import compute_account_id, compute_voucher_id
from protocol.ledger import Ledger, read_amendment
from protocol.limits import DISPUTE_SECONDS_MAX, EPOCHS_MAX, SUSPENSION_SECONDS_MAX
from protocol.records import (
    Amend,
    Draw,
    Enrol,
    Grant,
    Hold,
    Kind,
    Leave,
    Output,
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
from protocol.signatures import is_valid_signature
from protocol.states import EnrolmentState


class Circumstances(NamedTuple):
    """What a member knows beside the ledger when it judges a record; no two members need agree on it."""

    open_epochs: range
    """The epochs that its clock allows."""
    running_seconds: int = 0
    """Its clock of running time: seconds for which it ran since its first start."""
    ripe_requests: Container[bytes] = frozenset()
    """Reclaim requests whose hold's grace has passed on its clock of running time."""
    approved: Container[bytes] = frozenset()
    """Amendments that its people approved by hand."""


def check_record(record: Record, ledger: Ledger, circumstances: Circumstances) -> None:
    """Raise `Rejected` unless a correct member with this ledger may vote for the record now.

    The caller also checks the signatures, and that the member voted for no other record in this slot.
    """
    check_writer(record, ledger)
    _check_epoch(record, circumstances.open_epochs)
    check_predecessor(record, ledger)
    for kind, name in get_named_records(record):
        if not ledger.is_applied(kind, name):
            raise Rejected(Reason.REFERENCE_MISSING, f"the {kind.name.lower()} that it names is not known here")
    _check_circumstances(record, ledger, circumstances)
    if not ledger.is_funded(record.account, get_outgoing(record)):
        raise Rejected(Reason.FUNDS_MISSING, "the account does not hold that much of these credits")


def check_writer(record: Record, ledger: Ledger) -> None:
    """The signers must be the ones whose slot it is (spec 3.4); nobody writes in a frozen scope (spec 8.8)."""
    if record.scope in ledger.frozen:
        raise Rejected(Reason.WRITER_WRONG, "frozen: two records became final in one slot of this account")
    charter = ledger.charter
    signer = record.signers[0]
    member = charter.members_by_key.get(signer)
    match record.body:
        case Transfer() | Hold() | ReclaimRequest() | Dispute():
            is_writer = _is_owner(signer, record.account, ledger)
        case Rotate(key=key):
            is_persons = record.account not in charter.member_accounts
            is_writer = is_persons and _is_owner(signer, record.account, ledger) and record.signers[1] == key
        case Program(member=number) | Sponsor(member=number) | Suspend(member=number) | Reinstate(member=number):
            is_writer = member == number and record.account == charter.get_member_account(number)
        case Grant():
            owner = charter.issuance_accounts.get(record.account)
            is_writer = owner is not None and member == owner[0]
        case Enrol(member=number, account=account) | Leave(member=number, account=account):
            is_writer = member == number and _is_owner(record.signers[1], account, ledger)
        case Amend():
            is_writer = member is not None
        case _:  # the end of a hold, by its payee or its payer
            hold = ledger.holds.get(record.account)
            # Without the hold nobody knows the writer; it is missed by name after the reasons that come first.
            is_writer = hold is None or _is_owner(
                signer, hold.payee if isinstance(record.body, Settle) else hold.payer, ledger
            )
    if not is_writer:
        raise Rejected(Reason.WRITER_WRONG, "the signer may not write in this slot")


def _is_owner(signer: bytes, account: bytes, ledger: Ledger) -> bool:
    """True when this key is in force for an account: a member's own by its key in the charter, any other by its last
    rotation or, before the first, by its name. None is in force for a frozen one."""
    charter = ledger.charter
    if account_scope(account) in ledger.frozen:
        return False
    member = charter.member_accounts.get(account)
    if member is not None:
        return charter.members[member].member_key == signer
    key = ledger.get_key(account)
    return signer == key if key is not None else compute_account_id(charter.federation, signer) == account


def find_turn(ledger: Ledger, scope: bytes, signer: bytes) -> tuple[int, int] | None:
    """(place of the signer among the scope's writers, how many they are), or None when it may not write there.

    The order is the one in which writers take turns in a slot that is stuck (spec 5.8): payer before payee, so that
    the first turn after the ordinary attempt is the payee's; members as in the charter in force.
    """
    charter, name = ledger.charter, scope[1:]
    if scope in ledger.frozen:
        return None
    match scope[0]:
        case ScopeKind.ACCOUNT:
            issuer = charter.issuance_accounts.get(name)
            is_issuer = issuer is not None and charter.members_by_key.get(signer) == issuer[0]
            places, count = [0] if is_issuer or _is_owner(signer, name, ledger) else [], 1
        case ScopeKind.HOLD:
            hold = ledger.holds.get(name)
            writers = list(dict.fromkeys((hold.payer, hold.payee))) if hold is not None else []
            places, count = [i for i, owner in enumerate(writers) if _is_owner(signer, owner, ledger)], len(writers)
        case _:
            members = charter.fields.members
            places, count = [i for i, member in enumerate(members) if member.member_key == signer], len(members)
    return (places[0], count) if places else None


def _check_epoch(record: Record, open_epochs: range) -> None:
    now = open_epochs[-1]
    if record.epoch not in open_epochs:
        raise Rejected(Reason.EPOCH_WRONG, f"signed for epoch {record.epoch}, now is {now}")
    is_handover = isinstance(record.body, Enrol) and record.sequence > 0
    if (is_handover or isinstance(record.body, Leave)) and record.epoch != now:
        # In the grace after an epoch the next one has begun, and with it what the old enrolment may be granted then.
        raise Rejected(Reason.EPOCH_WRONG, f"an enrolment ends only in the epoch that runs: {now}")


def check_predecessor(record: Record, ledger: Ledger) -> None:
    """The record must claim the next slot of its scope and name the record in the slot before."""
    head = ledger.heads.get(record.scope)
    sequence = head.sequence + 1 if head else 0
    if record.sequence < sequence:
        raise Rejected(Reason.SLOT_TAKEN, f"slot {record.sequence} has a final record already")
    if record.sequence > sequence:
        raise Rejected(Reason.PREDECESSOR_MISSING, f"slot {sequence} comes first")
    if head and record.prev != head.record:
        raise Rejected(Reason.PREDECESSOR_WRONG, "it does not follow the record in the slot before")


def _check_circumstances(record: Record, ledger: Ledger, circumstances: Circumstances) -> None:
    """The rules of the record's kind, and what the member knows beside the ledger, in the order of `Reason`."""
    if ledger.suspensions and any(ledger.is_suspended(it, record.epoch) for it in _get_suspendable(record)):
        raise Rejected(Reason.SUSPENDED, "a member has suspended the account for some time")
    if isinstance(record.body, Amend) and record.id not in circumstances.approved:
        raise Rejected(Reason.NOT_APPROVED, "this member's people have not approved the amendment yet")
    _BODY_RULES[record.kind](record, record.body, ledger)
    if isinstance(record.body, Reclaim) and record.body.request not in circumstances.ripe_requests:
        raise Rejected(Reason.GRACE_RUNNING, "the payee still has time to settle")


def _get_suspendable(record: Record) -> tuple[bytes, ...]:
    """The accounts of which none may be suspended: all but what ends a job, an enrolment or a key's use (spec 7.11)."""
    match record.body:
        case Transfer():
            return (record.account,)
        case Hold(payee=payee):
            return (record.account, payee)
        case Grant(outputs=outputs):
            return tuple(output.account for output in outputs)
    return ()


def _check_lots(draws: tuple[Output, ...] | tuple[Draw, ...], epoch: int) -> None:
    for draw in draws:
        if draw.expiry_epoch and draw.expiry_epoch < epoch:
            raise Rejected(Reason.LOT_EXPIRED, f"these credits expired with epoch {draw.expiry_epoch}")


def _check_transfer(record: Record, body: Transfer, ledger: Ledger) -> None:
    _check_lots(body.outputs, record.epoch)
    for output in body.outputs:
        if output.program and output.account != record.account:
            program = ledger.programs.get(output.program)
            if program is not None and not program.body.is_transferable:
                raise Rejected(
                    Reason.LOT_NOT_TRANSFERABLE,
                    f"credits of the program {program.body.name} can be redeemed but not passed on",
                )


def _check_program(record: Record, body: Program, ledger: Ledger) -> None:
    pass  # its shape and its writer say it all


def _find_enrolment(record: Record, ledger: Ledger) -> EnrolmentState | None:
    """The newest enrolment of the tag in whose scope the record stands."""
    name = ledger.tags.get(record.account)
    return ledger.enrolments[name] if name is not None else None


def _check_enrol(record: Record, body: Enrol, ledger: Ledger) -> None:
    before = _find_enrolment(record, ledger)
    if before is not None and before.account != body.account:
        raise Rejected(Reason.TERMS_WRONG, "this tag is another person's")
    if before is not None and before.member == body.member and not before.until_epoch:
        raise Rejected(Reason.TERMS_WRONG, "this person is enrolled already")


def _check_leave(record: Record, body: Leave, ledger: Ledger) -> None:
    before = _find_enrolment(record, ledger)
    if before is None or before.until_epoch or (before.member, before.account) != body:
        raise Rejected(Reason.TERMS_WRONG, "there is no such enrolment to end")


def _check_grant(record: Record, body: Grant, ledger: Ledger) -> None:
    member, epoch = ledger.charter.issuance_accounts[record.account]
    program = ledger.programs[body.program]
    if epoch != record.epoch:
        raise Rejected(Reason.TERMS_WRONG, f"this issuance account is for epoch {epoch}")
    if program.member != member:
        raise Rejected(Reason.TERMS_WRONG, "only the program's own member grants from it")
    if body.expiry_epoch != epoch + program.body.expiry_epochs:
        raise Rejected(Reason.TERMS_WRONG, f"the program's credits expire {program.body.expiry_epochs} epochs on")
    granted: dict[bytes, int] = {}
    for output in body.outputs:
        enrolment = ledger.enrolments[output.enrolment]
        if enrolment.member != member or enrolment.account != output.account:
            raise Rejected(Reason.TERMS_WRONG, "a grant goes to accounts that this member enrolled")
        if not enrolment.counts_in(epoch):
            raise Rejected(Reason.TERMS_WRONG, f"this enrolment does not count in epoch {epoch}")
        granted[output.account] = granted.get(output.account, 0) + output.amount
    for account, amount in granted.items():
        before = ledger.allowances.get((record.account, body.program, account), 0)
        if before + amount > program.body.allowance:
            raise Rejected(Reason.ALLOWANCE_EXCEEDED, "more than the program's allowance per person and epoch")


def _check_sponsor(record: Record, body: Sponsor, ledger: Ledger) -> None:
    if body.until_epoch < record.epoch:
        raise Rejected(Reason.TERMS_WRONG, "it would have ended already")


def _check_hold(record: Record, body: Hold, ledger: Ledger) -> None:
    terms = body.terms
    sponsor = ledger.sponsors[terms.sponsor]
    # The version before, too: an amendment must not strand the quotes that were made just before it.
    if not max(0, ledger.charter.version - 1) <= terms.charter_version <= ledger.charter.version:
        raise Rejected(Reason.TERMS_WRONG, "priced by a rate table that is not in force")
    policy = ledger.charters[terms.charter_version].policy
    if not policy.hold_grace_seconds_min <= terms.grace_seconds <= policy.hold_grace_seconds_max:
        raise Rejected(
            Reason.TERMS_WRONG,
            f"grace must be {policy.hold_grace_seconds_min} to {policy.hold_grace_seconds_max} seconds",
        )
    if terms.acceptable_use != policy.acceptable_use:
        raise Rejected(Reason.TERMS_WRONG, "it accepts another acceptable-use policy than the charter's")
    if sponsor.donor != body.payee or sponsor.until_epoch < record.epoch:
        raise Rejected(Reason.TERMS_WRONG, "no member vouches for this donor now")
    _check_lots(body.draws, record.epoch)
    for draw in body.draws:
        program = ledger.programs.get(draw.program)
        if program and program.body.job_classes and terms.job_class not in program.body.job_classes:
            raise Rejected(Reason.POLICY, f"credits of {program.body.name} don't buy {terms.job_class} jobs")


def _check_settle(record: Record, body: Settle, ledger: Ledger) -> None:
    hold = ledger.holds[record.account]
    voucher = compute_voucher_id(ledger.charter.federation, record.account, body.voucher_sequence, body.amount)
    if body.amount > hold.amount:
        raise Rejected(Reason.TERMS_WRONG, "it takes more than the hold has")
    if body.gift_amount > body.amount or (body.gift_amount > 0) != bool(body.gift_program):
        raise Rejected(Reason.TERMS_WRONG, "the gift does not fit the amount")
    if not is_valid_signature(hold.terms.meter_key, voucher, body.voucher_signature):
        raise Rejected(Reason.TERMS_WRONG, "the voucher is not signed by the hold's meter key")


def _check_reclaim_request(record: Record, body: ReclaimRequest, ledger: Ledger) -> None:
    hold = ledger.holds[body.hold]
    if hold.payer != record.account or not hold.is_open:
        raise Rejected(Reason.TERMS_WRONG, "only the payer of an open hold asks for it back")
    if hold.request:
        raise Rejected(Reason.TERMS_WRONG, "it was asked for already; the grace runs")


def _check_reclaim(record: Record, body: Reclaim, ledger: Ledger) -> None:
    if ledger.requests[body.request] != record.account:
        raise Rejected(Reason.TERMS_WRONG, "the request is for another hold")


def _check_suspend(record: Record, body: Suspend, ledger: Ledger) -> None:
    if body.member not in ledger.vouchings.get(body.account, ()):
        raise Rejected(Reason.TERMS_WRONG, "only a member that enrolled or sponsors an account suspends it")
    epochs = -(-SUSPENSION_SECONDS_MAX // ledger.charter.fields.epoch_seconds)
    if not record.epoch <= body.until_epoch <= record.epoch + epochs:
        raise Rejected(Reason.TERMS_WRONG, f"a suspension lasts at most {epochs} epochs from now on")


def _check_reinstate(record: Record, body: Reinstate, ledger: Ledger) -> None:
    if record.account not in ledger.suspensions.get(body.account, {}):
        raise Rejected(Reason.TERMS_WRONG, "this member has not suspended the account")


def _check_dispute(record: Record, body: Dispute, ledger: Ledger) -> None:
    hold = ledger.holds[body.hold]
    sides = {PAYER_REASONS: hold.payer, PAYEE_REASONS: hold.payee}
    if record.account not in sides.values():
        raise Rejected(Reason.TERMS_WRONG, "only the payer or the payee of a hold disputes it")
    if not any(body.reason in reasons for reasons, account in sides.items() if account == record.account):
        raise Rejected(Reason.TERMS_WRONG, "that is what the other side of a job may say, not this one")
    if any(state.account == record.account for state in ledger.disputes.get(body.hold, {}).values()):
        raise Rejected(Reason.TERMS_WRONG, "this side has disputed the hold already, for good")
    epochs = -(-DISPUTE_SECONDS_MAX // ledger.charter.fields.epoch_seconds)
    if not hold.is_open and record.epoch > hold.end_epoch + epochs:
        raise Rejected(Reason.TERMS_WRONG, f"a hold is disputed within {epochs} epochs of its end")


def _check_rotate(record: Record, body: Rotate, ledger: Ledger) -> None:
    if not ledger.is_known(record.account):
        raise Rejected(Reason.TERMS_WRONG, "no member has vouched for this account, and it never received anything")
    if record.signers[0] == body.key:
        raise Rejected(Reason.TERMS_WRONG, "this key is in force already")


def _check_amend(record: Record, body: Amend, ledger: Ledger) -> None:
    """The amendment must be a charter that may follow the one in force (spec 7.13)."""
    after = read_amendment(ledger.charter.federation, record)
    if after is None:
        raise Rejected(Reason.TERMS_WRONG, "it holds no charter that keeps the rules, of the next version")
    try:
        ledger.charter.check_successor(after)
    except InvalidInput as error:
        raise Rejected(Reason.TERMS_WRONG, str(error)) from None
    if any(number in ledger.ceilings for number in after.members.keys() - ledger.charter.members.keys()):
        raise Rejected(Reason.TERMS_WRONG, "the number of a member that left never comes back")
    if compute_issuable(ledger, after) > AMOUNT_MAX:
        raise Rejected(Reason.TERMS_WRONG, "with what members before could issue, it is more than can be counted")


def compute_issuable(ledger: Ledger, after: Charter) -> int:
    """Millicredits that can ever be issued under a next charter, by members that left, too."""
    caps = dict(ledger.caps)
    ceilings = dict(ledger.ceilings)
    for number, member in after.members.items():
        caps.update({(number, epoch): cap for epoch, cap in enumerate(member.issuance_caps, start=1)})
        ceilings[number] = member.backing_ceiling
    return sum(caps.values()) + EPOCHS_MAX * sum(ceilings.values())


_BODY_RULES: dict[int, Callable[[Record, Any, Ledger], None]] = {
    Kind.TRANSFER: _check_transfer,
    Kind.PROGRAM: _check_program,
    Kind.ENROL: _check_enrol,
    Kind.GRANT: _check_grant,
    Kind.SPONSOR: _check_sponsor,
    Kind.HOLD: _check_hold,
    Kind.SETTLE: _check_settle,
    Kind.LEAVE: _check_leave,
    Kind.RECLAIM_REQUEST: _check_reclaim_request,
    Kind.RECLAIM: _check_reclaim,
    Kind.SUSPEND: _check_suspend,
    Kind.REINSTATE: _check_reinstate,
    Kind.AMEND: _check_amend,
    Kind.ROTATE: _check_rotate,
    Kind.DISPUTE: _check_dispute,
}
