"""The rules that the model follows: the real functions of `protocol.attempts`, each of which a mutant may replace."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from protocol import attempts
from protocol.attempts import Claim, Round, SlotMemory
from protocol.charter import compute_quorum


def is_turn(attempt: int, writer_count: int, writer: int) -> bool:
    """True when this one of a slot's writers may propose at the attempt."""
    return attempts.compute_turn(attempt, writer_count) == writer


def do_votes_add_up(one: Round, other: Round) -> bool:
    """True when votes of the two rounds count toward one certificate."""
    return one == other


def use_memory_now(at_start: SlotMemory, now: SlotMemory) -> SlotMemory:
    """By which memory a statement is judged inside a batch: the one that the batch's earlier statements left."""
    return now


class Rules(NamedTuple):
    """What correct members do. Every default is the rule in force."""

    compute_quorum: Callable[[int], int] = compute_quorum
    compute_promise_quorum: Callable[[int], int] = compute_quorum
    compute_adopt_quorum: Callable[[int], int] = compute_quorum
    may_vote: Callable[[SlotMemory, Claim], bool] = attempts.may_vote
    may_commit: Callable[[SlotMemory, Claim], bool] = attempts.may_commit
    may_promise: Callable[[SlotMemory, Round], bool] = attempts.may_promise
    apply_vote: Callable[[SlotMemory, Claim], SlotMemory] = attempts.apply_vote
    apply_commit: Callable[[SlotMemory, Claim], SlotMemory] = attempts.apply_commit
    apply_promise: Callable[[SlotMemory, Round], SlotMemory] = attempts.apply_promise
    apply_adopt: Callable[[SlotMemory, Round], SlotMemory] = attempts.apply_promise
    """To adopt a charter version is to promise its first round in every slot: it silences all rounds before."""
    compute_report: Callable[[SlotMemory, Claim | None], Claim | None] = attempts.compute_report
    compute_forced: Callable[[Iterable[Claim | None]], bytes | None] = attempts.compute_forced
    compute_bound: Callable[[Iterable[Claim | None]], Claim | None] = attempts.compute_bound
    get_memory_of_commit: Callable[[SlotMemory, SlotMemory], SlotMemory] = use_memory_now
    get_memory_of_report: Callable[[SlotMemory, SlotMemory], SlotMemory] = use_memory_now
    is_turn: Callable[[int, int, int], bool] = is_turn
    do_votes_add_up: Callable[[Round, Round], bool] = do_votes_add_up
    needs_certificate: bool = True
    """A commit rests on a certificate."""
    binds_first_votes: bool = True
    """At attempt 0 of a version a bound member votes for the bound record alone."""
    is_report_below: bool = True
    """A promise counts only when the round that it reports is below its own."""


REAL_RULES = Rules()
