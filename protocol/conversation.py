"""What a wallet and a donor say to each other about one job, through mailboxes at a node that can read none of it.

Each message is an *envelope*: a body, signed by its sender's key for this mailbox and this place in it, then sealed
to the receiver. So the node that carries the messages can neither read, forge, move nor repeat one. The wallet signs
with the job's meter key, the donor with its account's key. Receivers take an envelope only when its number is above
the last one they took: a message that was posted twice counts once (spec 12.6).
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Any, NamedTuple

from protocol.codec import (
    VERSION_SHAPE,
    Shape,
    binary,
    binary_up_to,
    check_canonical,
    decode,
    encode,
    items,
    list_of,
    text,
    uint,
    unpack,
)
from protocol.credits import AMOUNT_MAX
from protocol.errors import InvalidInput
from protocol.identifiers import ID_BYTES, Tag, compute_id
from protocol.limits import INTEGER_MAX, PROTOCOL_VERSION
from protocol.metering import TICK_BYTES_MAX
from protocol.quotes import JOB_RECEIPT_BYTES_MAX, QUOTE_BYTES_MAX
from protocol.signatures import SIGNATURE_BYTES, Signer, is_valid_signature

ENVELOPE_BYTES_MAX = 60 * 1024
"""Sealed and encoded for its way it stays below the 64 kB that a mailbox takes."""
LOG_CHUNK_BYTES_MAX = 16 * 1024
REASON_BYTES_MAX = 512
_FINALITY_BYTES_MAX = 48 * 1024


def compute_inbox_name(donor: bytes) -> bytes:
    """The mailbox in which a donor (account id) finds quote requests."""
    return sha256(b"allmende:inbox" + donor).digest()


def compute_metering_ticket(meter_seed: bytes) -> bytes:
    """The name under which a wallet finds a job again that it left to a node; only the two can know it (spec 12.10)."""
    return sha256(b"allmende:metering" + meter_seed).digest()


class Start(NamedTuple):
    """Wallet: the money is put aside, here are the inputs."""

    hold_receipt: bytes
    """Proof of finality of the hold."""
    inputs: bytes
    """SHA-256 of the sealed bundle, which lies among the node's blobs."""
    voucher_signature: bytes
    """The meter key's signature for nothing (voucher 0): with it the donor can give everything back."""


class VoucherGiven(NamedTuple):
    """Wallet: agrees to a tick."""

    sequence: int
    amount: int
    signature: bytes


class ReceiptAgreed(NamedTuple):
    """Wallet: its signature for the job receipt."""

    signature: bytes


class Cancel(NamedTuple):
    """Wallet: stop the job."""

    reason: str


class Quoted(NamedTuple):
    """Donor: the answer to a quote request."""

    quote: bytes


class Refused(NamedTuple):
    """Donor: won't do it, and why."""

    reason: str


class Accepted(NamedTuple):
    """Donor: the hold is in order, the inputs are being fetched."""

    hold: bytes


class Started(NamedTuple):
    """Donor: the job's first instruction runs."""

    hold: bytes


class LogChunk(NamedTuple):
    """Donor: what the job wrote, from byte `offset` of its log on; gaps are what was written too fast."""

    offset: int
    content: bytes


class Ticked(NamedTuple):
    """Donor: a tick (protocol/metering.py)."""

    tick: bytes


class Result(NamedTuple):
    """Donor: the job is over; its receipt, signed by the donor."""

    receipt: bytes
    detail: str


class Settled(NamedTuple):
    """Donor: the ledger has paid; proof of finality of the settle record."""

    finality_receipt: bytes


class Standing(NamedTuple):
    """Donor: the job's state has changed to RUNNING or SUSPENDED, and why. Suspended time is not charged."""

    state: str
    detail: str


Message = (
    Start | VoucherGiven | ReceiptAgreed | Cancel | Quoted | Refused | Accepted | Started | LogChunk
    | Ticked | Result | Settled | Standing
)  # fmt: skip

_ID = binary(ID_BYTES)
_SIGNATURE = binary(SIGNATURE_BYTES)
_REASON = text(REASON_BYTES_MAX)
_FINALITY = binary_up_to(_FINALITY_BYTES_MAX, 1)

_FORMS: dict[int, tuple[Callable[..., Any], Shape]] = {
    1: (Start, items(uint(), _FINALITY, _ID, _SIGNATURE)),
    2: (VoucherGiven, items(uint(), uint(), uint(AMOUNT_MAX), _SIGNATURE)),
    3: (ReceiptAgreed, items(uint(), _SIGNATURE)),
    4: (Cancel, items(uint(), _REASON)),
    17: (Quoted, items(uint(), binary_up_to(QUOTE_BYTES_MAX, 1))),
    18: (Refused, items(uint(), _REASON)),
    19: (Accepted, items(uint(), _ID)),
    20: (Started, items(uint(), _ID)),
    21: (LogChunk, items(uint(), uint(INTEGER_MAX), binary_up_to(LOG_CHUNK_BYTES_MAX, 1))),
    22: (Ticked, items(uint(), binary_up_to(TICK_BYTES_MAX, 1))),
    23: (Result, items(uint(), binary_up_to(JOB_RECEIPT_BYTES_MAX, 1), _REASON)),
    24: (Settled, items(uint(), _FINALITY)),
    25: (Standing, items(uint(), text(16, 1), _REASON)),
}
_NUMBERS = {form: number for number, (form, _) in _FORMS.items()}


def encode_message(message: Message) -> bytes:
    """The canonical bytes of a message's body."""
    return encode((_NUMBERS[type(message)], *message))


def decode_message(encoded: bytes) -> Message:
    """Raises: InvalidInput."""
    raw = unpack(encoded, ENVELOPE_BYTES_MAX)
    if not isinstance(raw, tuple) or not raw or type(raw[0]) is not int or raw[0] not in _FORMS:
        raise InvalidInput("no message of a known kind")
    form, shape = _FORMS[raw[0]]
    shape(raw)
    check_canonical(raw, encoded)
    message: Message = form(*raw[1:])
    return message


_ENVELOPE = items(VERSION_SHAPE, uint(), binary_up_to(ENVELOPE_BYTES_MAX, 1), _SIGNATURE)


def _compute_envelope_id(federation: bytes, mailbox: bytes, number: int, body: bytes) -> bytes:
    return compute_id(Tag.MESSAGE, federation, encode((PROTOCOL_VERSION, mailbox, number, body)))


def encode_envelope(federation: bytes, key: Signer, mailbox: bytes, number: int, message: Message) -> bytes:
    """The signed message, to be sealed to its receiver. `number` counts up within the mailbox."""
    body = encode_message(message)
    signature = key.sign(_compute_envelope_id(federation, mailbox, number, body))
    return encode((PROTOCOL_VERSION, number, body, signature))


def decode_envelope(federation: bytes, sender_key: bytes, mailbox: bytes, encoded: bytes) -> tuple[int, Message]:
    """(number, message) of what the holder of `sender_key` said in this mailbox. Raises: InvalidInput."""
    _, number, body, signature = decode(_ENVELOPE, encoded, ENVELOPE_BYTES_MAX + 256)
    if not is_valid_signature(sender_key, _compute_envelope_id(federation, mailbox, number, body), signature):
        raise InvalidInput("the message is not signed by the other side of this conversation")
    return number, decode_message(body)


def compute_seal_context(direction: bytes, name: bytes) -> bytes:
    """What a sealed letter is bound to: its direction (spec 12.6), and the name of the mailbox or the hold."""
    return b"allmende:" + direction + b":" + name


SCRIPT_NAME = "job"
WORK_NAME = "work"
"""What a bundle of inputs holds (spec 12.6): a file, and the folder in which the job starts."""
OUTPUT_NAME = "out"
"""In it: where the job leaves its results,"""
CHECKPOINT_NAME = "checkpoint"
"""and what another run of it needs to go on (spec 12.3)."""
SCRIPT_BYTES_MAX = 64 * 1024
_VARIABLES_MAX = 256
_SCRIPT = items(
    VERSION_SHAPE,
    text(SCRIPT_BYTES_MAX),
    text(SCRIPT_BYTES_MAX, 1),
    list_of(items(text(256, 1), text(SCRIPT_BYTES_MAX)), _VARIABLES_MAX),
)


class Script(NamedTuple):
    """What a job runs; stands in the sealed bundle as the file `job`, beside the folder `work`."""

    setup: str
    """Shell text that runs first, or nothing."""
    run: str
    environment: tuple[tuple[str, str], ...]

    def encode(self) -> bytes:
        """The canonical bytes."""
        return encode((PROTOCOL_VERSION, *self))


def decode_script(encoded: bytes) -> Script:
    """Raises: InvalidInput."""
    return Script._make(decode(_SCRIPT, encoded, 2 * SCRIPT_BYTES_MAX)[1:])
