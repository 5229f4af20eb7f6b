"""Reading the ledger's batches back: a record that stands in one, and the receipt that proves it final."""

from __future__ import annotations

from functools import lru_cache

from node.storage.store import Store
from protocol.batches import Batch, decode_batch
from protocol.detection import Evidence, find_evidence
from protocol.receipts import ProvableBatch, build_receipt
from protocol.records import Record
from protocol.replica import Replica

DECODED_BATCHES_MAX = 64


class Archive:
    """The stored batches of one replica, decoded as they are needed; the last ones are kept."""

    def __init__(self, store: Store, replica: Replica) -> None:
        self._store = store
        self._replica = replica
        self._provable = lru_cache(maxsize=DECODED_BATCHES_MAX)(self._read_provable)

    def read_bytes(self, batch_id: bytes) -> bytes:
        """A stored batch, as it was received."""
        encoded = self._store.get_batch(batch_id)
        assert encoded is not None, "every batch of the replica is in the store"
        return encoded

    def fetch(self, batch_id: bytes) -> Batch:
        """A stored batch, decoded."""
        return self._provable(batch_id).batch

    def get_record(self, record_id: bytes) -> Record | None:
        """A record that some batch introduced."""
        located = self._replica.locate(record_id)
        if located is None:
            return None
        introduction, position = located
        return introduction.records.get(position) or self.fetch(introduction.batch).records[position]

    def build_receipt(self, record_id: bytes) -> bytes | None:
        """The receipt of finality, once there is one."""
        is_final = self._replica.is_final(record_id)
        return build_receipt(self._replica, record_id, self._provable) if is_final else None

    def find_evidence(self) -> list[Evidence]:
        """The proofs of wrongdoing that the batches hold; takes a pass over the log when a slot is contested."""
        return find_evidence(self._replica, self._provable)

    def _read_provable(self, batch_id: bytes) -> ProvableBatch:
        return ProvableBatch(decode_batch(self._replica.federation, self.read_bytes(batch_id)))
