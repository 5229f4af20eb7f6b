"""A record in words: who gives what to whom, as a wallet shows it in its history and a receipt proves it.

Everything is read from the signed bytes, never from a node's rendering of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from node.addresses import Kind as AddressKind
from node.addresses import encode_address
from node.evidence import describe_reason
from node.terminal import format_moment, make_printable
from protocol.credits import format_credits
from protocol.disputes import Dispute
from protocol.records import (
    Amend,
    Body,
    Enrol,
    Grant,
    Hold,
    Kind,
    Leave,
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
)


class Movement(NamedTuple):
    """`amount` millicredits of a lot that a record gives to an account, or puts into an escrow for it."""

    account: bytes
    program: bytes
    expiry_epoch: int
    amount: int


def get_movements(record: Record) -> list[Movement]:
    """What the record moves, as far as its own bytes say; empty for records that move nothing.

    A settle names no account: the hold that it ends does.
    """
    match record.body:
        case Transfer(outputs=outputs):
            return [Movement(*output) for output in outputs]
        case Grant(program=program, expiry_epoch=expiry_epoch, outputs=outputs):
            return [Movement(output.account, program, expiry_epoch, output.amount) for output in outputs]
        case Hold(payee=payee, draws=draws):
            return [Movement(payee, *draw) for draw in draws]
    return []


def describe(record: Record) -> Iterator[str]:
    """Lines for people: the kind, and what it moves."""
    yield f"{describe_kind(record)} {encode_address(AddressKind.RECORD, record.id)}"
    yield f"by {describe_scope(record)}, place {record.sequence}, epoch {record.epoch}"
    for movement in get_movements(record):
        to = "in escrow for" if isinstance(record.body, Hold) else "to"
        account = encode_address(AddressKind.ACCOUNT, movement.account)
        yield f"{format_credits(movement.amount)} credits ({describe_lot(movement)}) {to} {account}"
    yield from _describe_rest(record.body)


def describe_scope(record: Record) -> str:
    """Whose slot the record fills."""
    if record.scope[0] == ScopeKind.ACCOUNT:
        return encode_address(AddressKind.ACCOUNT, record.account)
    if record.scope[0] == ScopeKind.HOLD:
        writer = "payer" if isinstance(record.body, Reclaim) else "payee"
        return f"the {writer} of the hold {encode_address(AddressKind.RECORD, record.account)}"
    if record.scope[0] == ScopeKind.CHARTER:
        return "the federation"
    return f"the person of the tag {record.account.hex()}"


def describe_lot(movement: Movement) -> str:
    """Origin and end of credits."""
    origin = encode_address(AddressKind.PROGRAM, movement.program) if movement.program else "of no program"
    return f"{origin}, until epoch {movement.expiry_epoch}" if movement.expiry_epoch else f"{origin}, no end"


def _describe_rest(body: Body) -> Iterator[str]:
    match body:
        case Transfer(memo=memo) if memo:
            yield f"memo: {make_printable(memo)}"
        case Program(name=name, allowance=allowance):
            yield f"declares the program {make_printable(name)}: {format_credits(allowance)} credits a person and epoch"
        case Enrol(member=member, account=account):
            yield f"member {member} enrols {encode_address(AddressKind.ACCOUNT, account)}"
        case Sponsor(donor=donor, until_epoch=until_epoch):
            yield f"vouches for the donor {encode_address(AddressKind.ACCOUNT, donor)} until epoch {until_epoch}"
        case Hold(terms=terms):
            yield f"for a job of class {make_printable(terms.job_class)}, quote {terms.quote.hex()}"
        case Settle(amount=amount, job_receipt=job_receipt):
            yield f"takes {format_credits(amount)} credits by voucher {body.voucher_sequence}; the rest goes back"
            if job_receipt:
                yield f"names the job receipt {job_receipt.hex()}"
        case ReclaimRequest(hold=hold):
            yield f"asks for the credits of the hold {encode_address(AddressKind.RECORD, hold)} back"
        case Reclaim():
            yield "takes everything back that was put aside; the payee did not settle in its time"
        case Dispute(hold=hold, reason=reason, evidence=evidence):
            yield f"disputes the hold {encode_address(AddressKind.RECORD, hold)}: {describe_reason(reason)}"
            yield f"by evidence that has the SHA-256 {evidence.hex()}"
        case Rotate(key=key):
            yield f"gives the account the new key {key.hex()}"
        case _:
            yield from _describe_decision(body)


def _describe_decision(body: Body) -> Iterator[str]:
    """What institutions decide about accounts and the charter."""
    match body:
        case Leave(member=member, account=account):
            yield f"{encode_address(AddressKind.ACCOUNT, account)} leaves member {member} at the end of the epoch"
        case Suspend(member=member, account=account, reason=reason, until_epoch=until_epoch):
            name = encode_address(AddressKind.ACCOUNT, account)
            yield f"member {member} suspends {name} until the end of epoch {until_epoch}, reason {reason}"
            yield f"appeal: {make_printable(body.appeal)}"
            if body.evidence:
                yield f"decided on what has the SHA-256 {body.evidence.hex()}"
        case Reinstate(member=member, account=account):
            yield f"member {member} ends its suspension of {encode_address(AddressKind.ACCOUNT, account)}"
        case Amend(charter=charter):
            yield f"changes the charter; the next one has {len(charter)} bytes"


def describe_kind(record: Record) -> str:
    """The kind in words."""
    return Kind(record.kind).name.lower().replace("_", " ")


def describe_note(record: Record, compute_epoch_end: Callable[[int], int]) -> str:
    """The few words that a record has for its reader: a payment's memo, a suspension's end and appeal; else empty."""
    match record.body:
        case Transfer(memo=memo) if memo:
            return f'"{make_printable(memo)}"'
        case Suspend(until_epoch=until_epoch, appeal=appeal):
            return f"until {format_moment(compute_epoch_end(until_epoch))}, appeal: {make_printable(appeal)}"
    return ""


def to_document(record: Record) -> dict[str, Any]:
    """The same for programs: ids as text, amounts in millicredits."""
    return {
        "id": encode_address(AddressKind.RECORD, record.id),
        "kind": Kind(record.kind).name.lower(),
        "epoch": record.epoch,
        "sequence": record.sequence,
        "from": encode_address(AddressKind.ACCOUNT, record.account) if record.scope[0] == ScopeKind.ACCOUNT else None,
        "movements": [
            {
                "to": encode_address(AddressKind.ACCOUNT, movement.account),
                "program": encode_address(AddressKind.PROGRAM, movement.program) if movement.program else None,
                "expiry_epoch": movement.expiry_epoch,
                "millicredits": movement.amount,
            }
            for movement in get_movements(record)
        ],
        "memo": record.body.memo if isinstance(record.body, Transfer) else "",
    }
