"""What a job costs, and what is owed when it ends: the same integers on the donor's side and on the payer's.

While a job runs, the donor signs a *tick* now and then: so long has it run, so much is due in all. The payer's meter
key answers with a *voucher* for the same amount, which is what the ledger pays. Ticks are chained, so a donor can't
show two histories of one job. How a job ends decides which tick counts: refunds are code (spec 12.1, 12.3 and 12.4).
"""

from __future__ import annotations

from enum import StrEnum, unique
from typing import NamedTuple

from protocol.codec import VERSION_SHAPE, binary, decode, encode, items, optional_binary, uint
from protocol.credits import AMOUNT_MAX
from protocol.errors import InvalidInput
from protocol.identifiers import ID_BYTES, Tag, compute_id, compute_voucher_id
from protocol.limits import PROTOCOL_VERSION
from protocol.records import NONE
from protocol.signatures import SIGNATURE_BYTES, Signer, is_valid_signature

REFUND_TABLE_VERSION = 1
"""Names the table `CHARGED_STATES`; a quote says which one it was made under."""

CORES_MAX = 100_000
MEMORY_GB_MAX = 1_000_000
GPUS_MAX = 10_000
WALL_SECONDS_MAX = 30 * 24 * 3600

_UNITS_PER_GPU = 240
_UNITS_PER_CORE = 15
_UNITS_PER_GB = 2
_CHARGE_DIVISOR = 240_000


class Rate(NamedTuple):
    """What is occupied, and how fast it is: everything that the price of a second depends on."""

    weight: int
    """Thousandths of the reference GPU."""
    cores: int
    memory_gb: int
    """Thousand million bytes, rounded up; disk that lives in memory included."""
    gpus: int


def compute_charge(elapsed_ms: int, rate: Rate) -> int:
    """Millicredits for occupying this much for so long, rounded up once, over the whole time (spec 12.1).

    The largest share counts: a GPU is as dear as 16 cores or 120 GB of memory, so whoever takes all the memory of a
    machine pays for the machine. Written as `elapsed seconds * weight/1000 * max(GPUs, cores/16, GB/120)` credits
    and multiplied by 240,000 to stay in integers. Monotone in each argument.
    """
    assert elapsed_ms >= 0
    units = max(_UNITS_PER_GPU * rate.gpus, _UNITS_PER_CORE * rate.cores, _UNITS_PER_GB * rate.memory_gb)
    return -(-elapsed_ms * rate.weight * units // _CHARGE_DIVISOR)


def compute_affordable_ms(amount: int, rate: Rate) -> int:
    """The longest time whose charge is at most `amount`: the inverse of `compute_charge`."""
    assert amount >= 0
    units = max(_UNITS_PER_GPU * rate.gpus, _UNITS_PER_CORE * rate.cores, _UNITS_PER_GB * rate.memory_gb)
    return amount * _CHARGE_DIVISOR // (rate.weight * units)


def compute_memory_gb(memory_bytes: int) -> int:
    """Thousand million bytes, rounded up: what a rate counts."""
    return -(-memory_bytes // 10**9)


@unique
class JobState(StrEnum):
    """Where a job stands. From DONE on it has ended."""

    QUOTED = "QUOTED"
    HELD = "HELD"
    STAGING = "STAGING"
    RUNNING = "RUNNING"
    SUSPENDED = "SUSPENDED"
    DONE = "DONE"
    USER_FAILED = "USER_FAILED"
    DONOR_FAILED = "DONOR_FAILED"
    EVICTED = "EVICTED"
    CANCELLED = "CANCELLED"
    WALLTIME = "WALLTIME"
    POLICY_KILLED = "POLICY_KILLED"


END_STATES = frozenset(list(JobState)[list(JobState).index(JobState.DONE) :])

CHARGED_STATES = frozenset(
    {JobState.DONE, JobState.USER_FAILED, JobState.CANCELLED, JobState.WALLTIME, JobState.POLICY_KILLED}
)
"""The refund table, version 1 (spec 12.4): these ends are paid up to the last tick. The others, a donor's fault
(DONOR_FAILED) and its taking the machine back (EVICTED), are paid up to the last checkpoint, because the work after it
is lost."""

_TICK = items(
    VERSION_SHAPE,
    binary(ID_BYTES),
    uint(minimum=1),
    uint(WALL_SECONDS_MAX * 1000),
    uint(AMOUNT_MAX),
    optional_binary(ID_BYTES),
    optional_binary(ID_BYTES),
    binary(SIGNATURE_BYTES),
)
TICK_BYTES_MAX = 256


class Tick(NamedTuple):
    """The donor's word: the job of `hold` has occupied the machine for `elapsed_ms`, `amount` is due in all."""

    hold: bytes
    sequence: int
    """1, 2, 3 ...; voucher 0 is the payer's signature for nothing, given before the start."""
    elapsed_ms: int
    """Time that is charged: without pauses and without time in which the owner had the machine back."""
    amount: int
    """Cumulative millicredits."""
    prev: bytes
    """Id of the tick before; none for the first."""
    checkpoint: bytes
    """Digest of what the payer would have back if the donor failed now, or none."""
    signature: bytes

    def compute_id(self, federation: bytes) -> bytes:
        """What the donor's key signs and the next tick names."""
        return compute_id(Tag.TICK, federation, encode((PROTOCOL_VERSION, *self[:-1])))

    def encode(self) -> bytes:
        """The canonical bytes."""
        return encode((PROTOCOL_VERSION, *self))


def decode_tick(encoded: bytes) -> Tick:
    """Its signature is not checked: `check_tick` does. Raises: InvalidInput."""
    return Tick._make(decode(_TICK, encoded, TICK_BYTES_MAX)[1:])


def _compute_place(federation: bytes, before: Tick | None) -> tuple[int, bytes]:
    """(sequence, prev) of the tick after `before`."""
    return (before.sequence + 1, before.compute_id(federation)) if before else (1, NONE)


def sign_tick(
    federation: bytes,
    key: Signer,
    hold: bytes,
    rate: Rate,
    before: Tick | None,
    elapsed_ms: int,
    checkpoint: bytes = NONE,
) -> Tick:
    """The tick after `before`."""
    sequence, prev = _compute_place(federation, before)
    unsigned = Tick(hold, sequence, elapsed_ms, compute_charge(elapsed_ms, rate), prev, checkpoint, b"")
    return unsigned._replace(signature=key.sign(unsigned.compute_id(federation)))


def check_tick(
    federation: bytes,
    donor_key: bytes,
    hold: bytes,
    rate: Rate,
    amount_max: int,
    before: Tick | None,
    tick: Tick,
) -> None:
    """Raise `InvalidInput` unless the tick follows `before` and asks for exactly what the quote says (spec 12.3).

    Whether so much time can have passed is the payer's own clock's question, not asked here.
    """
    sequence, prev = _compute_place(federation, before)
    if tick.hold != hold or tick.sequence != sequence or tick.prev != prev:
        raise InvalidInput("the donor's tick does not follow the one before")
    if before is not None and tick.elapsed_ms < before.elapsed_ms:
        raise InvalidInput("the donor's meter ran backwards")
    if tick.amount != compute_charge(tick.elapsed_ms, rate):
        raise InvalidInput("the donor asks for another amount than the quote says")
    if tick.amount > amount_max:
        raise InvalidInput("the donor asks for more than was put aside")
    if not is_valid_signature(donor_key, tick.compute_id(federation), tick.signature):
        raise InvalidInput("the tick is not signed by the donor")


class Voucher(NamedTuple):
    """The payer's answer: `amount` millicredits in all may be taken from the hold. The ledger pays the last one."""

    hold: bytes
    sequence: int
    amount: int
    signature: bytes
    """By the hold's meter key."""


def sign_voucher(federation: bytes, meter_key: Signer, hold: bytes, sequence: int, amount: int) -> Voucher:
    """Sign only what `check_tick` has passed, or (0, 0) before the start."""
    voucher_id = compute_voucher_id(federation, hold, sequence, amount)
    return Voucher(hold, sequence, amount, meter_key.sign(voucher_id))


def check_voucher(federation: bytes, meter_key: bytes, hold: bytes, amount_max: int, voucher: Voucher) -> None:
    """Raise `InvalidInput` unless the ledger would pay this voucher (spec 7.7)."""
    if voucher.hold != hold or voucher.amount > amount_max:
        raise InvalidInput("the voucher is not for this hold, or for more than it has")
    voucher_id = compute_voucher_id(federation, hold, voucher.sequence, voucher.amount)
    if not is_valid_signature(meter_key, voucher_id, voucher.signature):
        raise InvalidInput("the voucher is not signed by the hold's meter key")


def compute_amount_due(refund_table: int, state: JobState, last: Tick | None, saved: Tick | None) -> int:
    """Millicredits that a job owes which ended in `state`: a pure function, so both sides get the same.

    `last` is the last co-signed tick, `saved` the first of them that named the newest checkpoint (spec 12.4).
    """
    assert refund_table == REFUND_TABLE_VERSION
    counted = find_counted_tick(state, last, saved)
    return counted.amount if counted else 0


def find_counted_tick(state: JobState, last: Tick | None, saved: Tick | None) -> Tick | None:
    """The tick by which a job that ended in `state` is paid, if any: what its receipt names (spec 12.5)."""
    assert state in END_STATES
    return last if state in CHARGED_STATES else saved
