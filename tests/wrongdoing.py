"""A slot in which everything goes wrong, and one proof of each kind that it leaves behind.

A payer signs two payments for one slot. Members 3 and 4 of four, more than the quorum tolerates, vote for both and
commit to both, so both become final; member 3 then promises to leave the slot and hides its commits, and signs a second
batch for a place in its log.
"""

from __future__ import annotations

from functools import cache

from protocol.batches import Batch
from protocol.detection import Evidence, find_evidence
from protocol.equivocation import EvidenceKind
from protocol.receipts import ProvableBatch
from protocol.records import Record
from protocol.statements import (
    Commit,
    Promise,
    Statement,
    Unlock,
    UnlockRequest,
    Vote,
    VoteBatch,
    encode_signed,
)
from tests.local_members import Gathering, make_prefix
from tests.strategies import Federation, make_economy, make_federation

GUILTY = (3, 4)


def make_rivals(federation: Federation) -> tuple[Record, Record]:
    """Two payments of one person for one slot, the lower id first."""
    economy = make_economy(federation)
    payer, payee = economy.people
    rivals = (federation.transfer(payer, [economy.output(payee, amount)]) for amount in (10, 20))
    left, right = sorted(rivals, key=lambda record: record.id)
    return left, right


def say(gathering: Gathering, member: int, *statements: Statement, record: Record | None = None) -> Batch:
    """The member's next batch in this gathering, with a vote for the record that it introduces."""
    log = gathering.replica.get_log((member, 0))
    after = gathering.batches[log[len(log) - 1][0]] if log else None
    records = [record] if record else []
    own = [VoteBatch(b"", 0)] if record else []
    batch = gathering.federation.batch(member, after=after, records=records, statements=[*own, *statements])
    assert gathering.receive(batch)
    return batch


def speak_of(batch: Batch, attempt: int = 0) -> list[Statement]:
    """A vote for and a commit to the batch's only record."""
    return [Vote(batch.id, 0, attempt, batch.id if attempt else b"", 0), Commit(batch.id, 0, attempt)]


def make_unlock(federation: Federation, record: Record, attempt: int = 1) -> Unlock:
    """The payer's request to unlock the record's slot."""
    payer = make_economy(federation).people[0]
    request = UnlockRequest(record.scope, record.sequence, attempt, payer.public_key, bytes(64))
    return Unlock(encode_signed(request._replace(signature=payer.key.sign(request.compute_id(federation.id)))))


def promise(batch: Batch, position: int, reported: bytes = b"") -> Promise:
    """A promise that reports a commit at attempt 0, or none."""
    return Promise(batch.id, position, reported, 0, 0)


def gather_prefix(federation: Federation) -> Gathering:
    """A replica in which people have money."""
    gathering = Gathering(federation)
    for batch in make_prefix(federation):
        gathering.receive(batch)
    return gathering


def find(gathering: Gathering) -> list[Evidence]:
    """The proofs that a gathering's batches hold."""
    return find_evidence(gathering.replica, lambda batch_id: ProvableBatch(gathering.batches[batch_id]))


@cache
def make_disaster() -> Gathering:
    """All of it; tests share it."""
    federation = make_federation()
    gathering = gather_prefix(federation)
    left, right = make_rivals(federation)
    first = say(gathering, 1, record=left)
    second = say(gathering, 2, record=right)
    request = say(gathering, 1, Commit(first.id, 0, 0), make_unlock(federation, left))
    both = [*speak_of(first), *speak_of(second)]
    say(gathering, 3, promise(request, 1), *both)
    say(gathering, 4, *both)
    say(gathering, 2, Commit(second.id, 0, 0))
    log = gathering.replica.get_log((3, 0))
    before = gathering.batches[log[len(log) - 2][0]]
    gathering.receive(federation.batch(3, after=before, statements=both, time_ms=7))
    return gathering


@cache
def make_evidence() -> dict[EvidenceKind, Evidence]:
    """One proof of each kind."""
    return {evidence.verdict.kind: evidence for evidence in reversed(find(make_disaster()))}
