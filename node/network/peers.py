"""Whom to call again, and when; whom to ignore for a while: the address book of a node.

Two small rules on plain values, with the time (seconds of any steady clock) passed in:

- **Calling again.** A lost or failed connection is tried again after a wait that doubles from 0.5 s to 30 s,
  and each wait is spread by a random factor of 0.5 to 1.5, so that a hundred members don't all call a
  restarted one at once. The wait starts afresh only after a connection has lasted: a peer that takes the
  call and hangs up is no success.
- **Standing.** A peer starts at 100 points; a fault costs points, time gives them back. Below zero the peer
  is shunned: disconnected, and refused in both directions, for five minutes. It returns with half the
  points. Shunning is always temporary, as a wrongly blamed peer must not be cut off for good: agreement
  needs a quorum to be reachable.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

BACKOFF_SECONDS_MIN = 0.5
BACKOFF_SECONDS_MAX = 30.0
STABLE_SECONDS = 10.0
"""A connection that lasted this long was a success, and its end is no failure of the peer."""

STANDING_FULL = 100.0
FAULT_SEVERITY = 20.0
"""Points of an ordinary fault: six in quick succession shun a peer."""

RECOVERY_PER_SECOND = 0.1
SHUN_SECONDS = 300.0

ADDRESSES_PER_PEER_MAX = 8


@dataclass
class _Entry:
    """A peer that we call ourselves."""

    addresses: tuple[str, ...]
    failures: int = 0
    due_seconds: float = 0.0
    connected_since: float | None = None
    is_being_called: bool = False


@dataclass
class _Standing:
    """What is remembered of a peer that did wrong. `points` hold for the moment `noted_seconds`."""

    points: float
    noted_seconds: float
    shunned_until: float = 0.0


class Peers:
    """The peers that a node calls, and the standing of all that did wrong.

    Invariant: a peer is called by one task at a time, and never while it is connected or shunned.
    """

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._entries: dict[str, _Entry] = {}
        self._standings: dict[str, _Standing] = {}

    def set_addresses(self, peers: Mapping[str, Sequence[str]], now: float) -> None:
        """Replace the peers to call. A known one keeps its history; new addresses are tried at once."""
        entries = {}
        for peer_id, addresses in peers.items():
            kept = tuple(addresses[:ADDRESSES_PER_PEER_MAX])
            entry = self._entries.get(peer_id) or _Entry(kept, due_seconds=now)
            if entry.addresses != kept:
                entry.addresses, entry.failures, entry.due_seconds = kept, 0, now
            entries[peer_id] = entry
        self._entries = entries

    def observe(self, connected: Collection[str], now: float) -> None:
        """Compare with who is connected now: a connection that ended early counts as a failure."""
        for peer_id, entry in self._entries.items():
            if peer_id in connected:
                if entry.connected_since is None:
                    entry.connected_since = now
            elif entry.connected_since is not None:
                lasted_seconds = now - entry.connected_since
                entry.connected_since = None
                entry.failures = 0 if lasted_seconds >= STABLE_SECONDS else entry.failures + 1
                entry.due_seconds = now + self._compute_wait(entry.failures)

    def take_due(self, now: float) -> list[tuple[str, tuple[str, ...]]]:
        """The peers to call now, with their addresses. Each must be followed by `note_call_ended`."""
        due = []
        for peer_id, entry in self._entries.items():
            is_idle = entry.connected_since is None and not entry.is_being_called
            if is_idle and entry.addresses and entry.due_seconds <= now and self.is_welcome(peer_id, now):
                entry.is_being_called = True
                due.append((peer_id, entry.addresses))
        return due

    def note_call_ended(self, peer_id: str, now: float, *, is_connected: bool) -> None:
        """The call that `take_due` asked for is over."""
        entry = self._entries.get(peer_id)
        if entry is None:
            return
        entry.is_being_called = False
        if is_connected:
            entry.connected_since = entry.connected_since if entry.connected_since is not None else now
        else:
            entry.failures += 1
            entry.due_seconds = now + self._compute_wait(entry.failures)

    def note_fault(self, peer_id: str, now: float, severity: float = FAULT_SEVERITY) -> bool:
        """Lower the standing; True if the peer is still welcome."""
        assert severity >= 0
        self._forget_forgiven(self._standings, now)
        standing = self._standings.setdefault(peer_id, _Standing(STANDING_FULL, now))
        if now < standing.shunned_until:
            return False
        standing.points = self._compute_points(standing, now) - severity
        standing.noted_seconds = now
        if standing.points < 0:
            # The points hold for the end of the shunning, from where they recover as ever.
            standing.shunned_until = standing.noted_seconds = now + SHUN_SECONDS
            standing.points = STANDING_FULL / 2
            return False
        return True

    def is_welcome(self, peer_id: str, now: float) -> bool:
        """May this peer be called, and may it call us?"""
        standing = self._standings.get(peer_id)
        return standing is None or now >= standing.shunned_until

    def compute_standing(self, peer_id: str, now: float) -> float:
        """Points from 0 to 100; 0 while the peer is shunned."""
        standing = self._standings.get(peer_id)
        if standing is None:
            return STANDING_FULL
        return self._compute_points(standing, now) if now >= standing.shunned_until else 0.0

    def _compute_wait(self, failures: int) -> float:
        # The exponent is bounded so that a peer that is away for months makes no huge number.
        wait_seconds = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN * 2.0 ** min(failures, 16))
        return wait_seconds * self._chance.uniform(0.5, 1.5)

    @staticmethod
    def _compute_points(standing: _Standing, now: float) -> float:
        regained = max(0.0, now - standing.noted_seconds) * RECOVERY_PER_SECOND
        return min(STANDING_FULL, standing.points + regained)

    def _forget_forgiven(self, peer_ids: Iterable[str], now: float) -> None:
        """Keeps the table small: a peer with all its points and no entry are the same."""
        for peer_id in list(peer_ids):
            standing = self._standings[peer_id]
            if now >= standing.shunned_until and self._compute_points(standing, now) >= STANDING_FULL:
                del self._standings[peer_id]
