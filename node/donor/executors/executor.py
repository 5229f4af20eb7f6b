"""What the donor asks of whatever runs its jobs: start one within limits, watch, end it, hand over results.

The agent knows only these types, so a sandbox on this machine and a batch system of a cluster serve it alike.
Nothing here says how a limit is kept; an executor that can't keep one refuses to start the job.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import trio

EndState = Literal["exited", "walltime", "out_of_memory", "killed", "preempted", "lost"]
"""Two ends are no deed of the job or its owner: `preempted`, the machine was taken back by those who own it, and
`lost`, it failed. Of these, only what lies before the last checkpoint may be charged."""

FOREIGN_ENDS: frozenset[EndState] = frozenset({"preempted", "lost"})

_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class JobNotStarted(Exception):
    """The job never ran, so nothing may be charged for it. The text says why, in one line."""


class JobLost(Exception):
    """A job that ran before the agent was interrupted runs no more, and nobody knows how it ended."""


@dataclass(frozen=True)
class Limits:
    """What a job may use at most.

    Invariants: all are positive. `cores` may be a fraction; `disk_bytes` bounds what the job keeps in its
    work directory; `wall_seconds` counts from the first instruction of the job, not from the staging of its
    inputs, and not while it is suspended. `gpus` is how many; which ones the executor chooses, and no job sees
    another's.
    """

    cores: float
    memory_bytes: int
    processes: int
    disk_bytes: int
    wall_seconds: float
    gpus: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (value > 0 or (name == "gpus" and value == 0)):
                raise ValueError(f"a job's limit {name} must be positive, not {value}")


@dataclass(frozen=True)
class JobCommand:
    """What a job runs: `program` is shell text, or the argument list of one program.

    The files below `input_directory` are copied into the job's work directory, where the program starts. What
    it leaves in the folder `out` there is its result; what it keeps in the folder `checkpoint` is what another
    run of it needs to go on, and stands there at its start when it had made one. `runtime` is a read-only
    directory of installed packages whose `bin` comes first in PATH. Results beyond `output_bytes_max` are left
    out. `hosts` are the `name:port` that it may reach; nothing else, and usually nothing.
    """

    program: str | tuple[str, ...]
    output_bytes_max: int
    environment: Mapping[str, str]
    runtime: Path | None = None
    input_directory: Path | None = None
    hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        parts = (self.program,) if isinstance(self.program, str) else self.program
        if not parts or not parts[0]:
            raise ValueError("a job needs a program to run")
        for name in self.environment:
            if not _VARIABLE_NAME.fullmatch(name):
                raise ValueError(f"{name!r} can't be the name of an environment variable")
        if any("\0" in text for text in (*parts, *self.environment.values())):
            raise ValueError("a job's program and environment can't hold zero bytes")


@dataclass(frozen=True)
class Usage:
    """What a job has used so far.

    `wall_ms` is the time that it occupied the machine, without suspensions. `cpu_us` covers every process that the
    job ever had, or is none where this machine has no counter that the job can't escape: an untrue figure would be
    worse than none. `gpu_busy_ms` sums, over its GPUs, the time in which they computed; `energy_joules` is what they
    took; none where nothing can tell.
    """

    wall_ms: int
    cpu_us: int | None
    memory_peak_bytes: int
    gpu_busy_ms: int | None = None
    energy_joules: int | None = None


@dataclass(frozen=True)
class Outcome:
    """How a job ended, and where its results lie until `release`.

    `exit_status` is the program's own (128 + n if signal n ended it) when the state is `exited`, else none.
    `output_directory` holds regular files and directories only, at most `output_bytes_max` in all: following
    no link out of it takes no care of the reader. `output_left_out` counts what was not taken over (links,
    devices, names that are not UTF-8, files over the limit).
    """

    state: EndState
    exit_status: int | None
    usage: Usage
    output_directory: Path
    output_left_out: int
    log_path: Path


class JobHandle(Protocol):
    """A running job, as the agent sees it. All methods return at once and work after the end, too."""

    @property
    def log_bytes(self) -> int:
        """Bytes that the job has written to its output and error streams since its start."""

    def read_log_tail(self, bytes_max: int) -> bytes:
        """The last bytes that the job has written."""

    def usage(self) -> Usage:
        """What the job has used until now; never less than at an earlier call."""

    def suspend(self) -> None:
        """Stops all its processes where they are; it keeps its memory. Has no effect on one that is suspended."""

    def resume(self) -> None:
        """Lets a suspended job go on. Has no effect on one that runs."""

    def copy_checkpoint(self, target: Path, bytes_max: int) -> bool:
        """Copies the job's folder `checkpoint`, as it is at one moment, into the empty directory `target`.

        False when there is none, it is empty, it holds more than `bytes_max`, or no such moment was found: then
        what `target` holds is of no use. May block for as long as the copy takes: call it in a thread.
        """

    def stop(self) -> None:
        """Ends the job by force; its state becomes `killed`. Has no effect on a job that has ended."""


class Executor(Protocol):
    """Runs jobs. One agent owns an executor; several jobs may run at a time."""

    @property
    def is_disk_in_memory(self) -> bool:
        """Whether work directories take memory of this machine, so that a quote must count them as such."""

    async def sweep(self) -> None:
        """Makes ready, and removes what an agent that was killed left behind and nobody can take up. Called once,
        before the first job.

        Raises: UserError if this machine lacks something that running jobs needs.
        """

    async def run(
        self,
        job_id: str,
        command: JobCommand,
        limits: Limits,
        *,
        task_status: trio.TaskStatus[JobHandle] = trio.TASK_STATUS_IGNORED,
    ) -> Outcome:
        """Runs one job to its end; reports a handle when the job's first instruction is about to run.

        When this returns or raises, cancelled or not, no process of the job exists any more. The results stay
        until `release`. Raises: JobNotStarted.
        """

    async def take_up(
        self,
        job_id: str,
        limits: Limits,
        output_bytes_max: int,
        *,
        task_status: trio.TaskStatus[JobHandle] = trio.TASK_STATUS_IGNORED,
    ) -> Outcome:
        """Goes on with a job that `run` had started before this agent was interrupted, or takes its results when it
        ended meanwhile; otherwise like `run`. Raises: JobLost.
        """

    async def release(self, job_id: str) -> None:
        """Removes the results and all else that is kept of an ended job; repeating it does nothing."""


def check_job_id(job_id: str) -> None:
    """A job's id names its directory, so it must be a plain name. Raises: JobNotStarted."""
    if not _JOB_ID.fullmatch(job_id):
        raise JobNotStarted(f"{job_id!r} can't be a job's id: use letters, digits, - and _")
