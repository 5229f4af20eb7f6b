"""Who gets how much of a program in one grant: worked out from the ledger before anything is signed.

Voters sum what each account was granted over the issuance account of the epoch and stop at the program's allowance
(spec 7.4); the same sum is taken here, so an order given twice never asks for more than is left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from node.addresses import Kind, encode_address
from node.errors import UserError
from protocol.credits import format_credits
from protocol.ledger import Ledger
from protocol.records import FREE_LOT, GrantOutput


class GrantPlan(NamedTuple):
    """The outputs, one a person."""

    outputs: tuple[GrantOutput, ...]
    capped: int
    """People who get less than the order's amount."""

    @property
    def total(self) -> int:
        """Millicredits."""
        return sum(output.amount for output in self.outputs)


def plan_grant(
    ledger: Ledger,
    source: bytes,
    program: bytes,
    accounts: Sequence[bytes],
    enrolments: Mapping[bytes, bytes],
    amount: int | None,
    is_for_everybody: bool,
) -> GrantPlan:
    """What each account gets: `amount`, or what is left of the allowance when that is None.

    An order for everybody gives those who have got something already what is left; one for named accounts is exact.
    `source` is the issuance account, `enrolments` name the enrolment of each account that we enrolled.
    Raises: UserError when an account is not enrolled, the allowance or the issuance cap does not suffice.
    """
    allowance = ledger.programs[program].body.allowance
    if amount is not None and not 1 <= amount <= allowance:
        raise UserError(
            f"{format_credits(amount)} credits a person can't be granted: the program's allowance is "
            f"{format_credits(allowance)} an epoch"
        )
    outputs: list[GrantOutput] = []
    capped = 0
    for account in accounts:
        enrolment = enrolments.get(account)
        if enrolment is None:
            raise UserError(f"{encode_address(Kind.ACCOUNT, account)} is not enrolled with us: approve a request first")
        left = allowance - ledger.allowances.get((source, program, account), 0)
        given = left if amount is None else min(left, amount)
        if amount is not None and given < amount:
            if not is_for_everybody:
                raise UserError(
                    f"{encode_address(Kind.ACCOUNT, account)} has only {format_credits(left)} credits of this epoch's "
                    "allowance left"
                )
            capped += given > 0
        if given > 0:
            outputs.append(GrantOutput(enrolment, account, given))
    plan = GrantPlan(tuple(outputs), capped)
    available = ledger.get_balance(source, FREE_LOT)
    if plan.total > available:
        raise UserError(
            f"this grant is {format_credits(plan.total)} credits, and our cap for this epoch has "
            f"{format_credits(available)} left: grant less with --amount, or to fewer people"
        )
    return plan
