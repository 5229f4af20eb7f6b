"""How much of the processors the owner uses: what is busy in all, less what the jobs and the agent itself use.

The kernel's counter of busy time (`/proc/stat`) and the jobs' own counters both say processor time, so they can be
subtracted; the usual load average can't, and lags a minute behind, where the owner is promised seconds.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from node.donor.owner import Readings, SeesGpus

PROC_STAT = Path("/proc/stat")
WINDOW_SECONDS = 5.0
"""Over which load is averaged: a short burst is no return of the owner, and the machine is back within 10 s."""
_IDLE_FIELDS = frozenset({3, 4, 7, 8, 9})
"""Of the line `cpu`: idle, waiting for disks, taken by a host; and guests, which are in `user` already."""


class _Sample(NamedTuple):
    at_seconds: float
    busy_us: int
    """Of all processors since the machine started."""
    ours_us: int | None
    """Of what the jobs and the agent used since this reader started; none when a job can't be measured."""


class OwnerWatch:
    """Reads the machine, once a second. Holds nothing but the last few seconds."""

    def __init__(self, gpus: SeesGpus | None = None, proc_stat: Path = PROC_STAT) -> None:
        self._gpus = gpus
        self._proc_stat = proc_stat
        self._cores = os.cpu_count() or 1
        self._samples: deque[_Sample] = deque()
        self._last_use: dict[str, int] = {}
        self._jobs_us = 0

    def read(self, jobs_cpu_us: Mapping[str, int | None]) -> Readings:
        """What the machine shows now.

        `jobs_cpu_us` has the processor time of each job by its id. Name a job that has ended once more with its last
        figure: else what it used in its last second looks like the owner's. A job without a counter makes the load
        unknown while it runs: a guess would take the machine from people who paid for it.
        """
        load = self._read_load(jobs_cpu_us)
        return Readings(load, tuple(self._gpus.list_foreign_processes()) if self._gpus else ())

    def _read_load(self, jobs_cpu_us: Mapping[str, int | None]) -> float | None:
        busy_us = read_busy_us(self._proc_stat)
        if busy_us is None:
            return None
        is_known = self._add_use(jobs_cpu_us)
        agent_us = round(time.process_time() * 1e6)
        self._samples.append(_Sample(time.monotonic(), busy_us, self._jobs_us + agent_us if is_known else None))
        first, last = self._drop_old(), self._samples[-1]
        if first.ours_us is None or last.ours_us is None or last.at_seconds <= first.at_seconds:
            return None
        owner_us = (last.busy_us - first.busy_us) - (last.ours_us - first.ours_us)
        return max(0.0, owner_us / (1e6 * self._cores * (last.at_seconds - first.at_seconds)))

    def _add_use(self, jobs_cpu_us: Mapping[str, int | None]) -> bool:
        """Sum up what the jobs used since the last time; False when that is not known of one.

        A job that is seen for the first time counts whole. One that was taken up with much behind it hides the owner
        for the few seconds of the window; the other way round a job's start would look like the owner's return.
        """
        known = {job: cpu_us for job, cpu_us in jobs_cpu_us.items() if cpu_us is not None}
        self._jobs_us += sum(max(0, cpu_us - self._last_use.get(job, 0)) for job, cpu_us in known.items())
        self._last_use = known
        return len(known) == len(jobs_cpu_us)

    def _drop_old(self) -> _Sample:
        """The sample to compare with: the youngest that is older than the window, or the oldest of all."""
        end = self._samples[-1].at_seconds
        while len(self._samples) > 2 and end - self._samples[1].at_seconds >= WINDOW_SECONDS:
            self._samples.popleft()
        return self._samples[0]


def read_busy_us(proc_stat: Path) -> int | None:
    """Microseconds in which processors worked since the machine started; none when this system does not tell."""
    try:
        name, *fields = proc_stat.read_text().split("\n", 1)[0].split()
        ticks = sum(int(field) for place, field in enumerate(fields) if place not in _IDLE_FIELDS)
    except (OSError, ValueError):
        return None
    return ticks * 1_000_000 // os.sysconf("SC_CLK_TCK") if name == "cpu" else None
