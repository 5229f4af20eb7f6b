"""How fast each member's log may grow here: at the charter's byte rate, later rather than never (spec 10.5).

Each member has a bucket that fills at the rate and holds what comes in ten seconds. A batch enters while anything is in
its member's bucket, and takes its bytes out, if need be below empty; so on average no member's logs grow faster than
the rate, whatever it signs. A batch for which there is nothing left is *held*: one for each member, for those behind it
wait for it as for any missing past.

History does not wait. A batch that members of weight above W - q say they hold was let in by at least one correct
member, whose own bucket had counted it; so a node that was away catches up at full speed, and members that work
together can't vouch for a flood. History is counted all the same, or a flood could use up the buckets of all correct
members in turn. No rule reads the time that a batch names; times here are seconds of our own clock, passed in.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from protocol.batches import Batch
from protocol.messages import LogHead
from protocol.replica import LogName, Replica, get_log_name

BURST_SECONDS = 10
"""What a member may save up: a quiet member's burst of payments waits for nothing."""


class Held(NamedTuple):
    batch: Batch
    peer: str


class LogRates:
    """The buckets of all logs, and the batch that each log holds back.

    Invariants: a bucket holds at most its burst; a held batch's past is here.
    """

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._levels: dict[int, tuple[float, float]] = {}
        """Member -> (bytes left, at this time); a log that is not named has a full bucket."""
        self._heads: dict[LogName, dict[int, int]] = {}
        """Log -> member -> the highest index of that log that the member said it holds."""
        self._held: dict[int, Held] = {}

    @property
    def _bytes_per_second(self) -> int:
        return self._replica.charter.policy.log_bytes_per_second

    def note_heads(self, teller: int, heads: Iterable[LogHead]) -> None:
        """A member told what it holds."""
        for head in heads:
            if head.member in self._replica.charter.weights:
                told = self._heads.setdefault((head.member, head.version), {})
                told[teller] = max(head.index, told.get(teller, -1))

    def is_history(self, batch: Batch) -> bool:
        """True when at least one correct member holds what stands at this place of the log."""
        told = self._heads.get(get_log_name(batch.header), {})
        charter = self._replica.charter
        holders = [teller for teller, index in told.items() if index >= batch.header.index]
        weight = sum(charter.weights.get(teller, 0) for teller in holders)
        return weight > charter.total_weight - charter.quorum

    def admit(self, batch: Batch, peer: str, now: float) -> bool:
        """Let the batch in and count it, or hold it until the log's bucket has filled a little."""
        member = batch.header.member
        if self._compute_pause(batch, now) > 0:
            self._held[member] = Held(batch, peer)
            return False
        level = self._compute_level(member, now)
        left = level - len(batch.encoded)
        # History empties the bucket, but leaves no debt: what it costs more than that is forgiven.
        self._levels[member] = (max(left, min(level, 0.0)) if self.is_history(batch) else left, now)
        return True

    def count_own(self, batch: Batch, now: float) -> None:
        """A batch of our own was added to our log."""
        member = batch.header.member
        self._levels[member] = (self._compute_level(member, now) - len(batch.encoded), now)

    def compute_wait(self, member: int, now: float) -> float:
        """Seconds until the log may grow; 0 when it may now."""
        level = self._compute_level(member, now)
        return 0.0 if level > 0 else (1 - level) / self._bytes_per_second

    def _compute_level(self, member: int, now: float) -> float:
        full = float(self._bytes_per_second * BURST_SECONDS)
        level, noted = self._levels.get(member, (full, now))
        return min(full, level + max(0.0, now - noted) * self._bytes_per_second)

    def list_held_logs(self) -> frozenset[LogName]:
        """Logs of members of which a batch is held: fetching more of them is of no use yet."""
        return frozenset((member, version) for member in self._held for version in self._replica.ledger.charters)

    def compute_pause(self, now: float) -> float:
        """Seconds until a held batch may enter; infinite when none is held."""
        return min((self._compute_pause(held.batch, now) for held in self._held.values()), default=float("inf"))

    def _compute_pause(self, batch: Batch, now: float) -> float:
        return 0.0 if self.is_history(batch) else self.compute_wait(batch.header.member, now)

    def release(self, now: float) -> list[Held]:
        """Take out the held batches that may enter now."""
        due = [member for member, held in self._held.items() if self._compute_pause(held.batch, now) == 0]
        return [self._held.pop(member) for member in due]
