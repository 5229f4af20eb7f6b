"""Slurm's commands, and what they answer. Each call is bounded: clients hang for long when the controller is down.

A job is known by a name of ours, never by Slurm's number alone: a controller that dies within seconds of a submission
forgets the job and gives its number out again.

Two sources are read. The *queue* (squeue) says what a job does now. *Accounting* (sacct) says what it took, some
seconds after its end and for years; a charge rests on that. Both are read as plain columns, which have been the same
for many versions of Slurm; the JSON of these commands has not.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import trio

_Result = TypeVar("_Result")

CALL_SECONDS_MAX = 20.0
RETRY_SECONDS_FIRST = 0.2
RETRY_SECONDS_MAX = 10.0
TOOLS = ("sbatch", "squeue", "sacct", "scancel", "scontrol")
ENDED = frozenset(
    {
        "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED",
        "REVOKED", "TIMEOUT",
    }
)  # fmt: skip
"""States of a job that has ended, in full; all others may still change."""

_SEPARATOR = "\x1f"
_QUEUE_FORMAT = _SEPARATOR.join(("%i", "%T", "%M", "%j"))
_ACCOUNTING_FIELDS = "JobIDRaw,State,ExitCode,ElapsedRaw,End,AllocTRES,MaxRSS,TRESUsageInTot,JobName,Comment"
_NO_TIME = ("", "Unknown", "None")
_CHANGING = ("sbatch", "scontrol")
"""What Slurm may decline. To the others it can only fail to answer."""
_OUTAGES = ("contact", "timed out", "connect", "communication", "socket", "zero bytes", "standby", "temporarily")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}


class SlurmSilent(Exception):
    """Slurm did not answer, or not in time: whether it did what was asked is unknown."""


class SlurmRefused(Exception):
    """Slurm answered that it won't. The text is its own, in one line."""


@dataclass(frozen=True)
class QueuedJob:
    """What the queue says of a job; jobs that ended stay there for some minutes."""

    number: int
    state: str
    elapsed_seconds: int
    """Time that it ran, suspensions left out, in whole seconds: never more than accounting will say."""

    @property
    def is_ended(self) -> bool:
        return self.state in ENDED


@dataclass(frozen=True)
class AccountedJob:
    """What accounting says of a job."""

    number: int
    name: str
    comment: str
    state: str
    exit_code: int
    exit_signal: int
    is_end_known: bool
    elapsed_seconds: int
    """Time that it occupied its resources, suspensions left out, in whole seconds."""
    resources: dict[str, str]
    """What was allocated, as Slurm names it: `cpu`, `mem`, `gres/gpu` ..."""
    memory_peak_bytes: int
    cpu_seconds: int | None
    """Processor time of all processes, as the node's control group counted it."""

    @property
    def is_ended(self) -> bool:
        """Whether this is the last word. A state alone may come before exit status and time do."""
        return self.state in ENDED and self.is_end_known

    def count(self, resource: str) -> int:
        """How many of `cpu` or `gres/gpu` it had."""
        return int(self.resources.get(resource, 0))

    @property
    def memory_bytes(self) -> int:
        """Memory that it had."""
        return parse_size(self.resources.get("mem", ""))


class SlurmCommands:
    """The commands, for one user of one cluster. `prefix` stands before each."""

    def __init__(self, prefix: tuple[str, ...], poll_seconds: float) -> None:
        self._prefix = prefix
        self._poll_seconds = poll_seconds
        self._lock = trio.Lock()
        self._listed: dict[str, QueuedJob] = {}
        self._listed_at = -math.inf

    def find_missing_tools(self) -> list[str]:
        """The commands that this machine lacks."""
        return [tool for tool in (*self._prefix[:1], *TOOLS) if shutil.which(tool) is None]

    async def call(self, *command: str) -> str:
        """What a command prints. Raises: SlurmSilent, SlurmRefused."""
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"}
        environment |= {name: value for name, value in os.environ.items() if name in ("SLURM_CONF", "PATH", "HOME")}
        with trio.move_on_after(CALL_SECONDS_MAX):
            done = await trio.run_process(
                [*self._prefix, *command], capture_stdout=True, capture_stderr=True, check=False, env=environment
            )
            if done.returncode == 0:
                return done.stdout.decode(errors="replace")
            said = " ".join(done.stderr.decode(errors="replace").split())[-300:]
            if command[0] not in _CHANGING or any(word in said.lower() for word in _OUTAGES):
                raise SlurmSilent(said or f"{command[0]} ended with status {done.returncode}")
            raise SlurmRefused(said or f"{command[0]} ended with status {done.returncode}")
        raise SlurmSilent(f"{command[0]} did not answer within {CALL_SECONDS_MAX:g} s")

    async def look(self, name: str, *, is_fresh: bool = False) -> QueuedJob | None:
        """What the queue says, by default as of one poll ago at most; None when it does not know the job.

        One listing serves every job of this agent: a controller is slowed down by who asks for each one by one.
        Raises: SlurmSilent.
        """
        async with self._lock:
            asked_at = time.monotonic()
            if is_fresh or asked_at - self._listed_at >= self._poll_seconds:
                listing = await self.call("squeue", "--me", "--all", "-h", "-t", "all", "-o", _QUEUE_FORMAT)
                self._listed = dict(_iterate_queue(listing))
                self._listed_at = asked_at
            return self._listed.get(name)

    async def find_accounted(self, name: str, since_seconds: float) -> AccountedJob | None:
        """What accounting says of the job of this name, submitted after `since_seconds` (Unix time), or None.

        Of several runs under one number the first counts: a later one finds the job claimed, and does nothing.
        Raises: SlurmSilent.
        """
        found = await self.list_accounted(since_seconds, os.geteuid(), "--name", name)
        return next((job for job in found if job.is_ended), found[-1] if found else None)

    async def list_accounted(self, since_seconds: float, user: int, *options: str) -> list[AccountedJob]:
        """All that accounting has of a user's jobs since then. Raises: SlurmSilent."""
        days = max(0, math.ceil((time.time() - since_seconds) / 86400)) + 1  # whatever the time zone there
        line = ["sacct", "-P", "-n", "--duplicates", "--noconvert", f"--delimiter={_SEPARATOR}"]
        line += ["-u", str(user), "-S", f"now-{days}days", "-o", _ACCOUNTING_FIELDS, *options]
        return parse_accounting(await self.call(*line))

    async def cancel(self, name: str) -> None:
        """End the job of this name; it need not be there. Raises: SlurmSilent."""
        await self.call("scancel", "--quiet", "--user", str(os.geteuid()), "--name", name)


async def insist(ask: Callable[[], Awaitable[_Result]]) -> _Result:
    """Ask until Slurm answers, for as long as it takes."""
    pause = RETRY_SECONDS_FIRST
    while True:
        try:
            return await ask()
        except SlurmSilent:
            await trio.sleep(pause)
            pause = min(2 * pause, RETRY_SECONDS_MAX)


def _iterate_queue(text: str) -> Iterator[tuple[str, QueuedJob]]:
    """(name, job) in the order of Slurm's numbers, so that of two with one name the newer one counts."""
    found = []
    for line in text.splitlines():
        number, state, elapsed, name = line.split(_SEPARATOR, 3)
        if number.isdigit():  # parts of arrays are none of ours
            found.append((int(number), name, state, parse_time(elapsed)))
    for number_of, name, state, seconds in sorted(found):
        yield name, QueuedJob(number_of, state, seconds)


def parse_accounting(text: str) -> list[AccountedJob]:
    """The answer of sacct: one line a job, followed by one for each of its steps, which know what was used."""
    rows = [line.split(_SEPARATOR) for line in text.splitlines()]
    jobs: list[AccountedJob] = []
    for number, state, exit_code, elapsed, end, allocated, peak, used, name, comment in (row[:10] for row in rows):
        if number.isdigit():
            code, _, by_signal = exit_code.partition(":")
            job = AccountedJob(
                number=int(number),
                name=name,
                comment=comment,
                state=state.split(" ")[0],  # "CANCELLED by 1000": who did it is no part of the state
                exit_code=int(code or 0),
                exit_signal=int(by_signal or 0),
                is_end_known=end not in _NO_TIME,
                elapsed_seconds=int(elapsed or 0),
                resources=_parse_resources(allocated),
                memory_peak_bytes=0,
                cpu_seconds=None,
            )
            jobs.append(job)
        elif jobs and number == f"{jobs[-1].number}.batch":
            seconds = _parse_resources(used).get("cpu")
            cpu_seconds = parse_time(seconds) if seconds else None
            jobs[-1] = replace(jobs[-1], memory_peak_bytes=parse_size(peak), cpu_seconds=cpu_seconds)
    return jobs


def _parse_resources(text: str) -> dict[str, str]:
    """`cpu=2,mem=100M,gres/gpu=1` as a dictionary."""
    return {name: value for name, _, value in (entry.partition("=") for entry in text.split(",") if entry)}


def parse_time(text: str) -> int:
    """Whole seconds of `[days-][[hours:]minutes:]seconds[.fraction]`; 0 for what is no time."""
    days, _, clock = text.rpartition("-")
    parts = clock.split(".")[0].split(":")
    if not all(part.isdigit() for part in parts):
        return 0
    seconds = 0
    for part in parts:
        seconds = 60 * seconds + int(part)
    return seconds + 86400 * int(days or 0)


def parse_size(text: str) -> int:
    """Bytes of `200M`; 0 for nothing."""
    number = text.rstrip("KMGTP")
    return round(float(number or 0) * _UNITS[text[len(number) :][:1]])
