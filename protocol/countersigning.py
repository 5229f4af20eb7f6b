"""Agreeing to a meter: what a payer signs of a donor's readings, when a donor stops an unpaid job, how it settles.

Both sides trust each other with little: the payer signs for no more than can have been worked by its own clock, the
donor works on for one tick at the most while a signature is missing. What each side can lose is spec 12.8. The payer's
side is kept by a wallet, or by a node that meters for it (spec 12.10); both use this class.
"""

from __future__ import annotations

from collections.abc import Iterable

from protocol.errors import InvalidInput
from protocol.metering import JobState, Tick, Voucher, check_tick, compute_amount_due, sign_voucher
from protocol.quotes import JobReceipt, Quote
from protocol.signatures import Signer

CLOCK_SLACK_MS = 5_000
"""How much a donor's tick may run ahead of the payer's clock: a second is lost here and there."""


class PayersMeter:
    """The payer's side of one job's meter.

    Invariants: at most one amount is signed for each sequence; amounts only grow; none is above the charge for the time
    since the start by the payer's own clock (and the slack), nor above `amount_max`.

    Who speaks writes `last` and `checkpoint` to disk before it sends the voucher. After a crash it goes on from there:
    the donor's tick comes again, and its voucher is the same.
    """

    def __init__(
        self,
        federation: bytes,
        quote: Quote,
        hold: bytes,
        meter_key: Signer,
        started_at_seconds: int,
        *,
        last: Tick | None = None,
        checkpoint: Tick | None = None,
        amount_max: int | None = None,
        clock_slack_ms: int = CLOCK_SLACK_MS,
    ) -> None:
        """`started_at_seconds` is 0 before the start; `amount_max` is a limit below the quote's amount."""
        self._federation = federation
        self._quote = quote
        self._hold = hold
        self._meter_key = meter_key
        self._started_at_seconds = started_at_seconds
        self._amount_max = quote.amount_max if amount_max is None else min(amount_max, quote.amount_max)
        self._clock_slack_ms = clock_slack_ms
        self.last = last
        """The last co-signed tick."""
        self.checkpoint = checkpoint
        """The saved tick: of the co-signed ones, the first that named the newest checkpoint (spec 12.4)."""
        self.is_closed = False
        """Set when the donor has said that the job is over: no new tick is answered then."""

    def find_new_checkpoint(self, tick: Tick) -> bytes:
        """The checkpoint that has to be had before the tick is answered, or none.

        A checkpoint that was named before saves no work that was done since, so it does not count again.
        """
        if self.last is not None and tick.sequence <= self.last.sequence:
            return b""
        known = self.checkpoint.checkpoint if self.checkpoint else b""
        return tick.checkpoint if tick.checkpoint != known else b""

    def answer(self, tick: Tick, now_seconds: int, checkpoint: bytes = b"") -> Voucher | None:
        """The voucher for a tick, or None for one that lies before the last: it was answered before.

        The last one is answered again: the answer may have been lost. `checkpoint` is the digest of the checkpoint that
        the caller has fetched, because `find_new_checkpoint` named it. Time in which the job was suspended is not in a
        tick, so it only lowers what can be due; nothing has to be known of it here.

        Raises: InvalidInput when the tick does not follow, asks for another amount than the charge, for more than
        `amount_max` or for more time than can have passed, or names a checkpoint that the caller does not have.
        """
        if self.last is not None and tick.hold == self._hold and tick.sequence < self.last.sequence:
            return None
        if self.last is None or tick[:-1] != self.last[:-1]:
            self._check_new(tick, now_seconds, checkpoint)
            if self.find_new_checkpoint(tick):
                self.checkpoint = tick
            self.last = tick
        return sign_voucher(self._federation, self._meter_key, self._hold, tick.sequence, tick.amount)

    def _check_new(self, tick: Tick, now_seconds: int, checkpoint: bytes) -> None:
        quote = self._quote
        if self.is_closed or not self._started_at_seconds:
            raise InvalidInput("the job does not run")
        check_tick(self._federation, quote.donor_key, self._hold, quote.rate, self._amount_max, self.last, tick)
        passed_ms = (now_seconds + 1 - self._started_at_seconds) * 1000
        if tick.elapsed_ms > passed_ms + self._clock_slack_ms:
            raise InvalidInput(f"it counts {tick.elapsed_ms} ms, and only {passed_ms} have passed here")
        if self.find_new_checkpoint(tick) not in (b"", checkpoint):
            raise InvalidInput("it names a checkpoint that can't be had")

    def compute_due(self, state: JobState) -> int:
        """Millicredits that the job owes when it ends so."""
        return compute_amount_due(self._quote.refund_table, state, self.last, self.checkpoint)

    def agree(self, receipt: JobReceipt) -> JobReceipt:
        """The donor's job receipt with the payer's signature.

        That the results are there is the caller's to check. Raises: InvalidInput when it is another job's, or does not
        ask for exactly what is due.
        """
        if (receipt.hold, receipt.quote) != (self._hold, self._quote.compute_id(self._federation)):
            raise InvalidInput("it is for another job")
        due = self.compute_due(receipt.state)
        if receipt.amount != due:
            raise InvalidInput(f"the donor asks for {receipt.amount} millicredits, {due} are due")
        return receipt.sign_as_payer(self._federation, self._meter_key)


def find_saved_tick(ticks: Iterable[Tick]) -> Tick | None:
    """The tick that counts when the work after the newest checkpoint is lost: the first that named it (spec 12.4)."""
    saved: Tick | None = None
    for tick in ticks:
        if tick.checkpoint and (saved is None or tick.checkpoint != saved.checkpoint):
            saved = tick
    return saved


def must_stop(last: Tick | None, agreed_sequence: int, is_reclaim_asked: bool) -> bool:
    """True when a donor works for nothing if it goes on: asked whenever the next tick falls due (spec 12.8, D1).

    Either the voucher for the newest tick has not come, or the payer has asked for its credits back: then only the
    hold's grace is left to settle in (spec 7.10). `agreed_sequence` is that of the last voucher.
    """
    return is_reclaim_asked or (last is not None and agreed_sequence < last.sequence)


def check_follows_tick(ticks: Iterable[Tick], sequence: int, amount: int) -> None:
    """Raise `InvalidInput` unless a voucher with these values answers one of the donor's own ticks."""
    if not any((tick.sequence, tick.amount) == (sequence, amount) for tick in ticks):
        raise InvalidInput("the voucher is for no tick of this job")


def choose_voucher(vouchers: Iterable[Voucher], amount_due: int) -> Voucher:
    """The best voucher that takes no more than is due: an honest donor settles with it. The first is for nothing."""
    fitting = [voucher for voucher in vouchers if voucher.amount <= amount_due]
    return max(fitting, key=lambda voucher: (voucher.amount, voucher.sequence))
