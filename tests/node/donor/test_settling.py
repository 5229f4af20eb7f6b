"""Ending a hold: the settlement is sent until a receipt proves how the hold ended, whatever the node answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import trio

from node import api, job_api
from node.donor import settling
from node.donor.job_file import JobDocument
from node.errors import UserError
from protocol.errors import Reason, Rejected
from protocol.records import Draw
from tests.strategies import make_economy, make_federation

FEDERATION = make_federation()
ECONOMY = make_economy(FEDERATION)
HOLD = FEDERATION.hold(ECONOMY.people[0], ECONOMY.donor, ECONOMY.sponsor, [Draw(*ECONOMY.lot, 300)])
SETTLE, RENEWED = (FEDERATION.settle(ECONOMY.donor, HOLD, 100, epoch=epoch) for epoch in (1, 2))


class Link:
    """A node that answers each submission alike; no record claims the hold's slot there."""

    def __init__(self, answer):
        self.submitted = []
        self.answer = answer
        self.ended_by = None

    def submit_record(self, record, wait=0):
        self.submitted.append(record)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def post_unlock(self, request, wait=0):
        raise Rejected(Reason.REFERENCE_MISSING, "no record claims that slot yet")

    def get_job(self, hold):
        return job_api.Job("", "", "", "", 1, 0, 0, "HELD", "", None, self.ended_by)

    def get_record(self, name, wait=0):
        return SimpleNamespace(receipt=b"junk")


async def settle(link, seconds):
    """True when the loop goes on until the time is over."""

    async def insist(method, *arguments, **options):
        await trio.lowlevel.checkpoint()
        return method(*arguments, **options)

    shop: Any = SimpleNamespace(
        charter=FEDERATION.charter,
        charters={0: FEDERATION.charter},
        key=ECONOMY.donor.key,
        now=lambda: 1_000_010.0,
        post=SimpleNamespace(insist=insist, link=link),
    )
    document = JobDocument("12345678", b"", b"", "DONE", settle=SETTLE.encoded, hold=HOLD.id)
    with trio.move_on_after(seconds) as scope:
        job: Any = SimpleNamespace(document=document, save=lambda: None)
        await settling.settle(shop, job)
    return scope.cancelled_caught


@pytest.mark.parametrize("answer", [api.Submitted("", "waiting", None), UserError("this node is busy")])
async def test_a_settlement_that_the_node_forgot_or_had_no_room_for_is_sent_again(autojump_clock, answer):
    link = Link(answer)
    assert await settle(link, 3600)
    assert len(link.submitted) > 10
    assert set(link.submitted) == {SETTLE.encoded}


async def test_what_is_no_proof_of_an_end_ends_nothing(autojump_clock):
    link = Link(Rejected(Reason.SLOT_TAKEN))
    link.ended_by = "almr1"
    assert await settle(link, 60)


async def test_a_settlement_whose_epoch_has_passed_is_signed_anew_and_sent_more_and_more_seldom(
    autojump_clock, monkeypatch
):
    monkeypatch.setattr(settling, "build_settle", lambda shop, job: RENEWED)
    link = Link(Rejected(Reason.EPOCH_WRONG))
    assert await settle(link, 3600)
    assert link.submitted[:2] == [SETTLE.encoded, RENEWED.encoded]
    assert len(link.submitted) < 100
