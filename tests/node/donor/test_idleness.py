"""When a job that computes nothing is ended, and when it is not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node.donor.idleness import Sample, add_sample, describe_idleness, is_idle

SECONDS_MAX = 600
STEP_MS = 60_000


def run(busy_shares, gpus=0):
    """Samples once a minute of a job that keeps so many cores, or GPUs, busy in each minute."""
    busy_ms, samples = 0, [Sample(0, 0, 0)]
    for minute, share in enumerate(busy_shares, 1):
        busy_ms += round(share * STEP_MS)
        samples.append(Sample(minute * STEP_MS, 0 if gpus else busy_ms * 1000, busy_ms if gpus else 0))
    return samples


def test_a_job_that_sleeps_is_idle_once_the_time_is_over():
    assert not is_idle(run([0] * 9), 0, SECONDS_MAX)
    assert is_idle(run([0] * 10), 0, SECONDS_MAX)


def test_work_long_ago_does_not_save_it_and_work_of_late_does():
    assert is_idle(run([2.0] * 30 + [0] * 10), 0, SECONDS_MAX)
    assert not is_idle(run([0] * 30 + [0.2] + [0] * 9), 0, SECONDS_MAX)


def test_waking_up_now_and_then_is_no_work_and_one_core_of_many_is():
    assert is_idle(run([0.005] * 20), 0, SECONDS_MAX)
    assert not is_idle(run([1.0] * 20), 0, SECONDS_MAX)


def test_a_job_with_gpus_must_use_them_whatever_its_processors_do():
    assert is_idle([Sample(at * STEP_MS, at * STEP_MS * 1000, 0) for at in range(20)], 1, SECONDS_MAX)
    assert not is_idle(run([0.5] * 20, gpus=1), 1, SECONDS_MAX)
    assert "GPUs" in describe_idleness(1, SECONDS_MAX)


def test_without_a_counter_or_a_limit_there_is_no_verdict():
    nothing = [Sample(at * STEP_MS, None, None) for at in range(20)]
    assert not is_idle(nothing, 0, SECONDS_MAX)
    assert not is_idle(nothing, 2, SECONDS_MAX)
    assert not is_idle([*run([0] * 19)[:-1], Sample(20 * STEP_MS, None, None)], 0, SECONDS_MAX)
    assert not is_idle(run([0] * 100), 0, 0)
    assert not is_idle([], 0, SECONDS_MAX)


SHARES = st.lists(st.sampled_from([0, 0, 0, 0, 0.005, 0.5]), max_size=60)


@given(SHARES, st.integers(0, 1), st.integers(1, 1500))
def test_forgetting_old_samples_changes_no_verdict(shares, gpus, seconds_max):
    samples = run(shares, gpus)
    kept: tuple[Sample, ...] = ()
    for count, sample in enumerate(samples, 1):
        kept = add_sample(kept, sample, seconds_max)
        assert is_idle(kept, gpus, seconds_max) == is_idle(samples[:count], gpus, seconds_max)
        assert len(kept) <= seconds_max * 1000 // STEP_MS + 2


@given(SHARES, st.integers(0, 1))
def test_a_job_that_works_in_every_window_is_never_ended(shares, gpus):
    """Half a core in every tenth minute is 5 % of the time."""
    busy = [max(share, 0.5 if minute % 10 == 0 else 0) for minute, share in enumerate(shares)]
    assert not is_idle(run(busy, gpus), gpus, SECONDS_MAX)
