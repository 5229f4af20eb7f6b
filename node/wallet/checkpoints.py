"""The last checkpoint of a job, in the payer's hands before the payer agrees to the tick that names it.

A donor that fails is paid up to the last checkpoint (spec 12.4). So a checkpoint counts only when the wallet has it and
could open it: what is paid for can be gone on with on another machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from node.bundles import list_bundle
from node.files import write_atomically
from node.sealing import open_sealed
from node.wallet.job_records import WalletJob, get_checkpoint_path
from protocol.conversation import compute_seal_context
from protocol.countersigning import find_saved_tick

if TYPE_CHECKING:
    from node.wallet.calling import Line
    from node.wallet.wallet import Wallet


def keep_checkpoint(wallet: Wallet, job: WalletJob, line: Line, digest: bytes) -> None:
    """Fetch, open and keep the checkpoint that a tick names, in place of the one before. On disk when this returns.

    Raises: InvalidInput when it can't be opened or is no bundle; UserError when the node does not have it; Unreachable.
    The tick is not to be agreed to then.
    """
    sealed = line.get_blob(digest)
    bundle = open_sealed(job.result_seed, sealed, compute_seal_context(b"checkpoint", job.hold))
    list_bundle(bundle)
    write_atomically(get_checkpoint_path(wallet, job), bundle)


def compute_saved_ms(job: WalletJob) -> int:
    """How much of the job's time its last checkpoint holds: that of the first tick that named it."""
    saved = find_saved_tick(job.list_ticks())
    return saved.elapsed_ms if saved else 0
