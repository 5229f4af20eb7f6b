"""A member's judgement: what it votes for, commits to and promises, and what its next batch says.

No message, clock or disk here: the node tells the voter what was admitted, which signatures hold and what time it is,
and asks it for the statements of the next batch. What a correct member never does (spec 5.2, 5.3, 5.6):

- vote for two records of one slot in one round, or commit to two;
- vote before the slot before has applied in its own fold, or without the funds there;
- commit without a certificate;
- say anything in a round below one that it promised to leave, or under a charter version that it left;
- vote for or commit one record through two introducing batches.

Nothing waits here but what waits for time. A correct member introduces a record only when it can vote for it itself,
and its batch names all that it had seen; so whoever admits that batch has the record's predecessor, funds and named
records, too. A record that a faulty member introduced too early gets no vote, and is introduced again when a correct
member can (spec 5.2).

All of it follows from the member's own log: after a restart, `handle_admission` of the stored batches restores it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from protocol.attempts import (
    FIRST_ROUND,
    NOTHING_SAID,
    Claim,
    Round,
    SlotMemory,
    apply_commit,
    apply_promise,
    apply_vote,
    compute_bound,
    compute_report,
    may_commit,
    may_promise,
    may_vote,
)
from protocol.contests import Contest, Place
from protocol.errors import Reason, Rejected
from protocol.finality import full_mask, iterate_positions
from protocol.identifiers import Slot
from protocol.introductions import Introduction, discard_position
from protocol.limits import STATEMENTS_PER_BATCH_MAX
from protocol.proposals import check_is_wanted, check_support
from protocol.records import Record, ScopeKind, has_valid_signatures
from protocol.replica import Admission, Replica
from protocol.rules import Circumstances, check_record
from protocol.statements import (
    Adopt,
    Commit,
    CommitBatch,
    Promise,
    SlotProposal,
    Statement,
    UnlockRequest,
    Vote,
    VoteBatch,
    is_signed_by_writer,
    speak_once,
)
from protocol.turns import Turns

BATCH_REFERENCES_MAX = 2
"""Whole-batch votes, and as many commits, that a member spends on one introducing batch; then one by one."""


class PendingPromise(NamedTuple):
    """A promise that was decided and is not said yet."""

    promised: Round
    request: Place
    report: Claim | None


class Voter:
    """What one member has said, and what it may say next."""

    def __init__(self, replica: Replica, member: int) -> None:
        self.replica = replica
        self.member = member
        self.version = replica.charter.version
        """The charter version under which it speaks."""
        self.has_adopted = False
        """True once it has left that version; it says nothing until the next one is in force."""
        self._bound: dict[Slot, Claim] = {}
        """What certificates of earlier versions bind it to, in slots that were open when it entered this one."""
        self._memories: dict[Slot, SlotMemory] = {}
        self._turns = Turns()
        self._votes: dict[Introduction, int] = {}
        """Decided, not yet said: positions by introducing batch, at attempt 0."""
        self._commits: dict[Introduction, int] = {}
        self._late: dict[tuple[Slot, type], Vote | Commit] = {}
        """Decided, not yet said: the latest vote and commit of each slot at attempts above 0."""
        self._promises: dict[Slot, PendingPromise] = {}
        self._references: Counter[tuple[bytes, type]] = Counter()
        self._first_round = Round(self.version, 0)
        self._spoken = b""
        self._recall_own_statements()

    def _recall_own_statements(self) -> None:
        """What the member said before the snapshot from which its replica was made: all of it that still matters is
        about open slots, and stands in the replica (spec 10.6)."""
        self.has_adopted = self.replica.has_adopted(self.member, self.version + 1)
        self._bound = self._find_bound()
        for introduction in self.replica.get_open_introductions():
            for kind in (VoteBatch, CommitBatch):
                self._references[introduction.batch, kind] = BATCH_REFERENCES_MAX
            for (said_round, *_), tally in introduction.votes.items():
                self._recall_own(introduction, tally.masks.get(self.member, 0), said_round, apply_vote)
            for said_round, tally in introduction.commits.items():
                self._recall_own(introduction, tally.masks.get(self.member, 0), said_round, apply_commit)
        for slot, contest in self.replica.contests.items():
            for promised, given in contest.promises.items():
                if any(promise.member == self.member for promise in given.values()):
                    self._memories[slot] = apply_promise(self._recall(slot), promised)
        self._commit_to_certified()

    def _recall_own(
        self, introduction: Introduction, mask: int, said: Round, apply: Callable[[SlotMemory, Claim], SlotMemory]
    ) -> None:
        for position in iterate_positions(mask):
            record = introduction.records.get(position)
            if record is not None:
                slot = record.slot
                self._memories[slot] = apply(self._recall(slot), Claim(said, record.id))

    # -- what happened ------------------------------------------------------------------------------------------

    def handle_admission(self, admission: Admission) -> None:
        """Take note of an admitted batch: own statements, certificates, slots that were filled."""
        if admission.batch.header.member == self.member and admission.batch.id != self._spoken:
            self._note_own_statements(admission)
        for introduction, mask, certified_round in admission.certified:
            self._decide_commits(introduction, mask, certified_round)
        for record in admission.applied:
            slot = record.slot
            if self._memories.pop(slot, NOTHING_SAID).promised.attempt:
                self._drop_undecided(slot)
            self._turns.forget(slot)
            self._bound.pop(slot, None)

    def enter_version(self) -> bool:
        """Speak under the charter version in force from now on; True when it is another one than before.

        The hand-over: a certificate of an earlier version binds this member's vote for good, for what is final there
        has a certificate in everything that a quorum adopted (spec 9.7). Then all open records are to be judged anew.
        """
        if self.version == self.replica.version:
            return False
        self._enter(self.replica.version)
        return True

    def _enter(self, version: int) -> None:
        self.version = version
        self._first_round = Round(version, 0)
        self.has_adopted = False
        self._bound = self._find_bound()
        for contest in self.replica.contests.values():
            contest.closed.clear()  # in a new version everything may be asked for again
        for undecided in (self._votes, self._commits, self._late, self._promises):
            undecided.clear()
        self._commit_to_certified()

    def _commit_to_certified(self) -> None:
        """Certificates of the present version that came before this member spoke under it."""
        for introduction in self.replica.get_open_introductions():
            for (certified_round, *_), tally in introduction.votes.items():
                self._decide_commits(introduction, tally.reached, certified_round)

    def _find_bound(self) -> dict[Slot, Claim]:
        found: dict[Slot, Claim] = {}
        for slot, claims in self.replica.find_certificates().items():
            bound = compute_bound(claim for claim in claims if claim.round.version < self.version)
            if bound is not None:
                found[slot] = bound
        return found

    @property
    def is_speaking(self) -> bool:
        """True while this member may sign batches under its charter version."""
        return not self.has_adopted and self.member in self.replica.ledger.charters[self.version].members

    def _may_speak_of(self, slot: Slot) -> bool:
        """True while this member may say something about a slot. When too many members contradict themselves, it is
        only about the next charter, which may leave them out (spec 8.8)."""
        return self.is_speaking and (slot[0][0] == ScopeKind.CHARTER or not self.replica.is_outnumbered)

    def handle_verified(self, introduction: Introduction, valid: int, circumstances: Circumstances) -> None:
        """Judge the records of an admitted batch; bit i of `valid` says that record i's signatures hold."""
        for position in iterate_positions(valid):
            # A record that came before, perhaps with a broken signature, is judged where its weight is counted.
            original, original_position = introduction.aliases.get(position, (introduction, position))
            if original_position in original.records:
                self._decide_vote(original, original_position, circumstances)

    def handle_contests(self, circumstances: Circumstances) -> None:
        """Answer the requests and proposals of open slots: to be called when one came in, and now and then, since
        some wait for their turn or for an epoch."""
        for contest in self.replica.contests.values():
            for place, request in contest.requests.items():
                if place not in contest.closed:
                    self._decide_promise(contest, place, request, circumstances)
            for place, proposal in contest.proposals.items():
                if place not in contest.closed:
                    self._decide_late_vote(contest, place, proposal, circumstances)

    def is_undecided(self, record: Record) -> bool:
        """True while the record is not final and this member has not voted for it."""
        voted = self._recall(record.slot).voted
        has_voted = voted is not None and voted.record == record.id and voted.round.version == self.version
        return not has_voted and not self.replica.is_final(record.id)

    def _recall(self, slot: Slot) -> SlotMemory:
        return self._memories.get(slot, NOTHING_SAID)

    def _note_own_statements(self, admission: Admission) -> None:
        batch = admission.batch
        version = batch.header.charter_version
        if version > self.version:
            self._enter(version)
        for statement in batch.statements:
            if isinstance(statement, Adopt):
                self.has_adopted = self.has_adopted or statement.charter_version == self.version + 1
            if isinstance(statement, Promise):
                self._note_own_promise(batch.id, version, statement)
            if not isinstance(statement, (VoteBatch, CommitBatch, Vote, Commit)):
                continue
            introduction = self.replica.get_introduction(statement.batch or batch.id)
            if introduction is None:
                continue
            if isinstance(statement, (VoteBatch, CommitBatch)):
                mask, attempt = full_mask(len(introduction.ids)) & ~statement.excluded, 0
                self._references[introduction.batch, type(statement)] += 1
            else:
                mask, attempt = 1 << statement.position, statement.attempt
            said_round = Round(version, attempt)
            is_vote = isinstance(statement, (VoteBatch, Vote))
            apply, decided = (apply_vote, self._votes) if is_vote else (apply_commit, self._commits)
            for position in iterate_positions(mask):
                original, original_position = introduction.aliases.get(position, (introduction, position))
                record = original.records.get(original_position)
                if attempt == 0:
                    discard_position(decided, original, original_position)
                if record is not None:
                    slot = record.slot
                    self._memories[slot] = apply(self._recall(slot), Claim(said_round, record.id))
                    if self._late.get((slot, type(statement))) == statement:
                        del self._late[slot, type(statement)]

    def _note_own_promise(self, batch_id: bytes, version: int, promise: Promise) -> None:
        request = self.replica.get_request((promise.unlock_batch or batch_id, promise.unlock_position))
        if request is not None:
            self._drop_undecided(request.slot)
            memory = apply_promise(self._recall(request.slot), Round(version, request.attempt))
            self._memories[request.slot] = memory

    def _drop_undecided(self, slot: Slot) -> None:
        """What was decided for a slot and not said must not be said after a promise."""
        for introduction, position in self.replica.get_claim_places(slot):
            discard_position(self._votes, introduction, position)
            discard_position(self._commits, introduction, position)
        for kind in (Vote, Commit):
            self._late.pop((slot, kind), None)
        self._promises.pop(slot, None)

    def _drop_unsayable(self) -> None:
        """What was decided before too many proofs came must not be said after them."""
        for introduction in {*self._votes, *self._commits}:
            for record in list(introduction.records.values()):
                if not self._may_speak_of(record.slot):
                    self._drop_undecided(record.slot)
        for slot in {*self._promises, *(slot for slot, _ in self._late)}:
            if not self._may_speak_of(slot):
                self._drop_undecided(slot)

    # -- judging ------------------------------------------------------------------------------------------------

    def check_introduction(self, record: Record, circumstances: Circumstances) -> None:
        """Raise `Rejected` unless this member may introduce the record and vote for it in its own next batch.

        A reason in `WAITING_REASONS` may pass when more of the ledger arrives. The caller has checked the signatures.
        """
        self._check_speaking(record.slot)
        try:
            self._check_record(record, circumstances)
        except Rejected as rejection:
            if rejection.reason > Reason.SLOT_CONTESTED:
                self._check_slot(record)
            raise
        self._check_slot(record)

    def _check_speaking(self, slot: Slot) -> None:
        if not self._may_speak_of(slot):
            raise Rejected(Reason.CHARTER_CHANGING, "this member says nothing until the next charter is in force")

    def note_introduction(self, record: Record) -> None:
        """The member's next batch introduces this record and votes for it."""
        slot = record.slot
        self._memories[slot] = apply_vote(self._recall(slot), Claim(self._first_round, record.id))

    def _check_slot(self, record: Record) -> None:
        if not may_vote(self._recall(record.slot), Claim(self._first_round, record.id)):
            raise Rejected(
                Reason.SLOT_CONTESTED, "this member voted for another record in that slot, or promised to leave it"
            )

    def _check_record(self, record: Record, circumstances: Circumstances) -> None:
        """Raise `Rejected` unless the rules, or a certificate of an earlier version, let this member vote for it."""
        bound = self._bound.get(record.slot)
        if bound is None:
            check_record(record, self.replica.ledger, circumstances)
        elif bound.record != record.id:
            raise Rejected(Reason.SLOT_CONTESTED, "another record of that slot was certified under the charter before")

    def _decide_vote(self, introduction: Introduction, position: int, circumstances: Circumstances) -> None:
        record = introduction.records[position]
        slot = record.slot
        memory = self._recall(slot)
        claim = Claim(self._first_round, record.id)
        self._turns.note_record(slot, circumstances)
        if memory.voted == claim or not may_vote(memory, claim) or not self._may_speak_of(slot):
            return
        try:
            self._check_record(record, circumstances)
        except Rejected:
            return
        self._memories[slot] = apply_vote(memory, claim)
        self._votes[introduction] = self._votes.get(introduction, 0) | 1 << position

    def _decide_commits(self, introduction: Introduction, mask: int, certified_round: Round) -> None:
        """On a certificate, commit; never to two records in one slot and round, never below a promise (spec 5.3)."""
        if certified_round.version != self.version or not self.is_speaking:
            return
        decided = 0
        for position in iterate_positions(mask):
            record = introduction.records.get(position)
            if record is None:
                continue  # final, or its slot has another final record: what was committed there is forgotten
            slot = record.slot
            memory = self._recall(slot)
            claim = Claim(certified_round, record.id)
            if memory.committed == claim or not may_commit(memory, claim) or not self._may_speak_of(slot):
                continue
            self._memories[slot] = apply_commit(memory, claim)
            if certified_round.attempt:
                self._late[slot, Commit] = Commit(introduction.batch, position, certified_round.attempt)
            else:
                decided |= 1 << position
        if decided:
            self._commits[introduction] = self._commits.get(introduction, 0) | decided

    # -- freeing a slot -----------------------------------------------------------------------------------------

    def check_request(self, request: UnlockRequest, circumstances: Circumstances) -> None:
        """Raise `Rejected` unless this member would answer the request with a promise now (spec 5.6)."""
        self._check_speaking(request.slot)
        self._check_open(request.slot)
        if not may_promise(self._recall(request.slot), Round(self.version, request.attempt)):
            raise Rejected(Reason.ATTEMPT_CLOSED, f"attempt {request.attempt} or a later one was asked for before")
        check_is_wanted(self.replica, request.slot)
        promised = self._recall(request.slot).promised.attempt
        ledger = self.replica.ledger
        self._turns.check_turn(ledger, request.slot, request.signer, request.attempt, circumstances, promised)
        if not is_signed_by_writer(self.replica.federation, request):
            raise Rejected(Reason.SIGNATURE_INVALID, "the request is not signed by its writer")

    def check_proposal(self, proposal: SlotProposal, record: Record, circumstances: Circumstances) -> None:
        """Raise `Rejected` unless this member may vote for the record because of the proposal.

        A record that the promises force was judged by those who certified it: it is voted for unseen, whatever the
        epoch, the funds or the charter say by now. Otherwise an old epoch would lock an honest owner out (spec 5.7).
        """
        if not is_signed_by_writer(self.replica.federation, proposal):
            raise Rejected(Reason.SIGNATURE_INVALID, "the proposal is not signed by its writer")
        self._check_terms(proposal, record, circumstances)

    def _check_terms(self, proposal: SlotProposal, record: Record, circumstances: Circumstances) -> None:
        self._check_speaking(proposal.slot)
        self._check_open(proposal.slot)
        if record.slot != proposal.slot or record.id != proposal.record:
            raise Rejected(Reason.TERMS_WRONG, "the proposal is for another record")
        promised, forced = check_support(self.replica, proposal, self.version)
        if not may_vote(self._recall(proposal.slot), Claim(promised, record.id)):
            raise Rejected(Reason.ATTEMPT_CLOSED, f"this member left attempt {proposal.attempt} or voted there")
        self._turns.check_turn(self.replica.ledger, proposal.slot, proposal.signer, proposal.attempt, None)
        if forced is None:
            if not any(map(has_valid_signatures, (record, *self.replica.get_spellings(record.id)))):
                raise Rejected(Reason.SIGNATURE_INVALID, "the record is not signed by its writer")
            check_record(record, self.replica.ledger, circumstances)
        elif forced != record.id:
            raise Rejected(Reason.TERMS_WRONG, "the promises force another record")

    def _check_open(self, slot: Slot) -> None:
        sequence = self.replica.ledger.get_next_sequence(slot[0])
        if slot[1] < sequence or self.replica.ledger.is_decided(*slot):
            raise Rejected(Reason.SLOT_TAKEN, f"slot {slot[1]} has a final record already")
        if slot[1] > sequence:
            raise Rejected(Reason.PREDECESSOR_MISSING, f"slot {sequence} comes first")

    def _decide_promise(
        self, contest: Contest, place: Place, request: UnlockRequest, circumstances: Circumstances
    ) -> None:
        try:
            self.check_request(request, circumstances)
        except Rejected as rejection:
            if rejection.reason in (Reason.SIGNATURE_INVALID, Reason.ATTEMPT_CLOSED):
                contest.closed.add(place)
            return
        contest.closed.add(place)
        slot = request.slot
        memory = self._recall(slot)
        promised = Round(self.version, request.attempt)
        self._drop_undecided(slot)
        self._promises[slot] = PendingPromise(promised, place, compute_report(memory, self._bound.get(slot)))
        self._memories[slot] = apply_promise(memory, promised)

    def _decide_late_vote(
        self, contest: Contest, place: Place, proposal: SlotProposal, circumstances: Circumstances
    ) -> None:
        if place not in contest.signed:
            if not is_signed_by_writer(self.replica.federation, proposal):
                contest.closed.add(place)
                return
            contest.signed.add(place)
        located = self.replica.locate(proposal.record)
        record = located[0].records.get(located[1]) if located else None
        if located is None or record is None:
            return
        claim = Claim(Round(self.version, proposal.attempt), record.id)
        memory = self._recall(proposal.slot)
        if memory.voted == claim:
            contest.closed.add(place)
            return
        try:
            self._check_terms(proposal, record, circumstances)
        except Rejected as rejection:
            if rejection.reason is Reason.ATTEMPT_CLOSED:
                contest.closed.add(place)
            return
        contest.closed.add(place)
        self._memories[proposal.slot] = apply_vote(memory, claim)
        self._late[proposal.slot, Vote] = Vote(located[0].batch, located[1], proposal.attempt, *place)

    def note_spoken(self, batch_id: bytes) -> None:
        """The batch that is admitted next holds what was taken last: its statements are known already."""
        self._spoken = batch_id

    # -- speaking -----------------------------------------------------------------------------------------------

    @property
    def has_statements(self) -> bool:
        """True when the next batch has something to say about others' records."""
        has_decided = bool(self._votes or self._commits or self._late or self._promises)
        return self._must_adopt or (has_decided and self.is_speaking)

    @property
    def _must_adopt(self) -> bool:
        """True when an amendment is final that makes the next version, and this member has not left its own yet."""
        return self.is_speaking and self.version + 1 in self.replica.ledger.charters

    def take_statements(self, count_max: int = STATEMENTS_PER_BATCH_MAX) -> list[Statement]:
        """What the next batch says; each decision is handed out once, so the caller must store the batch.

        Promises come late: each reports all that this member said in its slot before. An `adopt` is the very last.
        """
        if self.replica.is_outnumbered:
            self._drop_unsayable()
        if self._must_adopt:
            self.has_adopted = True
            after = self.replica.ledger.charters[self.version + 1]
            return [*self._take(count_max - 1), Adopt(after.version, after.id)]
        return self._take(count_max)

    def _take(self, count_max: int) -> list[Statement]:
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
                    statements.append(speak_once(whole_batch, introduction.batch, position))
                for position in positions[room:]:
                    decided[introduction] = decided.get(introduction, 0) | 1 << position
        for key in list(self._late)[: count_max - len(statements)]:
            statements.append(self._late.pop(key))
        for slot in list(self._promises)[: count_max - len(statements)]:
            _, (batch, position), report = self._promises.pop(slot)
            record, (version, attempt) = (report.record, report.round) if report else (b"", FIRST_ROUND)
            statements.append(Promise(batch, position, record, version, attempt))
        return statements
