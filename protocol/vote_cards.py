"""A member's card for the next charter version: the vote key that its node made, and where the node is reached.

Whoever drafts an amendment collects the cards of all members that answer; who does not answer keeps its vote key
(spec 9.7). The member key signs the card, so no node can put its own key in another's place.
"""

from __future__ import annotations

from typing import NamedTuple

from protocol.charter import Charter
from protocol.codec import VERSION_SHAPE, binary, decode, encode, items, text, uint
from protocol.errors import InvalidInput
from protocol.identifiers import Tag, compute_id
from protocol.limits import MEMBER_NUMBER_MAX, PROTOCOL_VERSION
from protocol.signatures import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Signer, is_prime_order_key, is_valid_signature

ADDRESS_BYTES_MAX = 256
VOTE_CARD_BYTES_MAX = 512


class VoteCard(NamedTuple):
    """What a member hands to the drafter of an amendment."""

    member: int
    charter_version: int
    """The version for which the key was made."""
    vote_key: bytes
    address: str
    """Where other members' nodes reach this one, or nothing."""
    signature: bytes

    def compute_id(self, federation: bytes) -> bytes:
        """What the member key signs."""
        return compute_id(Tag.VOTE_CARD, federation, encode((PROTOCOL_VERSION, *self[:-1])))

    def sign(self, federation: bytes, member_key: Signer) -> VoteCard:
        """The card with its signature."""
        return self._replace(signature=member_key.sign(self.compute_id(federation)))

    def encode(self) -> bytes:
        """The canonical bytes."""
        return encode((PROTOCOL_VERSION, *self))


_CARD = items(
    VERSION_SHAPE,
    uint(MEMBER_NUMBER_MAX, 1),
    uint(),
    binary(PUBLIC_KEY_BYTES),
    text(ADDRESS_BYTES_MAX),
    binary(SIGNATURE_BYTES),
)


def decode_vote_card(charter: Charter, encoded: bytes) -> VoteCard:
    """The card of a member of this charter, for the version after it.

    Raises: InvalidInput when it is malformed, for another version, or not signed by its member's key in the charter.
    """
    card = VoteCard._make(decode(_CARD, encoded, VOTE_CARD_BYTES_MAX)[1:])
    member = charter.members.get(card.member)
    if member is None or card.charter_version != charter.version + 1:
        raise InvalidInput("the card is for another charter version, or of somebody who is no member")
    if not is_prime_order_key(card.vote_key):
        raise InvalidInput("the vote key does not lie in the subgroup of prime order")
    if not is_valid_signature(member.member_key, card.compute_id(charter.federation), card.signature):
        raise InvalidInput("the card is not signed by its member")
    return card
