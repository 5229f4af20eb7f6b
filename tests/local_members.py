"""Members in one process: replicas that park, correct members that vote, clusters that hear each other at once.

No disk, clock or network: a test hands batches from one to the other in the order that it wants to try.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from random import Random

from protocol.batches import Batch
from protocol.errors import Rejected
from protocol.finality import full_mask
from protocol.receipts import ProvableBatch, build_receipt
from protocol.records import Record, has_valid_signatures
from protocol.replica import Admission, FetchBatch, Replica
from protocol.statements import (
    Proposal,
    SlotProposal,
    Statement,
    Unlock,
    UnlockRequest,
    VoteBatch,
    encode_signed,
)
from protocol.voting import Voter
from tests.strategies import NOW, Federation, make_economy


class Gathering:
    """A replica with a parking place: takes batches in any order, with any repetition."""

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self.replica = Replica(federation.charter)
        self.batches: dict[bytes, Batch] = {}
        """Admitted, in the order of admission."""
        self.parked: dict[bytes, Batch] = {}
        self.fetch: FetchBatch = self.batches.get

    def receive(self, batch: Batch) -> list[Admission]:
        """Take in a batch, and all that waited for it."""
        if batch.id in self.replica:
            return []
        self.parked[batch.id] = batch
        admissions: list[Admission] = []
        count = -1
        while count != len(admissions):
            count = len(admissions)
            for parked in list(self.parked.values()):
                is_in_force = parked.header.charter_version <= self.replica.version
                if is_in_force and not self.replica.get_missing_parents(parked):
                    del self.parked[parked.id]
                    admissions.append(self._admit(parked))
        return admissions

    def merge(self, other: Gathering, random: Random) -> None:
        """Join: the union of both sets, and of what both have parked."""
        batches = [*other.batches.values(), *other.parked.values()]
        random.shuffle(batches)
        for batch in batches:
            self.receive(batch)

    def _admit(self, batch: Batch) -> Admission:
        assert self.replica.is_linked(batch, {})
        self.batches[batch.id] = batch
        admission = self.replica.admit(batch, self.fetch)
        assert admission is not None
        return admission

    def collect_final_records(self) -> list[Record]:
        """Every final record, from the batches themselves."""
        found = {record.id: record for batch in self.batches.values() for record in batch.records}
        return [record for record in found.values() if self.replica.is_final(record.id)]


class LocalMember(Gathering):
    """A correct member without disk and network: what it is told goes in, its next batch comes out."""

    def __init__(self, federation: Federation, number: int) -> None:
        super().__init__(federation)
        self.number = number
        self.voter = Voter(self.replica, number)
        self.submitted: list[Record] = []
        self.wishes: list[tuple[Statement, Record | None]] = []
        """Requests and proposals of owners for the next batch, and the record that a proposal names."""
        self.circumstances = NOW
        self._unseen: set[bytes] = set()
        self._is_replaying = False

    def submit(self, record: Record) -> None:
        """A wallet hands in a record. Raises: Rejected."""
        if self.voter.is_undecided(record) and record not in self.submitted:
            self.voter.check_introduction(record, self.circumstances)
            self.voter.note_introduction(record)
            self.submitted.append(record)

    def _admit(self, batch: Batch) -> Admission:
        admission = super()._admit(batch)
        if batch.header.member == self.number:
            self._unseen.difference_update(batch.seen)
        else:
            self._unseen.discard(batch.header.prev)
            self._unseen.add(batch.id)
        self.voter.handle_admission(admission)
        if not self._is_replaying:
            self._judge(batch)
            if self.voter.enter_version():
                self.judge_all()
            if self.replica.contests:
                self.voter.handle_contests(self.circumstances)
        return admission

    def judge_all(self) -> None:
        """Judge every open record once more, in an order that does not tell which came first."""
        for introduction in sorted(self.replica.get_open_introductions(), key=lambda each: each.batch):
            self._judge(self.batches[introduction.batch])

    def _judge(self, batch: Batch) -> None:
        introduction = self.replica.get_introduction(batch.id)
        if introduction is not None:
            valid = sum(1 << i for i, record in enumerate(batch.records) if has_valid_signatures(record))
            self.voter.handle_verified(introduction, valid, self.circumstances)

    def ask(self, request: UnlockRequest) -> None:
        """An owner hands in an unlock request. Raises: Rejected."""
        self.voter.check_request(request, self.circumstances)
        self.wishes.append((Unlock(encode_signed(request)), None))

    def propose(self, proposal: SlotProposal, record: Record) -> None:
        """An owner hands in a proposal with its record. Raises: Rejected."""
        self.voter.check_proposal(proposal, record, self.circumstances)
        self.wishes.append((Proposal(encode_signed(proposal)), record))

    def speak(self) -> Batch | None:
        """The next batch of the member's log, if it has anything to say."""
        records, self.submitted = self.submitted, []
        wishes, self.wishes = self.wishes, []
        if not self.voter.is_speaking:
            return None
        statements = [wish for wish, _ in wishes] + self.voter.take_statements()
        if not records and not statements:
            return None
        charter = self.replica.ledger.charters[self.voter.version]
        own = self.replica.get_log((self.number, charter.version))
        after = self.batches[own[len(own) - 1][0]] if own else None
        seen = [self.batches[batch_id] for batch_id in sorted(self._unseen)]
        brought = [record for _, record in wishes if record is not None and not self._is_introduced(record)]
        own_votes: list[Statement] = []
        if records:
            own_votes = [VoteBatch(b"", full_mask(len(brought)) << len(records))]
        batch = self.federation.batch(
            self.number,
            after=after,
            seen=seen,
            records=records + brought,
            statements=own_votes + statements,
            charter=charter,
        )
        self._admit(batch)
        return batch

    def _is_introduced(self, record: Record) -> bool:
        """True when the record came with signatures that hold."""
        return any(map(has_valid_signatures, self.replica.get_spellings(record.id)))

    def replay(self, batches: Iterable[Batch]) -> None:
        """Take in stored batches, as at a start: nothing is judged."""
        self._is_replaying = True
        for batch in batches:
            self.receive(batch)
        self._is_replaying = False

    def restart(self) -> LocalMember:
        """The member as it is after a crash: computed anew from its stored batches alone."""
        again = LocalMember(self.federation, self.number)
        again.circumstances = self.circumstances
        again.replay(self.batches.values())
        again.voter.enter_version()
        for batch in self.batches.values():
            again._judge(batch)
        return again

    def receipt(self, record: Record) -> bytes:
        """The receipt of a final record."""
        return build_gathered_receipt(self, record)


class Cluster:
    """Correct members that hear each other at once."""

    def __init__(self, federation: Federation, numbers: Iterable[int] = ()) -> None:
        self.federation = federation
        self.members = {number: LocalMember(federation, number) for number in numbers or federation.numbers}
        self.said: list[Batch] = []

    def hand_out(self, batch: Batch) -> None:
        """Everybody receives the batch."""
        self.said.append(batch)
        for member in self.members.values():
            member.receive(batch)

    def settle_down(self) -> None:
        """Members speak in turn until nobody has anything to say."""
        is_quiet = False
        while not is_quiet:
            is_quiet = True
            for member in self.members.values():
                batch = member.speak()
                if batch is not None:
                    self.hand_out(batch)
                    is_quiet = False

    def finalise(self, records: Iterable[Record], at: int = 1) -> None:
        """Hand records in at one member, one after the other where they build on each other, until all are final."""
        for record in records:
            try:
                self.members[at].submit(record)
            except Rejected:
                self.settle_down()
                self.members[at].submit(record)
        self.settle_down()


@cache
def make_prefix(federation: Federation, people_count: int = 2) -> tuple[Batch, ...]:
    """Batches of the first quorum's members that make an economy's records final; parents first."""
    cluster = Cluster(federation, federation.numbers[: -(-2 * len(federation.numbers) // 3)])
    economy = make_economy(federation, people_count)
    cluster.finalise(economy.setup)
    cluster.finalise([economy.grant])
    assert all(cluster.members[1].replica.is_final(record.id) for record in economy.records)
    return tuple(cluster.said)


def build_gathered_receipt(gathering: Gathering, record: Record) -> bytes:
    """The receipt of a final record, from the batches of one gathering."""
    receipt = build_receipt(gathering.replica, record.id, lambda batch_id: ProvableBatch(gathering.batches[batch_id]))
    assert receipt is not None
    return receipt
