"""Everything that changes an account is a record: signed by its writer, permanent, in a numbered slot.

A record claims one slot = (scope, sequence). Its encoding ends with the signatures, which sign the id, and the id is
the hash of everything before them; so ids are slices and no relay can swap a signature unnoticed (spec 3).

    record = [version, kind, epoch, scope, sequence, prev, body, signers, signatures]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum, unique
from typing import Any, NamedTuple

from protocol.codec import (
    Shape,
    binary,
    binary_up_to,
    check_canonical,
    encode,
    items,
    list_of,
    optional_binary,
    set_of,
    text,
    uint,
    unpack,
)
from protocol.credits import AMOUNT_MAX
from protocol.disputes import DISPUTE_SHAPE, Dispute
from protocol.errors import InvalidInput
from protocol.identifiers import ID_BYTES, Slot, Tag, compute_id
from protocol.limits import (
    APPEAL_BYTES_MAX,
    CHARTER_BYTES_MAX,
    DRAWS_MAX,
    EPOCH_MAX,
    EPOCHS_MAX,
    GRACE_SECONDS_MAX,
    INTEGER_MAX,
    JOB_CLASS_BYTES_MAX,
    JOB_CLASSES_MAX,
    MEMBER_NUMBER_MAX,
    MEMO_BYTES_MAX,
    NAME_BYTES_MAX,
    OUTPUTS_MAX,
    PROTOCOL_VERSION,
    PURPOSE_BYTES_MAX,
    REASON_CODE_MAX,
    RECORD_BYTES_MAX,
    SIGNERS_MAX,
)
from protocol.signatures import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Signer, is_valid_signature

NONE = b""
"""How "none" is spelled where an id may stand (spec 2.1)."""


@unique
class Kind(IntEnum):
    """What a record does (spec 7)."""

    TRANSFER = 1
    PROGRAM = 2
    ENROL = 3
    GRANT = 4
    SPONSOR = 5
    HOLD = 6
    SETTLE = 7
    LEAVE = 8
    RECLAIM_REQUEST = 9
    RECLAIM = 10
    SUSPEND = 11
    REINSTATE = 12
    AMEND = 13
    ROTATE = 14
    DISPUTE = 15


@unique
class ScopeKind(IntEnum):
    """What a sequence of slots belongs to; the first byte of a scope (spec 3.2)."""

    ACCOUNT = 1
    HOLD = 2
    PERSON = 3
    CHARTER = 4


SCOPE_BYTES = 1 + ID_BYTES


def account_scope(account: bytes) -> bytes:
    """The scope of an account: a person's or donor's, a member's own, or an issuance account."""
    return b"\x01" + account


def hold_scope(hold: bytes) -> bytes:
    """The scope of the one slot that ends a hold."""
    return b"\x02" + hold


def person_scope(tag: bytes) -> bytes:
    """The scope of a person's enrolments, named by a random tag."""
    return b"\x03" + tag


def charter_scope(federation: bytes) -> bytes:
    """The scope of a federation's amendments."""
    return b"\x04" + federation


class Lot(NamedTuple):
    """Credits of one origin: the program that granted them, or none, and the last epoch in which they may be spent,
    or 0 for no end (spec 7.1)."""

    program: bytes
    expiry_epoch: int


FREE_LOT = Lot(NONE, 0)
"""Credits without a program and without an end: what donors earn and what issuance accounts hold."""


class Output(NamedTuple):
    """A transfer's payment of `amount` millicredits of the lot (program, expiry_epoch) to `account`."""

    account: bytes
    program: bytes
    expiry_epoch: int
    amount: int


class Transfer(NamedTuple):
    """Pays out of the writer's lots."""

    outputs: tuple[Output, ...]
    memo: str


class Program(NamedTuple):
    """Declares a compute budget; its id is the record's id."""

    member: int
    """Number of the member whose budget it is; the record stands in that member's account."""
    name: str
    purpose: str
    allowance: int
    """Millicredits that one person may be granted per epoch."""
    expiry_epochs: int
    """Epochs after the grant's own in which the credits can still be spent; 0 to EPOCHS_MAX."""
    is_transferable: int
    job_classes: tuple[str, ...]
    """Classes of jobs that the credits may buy; empty = all."""


class Enrol(NamedTuple):
    """A member declares a person, known by a random tag only, to own an account."""

    member: int
    account: bytes


class GrantOutput(NamedTuple):
    """`amount` millicredits for the person of `enrolment` (a record's id), whose account is `account`."""

    enrolment: bytes
    account: bytes
    amount: int


class Grant(NamedTuple):
    """Pays allowances out of the member's issuance account of this epoch, as the lot (program, expiry_epoch)."""

    program: bytes
    expiry_epoch: int
    outputs: tuple[GrantOutput, ...]


class Sponsor(NamedTuple):
    """A member vouches for a donor's account until the end of an epoch."""

    member: int
    donor: bytes
    until_epoch: int


class Draw(NamedTuple):
    """`amount` millicredits of one of the payer's lots, put into an escrow."""

    program: bytes
    expiry_epoch: int
    amount: int


class Terms(NamedTuple):
    """What payer and payee agreed on before the hold (spec 7.6)."""

    charter_version: int
    """Version whose rate table priced the quote."""
    quote: bytes
    """Id of the quote."""
    meter_key: bytes
    """Public key that signs the vouchers."""
    grace_seconds: int
    acceptable_use: bytes
    """Hash of the acceptable-use policy that the job accepts."""
    sponsor: bytes
    """Id of the record by which a member vouches for the payee."""
    job_class: str


class Hold(NamedTuple):
    """Moves funds into an escrow for a payee."""

    payee: bytes
    draws: tuple[Draw, ...]
    terms: Terms


class Settle(NamedTuple):
    """Ends a hold: pays the payee by the last voucher and returns the rest (spec 7.7)."""

    voucher_sequence: int
    amount: int
    """Cumulative millicredits of the voucher."""
    voucher_signature: bytes
    gift_program: bytes
    gift_amount: int
    """Share of `amount` that goes to the program's member's issuance account; 0 without a program."""
    job_receipt: bytes
    """Id of the job's receipt, or none."""


class Leave(NamedTuple):
    """Ends the enrolment in the slot before; a person and the member that enrolled it agree (spec 7.9)."""

    member: int
    account: bytes


class ReclaimRequest(NamedTuple):
    """A payer announces that it wants an escrow back; from here on the payee has the hold's grace to settle."""

    hold: bytes


class Reclaim(NamedTuple):
    """Ends a hold that its payee did not settle: everything goes back (spec 7.10)."""

    request: bytes
    """Id of the reclaim-request."""


class Suspend(NamedTuple):
    """A member stops an account that it enrolled or sponsors, for a bounded time (spec 7.11)."""

    member: int
    account: bytes
    reason: int
    """A code that the federation's policy explains."""
    evidence: bytes
    """Hash of what the member decided on, or none."""
    until_epoch: int
    """The last epoch of the suspension."""
    appeal: str
    """To whom the owner can turn."""


class Reinstate(NamedTuple):
    """A member ends its own suspension of an account."""

    member: int
    account: bytes


class Amend(NamedTuple):
    """The federation's next constitution, in full (spec 7.13)."""

    charter: bytes
    """Canonical bytes of the next charter version; whether they are one is judged by voters."""


class Rotate(NamedTuple):
    """An account's next key; signed by the key before and by this one (spec 7.12)."""

    key: bytes


_BodyOfAccount = Transfer | Program | Grant | Sponsor | Hold | ReclaimRequest | Suspend | Reinstate | Rotate | Dispute
Body = _BodyOfAccount | Enrol | Leave | Settle | Reclaim | Amend

_ID = binary(ID_BYTES)
_OPTIONAL_ID = optional_binary(ID_BYTES)
_AMOUNT = uint(AMOUNT_MAX, 1)
_EXPIRY = uint(2 * EPOCH_MAX)
_EPOCH = uint(EPOCH_MAX, 1)
_LABEL = text(JOB_CLASS_BYTES_MAX, 1)
_MEMBER = uint(MEMBER_NUMBER_MAX, 1)
_MEMO = text(MEMO_BYTES_MAX)


class _Form(NamedTuple):
    """What a well-formed record of one kind looks like."""

    scope: ScopeKind
    signer_count: int
    make: Callable[[tuple[Any, ...]], Body]
    body: Shape


def _check_transfer(raw: Any) -> None:
    """The shape of the body of a transfer; written out, as most records are transfers."""
    if type(raw) is not tuple or len(raw) != 2 or type(raw[0]) is not tuple or not 1 <= len(raw[0]) <= OUTPUTS_MAX:
        raise InvalidInput(f"a transfer has 1 to {OUTPUTS_MAX} outputs and a memo")
    for output in raw[0]:
        if type(output) is not tuple or len(output) != 4:
            raise InvalidInput("an output is an array of 4 items")
        account, program, expiry_epoch, amount = output
        if not (
            type(account) is bytes
            and len(account) == ID_BYTES
            and type(program) is bytes
            and len(program) in (0, ID_BYTES)
            and type(expiry_epoch) is int
            and 0 <= expiry_epoch <= 2 * EPOCH_MAX
            and type(amount) is int
            and 1 <= amount <= AMOUNT_MAX
        ):
            raise InvalidInput("an item of an output has a wrong type or size")
    _MEMO(raw[1])


def _make_transfer(raw: tuple[Any, ...]) -> Body:
    return Transfer(tuple(map(Output._make, raw[0])), raw[1])


def _make_grant(raw: tuple[Any, ...]) -> Body:
    return Grant(raw[0], raw[1], tuple(map(GrantOutput._make, raw[2])))


def _make_hold(raw: tuple[Any, ...]) -> Body:
    return Hold(raw[0], tuple(map(Draw._make, raw[1])), Terms._make(raw[2]))


_NAMES = (text(NAME_BYTES_MAX, 1), text(PURPOSE_BYTES_MAX))
_PROGRAM = items(_MEMBER, *_NAMES, _AMOUNT, uint(EPOCHS_MAX), uint(1), set_of(_LABEL, JOB_CLASSES_MAX))
_GRANT = items(_ID, _EXPIRY, list_of(items(_ID, _ID, _AMOUNT), OUTPUTS_MAX, 1))
_TERMS = items(uint(), _ID, binary(PUBLIC_KEY_BYTES), uint(GRACE_SECONDS_MAX, 1), _ID, _ID, _LABEL)
_HOLD = items(_ID, list_of(items(_OPTIONAL_ID, _EXPIRY, _AMOUNT), DRAWS_MAX, 1), _TERMS)
_SETTLE = items(uint(), uint(AMOUNT_MAX), binary(SIGNATURE_BYTES), _OPTIONAL_ID, uint(AMOUNT_MAX), _OPTIONAL_ID)
_SUSPEND = items(_MEMBER, _ID, uint(REASON_CODE_MAX), _OPTIONAL_ID, _EPOCH, text(APPEAL_BYTES_MAX))

_FORMS: dict[int, _Form] = {
    Kind.TRANSFER: _Form(ScopeKind.ACCOUNT, 1, _make_transfer, _check_transfer),
    Kind.PROGRAM: _Form(ScopeKind.ACCOUNT, 1, Program._make, _PROGRAM),
    Kind.ENROL: _Form(ScopeKind.PERSON, 2, Enrol._make, items(_MEMBER, _ID)),
    Kind.GRANT: _Form(ScopeKind.ACCOUNT, 1, _make_grant, _GRANT),
    Kind.SPONSOR: _Form(ScopeKind.ACCOUNT, 1, Sponsor._make, items(_MEMBER, _ID, _EPOCH)),
    Kind.HOLD: _Form(ScopeKind.ACCOUNT, 1, _make_hold, _HOLD),
    Kind.SETTLE: _Form(ScopeKind.HOLD, 1, Settle._make, _SETTLE),
    Kind.LEAVE: _Form(ScopeKind.PERSON, 2, Leave._make, items(_MEMBER, _ID)),
    Kind.RECLAIM_REQUEST: _Form(ScopeKind.ACCOUNT, 1, ReclaimRequest._make, items(_ID)),
    Kind.RECLAIM: _Form(ScopeKind.HOLD, 1, Reclaim._make, items(_ID)),
    Kind.SUSPEND: _Form(ScopeKind.ACCOUNT, 1, Suspend._make, _SUSPEND),
    Kind.REINSTATE: _Form(ScopeKind.ACCOUNT, 1, Reinstate._make, items(_MEMBER, _ID)),
    Kind.AMEND: _Form(ScopeKind.CHARTER, 1, Amend._make, items(binary_up_to(CHARTER_BYTES_MAX, 1))),
    Kind.ROTATE: _Form(ScopeKind.ACCOUNT, 2, Rotate._make, items(binary(PUBLIC_KEY_BYTES))),
    Kind.DISPUTE: _Form(ScopeKind.ACCOUNT, 1, Dispute._make, DISPUTE_SHAPE),
}


def _check_fields(raw: Any) -> None:
    """The shape of a record but for its body; written out, as every record of the federation passes here."""
    if type(raw) is not tuple or len(raw) != 9:
        raise InvalidInput("a record is an array of 9 items")
    version, kind, epoch, scope, sequence, prev, _body, signers, signatures = raw
    if not (
        type(version) is int
        and version == PROTOCOL_VERSION
        and type(kind) is int
        and kind in _FORMS
        and type(epoch) is int
        and 1 <= epoch <= EPOCH_MAX
        and type(scope) is bytes
        and len(scope) == SCOPE_BYTES
        and type(sequence) is int
        and 0 <= sequence <= INTEGER_MAX
        and type(prev) is bytes
        and len(prev) in (0, ID_BYTES)
        and type(signers) is tuple
        and 1 <= len(signers) <= SIGNERS_MAX
        and type(signatures) is tuple
        and len(signatures) == len(signers)
    ):
        raise InvalidInput("a field of the record has a wrong type or size")
    for signer, signature in zip(signers, signatures, strict=True):
        if type(signer) is not bytes or len(signer) != PUBLIC_KEY_BYTES:
            raise InvalidInput("a signer is a public key of 32 bytes")
        if type(signature) is not bytes or len(signature) != SIGNATURE_BYTES:
            raise InvalidInput("a signature has 64 bytes")


class Record(NamedTuple):
    """A well-formed record. Its signatures are not yet checked: that is a voting rule (spec 4.5)."""

    kind: int
    epoch: int
    scope: bytes
    sequence: int
    prev: bytes
    body: Body
    signers: tuple[bytes, ...]
    signatures: tuple[bytes, ...]
    id: bytes
    encoded: bytes

    @property
    def slot(self) -> Slot:
        """The one slot that the record claims."""
        return self.scope, self.sequence

    @property
    def account(self) -> bytes:
        """The id in the scope: an account's, a hold's, a person's tag or the federation's."""
        return self.scope[1:]

    @property
    def signature_tail(self) -> bytes:
        """The last element of the encoding: the signatures."""
        return self.encoded[-_tail_bytes(len(self.signatures)) :]


def _tail_bytes(signature_count: int) -> int:
    return 1 + signature_count * (2 + SIGNATURE_BYTES)


def decode_record(federation: bytes, encoded: bytes) -> Record:
    """The record that `encoded` spells. Raises: InvalidInput when it is not well-formed (spec 3.3)."""
    raw = unpack(encoded, RECORD_BYTES_MAX)
    _check_fields(raw)
    _, kind, epoch, scope, sequence, prev, raw_body, signers, signatures = raw
    form = _FORMS[kind]
    form.body(raw_body)
    check_canonical(raw, encoded)
    if scope[0] != form.scope:
        raise InvalidInput(f"a {Kind(kind).name.lower()} can't stand in a scope of kind {scope[0]}")
    if len(signers) != form.signer_count:
        raise InvalidInput("wrong number of signers")
    if sequence and scope[0] == ScopeKind.HOLD:
        raise InvalidInput("a hold has one slot, number 0")
    if scope[0] == ScopeKind.CHARTER and scope != charter_scope(federation):
        raise InvalidInput("a federation's amendments stand in the scope of its own charter")
    if (sequence == 0) != (prev == NONE):
        raise InvalidInput("the first slot of a scope has no predecessor, every other slot has one")
    record_id = compute_id(Tag.RECORD, federation, encoded[: -_tail_bytes(len(signatures))])
    return Record(kind, epoch, scope, sequence, prev, form.make(raw_body), signers, signatures, record_id, encoded)


class RecordDraft(NamedTuple):
    """What a wallet wants to sign."""

    kind: Kind
    epoch: int
    scope: bytes
    sequence: int
    prev: bytes
    body: Body
    signers: tuple[bytes, ...]

    @property
    def unsigned(self) -> bytes:
        """The bytes that the id hashes: the encoding without its last element."""
        head = (PROTOCOL_VERSION, int(self.kind), *self[1:], ())
        return encode(head)[:-1]

    def compute_id(self, federation: bytes) -> bytes:
        """The id that every signer signs."""
        return compute_id(Tag.RECORD, federation, self.unsigned)

    def assemble(self, federation: bytes, signatures: Sequence[bytes]) -> Record:
        """The record with its signatures. Raises: InvalidInput when it would not be well-formed."""
        return decode_record(federation, self.unsigned + encode(tuple(signatures)))


def sign_record(federation: bytes, draft: RecordDraft, keys: Sequence[Signer]) -> Record:
    """The record signed by all its signers' private keys, in the order of `draft.signers`."""
    record_id = draft.compute_id(federation)
    return draft.assemble(federation, [key.sign(record_id) for key in keys])


def has_valid_signatures(record: Record) -> bool:
    """True when every signer signed this record's id. The costliest rule: about 70 us a signature."""
    signed = zip(record.signers, record.signatures, strict=True)
    return all(is_valid_signature(signer, record.id, signature) for signer, signature in signed)
