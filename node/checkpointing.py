"""Checkpoints at one node: it picks a batch now and then, says the root of its past's state, keeps what is certified.

A root that another member says is said, too, only when this node computed the same from its own batches: in a thread,
from the last certified snapshot, without checking signatures, as the batches were admitted before (spec 10.6).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Container
from typing import NamedTuple

import trio

from node.archive import Archive
from node.errors import UserError
from node.snapshots import Snapshot, SnapshotFolder, read_facts
from node.storage.store import Store
from protocol.batches import Batch, Header, decode_batch
from protocol.charter import Charter
from protocol.checkpoints import (
    CheckpointClaims,
    build_checkpoint_proof,
    is_first_of_day,
    sort_facts,
    verify_checkpoint,
)
from protocol.equivocation import build_fork_evidence
from protocol.identifiers import Tag
from protocol.merkle import compute_set_root
from protocol.replica import Admission, LogEntry, Replica
from protocol.snapshot import decode_fact, restore_replica
from protocol.statements import Checkpoint, Statement

log = logging.getLogger("allmende.checkpoints")

COMPUTING_SHARE_MAX = 0.1
"""Of the time, at most this share goes into roots that others ask for."""


def open_replica(charter: Charter, store: Store) -> Replica:
    """The replica with which a store begins: empty at the genesis charter, or a certified checkpoint's."""
    if not store.begins_late:
        return Replica(charter)
    replica = restore_replica(charter, store.iterate_facts())
    for log_name in replica.forked_logs:
        for siblings in replica.logs[log_name].values():
            found = [encoded for batch in siblings[:2] if (encoded := store.get_batch(batch)) is not None]
            if len(found) > 1:  # these are never archived, but a node that joined late does not have them
                left, right = (decode_batch(charter.federation, encoded) for encoded in found)
                replica.forks.setdefault(log_name[0], build_fork_evidence(left, right))
    return replica


class Computed(NamedTuple):
    """The state of a batch's past, as this node computed it."""

    claim: Checkpoint
    facts: list[bytes]
    """In the order of their leaves."""


class Checkpointing:
    """What one member says of checkpoints, and the snapshots that it keeps."""

    def __init__(self, replica: Replica, member: int, archive: Archive) -> None:
        self.folder: SnapshotFolder | None = None
        """Where certified snapshots go; None keeps none."""
        self.on_ready: list[Callable[[], None]] = []
        """Called when there is something to say."""
        self.latest: Checkpoint | None = None
        """The last checkpoint that a quorum certified, whether or not its facts are here yet."""
        self._replica = replica
        self._member = member
        self._archive = archive
        self._claims = CheckpointClaims()
        self._latest_version = 0
        """Charter version under which it was certified."""
        self._last_own: Header | None = None
        self._begins_day = False
        self._to_say: list[Checkpoint] = []
        self._picked: set[bytes] = set()
        self._candidates: dict[int, bytes] = {}
        """The batches whose pasts are to be computed, the next one first: one for each member that claims, so that
        nobody's claims push out another's."""
        self._computed: Computed | None = None
        self._has_work = trio.Event()

    # -- saying -------------------------------------------------------------------------------------------------

    @property
    def has_statements(self) -> bool:
        """True when the next batch has a root to say."""
        return bool(self._to_say)

    def take_statements(self) -> list[Statement]:
        """What the next batch says; the caller stores the batch."""
        said, self._to_say = self._to_say, []
        return list(said)

    def note_spoken(self, batch: Batch, *, is_whole: bool) -> None:
        """Our newest batch; `is_whole` when its past is all that is here. On our day it is picked."""
        if not self._begins_day:
            return
        self._picked.add(batch.id)
        if is_whole:
            self._note_computed(batch.id, sort_facts(self._replica.compute_facts()))
        else:
            self._ask_for(batch.id)

    def pick(self) -> bytes:
        """Pick our last batch now. Raises: UserError when there is none, or what lies before it is not here."""
        own = [heads for (member, _), heads in sorted(self._replica.heads.items()) if member == self._member]
        if not own:
            raise UserError("this node has not signed anything yet: there is nothing to certify")
        batch = max(own[-1])
        self._picked.add(batch)
        self._ask_for(batch)
        return batch

    # -- hearing ------------------------------------------------------------------------------------------------

    def note_admission(self, admission: Admission) -> None:
        """Take note of an admitted batch, at a start as well as later."""
        batch = admission.batch
        if batch.header.member == self._member:
            before, self._last_own = self._last_own, batch.header
            # The very first batch of a log begins no day: there is nothing before it worth a checkpoint.
            self._begins_day = before is not None and is_first_of_day(
                self._replica.charter, batch.header, before.time_ms
            )
        for position, statement in enumerate(batch.statements):
            if isinstance(statement, Checkpoint):
                self._note_claim(batch.header, batch.id, position, statement)

    def _note_claim(self, header: Header, batch: bytes, position: int, claim: Checkpoint) -> None:
        is_certified = self._claims.note(self._replica.ledger.charters, header, batch, position, claim)
        if not claim.batch or self._is_old(claim.batch):
            return
        if is_certified:
            self.latest, self._latest_version = claim, header.charter_version
            self._has_work.set()
        elif not self._claims.has_claimed(self._member, claim):
            self._ask_for(claim.batch, header.member)

    def _is_old(self, batch: bytes) -> bool:
        """True for what came here before the last certified checkpoint."""
        entries = self._replica.entries
        return self.latest is not None and entries[batch].number <= entries[self.latest.batch].number

    def _ask_for(self, batch: bytes, asker: int | None = None) -> None:
        if self._computed is None or self._computed.claim.batch != batch:
            self._candidates[asker or self._member] = batch
            self._has_work.set()
        else:
            self._say(self._computed.claim)

    def _note_computed(self, batch: bytes, facts: list[bytes]) -> None:
        claim = Checkpoint(batch, compute_set_root(Tag.STATE_LEAF, facts))
        self._computed = Computed(claim, facts)
        if self.latest is not None and self.latest.batch == batch and self.latest != claim:
            log.error("a quorum certified another state than this node's: run `allmende node audit`")
        elif batch in self._picked or self._claims.is_claimed(claim):
            self._say(claim)
        else:
            log.warning("members say of a checkpoint what is not so by this node's batches")
        self._has_work.set()

    def _say(self, claim: Checkpoint) -> None:
        if not self._claims.has_claimed(self._member, claim) and claim not in self._to_say:
            self._to_say.append(claim)
            for callback in self.on_ready:
                callback()

    # -- computing ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Endless: compute what is asked for, keep what is certified."""
        while True:
            await self._has_work.wait()
            self._has_work = trio.Event()
            await self.work()

    async def work(self) -> None:
        """Compute and keep what there is to do now."""
        while (batch := self._choose_work()) is not None:
            started = time.monotonic()
            facts = await trio.to_thread.run_sync(self._compute_past, batch)
            if facts is not None:
                self._note_computed(batch, facts)
            await trio.sleep((time.monotonic() - started) * (1 / COMPUTING_SHARE_MAX - 1))
        await self._keep_certified()

    def _choose_work(self) -> bytes | None:
        """The last certified checkpoint, when its facts are not here; else what was asked for."""
        done = self._computed.claim.batch if self._computed is not None else None
        if self._lacks_latest() and self.latest is not None and self.latest.batch != done:
            return self.latest.batch
        while self._candidates:
            batch = self._candidates.pop(next(iter(self._candidates)))
            if batch != done and not self._is_old(batch):
                return batch
        return None

    def _lacks_latest(self) -> bool:
        if self.latest is None or self.folder is None:
            return False
        kept = self.get_kept()
        return kept is None or self.read_claim(kept) != self.latest

    def get_kept(self) -> Snapshot | None:
        """The newest certified snapshot whose facts are here."""
        return self.folder.get_latest() if self.folder is not None else None

    def read_claim(self, kept: Snapshot) -> Checkpoint:
        """What a kept snapshot's proof says."""
        verified = verify_checkpoint(self._replica.ledger.charters, kept.proof)
        return Checkpoint(verified.batch, verified.root)

    async def _keep_certified(self) -> None:
        if self.folder is None or self._computed is None or self._computed.claim != self.latest:
            return
        if self._lacks_latest():
            charter = self._replica.ledger.charters[self._latest_version]
            proof = build_checkpoint_proof(charter, self.latest, self._claims, self._archive.read_provable)
            await trio.to_thread.run_sync(self.folder.keep, proof, self._computed.facts)
            log.info("a quorum certified the state: %d facts are kept", len(self._computed.facts))
        self._computed = None

    def _compute_past(self, batch: bytes) -> list[bytes] | None:
        """The facts of a batch's past, from the last kept snapshot on; None when that does not lie in it.

        Correct members pick what rests on all that they have; so nobody else can make this node begin at genesis again
        and again. Runs in a thread: the past of an admitted batch never changes, so nothing races with what comes in.
        """
        kept = self.get_kept()
        entries = self._replica.entries
        genesis = self._replica.ledger.charters[0]
        if kept is not None:
            facts = read_facts(kept.path)
            known = {fact[4] for encoded in facts if (fact := decode_fact(encoded))[0] == "batch"}
            past, reached = list_past(entries, batch, known)
            if self.read_claim(kept).batch in reached:
                return self._compute_facts(restore_replica(genesis, facts), past)
        if kept is not None or self._replica.named_count:
            log.info("a checkpoint is not followed: it does not rest on the one before")
            return None
        return self._compute_facts(Replica(genesis), list_past(entries, batch, ())[0])

    def _compute_facts(self, replica: Replica, past: list[bytes]) -> list[bytes] | None:
        for batch_id in past:
            encoded = self._archive.read_bytes(batch_id)
            if encoded is None:
                return None
            replica.admit(decode_batch(replica.federation, encoded), lambda _: None)
        return sort_facts(replica.compute_facts())


def list_past(entries: dict[bytes, LogEntry], batch: bytes, known: Container[bytes]) -> tuple[list[bytes], set[bytes]]:
    """A batch and its ancestors that are not `known`, parents first; and the known ones on which these rest.

    `known` is the past of one batch. It lies in the past of `batch` exactly when that one is among the latter.
    """
    past: set[bytes] = set()
    reached: set[bytes] = set()
    waiting = [batch]
    while waiting:
        each = waiting.pop()
        if each in known:
            reached.add(each)
        elif each not in past:
            past.add(each)
            waiting.extend(entries[each].parents)
    return sorted(past, key=lambda each: entries[each].number), reached
