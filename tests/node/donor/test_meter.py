"""The donor's meter and its file: every reading on disk, nothing on trust beyond one tick."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.donor.job_file import DOCUMENT_NAME, JobDocument, JobFile
from node.donor.meter import Meter
from node.errors import UserError
from protocol.errors import InvalidInput
from protocol.metering import JobState, Rate, compute_charge, sign_voucher
from protocol.quotes import Quote, QuoteRequest

FEDERATION = b"f" * 32
HOLD = b"h" * 32
DONOR = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
PAYER = Ed25519PrivateKey.from_private_bytes(bytes([2]) * 32)
RATE = Rate(1000, 2, 1, 0)
REQUEST = QuoteRequest(
    b"a" * 32,
    PAYER.public_key().public_bytes_raw(),
    b"s" * 32,
    b"o" * 32,
    2,
    1,
    1,
    0,
    0,
    100,
    b"",
    "batch",
    b"",
    b"",
    b"",
)
QUOTE = Quote(b"d" * 32, b"r" * 32, b"s" * 32, RATE, 100, 30, compute_charge(100_000, RATE), 60, 1, 0, 0, b"")


@pytest.fixture
def job(tmp_path):
    nothing = sign_voucher(FEDERATION, PAYER, HOLD, 0, 0)
    document = JobDocument("c", b"", b"", hold=HOLD, vouchers=[(0, 0, nothing.signature)])
    return JobFile.create(tmp_path, document)


@pytest.fixture
def meter(job):
    return Meter(FEDERATION, DONOR, job, QUOTE, REQUEST)


def agree(meter, tick):
    voucher = sign_voucher(FEDERATION, PAYER, HOLD, tick.sequence, tick.amount)
    meter.accept_voucher(voucher.sequence, voucher.amount, voucher.signature)


def test_the_job_must_stop_while_a_tick_lacks_its_voucher_and_once_the_credits_are_asked_back(meter):
    assert not meter.must_stop(is_reclaim_asked=False)
    tick = meter.add_tick(30_000)
    assert meter.must_stop(is_reclaim_asked=False)
    agree(meter, tick)
    assert not meter.must_stop(is_reclaim_asked=False)
    assert meter.must_stop(is_reclaim_asked=True)


def test_ticks_and_vouchers_are_on_disk_at_once(meter, job, tmp_path):
    agree(meter, meter.add_tick(30_000))
    meter.add_tick(60_000)
    (found,) = JobFile.load_all(tmp_path)
    assert found.document == job.document
    again = Meter(FEDERATION, DONOR, found, QUOTE, REQUEST)
    assert again.last_tick == meter.last_tick
    assert again.must_stop(is_reclaim_asked=False)


def test_time_beyond_the_wall_time_is_not_charged_and_the_meter_never_runs_back(meter):
    assert meter.add_tick(99_000).elapsed_ms == 99_000
    assert meter.add_tick(98_000).elapsed_ms == 99_000
    assert meter.add_tick(500_000).amount == QUOTE.amount_max


def test_a_voucher_for_another_amount_or_key_is_refused_and_an_old_one_ignored(meter, job):
    tick = meter.add_tick(30_000)
    low = sign_voucher(FEDERATION, PAYER, HOLD, 1, tick.amount - 1)
    forged = sign_voucher(FEDERATION, DONOR, HOLD, 1, tick.amount)
    for voucher in (low, forged):
        with pytest.raises(InvalidInput):
            meter.accept_voucher(voucher.sequence, voucher.amount, voucher.signature)
    agree(meter, tick)
    meter.accept_voucher(1, 0, b"\0" * 64)
    assert len(job.document.vouchers) == 2


def test_what_is_settled_never_exceeds_what_is_due(meter, job):
    first = meter.add_tick(30_000)
    agree(meter, first)
    second = meter.add_tick(60_000)
    agree(meter, second)
    assert meter.compute_due(JobState.DONE) == (second.amount, second)
    assert meter.compute_due(JobState.DONOR_FAILED) == (0, None)
    assert job.document.choose_voucher(second.amount).amount == second.amount
    assert job.document.choose_voucher(second.amount - 1).amount == first.amount
    assert job.document.choose_voucher(0).sequence == 0


def test_a_damaged_file_stops_the_agent_instead_of_losing_money(job, tmp_path):
    (job.directory / DOCUMENT_NAME).write_text("{")
    with pytest.raises(UserError, match="damaged"):
        JobFile.load_all(tmp_path)
