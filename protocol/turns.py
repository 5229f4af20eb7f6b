"""Whose turn it is to ask for another attempt at a slot, by a member's own clock of running time (spec 5.8).

Where a slot has one writer it is always that writer's. Where several may write (payee and payer of a hold, the members
in a person's or the charter's scope), attempt a belongs to writer a mod k, and members answer it only when the turns
before are over. So nobody can keep the others from finishing by asking again and again. Clocks decide about progress
alone: whatever they show, no two records become final.
"""

from __future__ import annotations

from protocol.attempts import compute_turn, compute_turn_start
from protocol.errors import Reason, Rejected
from protocol.identifiers import Slot
from protocol.ledger import Ledger
from protocol.records import ScopeKind
from protocol.rules import Circumstances, find_turn

PAYER_TURN, PAYEE_TURN = 0, 1
"""Places among a hold's writers, as `find_turn` orders them."""

HOLD_WRITERS = 2


class Turns:
    """Since when this member knows of each open slot that has several writers."""

    def __init__(self) -> None:
        self._seen_seconds: dict[Slot, int] = {}

    def note_record(self, slot: Slot, circumstances: Circumstances) -> None:
        """A record for the slot came: attempt 0 begins, unless it has begun."""
        if slot[0][0] != ScopeKind.ACCOUNT:
            self._seen_seconds.setdefault(slot, circumstances.running_seconds)

    def forget(self, slot: Slot) -> None:
        """The slot is decided."""
        self._seen_seconds.pop(slot, None)

    def check_turn(
        self,
        ledger: Ledger,
        slot: Slot,
        signer: bytes,
        attempt: int,
        circumstances: Circumstances | None,
        promised: int = 0,
    ) -> None:
        """Raise `Rejected` unless the attempt is the signer's; with `circumstances`, unless its turn has begun, too.

        `promised`: the attempt that this member has promised. Its turn had begun then, also if that was in an earlier
        run of the node, so the clock goes on from there at the least.
        """
        writer = find_turn(ledger, slot[0], signer)
        if writer is None:
            raise Rejected(Reason.WRITER_WRONG, "the signer may not write in this slot")
        index, count = writer
        if count == 1:
            return
        if compute_turn(attempt, count) != index:
            raise Rejected(Reason.TURN_WRONG, f"attempt {attempt} belongs to another writer of this slot")
        if circumstances is None:
            return
        if slot[0][0] == ScopeKind.HOLD and index == PAYER_TURN:
            request = ledger.holds[slot[0][1:]].request
            if request not in circumstances.ripe_requests:
                raise Rejected(Reason.TURN_WRONG, "the payer's turns begin when the hold's grace has passed")
        begun_seconds = circumstances.running_seconds - compute_turn_start(promised, count)
        seen_seconds = self._seen_seconds[slot] = min(self._seen_seconds.get(slot, begun_seconds), begun_seconds)
        wait_seconds = seen_seconds + compute_turn_start(attempt, count) - circumstances.running_seconds
        if wait_seconds > 0:
            raise Rejected(Reason.TURN_WRONG, f"the turn of attempt {attempt} begins in {wait_seconds} s")
