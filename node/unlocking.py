"""Requests, proposals and receipts of slot owners on their way into the member's next batch.

Nothing here is durable: an owner that gets no answer says the same again, or asks for the next attempt (spec 5.6).
"""

from __future__ import annotations

from typing import NamedTuple

from node.submissions import Busy
from protocol.errors import Reason, Rejected
from protocol.limits import STATEMENT_BYTES_MAX
from protocol.records import Record
from protocol.rules import Circumstances
from protocol.statements import Proof, Proposal, SlotProposal, Statement, Unlock, UnlockRequest, encode_signed
from protocol.voting import Voter

WISHES_MAX = 256
"""Owners that wait for the next batch: it comes within a moment."""


class Wish(NamedTuple):
    """What an owner signed, and the record that a proposal is for."""

    signed: UnlockRequest | SlotProposal
    record: Record | None


class UnlockQueue:
    """What owners ask for; checked when it comes in and once more when the batch is made."""

    def __init__(self, voter: Voter) -> None:
        self._voter = voter
        self._wishes: dict[bytes, Wish] = {}
        self._proofs: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self._wishes)

    def add_request(self, request: UnlockRequest, circumstances: Circumstances) -> None:
        """Raises: Rejected; Busy. One that stands in an open slot already is answered there."""
        contest = self._voter.replica.contests.get(request.slot)
        if contest is None or request not in contest.requests.values():
            self._add(Wish(request, None), circumstances)

    def add_proposal(self, proposal: SlotProposal, record: Record, circumstances: Circumstances) -> None:
        """Raises: Rejected; Busy. One that stands in an open slot already is judged there."""
        contest = self._voter.replica.contests.get(proposal.slot)
        if contest is None or proposal not in contest.proposals.values():
            self._add(Wish(proposal, record), circumstances)

    def add_proof(self, record_id: bytes, receipt: bytes) -> None:
        """A verified receipt of a record that is not final here. Raises: Busy; Rejected when no statement holds it."""
        if len(receipt) > STATEMENT_BYTES_MAX - 16:
            raise Rejected(Reason.LIMIT_EXCEEDED, "the receipt is too long to be told in a batch")
        if len(self._proofs) >= WISHES_MAX:
            raise Busy("this node is busy: send the same again in a moment")
        self._proofs[record_id] = receipt

    def _add(self, wish: Wish, circumstances: Circumstances) -> None:
        self._check(wish, circumstances)
        if len(self._wishes) >= WISHES_MAX:
            raise Busy("this node is busy: send the same again in a moment")
        self._wishes[encode_signed(wish.signed)] = wish

    def _check(self, wish: Wish, circumstances: Circumstances) -> None:
        if isinstance(wish.signed, UnlockRequest):
            self._voter.check_request(wish.signed, circumstances)
        else:
            assert wish.record is not None
            self._voter.check_proposal(wish.signed, wish.record, circumstances)

    def take(self, circumstances: Circumstances) -> tuple[list[Statement], list[Record]]:
        """The statements for the next batch, and the records that it introduces for them without a vote at
        attempt 0. What no longer passes is dropped."""
        statements: list[Statement] = []
        records: dict[bytes, Record] = {}
        proofs, self._proofs = self._proofs, {}
        for record_id, receipt in proofs.items():
            if not self._voter.replica.is_final(record_id):
                statements.append(Proof(receipt))
        wishes, self._wishes = self._wishes, {}
        for encoded, wish in wishes.items():
            try:
                self._check(wish, circumstances)
            except Rejected:
                continue
            statements.append(Unlock(encoded) if isinstance(wish.signed, UnlockRequest) else Proposal(encoded))
            if wish.record is not None and self._voter.replica.locate(wish.record.id) is None:
                records[wish.record.id] = wish.record
        return statements, list(records.values())
