"""A machine is measured again while it is free, and what was found holds."""

from __future__ import annotations

import pytest
import trio

from node.donor import remeasuring
from node.donor.agent import Agent
from node.donor.executors.sandbox import Sandbox
from node.donor.remeasuring import Remeasuring
from node.donor.settings import Score
from node.errors import UserError
from tests.node.donor.conftest import DONOR_KEY, SEAL_SEED, SETTINGS

OLD, NEW = Score(1000, 1.0, 1.0, 1.0, 0), Score(700, 0.7, 0.7, 1.0, 0)


@pytest.fixture
def parts(donor_home, fake_node, monkeypatch):
    """(what measures again, the offer's side, the machine), with a self-test that gives what the test puts there."""
    sandbox = Sandbox(donor_home.sandbox)
    agent = Agent(donor_home, SETTINGS, OLD, fake_node.charter, DONOR_KEY, SEAL_SEED, fake_node, sandbox, {})
    monkeypatch.setattr(remeasuring, "LOOK_SECONDS", 0.01)
    offering, machine = agent._offering, agent.shop.machine
    yield Remeasuring(donor_home, agent.shop, offering, agent._devices, {}), offering, machine
    sandbox.close()


async def watch_until(watcher, is_reached):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher.watch)
        with trio.fail_after(10):
            while not is_reached():
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


async def test_what_was_measured_last_is_offered_and_no_job_starts_meanwhile(parts, monkeypatch):
    watcher, offering, machine = parts
    seen = []

    async def measure(*_):
        seen.append(machine._is_closed)
        return NEW

    monkeypatch.setattr(remeasuring, "repeat_selftest", measure)
    await watch_until(watcher, lambda: offering.score is NEW)
    assert seen[0]
    assert not machine._is_closed


async def test_a_machine_that_fails_is_not_offered_until_it_passes_again(parts, monkeypatch):
    watcher, offering, _ = parts
    found: UserError | Score = UserError("it computes wrongly")

    async def measure(*_):
        if isinstance(found, UserError):
            raise found
        return found

    monkeypatch.setattr(remeasuring, "repeat_selftest", measure)
    await watch_until(watcher, lambda: offering.obstacle)
    assert "computes wrongly" in offering.obstacle
    assert offering.score is OLD
    found = NEW
    await watch_until(watcher, lambda: not offering.obstacle)
    assert offering.score is NEW
