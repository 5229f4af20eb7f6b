"""The score of a donor: from the ledger alone, the same in any order, monotone in each of its inputs."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.disputes import DisputeReason
from protocol.ledger import Ledger
from protocol.records import Draw, Record, Settle
from protocol.reliability import (
    HALF_LIFE_EPOCHS,
    JOB_WEIGHT,
    PAYER_WEIGHT_MAX,
    PRIOR_SCORE,
    SCORE_MAX,
    Reliability,
    _bound_weights,
    compute_job_weight,
    compute_reliability,
    compute_score,
)
from protocol.states import HoldPhase
from tests.strategies import SEEDS, make_economy, make_federation, make_records_of_every_kind, write_history

FEDERATION = make_federation()
ECONOMY = make_economy(FEDERATION)
ALICE, DONOR = ECONOMY.people[0], ECONOMY.donor
WEIGHTS = st.integers(0, 10**9)


class Jobs:
    """Alice's jobs on the donor's machine, one after the other."""

    def __init__(self) -> None:
        self.ledger = Ledger(FEDERATION.charter)
        self.tips: dict[bytes, Record] = {}
        for record in ECONOMY.records:
            self.ledger.offer(record)

    def apply(self, record: Record) -> Record:
        assert self.ledger.offer(record) == [record]
        self.tips[record.scope] = record
        return record

    def _place(self, account: bytes) -> dict[str, Any]:
        tip = self.tips.get(b"\x01" + account)
        return {"sequence": tip.sequence + 1, "prev": tip.id} if tip else {}

    def hold(self) -> Record:
        draws = [Draw(*ECONOMY.lot, 10)]
        return self.apply(FEDERATION.hold(ALICE, DONOR, ECONOMY.sponsor, draws, **self._place(ALICE.account)))

    def settle(self, amount: int = 5, epoch: int = 1) -> Record:
        hold = self.hold()
        self.apply(FEDERATION.settle(DONOR, hold, amount, epoch=epoch))
        return hold

    def reclaim(self) -> Record:
        hold = self.hold()
        request = self.apply(FEDERATION.reclaim_request(ALICE, hold, **self._place(ALICE.account)))
        self.apply(FEDERATION.reclaim(ALICE, hold, request))
        return hold

    def dispute(self, hold: Record) -> None:
        self.apply(FEDERATION.dispute(ALICE, hold, **self._place(ALICE.account)))

    def read(self, epoch: int = 1) -> Reliability:
        return compute_reliability(self.ledger, epoch)[DONOR.account]


@given(WEIGHTS, WEIGHTS, WEIGHTS)
def test_the_score_is_monotone_in_each_input_and_has_bounds(kept, broken, more):
    score = compute_score(kept, broken)
    assert compute_score(kept + more, broken) >= score >= compute_score(kept, broken + more)
    assert 0 < score < SCORE_MAX


@given(st.integers(0, 200), st.integers(0, 200))
def test_older_jobs_never_count_more(age, more):
    assert compute_job_weight(age + more) <= compute_job_weight(age) <= JOB_WEIGHT
    assert compute_job_weight(HALF_LIFE_EPOCHS) == JOB_WEIGHT // 2
    assert compute_job_weight(-1) == JOB_WEIGHT


def test_who_is_new_gets_the_prior():
    assert Jobs().read() == Reliability()
    assert Reliability().score == PRIOR_SCORE == 500
    assert ALICE.account not in compute_reliability(Jobs().ledger, 1)


def test_each_end_moves_the_score_its_way():
    jobs = Jobs()
    jobs.hold()
    assert jobs.read().score == PRIOR_SCORE, "open jobs say nothing"
    jobs.settle(0)
    assert jobs.read().score == PRIOR_SCORE, "nor do those that gave everything back"
    kept = jobs.settle()
    assert jobs.read().score == 666
    jobs.dispute(kept)
    assert jobs.read().score == 333
    jobs.reclaim()
    assert jobs.read().score == 250
    jobs.apply(FEDERATION.dispute(DONOR, kept, DisputeReason.JOB_ABUSIVE))
    assert jobs.read() == Reliability(
        settled=2,
        settled_millicredits=5,
        returned=1,
        reclaimed=1,
        reclaimed_millicredits=10,
        disputed_by_payer=1,
        disputed_by_donor=1,
        open=1,
        first_epoch=1,
        last_epoch=1,
        kept_weight=0,
        broken_weight=2 * JOB_WEIGHT,
    )


def test_a_reclaimed_job_that_is_disputed_is_broken_once():
    jobs = Jobs()
    jobs.dispute(jobs.reclaim())
    assert jobs.read().score == 333


def test_one_payer_neither_makes_nor_ruins_a_name():
    friend, foe = Jobs(), Jobs()
    for _ in range(5):
        friend.settle()
        foe.reclaim()
    assert friend.read().kept_weight == foe.read().broken_weight == PAYER_WEIGHT_MAX
    assert (friend.read().score, foe.read().score) == (833, 166)
    friend.reclaim()
    assert friend.read().score == 722, "in the proportion of what was kept and broken"


def test_a_payer_for_whom_nobody_vouches_is_counted_and_not_weighed():
    jobs = Jobs()
    hold = jobs.settle()
    jobs.ledger.enrolments.clear()
    found = jobs.read()
    assert (found.settled, found.score) == (1, PRIOR_SCORE)
    jobs.dispute(hold)
    assert (jobs.read().disputed_by_payer, jobs.read().score) == (1, PRIOR_SCORE)


@given(WEIGHTS, WEIGHTS, WEIGHTS)
def test_more_of_a_payers_jobs_never_count_less(kept, broken, more):
    before, after = _bound_weights(kept, broken), _bound_weights(kept + more, broken)
    assert sum(before) <= PAYER_WEIGHT_MAX
    assert compute_score(*after) >= compute_score(*before)


def test_an_open_job_that_its_payer_disputes_is_broken():
    jobs = Jobs()
    jobs.dispute(jobs.hold())
    assert jobs.read().score == 333


def test_who_pays_itself_earns_no_name():
    jobs = Jobs()
    sponsor = jobs.apply(FEDERATION.sponsor(2, ALICE, sequence=1, prev=ECONOMY.sponsor.id))
    own = jobs.apply(FEDERATION.hold(ALICE, ALICE, sponsor, [Draw(*ECONOMY.lot, 10)]))
    jobs.apply(FEDERATION.settle(ALICE, own, 10))
    assert compute_reliability(jobs.ledger, 1)[ALICE.account] == Reliability()


@pytest.mark.parametrize("broken", [False, True])
def test_what_is_long_ago_fades_to_the_prior(broken):
    jobs = Jobs()
    hold = jobs.settle()
    if broken:
        jobs.dispute(hold)
    scores = [jobs.read(epoch).score for epoch in range(1, 80)]
    assert scores == sorted(scores, reverse=not broken)
    assert scores[0] != PRIOR_SCORE == scores[-1]


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.integers(0, 40))
def test_it_is_a_function_of_what_applied_and_counts_every_hold_once(seed, count):
    records = write_history(FEDERATION, seed, count)
    shuffled = Random(seed).sample(records, len(records))
    ledger, other = Ledger(FEDERATION.charter), Ledger(FEDERATION.charter)
    for record, another in zip(records, shuffled, strict=True):
        ledger.offer(record)
        other.offer(another)
    found = compute_reliability(ledger, 2)
    assert compute_reliability(other, 2) == found
    total = found[DONOR.account]
    holds = [hold for hold in ledger.holds.values() if hold.payer != DONOR.account]
    assert total.settled + total.reclaimed + total.open == len(holds)
    assert total.settled == sum(hold.phase is HoldPhase.SETTLED for hold in holds)
    assert total.settled_millicredits == sum(hold.paid for hold in holds)


def test_it_can_be_computed_from_every_history():
    ledger = Ledger(FEDERATION.charter)
    for record in make_records_of_every_kind(FEDERATION):
        ledger.offer(record)
        if isinstance(record.body, Settle):
            assert compute_reliability(ledger, 1)[DONOR.account].score > PRIOR_SCORE
