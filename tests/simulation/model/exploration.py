"""Every state that a setting can reach, breadth first, so that what is found wrong comes with a shortest trace.

A state is the numbers of the correct members' states, and of what an honest writer proposed, packed into one integer.
States that differ only by the names of interchangeable members or of records are one. What was said is never unsaid,
and who acts on it later acts as in a network that delays; so no messages are modelled.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import NamedTuple

from tests.simulation.model.existence import Existence, World
from tests.simulation.model.members import Table, describe, describe_round
from tests.simulation.model.progress import Progress
from tests.simulation.model.rules import REAL_RULES, Rules
from tests.simulation.model.settings import Setting

TWO_FINALS = "two records of one slot are final"
TWO_CERTIFICATES = "two records have a certificate in one round"
OVERRULED = "a certificate above a final record is for another record"
UNCERTIFIED = "a member committed without a certificate"

NUMBER_BITS = 20


class Finding(NamedTuple):
    """Something that must never happen, and the shortest way to it."""

    what: str
    trace: tuple[str, ...]


class Result(NamedTuple):
    """What exploring one setting gave."""

    setting: str
    states: int
    seconds: float
    is_complete: bool
    """Every reachable state was visited."""
    findings: tuple[Finding, ...]
    """The first of each kind, in the order in which they were met."""
    final_rounds: tuple[str, ...]
    """Rounds in which a record becomes final in some state."""


class Renaming(dict[int, int]):
    """The number of each member state after the records were given other names."""

    def __init__(self, table: Table, names: tuple[int, ...]) -> None:
        super().__init__()
        self._table, self._names = table, names

    def __missing__(self, number: int) -> int:
        renamed = self[number] = self._table.rename(number, self._names)
        return renamed


class Exploration:
    """One setting under one set of rules."""

    def __init__(self, setting: Setting, rules: Rules = REAL_RULES, *, has_symmetry: bool = True) -> None:
        self.setting = setting
        self.visited: dict[int, int] = {}
        """Each state and the one before it on a shortest way."""
        self.table = Table(setting, rules)
        self.existence = Existence(self.table)
        self.progress = Progress(self.table)
        self._member_count = len(setting.correct)
        self._slices = _compute_slices(setting.classes if has_symmetry else [(member,) for member in setting.correct])
        # An honest writer owns the first record, so the records of a hold's slot are not interchangeable.
        names = (
            list(permutations(range(setting.record_count)))[1:]
            if has_symmetry and setting.honest_writer is None
            else []
        )
        self._renamings = [Renaming(self.table, renamed) for renamed in names]
        self._verdicts: dict[tuple[int, int], str] = {}

    def explore(self, state_count_max: int | None = None, stop_at: frozenset[str] | None = None) -> Result:
        """Visit all states, or up to a number of them, or until one of the findings `stop_at` (None: any) turns up."""
        started = time.monotonic()
        start = self.canonicalize(self._make_start())
        parents = self.visited = {start: start}
        found: dict[str, int] = {}
        level, is_stopped, finals = [start], False, 0
        while level and not is_stopped:
            reached: list[int] = []
            for packed in level:
                state = self.unpack(packed)
                world = self.existence.compute_world(state)
                finals |= world.finals
                for what in self._find_wrong(state, world):
                    if what not in found:
                        found[what] = packed
                        is_stopped = is_stopped or stop_at is None or what in stop_at
                if is_stopped or (state_count_max is not None and len(parents) >= state_count_max):
                    is_stopped = True
                    break
                for then, _, _ in self._list_successors(state, world):
                    successor = self.canonicalize(then)
                    if successor not in parents:
                        parents[successor] = packed
                        reached.append(successor)
            level = reached
        seconds = time.monotonic() - started
        findings = tuple(Finding(what, self._trace(packed)) for what, packed in found.items())
        rounds = sorted({claim.round for number, claim in enumerate(self.table.claims) if finals >> number & 1})
        final_rounds = tuple(map(describe_round, rounds))
        return Result(self.setting.name, len(parents), seconds, not is_stopped, findings, final_rounds)

    # -- states -------------------------------------------------------------------------------------------------

    def _make_start(self) -> tuple[int, ...]:
        """Nobody has said anything; the last number holds an honest writer's proposals."""
        numbers = [self.table.make_start(index) for index, group in enumerate(self.setting.classes) for _ in group]
        return (*numbers, 0)

    def canonicalize(self, state: Sequence[int]) -> int:
        """One integer for all states that differ by names only."""
        numbers = list(state[:-1])
        best = self._pack(numbers, state[-1])
        for renaming in self._renamings:
            best = min(best, self._pack([renaming[number] for number in numbers], state[-1]))
        return best

    def _pack(self, numbers: list[int], packed: int) -> int:
        for first, last in self._slices:
            for number in sorted(numbers[first:last]):
                packed = packed << NUMBER_BITS | number
        return packed

    def unpack(self, packed: int) -> tuple[int, ...]:
        numbers = []
        for _ in range(self._member_count):
            numbers.append(packed & (1 << NUMBER_BITS) - 1)
            packed >>= NUMBER_BITS
        return (*reversed(numbers), packed)

    # -- steps --------------------------------------------------------------------------------------------------

    def _list_successors(self, state: Sequence[int], world: World) -> Iterator[tuple[tuple[int, ...], int, str]]:
        """Each state after one batch or one honest proposal; whose it was (a place, or -1 for the writer) and what."""
        disabled = ~world.enabled
        for first, last in self._slices:
            for place in range(first, last):
                number = state[place]
                if place > first and number == state[place - 1]:
                    continue  # an interchangeable member in the same state
                for step in self.table.get_steps(number):
                    if not step.needs & disabled:
                        yield (*state[:place], step.then, *state[place + 1 :]), place, step.text
        for place, records in world.choices:
            for record in range(self.setting.record_count):
                if records >> record & 1:
                    number = place * self.setting.record_count + record
                    yield (*state[:-1], state[-1] | 1 << number), -1, f"proposes {describe(self.table.claims[number])}"

    def _trace(self, packed: int) -> tuple[str, ...]:
        """The steps to a state, told with the same names throughout."""
        way = [packed]
        while self.visited[way[-1]] != way[-1]:
            way.append(self.visited[way[-1]])
        told = []
        state = self._make_start()
        for wanted in reversed(way[:-1]):
            world = self.existence.compute_world(state)
            for then, place, text in self._list_successors(state, world):
                if self.canonicalize(then) == wanted:
                    who = f"member {self.setting.correct[place]}" if place >= 0 else "the honest writer"
                    told.append(f"{who} {text}")
                    state = then
                    break
            else:
                raise AssertionError("a state is reached by a step of its parent")
        return tuple(told)

    # -- what must hold -----------------------------------------------------------------------------------------

    def _find_wrong(self, state: Sequence[int], world: World) -> Iterator[str]:
        key = (world.certificates, world.finals)
        verdict = self._verdicts.get(key)
        if verdict is None:
            verdict = self._verdicts[key] = self._judge(*key)
        if verdict:
            yield verdict
        committed = 0
        for number in state[:-1]:
            committed |= self.table.said[number].commits
            if self.table.problems[number]:
                yield self.table.problems[number]
        if committed & ~world.certificates:
            yield UNCERTIFIED
        problem = self.progress.find_problem(state, world)
        if problem:
            yield problem

    def _judge(self, certificates: int, finals: int) -> str:
        claims = self.table.claims
        certified = [claim for number, claim in enumerate(claims) if certificates >> number & 1]
        final = [claim for number, claim in enumerate(claims) if finals >> number & 1]
        if len({claim.record for claim in final}) > 1:
            return TWO_FINALS
        if any(higher.round > lower.round and higher.record != lower.record for lower in final for higher in certified):
            return OVERRULED
        if len({claim.round for claim in certified}) < len(certified):
            return TWO_CERTIFICATES
        return ""


def _compute_slices(classes: Sequence[tuple[int, ...]]) -> list[tuple[int, int]]:
    """Where each class of interchangeable members stands in a state."""
    slices, first = [], 0
    for group in classes:
        slices.append((first, first + len(group)))
        first += len(group)
    return slices
