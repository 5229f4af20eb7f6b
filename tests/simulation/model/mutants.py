"""Each rule once more, broken: a model that does not notice shows nothing.

A mutant that no exploration catches must be explained: then the rule is no pillar of safety, and its reason to exist is
another one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from protocol.attempts import Claim, Round, SlotMemory, compute_report
from tests.simulation.model.exploration import TWO_FINALS, Exploration, Result
from tests.simulation.model.rules import Rules
from tests.simulation.model.settings import (
    Setting,
    make_charter_setting,
    make_faultless_setting,
    make_hold_settings,
    make_slot_settings,
)


class Mutant(NamedTuple):
    """One broken rule."""

    name: str
    rules: Rules
    setting: Setting
    """Where it is caught, or is not."""
    explanation: str = ""
    """Why breaking the rule breaks no promise, where that is so."""


def _half(weight: int) -> int:
    return weight // 2


def _vote_twice(memory: SlotMemory, claim: Claim) -> bool:
    return claim.round >= memory.promised and (memory.voted is None or memory.voted.round <= claim.round)


def _vote_below_vote(memory: SlotMemory, claim: Claim) -> bool:
    return claim.round >= memory.promised and (memory.voted is None or memory.voted.round != claim.round)


def _vote_below_promise(memory: SlotMemory, claim: Claim) -> bool:
    return memory.voted is None or memory.voted.round < claim.round or memory.voted == claim


def _commit_below_promise(memory: SlotMemory, claim: Claim) -> bool:
    return memory.committed is None or memory.committed.round < claim.round or memory.committed == claim


def _commit_twice(memory: SlotMemory, claim: Claim) -> bool:
    return claim.round >= memory.promised and (memory.committed is None or memory.committed.round <= claim.round)


def _commit_below_commit(memory: SlotMemory, claim: Claim) -> bool:
    return claim.round >= memory.promised and (memory.committed is None or memory.committed.round != claim.round)


def _promise_anything(memory: SlotMemory, promised: Round) -> bool:
    return memory.promised < promised


def _promise_below_promise(memory: SlotMemory, promised: Round) -> bool:
    return memory.committed is None or memory.committed.round < promised


def _forget(memory: SlotMemory, _: object) -> SlotMemory:
    return memory


def _report_bound_alone(memory: SlotMemory, bound: Claim | None) -> Claim | None:
    return bound


def _report_commit_alone(memory: SlotMemory, bound: Claim | None) -> Claim | None:
    return memory.committed


def _report_bound_first(memory: SlotMemory, bound: Claim | None) -> Claim | None:
    return bound or compute_report(memory, None)


def _choose_lowest(claims: Iterable[Claim | None]) -> Claim | None:
    return min((claim for claim in claims if claim is not None), default=None)


def _force_lowest(reports: Iterable[Claim | None]) -> bytes | None:
    lowest = _choose_lowest(reports)
    return lowest.record if lowest is not None else None


def _ignore(_: Iterable[Claim | None]) -> None:
    return None


def _use_memory_at_start(at_start: SlotMemory, now: SlotMemory) -> SlotMemory:
    return at_start


SLOT = [next(make_slot_settings(bound)) for bound in range(3)]
HOLD = next(make_hold_settings(1))

_SLOT_MUTANTS = (
    Mutant("a quorum is half of the weight", Rules(compute_quorum=_half), SLOT[0]),
    Mutant("votes for two records in a round", Rules(may_vote=_vote_twice), SLOT[0]),
    Mutant("votes below its highest vote", Rules(may_vote=_vote_below_vote), SLOT[1]),
    Mutant(
        "votes below its promise",
        Rules(may_vote=_vote_below_promise),
        SLOT[2],
        "promises report commits, not votes; so a vote after the promise reaches only states that the same vote before "
        "it reaches, too. With the rule `promised` means one thing for all that a member says",
    ),
    Mutant("forgets its vote", Rules(apply_vote=_forget), SLOT[0]),
    Mutant("commits without a certificate", Rules(needs_certificate=False), SLOT[1]),
    Mutant("commits below its promise", Rules(may_commit=_commit_below_promise), SLOT[1]),
    Mutant(
        "commits to two records in a round",
        Rules(may_commit=_commit_twice),
        SLOT[2],
        "a round has one certificate at most, so there is nothing else to commit to. The rule convicts members when a "
        "third or more are faulty",
    ),
    Mutant(
        "commits below its highest commit",
        Rules(may_commit=_commit_below_commit),
        SLOT[2],
        "a lower commit that no promise forbids could as well have come first. With the rule it is enough to remember "
        "one commit",
    ),
    Mutant("forgets its commit", Rules(apply_commit=_forget), SLOT[1]),
    Mutant("a promise hides a commit", Rules(compute_report=_report_bound_alone), SLOT[1]),
    Mutant(
        "reports what it knew before a commit of the same batch",
        Rules(get_memory_of_report=_use_memory_at_start),
        SLOT[1],
    ),
    Mutant(
        "commits by what it knew before a promise of the same batch",
        Rules(get_memory_of_commit=_use_memory_at_start),
        SLOT[1],
    ),
    Mutant("promises where it committed, or below", Rules(may_promise=_promise_anything), SLOT[1]),
    Mutant(
        "promises below its promise",
        Rules(may_promise=_promise_below_promise),
        SLOT[2],
        "the later promise reports at least as much as it would have before, for its round is above every commit, and "
        "the higher promise stays in force. With the rule a member promises each round once",
    ),
    Mutant("forgets its promise", Rules(apply_promise=_forget), SLOT[1]),
    Mutant("the lowest report forces", Rules(compute_forced=_force_lowest), SLOT[2]),
    Mutant(
        "votes of two proposals of one record add up",
        Rules(),
        SLOT[1],
        "they do in this model, always: a correct member votes for one record in a round, and each proposal of it must "
        "stand on promises of its own. With the rule a certificate shows one proposal, the only one to check",
    ),
    Mutant("half of the weight in promises suffices", Rules(compute_promise_quorum=_half), SLOT[1]),
    Mutant("a proposal ignores the reports", Rules(compute_forced=_ignore), SLOT[1]),
    Mutant(
        "a report need not be below the promised round",
        Rules(is_report_below=False),
        SLOT[2],
        "only a faulty member reports such a certificate, and every certificate above a final record is for that "
        "record. With the rule a proposal rests on earlier rounds alone, and so does the proof",
    ),
)

_HOLD_MUTANTS = (Mutant("both writers propose at one attempt", Rules(is_turn=lambda *_: True), HOLD),)

_CHARTER_MUTANTS = (
    Mutant(
        "votes of two versions add up",
        Rules(do_votes_add_up=lambda one, other: one.attempt == other.attempt),
        make_charter_setting(0, 0, 4, 5),
    ),
    Mutant(
        "commits in a version after it adopted the next",
        Rules(apply_adopt=_forget),
        make_charter_setting(0, 0, 4, 5),
    ),
    Mutant("nothing is handed over", Rules(compute_bound=_ignore), make_charter_setting(0, 0, 4, 5)),
    Mutant("the lowest certificate binds", Rules(compute_bound=_choose_lowest), make_faultless_setting(1, 0, (1, 2))),
    Mutant("who is bound votes freely", Rules(binds_first_votes=False), make_charter_setting(0, 0, 4, 5)),
    Mutant(
        "a report forgets what binds", Rules(compute_report=_report_commit_alone), make_faultless_setting(0, 1, (3, 4))
    ),
    Mutant(
        "a report names what binds, not a later commit",
        Rules(compute_report=_report_bound_first),
        make_charter_setting(0, 1, 4, 5),
    ),
    Mutant(
        "enters a version that nobody adopted",
        Rules(compute_adopt_quorum=lambda weight: 0),
        make_charter_setting(0, 0, 1),
    ),
    Mutant("half of the weight adopts", Rules(compute_adopt_quorum=_half), make_charter_setting(0, 0, 1)),
)

MUTANTS = {"slot": _SLOT_MUTANTS, "hold": _HOLD_MUTANTS, "charter": _CHARTER_MUTANTS}


def try_mutant(mutant: Mutant, state_count_max: int | None = None, *, to_two_finals: bool = False) -> Result:
    """Explore the mutant's setting until it is caught, or on until two records are final."""
    stop_at = frozenset({TWO_FINALS}) if to_two_finals else None
    return Exploration(mutant.setting, mutant.rules).explore(state_count_max, stop_at)
