"""Which of the batches that came may be admitted now, and in which order.

A batch goes in after all that it rests on. What lacks its past is parked until that comes; what nobody needs is left
out: further branches of forked logs, and what members say that left the federation (spec 4.7, 10.4).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from node.network.parking import Parking
from protocol.batches import Batch
from protocol.replica import LogName, Replica, get_log_name


class Arrivals:
    """The way of signed batches into one replica."""

    def __init__(
        self,
        replica: Replica,
        may_enter: Callable[[Batch, str], bool],
        note_missing_past: Callable[[str, LogName], None],
    ) -> None:
        """`may_enter(batch, peer)` keeps a batch, or says that its log may grow by it now; `note_missing_past(peer,
        log)` hears of the peers that sent batches of that log without what they rest on."""
        self._replica = replica
        self._may_enter = may_enter
        self._note_missing_past = note_missing_past
        self._parking = Parking()

    def choose(self, signed_batches: Sequence[Batch], peer: str) -> list[Batch]:
        """Those whose past is here or comes before them, parents first, with what was parked for them.

        A batch of a charter version that is not in force here is left out: the adoptions in its past are not here yet,
        and it comes again with them.
        """
        arrived = [batch for batch in signed_batches if batch.header.charter_version <= self._replica.version]
        return self._order([(batch, peer) for batch in self._leave_out_unwanted(arrived)])

    def list_ignored_logs(self) -> frozenset[LogName]:
        """Logs of which no further batches are wanted, while nothing of theirs is missing here: those that are forked,
        and those of members that left the federation.

        None while a charter is final here and not in force: others may have entered it by what an equivocator adopted
        on a branch that is ignored here, and a member that leaves with it says nothing more that rests on that."""
        unwanted = self._list_unwanted_logs()
        is_changing = self._replica.version + 1 in self._replica.ledger.charters
        return frozenset() if unwanted and (is_changing or self._parking.has_waiting(unwanted)) else unwanted

    def _list_unwanted_logs(self) -> frozenset[LogName]:
        before = range(self._replica.version)
        charters, members = self._replica.ledger.charters, self._replica.charter.members
        left = [
            (number, version) for version in before for number in charters[version].members if number not in members
        ]
        forked = frozenset() if self._replica.is_outnumbered else self._replica.forked_logs
        return forked.union(left)

    def _leave_out_unwanted(self, arrived: list[Batch]) -> list[Batch]:
        """Without what is added to forked logs, and by members that left, unless a batch of another log rests on it
        (spec 4.7). While one waits for what it rests on, all is taken in: how deep its past is, no single piece of it
        tells."""
        unwanted = self.list_ignored_logs()
        if not unwanted:
            return arrived
        by_id = {batch.id: batch for batch in arrived}
        kept = {batch.id for batch in arrived if get_log_name(batch.header) not in unwanted}
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
                self._note_missing_past(peer, get_log_name(batch.header))
                continue
            if not self._replica.is_linked(batch, admissible):
                continue  # its member's fault; whoever passed it on could not know
            if not self._may_enter(batch, peer):
                continue
            admissible[batch.id] = batch
            queue.extendleft(self._parking.release(batch.id))
        return list(admissible.values())
