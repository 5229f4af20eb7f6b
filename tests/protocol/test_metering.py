"""What a job costs: the price rule, the chain of ticks, vouchers, and who pays for which end."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import assume, given
from hypothesis import strategies as st

from protocol.errors import InvalidInput
from protocol.metering import (
    CHARGED_STATES,
    END_STATES,
    REFUND_TABLE_VERSION,
    JobState,
    Rate,
    Tick,
    check_tick,
    check_voucher,
    compute_affordable_ms,
    compute_amount_due,
    compute_charge,
    compute_memory_gb,
    decode_tick,
    sign_tick,
    sign_voucher,
)

FEDERATION = bytes(range(32))
HOLD = b"h" * 32
KEY = Ed25519PrivateKey.from_private_bytes(bytes([5]) * 32)
PUBLIC = KEY.public_key().public_bytes_raw()
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes([6]) * 32)
RATE = Rate(weight=1000, cores=2, memory_gb=8, gpus=0)
HOUR_MS = 3_600_000

rates = st.builds(Rate, st.integers(1, 10**6), st.integers(1, 10**5), st.integers(1, 10**6), st.integers(0, 10**4))
durations = st.integers(0, 30 * 24 * HOUR_MS)


@pytest.mark.parametrize(
    ("elapsed_ms", "rate", "amount"),
    [
        (1000, Rate(1000, 1, 1, 1), 1000),  # one second of the reference GPU is one credit
        (1000, Rate(1000, 16, 120, 1), 1000),  # with it come 16 cores and 120 GB
        (1000, Rate(1000, 17, 1, 1), 1063),
        (1000, Rate(1000, 1, 121, 1), 1009),
        (1000, Rate(1000, 1, 1, 8), 8000),
        (HOUR_MS, Rate(7, 2, 4, 0), 3150),
        (1, Rate(1, 1, 1, 0), 1),  # rounded up once
        (0, Rate(1000, 64, 1, 8), 0),
    ],
)
def test_golden_prices(elapsed_ms, rate, amount):
    assert compute_charge(elapsed_ms, rate) == amount


@given(durations, rates)
def test_the_price_is_the_formula_in_exact_fractions_rounded_up(elapsed_ms, rate):
    share = max(Fraction(rate.gpus), Fraction(rate.cores, 16), Fraction(rate.memory_gb, 120))
    assert compute_charge(elapsed_ms, rate) == ceil(Fraction(elapsed_ms) * Fraction(rate.weight, 1000) * share)


@given(durations, durations, rates)
def test_metering_in_parts_never_costs_less_and_at_most_a_millicredit_more(first, second, rate):
    together = compute_charge(first + second, rate)
    apart = compute_charge(first, rate) + compute_charge(second, rate)
    assert together <= apart <= together + 1


@given(durations, st.integers(0, HOUR_MS), rates)
def test_more_time_never_costs_less(elapsed_ms, more, rate):
    assert compute_charge(elapsed_ms, rate) <= compute_charge(elapsed_ms + more, rate)


@given(st.integers(0, 10**9), rates)
def test_the_affordable_time_is_the_longest_whose_charge_fits(amount, rate):
    assume(rate.cores or rate.memory_gb or rate.gpus)
    affordable_ms = compute_affordable_ms(amount, rate)
    assert compute_charge(affordable_ms, rate) <= amount < compute_charge(affordable_ms + 1, rate)


def test_memory_counts_in_thousand_million_bytes_rounded_up():
    assert [compute_memory_gb(size) for size in (1, 10**9, 10**9 + 1)] == [1, 1, 2]


def make_ticks(*elapsed_ms):
    ticks: list[Tick] = []
    for elapsed in elapsed_ms:
        ticks.append(sign_tick(FEDERATION, KEY, HOLD, RATE, ticks[-1] if ticks else None, elapsed))
    return ticks


def check(before, tick, amount_max=10**9):
    check_tick(FEDERATION, PUBLIC, HOLD, RATE, amount_max, before, tick)


def test_a_chain_of_honest_ticks_is_accepted_and_survives_its_encoding():
    before = None
    for tick in make_ticks(30_000, 60_000, 60_000, 91_234):
        assert decode_tick(tick.encode()) == tick
        check(before, tick)
        before = tick


def sign_again(tick):
    return tick._replace(signature=KEY.sign(tick.compute_id(FEDERATION)))


def test_a_tick_that_cheats_is_refused_although_the_donor_signed_it():
    first, second = make_ticks(30_000, 60_000)
    cheats = [
        (first, sign_again(second._replace(amount=second.amount + 1))),
        (first, sign_again(second._replace(amount=second.amount - 1))),
        (first, sign_again(second._replace(sequence=3))),
        (first, sign_again(second._replace(prev=b"x" * 32))),
        (first, sign_again(second._replace(hold=b"x" * 32))),
        (None, second),
        (second, first),
        (second, sign_tick(FEDERATION, KEY, HOLD, RATE, second, 59_999)),
    ]
    for before, tick in cheats:
        with pytest.raises(InvalidInput):
            check(before, tick)


def test_a_tick_of_somebody_else_or_over_the_hold_is_refused():
    (tick,) = make_ticks(30_000)
    with pytest.raises(InvalidInput, match="not signed"):
        check(None, tick._replace(signature=OTHER_KEY.sign(tick.compute_id(FEDERATION))))
    with pytest.raises(InvalidInput, match="put aside"):
        check(None, tick, amount_max=tick.amount - 1)


def test_a_voucher_is_good_for_its_hold_its_amount_and_its_key_only():
    voucher = sign_voucher(FEDERATION, KEY, HOLD, 1, 500)
    check_voucher(FEDERATION, PUBLIC, HOLD, 500, voucher)
    for wrong in (
        voucher._replace(amount=501),
        voucher._replace(amount=499),
        voucher._replace(sequence=2),
        voucher._replace(hold=b"x" * 32),
        sign_voucher(FEDERATION, OTHER_KEY, HOLD, 1, 500),
        sign_voucher(bytes(32), KEY, HOLD, 1, 500),
    ):
        with pytest.raises(InvalidInput):
            check_voucher(FEDERATION, PUBLIC, HOLD, 500, wrong)


@pytest.mark.parametrize("state", sorted(END_STATES))
def test_each_end_of_a_job_has_its_refund(state):
    checkpoint, last = make_ticks(30_000, 60_000)
    expected = {
        JobState.DONE: last.amount,
        JobState.USER_FAILED: last.amount,
        JobState.CANCELLED: last.amount,
        JobState.WALLTIME: last.amount,
        JobState.POLICY_KILLED: last.amount,
        JobState.DONOR_FAILED: checkpoint.amount,
        JobState.EVICTED: checkpoint.amount,
    }
    assert set(expected) == END_STATES
    assert compute_amount_due(REFUND_TABLE_VERSION, state, last, checkpoint) == expected[state]
    without_checkpoint = compute_amount_due(REFUND_TABLE_VERSION, state, last, None)
    assert without_checkpoint == (last.amount if state in CHARGED_STATES else 0)
    assert compute_amount_due(REFUND_TABLE_VERSION, state, None, None) == 0


def test_golden_tick():
    (tick,) = make_ticks(30_000)
    assert tick.amount == 3750
    assert tick.compute_id(FEDERATION).hex() == "836ad228a67c4eb2aa1594a45bae7e513eea0f436e2ee813902c761b53a9823f"
