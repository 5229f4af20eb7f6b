"""Whose machine it is now: lent to others, or back with its owner, and what that means for each job.

A donor lends a machine and stays its owner. `judge` is asked once a second and answers from what the owner prefers,
the time and what the machine shows; `decide` says what follows for one job. Both are pure: the same readings give the
same answer, so each rule can be tried without waiting for it.

    the owner is back  >  jobs are suspended at once  >  after `suspend_seconds_max` they are evicted

Suspended time is free, and an evicted job is paid up to its last checkpoint only (spec 12.4): what the owner takes back
costs nobody but the owner. Lending again waits until the owner was away for `away_seconds`, so that a machine that is
used now and then doesn't stop and start its jobs all the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from enum import Enum, unique
from typing import NamedTuple, Protocol

from node.donor.hours import is_within_hours
from node.donor.settings import Settings


class SeesGpus(Protocol):
    """What the owner's side asks of whatever watches the lent GPUs."""

    def list_foreign_processes(self) -> Sequence[int]:
        """Ids of the processes on lent GPUs that belong to no job; never raises, never waits."""


class Moment(NamedTuple):
    """A point in time, by both clocks of the machine."""

    elapsed_ms: int
    """By a clock that is never set: for waiting."""
    local: datetime
    """By the clock on the wall: for hours."""

    @classmethod
    def at(cls, unix_seconds: float, elapsed_seconds: float) -> Moment:
        """A moment in the time zone of this machine."""
        return cls(round(elapsed_seconds * 1000), datetime.fromtimestamp(unix_seconds, UTC).astimezone())


class Readings(NamedTuple):
    """What the machine shows of its owner."""

    load: float | None = None
    """Share of the processor cores, 0 to 1, that others than the jobs keep busy; none where nothing can tell."""
    gpu_processes: tuple[int, ...] = ()
    """Ids of those on lent GPUs that belong to no job."""


class Verdict(NamedTuple):
    """Whether the machine is lent now, and why not. It is also what the next verdict needs to know of this one."""

    is_lent: bool
    reason: str = ""
    """In words, for the log, the status and the wallets whose jobs wait; empty while the machine is lent."""
    busy_ms: int | None = None
    """When the owner was last seen at work; none when never, or so long ago that it does not matter."""


def judge(settings: Settings, wish: str, moment: Moment, readings: Readings, before: Verdict | None) -> Verdict:
    """Whose machine it is. `before` is the last verdict, or none at the start: then nothing is waited for.

    What is asked counts first, then the hours, then what the owner's processes do. `finish` ends no job, so it does
    not count here.
    """
    signs = _find_signs_of_owner(settings, readings)
    busy_ms = moment.elapsed_ms if signs else (before.busy_ms if before else None)
    if busy_ms is not None and moment.elapsed_ms - busy_ms >= settings.away_seconds * 1000 and not signs:
        busy_ms = None
    if wish == "pause":
        reason = "the owner has paused lending"
    elif not is_within_hours(settings.hours, moment.local):
        reason = "it is not lent at this time of the week"
    elif signs:
        reason = signs
    elif busy_ms is not None:
        reason = "the owner used it a short while ago"
    else:
        reason = ""
    return Verdict(not reason, reason, busy_ms)


def _find_signs_of_owner(settings: Settings, readings: Readings) -> str:
    """What shows that the owner is at work, in words; empty when nothing does."""
    if settings.is_idle_gpu_needed and readings.gpu_processes:
        return "the owner uses a GPU of it"
    if settings.load_max and readings.load is not None and readings.load > settings.load_max:
        return "the owner uses its processors"
    return ""


@unique
class Decision(Enum):
    """What to do with one job now."""

    KEEP = "keep"
    """Leave it as it is, running or suspended."""
    SUSPEND = "suspend"
    RESUME = "resume"
    EVICT = "evict"
    """End it, and hand over its last checkpoint."""


def decide(settings: Settings, verdict: Verdict, suspended_ms: int | None) -> Decision:
    """What follows for a job that has been suspended for `suspended_ms` without a break, or runs (none).

    Why it is right: a running job never outlasts a verdict against it, and no suspended one outlasts
    `suspend_seconds_max`, so the owner has the machine at once, and its memory after that time.
    """
    if verdict.is_lent:
        return Decision.KEEP if suspended_ms is None else Decision.RESUME
    if suspended_ms is None:
        return Decision.SUSPEND if settings.suspend_seconds_max else Decision.EVICT
    return Decision.EVICT if suspended_ms >= settings.suspend_seconds_max * 1000 else Decision.KEEP
