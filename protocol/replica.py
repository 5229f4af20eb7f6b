"""A replica of the federation's state: a set of batches, and everything that follows from it.

The set grows only, by batches all of whose references are already in it (closed under references); joining two
replicas is the union of their sets. All else (tallies, finality, balances) is a pure function of the set, so two
replicas that hold the same batches have the same state, byte for byte: a CRDT (spec 4.1, proof in 4.6).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from protocol.attempts import Claim, Round
from protocol.batches import Batch, Header
from protocol.charter import Charter
from protocol.codec import encode
from protocol.contests import Contest, Place, PromiseGiven, Slot
from protocol.equivocation import ForkEvidence, build_fork_evidence
from protocol.finality import CommitStatement, Tally, full_mask, iterate_positions
from protocol.identifiers import Tag
from protocol.ledger import Ledger
from protocol.merkle import compute_leaf, compute_root
from protocol.records import Record, decode_record, has_valid_signatures
from protocol.statements import (
    Adopt,
    Commit,
    CommitBatch,
    Promise,
    Proof,
    Proposal,
    Statement,
    Unlock,
    UnlockRequest,
    Vote,
    VoteBatch,
    decode_slot_proposal,
    decode_unlock_request,
    encode_signed,
    get_proven_record,
)

LogName = tuple[int, int]
"""(member, charter version): each member starts a new log with each version, under a vote key of its own (spec 9.7)."""

Ballot = tuple[Round, bytes, int]
"""Votes that add up: the round, batch and position of the owner's proposal; none and 0 at attempt 0."""

FetchBatch = Callable[[bytes], Batch]
"""Reads an admitted batch from the store by its id."""


class Introduction:
    """The records that one batch brought into the ledger, and what members said of them."""

    __slots__ = ("aliases", "batch", "commit_statements", "commits", "final", "ids", "records", "votes")

    def __init__(self, batch: bytes, records: Sequence[Record]) -> None:
        self.batch = batch
        self.ids = tuple([record.id for record in records])
        self.records: dict[int, Record] = dict(enumerate(records))
        """Position -> record, until it is final."""
        self.votes: dict[Ballot, Tally] = {}
        self.commits: dict[Round, Tally] = {}
        self.commit_statements: list[CommitStatement] = []
        self.final = 0
        """Positions that are final."""
        self.aliases: dict[int, tuple[Introduction, int]] = {}
        """Positions whose record another batch introduced here before: all weight is counted there."""


def get_log_name(header: Header) -> LogName:
    """The log in which the batch stands."""
    return header.member, header.charter_version


class LogEntry(NamedTuple):
    """What a replica remembers of a batch; its bytes are in the store."""

    number: int
    """Order of admission at this replica: parents always have lower numbers."""
    log: LogName
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody wants of a header
    parents: tuple[bytes, ...]


class Admission(NamedTuple):
    """What one batch changed."""

    batch: Batch
    introduction: Introduction | None
    certified: list[tuple[Introduction, int, Round]]
    """Records that got a certificate, as masks of positions, and in which round."""
    final: list[tuple[Introduction, int]]
    applied: list[Record]
    touched: list[bytes]
    fork: ForkEvidence | None


class Replica:
    """The set of admitted batches and its state."""

    def __init__(self, charter: Charter) -> None:
        self.federation = charter.federation
        self.ledger = Ledger(charter)
        self.version = charter.version
        """The charter version in force: a quorum of the version before has adopted it."""
        self.entries: dict[bytes, LogEntry] = {}
        self.logs: dict[LogName, dict[int, list[bytes]]] = {}
        """Log -> index -> ids of its batches there; more than one is a fork."""
        self.heads: dict[LogName, set[bytes]] = {}
        """Log -> its batches that no other batch of it continues."""
        self.forks: dict[int, ForkEvidence] = {}
        """Member -> the first proof that it forked a log of its."""
        self.forked_logs: set[LogName] = set()
        self.final_count = 0
        self._adopters: dict[Adopt, set[int]] = {}
        self._introductions: dict[bytes, Introduction] = {}
        self._open: dict[bytes, Introduction] = {}
        """Those that hold a record which is not final."""
        self._located: dict[bytes, tuple[Introduction, int]] = {}
        self._respelled: dict[bytes, Record] = {}
        """Open records whose signatures a later batch spells in another way that holds."""
        self._repeated: dict[bytes, list[tuple[Introduction, int]]] = {}
        self.contests: dict[Slot, Contest] = {}
        """Slots that somebody asked to unlock, until they are decided."""
        self._claimed: dict[Slot, tuple[Introduction, int]] = {}
        """The first record of each open slot that came here."""
        self._rivals: dict[Slot, list[tuple[Introduction, int]]] = {}
        """Open slots with several records: where all of them stand."""
        self._requests: dict[Place, UnlockRequest] = {}
        self.proofs: dict[bytes, bytes] = {}
        """Receipts that members logged, by the records that they prove."""
        self.double_finals: dict[Slot, set[bytes]] = {}
        """Slots in which a record became final after another one: more was faulty than the quorum tolerates."""
        self._losers: dict[bytes, Record] = {}
        """Records whose slot went to another one."""

    # -- reading ------------------------------------------------------------------------------------------------

    @property
    def charter(self) -> Charter:
        """The charter in force."""
        return self.ledger.charters[self.version]

    def __contains__(self, batch_id: object) -> bool:
        return batch_id in self.entries

    def get_missing_parents(self, batch: Batch) -> list[bytes]:
        """Batches that must be admitted before this one."""
        return [parent for parent in batch.parents if parent not in self.entries]

    def is_linked(self, batch: Batch, arriving: Mapping[bytes, Batch]) -> bool:
        """True when `prev` is the batch of the same log at the index before; it is here or `arriving`.

        Without this a member could branch its log at two different indexes, and no proof would convict it.
        """
        header = batch.header
        if not header.prev:
            return True
        entry = self.entries.get(header.prev)
        if entry is not None:
            return (entry.log, entry.index) == (get_log_name(header), header.index - 1)
        before = arriving[header.prev].header
        return (get_log_name(before), before.index) == (get_log_name(header), header.index - 1)

    def get_introduction(self, batch_id: bytes) -> Introduction | None:
        """The records of an admitted batch."""
        return self._introductions.get(batch_id)

    def locate(self, record_id: bytes) -> tuple[Introduction, int] | None:
        """Where a record stands, if any admitted batch introduced it."""
        return self._located.get(record_id)

    def get_introductions(self, record_id: bytes) -> list[tuple[Introduction, int]]:
        """Every batch and position that introduced a record."""
        located = self._located.get(record_id)
        return [located, *self._repeated.get(record_id, ())] if located else []

    def get_open_introductions(self) -> list[Introduction]:
        """The introductions that hold a record which is not final."""
        return list(self._open.values())

    def is_final(self, record_id: bytes) -> bool:
        """True when commits of a quorum in one round stand behind the record."""
        located = self._located.get(record_id)
        return located is not None and bool(located[0].final >> located[1] & 1)

    def get_claim_places(self, slot: Slot) -> list[tuple[Introduction, int]]:
        """Where the records that claim an open slot stand; none once it is decided."""
        claimed = self._claimed.get(slot)
        return self._rivals.get(slot) or ([claimed] if claimed else [])

    def get_claims(self, slot: Slot) -> list[Record]:
        """The records that claim an open slot, in the order in which they came here."""
        return [introduction.records[position] for introduction, position in self.get_claim_places(slot)]

    def get_spellings(self, record_id: bytes) -> list[Record]:
        """An open record as it came first and, where a later batch spells its signatures in another way that holds,
        as it stands there: who introduced it first may have broken them, and one spelling suffices (spec 4.5)."""
        located = self._located.get(record_id)
        original = located[0].records.get(located[1]) if located else None
        respelled = self._respelled.get(record_id)
        return [record for record in (original, respelled) if record is not None]

    def get_request(self, place: Place) -> UnlockRequest | None:
        """The unlock request that stands at this place, while its slot is open."""
        return self._requests.get(place)

    def is_certified(self, slot: Slot, claim: Claim) -> bool:
        """True when votes of a quorum in the claim's round stand behind its record, which claims this open slot."""
        located = self._located.get(claim.record)
        if located is None or located not in self.get_claim_places(slot):
            return False
        introduction, position = located
        return any(
            ballot[0] == claim.round and tally.reached >> position & 1 for ballot, tally in introduction.votes.items()
        )

    def get_losers(self) -> list[Record]:
        """The records whose slot went to another one."""
        return list(self._losers.values())

    def get_log(self, log: LogName) -> dict[int, list[bytes]]:
        """Index -> ids of the batches there; empty for a log that nobody began."""
        return self.logs.get(log, {})

    def is_supported(self, slot: Slot, promise: PromiseGiven) -> bool:
        """True when the promise reports nothing, or a certificate that is here."""
        return promise.report is None or self.is_certified(slot, promise.report)

    def find_certificates(self) -> dict[Slot, list[Claim]]:
        """The certificates of each open slot that has any."""
        found: dict[Slot, list[Claim]] = {}
        for introduction in self._open.values():
            for ballot, tally in introduction.votes.items():
                for position in iterate_positions(tally.reached):
                    record = introduction.records.get(position)
                    if record is not None:
                        found.setdefault((record.scope, record.sequence), []).append(Claim(ballot[0], record.id))
        return found

    def get_frontier(self) -> dict[LogName, tuple[bytes, ...]]:
        """The heads of every log, sorted: two closed sets are equal when these are."""
        return {log: tuple(sorted(heads)) for log, heads in self.heads.items()}

    # -- growing ------------------------------------------------------------------------------------------------

    def admit(self, batch: Batch, fetch: FetchBatch) -> Admission | None:
        """Add a batch to the set; None when it is there already.

        The caller has checked the member's signature and its place (`is_linked`), and stored the batch. `fetch` reads
        a stored batch by its id; it is asked only when a fork is found. Requires: no missing parent.
        """
        if batch.id in self.entries:
            return None
        assert not self.get_missing_parents(batch), "the set stays closed"
        header = batch.header
        fork = self._extend_log(batch, fetch)
        admission = Admission(batch, self._introduce(batch), [], [], [], [], fork)
        for position, statement in enumerate(batch.statements):
            self._count(header, batch.id, position, statement, admission)
        return admission

    def _extend_log(self, batch: Batch, fetch: FetchBatch) -> ForkEvidence | None:
        header = batch.header
        log = get_log_name(header)
        self.entries[batch.id] = LogEntry(len(self.entries), log, header.index, batch.parents)
        siblings = self.logs.setdefault(log, {}).setdefault(header.index, [])
        siblings.append(batch.id)
        heads = self.heads.setdefault(log, set())
        heads.discard(header.prev)
        heads.add(batch.id)
        if len(siblings) > 1:
            self.forked_logs.add(log)
            if header.member not in self.forks:
                self.forks[header.member] = build_fork_evidence(fetch(siblings[0]), batch)
                return self.forks[header.member]
        return None

    def _introduce(self, batch: Batch) -> Introduction | None:
        if not batch.records:
            return None
        introduction = Introduction(batch.id, batch.records)
        self._introductions[batch.id] = introduction
        for position, record in enumerate(batch.records):
            self._place(introduction, position, record)
        if introduction.records:
            self._open[batch.id] = introduction
        return introduction

    def _place(self, introduction: Introduction, position: int, record: Record) -> None:
        """Note where a record stands, and that it claims its slot."""
        place = (introduction, position)
        located = self._located.setdefault(record.id, place)
        if located is not place:
            introduction.aliases[position] = located
            del introduction.records[position]
            self._repeated.setdefault(record.id, []).append(place)
            original = located[0].records.get(located[1])
            if original is not None and original.signatures != record.signatures and has_valid_signatures(record):
                self._respelled.setdefault(record.id, record)
        elif self.ledger.is_decided(record.scope, record.sequence):
            self._losers[record.id] = introduction.records.pop(position)
        else:
            slot = (record.scope, record.sequence)
            first = self._claimed.setdefault(slot, place)
            if first is not place:
                self._rivals.setdefault(slot, [first]).append(place)

    def _decide(self, record: Record) -> None:
        """The record is final: its rivals never will be, and nobody need unlock its slot."""
        slot = (record.scope, record.sequence)
        self._claimed.pop(slot, None)
        self._respelled.pop(record.id, None)
        for introduction, position in self._rivals.pop(slot, ()):
            rival = introduction.records.pop(position, None)
            if rival is not None:
                self._losers[rival.id] = rival
                self._respelled.pop(rival.id, None)
                self._close_if_done(introduction)
        contest = self.contests.pop(slot, None)
        for place in contest.requests if contest else ():
            del self._requests[place]

    def _close_if_done(self, introduction: Introduction) -> None:
        if not introduction.records:
            self._open.pop(introduction.batch, None)

    def _count(
        self, header: Header, batch_id: bytes, position: int, statement: Statement, admission: Admission
    ) -> None:
        """Count a statement; the batch that it speaks of is here, as a parent of the one that carries it."""
        if not isinstance(statement, (VoteBatch, CommitBatch, Vote, Commit)):
            match statement:
                case Adopt():
                    self._note_adoption(header, statement)
                case Proof():
                    self._note_proof(batch_id, statement, admission)
                case _:
                    self._note_unlocking(header, (batch_id, position), statement)
            return
        introduction = self._introductions.get(statement.batch or batch_id)
        if introduction is None:
            return
        everything = full_mask(len(introduction.ids))
        if isinstance(statement, (VoteBatch, CommitBatch)):
            mask, attempt = everything & ~statement.excluded, 0
        else:
            mask, attempt = everything & 1 << statement.position, statement.attempt
        spoken_round = Round(header.charter_version, attempt)
        if isinstance(statement, (VoteBatch, Vote)):
            ballot: Ballot = (spoken_round, b"", 0)
            if isinstance(statement, Vote) and attempt:
                ballot = (spoken_round, statement.proposal_batch or batch_id, statement.proposal_position)
            self._count_votes(header.member, ballot, introduction, mask, admission)
        else:
            spoken = CommitStatement(header.member, batch_id, position, spoken_round, mask)
            introduction.commit_statements.append(spoken)
            self._count_commits(header.member, spoken_round, introduction, mask, admission)

    def _note_adoption(self, header: Header, adopt: Adopt) -> None:
        if adopt.charter_version == header.charter_version + 1:
            self._adopters.setdefault(adopt, set()).add(header.member)
            self._advance()

    def _advance(self) -> None:
        """Versions come into force one after the other, each by the quorum of the one before."""
        while (after := self.ledger.charters.get(self.version + 1)) is not None:
            adopters = self._adopters.get(Adopt(after.version, after.id), set())
            if sum(self.charter.weights[member] for member in adopters) < self.charter.quorum:
                return
            self.version = after.version

    def _note_unlocking(self, header: Header, place: Place, statement: Statement) -> None:
        """Keep what frees an open slot: requests and proposals of whoever signed them, and promises (spec 5.6)."""
        match statement:
            case Unlock():
                request = decode_unlock_request(statement.request)
                if not self.ledger.is_decided(*request.slot):
                    self._requests[place] = request
                    self.contests.setdefault(request.slot, Contest()).requests[place] = request
            case Proposal():
                proposal = decode_slot_proposal(statement.proposal)
                if not self.ledger.is_decided(*proposal.slot):
                    self.contests.setdefault(proposal.slot, Contest()).proposals[place] = proposal
            case Promise():
                answered = self._requests.get((statement.unlock_batch or place[0], statement.unlock_position))
                if answered is not None:
                    promised = Round(header.charter_version, answered.attempt)
                    promise = PromiseGiven(header.member, statement.report)
                    self.contests[answered.slot].note_promise(promised, place[0], promise)

    def _split_aliases(self, introduction: Introduction, mask: int) -> Iterable[tuple[Introduction, int]]:
        """Where the weight of `mask` is counted: here, or where a repeated record was introduced first."""
        for position, (original, original_position) in introduction.aliases.items():
            if mask >> position & 1:
                mask &= ~(1 << position)
                yield original, 1 << original_position
        yield introduction, mask

    def _count_votes(
        self, member: int, ballot: Ballot, introduction: Introduction, mask: int, admission: Admission
    ) -> None:
        charter = self.ledger.charters[ballot[0].version]
        weight = charter.weights[member]
        for counted, positions in self._split_aliases(introduction, mask):
            tally = counted.votes.setdefault(ballot, Tally())
            reached = tally.add(member, weight, positions, charter.quorum)
            if reached:
                admission.certified.append((counted, reached, ballot[0]))

    def _count_commits(
        self, member: int, spoken_round: Round, introduction: Introduction, mask: int, admission: Admission
    ) -> None:
        charter = self.ledger.charters[spoken_round.version]
        weight = charter.weights[member]
        for counted, positions in self._split_aliases(introduction, mask):
            tally = counted.commits.setdefault(spoken_round, Tally())
            reached = tally.add(member, weight, positions, charter.quorum) & ~counted.final
            if reached:
                self._finalise(counted, reached, admission)

    def _finalise(self, counted: Introduction, reached: int, admission: Admission) -> None:
        counted.final |= reached
        admission.final.append((counted, reached))
        for position in iterate_positions(reached):
            record = counted.records.pop(position, None)
            if record is None:
                loser = self._losers[counted.ids[position]]
                self.double_finals.setdefault((loser.scope, loser.sequence), set()).add(loser.id)
                continue
            self.final_count += 1
            self._decide(record)
            admission.applied.extend(self.ledger.offer(record))
        self._close_if_done(counted)
        self._advance()

    def _note_proof(self, batch_id: bytes, proof: Proof, admission: Admission) -> None:
        """A receipt counts as its commits: without that, replicas could disagree for ever about a record that a forked
        member helped to make final on a branch which some of them never take in (spec 4.7)."""
        record = decode_record(self.federation, get_proven_record(proof))
        self.proofs.setdefault(record.id, proof.receipt)
        if record.id not in self._located:
            self._place(Introduction(batch_id, [record]), 0, record)
        counted, position = self._located[record.id]
        if not counted.final >> position & 1:
            self._finalise(counted, 1 << position, admission)

    # -- comparing ----------------------------------------------------------------------------------------------

    def compute_state_root(self) -> bytes:
        """The hash of the whole state: the ledger, and what was said about every record that is not final."""
        leaves = self.ledger.compute_state_leaves()
        for introduction in self._open.values():
            for position in introduction.records:
                leaves += _open_leaves(introduction, position)
        for contest in self.contests.values():
            leaves += _contest_leaves(contest)
        return compute_root(sorted(leaves))


def _contest_leaves(contest: Contest) -> list[bytes]:
    facts: list[tuple[object, ...]] = [("unlock", *place, encode_signed(it)) for place, it in contest.requests.items()]
    facts += [("proposal", *place, encode_signed(it)) for place, it in contest.proposals.items()]
    for promised, given in contest.promises.items():
        for batch, (member, report) in given.items():
            reported = (*report.round, report.record) if report else ()
            facts.append(("promise", batch, *promised, member, reported))
    return [compute_leaf(Tag.STATE_LEAF, encode(fact)) for fact in facts]


def _open_leaves(introduction: Introduction, position: int) -> list[bytes]:
    record_id = introduction.ids[position]
    facts: list[tuple[object, ...]] = [("open", record_id)]
    for (vote_round, *proposal), tally in introduction.votes.items():
        members = tuple(sorted(m for m, mask in tally.masks.items() if mask >> position & 1))
        if members:
            facts.append(("votes", record_id, *vote_round, *proposal, members))
    for commit_round, tally in introduction.commits.items():
        members = tuple(sorted(m for m, mask in tally.masks.items() if mask >> position & 1))
        if members:
            facts.append(("commits", record_id, *commit_round, members))
    return [compute_leaf(Tag.STATE_LEAF, encode(fact)) for fact in facts]
