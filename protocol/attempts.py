"""How one slot is decided, and freed when its owner signed two records: rounds, promises, what binds a vote.

Members vote and commit in rounds; the lowest is the ordinary one. When no record of a slot can reach a certificate,
its owner asks for a new attempt: members promise to do nothing below it any more and report the highest certificate
that they acted on; the owner proposes the record that a quorum of reports allows. This is single-decree PBFT with the
slot's owner as the only proposer, so it needs no consensus among members.

Here are the rules alone, as functions of what one member has said about one slot; no signature, weight or clock. The
member's state machine (`voting.py`) and the exhaustive exploration of all schedules call the same functions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

TURN_SECONDS = 10
"""Length of the first turn where a slot has several writers; each time all had theirs, it doubles."""


class Round(NamedTuple):
    """What votes must share to add up; compared as a pair, so a later charter version comes after all attempts."""

    version: int
    attempt: int


FIRST_ROUND = Round(0, 0)


class Claim(NamedTuple):
    """A record in a round: what a member voted for or committed to, or what has a certificate."""

    round: Round
    record: bytes


class SlotMemory(NamedTuple):
    """What one member has said about one slot."""

    voted: Claim | None = None
    """Its vote in the highest round in which it voted."""
    committed: Claim | None = None
    """Its commit in the highest round in which it committed."""
    promised: Round = FIRST_ROUND
    """It says nothing in any round below."""


NOTHING_SAID = SlotMemory()


def may_vote(memory: SlotMemory, claim: Claim) -> bool:
    """True when a vote breaks no promise and contradicts no other vote of this round or a later one (spec 5.2)."""
    if claim.round < memory.promised:
        return False
    return memory.voted is None or memory.voted.round < claim.round or memory.voted == claim


def may_commit(memory: SlotMemory, claim: Claim) -> bool:
    """True when a commit breaks no promise and contradicts no other commit; the certificate is the caller's to see."""
    if claim.round < memory.promised:
        return False
    return memory.committed is None or memory.committed.round < claim.round or memory.committed == claim


def may_promise(memory: SlotMemory, promised: Round) -> bool:
    """True when the member has neither promised as much before nor committed in that round or later.

    The second, because a promise reports the highest commit *below* its round, and only the highest is remembered.
    """
    return memory.promised < promised and (memory.committed is None or memory.committed.round < promised)


def apply_vote(memory: SlotMemory, claim: Claim) -> SlotMemory:
    """After a vote."""
    if memory.voted is not None and memory.voted.round >= claim.round:
        return memory
    return SlotMemory(claim, memory.committed, memory.promised)


def apply_commit(memory: SlotMemory, claim: Claim) -> SlotMemory:
    """After a commit."""
    if memory.committed is not None and memory.committed.round >= claim.round:
        return memory
    return SlotMemory(memory.voted, claim, memory.promised)


def apply_promise(memory: SlotMemory, promised: Round) -> SlotMemory:
    """After a promise."""
    return memory._replace(promised=max(memory.promised, promised))


def compute_report(memory: SlotMemory, bound: Claim | None) -> Claim | None:
    """What a promise reports: the member's highest commit, or the certificate that binds it from the charter versions
    before, whichever is higher.

    Why both: a quorum of commits shares a correct member with every quorum of promises, and this one tells of it;
    over a change of the charter the certificate in the hand-over takes that member's place.
    """
    return max((claim for claim in (memory.committed, bound) if claim is not None), default=None)


def compute_forced(reports: Iterable[Claim | None]) -> bytes | None:
    """The only record that may be proposed after a quorum of promises with these reports, or None: any record.

    Each report must show a certificate; a claim without one is no report at all.
    """
    highest = max((report for report in reports if report is not None), default=None)
    return highest.record if highest is not None else None


def compute_bound(certificates: Iterable[Claim | None]) -> Claim | None:
    """What binds a member that enters a charter version: the highest certificate of the versions before that it sees
    for the slot (spec 9.7)."""
    return max((claim for claim in certificates if claim is not None), default=None)


def compute_turn(attempt: int, writer_count: int) -> int:
    """Which of a slot's writers, in their order, may ask for an attempt: they take turns."""
    return attempt % writer_count


def compute_turn_start(attempt: int, writer_count: int) -> int:
    """Seconds after a member first saw a record in the slot at which the turn of an attempt begins.

    A slot with one writer has no turns: its owner can only be in its own way. Attempt 0 is everybody's and its turn
    is the first; the turns of one round of all writers are equally long, those of the next twice as long. So however
    slow the network is, some turn of each writer is long enough for it to finish.
    """
    if writer_count == 1:
        return 0
    rounds, turns = divmod(attempt, writer_count)
    return TURN_SECONDS * (writer_count * ((1 << rounds) - 1) + (turns << rounds))
