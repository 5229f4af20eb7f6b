"""Those who wait until something is known here: that a record is final, or that a quorum promised to leave a slot."""

from __future__ import annotations

import trio

from node.submissions import Submissions
from protocol.attempts import Round
from protocol.contests import PromiseGiven, Slot
from protocol.replica import Admission, Replica


class Waiting:
    """Wakes them as batches are admitted."""

    def __init__(self, replica: Replica, submissions: Submissions) -> None:
        self._replica = replica
        self._submissions = submissions
        self._final_events: dict[bytes, trio.Event] = {}
        self._has_promises = trio.Event()
        """Set, and replaced, when a batch came in for which those may wait who asked for promises."""

    def note_admission(self, admission: Admission) -> None:
        """Tell those for whom this batch is news; a record that is final needs no introduction any more."""
        if self._has_promises.statistics().tasks_waiting:
            self._has_promises.set()
            self._has_promises = trio.Event()
        if not self._final_events and not self._submissions:
            return
        for introduction, mask in admission.final:
            for position, record_id in enumerate(introduction.ids):
                if mask >> position & 1:
                    self._submissions.discard(record_id)
                    self.wake(record_id)

    def wake(self, record_id: bytes) -> None:
        """Tell those who wait for the record that its fate is known."""
        event = self._final_events.pop(record_id, None)
        if event is not None:
            event.set()

    async def wait_final(self, record_id: bytes, timeout_seconds: float) -> bool:
        """Wait until the record is final here. Raises: Rejected when this node gave it up while it waited."""
        if self._replica.is_final(record_id):
            return True
        event = self._final_events.setdefault(record_id, trio.Event())
        with trio.move_on_after(timeout_seconds):
            await event.wait()
        if event.statistics().tasks_waiting == 0:
            self._final_events.pop(record_id, None)
        self._submissions.raise_failure(record_id)
        return self._replica.is_final(record_id)

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
            while not (self._replica.ledger.is_decided(*slot) or self._has_promised_quorum(slot, attempt)):
                await self._has_promises.wait()
        return self._replica.ledger.is_decided(*slot) or self._has_promised_quorum(slot, attempt)

    def _has_promised_quorum(self, slot: Slot, attempt: int) -> bool:
        charter = self._replica.charter
        promises = self.get_promises(slot, attempt).values()
        return sum(charter.weights.get(promise.member, 0) for promise in promises) >= charter.quorum
