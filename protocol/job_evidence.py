"""What a side of a disputed job can show: one file, checked offline by anybody who has the founding document.

A dispute on the ledger names the file's hash. Everything in it is signed by the donor or by the job's meter key, or is
a receipt of finality; `verify_job_evidence` believes nothing else. Some of it convicts by itself: a donor that signed
two readings for one moment, or took more than it signed to be due. The rest is what the accuser asserts, for people to
judge (spec 12.12).

Law: an honest donor is never convicted, whatever the accuser leaves out of the file. Each claim therefore follows from
what is shown, never from what is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum, unique
from itertools import pairwise
from typing import Any, NamedTuple

from protocol.charter import Charters
from protocol.codec import VERSION_SHAPE, binary, binary_up_to, decode, encode, items, list_of, optional_binary, uint
from protocol.credits import AMOUNT_MAX
from protocol.disputes import DisputeReason
from protocol.errors import InvalidInput
from protocol.identifiers import compute_account_id
from protocol.limits import PROTOCOL_VERSION
from protocol.metering import (
    CHARGED_STATES,
    TICK_BYTES_MAX,
    Tick,
    Voucher,
    check_voucher,
    compute_charge,
    decode_tick,
)
from protocol.quotes import (
    JOB_RECEIPT_BYTES_MAX,
    QUOTE_BYTES_MAX,
    REQUEST_BYTES_MAX,
    SEAL_KEY_BYTES,
    JobReceipt,
    Quote,
    decode_job_receipt,
    decode_quote,
    decode_quote_request,
)
from protocol.receipts import RECEIPT_BYTES_MAX, verify_receipt
from protocol.records import Hold, Reclaim, Record, Settle, hold_scope
from protocol.signatures import SIGNATURE_BYTES, is_valid_signature

READINGS_MAX = 1000
"""Ticks, and vouchers, in one file: the newest, those with checkpoints and those that contradict each other."""
RERUNS_MAX = 2

JOB_EVIDENCE_BYTES_MAX = (2 + RERUNS_MAX) * (RECEIPT_BYTES_MAX + 4096) + READINGS_MAX * (TICK_BYTES_MAX + 96)
"""About 1.3 MB: a receipt of finality with a hundred members' commits is most of it; an ordinary file has 20 kB."""

_FINALITY = binary_up_to(RECEIPT_BYTES_MAX, 1)
_QUOTE = binary_up_to(QUOTE_BYTES_MAX, 1)
_KEY = optional_binary(SEAL_KEY_BYTES)
_EVIDENCE = items(
    VERSION_SHAPE,
    uint(len(DisputeReason), 1),
    _FINALITY,
    binary_up_to(RECEIPT_BYTES_MAX),
    binary_up_to(REQUEST_BYTES_MAX),
    _QUOTE,
    list_of(binary_up_to(TICK_BYTES_MAX, 1), READINGS_MAX),
    list_of(items(uint(), uint(AMOUNT_MAX), binary(SIGNATURE_BYTES)), READINGS_MAX),
    binary_up_to(JOB_RECEIPT_BYTES_MAX),
    _KEY,
    list_of(items(_FINALITY, _QUOTE, binary_up_to(JOB_RECEIPT_BYTES_MAX, 1), _KEY), RERUNS_MAX),
)


class Rerun(NamedTuple):
    """The same work, done once more: the accuser says that the inputs were the same, and what came out is signed."""

    hold_receipt: bytes
    quote: bytes
    job_receipt: bytes
    result_key: bytes
    """Private X25519 key that opens its results, or none."""


class JobEvidence(NamedTuple):
    """The parts of a file, each in its canonical bytes; empty where the accuser has none."""

    reason: int
    hold_receipt: bytes
    end_receipt: bytes
    """Proof that the settle or the reclaim is final."""
    request: bytes
    """The quote request. It tells the names of the job's two mailboxes, which matter no more once the job is over."""
    quote: bytes
    ticks: tuple[bytes, ...]
    """By the donor, for this hold: ascending by sequence, then by bytes."""
    vouchers: tuple[tuple[int, int, bytes], ...]
    """(sequence, amount, signature) by the meter key, ascending."""
    job_receipt: bytes
    result_key: bytes
    """Private X25519 key that opens the results, or none: whoever has the file can then read them."""
    reruns: tuple[Rerun, ...]

    def encode(self) -> bytes:
        """The canonical bytes: what the dispute's digest covers."""
        return encode((PROTOCOL_VERSION, *self))


@unique
class Claim(IntEnum):
    """What a file proves by itself, always against the donor: a payer signs nothing that could convict it."""

    METER_FORKED = 1
    """Two different ticks of one sequence."""
    METER_BACKWARDS = 2
    """A later tick that counts less time."""
    TICK_OVERCHARGED = 3
    """A tick above the charge for its time, or above the quote's amount."""
    RECEIPT_OVERCHARGED = 4
    """A job receipt above the tick that it names, or above nothing when it names none."""
    SETTLE_OVERCHARGED = 5
    """A settlement above what the donor's own job receipt says is due."""
    LOST_WORK_CHARGED = 6
    """Money for work after the last checkpoint, of a job that ended by the donor's fault."""


_SUPPORT = {
    DisputeReason.AMOUNT_NOT_DUE: frozenset(Claim),
    DisputeReason.WORK_LOST: frozenset({Claim.LOST_WORK_CHARGED}),
}


class JobVerdict(NamedTuple):
    """What a file shows. Only `claims` are proven; the reason is the accuser's word, unless one of them supports it."""

    reason: DisputeReason
    hold: Record
    payee: bytes
    claims: tuple[Claim, ...]
    """Ascending. All of them convict the payee."""
    receipt: JobReceipt | None
    end: Record | None
    reruns: tuple[JobReceipt, ...]

    @property
    def is_reason_proven(self) -> bool:
        """True when a claim proves what the dispute says."""
        return not _SUPPORT.get(self.reason, frozenset()).isdisjoint(self.claims)


class _Job(NamedTuple):
    """A final hold, with the quote that it names."""

    hold: Record
    terms: Hold
    quote: Quote


def decode_job_evidence(encoded: bytes) -> JobEvidence:
    """The parts, none of which is checked yet. Raises: InvalidInput."""
    raw = decode(_EVIDENCE, encoded, JOB_EVIDENCE_BYTES_MAX)[1:]
    return JobEvidence._make((*raw[:-1], tuple(map(Rerun._make, raw[-1]))))


def is_job_evidence(encoded: bytes) -> bool:
    """True for what has the form of such a file, whatever it proves."""
    try:
        decode_job_evidence(encoded)
    except InvalidInput:
        return False
    return True


def verify_job_evidence(charters: Charters, encoded: bytes) -> JobVerdict:
    """What the file proves under these versions of the charter.

    Raises: InvalidInput when a part is not what it should be: a file with one foreign or forged part shows nothing.
    """
    evidence = decode_job_evidence(encoded)
    federation = charters[0].federation
    job = _verify_hold(charters, evidence.hold_receipt, evidence.quote)
    if evidence.request:
        request = decode_quote_request(charters[0], evidence.request)
        asked = (request.compute_id(federation), request.meter_key)
        if asked != (job.quote.request, job.terms.terms.meter_key):
            raise InvalidInput("the quote request is another job's")
    ticks = list(_verify_ticks(federation, job, evidence.ticks))
    _verify_vouchers(federation, job, evidence.vouchers)
    receipt = _verify_job_receipt(charters, job, evidence.job_receipt) if evidence.job_receipt else None
    end = verify_receipt(charters, evidence.end_receipt).record if evidence.end_receipt else None
    if end is not None and end.scope != hold_scope(job.hold.id):
        raise InvalidInput("the receipt of the end is for another hold")
    assert end is None or isinstance(end.body, (Settle, Reclaim))
    reruns = []
    for rerun in evidence.reruns:
        other = _verify_hold(charters, rerun.hold_receipt, rerun.quote)
        reruns.append(_verify_job_receipt(charters, other, rerun.job_receipt))
    claims = {*_find_meter_claims(job.quote, ticks)}
    if receipt is not None:
        claims.update(_find_receipt_claims(federation, receipt, ticks))
        claims.update(_find_settle_claims(receipt, end))
    reason = DisputeReason(evidence.reason)
    return JobVerdict(reason, job.hold, job.terms.payee, tuple(sorted(claims)), receipt, end, tuple(reruns))


# -- what the parts are -----------------------------------------------------------------------------------------------


def _verify_hold(charters: Charters, hold_receipt: bytes, encoded_quote: bytes) -> _Job:
    record = verify_receipt(charters, hold_receipt).record
    if not isinstance(record.body, Hold):
        raise InvalidInput("the receipt of the hold is for another kind of record")
    federation, body = charters[0].federation, record.body
    quote = decode_quote(charters[0], encoded_quote)
    if quote.compute_id(federation) != body.terms.quote:
        raise InvalidInput("the hold names another quote")
    if compute_account_id(federation, quote.donor_key) != body.payee:
        raise InvalidInput("the quote is not by the hold's payee")
    return _Job(record, body, quote)


def _verify_ticks(federation: bytes, job: _Job, encoded_ticks: tuple[bytes, ...]) -> Iterator[Tick]:
    ticks = [decode_tick(encoded) for encoded in encoded_ticks]
    places = [(tick.sequence, encoded) for tick, encoded in zip(ticks, encoded_ticks, strict=True)]
    if any(left >= right for left, right in pairwise(places)):
        raise InvalidInput("the ticks must stand in ascending order, each once")
    for tick in ticks:
        if tick.hold != job.hold.id:
            raise InvalidInput("a tick is another job's")
        if not is_valid_signature(job.quote.donor_key, tick.compute_id(federation), tick.signature):
            raise InvalidInput("a tick is not signed by the donor")
        yield tick


def _verify_vouchers(federation: bytes, job: _Job, vouchers: tuple[Any, ...]) -> None:
    if any(left >= right for left, right in pairwise(vouchers)):
        raise InvalidInput("the vouchers must stand in ascending order, each once")
    amount_max = sum(draw.amount for draw in job.terms.draws)
    for voucher in vouchers:
        check_voucher(federation, job.terms.terms.meter_key, job.hold.id, amount_max, Voucher(job.hold.id, *voucher))


def _verify_job_receipt(charters: Charters, job: _Job, encoded: bytes) -> JobReceipt:
    receipt = decode_job_receipt(charters[0], encoded, job.quote.donor_key, job.terms.terms.meter_key)
    if (receipt.hold, receipt.quote) != (job.hold.id, job.terms.terms.quote):
        raise InvalidInput("the job receipt names another hold or quote")
    return receipt


# -- what they prove --------------------------------------------------------------------------------------------------


def _find_meter_claims(quote: Quote, ticks: list[Tick]) -> Iterator[Claim]:
    """A correct donor keeps a tick before it shows it, and its meter never runs backwards nor above the quote."""
    for before, after in pairwise(ticks):
        if before.sequence == after.sequence and before[:-1] != after[:-1]:
            yield Claim.METER_FORKED
        if before.sequence < after.sequence and before.elapsed_ms > after.elapsed_ms:
            yield Claim.METER_BACKWARDS
    for tick in ticks:
        if tick.amount > min(compute_charge(tick.elapsed_ms, quote.rate), quote.amount_max):
            yield Claim.TICK_OVERCHARGED


def _find_receipt_claims(federation: bytes, receipt: JobReceipt, ticks: list[Tick]) -> Iterator[Claim]:
    """A receipt is held against the tick that it names. Where that is not shown, nothing follows: the accuser may have
    left it out."""
    if not receipt.amount:
        return
    if not receipt.tick:
        yield Claim.RECEIPT_OVERCHARGED
    for tick in ticks:
        if tick.compute_id(federation) == receipt.tick:
            if receipt.amount > tick.amount:
                yield Claim.RECEIPT_OVERCHARGED
            if receipt.state not in CHARGED_STATES and not tick.checkpoint:
                yield Claim.LOST_WORK_CHARGED


def _find_settle_claims(receipt: JobReceipt, end: Record | None) -> Iterator[Claim]:
    """The donor signed what is due, and chose the voucher by which it was paid."""
    if end is not None and isinstance(end.body, Settle) and end.body.amount > receipt.amount:
        yield Claim.SETTLE_OVERCHARGED
        if receipt.state not in CHARGED_STATES:
            yield Claim.LOST_WORK_CHARGED
