"""That an honest owner is never locked out: what is checked in every state beside safety.

From every state in which the faulty members fall silent for good, one more attempt of an honest owner makes a record
final. And the last attempt of a slot with two writers belongs to the honest one: when the correct members have said
all that they can in it, a record is final, whatever the other writer and the faulty members did meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence

from protocol.attempts import Claim, Round
from tests.simulation.model.existence import Existence, World
from tests.simulation.model.members import NOTHING, UNSAID, Table
from tests.simulation.model.settings import RECORD_NAMES

LOCKED_OUT = "an honest owner cannot reach a final record any more"
NEXT_OVERRULES = "one more attempt of an honest owner makes another record final"
TURN_LOST = "an honest writer's turn ends without a final record"

_REFUSED = -3
"""Instead of a report: the member does not take part in the attempt."""


class Progress:
    """The two checks, for one table of members."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.setting = table.setting
        self._quiet = Existence(table, with_faulty=False)
        last = self.setting.rounds[-1]
        self._next_round = Round(last.version, last.attempt + 1)
        self._is_amended = last.version > 0
        self._taking_part = [member in self.setting.weights[-1] for member in self.setting.correct]
        self._adopting = [member in self.setting.weights[0] for member in self.setting.correct]
        self._answers: dict[tuple[int, int], int] = {}
        self._outcomes: dict[tuple[tuple[int, ...], int, int], str] = {}

    def find_problem(self, state: Sequence[int], world: World) -> str:
        """What is wrong with progress in a state; empty when nothing is."""
        problem = self._check_next_attempt(state, world)
        if not problem and self.setting.honest_writer is not None:
            problem = self._check_turn(state)
        return problem

    # -- one more attempt ---------------------------------------------------------------------------------------

    def _check_next_attempt(self, state: Sequence[int], world: World) -> str:
        numbers = state[:-1]
        bound = NOTHING
        if self._is_amended:
            adopted = [self._adopt(number) for number, adopts in zip(numbers, self._adopting, strict=True) if adopts]
            bound = self._get_number(self.table.rules.compute_bound(map(self._get_claim, adopted)))
        reports = []
        for number, takes_part in zip(numbers, self._taking_part, strict=True):
            if takes_part:
                report = self._answers.get((number, bound))
                reports.append(self._answer(number, bound) if report is None else report)
        key = (tuple(reports), world.certificates, world.finals)
        outcome = self._outcomes.get(key)
        if outcome is None:
            outcome = self._outcomes[key] = self._propose(*key)
        return outcome

    def _adopt(self, number: int) -> int:
        said = self.table.said[number]
        return said.adopted if said.adopted != UNSAID else self._get_number(said.memory.committed)

    def _answer(self, number: int, bound: int) -> int:
        """What a member reports at the next attempt, provided that it then votes for and commits to any record."""
        said, rules = self.table.said[number], self.table.rules
        memory, key = said.memory, (number, bound)
        if self._is_amended and said.bound == UNSAID:
            if said.adopted == UNSAID:
                memory = rules.apply_adopt(memory, Round(1, 0))
        else:
            bound = said.bound
        answer = _REFUSED
        if rules.may_promise(memory, self._next_round):
            report = rules.compute_report(memory, self._get_claim(bound))
            memory = rules.apply_promise(memory, self._next_round)
            claims = [Claim(self._next_round, name) for name in RECORD_NAMES[: self.setting.record_count]]
            if all(
                rules.may_vote(memory, one) and rules.may_commit(rules.apply_vote(memory, one), one) for one in claims
            ):
                answer = self._get_number(report)
        self._answers[key] = answer
        return answer

    def _propose(self, reports: Sequence[int], certificates: int, finals: int) -> str:
        if any(report == _REFUSED or (report >= 0 and not certificates >> report & 1) for report in reports):
            return LOCKED_OUT
        forced = self.table.rules.compute_forced(map(self._get_claim, reports))
        final = {claim.record for number, claim in enumerate(self.table.claims) if finals >> number & 1}
        return NEXT_OVERRULES if final - {forced} else ""

    def _get_claim(self, number: int) -> Claim | None:
        return self.table.claims[number] if number >= 0 else None

    def _get_number(self, claim: Claim | None) -> int:
        return NOTHING if claim is None else self.table.numbers[claim]

    # -- a writer's turn ----------------------------------------------------------------------------------------

    def _check_turn(self, state: Sequence[int]) -> str:
        """In the last round: something is left to say that needs no faulty member, or a record is final."""
        quiet = self._quiet.compute_world(state)
        last = len(self.setting.rounds) - 1
        if quiet.finals or any(place == last for place, _ in quiet.choices):
            return ""
        for number in state[:-1]:
            for step in self.table.get_steps(number):
                if step.round == self.setting.rounds[last] and not step.needs & ~quiet.enabled:
                    return ""
        return TURN_LOST
