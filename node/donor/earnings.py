"""What this machine's jobs used and earned, read from the files that the agent keeps of each.

A job counts in the epoch of the record that settled it. While its hold is open it counts with what it may still cost:
limits that only looked at finished jobs would let any number start.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from node.donor.job_file import SETTLED, Institution, JobDocument
from protocol.charter import Charter
from protocol.quotes import decode_quote, decode_quote_request
from protocol.records import Settle, decode_record


class JobEntry(NamedTuple):
    """One job, as far as its owner's limits and the donor's accounts look at it."""

    conversation: str
    account: bytes
    """Who pays."""
    institutions: tuple[Institution, ...]
    state: str
    detail: str
    valid_until: int
    """Unix seconds until which the quote could be taken: minutes after it was asked for."""
    is_open: bool
    """Credits are put aside for it, and nobody has them yet."""
    epoch: int
    """Of its settlement; 0 before, and when the payer took everything back."""
    millicredits: int
    """Paid, or what it may still cost while it is open."""


class Use(NamedTuple):
    """What has been used here, seen from one account that asks for more."""

    account_jobs: int
    """That are open."""
    account_millicredits: int
    """In the epoch, open jobs included."""
    millicredits: int
    """The same of all accounts."""


class EpochEarnings(NamedTuple):
    """What the jobs that were settled in one epoch earned."""

    epoch: int
    jobs: int
    millicredits: int


class _Terms(NamedTuple):
    account: bytes
    amount_max: int
    valid_until: int


@lru_cache(maxsize=4096)
def _read_terms(charter: Charter, request: bytes, quote: bytes) -> _Terms:
    """Kept, because each look checks signatures and no job's terms ever change."""
    decoded = decode_quote(charter, quote)
    return _Terms(decode_quote_request(charter, request).account, decoded.amount_max, decoded.valid_until)


def read_entry(charter: Charter, document: JobDocument) -> JobEntry:
    """What a job's file says. `charter` is any version: only the federation counts. Raises: InvalidInput."""
    terms = _read_terms(charter, document.request, document.quote)
    is_open = bool(document.hold) and not document.is_over
    epoch, millicredits = 0, 0
    if is_open:
        millicredits = document.amount_due if document.receipt else terms.amount_max
    elif document.state == SETTLED:
        record = decode_record(charter.federation, document.settle)
        assert isinstance(record.body, Settle), "a settled job keeps the record that settled it"
        epoch, millicredits = record.epoch, record.body.amount
    return JobEntry(
        document.conversation,
        terms.account,
        tuple(document.institutions),
        document.state,
        document.detail,
        terms.valid_until,
        is_open,
        epoch,
        millicredits,
    )


def compute_use(entries: Iterable[JobEntry], account: bytes, epoch: int, but: str = "") -> Use:
    """What was used in `epoch`. Open jobs count in every epoch; the job of the conversation `but` does not count."""
    jobs, of_account, of_all = 0, 0, 0
    for entry in entries:
        if entry.conversation == but or not (entry.is_open or entry.epoch == epoch):
            continue
        of_all += entry.millicredits
        if entry.account == account:
            of_account += entry.millicredits
            jobs += entry.is_open
    return Use(jobs, of_account, of_all)


def sum_earnings(entries: Iterable[JobEntry]) -> list[EpochEarnings]:
    """By epoch, the latest first. Only what was paid counts."""
    sums: dict[int, EpochEarnings] = {}
    for entry in entries:
        if entry.epoch:
            before = sums.get(entry.epoch, EpochEarnings(entry.epoch, 0, 0))
            sums[entry.epoch] = EpochEarnings(entry.epoch, before.jobs + 1, before.millicredits + entry.millicredits)
    return sorted(sums.values(), reverse=True)
