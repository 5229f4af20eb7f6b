"""What a correct member votes for: every rule that a record must keep, checked in the order of `Reason`.

These are voting rules, not rules of the fold: a record with a commit quorum has passed them at correct members that
together outweigh the faulty ones, and is applied everywhere (spec 6.3). A reason in `WAITING_REASONS` may pass when
more of the ledger arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any, NamedTuple

from protocol.errors import Reason, Rejected
from protocol.identifiers import compute_account_id
from protocol.ledger import Ledger
from protocol.records import (
    Draw,
    Enrol,
    Grant,
    Hold,
    Kind,
    Output,
    Program,
    Record,
    ScopeKind,
    Settle,
    Sponsor,
    Transfer,
    compute_voucher_id,
    get_named_records,
    get_outgoing,
)
from protocol.signatures import is_valid_signature


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
    epochs = circumstances.open_epochs
    if record.epoch not in epochs:
        raise Rejected(Reason.EPOCH_WRONG, f"signed for epoch {record.epoch}, now is {epochs[-1]}")
    check_predecessor(record, ledger)
    for kind, name in get_named_records(record):
        if not ledger.is_applied(kind, name):
            raise Rejected(Reason.REFERENCE_MISSING, f"the {kind.name.lower()} that it names is not known here")
    _BODY_RULES[record.kind](record, record.body, ledger)
    if not ledger.is_funded(record.account, get_outgoing(record)):
        raise Rejected(Reason.FUNDS_MISSING, "the account does not hold that much of these credits")


def check_writer(record: Record, ledger: Ledger) -> None:
    """The signers must be the ones whose slot it is (spec 3.4)."""
    charter = ledger.charter
    signer = record.signers[0]
    match record.kind:
        case Kind.TRANSFER | Kind.HOLD:
            is_writer = compute_account_id(charter.federation, signer) == record.account
        case Kind.PROGRAM | Kind.SPONSOR:
            is_writer = (
                signer in charter.members_by_key and compute_account_id(charter.federation, signer) == record.account
            )
        case Kind.GRANT:
            owner = charter.issuance_accounts.get(record.account)
            is_writer = owner is not None and charter.members_by_key.get(signer) == owner[0]
        case Kind.ENROL:
            body = record.body
            is_writer = (
                isinstance(body, Enrol)
                and charter.members_by_key.get(signer) == body.member
                and compute_account_id(charter.federation, record.signers[1]) == body.account
            )
        case _:
            hold = ledger.holds.get(record.account)
            # Without the hold nobody knows the writer; it is missed by name after the reasons that come first.
            is_writer = hold is None or compute_account_id(charter.federation, signer) == hold.payee
    if not is_writer:
        raise Rejected(Reason.WRITER_WRONG, "the signer may not write in this slot")


def find_turn(ledger: Ledger, scope: bytes, signer: bytes) -> tuple[int, int] | None:
    """(place of the signer among the scope's writers, how many there are), or None when it may not write there."""
    charter, owner = ledger.charter, scope[1:]
    if scope[0] == ScopeKind.HOLD:
        hold = ledger.holds.get(owner)
        account = compute_account_id(charter.federation, signer)
        return (int(account == hold.payee), 2) if hold and account in (hold.payer, hold.payee) else None
    if scope[0] == ScopeKind.ACCOUNT:
        return (0, 1) if compute_account_id(charter.federation, signer) == owner else None
    members = [member.member_key for member in charter.fields.members]
    return (members.index(signer), len(members)) if signer in members else None


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


def _check_enrol(record: Record, body: Enrol, ledger: Ledger) -> None:
    if record.sequence:
        raise Rejected(Reason.TERMS_WRONG, "this person is enrolled already")


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
        granted[output.account] = granted.get(output.account, 0) + output.amount
    for account, amount in granted.items():
        before = ledger.allowances.get((record.account, body.program, account), 0)
        if before + amount > program.body.allowance:
            raise Rejected(Reason.ALLOWANCE_EXCEEDED, "more than the program's allowance per person and epoch")


def _check_sponsor(record: Record, body: Sponsor, ledger: Ledger) -> None:
    if body.until_epoch < record.epoch:
        raise Rejected(Reason.TERMS_WRONG, "it would have ended already")


def _check_hold(record: Record, body: Hold, ledger: Ledger) -> None:
    policy, terms = ledger.charter.policy, body.terms
    sponsor = ledger.sponsors[terms.sponsor]
    if terms.charter_version != ledger.charter.version:
        raise Rejected(Reason.TERMS_WRONG, "priced by a rate table that is not in force")
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


_BODY_RULES: dict[int, Callable[[Record, Any, Ledger], None]] = {
    Kind.TRANSFER: _check_transfer,
    Kind.PROGRAM: _check_program,
    Kind.ENROL: _check_enrol,
    Kind.GRANT: _check_grant,
    Kind.SPONSOR: _check_sponsor,
    Kind.HOLD: _check_hold,
    Kind.SETTLE: _check_settle,
}
