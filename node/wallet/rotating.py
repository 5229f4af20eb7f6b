"""A new key for the wallet's account, from the same 24 words: the paper backup stays whole (spec 7.12).

The account keeps its name. The rotation stands in the account's own chain, signed by the key in force and by the new
one; once it is final, the wallet signs everything with the new key. Which one is in force the ledger says, so a wallet
that was restored, or a command that died in between, finds it by trying the keys that the words give.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from node.wallet.journal import Entry
from node.wallet.payments import spend
from node.wallet.sending import WAIT_SECONDS, Outcome, find_pending
from protocol.records import Kind, Rotate, decode_record

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from node.wallet.wallet import Wallet

PURPOSE = "a new key for this account"


def rotate_key(
    wallet: Wallet,
    key: Ed25519PrivateKey,
    next_key: Ed25519PrivateKey,
    wait_seconds: float = WAIT_SECONDS,
) -> Outcome:
    """Sign the rotation, or go on with one that is on its way, until it is final. Raises: UserError; Unreachable."""
    public_key = next_key.public_key().public_bytes_raw()
    entry = find_rotation(wallet)
    outcome = spend(
        wallet, key, Kind.ROTATE, PURPOSE, lambda account: Rotate(public_key), wait_seconds, entry, (next_key,)
    )
    if outcome.verified is not None and outcome.verified.record.body == Rotate(public_key):
        wallet.note_key(wallet.settings.key_index + 1, public_key)
    return outcome


def find_rotation(wallet: Wallet) -> Entry | None:
    """The rotation that is on its way, if there is one."""
    for entry in find_pending(wallet):
        if isinstance(decode_record(wallet.federation, entry.record).body, Rotate):
            return entry
    return None
