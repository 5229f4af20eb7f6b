"""What chance decides: how a job ends, what its owner asks for, and when a donor goes away. All of it by seed.

Each job and each donor has a chance of its own, so one more donor changes no job's fate.
"""

from __future__ import annotations

import math
from random import Random
from typing import NamedTuple

from protocol.metering import WALL_SECONDS_MAX, JobState
from scripts.replays.assumptions import Assumptions
from scripts.replays.trace import TracedJob

_HOUR_MS = 3_600_000


class Fate(NamedTuple):
    """What will become of a job, if no donor fails it."""

    end: JobState
    """DONE, USER_FAILED or CANCELLED after the traced duration, unless the wall time is over before."""
    wall_seconds: int
    has_checkpoints: bool
    person: int
    """Which of its institution's people pays."""


class Absence(NamedTuple):
    """A time in which a donor's machine is not lent."""

    starts_ms: int
    state: JobState
    """How the jobs end that run there: DONOR_FAILED or EVICTED."""
    away_ms: int
    """0: the donor never comes back."""


def draw_fate(job: TracedJob, number: int, assumptions: Assumptions, seed: int) -> Fate:
    """The fate of the job with this number."""
    chance = Random(f"job {seed} {number}")
    luck = chance.random()
    if luck < assumptions.failed_share:
        end = JobState.USER_FAILED
    elif luck < assumptions.failed_share + assumptions.cancelled_share:
        end = JobState.CANCELLED
    else:
        end = JobState.DONE
    seconds = job.duration_ms / 1000
    if chance.random() < assumptions.underestimate_share:
        wall = seconds * chance.uniform(0.5, 0.95)
    else:
        wall = 60 * math.ceil(seconds * chance.uniform(1.1, assumptions.wall_factor_max) / 60)
    wall_seconds = min(WALL_SECONDS_MAX, max(1, math.floor(wall)))
    has_checkpoints = chance.random() < assumptions.checkpoint_share
    return Fate(end, wall_seconds, has_checkpoints, chance.randrange(assumptions.people_per_institution))


def draw_absences(machine: str, until_ms: int, assumptions: Assumptions, seed: int) -> list[Absence]:
    """When the machine goes away before `until_ms`: failures and evictions, each without memory."""
    chance = Random(f"donor {seed} {machine}")
    absences: list[Absence] = []
    now = 0.0
    while True:
        failure = now + _HOUR_MS * chance.expovariate(1 / assumptions.failure_hours)
        eviction = now + _HOUR_MS * chance.expovariate(1 / assumptions.eviction_hours)
        starts_ms = int(min(failure, eviction))
        if starts_ms >= until_ms:
            return absences
        if failure < eviction and chance.random() < assumptions.vanished_share:
            return [*absences, Absence(starts_ms, JobState.DONOR_FAILED, 0)]
        hours = assumptions.failed_away_hours if failure < eviction else assumptions.evicted_away_hours
        away_ms = max(1, int(_HOUR_MS * chance.expovariate(1 / hours)))
        state = JobState.DONOR_FAILED if failure < eviction else JobState.EVICTED
        absences.append(Absence(starts_ms, state, away_ms))
        now = starts_ms + away_ms
