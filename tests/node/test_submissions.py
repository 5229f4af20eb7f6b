"""Records wait for their turn in a bounded queue, and whoever waits for one hears how it ended."""

import pytest

from node.submissions import SUBMISSIONS_MAX, WAITING_SECONDS_MAX, Busy
from protocol.errors import Reason, Rejected
from protocol.rules import Circumstances
from scripts.benchmarks.federation_in_memory import Cast

NOW = Circumstances(range(1, 2))


@pytest.fixture
async def cast():
    return Cast(4, 3)


@pytest.fixture
async def member(members):
    return members[0]


async def test_a_record_whose_predecessor_is_missing_waits_until_its_time_is_over(cast, member):
    cast.make_payments()
    second = cast.make_payments()[0]
    member.submissions.add(second, NOW, now=100)
    assert member.submissions.take(NOW, now=101) == []
    assert second.id in member.submissions
    assert member.submissions.take(NOW, now=101 + WAITING_SECONDS_MAX) == []
    assert member.submissions.take_rejected() == [second.id]
    with pytest.raises(Rejected) as caught:
        member.submissions.raise_failure(second.id)
    assert caught.value.reason is Reason.PREDECESSOR_MISSING


async def test_a_record_of_a_closed_epoch_is_refused_at_once(cast, member):
    with pytest.raises(Rejected) as caught:
        member.submissions.add(cast.make_payments()[0], Circumstances(range(3, 4)), now=100)
    assert caught.value.reason is Reason.EPOCH_WRONG


async def test_a_full_queue_asks_to_come_back_later(cast, member, monkeypatch):
    monkeypatch.setattr("node.submissions.SUBMISSIONS_MAX", 2)
    assert SUBMISSIONS_MAX > 2
    payments = cast.make_payments()
    for payment in payments[:2]:
        member.submissions.add(payment, NOW, now=100)
    with pytest.raises(Busy):
        member.submissions.add(payments[2], NOW, now=100)


async def test_what_does_not_fit_into_one_batch_goes_into_the_next(cast, member, monkeypatch):
    monkeypatch.setattr("node.submissions.RECORDS_PER_BATCH_MAX", 2)
    payments = cast.make_payments()
    for payment in payments:
        member.submissions.add(payment, NOW, now=100)
    assert member.submissions.take(NOW, now=100) == payments[:2]
    assert member.submissions.has_ready
    assert member.submissions.take(NOW, now=100) == payments[2:]
    assert not member.submissions.has_ready
