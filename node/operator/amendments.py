"""An institution's part in changing the charter: hand out vote keys, propose an amendment, approve one by hand.

A member votes for an amendment only after its own people approved it here; nothing else in a node is approved so.
"""

from __future__ import annotations

import trio

from node import api
from node.addresses import Kind as AddressKind
from node.addresses import decode_address, encode_address
from node.errors import UserError
from node.member import LedgerMember
from node.operator.actions import OperatorActions
from node.operator.amending import describe_changes
from node.operator.vote_cards import VoteCards
from protocol.ledger import read_amendment
from protocol.records import Amend, Kind, Record, RecordDraft, charter_scope
from protocol.rules import check_record
from protocol.signatures import SIGNATURE_BYTES

PROPOSAL_SECONDS = 2.0
"""How long a proposal waits for the others: their people take hours."""


class AmendmentActions:
    """What one member's people may do about the charter."""

    def __init__(self, actions: OperatorActions, cards: VoteCards) -> None:
        self._actions = actions
        self._cards = cards
        self._member: LedgerMember = actions.member
        self._ledger = actions.member.replica.ledger
        self._turn = trio.Lock()

    async def collect_vote_cards(self) -> list[api.VoteCard]:
        """The cards of this member and of all that answer. Raises: UserError."""
        cards = await self._cards.collect()
        return [api.VoteCard(number, card.vote_key, card.address) for number, card in sorted(cards.items())]

    async def propose(self, order: api.AmendmentOrder, *, dry_run: bool = False) -> api.Signed:
        """Sign an amendment with the member key, approve it and hand it in. Raises: UserError; Rejected."""
        async with self._turn:
            draft = self._draft(order.charter)
            self._check(draft.assemble(self._ledger.charter.federation, [bytes(SIGNATURE_BYTES)]))
            text = f"Version {draft.sequence + 1} of the charter is proposed, and approved by us."
            record_id = draft.compute_id(self._ledger.charter.federation)
            if dry_run:
                return self._answer(record_id, f"Would be signed: {text}")
            record = self._actions.sign(draft)
            self._actions.outbox.add(record)
            await self._member.approve(record.id)
            submitted = await self._actions.settle(record, PROPOSAL_SECONDS)
            return api.Signed([submitted], f"{text} {self._describe_progress(submitted)}")

    def _draft(self, encoded: bytes) -> RecordDraft:
        scope = charter_scope(self._ledger.charter.federation)
        head = self._ledger.heads.get(scope)
        sequence, prev = (head.sequence + 1, head.record) if head else (0, b"")
        epoch = self._member.compute_open_epochs()[-1]
        signers = (self._actions.public_key,)
        return RecordDraft(Kind.AMEND, epoch, scope, sequence, prev, Amend(encoded), signers)

    def _check(self, record: Record) -> None:
        """Raises: UserError; Rejected when no correct member would vote for it, even with its people's approval."""
        self._actions.check_ready()
        if self._ledger.charter.version != self._member.replica.version:
            raise UserError("an amendment comes into force just now: try again in a moment")
        circumstances = self._member.compute_circumstances()
        check_record(record, self._ledger, circumstances._replace(approved={record.id}))

    async def approve_amendment(self, record_id: str, *, dry_run: bool = False) -> api.Signed:
        """Let our member vote for a proposed amendment. Raises: UserError; Rejected when it may not follow."""
        identifier = decode_address(AddressKind.RECORD, record_id)
        async with self._turn:
            record = self._member.get_record(identifier)
            if record is None or not isinstance(record.body, Amend):
                raise UserError("there is no such amendment: see `allmende member proposals`")
            after = read_amendment(self._ledger.charter.federation, record)
            if after is None:
                raise UserError("this amendment holds no charter that keeps the rules")
            if self._member.replica.is_final(identifier):
                return self._answer(identifier, f"Version {after.version} of the charter is decided already.")
            self._check(record)
            changes = " ".join(describe_changes(self._ledger.charter, after))
            if dry_run:
                return self._answer(identifier, f"Would be approved: version {after.version}. {changes}")
            await self._member.approve(identifier)
            await self._member.wait_final(identifier, PROPOSAL_SECONDS)
            submitted = self._actions.describe_state(identifier)
            text = f"Approved: version {after.version} of the charter. {self._describe_progress(submitted)}"
            return api.Signed([submitted], text)

    def _answer(self, record_id: bytes, text: str) -> api.Signed:
        state = self._member.get_state(record_id) or "waiting"
        return api.Signed([api.Submitted(encode_address(AddressKind.RECORD, record_id), state, None)], text)

    def _describe_progress(self, submitted: api.Submitted) -> str:
        if submitted.state in ("final", "applied"):
            return "A quorum of members approved it; it comes into force in a moment."
        return f"It waits for the other members: allmende member vote {submitted.id}"
