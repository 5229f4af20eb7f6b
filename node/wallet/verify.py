"""The wallet's own judgement whether a payment is final: it asks the charter, not the node.

A receipt shows commits of members that together outweigh every tolerated fault, each under the member's signature.
So a node that lies can keep silent or be slow; it can't make a wallet say "final" (spec 11).
"""

from __future__ import annotations

from protocol.charter import Charters
from protocol.errors import InvalidInput
from protocol.receipts import VerifiedReceipt, verify_receipt
from protocol.records import decode_record


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
