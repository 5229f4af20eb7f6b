"""How institutions found a federation: each hands in a card, one drafts the charter, all sign it, anybody joins them.

    card of each founder > draft > signature of each founder > founding document

What is signed are the canonical bytes in the draft. Beside them the draft holds the same fields for people; both are
compared whenever a draft is read, so nobody can be shown one charter and sign another (spec 9.3).
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from node.addresses import Kind, encode_address
from node.config import Federation, check_p2p_address, encode_json, find_own_member
from node.errors import UserError
from node.files import write_atomically
from node.keystore import Key
from protocol.charter import Charter, CharterFields, Member, Policy, Rate, decode_charter, found_charter
from protocol.credits import AMOUNT_MAX, format_credits
from protocol.errors import InvalidInput
from protocol.limits import MEMBERS_SAFE_MIN
from protocol.signatures import is_valid_signature

DOCUMENT_BYTES_MAX = 8 << 20
SECONDS_PER_DAY = 24 * 3600
EPOCH_GRACE_SECONDS_MAX = SECONDS_PER_DAY
ACCEPTABLE_USE_BYTES_MAX = 64 * 1024

BACKING_PERMILLE = 500
"""Half of what a donor delivers to other members' programs raises its sponsor's next cap."""
HOLD_GRACE_SECONDS_MIN = 600
HOLD_GRACE_SECONDS_MAX = 7 * SECONDS_PER_DAY
BATCH_INTERVAL_MS = 50
LOG_BYTES_PER_SECOND = 1 << 20

DEFAULT_ACCEPTABLE_USE = """\
Acceptable use of donated compute

1. Run only what is lawful where you are and where the donor is.
2. Do not attack, probe or disturb other systems, and do not try to leave the sandbox.
3. Do not mine cryptocurrency, and do not sell the compute on.
4. Do not make malware, weapons, or content that sexualises children.
5. Do not process personal data of others without a lawful ground.
6. A donor may take its machine back at any time; unfinished time is not charged.
"""


class FounderCard(msgspec.Struct, frozen=True):
    """What one founder tells the others: nothing secret."""

    name: str
    member_key: bytes
    vote_key: bytes
    peer_key: bytes
    p2p: str
    """Where the other members' nodes reach this one."""
    url: str = ""


class MemberTerms(msgspec.Struct, frozen=True):
    """A member as a person reads it in a draft."""

    number: int
    name: str
    weight: int
    member_key: str
    vote_key: str
    peer_key: str
    cap_per_epoch: list[str]
    """Credits in epoch 1, 2, ...; one entry when all are equal."""
    backing_ceiling: str


class CharterTerms(msgspec.Struct, frozen=True):
    """A charter as a person reads it. Computed from the canonical bytes, never the other way round."""

    name: str
    is_dev: bool
    quorum: str
    genesis_seconds: int
    epoch_days: float
    epoch_grace_seconds: int
    epochs_with_caps: int
    acceptable_use_sha256: str
    backing_permille: int
    hold_grace_seconds: list[int]
    batch_interval_ms: int
    log_bytes_per_second: int
    members: list[MemberTerms]
    rates: dict[str, int]


class Draft(msgspec.Struct, frozen=True):
    """The file that founders pass round: what they sign, the same to read, and what they need beside it."""

    federation: str
    encoded: bytes
    terms: CharterTerms
    addresses: dict[str, str]
    acceptable_use: str


class FounderSignature(msgspec.Struct, frozen=True):
    """One founder's signature under one draft."""

    federation: str
    name: str
    signature: bytes


class DraftOptions(NamedTuple):
    """What the drafter decides beside the members."""

    name: str
    genesis_seconds: int
    rates: tuple[Rate, ...]
    epoch_seconds: int = 30 * SECONDS_PER_DAY
    cap_millicredits: int = 1_000_000_000
    epochs: int = 120
    is_dev: bool = False
    acceptable_use: str = DEFAULT_ACCEPTABLE_USE
    weights: Mapping[str, int] = {}


# -- drafting ---------------------------------------------------------------------------------------------------


def compose_draft(cards: Sequence[FounderCard], options: DraftOptions) -> Draft:
    """A charter of these founders, numbered in the order of their cards. Raises: UserError."""
    names = [card.name for card in cards]
    for name in options.weights:
        if name not in names:
            raise UserError(f"--weight names {name!r}, but the founders are {', '.join(names)}")
    for name in (options.name, *names):
        _check_name(name)
    for card in cards:
        check_p2p_address(card.p2p)
    issued = options.cap_millicredits * options.epochs * len(cards)
    if issued > AMOUNT_MAX:
        raise UserError(
            f"all caps together are {format_credits(issued)} credits, more than the ledger can count: lower --cap"
        )
    if not options.is_dev and len(cards) < MEMBERS_SAFE_MIN:
        raise UserError(
            f"{len(cards)} founders can't outvote a faulty one: {MEMBERS_SAFE_MIN} are needed, or --dev for a trial"
        )
    try:
        charter = Charter(_compose_fields(cards, options))
        decode_charter(charter.encoded)
    except InvalidInput as error:
        raise UserError(f"no valid charter comes of this: {error}") from None
    addresses = {card.name: card.p2p for card in cards}
    return Draft(
        name_federation(charter), charter.encoded, describe_charter(charter), addresses, options.acceptable_use
    )


def _compose_fields(cards: Sequence[FounderCard], options: DraftOptions) -> CharterFields:
    cap = options.cap_millicredits
    members = tuple(
        Member(
            number,
            card.name,
            card.member_key,
            card.vote_key,
            card.peer_key,
            options.weights.get(card.name, 1),
            (cap,) * options.epochs,
            backing_ceiling=cap,
        )
        for number, card in enumerate(cards, 1)
    )
    policy = Policy(
        compute_acceptable_use_hash(options.acceptable_use),
        HOLD_GRACE_SECONDS_MIN,
        HOLD_GRACE_SECONDS_MAX,
        BACKING_PERMILLE,
        BATCH_INTERVAL_MS,
        LOG_BYTES_PER_SECOND,
    )
    return CharterFields(
        version=0,
        prev=b"",
        name=options.name,
        nonce=secrets.token_bytes(16),
        genesis_seconds=options.genesis_seconds,
        epoch_seconds=options.epoch_seconds,
        epoch_grace_seconds=min(EPOCH_GRACE_SECONDS_MAX, options.epoch_seconds // 4),
        is_dev=int(options.is_dev),
        members=members,
        rates=options.rates,
        policy=policy,
    )


def compute_acceptable_use_hash(text: str) -> bytes:
    """What the charter's policy and every hold name the text by: SHA-256 of its UTF-8 bytes."""
    return hashlib.sha256(text.encode()).digest()


def describe_charter(charter: Charter) -> CharterTerms:
    """The fields for people; a function of the canonical bytes alone."""
    fields, policy = charter.fields, charter.policy
    return CharterTerms(
        name=fields.name,
        is_dev=bool(fields.is_dev),
        quorum=f"{charter.quorum} of {charter.total_weight}",
        genesis_seconds=fields.genesis_seconds,
        epoch_days=fields.epoch_seconds / SECONDS_PER_DAY,
        epoch_grace_seconds=fields.epoch_grace_seconds,
        epochs_with_caps=max(len(member.issuance_caps) for member in fields.members),
        acceptable_use_sha256=policy.acceptable_use.hex(),
        backing_permille=policy.backing_permille,
        hold_grace_seconds=[policy.hold_grace_seconds_min, policy.hold_grace_seconds_max],
        batch_interval_ms=policy.batch_interval_ms,
        log_bytes_per_second=policy.log_bytes_per_second,
        members=[_describe_member(member) for member in fields.members],
        rates={rate.device: rate.weight for rate in fields.rates},
    )


def _describe_member(member: Member) -> MemberTerms:
    caps = [format_credits(cap) for cap in member.issuance_caps]
    return MemberTerms(
        member.number,
        member.name,
        member.weight,
        member.member_key.hex(),
        member.vote_key.hex(),
        member.peer_key.hex(),
        caps[:1] if len(set(caps)) == 1 else caps,
        format_credits(member.backing_ceiling),
    )


def name_federation(charter: Charter) -> str:
    """The id of the federation that this charter belongs to, as text."""
    return encode_address(Kind.FEDERATION, charter.federation)


# -- signing and founding ---------------------------------------------------------------------------------------


def open_draft(draft: Draft, where: Path) -> Charter:
    """The charter that a draft holds, after comparing what is signed with what is shown. Raises: UserError."""
    try:
        charter = decode_charter(draft.encoded)
    except InvalidInput as error:
        raise UserError(f"{where} holds no valid charter: {error}") from None
    is_meant = (draft.federation, draft.terms) == (name_federation(charter), describe_charter(charter))
    is_policy_meant = compute_acceptable_use_hash(draft.acceptable_use) == charter.policy.acceptable_use
    if charter.version or not is_meant or not is_policy_meant:
        raise UserError(f"what {where} shows is not what would be signed: ask the drafter for a fresh draft")
    if set(draft.addresses) != {member.name for member in charter.members.values()}:
        raise UserError(f"{where} must name one network address for each founder: ask the drafter for a fresh draft")
    for address in draft.addresses.values():
        check_p2p_address(address)
    for name in (charter.fields.name, *draft.addresses):
        _check_name(name)
    return charter


def _check_name(name: str) -> None:
    """Names are shown on terminals. Raises: UserError."""
    if not name.isprintable() or name != name.strip():
        raise UserError(f"{name!r} is no name: plain text is needed, without spaces around it")


def sign_draft(charter: Charter, member_key: Key, vote_key: Key, peer_key: Key) -> FounderSignature:
    """Our signature under a draft that names all three of our keys. Raises: UserError."""
    member = find_own_member(charter, member_key.public_key, vote_key.public_key, peer_key.public_key)
    return FounderSignature(name_federation(charter), member.name, member_key.sign(charter.id))


def join_signatures(draft: Draft, charter: Charter, signatures: Sequence[FounderSignature]) -> Federation:
    """The founding document. Raises: UserError that tells whose signature is missing or for another draft."""
    numbers = {member.name: number for number, member in charter.members.items()}
    found: dict[int, bytes] = {}
    for signature in signatures:
        number = numbers.get(signature.name)
        if number is None:
            raise UserError(f"{signature.name} signed, but is no founder in this draft ({', '.join(numbers)})")
        if signature.federation != draft.federation:
            raise UserError(
                f"{signature.name} signed another draft ({signature.federation}, this one is {draft.federation}): "
                "ask them to sign this one"
            )
        if not is_valid_signature(charter.members[number].member_key, charter.id, signature.signature):
            raise UserError(f"the signature of {signature.name} does not hold: ask them to sign again")
        found[number] = signature.signature
    missing = [name for name, number in numbers.items() if number not in found]
    if missing:
        raise UserError(f"not yet signed by {', '.join(missing)}: all founders must sign the same draft")
    founded = found_charter(charter, found)
    return Federation(founded.encode(), draft.federation, dict(draft.addresses), draft.acceptable_use)


# -- files ------------------------------------------------------------------------------------------------------

Document = TypeVar("Document", bound=msgspec.Struct)


def read_document(path: Path, document_type: type[Document], what: str) -> Document:
    """A founder's card, draft or signature from its JSON file. Raises: UserError."""
    try:
        with open(path, "rb") as file:
            content = file.read(DOCUMENT_BYTES_MAX)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    try:
        return msgspec.json.decode(content, type=document_type)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no {what}: {error}") from None


def write_document(path: Path, document: msgspec.Struct, *, replace: bool = False) -> None:
    """Write a public document. Raises: UserError when the file exists, unless `replace`."""
    write_atomically(path, encode_json(document), 0o644, replace=replace)


def compute_summary(charter: Charter, draft_addresses: Mapping[str, str]) -> list[str]:
    """What a founder should read before signing, as lines."""
    terms = describe_charter(charter)
    trial = " (a trial charter: every member must be up, nobody may be faulty)" if terms.is_dev else ""
    lines = [
        f"Federation  {terms.name}{trial}",
        f"Id          {name_federation(charter)}",
        *([f"Version     {charter.version}"] if charter.version else []),
        f"Quorum      weight {terms.quorum}",
        f"Epoch       {terms.epoch_days:g} days, caps for {terms.epochs_with_caps} of them",
        f"Use policy  SHA-256 {terms.acceptable_use_sha256}",
        f"Rates       {len(terms.rates)} devices",
        "Members",
    ]
    for member in terms.members:
        cap = member.cap_per_epoch[0] if len(member.cap_per_epoch) == 1 else "varying"
        lines.append(
            f"  {member.number:3} {member.name}: weight {member.weight}, may grant {cap} credits an epoch, "
            f"key {member.member_key[:16]}, at {draft_addresses.get(member.name, 'an unknown address')}"
        )
    return lines
