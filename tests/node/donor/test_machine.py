"""What jobs get of a machine never adds up to more than is lent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.donor.machine import Machine, Share
from protocol.quotes import QuoteRequest

LENT = Share(4, 8, 10, 2)


def ask(cores=1, memory=1, disk=1, gpus=0):
    return QuoteRequest(b"", b"", b"", b"", cores, memory, disk, gpus, 0, 60, b"", "batch", b"", b"", b"")


requests = st.builds(ask, st.integers(1, 5), st.integers(1, 9), st.integers(1, 11), st.integers(0, 3))
steps = st.lists(st.tuples(st.sampled_from("abcde"), st.none() | requests), max_size=40)


@given(steps, st.booleans())
def test_no_part_of_the_machine_is_given_twice(steps, is_disk_in_memory):
    machine = Machine(lambda: LENT, lambda: is_disk_in_memory)
    having: dict[str, QuoteRequest] = {}
    for name, request in steps:
        if request is None:
            machine.give_back(name)
            having.pop(name, None)
        elif machine.take(name, request):
            having.setdefault(name, request)
        assert machine.is_idle == (not having)
        held = having.values()
        used_memory = sum(one.memory_bytes + one.disk_bytes * is_disk_in_memory for one in held)
        assert sum(one.cores for one in held) <= LENT.cores
        assert used_memory <= LENT.memory_bytes
        assert sum(one.gpus for one in held) <= LENT.gpus
        assert machine.free.memory_bytes == LENT.memory_bytes - used_memory


def test_what_was_given_back_is_free_again_and_repetition_changes_nothing():
    machine = Machine(lambda: LENT, lambda: False)
    assert machine.take("a", ask(gpus=2))
    assert machine.take("a", ask(gpus=2))
    assert not machine.take("b", ask(gpus=1))
    machine.give_back("a")
    machine.give_back("a")
    assert machine.take("b", ask(gpus=1))


def test_a_job_that_runs_keeps_its_share_when_less_is_lent_than_before():
    lent = LENT
    machine = Machine(lambda: lent, lambda: False)
    machine.keep("a", ask(cores=4))
    lent = LENT._replace(cores=2)
    assert machine.free.cores == -2
    assert not machine.has_room(ask())
    machine.give_back("a")
    assert machine.free == lent


@pytest.mark.parametrize("part", ["cores", "memory", "disk", "gpus"])
def test_a_job_that_wants_too_much_of_one_part_gets_nothing(part):
    machine = Machine(lambda: LENT, lambda: False)
    assert not machine.take("a", ask(**{part: 100}))
    assert machine.free == LENT


def test_a_closed_machine_gives_nothing_and_takes_back_all():
    machine = Machine(lambda: LENT, lambda: False)
    machine.take("a", ask())
    with machine.closed():
        assert not machine.take("b", ask())
        assert machine.take("a", ask())
        machine.give_back("a")
    assert machine.is_idle
    assert machine.take("b", ask())
