"""Whole federations keep every promise while members, disks, clocks and networks fail."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.simulation.faults import FAULTS
from tests.simulation.liars import LIES
from tests.simulation.network import GOOD_LINE
from tests.simulation.plan import Plan, Step
from tests.simulation.plants import planted
from tests.simulation.quick_signatures import quick_signatures
from tests.simulation.runs import list_scenarios, make_plan, read_scenario, run_plan, run_seeds
from tests.simulation.works import WORKS
from tests.simulation.world import World

SEEDS = range(100)


@pytest.fixture(autouse=True)
def _quick():
    with quick_signatures():
        yield


def test_nothing_is_broken_in_a_hundred_runs():
    outcomes = run_seeds(SEEDS)
    assert [outcome.what for outcome in outcomes if outcome.check] == []
    counts: Counter[str] = sum((outcome.counts for outcome in outcomes), Counter())
    assert {*WORKS, *FAULTS, *LIES} <= counts.keys(), "every kind of step occurs"


def test_a_seed_replays_to_the_same_batch():
    def trace(seed: int) -> list[str]:
        lines: list[str] = []
        run_plan(make_plan(seed), lines.append)
        return lines

    for seed in range(8):
        assert trace(seed) == trace(seed)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_member_may_lose_power_at_any_write(moment):
    steps = tuple(Step(300 * number, "pay", number) for number in range(6))
    plan = Plan(0, (1, 1, 1, 1), (), (), GOOD_LINE, steps)
    quiet = World(plan)
    quiet.run()
    writes = quiet.machines[2].disk.writes
    assert writes > 10
    for write in range(writes):
        world = World(plan)
        world.machines[2].disk.cut_power(write, moment)
        world.run()
        assert world.counts["power cuts"] == 1


@pytest.mark.parametrize("path", list_scenarios(), ids=lambda path: path.stem)
def test_what_once_failed_holds(path):
    scenario = read_scenario(path)
    assert run_plan(scenario.plan).what == ""
    if scenario.plant:
        with planted(scenario.plant):
            assert run_plan(scenario.plan).check == scenario.check


@pytest.mark.parametrize("plant", ["commit_without_certificate", "vote_for_two", "hide_commit", "forget_own_batches"])
def test_a_broken_rule_is_noticed(plant):
    with planted(plant):
        assert any(outcome.check for outcome in map(run_plan, map(make_plan, range(60))))
