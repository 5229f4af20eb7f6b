"""The wallet's own judgement whether a payment is final: it asks the charter, not the node.

A receipt shows commits of members that together outweigh every tolerated fault, each under the member's signature.
So a node that lies can keep silent or be slow; it can't make a wallet say "final" (spec 11).
"""

from __future__ import annotations

from typing import NamedTuple

from protocol.charter import Charters
from protocol.checkpoints import VerifiedCheckpoint, read_balance, verify_checkpoint, verify_facts
from protocol.errors import InvalidInput
from protocol.receipts import VerifiedReceipt, verify_receipt
from protocol.records import Lot, decode_record


def verify_final(charters: Charters, receipt: bytes, record_bytes: bytes) -> VerifiedReceipt:
    """What the receipt proves, which is that exactly this record is final. Needs no network.

    Ids are compared: they hash every byte but the signatures, and a faulty member may have put the record into its
    batch with a signature that does not hold. What is final is the record, under whichever spelling.

    Raises: InvalidInput when the receipt proves nothing, or proves something about another record.
    """
    verified = verify_receipt(charters, receipt)
    if verified.record.id != decode_record(charters[0].federation, record_bytes).id:
        raise InvalidInput("the receipt is for another record than the one that this wallet signed")
    return verified


class ProvedBalance(NamedTuple):
    """What an account held when a quorum certified the state."""

    checkpoint: VerifiedCheckpoint
    lots: dict[Lot, int]


def verify_balance(charters: Charters, checkpoint: bytes, facts: bytes, account: bytes) -> ProvedBalance:
    """The whole balance of an account at a checkpoint. Needs no network.

    Raises: InvalidInput when the checkpoint is not certified, or the facts don't stand in it or don't tell all. That an
    account has no balance can't be proved: empty facts are no proof either.
    """
    verified = verify_checkpoint(charters, checkpoint)
    if not facts:
        raise InvalidInput("the checkpoint tells nothing of this account")
    return ProvedBalance(verified, read_balance(account, verify_facts(verified.root, facts)))
