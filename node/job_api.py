"""What a node says over HTTP about donors, offers and jobs, and what it is told when it is to meter one.

One place for server and client; ids, bytes and amounts are written as in `node/api.py`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

OFFER_SECONDS_MAX = 24 * 3600
"""Longest life of an offer: the machine of a donor that vanished is not shown for longer."""


class Reliability(msgspec.Struct):
    """How a donor's jobs ended, counted from the ledger; only jobs that others paid for (spec 12.13)."""

    score: int
    """1 to 999; 500 for who is new. A function of the two weights below."""
    epoch: int
    """For which it was computed."""
    settled: int
    settled_millicredits: int
    returned: int
    """Of the settled ones, those that took nothing."""
    reclaimed: int
    """The donor never settled, and the payer took everything back."""
    reclaimed_millicredits: int
    disputed_by_payer: int
    disputed_by_donor: int
    open: int
    first_epoch: int
    """Of the first hold; 0 without one."""
    last_epoch: int
    """In which the last hold ended; 0 while none has."""
    kept_weight: int
    broken_weight: int
    """Jobs that were kept and broken, 1024 for a fresh one, halved after every six epochs."""


class Donor(msgspec.Struct):
    address: str
    reliability: Reliability


class Offer(msgspec.Struct):
    donor: str
    encoded: bytes
    """The donor's signed offer; the reader verifies it."""
    expires_seconds: int
    """Unix time."""
    reliability: Reliability | None = None
    """The donor's, as the node counts it; not signed."""


class Message(msgspec.Struct):
    sequence: int
    content: bytes


class Messages(msgspec.Struct):
    messages: list[Message]


class Posted(msgspec.Struct):
    sequence: int


class Dispute(msgspec.Struct):
    """The record by which a side of a job says that the other one broke its rules. It proves nothing by itself."""

    record: str
    by: Literal["payer", "payee"]
    account: str
    reason: str
    """`amount_not_due`, `work_lost`, `results_wrong`, `results_withheld`, `inputs_unusable`, `job_abusive` or
    `meter_unanswered`."""
    evidence: str
    """SHA-256 of the evidence file, in hex: the name of a blob at the node to which it was handed."""
    epoch: int


class Job(msgspec.Struct):
    hold: str
    payer: str
    payee: str
    job_class: str
    epoch: int
    held: int
    paid: int | None
    state: Literal["HELD", "SETTLED", "RECLAIMED"]
    quote: str
    receipt: str | None
    """Hex id of the job's receipt that the settle names."""
    ended_by: str | None = None
    """The settle or reclaim that ended the hold."""
    grace_seconds: int = 0
    """How long the payee may still settle once the payer asked for the credits back."""
    reclaim_request: str | None = None
    """The record by which the payer asked."""
    reclaim_seconds_left: int | None = None
    """Running seconds of this node until it votes for the payer's reclaim; None unless the payer asked."""
    end_epoch: int = 0
    """The epoch in which the hold was settled or reclaimed; 0 while it is open."""
    disputes: list[Dispute] = []


class MeteringOrder(msgspec.Struct, frozen=True):
    """A job whose meter a node is to answer while its wallet is away (spec 12.10)."""

    turn: int
    """How often this job was handed over: 1, 2, 3 ... An order of a turn that was given back changes nothing."""
    offer: bytes
    request: bytes
    quote: bytes
    hold_receipt: bytes
    meter_seed: bytes
    """Signs vouchers and letters for this job."""
    seal_seed: bytes
    """Opens the donor's letters. The key that opens results and checkpoints stays in the wallet."""
    started_seconds_ago: int
    """A duration, because two clocks need not agree."""
    amount_max: int
    """Millicredits that may be agreed to at the most; not above the quote's amount."""
    expires_seconds: int
    """Unix time at which the node stops and forgets the keys."""
    sent: int
    """Number of the next letter to the donor."""
    after: int
    """Sequence of the last letter that was read from the donor."""
    received: int
    """Its number."""
    last: bytes = b""
    """The last tick that was agreed to, or nothing."""
    saved: bytes = b""
    """The tick that was the first to name the newest checkpoint, or nothing."""


class Metered(msgspec.Struct, frozen=True):
    """How far a node came with the meter of a job; with this the wallet goes on."""

    turn: int
    is_active: bool
    """False: the node signs nothing more in this turn."""
    state: str
    """What the donor said last, or the end of the job."""
    sent: int
    last: bytes
    saved: bytes
    receipt: bytes
    """The job receipt, signed by the meter key if it was agreed to; or nothing."""
    detail: str
    dispute: str
    """What the node did not agree to."""
    end_receipt: bytes
    """Receipt of finality of the record that ended the hold, or nothing."""
