"""How jobs end in practice, and scripts that end so: public traces of GPU clusters tell that failure is normal.

Of GPU jobs 16 to 43 % fail and 6 to 22 % are cancelled (InternLM, AcmeTrace, data/cluster_summary.csv). The shares here
lie in the middle; some meet their time limit. How many end by the donor's fault, the kills decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from random import Random

from protocol.metering import JobState

SHARES: Mapping[JobState, float] = {
    JobState.DONE: 0.55,
    JobState.USER_FAILED: 0.28,
    JobState.CANCELLED: 0.13,
    JobState.WALLTIME: 0.04,
}

_SCRIPTS = {
    JobState.DONE: "echo working; sleep {seconds}; echo 42 > out/answer",
    JobState.USER_FAILED: "echo failing; sleep {seconds}; exit 3",
    JobState.CANCELLED: "echo waiting; sleep 600",
    JobState.WALLTIME: "echo waiting; sleep 600",
}


def draw_end(random: Random) -> JobState:
    """The end that a job is made for."""
    return random.choices(list(SHARES), list(SHARES.values()))[0]


def write_job(folder: Path, number: int, end: JobState, random: Random) -> Path:
    """The job file of a job that ends so, unless its donor fails."""
    folder.mkdir(parents=True, exist_ok=True)
    script = _SCRIPTS[end].format(seconds=round(random.uniform(0.1, 1.5), 2))
    duration = "2s" if end is JobState.WALLTIME else "10m"
    path = folder / f"job-{number}.yaml"
    work = folder / "work"
    work.mkdir(exist_ok=True)
    path.write_text(
        f"name: job-{number}\nworkdir: work\nrun: {script!r}\nmax_duration: {duration}\n"
        "resources: {cpus: 1, memory: 0.25, disk_size: 0.05}\n"
    )
    return path
