"""What slot owners ask of this member: requests and proposals on their way into its next batch.

Nothing here is durable: an owner that gets no answer says the same again, or asks for the next attempt (spec 5.6).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import trio

from node.submissions import Busy
from protocol.attempts import Round
from protocol.contests import PromiseGiven
from protocol.errors import Rejected
from protocol.identifiers import Slot
from protocol.limits import BATCH_BYTES_MAX
from protocol.records import Record, decode_record, has_valid_signatures
from protocol.rules import Circumstances
from protocol.statements import (
    Proposal,
    SlotProposal,
    Statement,
    Unlock,
    UnlockRequest,
    decode_slot_proposal,
    decode_unlock_request,
    encode_signed,
)
from protocol.voting import Voter

WISHES_MAX = 256
"""Owners that wait for the next batch: it comes within a moment."""

WISHES_BYTES_PER_BATCH = BATCH_BYTES_MAX // 4
"""Of requests, proposals and their records; ordinary records have that much less room in the same batch."""

_BUSY = "this node is busy: send the same again in a moment"


class Wish(NamedTuple):
    """What an owner signed, and the record that a proposal is for."""

    signed: UnlockRequest | SlotProposal
    record: Record | None


class Unlocking:
    """Between owners and the member's next batch; what they ask for is checked when it comes and when it goes."""

    def __init__(
        self,
        voter: Voter,
        check_signing: Callable[[], None],
        compute_circumstances: Callable[[], Circumstances],
        count_in: Callable[[bytes, Circumstances], None],
        tell_news: Callable[[], None],
    ) -> None:
        """`check_signing` raises UserError while this node signs nothing, `count_in` raises Busy when it is asked too
        often about a scope; `tell_news` is called when there is something to say."""
        self._voter = voter
        self._replica = voter.replica
        self._check_signing = check_signing
        self._compute_circumstances = compute_circumstances
        self._count_in = count_in
        self._tell_news = tell_news
        self._wishes: dict[bytes, Wish] = {}
        self._has_batch = trio.Event()

    # -- asking -------------------------------------------------------------------------------------------------

    async def submit_request(self, encoded: bytes) -> Slot:
        """Take an owner's request for another attempt; returns the slot. One that stands there is answered already.

        Raises: InvalidInput; Rejected; Busy.
        """
        await trio.lowlevel.checkpoint()
        return self.submit_request_at_once(encoded)

    def submit_request_at_once(self, encoded: bytes) -> Slot:
        """`submit_request`, without an event loop."""
        request = decode_unlock_request(encoded)
        contest = self._replica.contests.get(request.slot)
        if contest is None or request not in contest.requests.values():
            self._add(Wish(request, None))
        return request.slot

    async def submit_proposal(self, encoded: bytes, record_bytes: bytes) -> bytes:
        """Take an owner's proposal with its record; returns the record's id, whose finality is to be awaited.

        Raises: InvalidInput; Rejected; Busy.
        """
        await trio.lowlevel.checkpoint()
        return self.submit_proposal_at_once(encoded, record_bytes)

    def submit_proposal_at_once(self, encoded: bytes, record_bytes: bytes) -> bytes:
        """`submit_proposal`, without an event loop."""
        proposal = decode_slot_proposal(encoded)
        record = decode_record(self._replica.federation, record_bytes)
        contest = self._replica.contests.get(proposal.slot)
        is_known = contest is not None and proposal in contest.proposals.values()
        if not is_known and not self._replica.is_final(record.id):
            self._add(Wish(proposal, record))
        return record.id

    def _add(self, wish: Wish) -> None:
        self._check_room(len(self._wishes))
        circumstances = self._compute_circumstances()
        self._check(wish, circumstances)
        self._count_in(wish.signed.scope, circumstances)
        self._wishes[encode_signed(wish.signed)] = wish
        self._tell_news()

    def _check_room(self, count: int) -> None:
        self._check_signing()
        if count >= WISHES_MAX:
            raise Busy(_BUSY)

    def _check(self, wish: Wish, circumstances: Circumstances) -> None:
        if isinstance(wish.signed, UnlockRequest):
            self._voter.check_request(wish.signed, circumstances)
        else:
            assert wish.record is not None
            self._voter.check_proposal(wish.signed, wish.record, circumstances)

    # -- waiting ------------------------------------------------------------------------------------------------

    def get_promises(self, slot: Slot, attempt: int) -> dict[bytes, PromiseGiven]:
        """Batch -> promise for this attempt, one of each member: those on which a proposal may rest."""
        contest = self._replica.contests.get(slot)
        if contest is None:
            return {}
        chosen = contest.choose_promises(Round(self._replica.version, attempt))
        return {batch: given for batch, given in chosen.items() if self._replica.is_supported(slot, given)}

    async def wait_promises(self, slot: Slot, attempt: int, timeout_seconds: float) -> bool:
        """Wait for promises of a quorum, or until the slot is decided; False when the time is over."""
        with trio.move_on_after(timeout_seconds):
            while not self._is_answered(slot, attempt):
                await self._has_batch.wait()
        return self._is_answered(slot, attempt)

    def _is_answered(self, slot: Slot, attempt: int) -> bool:
        charter = self._replica.charter
        members = {promise.member for promise in self.get_promises(slot, attempt).values()}
        weight = sum(charter.weights.get(member, 0) for member in members)
        return self._replica.ledger.is_decided(*slot) or weight >= charter.quorum

    def note_admission(self) -> None:
        """A batch was admitted: those who wait look again."""
        if self._has_batch.statistics().tasks_waiting:
            self._has_batch.set()
            self._has_batch = trio.Event()

    # -- speaking -----------------------------------------------------------------------------------------------

    def take(self, circumstances: Circumstances) -> tuple[list[Statement], list[Record]]:
        """The statements for the next batch, and the records that it introduces for them without a vote at
        attempt 0. What no longer passes is dropped; what finds no room waits for the batch after."""
        statements: list[Statement] = []
        records: dict[bytes, Record] = {}
        size = 0
        for encoded, wish in list(self._wishes.items()):
            size += len(encoded) + (len(wish.record.encoded) if wish.record is not None else 0) + 16
            if size > WISHES_BYTES_PER_BATCH:
                self._tell_news()
                break
            del self._wishes[encoded]
            try:
                self._check(wish, circumstances)
            except Rejected:
                continue
            statements.append(Unlock(encoded) if isinstance(wish.signed, UnlockRequest) else Proposal(encoded))
            if wish.record is not None and not self._is_introduced(wish.record):
                records[wish.record.id] = wish.record
        return statements, list(records.values())

    def _is_introduced(self, record: Record) -> bool:
        """True when the record stands in a batch with signatures that hold, or need not: a certificate is enough."""
        return any(map(has_valid_signatures, self._replica.get_spellings(record.id)))
