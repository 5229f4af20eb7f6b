"""The federation's constitution: who its members are, how much each may issue, and what things cost.

Version 0 is the genesis charter; its id is the federation's id, and it holds 16 random bytes, so two federations
never share one. All nodes and wallets hold it and check everything against it (spec 9).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from itertools import groupby, zip_longest
from typing import NamedTuple

from protocol.codec import (
    VERSION_SHAPE,
    binary,
    binary_up_to,
    decode,
    encode,
    items,
    list_of,
    optional_binary,
    text,
    uint,
)
from protocol.credits import AMOUNT_MAX
from protocol.errors import InvalidInput
from protocol.identifiers import (
    ID_BYTES,
    NO_FEDERATION,
    Tag,
    compute_id,
    compute_issuance_account_id,
    compute_member_account_id,
)
from protocol.limits import (
    CHARTER_BYTES_MAX,
    EPOCHS_MAX,
    GRACE_SECONDS_MAX,
    GRACE_SECONDS_MIN,
    MEMBER_NUMBER_MAX,
    MEMBERS_MAX,
    MEMBERS_SAFE_MIN,
    NAME_BYTES_MAX,
    PROTOCOL_VERSION,
    RATES_MAX,
    WEIGHT_MAX,
)
from protocol.signatures import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, is_prime_order_key, is_valid_signature

NONCE_BYTES = 16


class Member(NamedTuple):
    """One institution. Its number is never used again for another, so logs and receipts name it by number."""

    number: int
    name: str
    member_key: bytes
    """The long-lived identity: writes the member's account, its issuance accounts, enrolments and amendments."""
    vote_key: bytes
    """Signs the member's batches under this charter version only."""
    peer_key: bytes
    """Public key of the node on the network; its libp2p peer id is computed from it."""
    weight: int
    issuance_caps: tuple[int, ...]
    """Millicredits that the member may grant in epoch 1, 2, ...; those after the last are 0."""
    backing_ceiling: int
    """Millicredits that delivered compute may add to one epoch's cap (spec 7.8)."""


class Rate(NamedTuple):
    """A device and its weight in thousandths of the reference GPU."""

    device: str
    weight: int


class Policy(NamedTuple):
    """What the federation agreed on beside members and money."""

    acceptable_use: bytes
    """Hash of the acceptable-use policy that every hold accepts."""
    hold_grace_seconds_min: int
    hold_grace_seconds_max: int
    backing_permille: int
    """Thousandths of a settled amount that count for the sponsor's next cap; below 1000 (spec 7.8)."""
    batch_interval_ms: int
    """Shortest time between two batches of one member."""
    log_bytes_per_second: int
    """Rate at which a replica admits one member's log; above it batches are delayed, never rejected."""


_MEMBER = items(
    uint(MEMBER_NUMBER_MAX, 1),
    text(NAME_BYTES_MAX, 1),
    binary(PUBLIC_KEY_BYTES),
    binary(PUBLIC_KEY_BYTES),
    binary(PUBLIC_KEY_BYTES),
    uint(WEIGHT_MAX, 1),
    list_of(items(uint(EPOCHS_MAX, 1), uint(AMOUNT_MAX)), EPOCHS_MAX),
    uint(AMOUNT_MAX),
)
_POLICY = items(
    binary(ID_BYTES),
    uint(GRACE_SECONDS_MAX, GRACE_SECONDS_MIN),
    uint(GRACE_SECONDS_MAX, GRACE_SECONDS_MIN),
    uint(999),
    uint(60_000, 10),
    uint(2**40, 1024),
)
_CHARTER = items(
    VERSION_SHAPE,
    uint(),
    optional_binary(ID_BYTES),
    text(NAME_BYTES_MAX, 1),
    binary(NONCE_BYTES),
    uint(),
    uint(2**32, 60),
    uint(2**32),
    uint(1),
    list_of(_MEMBER, MEMBERS_MAX, 1),
    list_of(items(text(NAME_BYTES_MAX, 1), uint(WEIGHT_MAX, 1)), RATES_MAX),
    _POLICY,
)


class CharterFields(NamedTuple):
    """The unsigned charter, in the order of its encoding."""

    version: int
    """0 for the genesis charter."""
    prev: bytes
    """Id of the charter before; empty at genesis."""
    name: str
    nonce: bytes
    genesis_seconds: int
    """Unix time at which epoch 1 starts."""
    epoch_seconds: int
    epoch_grace_seconds: int
    """How long after an epoch's end its records are still voted for."""
    is_dev: int
    members: tuple[Member, ...]
    """In ascending order of their numbers."""
    rates: tuple[Rate, ...]
    """In ascending order of their devices' names."""
    policy: Policy

    def encode(self) -> bytes:
        """The canonical bytes."""
        members = tuple((*member[:6], _compute_runs(member.issuance_caps), member[7]) for member in self.members)
        return encode((PROTOCOL_VERSION, *self[:8], members, *self[9:]))


def _compute_runs(caps: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Caps as (epochs, cap) with different neighbours and no zero at the end: a charter of 100 members, each with a
    cap for 120 months, thus fits into one record."""
    runs = [(len(list(equal)), cap) for cap, equal in groupby(caps)]
    return tuple(runs[:-1] if runs and runs[-1][1] == 0 else runs)


def _expand_runs(runs: tuple[tuple[int, int], ...]) -> tuple[int, ...]:
    """Raises: InvalidInput when another list of runs says the same, or when they name too many epochs."""
    if sum(epochs for epochs, _ in runs) > EPOCHS_MAX:
        raise InvalidInput(f"caps are named for {EPOCHS_MAX} epochs at the most")
    caps = tuple(cap for epochs, cap in runs for _ in range(epochs))
    if _compute_runs(caps) != runs:
        raise InvalidInput("runs of caps must differ from their neighbours and must not end with 0")
    return caps


class Charter:
    """A charter that has been decoded and whose rules have been checked."""

    def __init__(self, fields: CharterFields, federation: bytes = b"") -> None:
        """`federation` is the id of version 0: empty for version 0 itself, needed for every later one.

        Raises: InvalidInput when the fields break a rule of spec 9.2.
        """
        if (fields.version == 0) != (federation == b""):
            raise InvalidInput("a genesis charter makes a federation, a later one belongs to one")
        self.fields = fields
        self.encoded = fields.encode()
        if len(self.encoded) > CHARTER_BYTES_MAX:
            raise InvalidInput(f"a charter has at most {CHARTER_BYTES_MAX} bytes, so that one record can hold it")
        self.id = compute_id(Tag.CHARTER, federation or NO_FEDERATION, self.encoded)
        """Of version 0 it is the federation's id."""
        self.federation = federation or self.id
        self.version = fields.version
        self.members: Mapping[int, Member] = {member.number: member for member in fields.members}
        self.weights = {number: member.weight for number, member in self.members.items()}
        self.total_weight = sum(self.weights.values())
        self.quorum = compute_quorum(self.total_weight, bool(fields.is_dev))
        self.policy = fields.policy
        self._check()

    def _check(self) -> None:
        members = self.fields.members
        if [m.number for m in members] != sorted({m.number for m in members}):
            raise InvalidInput("members must stand in ascending order of their numbers, each once")
        if list(self.fields.rates) != sorted({rate.device: rate for rate in self.fields.rates}.values()):
            raise InvalidInput("rates must stand in ascending order of their devices, each once")
        keys = [key for m in members for key in (m.member_key, m.vote_key, m.peer_key)]
        if len(set(keys)) != len(keys):
            raise InvalidInput("every member, vote and peer key of a charter must be a key of its own")
        for key in keys:
            if not is_prime_order_key(key):
                raise InvalidInput("a key of the charter does not lie in the subgroup of prime order")
        if len({m.name for m in members}) != len(members):
            raise InvalidInput("two members have one name")
        if not self.fields.is_dev:
            if len(members) < MEMBERS_SAFE_MIN:
                raise InvalidInput(
                    f"{len(members)} members can't outvote a faulty one: {MEMBERS_SAFE_MIN} are needed, or a charter "
                    "marked dev"
                )
            largest = max(members, key=lambda m: m.weight)
            if largest.weight > self.total_weight - self.quorum:
                raise InvalidInput(f"{largest.name} would have so much weight that it could block alone")
        if (self.fields.version == 0) != (self.fields.prev == b""):
            raise InvalidInput("the genesis charter has no predecessor, every other charter has one")
        issuable = sum(sum(m.issuance_caps) + EPOCHS_MAX * m.backing_ceiling for m in members)
        if issuable > AMOUNT_MAX:
            raise InvalidInput("the caps and backing ceilings add up to more than the ledger can count")
        if self.policy.hold_grace_seconds_min > self.policy.hold_grace_seconds_max:
            raise InvalidInput("the bounds of a hold's grace are the wrong way round")

    @cached_property
    def member_accounts(self) -> Mapping[bytes, int]:
        """Account id of each member's own account -> member number."""
        return {self.get_member_account(number): number for number in self.members}

    @cached_property
    def members_by_key(self) -> Mapping[bytes, int]:
        """Member key -> member number."""
        return {member.member_key: number for number, member in self.members.items()}

    @cached_property
    def issuance_accounts(self) -> Mapping[bytes, tuple[int, int]]:
        """Issuance account id -> (member number, epoch), for every epoch that can have a cap."""
        return {
            self.get_issuance_account(number, epoch): (number, epoch)
            for number, member in self.members.items()
            for epoch in range(1, EPOCHS_MAX + 1)
        }

    def get_member_account(self, member: int) -> bytes:
        """The member's own account, in which its programs and sponsor records stand."""
        return compute_member_account_id(self.federation, member)

    def get_issuance_account(self, member: int, epoch: int) -> bytes:
        """The account from which `member` grants in `epoch`."""
        return compute_issuance_account_id(self.federation, member, epoch)

    def compute_epoch(self, unix_seconds: int) -> int:
        """The epoch at a time; epochs count from 1. Times before genesis belong to epoch 1."""
        elapsed = max(0, unix_seconds - self.fields.genesis_seconds)
        return 1 + elapsed // self.fields.epoch_seconds

    def compute_epoch_end(self, epoch: int) -> int:
        """Unix seconds at which an epoch ends."""
        return self.fields.genesis_seconds + epoch * self.fields.epoch_seconds

    def compute_open_epochs(self, unix_seconds: int) -> range:
        """The epochs whose records a member with this clock votes for: its own, and in grace the one before."""
        epoch = self.compute_epoch(unix_seconds)
        before = max(1, self.compute_epoch(unix_seconds - self.fields.epoch_grace_seconds))
        return range(max(before, epoch - 1), epoch + 1)

    def check_successor(self, after: Charter) -> None:
        """Raises: InvalidInput unless `after` may follow this charter as its next version (spec 9.5)."""
        if (after.federation, after.version, after.fields.prev) != (self.federation, self.version + 1, self.id):
            raise InvalidInput("an amendment names the charter in force and is its next version")
        kept = ("name", "nonce", "genesis_seconds", "epoch_seconds")
        if any(getattr(after.fields, name) != getattr(self.fields, name) for name in kept):
            raise InvalidInput("a federation keeps its name, nonce, genesis time and length of an epoch")
        if after.fields.is_dev > self.fields.is_dev:
            raise InvalidInput("a federation in use can't be marked dev")
        for number in self.members.keys() & after.members.keys():
            old, new = self.members[number], after.members[number]
            is_lower = any(a < b for a, b in zip_longest(new.issuance_caps, old.issuance_caps, fillvalue=0))
            if is_lower or new.backing_ceiling < old.backing_ceiling:
                raise InvalidInput(f"a cap or ceiling of {old.name} that was named is never lowered")


Charters = Mapping[int, Charter]
"""The versions of one federation's charter, genesis included, by their numbers."""


def get_charter(charters: Charters, version: int) -> Charter:
    """The charter whose keys sign under this version. Raises: InvalidInput when it is not known here."""
    charter = charters.get(version)
    if charter is None:
        raise InvalidInput(f"it was signed under charter version {version}, which is not known here")
    return charter


def find_member(charters: Charters, number: int) -> Member | None:
    """The member with this number as the newest version that names it says; None when it never was one."""
    named = (version for version, charter in charters.items() if number in charter.members)
    newest = max(named, default=None)
    return charters[newest].members[number] if newest is not None else None


def compute_quorum(total_weight: int, is_dev: bool = False) -> int:
    """Least weight of which any two sets share more than a third of the whole: floor(2W/3) + 1 (spec 5.1)."""
    return total_weight if is_dev else 2 * total_weight // 3 + 1


def decode_charter(encoded: bytes, federation: bytes = b"") -> Charter:
    """The charter in these bytes; `federation` as in `Charter`.

    Raises: InvalidInput when the bytes are malformed or break a rule of spec 9.2.
    """
    raw = decode(_CHARTER, encoded, CHARTER_BYTES_MAX)[1:]
    return Charter(
        CharterFields(
            version=raw[0],
            prev=raw[1],
            name=raw[2],
            nonce=raw[3],
            genesis_seconds=raw[4],
            epoch_seconds=raw[5],
            epoch_grace_seconds=raw[6],
            is_dev=raw[7],
            members=tuple(Member._make((*member[:6], _expand_runs(member[6]), member[7])) for member in raw[8]),
            rates=tuple(Rate._make(rate) for rate in raw[9]),
            policy=Policy._make(raw[10]),
        ),
        federation,
    )


class FoundedCharter(NamedTuple):
    """A genesis charter with the signatures of all its founders, each by its member key over the federation id."""

    charter: Charter
    signatures: tuple[tuple[int, bytes], ...]
    """(member number, signature), ascending."""

    def encode(self) -> bytes:
        """The canonical bytes of the founding document."""
        return encode((self.charter.encoded, self.signatures))


_FOUNDED = items(
    binary_up_to(CHARTER_BYTES_MAX),
    list_of(items(uint(MEMBER_NUMBER_MAX, 1), binary(SIGNATURE_BYTES)), MEMBERS_MAX, 1),
)


def found_charter(charter: Charter, signatures: Mapping[int, bytes]) -> FoundedCharter:
    """The founding document. Raises: InvalidInput unless every founder signed this very charter (spec 9.3)."""
    if charter.version != 0:
        raise InvalidInput("only a genesis charter is founded; later ones are amendments")
    for number, member in charter.members.items():
        signature = signatures.get(number)
        if signature is None:
            raise InvalidInput(f"{member.name} has not signed the charter yet")
        if not is_valid_signature(member.member_key, charter.id, signature):
            raise InvalidInput(f"the signature of {member.name} is not for this charter")
    if set(signatures) != set(charter.members):
        raise InvalidInput("somebody signed who is no founder")
    return FoundedCharter(charter, tuple(sorted(signatures.items())))


def decode_founded_charter(encoded: bytes) -> FoundedCharter:
    """The founding document, all signatures checked. Raises: InvalidInput."""
    charter_bytes, signatures = decode(_FOUNDED, encoded, 2 * CHARTER_BYTES_MAX)
    if [number for number, _ in signatures] != sorted({number for number, _ in signatures}):
        raise InvalidInput("the founders' signatures must stand in ascending order, each once")
    return found_charter(decode_charter(charter_bytes), dict(signatures))
