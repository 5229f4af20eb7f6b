"""Every kind of record is told in words that its reader understands."""

from __future__ import annotations

import pytest

from node.wallet.wording import describe, describe_kind, describe_note
from protocol.records import Draw, Kind
from tests.strategies import Federation, make_economy, rekey

FEDERATION = Federation()
ECONOMY = make_economy(FEDERATION)
PERSON = ECONOMY.people[0]
HOLD = FEDERATION.hold(PERSON, ECONOMY.donor, ECONOMY.sponsor, [Draw(*ECONOMY.lot, 300)])
REQUEST = FEDERATION.reclaim_request(PERSON, HOLD)
TOLD = {
    Kind.TRANSFER: (FEDERATION.transfer(PERSON, [ECONOMY.output(ECONOMY.donor, 5)], "thanks"), "memo: thanks"),
    Kind.PROGRAM: (ECONOMY.program, "declares the program"),
    Kind.ENROL: (ECONOMY.enrolments[0], "member 1 enrols alm1"),
    Kind.GRANT: (ECONOMY.grant, "credits (almp1"),
    Kind.SPONSOR: (ECONOMY.sponsor, "vouches for the donor alm1"),
    Kind.HOLD: (HOLD, "in escrow for alm1"),
    Kind.SETTLE: (FEDERATION.settle(ECONOMY.donor, HOLD, 100), "by the payee of the hold almr1"),
    Kind.LEAVE: (FEDERATION.leave(1, PERSON, ECONOMY.enrolments[0]), "leaves member 1"),
    Kind.RECLAIM_REQUEST: (REQUEST, "asks for the credits of the hold almr1"),
    Kind.RECLAIM: (FEDERATION.reclaim(PERSON, HOLD, REQUEST), "by the payer of the hold almr1"),
    Kind.SUSPEND: (FEDERATION.suspend(1, PERSON), "appeal: appeals@example.org"),
    Kind.REINSTATE: (FEDERATION.reinstate(1, PERSON), "member 1 ends its suspension of alm1"),
    Kind.AMEND: (FEDERATION.amend(), "changes the charter"),
    Kind.ROTATE: (FEDERATION.rotate(PERSON, rekey(PERSON, "next")), "gives the account the new key"),
    Kind.DISPUTE: (FEDERATION.dispute(PERSON, HOLD), "work-lost"),
}


@pytest.mark.parametrize("kind", Kind)
def test_each_kind_says_who_writes_and_what_it_does(kind):
    record, told = TOLD[kind]
    assert record.kind == kind
    lines = list(describe(record))
    assert lines[0].startswith(describe_kind(record))
    assert told in "\n".join(lines)


def test_a_history_shows_a_payments_memo_and_a_suspensions_appeal():
    def compute_end(epoch: int) -> int:
        return epoch * 24 * 3600

    assert describe_note(TOLD[Kind.TRANSFER][0], compute_end) == '"thanks"'
    assert (
        describe_note(TOLD[Kind.SUSPEND][0], compute_end) == "until 1970-01-04 00:00 UTC, appeal: appeals@example.org"
    )
    assert describe_note(HOLD, compute_end) == ""
