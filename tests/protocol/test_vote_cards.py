"""A card holds for one member of one federation and the version after the one it was made under."""

import pytest

from protocol.errors import InvalidInput
from protocol.vote_cards import VoteCard, decode_vote_card
from tests.strategies import make_federation, make_public_key

FEDERATION = make_federation()
CARD = VoteCard(1, 1, make_public_key("next vote key"), "/ip4/192.0.2.7/tcp/4001", b"")


def sign(card, member=1):
    return card.sign(FEDERATION.id, FEDERATION.member_keys[member]).encode()


def test_a_signed_card_is_read_as_it_was_written():
    assert decode_vote_card(FEDERATION.charter, sign(CARD))[:-1] == CARD[:-1]


@pytest.mark.parametrize(
    "encoded",
    [
        sign(CARD, member=2),
        sign(CARD._replace(charter_version=2)),
        sign(CARD._replace(member=99)),
        sign(CARD._replace(vote_key=bytes(32))),
        sign(CARD)[:-1],
        CARD.sign(make_federation(name="Otherland").id, FEDERATION.member_keys[1]).encode(),
    ],
)
def test_a_card_that_does_not_hold_is_refused(encoded):
    with pytest.raises(InvalidInput):
        decode_vote_card(FEDERATION.charter, encoded)
