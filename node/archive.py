"""Reading the ledger's batches back: a record that stands in one, and the receipt that proves it final.

Where the ledger begins with a checkpoint, batches before it are *not here*: their records have no receipt at this
node, and whoever needs one asks another (spec 10.6).
"""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache

from node.errors import UserError
from node.storage.store import Store
from protocol.batches import Batch, decode_batch
from protocol.detection import Evidence, find_evidence
from protocol.errors import InvalidInput
from protocol.evidence import verify_evidence
from protocol.receipts import ProvableBatch, build_receipt, read_receipt_record
from protocol.records import Record
from protocol.replica import Replica

DECODED_BATCHES_MAX = 64


class NotHere(Exception):
    """The batch lies before the checkpoint with which this node's ledger begins."""


class Archive:
    """The stored batches of one replica, decoded as they are needed; the last ones are kept."""

    def __init__(self, store: Store, replica: Replica) -> None:
        self._store = store
        self._replica = replica
        self._provable = lru_cache(maxsize=DECODED_BATCHES_MAX)(self._read_provable)

    def read_bytes(self, batch_id: bytes) -> bytes | None:
        """A stored batch, as it was received; None when it is not here."""
        return self._store.get_batch(batch_id)

    def fetch(self, batch_id: bytes) -> Batch | None:
        """A stored batch, decoded; None when it is not here."""
        try:
            return self._provable(batch_id).batch
        except NotHere:
            return None

    def decode_stored(self, encoded: bytes, number: int) -> Batch:
        """A batch of the store, whose past was read before it. Raises: UserError when the store is damaged."""
        try:
            batch = decode_batch(self._replica.federation, encoded)
            if self._replica.get_missing_parents(batch) or not self._replica.is_linked(batch, {}):
                raise InvalidInput("what comes before it is gone")
        except InvalidInput as error:
            raise UserError(
                f"batch {number} in the database is damaged ({error}): move the database away and start again; "
                "the node fetches the ledger from the others, and signs nothing more under this charter"
            ) from None
        return batch

    def get_record(self, record_id: bytes) -> Record | None:
        """A record that some batch introduced."""
        located = self._replica.locate(record_id)
        if located is None:
            receipt = self._store.get_receipt(record_id)
            return read_receipt_record(self._replica.federation, receipt) if receipt is not None else None
        introduction, position = located
        if (record := introduction.open_records.get(position)) is not None:
            return record
        batch = self.fetch(introduction.batch)
        return batch.records[position] if batch is not None else None

    def check_is_known(self, record: Record) -> None:
        """Raises: UserError when the record's slot was decided before this ledger begins: it may be the final one."""
        if self._replica.locate(record.id) is None and self._replica.was_decided_before(*record.slot):
            raise UserError("this node does not have records that old: ask another member's node")

    def build_receipt(self, record_id: bytes) -> bytes | None:
        """The receipt of finality, once there is one; None as well when a part of it is not here."""
        built = None
        if self._replica.is_final(record_id):
            with suppress(NotHere):
                built = build_receipt(self._replica, record_id, self.read_provable)
        return built or self._store.get_receipt(record_id)

    def read_provable(self, batch_id: bytes) -> ProvableBatch:
        """A stored batch with its Merkle trees. Raises: NotHere."""
        return self._provable(batch_id)

    def find_evidence(self) -> list[Evidence]:
        """The proofs of wrongdoing that the batches hold; takes a pass over the log when a slot is contested, and finds
        forks alone when the log is not here in full."""
        try:
            return find_evidence(self._replica, self.read_provable)
        except NotHere:
            proofs = [fork.encode() for _, fork in sorted(self._replica.forks.items())]
            return [Evidence(proof, verify_evidence(self._replica.ledger.charters, proof)) for proof in proofs]

    def _read_provable(self, batch_id: bytes) -> ProvableBatch:
        encoded = self.read_bytes(batch_id)
        if encoded is None:
            raise NotHere
        return ProvableBatch(decode_batch(self._replica.federation, encoded))
