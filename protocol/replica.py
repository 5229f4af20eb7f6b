"""A replica of the federation's state: a set of batches, and everything that follows from it.

The set grows only, by batches all of whose references are already in it (closed under references); joining two
replicas is the union of their sets. All else (tallies, finality, balances) is a pure function of the set, so two
replicas that hold the same batches have the same state, byte for byte: a CRDT (spec 4.1, proof in 4.6).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from protocol.attempts import Claim, Round
from protocol.batches import Batch, Header
from protocol.charter import Charter
from protocol.codec import encode
from protocol.contests import Contest, Place, PromiseGiven
from protocol.equivocation import ForkEvidence, build_fork_evidence
from protocol.finality import CommitStatement, Tally, full_mask, iterate_positions
from protocol.identifiers import Slot, Tag
from protocol.introductions import Ballot, Introduction
from protocol.ledger import Ledger
from protocol.merkle import compute_set_root
from protocol.records import Record, ScopeKind
from protocol.statements import (
    Adopt,
    Commit,
    CommitBatch,
    Promise,
    Proposal,
    Statement,
    Unlock,
    UnlockRequest,
    Vote,
    VoteBatch,
    decode_slot_proposal,
    decode_unlock_request,
)
from protocol.states import Head

LogName = tuple[int, int]
"""(member, charter version): each member starts a new log with each version, under a vote key of its own (spec 9.7)."""

FetchBatch = Callable[[bytes], Batch | None]
"""Reads an admitted batch from the store by its id; None when it lies before the snapshot and is not here."""


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
        self.forked_logs: frozenset[LogName] = frozenset()
        self.final_count = 0
        self._adopters: dict[Adopt, set[int]] = {}
        self._introductions: dict[bytes, Introduction] = {}
        self._open: dict[bytes, Introduction] = {}
        """Those that hold a record which is not final."""
        self._located: dict[bytes, tuple[Introduction, int]] = {}
        self._repeated: dict[bytes, list[tuple[Introduction, int]]] = {}
        self.contests: dict[Slot, Contest] = {}
        """Slots that somebody asked to unlock, until they are decided."""
        self._claimed: dict[Slot, tuple[Introduction, int]] = {}
        """The first record of each open slot that came here."""
        self._rivals: dict[Slot, list[tuple[Introduction, int]]] = {}
        """Open slots with several records: where all of them stand."""
        self._requests: dict[Place, UnlockRequest] = {}
        self._proposals: dict[Place, Place] = {}
        """Where a proposal stands -> its id and 0: what its votes are counted under."""
        self.double_finals: set[Slot] = set()
        """Slots in which a second record became final, the first such slot of each scope: more was faulty than the
        quorum tolerates (spec 8.8)."""
        self._chain_heads: dict[bytes, Head] = {}
        """Frozen scope -> its head when that came to light here; no part of the state."""
        self._losers: dict[bytes, Record] = {}
        """Records whose slot went to another one."""
        self.named_count = 0
        """Batches that a snapshot named: those with lower numbers are known by their places alone."""
        self._sequences_before: dict[bytes, int] = {}
        """Scope -> its first slot in which nothing had applied in the snapshot."""
        self._waiting_before: set[Slot] = set()
        """Later slots with a final record that waited there."""

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

    @property
    def forked_members(self) -> frozenset[int]:
        """Members that forked a log of theirs; of each whose batches are here, `forks` holds the proof."""
        return frozenset(member for member, _ in self.forked_logs)

    @property
    def is_outnumbered(self) -> bool:
        """True when members that forked their logs of the charter version in force weigh more than a quorum can do
        without: what becomes final now may be contradicted (spec 8.8)."""
        if not self.forked_logs:
            return False
        weights = self.charter.weights
        forked = sum(weights[member] for member, version in self.forked_logs if version == self.version)
        return forked > self.charter.total_weight - self.charter.quorum

    def has_adopted(self, member: int, version: int) -> bool:
        """True when the member has left the charter version before this one."""
        return any(adopt.charter_version == version and member in them for adopt, them in self._adopters.items())

    def was_decided_before(self, scope: bytes, sequence: int) -> bool:
        """True when the snapshot tells that a record became final there, and perhaps not which."""
        return sequence < self._sequences_before.get(scope, 0) or (scope, sequence) in self._waiting_before

    def get_chain_head(self, scope: bytes) -> Head | None:
        """The last record of the scope to which the records before lead: its head, but in a frozen scope the head when
        that came to light here."""
        return (self._chain_heads if scope in self.ledger.frozen else self.ledger.heads).get(scope)

    def is_final(self, record_id: bytes) -> bool:
        """True when commits of a quorum in one round stand behind the record."""
        located = self._located.get(record_id)
        return located is not None and bool(located[0].final >> located[1] & 1)

    def get_claim_places(self, slot: Slot) -> list[tuple[Introduction, int]]:
        """Where the records that claim an open slot stand; none once it is decided."""
        claimed = self._claimed.get(slot)
        return self._rivals.get(slot) or ([claimed] if claimed else [])

    def get_claims(self, slot: Slot) -> list[Record]:
        """The records that claim an open slot, in the order in which they came here, in every spelling."""
        ids = [introduction.ids[position] for introduction, position in self.get_claim_places(slot)]
        return [record for record_id in ids for record in self.get_spellings(record_id)]

    def get_spellings(self, record_id: bytes) -> list[Record]:
        """An open record as it came first and, where a later batch spells its signatures in another way that holds,
        as it stands there: who introduced it first may have broken them, and one spelling suffices (spec 4.5)."""
        spelled = (
            introduction.open_records.get(position) for introduction, position in self.get_introductions(record_id)
        )
        return [record for record in spelled if record is not None]

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
                        found.setdefault(record.slot, []).append(Claim(ballot[0], record.id))
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
        admission = Admission(batch, self._introduce(batch), [], [], [], fork)
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
            self.forked_logs = self.forked_logs.union((log,))
            if header.member not in self.forks and (other := fetch(siblings[0])) is not None:
                self.forks[header.member] = build_fork_evidence(other, batch)
                return self.forks[header.member]
        return None

    def _introduce(self, batch: Batch) -> Introduction | None:
        if not batch.records:
            return None
        introduction = Introduction(batch.id, batch.records)
        self._introductions[batch.id] = introduction
        for position, record in enumerate(batch.records):
            self._place(introduction, position, record)
        if introduction.records or introduction.repeats:
            self._open[batch.id] = introduction
        return introduction

    def _place(self, introduction: Introduction, position: int, record: Record) -> None:
        """Note where a record stands, and that it claims its slot."""
        place = (introduction, position)
        located = self._located.setdefault(record.id, place)
        if located is not place:
            introduction.aliases[position] = located
            del introduction.records[position]
            if located[1] in located[0].records:
                introduction.repeats[position] = record
            self._repeated.setdefault(record.id, []).append(place)
        elif self.ledger.is_decided(*record.slot):
            self._losers[record.id] = introduction.records.pop(position)
        else:
            slot = record.slot
            first = self._claimed.setdefault(slot, place)
            if first is not place:
                self._rivals.setdefault(slot, [first]).append(place)

    def _close_slot(self, slot: Slot) -> None:
        """A record is final there: its rivals never will be, and nobody need unlock the slot."""
        places = self.get_claim_places(slot)
        self._claimed.pop(slot, None)
        self._rivals.pop(slot, None)
        for introduction, position in places:
            self._close_repeats(introduction.ids[position])
            rival = introduction.records.pop(position, None)
            if rival is not None:
                self._losers[rival.id] = rival
                self._close_if_done(introduction)
        contest = self.contests.pop(slot, None)
        if contest is not None:
            for place in contest.requests:
                del self._requests[place]
            for place in contest.proposals:
                del self._proposals[place]

    def _close_repeats(self, record_id: bytes) -> None:
        for introduction, position in self._repeated.get(record_id, ()):
            introduction.repeats.pop(position, None)
            self._close_if_done(introduction)

    def _close_if_done(self, introduction: Introduction) -> None:
        if not (introduction.records or introduction.repeats):
            self._open.pop(introduction.batch, None)

    def _count(
        self, header: Header, batch_id: bytes, position: int, statement: Statement, admission: Admission
    ) -> None:
        """Count a statement; the batch that it speaks of is here, as a parent of the one that carries it."""
        if not isinstance(statement, (VoteBatch, CommitBatch, Vote, Commit)):
            match statement:
                case Adopt():
                    self._note_adoption(header, statement)
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
                place = (statement.proposal_batch or batch_id, statement.proposal_position)
                ballot = (spoken_round, *self._proposals.get(place, place))
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
                    # Whoever repeats an owner's proposal in a batch of its own must not split the votes for it.
                    self._proposals[place] = (proposal.compute_id(self.federation), 0)
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
                admission.applied.extend(self._note_rival(self._losers[counted.ids[position]]))
                continue
            self.final_count += 1
            self._close_slot(record.slot)
            admission.applied.extend(self.ledger.offer(record))
        self._close_if_done(counted)
        self._advance()

    def _note_rival(self, record: Record) -> list[Record]:
        """A record became final whose slot was decided; returns what has applied."""
        if self.was_decided_before(*record.slot):
            return []  # it may well be the one that was final there before the snapshot
        scope = record.scope
        self.final_count += 1
        if scope not in self.ledger.frozen:
            self.double_finals.add(record.slot)
            if scope[0] == ScopeKind.CHARTER:
                return []
            if (head := self.ledger.heads.get(scope)) is not None:
                self._chain_heads[scope] = head
        applied = self.ledger.offer_rival(record)
        for slot in [*self._claimed, *self.contests]:
            if slot[0] == scope:
                self._close_slot(slot)
        return applied

    # -- comparing ----------------------------------------------------------------------------------------------

    def compute_facts(self) -> list[bytes]:
        """The whole state, from which `snapshot.py` makes a replica again: the ledger, the places of all batches, and
        what was said about records that are not final. A function of the set alone (spec 6.5)."""
        facts: list[tuple[object, ...]] = [("finals", self.final_count)]
        for batch, entry in self.entries.items():
            facts.append(("batch", *entry.log, entry.index, batch, entry.parents[0] if entry.index else b""))
        facts += [("adopter", *adopt, member) for adopt, members in self._adopters.items() for member in members]
        for introduction in self._open.values():
            facts += introduction.compute_facts()
        for slot, contest in self.contests.items():
            facts += contest.compute_facts(slot)
        return [*self.ledger.compute_facts(), *map(encode, facts)]

    def compute_state_root(self) -> bytes:
        """The hash of the whole state: equal exactly when two replicas agree on everything."""
        return compute_set_root(Tag.STATE_LEAF, self.compute_facts())
