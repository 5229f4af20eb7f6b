"""Freeing a hold's one slot when payee and payer both signed for it, each in its turns (spec 5.8).

Who wants the hold to end asks the members for an attempt, waits for a quorum's promises and proposes a record: the one
that they force, else its own. Whichever of the two records comes out, the slot is decided. A turn that has not begun,
was overtaken or found too few members is no error: the next one is longer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from node.addresses import Kind as AddressKind
from node.addresses import decode_address
from protocol.attempts import Claim, Round, compute_forced, compute_turn
from protocol.errors import InvalidInput, Reason, Rejected
from protocol.records import Kind, Record, RecordDraft, decode_record, sign_record
from protocol.statements import encode_signed, sign_slot_proposal, sign_unlock_request

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from node import api

WRITERS = 2
PAYER, PAYEE = 0, 1
"""Places in the order of a hold's writers."""

_PASSING_REASONS = frozenset(
    {Reason.TURN_WRONG, Reason.ATTEMPT_CLOSED, Reason.SLOT_TAKEN, Reason.CHARTER_CHANGING, Reason.REFERENCE_MISSING}
)
"""Refusals that say nothing against who asks."""


class SlotLink(Protocol):
    """What is used of `node.client.NodeClient`."""

    def post_unlock(self, request: bytes, wait: int = 0) -> api.Promises: ...
    def post_proposal(self, proposal: bytes, record: bytes, wait: int = 0) -> api.Submitted: ...


class HoldSlot:
    """One writer's work on one hold's slot."""

    def __init__(
        self,
        federation: bytes,
        place: int,
        record: Record,
        key: Ed25519PrivateKey,
        keep: Callable[[Record, int], None],
    ) -> None:
        """`record` is what the writer signed for the slot. `keep(record, attempt)` stores a record before anybody
        sees it."""
        self.record = record
        self._federation = federation
        self._key = key
        self._keep = keep
        self._attempt = next(attempt for attempt in range(1, 3) if compute_turn(attempt, WRITERS) == place)

    def take_turn(self, link: SlotLink, epoch: int, wait_seconds: int) -> bytes | None:
        """Ask and propose once; the receipt of the proposed record if it became final in that time.

        Raises: Rejected when the members don't take this writer's word; Unreachable.
        """
        receipt = None
        try:
            promises = self._ask(link, wait_seconds)
            record = self._choose(promises, epoch) if promises.has_quorum and not promises.is_decided else None
            if record is not None:
                receipt = self._propose(link, promises, record, wait_seconds)
        except Rejected as rejection:
            if rejection.reason not in _PASSING_REASONS:
                raise
            if rejection.reason is not Reason.ATTEMPT_CLOSED:
                return None  # it may ask for this attempt later
        self._attempt += WRITERS
        return receipt

    def _ask(self, link: SlotLink, wait_seconds: int) -> api.Promises:
        signer = self._key.public_key().public_bytes_raw()
        request = sign_unlock_request(self._federation, self.record.slot, self._attempt, signer, self._key)
        return link.post_unlock(encode_signed(request), wait=wait_seconds)

    def _choose(self, promises: api.Promises, epoch: int) -> Record | None:
        """The forced record; else the writer's own, signed anew when its epoch has passed."""
        forced = compute_forced(
            Claim(Round(promise.version, promise.attempt), decode_address(AddressKind.RECORD, promise.record))
            for promise in promises.promises
            if promise.record is not None
        )
        if forced is None:
            return self._renew(epoch) if self.record.epoch < epoch else self.record
        for encoded in (self.record.encoded, *promises.records):
            try:
                record = decode_record(self._federation, encoded)
            except InvalidInput:
                continue
            if record.id == forced and record.slot == self.record.slot:
                return record
        return None  # the node names a record that it does not hand over: another turn, or another node, will tell

    def _renew(self, epoch: int) -> Record:
        it = self.record
        draft = RecordDraft(Kind(it.kind), epoch, it.scope, it.sequence, it.prev, it.body, it.signers)
        self.record = sign_record(self._federation, draft, [self._key])
        self._keep(self.record, self._attempt)
        return self.record

    def _propose(self, link: SlotLink, promises: api.Promises, record: Record, wait_seconds: int) -> bytes | None:
        batches = [promise.batch for promise in promises.promises]
        signer = self._key.public_key().public_bytes_raw()
        proposal = sign_slot_proposal(
            self._federation, self.record.slot, self._attempt, record.id, batches, signer, self._key
        )
        return link.post_proposal(encode_signed(proposal), record.encoded, wait=wait_seconds).receipt
