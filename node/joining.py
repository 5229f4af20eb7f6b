"""A new node begins with the last certified state instead of with the genesis charter.

Nothing is taken from the serving node's word: the charter versions are verified from the federation's id on, members of
a quorum signed the root, and the facts have that root. What came after is fetched like any other batch (spec 10.6).
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from node.client import NodeClient
from node.errors import UserError
from node.snapshots import SnapshotFolder, VerifiedSnapshot, iterate_frames, verify_snapshot
from node.storage.store import Store
from protocol.charter import Charter, Charters
from protocol.checkpoints import CHECKPOINT_PROOF_BYTES_MAX
from protocol.errors import InvalidInput
from protocol.receipts import read_receipt_record

SNAPSHOT_BYTES_MAX = 4 * 1024**3


def fetch_checkpoint(url: str, charters: Charters) -> VerifiedSnapshot | None:
    """The last certified state that a node serves, verified; None when it has none.

    `charters` are verified versions. Raises: UserError when what it serves does not hold; Unreachable.
    """
    with NodeClient(url) as client:
        found = client.get_checkpoint()
        if found is None:
            return None
        size = found.snapshot_bytes + CHECKPOINT_PROOF_BYTES_MAX
        if size > SNAPSHOT_BYTES_MAX:
            raise UserError(f"the checkpoint of {url} has {found.snapshot_bytes} bytes: choose another node")
        content = client.get_snapshot(size)
    try:
        return verify_snapshot(charters, iterate_frames(BytesIO(content)))
    except InvalidInput as error:
        raise UserError(f"the checkpoint of {url} does not hold ({error}): choose another node") from error


def begin_with_checkpoint(
    ledger: Path, snapshots: Path, genesis: Charter, snapshot: VerifiedSnapshot, amendments: Sequence[bytes]
) -> None:
    """Make the ledger of a new node out of a verified snapshot and the verified receipts of all amendments.

    Raises: UserError when there is a ledger already.
    """
    store = Store.open(ledger, genesis.federation)
    try:
        if store.begins_late or store.count_batches():
            raise UserError(f"{ledger} holds a ledger already: a checkpoint is for a node that has none")
        SnapshotFolder(snapshots).keep(snapshot.proof, snapshot.facts)
        store.begin_with(snapshot.facts, name_amendments(genesis, amendments))
    finally:
        store.close()


def name_amendments(genesis: Charter, receipts: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """(record, receipt) of amendments."""
    return [(read_receipt_record(genesis.federation, receipt).id, receipt) for receipt in receipts]
