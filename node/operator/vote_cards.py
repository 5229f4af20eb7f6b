"""Collecting the members' vote keys for the next charter version, from node to node.

Whoever drafts an amendment asks all peers that are connected for their cards. A node keeps the private key before it
tells the public one, so an amendment never names a key that is lost.
"""

from __future__ import annotations

import logging

import trio

from node.errors import UserError
from node.keystore import Key
from node.member import LedgerMember
from node.network.transport import RequestFailed, Transport, UnreachablePeer
from protocol.errors import InvalidInput
from protocol.vote_cards import VOTE_CARD_BYTES_MAX, VoteCard, decode_vote_card

log = logging.getLogger("allmende.operator")

CARD_PROTOCOL = "/allmende/card/1"
ANSWER_SECONDS = 10.0


class VoteCards:
    """This member's card, and those of the members that can be reached."""

    def __init__(self, member: LedgerMember, member_key: Key, address: str, transport: Transport | None) -> None:
        """`address` is where others reach this node, or nothing. Without a `transport` nobody is asked."""
        self._member = member
        self._member_key = member_key
        self._address = address
        self._transport = transport
        if transport is not None:
            transport.serve(CARD_PROTOCOL, self._answer)

    def build_own(self) -> VoteCard:
        """Our card for the version after the newest one.

        Raises: UserError when no card of ours would hold, or before a quorum told what it has: until then this node
        can't know whether it was restored from a backup, with keys that were used elsewhere (spec 9.6).
        """
        charter, number = self._member.replica.ledger.charter, self._member.number
        own = charter.members.get(number)
        if own is None or own.member_key != self._member_key.public_key:
            raise UserError("the charter does not name this node's member key")
        if not self._member.signing.has_heard_quorum:
            raise UserError("this node has not heard yet what a quorum of members has: try again in a moment")
        vote_key = self._member.signing.get_fresh_vote_key()
        card = VoteCard(number, charter.version + 1, vote_key, self._address, b"")
        return card.sign(charter.federation, self._member_key)

    async def _answer(self, _peer_id: str, _question: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        return self.build_own().encode()

    async def ask(self, peer_id: str) -> VoteCard | None:
        """The card of a peer's member, or None when it gives none that holds."""
        assert self._transport is not None
        try:
            encoded = await self._transport.request(peer_id, CARD_PROTOCOL, b"", ANSWER_SECONDS, VOTE_CARD_BYTES_MAX)
            return decode_vote_card(self._member.replica.ledger.charter, encoded)
        except (UnreachablePeer, RequestFailed, InvalidInput) as error:
            log.info("no vote card of %s: %s", peer_id, error)
            return None

    async def collect(self) -> dict[int, VoteCard]:
        """Member -> card: our own, and those of all members that answer in time."""
        own = self.build_own()
        cards = {own.member: own}

        async def add(peer_id: str) -> None:
            card = await self.ask(peer_id)
            if card is not None:
                cards[card.member] = card

        async with trio.open_nursery() as nursery:
            for peer_id in self._transport.connected() if self._transport else ():
                nursery.start_soon(add, peer_id)
        return cards
