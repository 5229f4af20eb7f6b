"""This node's own log and its only writer: apply the rules, store durably, then send.

Two things happen here, one after the other, never at once: *ingest* takes in batches of other members, and *speak*
signs the next batch of ours. No batch leaves before it is on disk (spec 4.4), so whatever instant the process dies
at, it never signs a second batch for one place in its log. After a restart everything is computed again from the
stored batches.

Both are plain steps (`node/verification.py`): asynchronous methods add threads and turns, those `..._at_once` nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence

import trio

from node.api import RecordState
from node.archive import Archive
from node.arrivals import Arrivals
from node.checkpointing import Checkpointing, open_replica
from node.history import AccountHistory
from node.log_rate import LogRates
from node.pacing import Pacing
from node.running_clock import RunningClock
from node.signing import Signing
from node.storage.store import MarkKind, Store
from node.submissions import Submissions
from node.unlocking import Unlocking
from node.verification import PAUSE, Checks, Steps, run_at_once, run_in_threads
from node.vote_keys import VoteKeys
from protocol.batches import Batch, LogPosition, build_batch, decode_batch, is_signed_batch
from protocol.charter import Charter, FoundedCharter
from protocol.errors import InvalidInput, Reason, Rejected
from protocol.finality import full_mask
from protocol.introductions import Introduction
from protocol.limits import SEEN_PER_BATCH_MAX, STATEMENTS_PER_BATCH_MAX
from protocol.records import Record, decode_record, has_valid_signatures
from protocol.replica import Admission, LogName
from protocol.rules import Circumstances
from protocol.statements import Statement, VoteBatch, encode_statement
from protocol.voting import Voter

log = logging.getLogger("allmende.member")

INGEST_QUEUE_MAX = 256
"""Calls of `ingest` that wait for their turn; further callers wait outside, so the network feels the pressure."""

WATCH_SECONDS = 1
RATE_WATCH_SECONDS = 0.5


class LedgerMember:
    """One member of the federation: its replica, its judgement, its log.

    Invariants: every batch of the replica is in the store; a batch of our own is in the store before anybody sees it.
    """

    def __init__(
        self,
        founded: FoundedCharter,
        number: int,
        vote_keys: VoteKeys,
        store: Store,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.founded = founded
        self.number = number
        self.store = store
        self.replica = open_replica(founded.charter, store)
        self.archive = Archive(store, self.replica)
        self.voter = Voter(self.replica, number)
        self.signing = Signing(self.voter, vote_keys, store)
        self.history = AccountHistory()
        self.submissions = Submissions(self.voter)
        self.running_clock = RunningClock(store)
        self.running_clock.note_open_requests(self.replica.ledger)
        self.checkpoints = Checkpointing(self.replica, number, self.archive)
        self.pacing = Pacing(self.charter.policy.batch_interval_ms / 1000)
        self.log_rates = LogRates(self.replica)
        self.on_spoken: list[Callable[[bytes], None]] = []
        """Called with each own batch's bytes after it is stored."""
        self.on_missing_past: list[Callable[[str], None]] = []
        """Called with the peer that sent a batch whose past is not here."""
        self.on_fault: list[Callable[[str], None]] = []
        """Called with the peer that sent something malformed."""
        self.on_charter: list[Callable[[], None]] = []
        """Called when another charter version is known or in force."""
        self._clock = clock
        self.arrivals = Arrivals(self.replica, self._admit_by_rate, self._note_missing_past)
        self.unlocking = Unlocking(
            self.voter, self.signing.check, self.compute_circumstances, self.submissions.count_in, self._tell_news
        )
        self._approved = set(store.get_marks(MarkKind.APPROVED))
        self._judged_at = (self.compute_open_epochs(), self.running_clock.ripe_requests)
        self._unseen = {head for name, heads in self.replica.heads.items() if name[0] != number for head in heads}
        self._final_events: dict[bytes, trio.Event] = {}
        self._ingest_turn = trio.CapacityLimiter(1)
        self._ingest_waiting = trio.CapacityLimiter(INGEST_QUEUE_MAX)
        self._has_news = trio.Event()
        self.checkpoints.on_ready.append(self._tell_news)
        self._known_charters = (1, 0)
        """How many versions were known, and which one was in force, when that was looked at last."""
        self.signing.note_heard(number)

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
        is_applied = record is None or record.sequence < self.replica.ledger.get_next_sequence(record.scope)
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
        """Compute the state again from the stored batches, on top of the checkpoint with which the store begins, if
        it does; returns their number."""
        return await run_in_threads(self._restore())

    def restore_at_once(self) -> int:
        """`restore`, without an event loop."""
        return run_at_once(self._restore())

    def _restore(self) -> Steps[int]:
        count = 0
        for encoded in self.store.iterate_batches():
            batch = self.archive.decode_stored(encoded, count + 1)
            admission = self.replica.admit(batch, self.archive.fetch)
            if admission is not None:
                self._note_admission(admission)
            count += 1
            if count % 32 == 0:
                yield PAUSE
        self.voter.enter_version()
        self._enter_version()
        yield from self._judge_open_records()
        return count

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
        before, self._judged_at = self._judged_at, (self.compute_open_epochs(), self.running_clock.ripe_requests)
        if before != self._judged_at:
            yield from self._judge_open_records()
        elif self.replica.contests:
            self.voter.handle_contests(self.compute_circumstances())
        self._has_news.set()

    async def watch_rates(self) -> None:
        """Batches that came faster than the charter lets their log grow are taken in when it is their time."""
        while True:
            await trio.sleep(min(RATE_WATCH_SECONDS, self.log_rates.compute_pause(self._clock())))
            for batch, peer in self.log_rates.release(self._clock()):
                await self.take_in([batch], peer)

    def _judge_open_records(self) -> Steps[None]:
        """Decide anew on all records that were introduced and have no vote of ours."""
        for introduction in self.replica.get_open_introductions():
            yield from self._judge(introduction, introduction.open_records)
        self.voter.handle_contests(self.compute_circumstances())

    # -- taking in ----------------------------------------------------------------------------------------------

    async def ingest(self, encoded_batches: Sequence[bytes], peer: str) -> int:
        """Take in what a peer says are batches. Returns how many were new and are stored now.

        What is malformed or not signed by its member counts against the peer. Batches of a charter version that is not
        in force here wait for those before them: an amendment may become final, and come into force, half-way.
        """
        waiting = await run_in_threads(self._decode_new(encoded_batches, peer))
        count = 0
        while checkable := self._take_checkable(waiting):
            count += await self.take_in(await run_in_threads(self._check_signed(checkable, peer)), peer)
        return count

    async def take_in(self, signed_batches: Sequence[Batch], peer: str) -> int:
        """Store, admit and judge batches whose signatures hold; what lacks its past is parked.

        One caller at a time: the others wait, and the network feels the pressure. Returns how many were new.
        """
        async with self._ingest_waiting, self._ingest_turn:
            return await run_in_threads(self._take_in(signed_batches, peer))

    def ingest_at_once(self, encoded_batches: Sequence[bytes], peer: str) -> int:
        """`ingest`, without an event loop."""
        waiting = run_at_once(self._decode_new(encoded_batches, peer))
        count = 0
        while checkable := self._take_checkable(waiting):
            count += run_at_once(self._take_in(run_at_once(self._check_signed(checkable, peer)), peer))
        return count

    def _decode_new(self, encoded_batches: Sequence[bytes], peer: str) -> Steps[list[Batch]]:
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
        return arrived

    def _take_checkable(self, waiting: list[Batch]) -> list[Batch]:
        """Take out the batches of versions that are in force."""
        version = self.replica.version
        checkable = [batch for batch in waiting if batch.header.charter_version <= version]
        waiting[:] = [batch for batch in waiting if batch.header.charter_version > version]
        return checkable

    def _check_signed(self, batches: list[Batch], peer: str) -> Steps[list[Batch]]:
        """Those of these batches of known versions that their members signed."""
        charters = self.replica.ledger.charters
        signed = yield Checks(batches, lambda it: is_signed_batch(charters[it.header.charter_version], it))
        if not all(signed):
            self._note_fault(peer, "a batch that its member did not sign")
        return [batch for batch, good in zip(batches, signed, strict=True) if good]

    def _take_in(self, signed_batches: Sequence[Batch], peer: str) -> Steps[int]:
        if any(self._is_own_of_now(batch) and batch.id not in self.replica for batch in signed_batches):
            self.signing.silence()  # before its past is looked for: that may rest on a branch which comes last
        admissible = self.arrivals.choose(signed_batches, peer)
        self.store.append_batches([(batch.id, batch.encoded) for batch in admissible])
        for admission in self._admit(admissible):
            if admission.introduction is not None:
                yield from self._judge(admission.introduction, dict(enumerate(admission.batch.records)))
        yield from self._answer_changes()
        self._has_news.set()
        return len(admissible)

    def _is_own_of_now(self, batch: Batch) -> bool:
        """True for a batch of our log of the version in force, which only we can have signed. What we said under
        versions before binds nobody's next words: a store may be made anew from what the others have."""
        return batch.header.member == self.number and batch.header.charter_version >= self.voter.version

    def _answer_changes(self) -> Steps[None]:
        """Enter the next charter version once it is in force; answer owners who ask to unlock their slots."""
        if self.voter.enter_version():
            self._enter_version()
            yield from self._judge_open_records()
        elif self.replica.contests:
            self.voter.handle_contests(self.compute_circumstances())
        known = (len(self.replica.ledger.charters), self.replica.version)
        if known != self._known_charters:
            self._known_charters = known
            for callback in self.on_charter:
                callback()

    def _enter_version(self) -> None:
        """Sign under the version in force from now on; note when that was."""
        version = self.voter.version
        name = version.to_bytes(8, "big")
        if version and name not in self.store.get_marks(MarkKind.IN_FORCE):
            log.info("charter version %d is in force", version)
            self.store.put_marks(MarkKind.IN_FORCE, {name: int(self._clock())})
        self.signing.enter_version()

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
        self.checkpoints.note_admission(admission)
        for record in admission.applied:
            self.history.note(record, self.replica.ledger)
            self.running_clock.note_applied(record, self.replica.ledger)
        self.unlocking.note_admission()
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
        if (event := self._final_events.pop(record_id, None)) is not None:
            event.set()

    def _judge(self, introduction: Introduction, records: Mapping[int, Record]) -> Steps[None]:
        """Check the signatures of the batch's records that are open here, and let the voter decide.

        A record that stood in an earlier batch is checked again while it has no vote of ours: the signature there
        may be broken by the member that introduced it, and one valid signature suffices (spec 4.5).
        """
        positions = [position for position, record in records.items() if self.voter.is_undecided(record)]
        results = yield Checks([records[position] for position in positions], has_valid_signatures)
        valid = sum(1 << position for position, good in zip(positions, results, strict=True) if good)
        self.voter.handle_verified(introduction, valid, self.compute_circumstances())

    def _admit_by_rate(self, batch: Batch, peer: str) -> bool:
        return batch.header.member == self.number or self.log_rates.admit(batch, peer, self._clock())

    def list_ignored_logs(self) -> frozenset[LogName]:
        """Logs of which nothing more is wanted at the moment, or that may not grow now."""
        return self.arrivals.list_ignored_logs() | self.log_rates.list_held_logs()

    def _note_missing_past(self, peer: str, log: LogName) -> None:
        if log not in self.log_rates.list_held_logs():
            for callback in self.on_missing_past:
                callback(peer)

    def _note_fault(self, peer: str, what: str) -> None:
        log.warning("peer %s sent %s", peer, what)
        for callback in self.on_fault:
            callback(peer)

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
        self.archive.check_is_known(record)
        self.signing.check()
        (is_signed,) = yield Checks([record], has_valid_signatures)
        if not is_signed:
            raise Rejected(Reason.SIGNATURE_INVALID, "the record is not signed by its writer")
        self.submissions.add(record, self.compute_circumstances(), self._clock())
        self._has_news.set()
        return record.id

    async def approve(self, amendment: bytes) -> None:
        """This institution's people approved an amendment by hand: from now on its member may vote for it."""
        await run_in_threads(self._approve(amendment))

    def approve_at_once(self, amendment: bytes) -> None:
        """`approve`, without an event loop."""
        run_at_once(self._approve(amendment))

    def _approve(self, amendment: bytes) -> Steps[None]:
        self._approved.add(amendment)
        self.store.put_marks(MarkKind.APPROVED, {amendment: int(self._clock())})
        yield from self._judge_open_records()
        self._has_news.set()

    def has_approved(self, amendment: bytes) -> bool:
        """True when `approve` was called for it, in whatever run."""
        return amendment in self._approved

    def _tell_news(self) -> None:
        self._has_news.set()

    async def speak(self) -> None:
        """Whenever there is something to say, say it in one batch, not more often than the pace allows.

        First the members that make a quorum with us must have told what they have: should our store be older than
        our own log, one of them most likely shows it, and we stay silent (spec 9.6). Alone nothing could become final.
        """
        await self.signing.wait_heard_quorum()
        while True:
            await self._has_news.wait()
            now = self._clock()
            await trio.sleep(max(self.pacing.compute_delay(now), self.log_rates.compute_wait(self.number, now)))
            self._has_news = trio.Event()
            self.say_next()
            if self.replica.version != self.voter.version:  # our own adoption made the quorum
                await run_in_threads(self._answer_changes())
                self._has_news.set()

    def say_next(self) -> Batch | None:
        """Sign, store and admit the next batch of our log, if there is anything to say; then hand it out."""
        has_left = self.replica.version != self.voter.version  # `_answer_changes` comes in a moment
        if self.signing.key is None or self.signing.is_silenced or has_left or not self.voter.is_speaking:
            return None
        circumstances = self.compute_circumstances()
        wishes, unvoted = self.unlocking.take(circumstances)
        used = sum(len(encode_statement(wish)) for wish in wishes) + sum(len(record.encoded) for record in unvoted)
        records = self.submissions.take(circumstances, self._clock(), used, len(unvoted))
        for record_id in self.submissions.take_rejected():
            self._wake(record_id)
        wishes += self.checkpoints.take_statements()
        statements = [*wishes, *self._compose_statements(records, len(unvoted), len(wishes))]
        if not statements:
            return None
        batch = self._sign(records + unvoted, statements)
        self.store.append_batches([(batch.id, batch.encoded)])
        self.voter.note_spoken(batch.id)
        admission = self.replica.admit(batch, self.archive.fetch)
        assert admission is not None
        self._note_admission(admission)
        self.checkpoints.note_spoken(batch, is_whole=not self._unseen)
        self.pacing.note_spoken(self._clock())
        self.log_rates.count_own(batch, self._clock())
        for callback in self.on_spoken:
            callback(batch.encoded)
        if self.replica.contests:
            self.voter.handle_contests(circumstances)
        if self.voter.has_statements or self.submissions.has_ready or self.checkpoints.has_statements:
            self._has_news.set()
        return batch

    def _compose_statements(self, records: list[Record], unvoted: int, wishes: int) -> list[Statement]:
        """Votes for the records that we introduce, but not for the `unvoted` ones after them, and what else there is
        to say."""
        statements = self.voter.take_statements(STATEMENTS_PER_BATCH_MAX - 1 - wishes)
        return [VoteBatch(b"", full_mask(unvoted) << len(records)), *statements] if records else statements

    def _sign(self, records: list[Record], statements: list[Statement]) -> Batch:
        assert self.signing.key is not None, "who has no vote key says nothing"
        log_entries = self.replica.get_log((self.number, self.voter.version))
        index = len(log_entries)
        return build_batch(
            self.charter,
            self.signing.key,
            self.number,
            LogPosition(index, log_entries[index - 1][0] if index else b""),
            seen=sorted(self._unseen)[:SEEN_PER_BATCH_MAX],
            time_ms=int(self._clock() * 1000),
            records=records,
            statements=statements,
        )
