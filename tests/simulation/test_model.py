"""All schedules of small federations, under the real rules and under each rule broken: the part that takes seconds.

`scripts/model_check --mutants` explores the whole.
"""

from __future__ import annotations

from functools import cache
from itertools import chain

import pytest

from tests.simulation.model.exploration import Exploration, Result
from tests.simulation.model.mutants import MUTANTS, Mutant, try_mutant
from tests.simulation.model.settings import Setting, make_charter_settings, make_hold_settings, make_slot_settings

STATE_COUNT_MAX = 10_000
SETTINGS_EXPLORED_WHOLE = [*make_slot_settings(1), *make_hold_settings(1), *make_charter_settings(0)]
SETTINGS_BEGUN = [*make_slot_settings(2), *make_hold_settings(2), *make_charter_settings(1)]
ALL_MUTANTS = list(chain.from_iterable(MUTANTS.values()))


@cache
def explore_whole(number: int) -> Result:
    return Exploration(SETTINGS_EXPLORED_WHOLE[number]).explore()


def show(result: Result) -> str:
    return "\n".join(chain.from_iterable((finding.what, *finding.trace) for finding in result.findings))


def named(value: Setting | Mutant) -> str:
    return value.name.replace(" ", "-")


@pytest.mark.parametrize("number", range(len(SETTINGS_EXPLORED_WHOLE)))
def test_no_schedule_makes_two_records_final_or_locks_an_owner_out(number: int) -> None:
    result = explore_whole(number)
    assert result.is_complete
    assert result.findings == (), show(result)


@pytest.mark.parametrize("setting", SETTINGS_BEGUN, ids=named)
def test_no_short_schedule_with_more_attempts_does_either(setting: Setting) -> None:
    result = Exploration(setting).explore(STATE_COUNT_MAX)
    assert result.findings == (), show(result)


@pytest.mark.parametrize("number", range(len(SETTINGS_EXPLORED_WHOLE)))
def test_records_become_final_in_every_round_that_is_explored(number: int) -> None:
    """A model in which nothing can happen would find nothing wrong."""
    assert len(explore_whole(number).final_rounds) == len(SETTINGS_EXPLORED_WHOLE[number].rounds)


@pytest.mark.parametrize("mutant", [mutant for mutant in ALL_MUTANTS if not mutant.explanation], ids=named)
def test_a_broken_rule_is_noticed(mutant: Mutant) -> None:
    assert try_mutant(mutant).findings


@pytest.mark.parametrize("mutant", [mutant for mutant in ALL_MUTANTS if mutant.explanation], ids=named)
def test_a_broken_rule_that_breaks_no_promise_is_explained(mutant: Mutant) -> None:
    """Shown here for short schedules; `scripts/model_check --mutants` visits all."""
    result = try_mutant(mutant, STATE_COUNT_MAX)
    assert result.findings == (), show(result)


def test_states_that_are_taken_for_one_are_each_others_mirror() -> None:
    """The exploration without any symmetry visits the same states, once their names are set aside."""
    setting = next(make_slot_settings(1))
    reduced, plain = Exploration(setting), Exploration(setting, has_symmetry=False)
    reduced.explore()
    plain.explore()
    assert len(plain.visited) > 8 * len(reduced.visited)
    mirrored = {
        reduced.canonicalize([*(reduced.table.get_number(0, plain.table.said[number]) for number in state[:-1]), 0])
        for state in map(plain.unpack, plain.visited)
    }
    assert mirrored == set(reduced.visited)
