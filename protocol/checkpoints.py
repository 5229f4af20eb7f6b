"""Checkpoints: members of a quorum say the same state root, and anybody can check a balance against it offline.

`checkpoint(X, root)` in a member's log says: the state of X's causal past, X included, has this root. That past is a
closed set, also where logs are forked, and the root is a function of it; so correct members that say anything say the
same. A quorum holds a correct member, so a certified root is true (spec 10.6).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from protocol.batches import (
    HEADER_BYTES_MAX,
    Header,
    compute_batch_id,
    compute_statement_leaf,
    decode_header,
    is_signed_header,
)
from protocol.charter import Charter, Charters, get_charter
from protocol.codec import VERSION_SHAPE, binary, binary_up_to, decode, encode, items, list_of, uint
from protocol.errors import InvalidInput
from protocol.identifiers import ID_BYTES, Tag
from protocol.limits import MEMBERS_MAX, PROTOCOL_VERSION, STATEMENTS_PER_BATCH_MAX
from protocol.merkle import compute_leaf, compute_levels, compute_path, compute_root_from_path
from protocol.receipts import PATH_SHAPE, FetchProvable
from protocol.records import Lot
from protocol.signatures import SIGNATURE_BYTES
from protocol.snapshot import FACT_BYTES_MAX, decode_fact
from protocol.statements import Checkpoint, encode_statement

MS_PER_DAY = 24 * 3600 * 1000

CHECKPOINT_PROOF_BYTES_MAX = MEMBERS_MAX * 2048
FACT_PROOF_BYTES_MAX = FACT_BYTES_MAX + 2048
FACTS_MAX = 2**40

_PROOF = items(
    VERSION_SHAPE,
    binary(ID_BYTES),
    binary(ID_BYTES),
    list_of(
        items(
            binary_up_to(HEADER_BYTES_MAX),
            binary(SIGNATURE_BYTES),
            uint(STATEMENTS_PER_BATCH_MAX - 1),
            PATH_SHAPE,
        ),
        MEMBERS_MAX,
        1,
    ),
)
_FACT_PROOF = items(
    VERSION_SHAPE,
    list_of(
        items(binary_up_to(FACT_BYTES_MAX, 1), uint(FACTS_MAX), uint(FACTS_MAX), list_of(binary(ID_BYTES), 64)), 1024, 1
    ),
)


def is_first_of_day(charter: Charter, header: Header, before_ms: int) -> bool:
    """True when a member's batch after one of the time `before_ms` begins a day that is its turn to pick.

    Members take turns by the number of the day, in the order of the charter. It is a habit, no rule: any member may
    pick any batch.
    """
    day = header.time_ms // MS_PER_DAY
    numbers = sorted(charter.members)
    return day > before_ms // MS_PER_DAY and numbers[day % len(numbers)] == header.member


class CheckpointClaims:
    """Which members say which roots, as far as their statements came here."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, Checkpoint], dict[int, tuple[bytes, int]]] = {}

    def note(self, charters: Charters, header: Header, batch: bytes, position: int, claim: Checkpoint) -> bool:
        """Count a statement of an admitted batch; True when it completes a quorum of its charter version.

        The past of the batch that carries the statement can't be meant: the root would have to hold its own hash.
        """
        charter = charters[header.charter_version]
        places = self._places.setdefault((charter.version, claim), {})
        if not claim.batch or header.member in places:
            return False
        weight_before = sum(charter.weights[member] for member in places)
        places[header.member] = (batch, position)
        return weight_before < charter.quorum <= weight_before + charter.weights[header.member]

    def get_places(self, version: int, claim: Checkpoint) -> Mapping[int, tuple[bytes, int]]:
        """Member -> (batch, position) of its statement."""
        return self._places.get((version, claim), {})

    def is_claimed(self, claim: Checkpoint) -> bool:
        """True when some member says so."""
        return any(said == claim for _, said in self._places)

    def has_claimed(self, member: int, claim: Checkpoint) -> bool:
        """True when the member has said so under any charter version."""
        return any(member in places for (_, said), places in self._places.items() if said == claim)


class VerifiedCheckpoint(NamedTuple):
    """What a proof of a checkpoint proves."""

    batch: bytes
    root: bytes
    charter_version: int
    members: tuple[int, ...]
    time_ms: int
    """The latest clock among the members that say so: by then they had computed it."""


def build_checkpoint_proof(
    charter: Charter, claim: Checkpoint, claims: CheckpointClaims, fetch: FetchProvable
) -> bytes:
    """The proof that members of a quorum said so; the heaviest that make one are shown."""
    places = claims.get_places(charter.version, claim)
    chosen: list[int] = []
    for member in sorted(places, key=lambda number: (-charter.weights[number], number)):
        if sum(charter.weights[number] for number in chosen) < charter.quorum:
            chosen.append(member)
    shown = []
    for member in sorted(chosen):
        batch, position = places[member]
        provable = fetch(batch)
        path = compute_path(provable.statement_levels, position)
        shown.append((provable.batch.header_bytes, provable.batch.signature, position, path))
    return encode((PROTOCOL_VERSION, claim.batch, claim.root, tuple(shown)))


def verify_checkpoint(charters: Charters, encoded: bytes) -> VerifiedCheckpoint:
    """What the proof proves under these versions of the charter. Raises: InvalidInput when it proves nothing."""
    _, batch, root, shown = decode(_PROOF, encoded, CHECKPOINT_PROOF_BYTES_MAX)
    leaf = compute_statement_leaf(encode_statement(Checkpoint(batch, root)))
    headers = []
    for header_bytes, signature, position, path in shown:
        header = decode_header(header_bytes)
        charter = get_charter(charters, header.charter_version)
        own_id = compute_batch_id(charter.federation, header_bytes)
        if not is_signed_header(charter, header, own_id, signature):
            raise InvalidInput("a batch in the proof is not signed by a member of this federation")
        if compute_root_from_path(leaf, position, header.statement_count, path) != header.statement_root:
            raise InvalidInput("a member in the proof does not say that this checkpoint has this root")
        headers.append(header)
    members = [header.member for header in headers]
    if members != sorted(set(members)):
        raise InvalidInput("the statements must stand in ascending order of their members, each once")
    if len({header.charter_version for header in headers}) != 1:
        raise InvalidInput("the statements don't belong to one charter version")
    charter = charters[headers[0].charter_version]
    weight = sum(charter.weights[member] for member in members)
    if weight < charter.quorum:
        raise InvalidInput(f"statements of weight {weight} are no quorum; {charter.quorum} is needed")
    return VerifiedCheckpoint(batch, root, charter.version, tuple(members), max(it.time_ms for it in headers))


def sort_facts(facts: Sequence[bytes]) -> list[bytes]:
    """In the order of their leaves, which is the order of a snapshot."""
    return sorted(facts, key=lambda fact: compute_leaf(Tag.STATE_LEAF, fact))


def build_facts_proof(sorted_facts: Sequence[bytes], positions: Sequence[int]) -> bytes:
    """The proof that these facts of a snapshot stand under its root."""
    levels = compute_levels([compute_leaf(Tag.STATE_LEAF, fact) for fact in sorted_facts])
    count = len(sorted_facts)
    shown = [(sorted_facts[position], position, count, compute_path(levels, position)) for position in positions]
    return encode((PROTOCOL_VERSION, tuple(shown)))


def verify_facts(root: bytes, encoded: bytes) -> list[tuple[Any, ...]]:
    """The facts that the proof shows. Raises: InvalidInput unless each stands under the root.

    The count of leaves is not signed; it need not be: leaves and nodes have different tags, so whatever count is
    claimed, a path ends in the root only if the fact is one of its leaves.
    """
    facts = []
    for fact, position, count, path in decode(_FACT_PROOF, encoded, 1024 * FACT_PROOF_BYTES_MAX)[1]:
        if compute_root_from_path(compute_leaf(Tag.STATE_LEAF, fact), position, count, path) != root:
            raise InvalidInput("a fact does not stand under the checkpoint's root")
        facts.append(decode_fact(fact))
    return facts


def read_balance(account: bytes, facts: Sequence[tuple[Any, ...]]) -> dict[Lot, int]:
    """The whole balance of an account out of verified facts. Raises: InvalidInput when a part is missing."""
    parts = {fact[2]: fact for fact in facts if fact[:2] == ("balance", account)}
    if not parts or set(parts) != set(range(next(iter(parts.values()))[3])):
        raise InvalidInput("the proof does not show the whole balance of the account")
    return {Lot(*lot): amount for fact in parts.values() for *lot, amount in fact[4]}
