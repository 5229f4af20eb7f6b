"""What a payer signs of a donor's meter, and when a donor stops for want of a signature."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.countersigning import (
    PayersMeter,
    check_follows_tick,
    choose_voucher,
    find_saved_tick,
    must_stop,
)
from protocol.errors import InvalidInput
from protocol.metering import (
    JobState,
    Rate,
    check_voucher,
    compute_charge,
    sign_tick,
    sign_voucher,
)
from protocol.quotes import NO_EXIT_STATUS, JobReceipt, Quote

FEDERATION = bytes(range(32))
HOLD = b"h" * 32
DONOR = Ed25519PrivateKey.from_private_bytes(bytes([5]) * 32)
METER = Ed25519PrivateKey.from_private_bytes(bytes([6]) * 32)
METER_PUBLIC = METER.public_key().public_bytes_raw()
RATE = Rate(1000, 2, 8, 0)
DONOR_PUBLIC = DONOR.public_key().public_bytes_raw()
QUOTE = Quote(DONOR_PUBLIC, b"r" * 32, b"s" * 32, RATE, 600, 30, compute_charge(600_000, RATE), 60, 1, 0, 0, b"")
START = 1_000_000
CHECKPOINT = b"c" * 32


def make_meter(**options):
    return PayersMeter(FEDERATION, QUOTE, HOLD, METER, START, **options)


def make_tick(before, elapsed_ms, checkpoint=b"", hold=HOLD):
    return sign_tick(FEDERATION, DONOR, hold, RATE, before, elapsed_ms, checkpoint)


def sign_again(tick):
    return tick._replace(signature=DONOR.sign(tick.compute_id(FEDERATION)))


def test_a_tick_that_follows_gets_a_voucher_that_the_ledger_pays():
    meter = make_meter()
    first = make_tick(None, 30_000)
    voucher = meter.answer(first, START + 30)
    assert voucher == sign_voucher(FEDERATION, METER, HOLD, 1, first.amount)
    check_voucher(FEDERATION, METER_PUBLIC, HOLD, QUOTE.amount_max, voucher)
    assert meter.last == first


def test_the_last_tick_is_answered_again_with_the_same_bytes_and_earlier_ones_are_not():
    meter = make_meter()
    first = make_tick(None, 30_000)
    second = make_tick(first, 60_000)
    meter.answer(first, START + 30)
    voucher = meter.answer(second, START + 60)
    assert meter.answer(second, START + 60) == voucher
    assert meter.answer(first, START + 60) is None
    assert make_meter(last=second).answer(second, START + 60) == voucher


@pytest.mark.parametrize(
    "make",
    [
        lambda first, second: sign_again(second._replace(amount=second.amount + 1)),
        lambda first, second: sign_again(second._replace(sequence=3)),
        lambda first, second: sign_again(second._replace(hold=b"x" * 32)),
        lambda first, second: sign_again(second._replace(prev=b"x" * 32)),
        lambda first, second: make_tick(first, 29_999),
        lambda first, second: make_tick(None, 31_000),  # another tick 1: a fork
        lambda first, second: second._replace(signature=bytes(64)),
        lambda first, second: make_tick(first, 66_001),  # more than can have passed, and the slack
        lambda first, second: make_tick(first, 60_000, CHECKPOINT),  # nobody has that
    ],
)
def test_what_does_not_follow_or_can_not_be_is_not_signed_and_changes_nothing(make):
    meter = make_meter()
    first = make_tick(None, 30_000)
    meter.answer(first, START + 30)
    with pytest.raises(InvalidInput):
        meter.answer(make(first, make_tick(first, 60_000)), START + 60)
    assert (meter.last, meter.checkpoint) == (first, None)


def test_nothing_is_signed_before_the_start_after_the_end_or_above_a_lower_limit():
    tick = make_tick(None, 30_000)
    unstarted = PayersMeter(FEDERATION, QUOTE, HOLD, METER, 0)
    closed = make_meter()
    closed.is_closed = True
    limited = make_meter(amount_max=tick.amount - 1)
    for meter in (unstarted, closed, limited):
        with pytest.raises(InvalidInput):
            meter.answer(tick, START + 30)
    assert make_meter(amount_max=tick.amount).answer(tick, START + 30)


def test_a_limit_above_the_quote_lifts_nothing():
    meter = make_meter(amount_max=10 * QUOTE.amount_max)
    with pytest.raises(InvalidInput, match="put aside"):
        meter.answer(make_tick(None, 601_000), START + 3600)


def test_a_pause_only_lowers_what_is_due():
    meter = make_meter()
    tick = make_tick(None, 30_000)
    meter.answer(tick, START + 30)
    paused = make_tick(tick, 30_000)
    voucher = meter.answer(paused, START + 500)
    assert voucher is not None
    assert voucher.amount == tick.amount


def test_a_checkpoint_counts_when_the_payer_has_it_and_only_once():
    meter = make_meter()
    first = make_tick(None, 30_000, CHECKPOINT)
    assert meter.find_new_checkpoint(first) == CHECKPOINT
    with pytest.raises(InvalidInput, match="had"):
        meter.answer(first, START + 30, b"x" * 32)
    meter.answer(first, START + 30, CHECKPOINT)
    second = make_tick(first, 60_000, CHECKPOINT)
    assert not meter.find_new_checkpoint(second)
    meter.answer(second, START + 60)
    assert meter.checkpoint == first == find_saved_tick([first, second])
    assert meter.compute_due(JobState.DONOR_FAILED) == first.amount
    assert meter.compute_due(JobState.DONE) == second.amount


def make_receipt(state, amount, hold=HOLD):
    quote = QUOTE.compute_id(FEDERATION)
    receipt = JobReceipt(hold, quote, state, NO_EXIT_STATUS, 0, 0, 0, 0, b"", amount, b"", b"", b"")
    return receipt.sign_as_donor(FEDERATION, DONOR)


def test_a_job_receipt_is_signed_only_for_what_is_due():
    meter = make_meter()
    tick = make_tick(None, 30_000)
    meter.answer(tick, START + 30)
    assert meter.agree(make_receipt(JobState.DONE, tick.amount)).meter_signature
    for receipt in (
        make_receipt(JobState.DONE, tick.amount + 1),
        make_receipt(JobState.EVICTED, tick.amount),
        make_receipt(JobState.DONE, tick.amount, b"x" * 32),
    ):
        with pytest.raises(InvalidInput):
            meter.agree(receipt)


def test_a_donor_stops_when_a_voucher_is_missing_or_the_credits_are_asked_back():
    tick = make_tick(make_tick(None, 30_000), 60_000)
    assert not must_stop(None, 0, is_reclaim_asked=False)
    assert not must_stop(tick, 2, is_reclaim_asked=False)
    assert must_stop(tick, 1, is_reclaim_asked=False)
    assert must_stop(tick, 2, is_reclaim_asked=True)
    assert must_stop(None, 0, is_reclaim_asked=True)


def test_a_donor_keeps_vouchers_for_its_own_ticks_and_settles_with_the_best_that_is_not_above_the_due():
    tick = make_tick(None, 30_000)
    check_follows_tick([tick], 1, tick.amount)
    for wrong in ((2, tick.amount), (1, tick.amount + 1)):
        with pytest.raises(InvalidInput):
            check_follows_tick([tick], *wrong)
    vouchers = [sign_voucher(FEDERATION, METER, HOLD, *values) for values in ((0, 0), (1, 100), (2, 200))]
    assert [choose_voucher(vouchers, due).amount for due in (0, 99, 100, 199, 1000)] == [0, 0, 100, 100, 200]
