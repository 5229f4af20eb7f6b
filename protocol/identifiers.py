"""Names of things are hashes of what they are, so nobody can give one name to two things.

id = SHA-256(tag, federation id, unsigned bytes). Every signed type has its own tag and every id holds the
federation, so nothing that was signed for one purpose or federation serves another (spec 2.3).
"""

from __future__ import annotations

from enum import Enum, unique
from functools import lru_cache
from hashlib import sha256

from protocol.codec import encode

ID_BYTES = 32
NO_FEDERATION = bytes(ID_BYTES)
"""Stands in the place of the federation id while the genesis charter, which defines it, is hashed."""

Slot = tuple[bytes, int]
"""(scope, sequence): the place that one record may take (spec 3.2)."""


@unique
class Tag(bytes, Enum):
    """The domains of the hash; 16 bytes each, so no tag is a prefix of another (spec 2.3).

    Bytes themselves, so hashing one costs no look-up: an id is computed for every record.
    """

    CHARTER = b"allmende:charter"
    ACCOUNT = b"allmende:account"
    MEMBER_ACCOUNT = b"allmende:memacct"
    ISSUANCE = b"allmende:issuanc"
    RECORD = b"allmende:record\0"
    BATCH = b"allmende:batch\0\0"
    SEEN = b"allmende:seen\0\0\0"
    RECORD_LEAF = b"allmende:recleaf"
    STATEMENT_LEAF = b"allmende:staleaf"
    STATE_LEAF = b"allmende:sttleaf"
    MERKLE_NODE = b"allmende:mrknode"
    MERKLE_EMPTY = b"allmende:mrkvoid"
    UNLOCK = b"allmende:unlock\0"
    PROPOSAL = b"allmende:proposl"
    VOUCHER = b"allmende:voucher"
    TICK = b"allmende:tick\0\0\0"
    OFFER = b"allmende:offer\0\0"
    QUOTE_REQUEST = b"allmende:quotreq"
    QUOTE = b"allmende:quote\0\0"
    JOB_RECEIPT = b"allmende:jobrcpt"
    BUDGET_REQUEST = b"allmende:budgreq"
    MESSAGE = b"allmende:message"
    VOTE_CARD = b"allmende:votcard"


assert all(len(tag) == 16 for tag in Tag)


def compute_id(tag: Tag, federation: bytes, unsigned: bytes) -> bytes:
    """The 32 byte id of `unsigned`, the canonical bytes of a value without its signatures."""
    assert len(federation) == ID_BYTES
    return sha256(tag + federation + unsigned).digest()


@lru_cache(maxsize=8192)
def compute_account_id(federation: bytes, public_key: bytes) -> bytes:
    """A person's or donor's account is named by its first key; later keys don't change the name (spec 3.2)."""
    return compute_id(Tag.ACCOUNT, federation, public_key)


def compute_member_account_id(federation: bytes, member: int) -> bytes:
    """A member's own account: named by its number, which outlives every key (spec 3.2)."""
    return compute_id(Tag.MEMBER_ACCOUNT, federation, member.to_bytes(4, "big"))


def compute_issuance_account_id(federation: bytes, member: int, epoch: int) -> bytes:
    """The account from which a member grants in one epoch (spec 7.4)."""
    return compute_id(Tag.ISSUANCE, federation, member.to_bytes(4, "big") + epoch.to_bytes(4, "big"))


def compute_voucher_id(federation: bytes, hold: bytes, sequence: int, amount: int) -> bytes:
    """What the hold's meter key signs: at tick `sequence`, `amount` millicredits in all are due (spec 7.7)."""
    return compute_id(Tag.VOUCHER, federation, encode((hold, sequence, amount)))
