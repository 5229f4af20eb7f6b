"""Which of the batches that came may be admitted now, and in which order.

A batch goes in after all that it rests on. What lacks its past is parked until that comes; what nobody needs is left
out: further branches of proven equivocators, and what members say that left the federation (spec 4.7, 10.4).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from node.network.parking import Parking
from protocol.batches import Batch
from protocol.replica import Replica


class Arrivals:
    """The way of signed batches into one replica."""

    def __init__(
        self,
        replica: Replica,
        may_enter: Callable[[Batch, str], bool],
        note_missing_past: Callable[[str, int], None],
    ) -> None:
        """`may_enter(batch, peer)` keeps a batch, or says that its log may grow by it now; `note_missing_past(peer,
        member)` hears of the peers that sent such batches."""
        self._replica = replica
        self._may_enter = may_enter
        self._note_missing_past = note_missing_past
        self._parking = Parking()
        self._shown_version = 0
        """The highest charter version of which anybody showed a batch."""

    def choose(self, signed_batches: Sequence[Batch], peer: str) -> list[Batch]:
        """Those whose past is here or comes before them, parents first, with what was parked for them.

        A batch of a charter version that is not in force here is left out: the adoptions in its past are not here yet,
        and it comes again with them.
        """
        arrived = [batch for batch in signed_batches if batch.header.charter_version <= self._replica.version]
        return self._order([(batch, peer) for batch in self._leave_out_unwanted(arrived)])

    def note_version(self, version: int) -> None:
        """Somebody showed a batch of this charter version. If it is not in force here, others may have entered it by
        what a proven equivocator said on a branch that is ignored here; so nothing is, until it is in force."""
        if version in self._replica.ledger.charters:  # not what a member that lies invents
            self._shown_version = max(self._shown_version, version)

    def list_ignored_logs(self) -> frozenset[int]:
        """Members whose further batches are not wanted, while nothing of theirs is missing here: those that
        contradicted themselves, and those that left the federation. None while a later charter version was shown."""
        unwanted = self._list_unwanted_members()
        is_behind = self._shown_version > self._replica.version
        return frozenset() if unwanted and (is_behind or self._parking.has_waiting(unwanted)) else unwanted

    def _list_unwanted_members(self) -> frozenset[int]:
        charters = self._replica.ledger.charters
        left = {number for version in range(self._replica.version) for number in charters[version].members}
        return self._replica.forked_members | (left - self._replica.charter.members.keys())

    def _leave_out_unwanted(self, arrived: list[Batch]) -> list[Batch]:
        """Without what proven equivocators and members that left add, unless a batch of another member rests on it
        (spec 4.7). While one waits for what it rests on, all is taken in: how deep its past is, no single piece of it
        tells."""
        unwanted = self.list_ignored_logs()
        if not unwanted:
            return arrived
        by_id = {batch.id: batch for batch in arrived}
        kept = {batch.id for batch in arrived if batch.header.member not in unwanted}
        wanted = deque(parent for batch_id in kept for parent in by_id[batch_id].parents)
        while wanted:
            batch = by_id.get(wanted.popleft())
            if batch is not None and batch.id not in kept:
                kept.add(batch.id)
                wanted.extend(batch.parents)
        return [batch for batch in arrived if batch.id in kept]

    def _order(self, arrived: list[tuple[Batch, str]]) -> list[Batch]:
        """Those whose past is here or comes before them, parents first; the others are parked, or held (spec 10.5)."""
        admissible: dict[bytes, Batch] = {}
        queue = deque(arrived)
        while queue:
            batch, peer = queue.popleft()
            if batch.id in self._replica or batch.id in admissible:
                continue
            missing = [parent for parent in self._replica.get_missing_parents(batch) if parent not in admissible]
            if missing:
                self._parking.park(batch, missing, peer)
                self._note_missing_past(peer, batch.header.member)
                continue
            if not self._replica.is_linked(batch, admissible):
                continue  # its member's fault; whoever passed it on could not know
            if not self._may_enter(batch, peer):
                continue
            admissible[batch.id] = batch
            queue.extendleft(self._parking.release(batch.id))
        return list(admissible.values())
