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
from protocol.attempts import compute_forced, compute_turn
from protocol.identifiers import Slot
from protocol.ledger import read_amendment
from protocol.records import Amend, Kind, Record, RecordDraft, charter_scope
from protocol.rules import check_record, find_turn
from protocol.signatures import NO_SIGNATURE
from protocol.statements import (
    UnlockRequest,
    encode_signed,
    is_signed_by_writer,
    sign_slot_proposal,
    sign_unlock_request,
)

PROPOSAL_SECONDS = 2.0
"""How long a proposal waits for the others: their people take hours."""

PROMISE_SECONDS = 20.0


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
            self._check(draft.assemble(self._ledger.charter.federation, [NO_SIGNATURE]))
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
        (draft,) = self._actions.draft(Kind.AMEND, self._member.compute_open_epochs()[-1], scope, [Amend(encoded)])
        return draft

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

    async def unlock_amendment(self, record_id: str, *, dry_run: bool = False) -> api.Signed:
        """Free the charter's slot for an amendment, when the votes are split between two: one attempt of ours.

        Where the promises force another record, that one is proposed: it may be final somewhere (spec 5.6).
        Raises: UserError; Rejected while it is another member's turn.
        """
        identifier = decode_address(AddressKind.RECORD, record_id)
        async with self._turn:
            wish = self._member.get_record(identifier)
            if wish is None or not isinstance(wish.body, Amend):
                raise UserError("there is no such amendment: see `allmende member proposals`")
            self._actions.check_ready()
            attempt = self._find_own_attempt(wish.slot)
            text = f"Attempt {attempt} at version {wish.sequence + 1} of the charter is asked for."
            if dry_run:
                return self._answer(identifier, f"Would be signed: {text}")
            record = await self._attempt(wish, attempt)
            if record is None:
                return self._answer(identifier, f"{text} Too few members answered yet: try again later.")
            await self._member.wait_final(record.id, PROPOSAL_SECONDS)
            return self._answer(record.id, f"{text} {self._describe_progress(self._actions.describe_state(record.id))}")

    def _find_own_attempt(self, slot: Slot) -> int:
        """The first attempt that is our turn and that nobody asked for, nor a later one."""
        place = find_turn(self._ledger, slot[0], self._actions.public_key)
        assert place is not None, "every member may write in the charter's scope"
        contest = self._member.replica.contests.get(slot)
        asked = contest.requests.values() if contest else ()
        attempt = 1 + max((it.attempt for it in asked if self._is_in_turn(it)), default=0)
        while compute_turn(attempt, place[1]) != place[0]:
            attempt += 1
        return attempt

    def _is_in_turn(self, request: UnlockRequest) -> bool:
        """True when a member asked in its own turn: anybody may write anything into its log."""
        place = find_turn(self._ledger, request.scope, request.signer)
        is_own_turn = place is not None and compute_turn(request.attempt, place[1]) == place[0]
        return is_own_turn and is_signed_by_writer(self._ledger.charter.federation, request)

    async def _attempt(self, wish: Record, attempt: int) -> Record | None:
        """Ask, wait for promises, propose; the record that was proposed, or None without a quorum of promises."""
        federation, key, slot = self._ledger.charter.federation, self._actions.key, wish.slot
        request = sign_unlock_request(federation, slot, attempt, key.public_key, key)
        await self._member.unlocking.submit_request(encode_signed(request))
        if not await self._member.unlocking.wait_promises(slot, attempt, PROMISE_SECONDS):
            return None
        promises = self._member.unlocking.get_promises(slot, attempt)
        forced = compute_forced(promise.report for promise in promises.values())
        record = wish if forced is None else self._member.get_record(forced)
        assert record is not None, "what a promise reports has a certificate here"
        proposal = sign_slot_proposal(federation, slot, attempt, record.id, promises, key.public_key, key)
        await self._member.unlocking.submit_proposal(encode_signed(proposal), record.encoded)
        return record

    def _answer(self, record_id: bytes, text: str) -> api.Signed:
        state = self._member.get_state(record_id) or "waiting"
        return api.Signed([api.Submitted(encode_address(AddressKind.RECORD, record_id), state, None)], text)

    def _describe_progress(self, submitted: api.Submitted) -> str:
        if submitted.state in ("final", "applied"):
            return "A quorum of members approved it; it comes into force in a moment."
        return f"It waits for the other members: allmende member vote {submitted.id}"
