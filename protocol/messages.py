"""What nodes say to each other to become equal: compare frontiers, then fetch exactly what is missing.

A puller first sends the digest of its frontier; an equal one ends the talk with one byte. Otherwise the answer names
the other side's heads; for each log with a head that the puller lacks it names what it has (its head, and when the
log is forked also ids further and further back), and the other side sends what comes after, parents first, in pieces
of bounded size. Cost grows with the difference, not with the ledger (spec 10.3).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from hashlib import sha256
from typing import NamedTuple

from protocol.codec import binary, binary_up_to, decode, encode, items, list_of, uint
from protocol.errors import InvalidInput
from protocol.identifiers import ID_BYTES
from protocol.limits import BATCH_BYTES_MAX, FRONTIER_HEADS_MAX, MEMBER_NUMBER_MAX, SYNC_BYTES_MAX
from protocol.replica import LogName, Replica

PROBE, PULL = 1, 2
LOCATORS_PER_LOG_MAX = 64
"""Positions 1, 2, 4, 8 ... before a head reach back to the start of any log."""

LOGS_MAX = 256
"""Logs that one pull asks for; what is left is asked for next."""

PIECE_BATCHES_MAX = 1024
_BATCHES_BYTES_MAX = SYNC_BYTES_MAX + BATCH_BYTES_MAX
_REQUEST_BYTES_MAX = 1024 * 1024

_MEMBER = uint(MEMBER_NUMBER_MAX, 1)
_PLACE = items(_MEMBER, uint(), uint(), binary(ID_BYTES))
_PROBE_SHAPE = items(uint(PROBE, PROBE), binary(ID_BYTES))
_PULL_SHAPE = items(
    uint(PULL, PULL),
    list_of(items(_MEMBER, uint(), list_of(items(uint(), binary(ID_BYTES)), LOCATORS_PER_LOG_MAX)), LOGS_MAX, 1),
)
_FRONTIER_SHAPE = list_of(_PLACE, FRONTIER_HEADS_MAX)
_WANTED_SHAPE = items(list_of(binary(ID_BYTES), PIECE_BATCHES_MAX, 1))
_PIECE_SHAPE = items(uint(1), list_of(binary_up_to(BATCH_BYTES_MAX, 1), PIECE_BATCHES_MAX))


class LogHead(NamedTuple):
    """The last batch of a log, or of one of its branches, and its index there."""

    member: int
    version: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody wants of a head
    batch: bytes


class LogLocator(NamedTuple):
    """What the puller has of one log: (index, batch id), newest first; empty when it has nothing."""

    member: int
    version: int
    known: tuple[tuple[int, bytes], ...]


class Piece(NamedTuple):
    """Batches, parents first; `has_more` when the answer was cut at the size limit."""

    has_more: int
    batches: tuple[bytes, ...]


def get_heads(replica: Replica) -> tuple[LogHead, ...]:
    """The frontier: heads of logs of new charter versions first, in ascending order of members, forked ones last."""
    frontier = sorted(
        replica.get_frontier().items(), key=lambda log: (log[0] in replica.forked_logs, -log[0][1], log[0][0])
    )
    return tuple(LogHead(*log, replica.entries[head].index, head) for log, heads in frontier for head in heads)


def compute_frontier_digest(replica: Replica) -> bytes:
    """Equal on two replicas exactly when they hold the same batches."""
    return sha256(encode(get_heads(replica))).digest()


def encode_probe(digest: bytes) -> bytes:
    """ "Is this your frontier, too?" """
    return encode((PROBE, digest))


def encode_pull(locators: Iterable[LogLocator]) -> bytes:
    """ "Send what comes after these." """
    return encode((PULL, tuple(locators)))


def decode_request(encoded: bytes) -> bytes | tuple[LogLocator, ...]:
    """A probe's digest, or a pull's locators. Raises: InvalidInput."""
    if encoded[1:2] == bytes([PROBE]):
        return bytes(decode(_PROBE_SHAPE, encoded, _REQUEST_BYTES_MAX)[1])
    raw = decode(_PULL_SHAPE, encoded, _REQUEST_BYTES_MAX)[1]
    locators = tuple(LogLocator._make(locator) for locator in raw)
    if len({locator[:2] for locator in locators}) != len(locators):
        raise InvalidInput("a pull names each log once")
    return locators


def encode_frontier(heads: Iterable[LogHead]) -> bytes:
    """The answer to a probe that differs; an equal one is answered by the empty list.

    Should forked logs have more heads than a message holds, the last are left out: they come with what rests on them.
    """
    return encode(tuple(heads)[:FRONTIER_HEADS_MAX])


def decode_frontier(encoded: bytes) -> tuple[LogHead, ...]:
    """Raises: InvalidInput."""
    raw = decode(_FRONTIER_SHAPE, encoded, FRONTIER_HEADS_MAX * 64)
    return tuple(LogHead._make(head) for head in raw)


def encode_wanted(batches: Iterable[bytes]) -> bytes:
    """ "Send these batches, in this order; leave out what you don't have." """
    return encode((tuple(batches),))


def decode_wanted(encoded: bytes) -> tuple[bytes, ...]:
    """Raises: InvalidInput."""
    return tuple(decode(_WANTED_SHAPE, encoded, _REQUEST_BYTES_MAX)[0])


def encode_piece(piece: Piece) -> bytes:
    """The answer to a pull."""
    return encode(tuple(piece))


def decode_piece(encoded: bytes) -> Piece:
    """Raises: InvalidInput."""
    return Piece._make(decode(_PIECE_SHAPE, encoded, _BATCHES_BYTES_MAX))


def compute_locators(
    replica: Replica, theirs: Iterable[LogHead], ignored: Collection[LogName] = ()
) -> tuple[LogLocator, ...]:
    """For each log, but the ignored ones, in which the other side has a head that this replica lacks: what it has.

    Normally its own heads suffice: the other side is ahead on the same chain. When their unknown head stands at an
    index that this replica has, the log is forked, and ids further back find the place where the branches part.
    """
    unknown: dict[LogName, int] = {}
    for head in theirs:
        name = (head.member, head.version)
        if head.batch not in replica and name not in ignored:
            unknown[name] = min(head.index, unknown.get(name, head.index))
    locators = []
    for name, lowest in sorted(unknown.items())[:LOGS_MAX]:
        log = replica.get_log(name)
        known = [(replica.entries[head].index, head) for head in sorted(replica.heads.get(name, ()))]
        if lowest < len(log) or len(known) > 1:
            step, index = 1, len(log) - 1
            while index > 0:
                index = max(0, index - step)
                known.extend((index, batch) for batch in log[index])
                step *= 2
        known.sort(key=lambda place: (-place[0], place[1]))
        locators.append(LogLocator(*name, tuple(known[:LOCATORS_PER_LOG_MAX])))
    return tuple(locators)


def compute_missing(replica: Replica, locators: Iterable[LogLocator]) -> list[bytes]:
    """Ids of the batches that come after what the locators name, parents first; without those before the checkpoint
    with which this ledger begins, which are not here."""
    missing: list[bytes] = []
    for member, version, known in locators:
        log = replica.get_log((member, version))
        if not log:
            continue
        held = [batch for _, batch in known if batch in replica]
        if (member, version) not in replica.forked_logs:
            start = 1 + max((replica.entries[batch].index for batch in held), default=-1)
            missing.extend(log[index][0] for index in range(start, len(log)))
        else:
            has = set(held)
            for index in sorted(log, reverse=True):
                has.update(replica.entries[b].parents[0] for b in log[index] if b in has and index)
            missing.extend(batch for ids in log.values() for batch in ids if batch not in has)
    here = [batch for batch in missing if replica.entries[batch].number >= replica.named_count]
    return sorted(here, key=lambda batch: replica.entries[batch].number)
