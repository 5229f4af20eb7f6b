"""A job of the trace on its way through the federation, and each of its runs on some donor's machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.wallet.job_spec import JOB_CLASS_DEFAULT
from protocol.metering import JobState
from protocol.quotes import Quote, QuoteRequest
from protocol.records import NONE, Record
from scripts.benchmarks.federation_in_memory import make_key
from scripts.replays.assumptions import Assumptions
from scripts.replays.donors import Donor
from scripts.replays.fates import Fate
from scripts.replays.ledger import Party, get_public_key
from scripts.replays.metering import Reading
from scripts.replays.trace import TracedJob

NOMINAL_WALL_SECONDS = 3600
"""Prices of machines compare alike for every wall time; demands name this one, so that equal ones are equal."""


def make_demand(gpus: int, assumptions: Assumptions) -> QuoteRequest:
    """What a job with so many GPUs occupies, as a request without keys."""
    return QuoteRequest(
        account=b"",
        meter_key=b"",
        seal_key=b"",
        result_key=b"",
        cores=assumptions.cores_per_gpu * gpus,
        memory_bytes=assumptions.memory_bytes_per_gpu * gpus,
        disk_bytes=assumptions.disk_bytes_per_gpu * gpus,
        gpus=gpus,
        is_online=0,
        wall_seconds=NOMINAL_WALL_SECONDS,
        runtime=NONE,
        job_class=JOB_CLASS_DEFAULT,
        mailbox_to_donor=b"",
        mailbox_to_wallet=b"",
        signature=b"",
    )


@dataclass
class Run:
    """One try on one machine: one hold, and what ended it."""

    donor: Donor
    request: QuoteRequest
    quote: Quote
    hold: Record
    meter_key: Ed25519PrivateKey
    started_ms: int
    ended_ms: int = 0
    state: JobState = JobState.RUNNING
    is_cut: bool = False
    """It ran still when the replay's hours were over, and was cancelled for that."""
    reading: Reading | None = None
    charged: int = 0
    """Millicredits that the ledger paid: what was due, or nothing when the hold was reclaimed."""
    is_reclaimed: bool = False
    records: int = 1
    """On the ledger; the hold is the first."""

    @property
    def is_over(self) -> bool:
        """True once it has ended, however."""
        return self.state != JobState.RUNNING

    @property
    def held(self) -> int:
        """Millicredits put aside for it."""
        return self.quote.amount_max

    @property
    def elapsed_ms(self) -> int:
        """How long it occupied the machine."""
        return self.ended_ms - self.started_ms

    @property
    def lost_ms(self) -> int:
        """Work that has to be done again, when the donor ended it."""
        assert self.reading is not None
        is_lost = self.state in (JobState.DONOR_FAILED, JobState.EVICTED)
        return self.elapsed_ms - self.reading.saved_ms if is_lost else 0


@dataclass
class Job:
    """Invariant: at most one of its runs is not over."""

    number: int
    traced: TracedJob
    fate: Fate
    payer: Party
    demand: QuoteRequest
    """Without keys: what the job occupies. Equal for jobs that any machine serves equally."""
    saved_ms: int = 0
    """Work of earlier runs that a checkpoint holds."""
    runs: list[Run] = field(default_factory=list)
    is_unplaceable: bool = False
    """No offered machine is large enough."""
    is_given_up: bool = False
    """Donors failed it too often."""

    @property
    def left_ms(self) -> int:
        """Work still to do."""
        return self.traced.duration_ms - self.saved_ms

    @property
    def is_done(self) -> bool:
        """True when its last run ended as the job itself would end, not by a donor's fault or the replay's end."""
        return bool(self.runs) and self.runs[-1].state in _OWN_ENDS and not self.runs[-1].is_cut

    def make_request(self, federation: bytes) -> tuple[QuoteRequest, Ed25519PrivateKey]:
        """The signed request for its next run, and the meter key made for that run alone."""
        label = f"{self.number}:{len(self.runs)}"
        meter_key = make_key("meter", label)

        def make_name(purpose: str) -> bytes:
            return sha256(f"{purpose} {label}".encode()).digest()

        request = self.demand._replace(
            account=self.payer.account,
            meter_key=get_public_key(meter_key),
            seal_key=make_name("seal key"),
            result_key=make_name("result key"),
            wall_seconds=self.fate.wall_seconds,
            mailbox_to_donor=make_name("mailbox to donor"),
            mailbox_to_wallet=make_name("mailbox to wallet"),
        )
        return request.sign(federation, meter_key), meter_key


_OWN_ENDS = (JobState.DONE, JobState.USER_FAILED, JobState.CANCELLED, JobState.WALLTIME)
