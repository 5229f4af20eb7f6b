"""A small trace by seed, of the shape of the real ones, so that a replay runs where no trace lies.

Jobs arrive at chance; most use one GPU and are short, few are long and take most of the time (a log-normal duration
with a median of a quarter of an hour, as in the Philly trace).
"""

from __future__ import annotations

import math
from random import Random

from scripts.replays.trace import TracedJob, TracedMachine

JOBS_PER_HOUR = 12
DURATION_MEDIAN_SECONDS = 900
DURATION_SIGMA = 1.6
GPU_COUNTS = {1: 80, 2: 10, 4: 6, 8: 4}
INSTITUTIONS = ("University A", "University B", "Library C", "College D")
MACHINES = (("T4", 2, 104, 512), ("P100", 2, 64, 256), ("V100M32", 4, 48, 368), ("A10", 8, 128, 1024))
"""(model, GPUs, cores, memory in GiB), in turn."""


def make_jobs(hours: float, seed: int, jobs_per_hour: float = JOBS_PER_HOUR) -> list[TracedJob]:
    """Jobs of so many hours, in their order."""
    chance = Random(f"jobs {seed}")
    jobs = []
    seconds = chance.expovariate(jobs_per_hour / 3600)
    while seconds < hours * 3600:
        duration = max(1.0, chance.lognormvariate(math.log(DURATION_MEDIAN_SECONDS), DURATION_SIGMA))
        (gpus,) = chance.choices(list(GPU_COUNTS), list(GPU_COUNTS.values()))
        jobs.append(TracedJob(int(seconds * 1000), int(duration * 1000), gpus, chance.choice(INSTITUTIONS)))
        seconds += chance.expovariate(jobs_per_hour / 3600)
    return jobs


def make_machines(count: int) -> list[TracedMachine]:
    """So many machines, of four kinds."""
    machines = []
    for number in range(count):
        model, gpus, cores, memory_gib = MACHINES[number % len(MACHINES)]
        machines.append(TracedMachine(f"machine-{number:04}", cores, memory_gib << 30, gpus, model))
    return machines
