"""Every settled charge of a donor, derived anew from what its cluster's accounting says: an auditor's second opinion.

The donor's own meter plays no part. Slurm's accounting says how long a job occupied what; the quote, which the payer's
hold names, says what that costs; the ledger says what was paid. An end that is charged must come out to the millicredit
(spec 12.1); one by the donor's fault may cost at most that (spec 12.4).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from node.donor.executors.slurm import NAME_PREFIX
from node.donor.executors.slurm_commands import AccountedJob
from node.donor.job_file import SETTLED, JobDocument
from protocol.charter import Charter
from protocol.errors import InvalidInput
from protocol.identifiers import ID_BYTES
from protocol.metering import CHARGED_STATES, JobState, compute_charge
from protocol.quotes import JobReceipt, Quote, QuoteRequest, decode_job_receipt, decode_quote, decode_quote_request

MEBIBYTE = 1 << 20
QUOTE_SECONDS_MAX = 86400
"""A quote is valid for some minutes; the clocks of agent and cluster may differ."""


class Difference(NamedTuple):
    """Something that does not fit."""

    hold: bytes
    kind: str
    """`amount`, `resources`, or where something is missing: `slurm`, `ledger`, `job file`."""
    detail: str


class Comparison(NamedTuple):
    """The result of an audit. `underpaid` jobs were charged less than they cost, as their payers did not sign more."""

    compared: int
    derived: int
    """Millicredits that the compared jobs cost by Slurm's accounting."""
    paid: int
    underpaid: int
    differences: list[Difference]


class _Charge(NamedTuple):
    """One job that was settled, from all sides."""

    quote: Quote
    request: QuoteRequest
    receipt: JobReceipt
    paid: int
    ran: AccountedJob | None

    @property
    def derived(self) -> int:
        """What it cost: nobody pays for time beyond the quote's, nor for a job that never ran."""
        elapsed_seconds = min(self.ran.elapsed_seconds, self.quote.wall_seconds) if self.ran else 0
        return compute_charge(elapsed_seconds * 1000, self.quote.rate)


def compare(
    charter: Charter,
    documents: Iterable[JobDocument],
    accounted: Iterable[AccountedJob],
    paid: Mapping[bytes, int | None],
) -> Comparison:
    """Compare the donor's job files, the jobs at Slurm, and the ledger's holds: `paid` says of each that it knows what
    this donor got, none while one is open, when it was reclaimed, or when it is another donor's.
    """
    ran = _group_by_hold(accounted)
    by_hold = {document.hold: document for document in documents if document.hold}
    differences: list[Difference] = []
    charges: list[_Charge] = []
    for hold, document in by_hold.items():
        amount = paid.get(hold)
        if amount is None:
            if document.state == SETTLED:
                differences.append(Difference(hold, "ledger", "the donor calls it settled, the ledger does not"))
            continue
        try:
            charge = _read_charge(charter, document, amount, ran.get(hold))
        except InvalidInput as error:
            differences.append(Difference(hold, "job file", f"{amount} were paid, but {error}"))
            continue
        charges.append(charge)
        differences += (Difference(hold, kind, detail) for kind, detail in _iterate_differences(charge))
    for hold in sorted(paid.keys() - by_hold.keys()):
        if paid[hold]:
            differences.append(Difference(hold, "job file", f"{paid[hold]} were paid for a job that left no file"))
    for hold in sorted(ran.keys() - paid.keys()):
        differences.append(Difference(hold, "ledger", f"ran as Slurm's job {ran[hold].number}, unknown to the ledger"))
    return Comparison(
        len(charges),
        sum(charge.derived for charge in charges),
        sum(charge.paid for charge in charges),
        sum(charge.paid < charge.receipt.amount for charge in charges),
        differences,
    )


def find_first_moment(charter: Charter, documents: Iterable[JobDocument]) -> float | None:
    """Unix time before which none of these jobs was submitted; none when there are none."""
    moments = [decode_quote(charter, document.quote).valid_until for document in documents]
    return min(moments) - QUOTE_SECONDS_MAX if moments else None


def find_hold(job: AccountedJob) -> bytes | None:
    """The hold that a job at Slurm ran for; none for other jobs. The name tells where a cluster drops comments."""
    if not job.name.startswith(NAME_PREFIX):
        return None
    named = job.name.removeprefix(NAME_PREFIX).rpartition("-")[0]
    try:
        hold = bytes.fromhex(named)
    except ValueError:
        return None
    return hold if len(hold) == ID_BYTES else None


def _group_by_hold(accounted: Iterable[AccountedJob]) -> dict[bytes, AccountedJob]:
    """Jobs that have ended. Of several for one hold only one ran; the others found it claimed, or never started."""
    found: dict[bytes, AccountedJob] = {}
    for job in accounted:
        hold = find_hold(job)
        if hold is None or not job.is_ended or not job.resources:  # without resources it was refused
            continue
        before = found.get(hold)
        if before is None or job.elapsed_seconds > before.elapsed_seconds:
            found[hold] = job
    return found


def _read_charge(charter: Charter, document: JobDocument, paid: int, ran: AccountedJob | None) -> _Charge:
    """Raises: InvalidInput for a job file that is damaged."""
    quote = decode_quote(charter, document.quote)
    request = decode_quote_request(charter, document.request)
    receipt = decode_job_receipt(charter, document.receipt, quote.donor_key, request.meter_key)
    return _Charge(quote, request, receipt, paid, ran)


def _iterate_differences(charge: _Charge) -> Iterator[tuple[str, str]]:
    """(kind, detail)."""
    receipt, paid, derived, ran = charge.receipt, charge.paid, charge.derived, charge.ran
    if ran is None:
        if paid or receipt.amount:
            yield "slurm", f"{paid} were paid, and Slurm knows no job for it"
        return
    seconds = f"{ran.elapsed_seconds} s at Slurm cost {derived}"
    if paid > derived:
        yield "amount", f"{paid} were paid, {seconds}"
    elif JobState(receipt.state) in CHARGED_STATES and receipt.amount != derived:
        yield "amount", f"{receipt.amount} were charged, {seconds}"
    rate = charge.quote.rate
    sold = (
        ("cores", rate.cores, ran.count("cpu")),
        ("GPUs", rate.gpus, ran.count("gres/gpu")),
        # Slurm counts memory in whole MiB.
        ("MiB of memory", charge.request.memory_bytes // MEBIBYTE, ran.memory_bytes // MEBIBYTE),
    )
    for what, asked, given in sold:
        if given < asked:
            yield "resources", f"{asked} {what} were sold, Slurm gave {given}"
