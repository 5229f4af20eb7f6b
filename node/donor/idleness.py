"""Jobs that occupy the machine and compute nothing: when one is ended, and why.

An idle job costs its owner credits and others the machine. What counts is the work that the job paid for: one with GPUs
must use its GPUs, one without its processors. A machine that can't count gives no verdict, and suspended time is no
time of the job (`Usage.wall_ms`). The end is POLICY_KILLED, charged up to the last tick (spec 12.4, 12.9).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

BUSY_PERMILLE = 10
"""A job works when it keeps one processor core, or one of its GPUs, busy for this share of the time: 1 %. A program
that only waits, wakes and waits again takes less."""


class Sample(NamedTuple):
    """What a job had used at one moment."""

    elapsed_ms: int
    """For which it has occupied the machine."""
    cpu_us: int | None
    gpu_busy_ms: int | None


def is_idle(samples: Sequence[Sample], gpus: int, idle_seconds_max: int) -> bool:
    """Whether a job with so many GPUs has computed nothing for `idle_seconds_max`; 0 asks nothing of it.

    `samples` are in the order of time. Why it is right: the newest sample is compared with the youngest one that is
    old enough, so work at any later moment saves the job, and nothing else does.
    """
    start = _find_start(samples, idle_seconds_max) if idle_seconds_max else None
    if start is None:
        return False
    first, last = samples[start], samples[-1]
    before_us, after_us = _get_busy_us(first, gpus), _get_busy_us(last, gpus)
    if before_us is None or after_us is None:
        return False
    return 0 <= after_us - before_us < BUSY_PERMILLE * (last.elapsed_ms - first.elapsed_ms)


def add_sample(samples: Sequence[Sample], sample: Sample, idle_seconds_max: int) -> tuple[Sample, ...]:
    """The samples with one more, less those that no later verdict needs."""
    grown = (*samples, sample)
    return grown[_find_start(grown, idle_seconds_max) or 0 :]


def describe_idleness(gpus: int, idle_seconds_max: int) -> str:
    """Why the job was ended, in one line for its owner."""
    what = "its GPUs" if gpus else "its processor cores"
    return f"ended: it did not use {what} for {idle_seconds_max} s; ask for less, or end a job when its work is done"


def _find_start(samples: Sequence[Sample], seconds: int) -> int | None:
    """Place of the youngest sample that is at least so much older than the last one; none when there is none."""
    latest_ms = samples[-1].elapsed_ms - seconds * 1000 if samples else 0
    return next((place for place in reversed(range(len(samples))) if samples[place].elapsed_ms <= latest_ms), None)


def _get_busy_us(sample: Sample, gpus: int) -> int | None:
    """What the job computed, by the counter that its kind of job is held to."""
    if gpus:
        return None if sample.gpu_busy_ms is None else sample.gpu_busy_ms * 1000
    return sample.cpu_us
