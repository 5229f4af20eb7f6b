"""The meter of one run, both sides of it: ticks of the donor, vouchers of the payer, the job receipt of both.

It is read when the run is over: nobody looks at a tick in between, so what comes out is what would have come out tick
by tick. Each side checks what the other one signed, by the product's rules.
"""

from __future__ import annotations

from hashlib import sha256
from typing import NamedTuple

from protocol.charter import Charter
from protocol.metering import (
    CHARGED_STATES,
    JobState,
    Tick,
    Voucher,
    check_tick,
    check_voucher,
    compute_amount_due,
    sign_tick,
    sign_voucher,
)
from protocol.quotes import NO_EXIT_STATUS, JobReceipt, Quote, decode_job_receipt
from protocol.records import NONE
from protocol.signatures import Signer


class Contract(NamedTuple):
    """What a run is metered by."""

    charter: Charter
    hold: bytes
    quote: Quote
    donor_key: Signer
    meter_key: Signer
    meter_public_key: bytes


class Reading(NamedTuple):
    """What the meter says at the end."""

    amount: int
    """Millicredits due."""
    voucher: Voucher
    """The payer's signature for just that much."""
    receipt: bytes
    """Id of the job receipt."""
    saved_ms: int
    """Of this run, what the last checkpoint holds."""
    paid_ms: int
    """The time that is charged."""
    ticks: int


class _Meter:
    """Ticks out, vouchers in. Invariant: each tick has its voucher before the next one is signed (spec 12.3)."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        first = sign_voucher(contract.charter.federation, contract.meter_key, contract.hold, 0, 0)
        self.last: Tick | None = None
        self.last_checkpoint: Tick | None = None
        self.vouchers = {0: first}
        """By amount."""

    def read(self, elapsed_ms: int, checkpoint: bytes) -> None:
        """The donor signs one more tick, and the payer agrees."""
        charter, hold, quote, donor_key, meter_key, meter_public_key = self.contract
        federation = charter.federation
        tick = sign_tick(federation, donor_key, hold, quote.rate, self.last, elapsed_ms, checkpoint)
        check_tick(federation, quote.donor_key, hold, quote.rate, quote.amount_max, self.last, tick)
        voucher = sign_voucher(federation, meter_key, hold, tick.sequence, tick.amount)
        check_voucher(federation, meter_public_key, hold, quote.amount_max, voucher)
        self.vouchers[tick.amount] = voucher
        self.last = tick
        if checkpoint:
            self.last_checkpoint = tick


def read_meter(contract: Contract, state: JobState, elapsed_ms: int, has_checkpoints: bool) -> Reading:
    """The reading for a run that ended in this state after `elapsed_ms`.

    As a donor's agent does it: a tick at each interval, with a checkpoint where the job keeps one; at the end one more
    when the end is charged, or when an eviction left time for a last checkpoint.
    """
    meter = _Meter(contract)
    interval_ms = contract.quote.tick_seconds * 1000
    for time_ms in range(interval_ms, elapsed_ms, interval_ms):
        meter.read(time_ms, _make_checkpoint(contract, time_ms) if has_checkpoints else NONE)
    if state in CHARGED_STATES:
        meter.read(elapsed_ms, NONE)
    elif state == JobState.EVICTED and has_checkpoints:
        meter.read(elapsed_ms, _make_checkpoint(contract, elapsed_ms))
    amount = compute_amount_due(contract.quote.refund_table, state, meter.last, meter.last_checkpoint)
    counted = meter.last if state in CHARGED_STATES else meter.last_checkpoint
    receipt = _sign_receipt(contract, state, elapsed_ms, amount, counted)
    return Reading(
        amount,
        meter.vouchers[amount],
        receipt.compute_id(contract.charter.federation),
        meter.last_checkpoint.elapsed_ms if meter.last_checkpoint else 0,
        counted.elapsed_ms if counted else 0,
        meter.last.sequence if meter.last else 0,
    )


def _make_checkpoint(contract: Contract, time_ms: int) -> bytes:
    """Stands for the digest of a sealed checkpoint."""
    return sha256(b"checkpoint" + contract.hold + time_ms.to_bytes(8, "big")).digest()


def _sign_receipt(
    contract: Contract, state: JobState, elapsed_ms: int, amount: int, counted: Tick | None
) -> JobReceipt:
    """The job receipt, signed by both sides and read again as anybody would."""
    charter, quote = contract.charter, contract.quote
    exit_status = {JobState.DONE: 0, JobState.USER_FAILED: 1}.get(state, NO_EXIT_STATUS)
    tick = counted.compute_id(charter.federation) if counted and amount else NONE
    receipt = JobReceipt(
        hold=contract.hold,
        quote=quote.compute_id(charter.federation),
        state=state,
        exit_status=exit_status,
        wall_ms=elapsed_ms,
        cpu_us_plus_one=0,
        memory_peak_bytes=0,
        energy_joules_plus_one=0,
        outputs=NONE,
        amount=amount,
        tick=tick,
        donor_signature=b"",
        meter_signature=b"",
    ).sign_as_donor(charter.federation, contract.donor_key)
    receipt = receipt.sign_as_payer(charter.federation, contract.meter_key)
    return decode_job_receipt(charter, receipt.encode(), quote.donor_key, contract.meter_public_key)
