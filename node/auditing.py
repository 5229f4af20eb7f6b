"""Verify a whole ledger anew, from the genesis charter on: nothing is taken from anybody's word, checkpoints included.

Checked are the signature of every batch and of every record that became final, that each batch continues its log and
rests on what is there, every carried receipt, the fold with its conservation, and every certified root (spec 10.6).
"""

from __future__ import annotations

from node.checkpointing import list_past
from protocol.batches import Batch, decode_batch, is_signed_batch
from protocol.charter import Charter
from protocol.checkpoints import CheckpointClaims
from protocol.errors import InvalidInput
from protocol.finality import iterate_positions
from protocol.records import has_valid_signatures
from protocol.replica import Admission, Replica
from protocol.statements import Checkpoint

PROBLEMS_MAX = 100


class Audit:
    """Takes all batches; what comes before its parents waits for them."""

    def __init__(self, genesis: Charter) -> None:
        self.replica = Replica(genesis)
        self.problems: list[str] = []
        self.batch_count = 0
        self.record_count = 0
        self.checkpoint_count = 0
        """Certified ones whose root was computed anew."""
        self._genesis = genesis
        self._encoded: dict[bytes, bytes] = {}
        """Batches since the last certified checkpoint, for its root."""
        self._behind = Replica(genesis)
        """The state of the last certified checkpoint's past."""
        self._claims = CheckpointClaims()
        self._early: dict[bytes, list[Batch]] = {}
        """Batches by what they lack: a parent, or that their charter version comes into force."""
        self._unsigned: set[bytes] = set()
        """Records all of whose spellings so far have a signature that does not hold."""

    def take(self, encoded: bytes) -> None:
        """Check and admit the next batch; one that was taken before changes nothing."""
        self.batch_count += 1
        try:
            batch = decode_batch(self.replica.federation, encoded)
        except InvalidInput as error:
            self._report(f"is malformed ({error})")
            return
        ready = [batch]
        while ready:
            ready += self._take(ready.pop())

    def _take(self, batch: Batch) -> list[Batch]:
        """Check and admit one; returns those that waited for it."""
        if batch.id in self.replica:
            return []
        version = self.replica.version
        missing = self.replica.get_missing_parents(batch)
        if batch.header.charter_version > version:
            missing = [_name_version(batch.header.charter_version)]
        if missing:
            self._early.setdefault(missing[0], []).append(batch)
            return []
        obstacle = self._find_obstacle(batch)
        if obstacle is not None:
            self._report(obstacle)
            return []
        self._check_records(batch)
        self._encoded[batch.id] = batch.encoded
        admission = self.replica.admit(batch, self._fetch)
        assert admission is not None
        self._check_final(admission)
        for position, statement in enumerate(batch.statements):
            if isinstance(statement, Checkpoint):
                charters = self.replica.ledger.charters
                if self._claims.note(charters, batch.header, batch.id, position, statement):
                    self._check_root(statement)
        freed = self._early.pop(batch.id, [])
        if self.replica.version != version:
            freed += self._early.pop(_name_version(self.replica.version), [])
        return freed

    def _fetch(self, batch_id: bytes) -> Batch | None:
        encoded = self._encoded.get(batch_id)
        return decode_batch(self.replica.federation, encoded) if encoded is not None else None

    def finish(self) -> None:
        """What is looked at over the whole."""
        self.replica.ledger.check_conservation()
        if lacking := sum(map(len, self._early.values())):
            self._report(f"was the last one, and {lacking} rest on batches that are not there")
        for scope, sequence in self.replica.double_finals:
            self._report(f"made a second record final in slot {sequence} of scope {scope.hex()}")

    def _report(self, what: str) -> None:
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(f"batch {self.batch_count} {what}")

    def _find_obstacle(self, batch: Batch) -> str | None:
        charters = self.replica.ledger.charters
        if not self.replica.is_linked(batch, {}):
            return "does not continue its log"
        if not is_signed_batch(charters[batch.header.charter_version], batch):
            return "is not signed by its member"
        return None

    def _check_records(self, batch: Batch) -> None:
        """One spelling with signatures that hold is enough: a faulty member may have introduced another before."""
        for record in batch.records:
            self.record_count += 1
            if has_valid_signatures(record):
                self._unsigned.discard(record.id)
            elif not self.replica.get_introductions(record.id):
                self._unsigned.add(record.id)

    def _check_final(self, admission: Admission) -> None:
        for introduction, mask in admission.final:
            for position in iterate_positions(mask):
                if introduction.ids[position] in self._unsigned:
                    self._report("made a record final whose signature does not hold")

    def _check_root(self, claim: Checkpoint) -> None:
        """The certified root against the one that the batches in its past give."""
        entries = self.replica.entries
        past, _ = list_past(entries, claim.batch, self._behind.entries)
        if not all(each in self._encoded for each in past):
            return  # it was picked beside the last one that was met: its past can't be computed from there
        for each in past:
            self._behind.admit(decode_batch(self.replica.federation, self._encoded[each]), lambda _: None)
        if len(self._behind.entries) != len(list_past(entries, claim.batch, ())[0]):
            return
        if self._behind.compute_state_root() != claim.root:
            self._report("certifies a root that is not that of its past")
        self.checkpoint_count += 1
        self._encoded = {each: self._encoded[each] for each in self._encoded if each not in self._behind}


def _name_version(version: int) -> bytes:
    return b"charter version %d" % version
