"""A record in words: who gives what to whom, as a wallet shows it in its history and a receipt proves it.

Everything is read from the signed bytes, never from a node's rendering of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from node.addresses import Kind as AddressKind
from node.addresses import encode_address
from protocol.credits import format_credits
from protocol.records import (
    Body,
    Enrol,
    Grant,
    Hold,
    Kind,
    Program,
    Record,
    ScopeKind,
    Settle,
    Sponsor,
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
    yield f"{Kind(record.kind).name.lower()} {encode_address(AddressKind.RECORD, record.id)}"
    yield f"by {describe_scope(record)}, slot {record.sequence}, epoch {record.epoch}"
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
        return f"the payee of the hold {encode_address(AddressKind.RECORD, record.account)}"
    return f"the person of the tag {record.account.hex()}"


def describe_lot(movement: Movement) -> str:
    """Origin and end of credits."""
    origin = encode_address(AddressKind.PROGRAM, movement.program) if movement.program else "of no program"
    return f"{origin}, until epoch {movement.expiry_epoch}" if movement.expiry_epoch else f"{origin}, no end"


def _describe_rest(body: Body) -> Iterator[str]:
    match body:
        case Transfer(memo=memo) if memo:
            yield f"memo: {_printable(memo)}"
        case Program(name=name, allowance=allowance):
            yield f"declares the program {_printable(name)}: {format_credits(allowance)} credits a person and epoch"
        case Enrol(member=member, account=account):
            yield f"member {member} enrols {encode_address(AddressKind.ACCOUNT, account)}"
        case Sponsor(donor=donor, until_epoch=until_epoch):
            yield f"vouches for the donor {encode_address(AddressKind.ACCOUNT, donor)} until epoch {until_epoch}"
        case Hold(terms=terms):
            yield f"for a job of class {_printable(terms.job_class)}, quote {terms.quote.hex()}"
        case Settle(amount=amount, job_receipt=job_receipt):
            yield f"takes {format_credits(amount)} credits by voucher {body.voucher_sequence}; the rest goes back"
            if job_receipt:
                yield f"names the job receipt {job_receipt.hex()}"


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


def _printable(text: str) -> str:
    """Text of somebody else, without the control characters that could rewrite a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)
