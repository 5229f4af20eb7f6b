"""Jobs that ran, with all that both sides signed, and evidence files made of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from protocol.disputes import DisputeReason
from protocol.job_evidence import JobEvidence
from protocol.metering import (
    JobState,
    Rate,
    Tick,
    compute_amount_due,
    compute_charge,
    find_counted_tick,
    sign_tick,
    sign_voucher,
)
from protocol.quotes import JobReceipt, Quote, QuoteRequest
from protocol.records import Draw, Record
from tests.local_members import Cluster
from tests.strategies import Federation, make_economy, make_federation, make_id, make_key, make_public_key

RATE = Rate(1000, 16, 1, 1)
"""A millicredit for each millisecond."""

WALL_SECONDS = 40
METER = make_key("meter")


class SignedJob(NamedTuple):
    """A job up to its hold; the members' receipts come from `cluster`."""

    federation: Federation
    cluster: Cluster
    request: QuoteRequest
    quote: Quote
    hold: Record

    def make_ticks(self, *elapsed_ms: int, checkpoints: Sequence[int] = ()) -> list[Tick]:
        """A chain of ticks; those whose places `checkpoints` names have one."""
        ticks: list[Tick] = []
        for place, elapsed in enumerate(elapsed_ms):
            before = ticks[-1] if ticks else None
            digest = make_id(f"checkpoint {place}") if place in checkpoints else b""
            ticks.append(sign_tick(self.federation.id, DONOR_KEY, self.hold.id, RATE, before, elapsed, digest))
        return ticks

    def make_receipt(self, ticks: Sequence[Tick], state: JobState = JobState.DONE, **changes: Any) -> JobReceipt:
        """The donor's honest receipt, or a changed one."""
        last = ticks[-1] if ticks else None
        checkpoint = next((tick for tick in reversed(ticks) if tick.checkpoint), None)
        amount = compute_amount_due(self.quote.refund_table, state, last, checkpoint)
        counted = find_counted_tick(state, last, checkpoint)
        tick = counted.compute_id(self.federation.id) if counted and amount else b""
        receipt = JobReceipt(
            self.hold.id, self.quote.compute_id(self.federation.id), state, 0, 1, 0, 0, 0, b"", amount, tick, b"", b""
        )
        return receipt._replace(**changes).sign_as_donor(self.federation.id, DONOR_KEY)

    def make_evidence(
        self, ticks: Sequence[Tick] = (), receipt: JobReceipt | None = None, end: Record | None = None, **changes: Any
    ) -> JobEvidence:
        """A file of these parts."""
        member = self.cluster.members[1]
        agreed = [tick for tick in ticks[:1] if tick.amount <= self.quote.amount_max]
        vouchers = [sign_voucher(self.federation.id, METER, self.hold.id, t.sequence, t.amount)[1:] for t in agreed]
        placed = sorted({(tick.sequence, tick.encode()) for tick in ticks})
        return JobEvidence(
            reason=DisputeReason.AMOUNT_NOT_DUE,
            hold_receipt=member.receipt(self.hold),
            end_receipt=member.receipt(end) if end is not None else b"",
            request=self.request.encode(),
            quote=self.quote.encode(),
            ticks=tuple(encoded for _, encoded in placed),
            vouchers=tuple(vouchers),
            job_receipt=receipt.encode() if receipt is not None else b"",
            result_key=b"",
            reruns=(),
        )._replace(**changes)

    def settle(self, amount: int) -> Record:
        """The settlement, made final. Once for each cluster."""
        record = self.federation.settle(make_economy(self.federation).donor, self.hold, amount)
        self.cluster.finalise([record])
        return record


DONOR_KEY = make_key("person donor")


def make_job() -> SignedJob:
    """A job of the economy's first person on its donor's machine, with members of its own."""
    federation = make_federation()
    economy = make_economy(federation)
    request = QuoteRequest(
        account=economy.people[0].account,
        meter_key=make_public_key("meter"),
        seal_key=make_id("seal key"),
        result_key=make_id("result key"),
        cores=16,
        memory_bytes=10**9,
        disk_bytes=1,
        gpus=1,
        is_online=0,
        wall_seconds=WALL_SECONDS,
        runtime=b"",
        job_class="cpu",
        mailbox_to_donor=make_id("to donor"),
        mailbox_to_wallet=make_id("to wallet"),
        signature=b"",
    ).sign(federation.id, METER)
    quote = Quote(
        donor_key=make_public_key("person donor"),
        request=request.compute_id(federation.id),
        sponsor=economy.sponsor.id,
        rate=RATE,
        wall_seconds=WALL_SECONDS,
        tick_seconds=10,
        amount_max=compute_charge(WALL_SECONDS * 1000, RATE),
        grace_seconds=600,
        refund_table=1,
        charter_version=0,
        valid_until=2_000_000,
        signature=b"",
    ).sign(federation.id, DONOR_KEY)
    grant = federation.grant(economy.program, [(economy.enrolments[0], 50_000)])
    draws = [Draw(*economy.lot, 40_000)]
    hold = federation.hold(
        economy.people[0], economy.donor, economy.sponsor, draws, quote=quote.compute_id(federation.id)
    )
    cluster = Cluster(federation)
    cluster.finalise([*economy.setup])
    cluster.finalise([grant, hold])
    return SignedJob(federation, cluster, request, quote, hold)


make_shared_job = cache(make_job)
"""For tests that don't end it."""
