"""One account can't fill the ledger: what it hands in has a rate, and members' own accounts have none."""

from __future__ import annotations

import pytest

from node import owner_rates
from node.owner_rates import BURST_RECORDS_MAX, RECORDS_PER_MINUTE_MAX, OwnerRates
from node.submissions import Busy
from protocol.records import account_scope, hold_scope
from tests.strategies import NOW, make_federation

CHARTER = make_federation().charter
PERSON, OTHER = account_scope(b"p" * 32), account_scope(b"o" * 32)


def hand_in(rates, scope, times, now=0):
    return [rates.may_hand_in(CHARTER, scope, now) for _ in range(times)].count(True)


def test_a_burst_goes_through_and_then_so_many_a_minute():
    rates = OwnerRates()
    assert hand_in(rates, PERSON, BURST_RECORDS_MAX + 10) == BURST_RECORDS_MAX
    assert hand_in(rates, PERSON, BURST_RECORDS_MAX, now=60) == RECORDS_PER_MINUTE_MAX
    assert hand_in(rates, OTHER, 1) == 1, "nobody uses up what is another's"


@pytest.mark.parametrize(
    "scope",
    [
        account_scope(next(iter(CHARTER.member_accounts))),
        account_scope(next(iter(CHARTER.issuance_accounts))),
        hold_scope(b"h" * 32),
    ],
)
def test_members_grant_to_many_and_holds_have_one_slot(scope):
    assert hand_in(OwnerRates(), scope, 10 * BURST_RECORDS_MAX) == 10 * BURST_RECORDS_MAX


def test_accounts_that_are_quiet_again_are_forgotten(monkeypatch):
    monkeypatch.setattr(owner_rates, "ACCOUNTS_KEPT_MAX", 100)
    rates = OwnerRates()
    for number in range(1000):
        hand_in(rates, account_scope(number.to_bytes(32, "big")), 1, now=10 * number)
    assert len(rates._left) <= 100


async def test_a_node_asks_an_account_that_hands_in_too_much_to_come_again(cast, members):
    member = members[0]
    member.submissions._owner_rates = rates = OwnerRates()
    payment = cast.make_payments()[0]
    hand_in(rates, payment.scope, BURST_RECORDS_MAX, now=100)
    with pytest.raises(Busy, match="more than 60 records a minute"):
        member.submissions.add(payment, NOW._replace(running_seconds=100), now=100)
    assert len(member.submissions) == 0
    member.submissions.add(payment, NOW._replace(running_seconds=101), now=101)
