"""A costly answer is computed when there is news, and never takes more than its share of the time."""

from __future__ import annotations

from node.web.costly import TIME_SHARE_MAX, CostlyView


class Clock:
    """Time that passes only when something is computed, or when a test says so."""

    def __init__(self):
        self.now = 1000.0
        self.computed = 0

    def __call__(self):
        return self.now

    def compute(self):
        self.computed += 1
        self.now += 1.0
        return self.computed


def test_an_answer_stays_until_batches_come_and_its_time_has_passed():
    clock = Clock()
    view = CostlyView(clock.compute, clock)
    assert [view.read(5), view.read(5), view.read(6)] == [1, 1, 1]
    clock.now += 1 / TIME_SHARE_MAX
    assert [view.read(5), view.read(6), view.read(7)] == [1, 2, 2]


def test_a_clock_that_was_set_back_keeps_no_old_answer():
    clock = Clock()
    view = CostlyView(clock.compute, clock)
    view.read(5)
    clock.now -= 10_000
    assert view.read(6) == 2
