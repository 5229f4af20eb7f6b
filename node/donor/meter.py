"""The meter of one running job: ticks that the donor signs, vouchers with which the payer agrees.

The donor trusts the payer with one tick: when the voucher for the tick before is still missing as the next one falls
due, the job is stopped. Each tick and voucher is on disk before anything follows from it.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.donor.job_file import JobFile
from protocol.countersigning import check_follows_tick, find_saved_tick, must_stop
from protocol.metering import (
    JobState,
    Tick,
    Voucher,
    check_voucher,
    compute_amount_due,
    find_counted_tick,
    sign_tick,
)
from protocol.quotes import Quote, QuoteRequest
from protocol.records import NONE


class Meter:
    """Ticks out, vouchers in. Invariant: each accepted voucher is for exactly one of our ticks."""

    def __init__(
        self, federation: bytes, key: Ed25519PrivateKey, job: JobFile, quote: Quote, request: QuoteRequest
    ) -> None:
        self._federation = federation
        self._key = key
        self._job = job
        self._quote = quote
        self._request = request
        self._ticks = job.document.list_ticks()

    @property
    def last_tick(self) -> Tick | None:
        """The newest tick, co-signed or not."""
        return self._ticks[-1] if self._ticks else None

    def list_unanswered_ticks(self) -> list[Tick]:
        """The ticks for which no voucher came yet, in order; the payer takes each only after the one before."""
        agreed = self._job.document.vouchers[-1][0]
        return [tick for tick in self._ticks if tick.sequence > agreed]

    def must_stop(self, *, is_reclaim_asked: bool) -> bool:
        """True when a further tick would be given for nothing: the newest has no voucher, or the credits go back."""
        return must_stop(self.last_tick, self._job.document.vouchers[-1][0], is_reclaim_asked=is_reclaim_asked)

    @property
    def is_paid_up(self) -> bool:
        """True when there is a voucher for all that is due."""
        document = self._job.document
        return document.choose_voucher(document.amount_due).amount == document.amount_due

    def add_tick(self, elapsed_ms: int, checkpoint: bytes = NONE) -> Tick:
        """Read the meter. `checkpoint` names what the payer has back from that moment.

        Time beyond the quote's wall time is never charged, whatever the clock says.
        """
        before = self.last_tick
        charged_ms = min(elapsed_ms, self._quote.wall_seconds * 1000)
        if before is not None:
            charged_ms = max(charged_ms, before.elapsed_ms)
        tick = sign_tick(
            self._federation, self._key, self._job.document.hold, self._quote.rate, before, charged_ms, checkpoint
        )
        self._ticks.append(tick)
        self._job.document.ticks.append(tick.encode())
        self._job.save()
        return tick

    def accept_voucher(self, sequence: int, amount: int, signature: bytes) -> None:
        """Keep a voucher. One that came before is ignored. Raises: InvalidInput when it is for none of our ticks."""
        document = self._job.document
        if document.vouchers and sequence <= document.vouchers[-1][0]:
            return
        check_follows_tick(self._ticks, sequence, amount)
        self.check_signature(Voucher(document.hold, sequence, amount, signature))
        document.vouchers.append((sequence, amount, signature))
        self._job.save()

    def check_signature(self, voucher: Voucher) -> None:
        """Raise `InvalidInput` unless the ledger would pay it."""
        check_voucher(self._federation, self._request.meter_key, voucher.hold, self._quote.amount_max, voucher)

    def compute_due(self, state: JobState) -> tuple[int, Tick | None]:
        """(millicredits, the tick that counts) for a job that ended so."""
        last, saved = self.last_tick, find_saved_tick(self._ticks)
        amount = compute_amount_due(self._quote.refund_table, state, last, saved)
        return amount, find_counted_tick(state, last, saved) if amount else None
