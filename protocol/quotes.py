"""What a donor offers, what it asks for one job, and what both sides sign when the job is over.

An *offer* is public: the machine and its speed. A *quote* answers one *quote request* with everything that the amount
due depends on, so neither side can change a term later; the hold on the ledger names its id. A *job receipt* says how
the job ended; with the quote it lets anybody recompute the amount (spec 12.2 and 12.5).
"""

from __future__ import annotations

from typing import NamedTuple

from protocol.charter import Charter
from protocol.codec import VERSION_SHAPE, binary, decode, encode, items, list_of, optional_binary, set_of, text, uint
from protocol.credits import AMOUNT_MAX
from protocol.errors import InvalidInput, Reason, Rejected
from protocol.identifiers import ID_BYTES, Tag, compute_account_id, compute_id
from protocol.limits import (
    GRACE_SECONDS_MAX,
    INTEGER_MAX,
    JOB_CLASS_BYTES_MAX,
    JOB_CLASSES_MAX,
    NAME_BYTES_MAX,
    PROTOCOL_VERSION,
    WEIGHT_MAX,
)
from protocol.metering import (
    CORES_MAX,
    END_STATES,
    GPUS_MAX,
    MEMORY_GB_MAX,
    REFUND_TABLE_VERSION,
    WALL_SECONDS_MAX,
    JobState,
    Rate,
    compute_charge,
    compute_memory_gb,
)
from protocol.records import Hold, Record
from protocol.signatures import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Signer, is_valid_signature

OFFER_BYTES_MAX = 8 * 1024
REQUEST_BYTES_MAX = 1024
QUOTE_BYTES_MAX = 1024
JOB_RECEIPT_BYTES_MAX = 1024
URL_BYTES_MAX = 256
RUNTIMES_MAX = 32
OFFERED_GPUS_MAX = 64
HOSTS_MAX = 32
TICK_SECONDS_MAX = 3600
SEAL_KEY_BYTES = 32

_ID = binary(ID_BYTES)
_KEY = binary(PUBLIC_KEY_BYTES)
_SIGNATURE = binary(SIGNATURE_BYTES)
_LABEL = text(JOB_CLASS_BYTES_MAX, 1)
_NAME = text(NAME_BYTES_MAX, 1)
_WALL = uint(WALL_SECONDS_MAX, 1)

_OFFER = items(
    VERSION_SHAPE,
    _KEY,
    binary(SEAL_KEY_BYTES),
    _ID,
    text(URL_BYTES_MAX, 1),
    _NAME,
    uint(CORES_MAX, 1),
    uint(INTEGER_MAX, 1),
    uint(INTEGER_MAX, 1),
    uint(1),
    list_of(items(_NAME, uint(MEMORY_GB_MAX, 1)), OFFERED_GPUS_MAX),
    uint(WEIGHT_MAX, 1),
    set_of(items(_NAME, _ID), RUNTIMES_MAX),
    set_of(_LABEL, JOB_CLASSES_MAX, 1),
    set_of(_NAME, HOSTS_MAX),
    _WALL,
    uint(),
    _SIGNATURE,
)


class RuntimeName(NamedTuple):
    """A set of installed packages that jobs may use, and what it consists of."""

    name: str
    digest: bytes


class OfferedGpu(NamedTuple):
    """One card of a machine."""

    name: str
    """As in the charter's rate table."""
    memory_gb: int
    """Thousand million bytes, rounded down."""


class Offer(NamedTuple):
    """A machine that a donor lends, until further notice or `valid_until`."""

    donor_key: bytes
    seal_key: bytes
    """X25519 key to which requests and job inputs are sealed."""
    sponsor: bytes
    """Id of the record by which a member vouches for the donor."""
    node_url: str
    """The node at which the donor reads its messages."""
    machine: str
    cores: int
    memory_bytes: int
    disk_bytes: int
    is_disk_in_memory: int
    """1: a job's disk takes memory of this machine, and is priced as such."""
    gpus: tuple[OfferedGpu, ...]
    weight: int
    """Thousandths of the reference GPU."""
    runtimes: tuple[RuntimeName, ...]
    job_classes: tuple[str, ...]
    hosts: tuple[str, ...]
    """What a job that asks for a network may reach, as `name:port`, ascending; usually nothing."""
    wall_seconds_max: int
    valid_until: int
    """Unix seconds."""
    signature: bytes

    def compute_id(self, federation: bytes) -> bytes:
        """What the donor signs."""
        return compute_id(Tag.OFFER, federation, encode((PROTOCOL_VERSION, *self[:-1])))

    def compute_donor(self, federation: bytes) -> bytes:
        """The account that is paid."""
        return compute_account_id(federation, self.donor_key)

    def encode(self) -> bytes:
        """The canonical bytes."""
        return encode((PROTOCOL_VERSION, *self))

    def sign(self, federation: bytes, key: Signer) -> Offer:
        """The same offer with the donor's signature."""
        return self._replace(signature=key.sign(self.compute_id(federation)))


def decode_offer(charter: Charter, encoded: bytes) -> Offer:
    """The offer, its signature checked. Raises: InvalidInput."""
    raw = decode(_OFFER, encoded, OFFER_BYTES_MAX)[1:]
    gpus, runtimes = tuple(map(OfferedGpu._make, raw[9])), tuple(map(RuntimeName._make, raw[11]))
    offer = Offer._make((*raw[:9], gpus, raw[10], runtimes, *raw[12:]))
    if not is_valid_signature(offer.donor_key, offer.compute_id(charter.federation), offer.signature):
        raise InvalidInput("the offer is not signed by its donor")
    return offer


_REQUEST = items(
    VERSION_SHAPE,
    _ID,
    _KEY,
    binary(SEAL_KEY_BYTES),
    binary(SEAL_KEY_BYTES),
    uint(CORES_MAX, 1),
    uint(INTEGER_MAX, 1),
    uint(INTEGER_MAX, 1),
    uint(GPUS_MAX),
    uint(1),
    _WALL,
    optional_binary(ID_BYTES),
    _LABEL,
    _ID,
    _ID,
    _SIGNATURE,
)


class QuoteRequest(NamedTuple):
    """What somebody wants to run, as far as the price depends on it."""

    account: bytes
    """The account that will pay."""
    meter_key: bytes
    """Signs this request, the wallet's messages and the vouchers; made for this job only."""
    seal_key: bytes
    """X25519 key to which the donor seals its messages."""
    result_key: bytes
    """X25519 key to which it seals results and checkpoints; its other half stays in the wallet, whoever meters."""
    cores: int
    memory_bytes: int
    disk_bytes: int
    gpus: int
    is_online: int
    """1: the job asks to reach the hosts that the offer names."""
    wall_seconds: int
    runtime: bytes
    """Digest of the runtime, or none."""
    job_class: str
    mailbox_to_donor: bytes
    """Random name of the mailbox in which the wallet speaks; whoever knows it can read along, so it is kept secret."""
    mailbox_to_wallet: bytes
    signature: bytes

    def compute_id(self, federation: bytes) -> bytes:
        """What the meter key signs and the quote names."""
        return compute_id(Tag.QUOTE_REQUEST, federation, encode((PROTOCOL_VERSION, *self[:-1])))

    def encode(self) -> bytes:
        """The canonical bytes."""
        return encode((PROTOCOL_VERSION, *self))

    def sign(self, federation: bytes, meter_key: Signer) -> QuoteRequest:
        """The same request with the meter key's signature."""
        return self._replace(signature=meter_key.sign(self.compute_id(federation)))


def decode_quote_request(charter: Charter, encoded: bytes) -> QuoteRequest:
    """The request, its signature checked. Raises: InvalidInput."""
    request = QuoteRequest._make(decode(_REQUEST, encoded, REQUEST_BYTES_MAX)[1:])
    if not is_valid_signature(request.meter_key, request.compute_id(charter.federation), request.signature):
        raise InvalidInput("the quote request is not signed by its meter key")
    if request.mailbox_to_donor == request.mailbox_to_wallet:
        raise InvalidInput("a conversation needs two mailboxes")
    return request


_RATE = items(uint(WEIGHT_MAX, 1), uint(CORES_MAX, 1), uint(MEMORY_GB_MAX, 1), uint(GPUS_MAX))
_QUOTE = items(
    VERSION_SHAPE,
    _KEY,
    _ID,
    _ID,
    _RATE,
    _WALL,
    uint(TICK_SECONDS_MAX, 1),
    uint(AMOUNT_MAX, 1),
    uint(GRACE_SECONDS_MAX, 1),
    uint(REFUND_TABLE_VERSION, REFUND_TABLE_VERSION),
    uint(),
    uint(),
    _SIGNATURE,
)


class Quote(NamedTuple):
    """The donor's binding answer: everything that the amount due depends on."""

    donor_key: bytes
    request: bytes
    """Id of the quote request."""
    sponsor: bytes
    rate: Rate
    wall_seconds: int
    tick_seconds: int
    """Time between two ticks: what donor and payer trust each other with."""
    amount_max: int
    """Millicredits to put aside: the charge for the whole of `wall_seconds`."""
    grace_seconds: int
    """How long the donor may take to settle after the end."""
    refund_table: int
    charter_version: int
    valid_until: int
    """Unix seconds until which the job must have been started."""
    signature: bytes

    def compute_id(self, federation: bytes) -> bytes:
        """What the donor signs and the hold names."""
        return compute_id(Tag.QUOTE, federation, encode((PROTOCOL_VERSION, *self[:-1])))

    def encode(self) -> bytes:
        """The canonical bytes."""
        return encode((PROTOCOL_VERSION, *self))

    def sign(self, federation: bytes, key: Signer) -> Quote:
        """The same quote with the donor's signature."""
        return self._replace(signature=key.sign(self.compute_id(federation)))


def decode_quote(charter: Charter, encoded: bytes) -> Quote:
    """The quote, its signature and its arithmetic checked. Raises: InvalidInput."""
    raw = decode(_QUOTE, encoded, QUOTE_BYTES_MAX)[1:]
    quote = Quote._make(raw)._replace(rate=Rate._make(raw[3]))
    if quote.amount_max != compute_charge(quote.wall_seconds * 1000, quote.rate):
        raise InvalidInput("the quote puts aside another amount than the charge for its wall time")
    if not is_valid_signature(quote.donor_key, quote.compute_id(charter.federation), quote.signature):
        raise InvalidInput("the quote is not signed by its donor")
    return quote


def compute_rate(offer: Offer, request: QuoteRequest) -> Rate:
    """What the request would occupy on the offered machine. Disk that lies in memory counts as memory."""
    memory_gb = compute_memory_gb(_compute_memory_bytes(offer, request))
    return Rate(offer.weight, request.cores, memory_gb, request.gpus)


def _compute_memory_bytes(offer: Offer, request: QuoteRequest) -> int:
    return request.memory_bytes + (request.disk_bytes if offer.is_disk_in_memory else 0)


def check_request_fits(offer: Offer, request: QuoteRequest) -> None:
    """Raise `Rejected` unless the offered machine has what is asked for."""
    shortfalls = (
        (request.cores > offer.cores, f"it has {offer.cores} cores"),
        (_compute_memory_bytes(offer, request) > offer.memory_bytes, f"it lends {offer.memory_bytes} bytes of memory"),
        (request.disk_bytes > offer.disk_bytes, f"it lends {offer.disk_bytes} bytes of disk"),
        (request.gpus > len(offer.gpus), f"it has {len(offer.gpus)} GPUs"),
        (request.is_online > bool(offer.hosts), "it lets no job reach any other machine"),
        (
            request.wall_seconds > offer.wall_seconds_max,
            f"it runs jobs of at most {offer.wall_seconds_max} s",
        ),
        (request.job_class not in offer.job_classes, f"it takes {', '.join(offer.job_classes)} jobs only"),
        (
            bool(request.runtime) and request.runtime not in {runtime.digest for runtime in offer.runtimes},
            "it does not have this runtime",
        ),
    )
    for is_short, detail in shortfalls:
        if is_short:
            raise Rejected(Reason.LIMIT_EXCEEDED, f"the machine {offer.machine} can't do it: {detail}")


def check_quote(federation: bytes, quote: Quote, request: QuoteRequest, offer: Offer) -> None:
    """Raise `InvalidInput` unless the quote answers this request at the speed and price that the offer names."""
    if quote.donor_key != offer.donor_key or quote.request != request.compute_id(federation):
        raise InvalidInput("the quote answers another request")
    if (quote.rate, quote.wall_seconds, quote.sponsor) != (
        compute_rate(offer, request),
        request.wall_seconds,
        offer.sponsor,
    ):
        raise InvalidInput("the quote differs from the donor's offer")


def check_hold(federation: bytes, hold: Record, quote: Quote, request: QuoteRequest) -> Hold:
    """The body of a hold that pays for this quote (spec 12.2).

    Raises: InvalidInput when it was made for something else.
    """
    body = hold.body
    if not isinstance(body, Hold) or hold.account != request.account:
        raise InvalidInput("this is no hold of the account that asked for the quote")
    if body.payee != compute_account_id(federation, quote.donor_key):
        raise InvalidInput("the hold is for another donor")
    terms = body.terms
    expected = (quote.charter_version, quote.compute_id(federation), request.meter_key, quote.grace_seconds)
    if terms[:4] != expected or (terms.sponsor, terms.job_class) != (quote.sponsor, request.job_class):
        raise InvalidInput("the hold's terms are not those of the quote")
    if sum(draw.amount for draw in body.draws) < quote.amount_max:
        raise InvalidInput("the hold is smaller than the quote asks for")
    return body


_RECEIPT = items(
    VERSION_SHAPE,
    _ID,
    _ID,
    text(16, 1),
    uint(256),
    uint(INTEGER_MAX),
    uint(INTEGER_MAX),
    uint(INTEGER_MAX),
    uint(INTEGER_MAX),
    optional_binary(ID_BYTES),
    uint(AMOUNT_MAX),
    optional_binary(ID_BYTES),
    _SIGNATURE,
    optional_binary(SIGNATURE_BYTES),
)
NO_EXIT_STATUS = 256
"""Stands for the exit status of a job that did not come to its end by itself."""


class JobReceipt(NamedTuple):
    """How a job ended and what it cost, signed by the donor and, when it agrees, by the payer's meter key."""

    hold: bytes
    quote: bytes
    state: JobState
    exit_status: int
    """0 to 255, or NO_EXIT_STATUS."""
    wall_ms: int
    cpu_us_plus_one: int
    """Microseconds of processor time plus one; 0 where the machine can't tell."""
    memory_peak_bytes: int
    energy_joules_plus_one: int
    """What the job's GPUs took, plus one; 0 where the machine can't tell."""
    outputs: bytes
    """SHA-256 of the sealed outputs, or none."""
    amount: int
    tick: bytes
    """Id of the tick that counted, or none."""
    donor_signature: bytes
    meter_signature: bytes
    """Empty until the payer agreed."""

    def compute_id(self, federation: bytes) -> bytes:
        """What both sides sign and the settle record names."""
        return compute_id(Tag.JOB_RECEIPT, federation, encode((PROTOCOL_VERSION, *self[:-2])))

    def encode(self) -> bytes:
        """The canonical bytes."""
        return encode((PROTOCOL_VERSION, *self))

    def sign_as_donor(self, federation: bytes, key: Signer) -> JobReceipt:
        """The receipt with the donor's signature."""
        return self._replace(donor_signature=key.sign(self.compute_id(federation)))

    def sign_as_payer(self, federation: bytes, meter_key: Signer) -> JobReceipt:
        """The receipt with the payer's signature."""
        return self._replace(meter_signature=meter_key.sign(self.compute_id(federation)))


def decode_job_receipt(charter: Charter, encoded: bytes, donor_key: bytes, meter_key: bytes) -> JobReceipt:
    """The receipt of a job between these two keys, every signature in it checked. Raises: InvalidInput."""
    raw = decode(_RECEIPT, encoded, JOB_RECEIPT_BYTES_MAX)[1:]
    if raw[2] not in END_STATES:
        raise InvalidInput("the job receipt names no end of a job")
    receipt = JobReceipt._make(raw)._replace(state=JobState(raw[2]))
    receipt_id = receipt.compute_id(charter.federation)
    if not is_valid_signature(donor_key, receipt_id, receipt.donor_signature):
        raise InvalidInput("the job receipt is not signed by the donor")
    if receipt.meter_signature and not is_valid_signature(meter_key, receipt_id, receipt.meter_signature):
        raise InvalidInput("the payer's signature on the job receipt does not hold")
    return receipt
