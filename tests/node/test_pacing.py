"""A member speaks soon when little happens and in larger batches when much does."""

from node.pacing import INTERVAL_CEILING_SECONDS, Pacing


def test_a_first_batch_goes_out_at_once():
    assert Pacing(0.05).compute_delay(1000.0) == 0


def test_two_batches_are_at_least_the_shortest_interval_apart():
    pacing = Pacing(0.05)
    pacing.note_spoken(1000.0)
    assert 0.02 < pacing.compute_delay(1000.02) <= 0.05


def test_a_few_payments_a_second_are_never_slowed_down():
    pacing = Pacing(0.05)
    for tick in range(2000):
        pacing.note_received(int(tick % 6 == 0), 1000 + tick / 40)
    assert pacing.interval_seconds == 0.05


def test_many_batches_with_few_records_slow_the_member_down_to_the_ceiling():
    pacing = Pacing(0.05)
    for tick in range(2000):
        pacing.note_received(1, 1000 + tick / 100)
    assert pacing.interval_seconds == INTERVAL_CEILING_SECONDS


def test_full_batches_and_quiet_times_bring_the_shortest_interval_back():
    pacing = Pacing(0.05)
    for tick in range(2000):
        pacing.note_received(1, 1000 + tick / 100)
    for tick in range(20):
        pacing.note_received(1, 2000 + 2 * tick)
    assert pacing.interval_seconds == 0.05


def test_a_clock_that_jumps_back_delays_a_batch_by_one_interval_at_most():
    pacing = Pacing(0.05)
    pacing.note_spoken(1000.0)
    assert pacing.compute_delay(5.0) == 0.05
