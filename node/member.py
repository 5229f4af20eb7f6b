"""This node's own log and its only writer: apply the rules, store durably, then send.

Two things happen here, one after the other, never at once: *ingest* takes in batches of other members, and *speak*
signs the next batch of ours. No batch leaves before it is on disk (spec 4.4), so whatever instant the process dies
at, it never signs a second batch for one place in its log. After a restart everything is computed again from the
stored batches.

Both are written as plain steps (`node/verification.py`); the asynchronous methods add threads for the signature checks
and the taking of turns, and the ones named `..._at_once` nothing, for a caller who does one thing after the other.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import trio

from node.api import RecordState
from node.archive import Archive
from node.errors import UserError
from node.history import AccountHistory
from node.network.parking import Parking
from node.pacing import Pacing
from node.running_clock import RunningClock
from node.storage.store import MarkKind, Store
from node.submissions import Submissions
from node.unlocking import UnlockQueue
from node.verification import PAUSE, Checks, Steps, run_at_once, run_in_threads
from protocol.attempts import Round
from protocol.batches import Batch, LogPosition, build_batch, decode_batch, is_signed_batch
from protocol.charter import Charter, FoundedCharter
from protocol.contests import PromiseGiven, Slot
from protocol.errors import InvalidInput, Reason, Rejected
from protocol.finality import full_mask
from protocol.limits import SEEN_PER_BATCH_MAX, STATEMENTS_PER_BATCH_MAX
from protocol.receipts import has_valid_proofs, verify_receipt
from protocol.records import Record, decode_record, has_valid_signatures
from protocol.replica import Admission, Introduction, Replica
from protocol.rules import Circumstances
from protocol.signatures import Signer
from protocol.statements import Promise, Statement, VoteBatch, decode_slot_proposal, decode_unlock_request
from protocol.voting import Voter

log = logging.getLogger("allmende.member")

INGEST_QUEUE_MAX = 256
"""Calls of `ingest` that wait for their turn; further callers wait outside, so the network feels the pressure."""

WATCH_SECONDS = 1


class LedgerMember:
    """One member of the federation: its replica, its judgement, its log.

    Invariants: every batch of the replica is in the store; a batch of our own is in the store before anybody sees it.
    """

    def __init__(
        self,
        founded: FoundedCharter,
        number: int,
        vote_key: Signer,
        store: Store,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.founded = founded
        self.number = number
        self.store = store
        self.replica = Replica(founded.charter)
        self.archive = Archive(store, self.replica)
        self.voter = Voter(self.replica, number)
        self.history = AccountHistory()
        self.submissions = Submissions(self.voter)
        self.running_clock = RunningClock(store)
        self.pacing = Pacing(self.charter.policy.batch_interval_ms / 1000)
        self.on_spoken: list[Callable[[bytes], None]] = []
        """Called with each own batch's bytes after it is stored."""
        self.on_missing_past: list[Callable[[str], None]] = []
        """Called with the peer that sent a batch whose past is not here."""
        self.on_fault: list[Callable[[str], None]] = []
        """Called with the peer that sent something malformed."""
        self.is_silenced = False
        """True once a batch of ours turned up that this store does not hold: see `_silence`."""
        self._vote_key = vote_key
        self._clock = clock
        self._parking = Parking()
        self._unlocks = UnlockQueue(self.voter)
        self._approved = set(store.get_marks(MarkKind.APPROVED))
        self._judged_at = (self.compute_open_epochs(), self.running_clock.ripe_requests)
        self._has_promises = trio.Event()
        """Set, and replaced, when promises came in."""
        self._unseen: set[bytes] = set()
        self._final_events: dict[bytes, trio.Event] = {}
        self._ingest_turn = trio.CapacityLimiter(1)
        self._ingest_waiting = trio.CapacityLimiter(INGEST_QUEUE_MAX)
        self._has_news = trio.Event()
        self._heard: set[int] = {number}
        self._has_heard_quorum = trio.Event()
        self.note_heard(number)

    # -- reading ------------------------------------------------------------------------------------------------

    @property
    def charter(self) -> Charter:
        """The charter in force."""
        return self.replica.charter

    def compute_open_epochs(self) -> range:
        """The epochs whose records this member votes for now, by its own clock."""
        return self.charter.compute_open_epochs(int(self._clock()))

    def compute_circumstances(self) -> Circumstances:
        """What this member judges records by, beside the ledger."""
        clock = self.running_clock
        return Circumstances(self.compute_open_epochs(), clock.read(), clock.ripe_requests, self._approved)

    def get_state(self, record_id: bytes) -> RecordState | None:
        """How far a record has come, or None for one that was never heard of."""
        located = self.replica.locate(record_id)
        if located is None:
            return "waiting" if record_id in self.submissions else None
        if not self.replica.is_final(record_id):
            return "introduced"
        record = self.get_record(record_id)
        assert record is not None
        is_applied = record.sequence < self.replica.ledger.get_next_sequence(record.scope)
        return "applied" if is_applied else "final"

    def get_record(self, record_id: bytes) -> Record | None:
        """A record that some batch introduced, or that waits to be."""
        return self.archive.get_record(record_id) or self.submissions.get(record_id)

    def get_history(self, account: bytes, before: int | None, limit: int) -> tuple[list[bytes], int | None]:
        """Ids of the applied records that touched an account, newest first, and where the next page starts."""
        return self.history.read(account, before, limit)

    def build_receipt(self, record_id: bytes) -> bytes | None:
        """The receipt of finality, once there is one."""
        return self.archive.build_receipt(record_id)

    async def wait_final(self, record_id: bytes, timeout_seconds: float) -> bool:
        """Wait until the record is final here. Raises: Rejected when this node gave it up while it waited."""
        if self.replica.is_final(record_id):
            return True
        event = self._final_events.setdefault(record_id, trio.Event())
        with trio.move_on_after(timeout_seconds):
            await event.wait()
        if event.statistics().tasks_waiting == 0:
            self._final_events.pop(record_id, None)
        self.submissions.raise_failure(record_id)
        return self.replica.is_final(record_id)

    # -- starting -----------------------------------------------------------------------------------------------

    async def restore(self) -> int:
        """Compute the state again from the stored batches; returns their number."""
        return await run_in_threads(self._restore())

    def restore_at_once(self) -> int:
        """`restore`, without an event loop."""
        return run_at_once(self._restore())

    def _restore(self) -> Steps[int]:
        count = 0
        for encoded in self.store.iterate_batches():
            batch = self._decode_stored(encoded, count + 1)
            admission = self.replica.admit(batch, self.archive.fetch)
            if admission is not None:
                self._note_admission(admission)
            count += 1
            if count % 32 == 0:
                yield PAUSE
        self.voter.enter_version()
        self.is_silenced = self.store.get_marks(MarkKind.SILENCED).get(b"", 0) > self.voter.version
        yield from self._judge_open_records()
        return count

    def _decode_stored(self, encoded: bytes, number: int) -> Batch:
        """A batch of the store, whose past was read before it. Raises: UserError when the store is damaged."""
        try:
            batch = decode_batch(self.charter.federation, encoded)
            if self.replica.get_missing_parents(batch) or not self.replica.is_linked(batch, {}):
                raise InvalidInput("what comes before it is gone")
        except InvalidInput as error:
            raise UserError(
                f"batch {number} in the database is damaged ({error}): move the database away and start again; "
                "the node fetches the ledger from the others, and signs nothing more under this charter"
            ) from None
        return batch

    async def watch_time(self) -> None:
        """When an epoch opens or closes by our clock, or a grace ends, records are judged anew that came from faster
        clocks; and owners are answered whose turn begins."""
        while True:
            await trio.sleep(WATCH_SECONDS)
            await run_in_threads(self._watch())

    def watch_at_once(self) -> None:
        """One round of `watch_time`, without an event loop."""
        run_at_once(self._watch())

    def _watch(self) -> Steps[None]:
        self.running_clock.save()
        now = (self.compute_open_epochs(), self.running_clock.ripe_requests)
        if now != self._judged_at:
            self._judged_at = now
            yield from self._judge_open_records()
            self._has_news.set()
        elif self.replica.contests:
            self.voter.handle_contests(self.compute_circumstances())
            self._has_news.set()

    def _judge_open_records(self) -> Steps[None]:
        """Decide anew on all records that were introduced and have no vote of ours."""
        for introduction in self.replica.get_open_introductions():
            for record_id in introduction.ids:
                for repeated, _ in self.replica.get_introductions(record_id):
                    yield from self._judge(repeated, self.archive.fetch(repeated.batch).records)
        self.voter.handle_contests(self.compute_circumstances())

    # -- taking in ----------------------------------------------------------------------------------------------

    async def ingest(self, encoded_batches: Sequence[bytes], peer: str) -> int:
        """Take in what a peer says are batches. Returns how many were new and are stored now.

        What is malformed or not signed by its member counts against the peer.
        """
        return await self.take_in(await run_in_threads(self._check_batches(encoded_batches, peer)), peer)

    async def take_in(self, signed_batches: Sequence[Batch], peer: str) -> int:
        """Store, admit and judge batches whose signatures hold; what lacks its past is parked.

        One caller at a time: the others wait, and the network feels the pressure. Returns how many were new.
        """
        async with self._ingest_waiting, self._ingest_turn:
            return await run_in_threads(self._take_in(signed_batches, peer))

    def ingest_at_once(self, encoded_batches: Sequence[bytes], peer: str) -> int:
        """`ingest`, without an event loop."""
        return run_at_once(self._take_in(run_at_once(self._check_batches(encoded_batches, peer)), peer))

    def _check_batches(self, encoded_batches: Sequence[bytes], peer: str) -> Steps[list[Batch]]:
        arrived: list[Batch] = []
        for number, encoded in enumerate(encoded_batches):
            if number % 8 == 7:
                yield PAUSE
            try:
                batch = decode_batch(self.charter.federation, encoded)
            except InvalidInput as error:
                self._note_fault(peer, f"malformed batch: {error}")
                continue
            if batch.id not in self.replica:
                arrived.append(batch)
        signed = yield Checks(arrived, partial(is_signed_batch, self.charter))
        if not all(signed):
            self._note_fault(peer, "a batch that its member did not sign")
        return [batch for batch, good in zip(arrived, signed, strict=True) if good]

    def _take_in(self, signed_batches: Sequence[Batch], peer: str) -> Steps[int]:
        if any(batch.header.member == self.number and batch.id not in self.replica for batch in signed_batches):
            self._silence()  # before its past is looked for: that may rest on a branch which nobody sends at first
        admissible = self._order([(batch, peer) for batch in self._leave_out_branches(list(signed_batches))])
        self.store.append_batches([(batch.id, batch.encoded) for batch in admissible])
        for admission in self._admit(admissible):
            if admission.introduction is not None:
                yield from self._judge(admission.introduction, admission.batch.records)
        yield from self._answer_changes()
        self._has_news.set()
        return len(admissible)

    def _answer_changes(self) -> Steps[None]:
        """Enter the next charter version once it is in force; answer owners who ask to unlock their slots."""
        if self.voter.enter_version():
            log.info("charter version %d is in force", self.voter.version)
            self.is_silenced = False
            yield from self._judge_open_records()
        elif self.replica.contests:
            self.voter.handle_contests(self.compute_circumstances())

    def list_ignored_logs(self) -> frozenset[int]:
        """Members that contradicted themselves, while nothing of theirs is missing here."""
        return frozenset() if self._parking.wanted else frozenset(self.replica.forks)

    def _leave_out_branches(self, arrived: list[Batch]) -> list[Batch]:
        """Without what proven equivocators add, unless a batch of another member rests on it (spec 4.7).

        While one waits for what it rests on, all is taken in: how deep its past is, no single piece of it tells.
        """
        ignored = self.list_ignored_logs()
        if not ignored:
            return arrived
        by_id = {batch.id: batch for batch in arrived}
        kept = {batch.id for batch in arrived if batch.header.member not in ignored}
        wanted = deque(parent for batch_id in kept for parent in by_id[batch_id].parents)
        while wanted:
            batch = by_id.get(wanted.popleft())
            if batch is not None and batch.id not in kept:
                kept.add(batch.id)
                wanted.extend(batch.parents)
        return [batch for batch in arrived if batch.id in kept]

    def _order(self, arrived: list[tuple[Batch, str]]) -> list[Batch]:
        """Those whose past is here or comes before them, parents first; the others are parked."""
        admissible: dict[bytes, Batch] = {}
        queue = deque(arrived)
        while queue:
            batch, peer = queue.popleft()
            if batch.id in self.replica or batch.id in admissible:
                continue
            missing = [parent for parent in self.replica.get_missing_parents(batch) if parent not in admissible]
            if missing:
                self._parking.park(batch, missing, peer)
                for callback in self.on_missing_past:
                    callback(peer)
                continue
            if not self.replica.is_linked(batch, admissible):
                self._note_fault(peer, "a batch that does not continue its log")
                continue
            if not has_valid_proofs(self.replica.ledger.charters, batch):
                self._note_fault(peer, "a batch with a receipt that proves nothing")
                continue
            admissible[batch.id] = batch
            queue.extendleft(self._parking.release(batch.id))
        return list(admissible.values())

    def _admit(self, batches: list[Batch]) -> list[Admission]:
        admissions = []
        for batch in batches:
            admission = self.replica.admit(batch, self.archive.fetch)
            assert admission is not None
            self._note_admission(admission)
            self.pacing.note_received(len(batch.records), self._clock())
            admissions.append(admission)
        return admissions

    def _note_admission(self, admission: Admission) -> None:
        header = admission.batch.header
        if header.member == self.number:
            self._unseen.difference_update(admission.batch.seen)
        else:
            self._unseen.discard(header.prev)
            self._unseen.add(admission.batch.id)
        if admission.fork is not None:
            log.warning("member %d signed two batches with index %d", header.member, header.index)
        self.voter.handle_admission(admission)
        for record in admission.applied:
            self.history.note(record, self.replica.ledger)
            self.running_clock.note_applied(record, self.replica.ledger)
        if self.replica.contests and any(isinstance(statement, Promise) for statement in admission.batch.statements):
            self._has_promises.set()
            self._has_promises = trio.Event()
        if self._final_events or self.submissions:
            for introduction, mask in admission.final:
                self._tell_final(introduction, mask)

    def _tell_final(self, introduction: Introduction, mask: int) -> None:
        for position, record_id in enumerate(introduction.ids):
            if mask >> position & 1:
                self.submissions.discard(record_id)
                self._wake(record_id)

    def _wake(self, record_id: bytes) -> None:
        """Tell those who wait for the record that its fate is known."""
        event = self._final_events.pop(record_id, None)
        if event is not None:
            event.set()

    def _judge(self, introduction: Introduction, records: Sequence[Record]) -> Steps[None]:
        """Check the signatures of the batch's records that are open here, and let the voter decide.

        A record that stood in an earlier batch is checked again while it has no vote of ours: the signature there
        may be broken by the member that introduced it, and one valid signature suffices (spec 4.5).
        """
        positions = [position for position, record in enumerate(records) if self.voter.is_undecided(record)]
        results = yield Checks([records[position] for position in positions], has_valid_signatures)
        valid = sum(1 << position for position, good in zip(positions, results, strict=True) if good)
        self.voter.handle_verified(introduction, valid, self.compute_circumstances())

    def _note_fault(self, peer: str, what: str) -> None:
        log.warning("peer %s sent %s", peer, what)
        for callback in self.on_fault:
            callback(peer)

    def _silence(self) -> None:
        """Sign nothing more: somebody holds a batch of ours that this store lacks, so it was restored from a backup.

        What else was said after the backup is unknown; signing on could contradict it (spec 9.6).
        """
        if not self.is_silenced:
            self.is_silenced = True
            self.store.put_marks(MarkKind.SILENCED, {b"": self.voter.version + 1})
            log.error("this node's store is older than its own log: it signs nothing more under this charter")

    # -- speaking -----------------------------------------------------------------------------------------------

    async def submit(self, encoded: bytes) -> bytes:
        """Take a record from a wallet; returns its id. It is not acknowledged before it is final.

        Raises: InvalidInput; Rejected when no correct member would vote for it now or later; Busy.
        """
        return await run_in_threads(self._submit(encoded))

    def submit_at_once(self, encoded: bytes) -> bytes:
        """`submit`, without an event loop."""
        return run_at_once(self._submit(encoded))

    def _submit(self, encoded: bytes) -> Steps[bytes]:
        record = decode_record(self.charter.federation, encoded)
        if not self.voter.is_undecided(record) or record.id in self.submissions:
            return record.id
        self._check_signing()
        (is_signed,) = yield Checks([record], has_valid_signatures)
        if not is_signed:
            raise Rejected(Reason.SIGNATURE_INVALID, "the record is not signed by its writer")
        self.submissions.add(record, self.compute_circumstances(), self._clock())
        self._has_news.set()
        return record.id

    async def submit_request(self, encoded: bytes) -> Slot:
        """Take a slot owner's request for another attempt; returns the slot. Raises: InvalidInput; Rejected; Busy."""
        await trio.lowlevel.checkpoint()
        return self.submit_request_at_once(encoded)

    def submit_request_at_once(self, encoded: bytes) -> Slot:
        """`submit_request`, without an event loop."""
        request = decode_unlock_request(encoded)
        self._check_signing()
        self._unlocks.add_request(request, self.compute_circumstances())
        self._has_news.set()
        return request.slot

    def get_promises(self, slot: Slot, attempt: int) -> dict[bytes, PromiseGiven]:
        """Batch -> promise for this attempt, one of each member: those on which a proposal may rest."""
        contest = self.replica.contests.get(slot)
        if contest is None:
            return {}
        chosen = contest.choose_promises(Round(self.replica.version, attempt))
        return {batch: given for batch, given in chosen.items() if self.replica.is_supported(slot, given)}

    async def wait_promises(self, slot: Slot, attempt: int, timeout_seconds: float) -> bool:
        """Wait for promises of a quorum, or until the slot is decided; False when the time is over."""
        with trio.move_on_after(timeout_seconds):
            while not (self.replica.ledger.is_decided(*slot) or self._has_promised_quorum(slot, attempt)):
                await self._has_promises.wait()
        return self.replica.ledger.is_decided(*slot) or self._has_promised_quorum(slot, attempt)

    def _has_promised_quorum(self, slot: Slot, attempt: int) -> bool:
        promises = self.get_promises(slot, attempt).values()
        return sum(self.charter.weights.get(promise.member, 0) for promise in promises) >= self.charter.quorum

    async def submit_proposal(self, encoded: bytes, record_bytes: bytes) -> bytes:
        """Take a slot owner's proposal with its record; returns the record's id, whose finality is to be awaited.

        Raises: InvalidInput; Rejected; Busy.
        """
        await trio.lowlevel.checkpoint()
        return self.submit_proposal_at_once(encoded, record_bytes)

    def submit_proposal_at_once(self, encoded: bytes, record_bytes: bytes) -> bytes:
        """`submit_proposal`, without an event loop."""
        proposal = decode_slot_proposal(encoded)
        record = decode_record(self.charter.federation, record_bytes)
        if not self.replica.is_final(record.id):
            self._check_signing()
            self._unlocks.add_proposal(proposal, record, self.compute_circumstances())
            self._has_news.set()
        return record.id

    async def submit_receipt(self, encoded: bytes) -> bytes:
        """Take a receipt of finality; when its record is not final here, our next batch tells everybody. Returns the
        record's id. Raises: InvalidInput; UserError."""
        record = verify_receipt(self.replica.ledger.charters, encoded).record
        if not self.replica.is_final(record.id):
            self._check_signing()
            self._unlocks.add_proof(record.id, encoded)
            self._has_news.set()
        await trio.lowlevel.checkpoint()
        return record.id

    def _check_signing(self) -> None:
        if self.is_silenced:
            raise UserError("this node signs nothing at the moment; ask another member's node")

    @property
    def has_heard_quorum(self) -> bool:
        """True when members that make a quorum with this one told all that they have: it may speak."""
        return self._has_heard_quorum.is_set()

    def note_heard(self, number: int) -> None:
        """All that this member has was fetched from it since the start."""
        self._heard.add(number)
        if sum(self.charter.weights[heard] for heard in self._heard) >= self.charter.quorum:
            self._has_heard_quorum.set()

    async def speak(self) -> None:
        """Whenever there is something to say, say it in one batch, not more often than the pace allows.

        First the members that make a quorum with us must have told what they have: should our store be older than
        our own log, one of them most likely shows it, and we stay silent (spec 9.6). Alone nothing could become final.
        """
        await self._has_heard_quorum.wait()
        while True:
            await self._has_news.wait()
            await trio.sleep(self.pacing.compute_delay(self._clock()))
            self._has_news = trio.Event()
            self.say_next()

    def say_next(self) -> Batch | None:
        """Sign, store and admit the next batch of our log, if there is anything to say; then hand it out."""
        if self.is_silenced or not self.voter.is_speaking:
            return None
        circumstances = self.compute_circumstances()
        records = self.submissions.take(circumstances, self._clock())
        for record_id in self.submissions.take_rejected():
            self._wake(record_id)
        wishes, unvoted = self._unlocks.take(circumstances)
        statements = [*wishes, *self._compose_statements(records, len(unvoted), len(wishes))]
        if not statements:
            return None
        batch = self._sign(records + unvoted, statements)
        self.store.append_batches([(batch.id, batch.encoded)])
        admission = self.replica.admit(batch, self.archive.fetch)
        assert admission is not None
        self._note_admission(admission)
        self.pacing.note_spoken(self._clock())
        for callback in self.on_spoken:
            callback(batch.encoded)
        if self.replica.contests:
            self.voter.handle_contests(circumstances)
        if self.voter.has_statements or self.submissions.has_ready:
            self._has_news.set()
        return batch

    def _compose_statements(self, records: list[Record], unvoted: int, wishes: int) -> list[Statement]:
        """Votes for the records that we introduce, but not for the `unvoted` ones after them, and what else there is
        to say."""
        statements = self.voter.take_statements(STATEMENTS_PER_BATCH_MAX - 1 - wishes)
        return [VoteBatch(b"", full_mask(unvoted) << len(records)), *statements] if records else statements

    def _sign(self, records: list[Record], statements: list[Statement]) -> Batch:
        log_entries = self.replica.get_log((self.number, self.voter.version))
        index = len(log_entries)
        return build_batch(
            self.charter,
            self._vote_key,
            self.number,
            LogPosition(index, log_entries[index - 1][0] if index else b""),
            seen=sorted(self._unseen)[:SEEN_PER_BATCH_MAX],
            time_ms=int(self._clock() * 1000),
            records=records,
            statements=statements,
        )
