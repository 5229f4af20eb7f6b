"""A member's judgement: which records it votes for, which it commits, and what its next batch says.

No message, clock or disk here: the node tells the voter what was admitted and which signatures hold, and asks it for
the statements of the next batch. What a correct member never does (spec 5.2, 5.3):

- vote for two records in one slot at one attempt, or commit two;
- vote before the slot before has applied in its own fold, or without the funds there;
- commit without a certificate;
- vote for or commit one record through two introducing batches.

Nothing waits here. A correct member introduces a record only when it can vote for it itself, and its batch names all
that it had seen; so whoever admits that batch has the record's predecessor, funds and named records, too. A record
that a faulty member introduced too early gets no vote, and is introduced again when a correct member can (spec 5.2).

All of it follows from the member's own log: after a restart, `handle_admission` of the stored batches restores it.
"""

from __future__ import annotations

from collections import Counter

from protocol.errors import Reason, Rejected
from protocol.finality import full_mask, iterate_positions
from protocol.limits import STATEMENTS_PER_BATCH_MAX
from protocol.records import Record
from protocol.replica import Admission, Introduction, Replica
from protocol.rules import Circumstances, check_record
from protocol.statements import Commit, CommitBatch, Statement, Vote, VoteBatch

BATCH_REFERENCES_MAX = 2
"""Whole-batch votes, and as many commits, that a member spends on one introducing batch; then one by one."""

Slot = tuple[bytes, int]


class Voter:
    """What one member has said, and what it may say next."""

    def __init__(self, replica: Replica, member: int) -> None:
        self.replica = replica
        self.member = member
        self._voted: dict[Slot, bytes] = {}
        self._committed: dict[Slot, bytes] = {}
        self._votes: dict[Introduction, int] = {}
        """Decided, not yet said: positions by introducing batch."""
        self._commits: dict[Introduction, int] = {}
        self._references: Counter[tuple[bytes, type]] = Counter()

    # -- what happened ------------------------------------------------------------------------------------------

    def handle_admission(self, admission: Admission) -> None:
        """Take note of an admitted batch: own statements, certificates, slots that were filled."""
        if admission.batch.header.member == self.member:
            self._note_own_statements(admission)
        for introduction, mask in admission.certified:
            self._decide_commits(introduction, mask)
        for record in admission.applied:
            slot = (record.scope, record.sequence)
            self._voted.pop(slot, None)
            self._committed.pop(slot, None)

    def handle_verified(self, introduction: Introduction, valid: int, circumstances: Circumstances) -> None:
        """Judge the records of an admitted batch; bit i of `valid` says that record i's signatures hold."""
        for position in iterate_positions(valid):
            # A record that came before, perhaps with a broken signature, is judged where its weight is counted.
            original, original_position = introduction.aliases.get(position, (introduction, position))
            if original_position in original.records:
                self._decide_vote(original, original_position, circumstances)

    def is_undecided(self, record: Record) -> bool:
        """True while the record is not final and this member has not voted for it."""
        return self._voted.get((record.scope, record.sequence)) != record.id and not self.replica.is_final(record.id)

    def _note_own_statements(self, admission: Admission) -> None:
        batch = admission.batch
        for statement in batch.statements:
            if not isinstance(statement, (VoteBatch, CommitBatch, Vote, Commit)):
                continue
            introduction = self.replica.get_introduction(statement.batch or batch.id)
            if introduction is None:
                continue
            if isinstance(statement, (VoteBatch, CommitBatch)):
                mask = full_mask(len(introduction.ids)) & ~statement.excluded
                self._references[introduction.batch, type(statement)] += 1
            else:
                mask = 1 << statement.position
            is_vote = isinstance(statement, (VoteBatch, Vote))
            said = self._voted if is_vote else self._committed
            decided = self._votes if is_vote else self._commits
            for position in iterate_positions(mask):
                original, original_position = introduction.aliases.get(position, (introduction, position))
                _discard(decided, original, original_position)
                record = original.records.get(original_position)
                if record is not None:
                    said.setdefault((record.scope, record.sequence), record.id)

    # -- judging ------------------------------------------------------------------------------------------------

    def check_introduction(self, record: Record, circumstances: Circumstances) -> None:
        """Raise `Rejected` unless this member may introduce the record and vote for it in its own next batch.

        A reason in `WAITING_REASONS` may pass when more of the ledger arrives. The caller has checked the signatures.
        """
        try:
            check_record(record, self.replica.ledger, circumstances)
        except Rejected as rejection:
            if rejection.reason > Reason.SLOT_CONTESTED:
                self._check_slot(record)
            raise
        self._check_slot(record)

    def note_introduction(self, record: Record) -> None:
        """The member's next batch introduces this record and votes for it."""
        self._voted[record.scope, record.sequence] = record.id

    def _check_slot(self, record: Record) -> None:
        if self._voted.get((record.scope, record.sequence), record.id) != record.id:
            raise Rejected(Reason.SLOT_CONTESTED, "this member voted for another record in that slot")

    def _decide_vote(self, introduction: Introduction, position: int, circumstances: Circumstances) -> None:
        record = introduction.records[position]
        slot = (record.scope, record.sequence)
        if slot in self._voted:
            return
        try:
            check_record(record, self.replica.ledger, circumstances)
        except Rejected:
            return
        self._voted[slot] = record.id
        self._votes[introduction] = self._votes.get(introduction, 0) | 1 << position

    def _decide_commits(self, introduction: Introduction, mask: int) -> None:
        """On a certificate, commit; never to two records in one slot at one attempt (spec 5.3)."""
        for position in iterate_positions(mask):
            record = introduction.records.get(position)
            if record is None or record.sequence < self.replica.ledger.get_next_sequence(record.scope):
                continue  # final, or its slot has another final record: what was committed there is forgotten
            if self._committed.setdefault((record.scope, record.sequence), record.id) == record.id:
                self._commits[introduction] = self._commits.get(introduction, 0) | 1 << position

    # -- speaking -----------------------------------------------------------------------------------------------

    @property
    def has_statements(self) -> bool:
        """True when the next batch has something to say about others' records."""
        return bool(self._votes or self._commits)

    def take_statements(self, count_max: int = STATEMENTS_PER_BATCH_MAX) -> list[Statement]:
        """What the next batch says; each decision is handed out once, so the caller must store the batch."""
        statements: list[Statement] = []
        for decided, whole_batch in ((self._votes, VoteBatch), (self._commits, CommitBatch)):
            for introduction in list(decided):
                room = count_max - len(statements)
                mask = decided.pop(introduction)
                if room and self._references[introduction.batch, whole_batch] < BATCH_REFERENCES_MAX:
                    self._references[introduction.batch, whole_batch] += 1
                    everything = full_mask(len(introduction.ids))
                    statements.append(whole_batch(introduction.batch, everything & ~mask))
                    continue
                positions = list(iterate_positions(mask))
                for position in positions[:room]:
                    statements.append(_speak_once(whole_batch, introduction.batch, position))
                for position in positions[room:]:
                    decided[introduction] = decided.get(introduction, 0) | 1 << position
        return statements


def _discard(decided: dict[Introduction, int], introduction: Introduction, position: int) -> None:
    """What has been said needs not be said again; after a restart decisions are met before their statements."""
    if introduction in decided:
        decided[introduction] &= ~(1 << position)
        if not decided[introduction]:
            del decided[introduction]


def _speak_once(whole_batch: type[VoteBatch | CommitBatch], batch: bytes, position: int) -> Statement:
    if whole_batch is VoteBatch:
        return Vote(batch, position, 0, b"", 0)
    return Commit(batch, position, 0)
