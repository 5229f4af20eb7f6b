"""A job whose meter this node answers while its wallet is away: what it was told, how far it came, and who may ask.

The order holds the job's meter key, so whoever gives it could agree to everything that the key can agree to: nobody is
asked for more proof that the credits are theirs. What is checked is that everything belongs together, that the credits
are put aside, and that this node is one whose member knows the account. The key that opens results stays in the wallet
(spec 12.10).
"""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node import job_api
from node.connections import is_public_address
from node.member import LedgerMember
from node.sealing import seal_public_key
from node.storage.store import Store, StoredMetering
from protocol.conversation import compute_metering_ticket
from protocol.countersigning import PayersMeter
from protocol.errors import InvalidInput, Reason, Rejected
from protocol.metering import Tick, check_tick, decode_tick
from protocol.quotes import (
    Offer,
    Quote,
    QuoteRequest,
    check_hold,
    check_quote,
    decode_offer,
    decode_quote,
    decode_quote_request,
)
from protocol.receipts import find_charter_version, verify_receipt

EXPIRY_SECONDS_MAX = 40 * 24 * 3600
"""The longest job, its pauses and the grace of its hold."""
SEED_BYTES = 32

Phase = Literal["active", "over", "given back"]


class MeteredJob(msgspec.Struct):
    """What this node knows of such a job; on disk before anything is said that follows from it."""

    order: job_api.MeteringOrder
    """Without its seeds once the job is over or given back."""
    ticket: bytes
    account: bytes
    hold: bytes
    started_at_seconds: int
    """By this node's clock."""
    sent: int
    after: int
    received: int
    last: bytes
    saved: bytes
    phase: Phase = "active"
    state: str = "METERED"
    receipt: bytes = b""
    detail: str = ""
    dispute: str = ""
    end_receipt: bytes = b""

    @property
    def is_active(self) -> bool:
        """True while this node speaks for the wallet."""
        return self.phase == "active"

    def leave(self, phase: Phase) -> None:
        """Forget the keys: nothing more is signed here in this turn."""
        self.phase = phase
        self.order = msgspec.structs.replace(self.order, meter_seed=b"", seal_seed=b"")

    def describe(self) -> job_api.Metered:
        """What the wallet is told."""
        return job_api.Metered(
            self.order.turn,
            self.is_active,
            self.state,
            self.sent,
            self.last,
            self.saved,
            self.receipt,
            self.detail,
            self.dispute,
            self.end_receipt,
        )


def save(store: Store, job: MeteredJob) -> None:
    """On disk when this returns. Raises: StoreFull, StoreFailed."""
    row = (job.ticket, job.account, job.is_active, job.order.expires_seconds, msgspec.json.encode(job))
    store.put_metering(StoredMetering(*row))


def load(store: Store, ticket: bytes) -> MeteredJob | None:
    """The job of this name."""
    row = store.get_metering(ticket)
    return msgspec.json.decode(row.encoded, type=MeteredJob) if row is not None else None


def load_active(store: Store) -> list[MeteredJob]:
    """All jobs for which this node speaks."""
    return [msgspec.json.decode(row.encoded, type=MeteredJob) for row in store.list_active_metering()]


class JobTerms:
    """What an order says of one job, each signature in it checked. Raises: InvalidInput."""

    def __init__(self, member: LedgerMember, order: job_api.MeteringOrder) -> None:
        charter = member.charter
        self.federation = charter.federation
        self.offer: Offer = decode_offer(charter, order.offer)
        self.request: QuoteRequest = decode_quote_request(charter, order.request)
        self.quote: Quote = decode_quote(charter, order.quote)
        check_quote(self.federation, self.quote, self.request, self.offer)

    def make_meter(self, job: MeteredJob) -> PayersMeter:
        """The payer's side of the meter, as far as the job came. Only while the keys are here."""
        meter = PayersMeter(
            self.federation,
            self.quote,
            job.hold,
            Ed25519PrivateKey.from_private_bytes(job.order.meter_seed),
            job.started_at_seconds,
            last=decode_tick(job.last) if job.last else None,
            checkpoint=decode_tick(job.saved) if job.saved else None,
            amount_max=job.order.amount_max,
        )
        meter.is_closed = bool(job.receipt)
        return meter


def open_order(member: LedgerMember, store: Store, order: job_api.MeteringOrder, now: int) -> MeteredJob:
    """The job that an order describes, all of it checked; nothing is kept yet.

    Raises: InvalidInput when its parts do not belong together; Rejected when this node may not or will not do it.
    """
    if len(order.meter_seed) != SEED_BYTES or len(order.seal_seed) != SEED_BYTES:
        raise InvalidInput("the keys of the job are missing")
    terms = JobTerms(member, order)
    meter_key = Ed25519PrivateKey.from_private_bytes(order.meter_seed).public_key().public_bytes_raw()
    if (meter_key, seal_public_key(order.seal_seed)) != (terms.request.meter_key, terms.request.seal_key):
        raise InvalidInput("these are not the keys of this job")
    charters = member.replica.ledger.charters
    if find_charter_version(order.hold_receipt) not in charters:
        raise Rejected(
            Reason.REFERENCE_MISSING, "this node does not know the charter yet under which the hold is final"
        )
    hold = verify_receipt(charters, order.hold_receipt).record
    check_hold(terms.federation, hold, terms.quote, terms.request)
    _check_counts(order, terms.quote, now)
    _check_standing(member, terms, hold.id)
    _check_offer_is_known(member, store, terms, now)
    return MeteredJob(
        order,
        compute_metering_ticket(order.meter_seed),
        terms.request.account,
        hold.id,
        now - order.started_seconds_ago,
        order.sent,
        order.after,
        order.received,
        *_read_ticks(terms, order, hold.id),
    )


def _check_counts(order: job_api.MeteringOrder, quote: Quote, now: int) -> None:
    if order.turn < 1 or min(order.sent, order.after) < 0 or order.received < -1:
        raise InvalidInput("the order counts below its beginning")
    if not 0 <= order.started_seconds_ago < now:
        raise InvalidInput("the order names no start of the job")
    if not 0 < order.amount_max <= quote.amount_max:
        raise Rejected(Reason.LIMIT_EXCEEDED, "the order's limit is nothing, or more than was put aside")
    if not now < order.expires_seconds <= now + EXPIRY_SECONDS_MAX:
        raise Rejected(Reason.LIMIT_EXCEEDED, f"an order holds for {EXPIRY_SECONDS_MAX // 86400} days at the most")


def _read_ticks(terms: JobTerms, order: job_api.MeteringOrder, hold: bytes) -> tuple[bytes, bytes]:
    """The last and the saved tick, as canonical bytes. Raises: InvalidInput for a tick that is not of this job."""
    for encoded in (order.last, order.saved):
        if encoded:
            _check_tick_alone(terms, hold, decode_tick(encoded))
    return order.last, order.saved


def _check_tick_alone(terms: JobTerms, hold: bytes, tick: Tick) -> None:
    """All of 12.3 but its place in the chain, which the wallet vouches for: it is the wallet that pays."""
    quote = terms.quote
    if tick.sequence == 1:
        check_tick(terms.federation, quote.donor_key, hold, quote.rate, quote.amount_max, None, tick)
    elif tick.hold != hold or tick.amount > quote.amount_max:
        raise InvalidInput("the tick is not of this job")


def _check_standing(member: LedgerMember, terms: JobTerms, hold: bytes) -> None:
    """Raises: Rejected unless the account is this member's, the donor is vouched for and the hold is open."""
    ledger, epoch = member.replica.ledger, member.compute_open_epochs()[-1]
    account, donor = terms.request.account, terms.offer.compute_donor(terms.federation)
    if not any(
        enrolment.account == account and enrolment.member == member.number and enrolment.counts_in(epoch)
        for enrolment in ledger.enrolments.values()
    ):
        raise Rejected(Reason.POLICY, "this node meters for accounts that its own institution enrolled")
    sponsor = ledger.sponsors.get(terms.offer.sponsor)
    if sponsor is None or sponsor.donor != donor:
        raise Rejected(Reason.REFERENCE_MISSING, "no member of this federation vouches for this donor")
    known = ledger.holds.get(hold)
    if known is not None and not known.is_open:
        raise Rejected(Reason.SLOT_TAKEN, "the hold has ended")


def _check_offer_is_known(member: LedgerMember, store: Store, terms: JobTerms, now: int) -> None:
    """Raises: Rejected unless the donor's newest offer here names the same node: nobody else sends us anywhere."""
    donor = terms.offer.compute_donor(terms.federation)
    known = [decode_offer(member.charter, encoded) for owner, encoded, _ in store.list_offers(now) if owner == donor]
    if [offer.node_url for offer in known] != [terms.offer.node_url]:
        raise Rejected(Reason.REFERENCE_MISSING, "this node knows no offer of the donor at that node")


def check_place(url: str, own_places: frozenset[str]) -> bool:
    """True when requests to this URL need public addresses. Raises: Rejected for one that is never called.

    `own_places` are nodes that the operator trusts to be nodes, wherever they are.
    """
    origin = find_origin(url)
    if origin in own_places:
        return False
    host = urlsplit(origin).hostname or ""
    is_numeric = ":" in host or host.replace(".", "").isdigit()
    if host == "localhost" or (is_numeric and not is_public_address(host)):
        raise Rejected(Reason.POLICY, "the donor's node has no public address, and is none that this node may call")
    return True


def find_origin(url: str) -> str:
    """Scheme, host and port of an address of a node. Raises: Rejected when it is none."""
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        parts, port = urlsplit(""), 0
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
        raise Rejected(Reason.TERMS_WRONG, "the donor's node has no address that starts with http:// or https://")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{port}"
