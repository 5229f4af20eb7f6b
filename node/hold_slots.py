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
from protocol.attempts import Claim, Round, compute_forced
from protocol.errors import InvalidInput, Reason, Rejected
from protocol.records import Record, decode_record
from protocol.statements import encode_signed, sign_slot_proposal, sign_unlock_request
from protocol.turns import HOLD_WRITERS

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from node import api

_TOO_EARLY = frozenset({Reason.TURN_WRONG, Reason.SLOT_TAKEN, Reason.CHARTER_CHANGING, Reason.REFERENCE_MISSING})
"""Refusals after which the same attempt may be asked for again; or the hold has ended."""


def find_forced(promises: api.Promises) -> bytes | None:
    """The record that promises force, as a node tells them; None: any record may be proposed."""
    return compute_forced(
        Claim(Round(promise.version, promise.attempt), decode_address(AddressKind.RECORD, promise.record))
        for promise in promises.promises
        if promise.record is not None
    )


class SlotLink(Protocol):
    """What is used of `node.client.NodeClient`."""

    def post_unlock(self, request: bytes, wait: int = 0) -> api.Promises: ...
    def post_proposal(self, proposal: bytes, record: bytes, wait: int = 0) -> api.Submitted: ...


class HoldSlot:
    """One writer's turns at one hold's slot: each attempt is asked for once and no more."""

    def __init__(
        self,
        federation: bytes,
        place: int,
        key: Ed25519PrivateKey,
        attempted: int,
        keep: Callable[[Record, int], None],
    ) -> None:
        """`attempted` is the last attempt that was kept before, 0 if none. `keep(record, attempt)` stores that this
        writer proposes its record there, before anybody sees it."""
        self.attempt = attempted + 1 + (place - attempted - 1) % HOLD_WRITERS
        """The next one that is this writer's."""
        self._federation = federation
        self._key = key
        self._public_key = key.public_key().public_bytes_raw()
        self._keep = keep

    def take_turn(self, link: SlotLink, record: Record, wait_seconds: int) -> bytes | None:
        """Ask once, and propose what the promises force or else `record`, which is this writer's; the receipt of what
        was proposed if it became final in that time.

        Raises: Rejected when members refuse what is asked or proposed for good; Unreachable.
        """
        receipt = None
        try:
            promises = self._ask(link, record, wait_seconds)
            if promises.has_quorum and not promises.is_decided:
                receipt = self._propose(link, record, promises, wait_seconds)
        except Rejected as rejection:
            if rejection.reason in _TOO_EARLY:
                return None
            self.attempt += HOLD_WRITERS
            if rejection.reason is not Reason.ATTEMPT_CLOSED:
                raise
            return None
        self.attempt += HOLD_WRITERS
        return receipt

    def _ask(self, link: SlotLink, record: Record, wait_seconds: int) -> api.Promises:
        request = sign_unlock_request(self._federation, record.slot, self.attempt, self._public_key, self._key)
        return link.post_unlock(encode_signed(request), wait=wait_seconds)

    def _propose(self, link: SlotLink, own: Record, promises: api.Promises, wait_seconds: int) -> bytes | None:
        record = self._choose(own, promises)
        if record is None:
            return None
        if record == own:
            self._keep(own, self.attempt)
        batches = [promise.batch for promise in promises.promises]
        proposal = sign_slot_proposal(
            self._federation, record.slot, self.attempt, record.id, batches, self._public_key, self._key
        )
        return link.post_proposal(encode_signed(proposal), record.encoded, wait=wait_seconds).receipt

    def _choose(self, own: Record, promises: api.Promises) -> Record | None:
        """The forced record, else the writer's own; None when the node does not hand over what is forced."""
        forced = find_forced(promises)
        if forced is None:
            return own
        for encoded in (own.encoded, *promises.records):
            try:
                record = decode_record(self._federation, encoded)
            except InvalidInput:
                continue
            if record.id == forced and record.slot == own.slot:
                return record
        return None
