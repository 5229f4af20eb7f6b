"""A job in the sandbox between its start and its end: its limits kept, its time counted, its pauses, its checkpoints.

Two reasons may make a job stand still: its owner's machine is wanted (`suspend`), or its checkpoint is being copied.
It goes on when neither holds. Time in which it stands still is nobody's: it counts for no limit and no price.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import trio

from node.donor.executors import cgroups, workspace
from node.donor.executors.devices import DeviceBooks
from node.donor.executors.executor import EndState, Limits, Usage
from node.donor.executors.sandbox_process import SandboxProcess
from protocol.conversation import CHECKPOINT_NAME

_WATCH_SECONDS = 0.1
_LOG_SECONDS = 0.005  # between two takings of at most 64 KiB: 13 MB a second
_LAST_WORDS_SECONDS = 1.0
_STILL_POLL_SECONDS = 0.002
_STILL_WAIT_SECONDS = 5.0  # a process that waits for a disk stands still only after that
_STOP_PASSES = 10


class RunningJob:
    """The handle that the agent gets, and the guard of the job's limits.

    `work` is the job's work directory, which stays open until `close`. Invariants: the job stands still if and only
    if `_is_suspended` or `_copies > 0`, within moments; what a call by the agent changes, it changes under `_lock`,
    which nobody holds while waiting for anything. So the agent's calls return at once, whatever a copy's thread does.
    """

    def __init__(
        self,
        process: SandboxProcess,
        group: cgroups.JobGroup | None,
        log: workspace.BoundedLog,
        limits: Limits,
        work: int,
        devices: DeviceBooks,
    ) -> None:
        self.end_state: EndState | None = None
        self._process = process
        self._group = group
        self._log = log
        self._limits = limits
        self._work = work
        self._devices = devices
        self._lock = threading.RLock()
        self._is_suspended = False
        self._copies = 0
        self._is_closed = False
        self._memory_peak_bytes = 0
        self._final: Usage | None = None
        self._latest = Usage(wall_ms=0, cpu_us=None, memory_peak_bytes=0)
        # What setting up took is ours, not the job's.
        self._cpu_us_before = self._read_cpu_us() or 0
        self._ran_seconds = 0.0  # until the last time that it began or ceased to stand still
        self._running_since: float | None = time.monotonic()

    @property
    def log_bytes(self) -> int:
        return self._log.bytes_written

    def read_log_tail(self, bytes_max: int) -> bytes:
        return self._log.read_tail(bytes_max)

    def stop(self) -> None:
        self.end("killed")

    def suspend(self) -> None:
        with self._lock:
            self._is_suspended = True
            self._stop_or_continue()

    def resume(self) -> None:
        with self._lock:
            self._is_suspended = False
            self._stop_or_continue()

    def copy_checkpoint(self, target: Path, bytes_max: int) -> bool:
        """As in JobHandle, until the executor's `run` returns; the job stands still meanwhile.

        A job that is ended by force meanwhile is not held up, and the copy is given up. One that ended before has
        left its folder as it is.
        """
        with self._lock:
            if self._is_closed:
                return False
            work = os.dup(self._work)
            self._copies += 1
            self._stop_or_continue()
        try:
            return self._wait_still() and self._copy_folder(work, target, bytes_max)
        finally:
            os.close(work)
            with self._lock:
                self._copies -= 1
                self._stop_or_continue()

    def usage(self) -> Usage:
        if self._final is not None:
            return self._final
        with suppress(FileNotFoundError):  # `run` was cancelled, and the counters are gone
            cpu_us = self._read_cpu_us()
            self._latest = Usage(
                wall_ms=round(self._count_seconds() * 1000),
                cpu_us=None if cpu_us is None else cpu_us - self._cpu_us_before,
                memory_peak_bytes=self._read_memory_peak_bytes(),
                gpu_busy_ms=self._devices.gpu_busy_ms,
                energy_joules=self._devices.energy_joules,
            )
        return self._latest

    def close_books(self) -> Usage:
        """The final usage, to be read after the last process has gone and before the counters go."""
        if self._group is not None and self._group.count_memory_kills() > 0:
            self.end_state = "out_of_memory"
        self._final = self.usage()
        return self._final

    def close(self) -> None:
        """Ends the job if it runs, suspended or not. No call has an effect from then on."""
        with self._lock:
            if not self._is_closed:
                self._kill()
                self._is_closed = True

    def end(self, state: EndState) -> None:
        """Kills the job, unless it has ended; the first reason counts."""
        with self._lock:
            if self._final is None and self.end_state is None and not self._is_closed:
                self.end_state = state
                self._kill()

    async def wait_end(self) -> int:
        """Waits for the job's end or brings it about; then gives bubblewrap's exit status, negative if killed."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read_log)
            nursery.start_soon(self._watch)
            nursery.start_soon(self._devices.watch)
            await self._process.wait_end()
            with trio.CancelScope(shield=True):
                exit_status = await self._process.end()
            nursery.cancel_scope.cancel()
        # What was printed last may still be in the pipe. Nobody writes to it any more; yet the kernel may take long
        # to see that it is at its end, if the job had sent itself the pipe in a message that was never received.
        with trio.move_on_after(_LAST_WORDS_SECONDS, shield=True):
            await self._read_log()
        return exit_status

    async def _read_log(self) -> None:
        """Takes what the job prints, at a pace that costs the agent little, whatever it prints how fast."""
        while block := await self._process.read_output():
            self._log.write(block)
            await trio.sleep(_LOG_SECONDS)

    async def _watch(self) -> None:
        """Ends the job once it has met a limit.

        With a control group, one that met its memory limit has lost a process to the kernel already; a job that
        lost a part of itself is over, whichever part it was.
        """
        while True:
            left = self._limits.wall_seconds - self._count_seconds()
            if left <= 0:
                self.end("walltime")
                return
            if self._is_memory_exceeded():
                self.end("out_of_memory")
                return
            with self._lock:
                if self._is_standing():
                    self._stop_processes()  # those that came through, if any
            await trio.sleep(min(left, _WATCH_SECONDS))

    def _is_memory_exceeded(self) -> bool:
        if self._group is not None and "memory" in self._group.limited:
            return self._group.count_memory_kills() > 0
        now = self._process.measure_memory_bytes(self._limits.memory_bytes)
        self._memory_peak_bytes = max(self._memory_peak_bytes, now)
        return now > self._limits.memory_bytes

    def _is_standing(self) -> bool:
        return self._is_suspended or self._copies > 0

    def _stop_or_continue(self) -> None:
        """Makes the job stand still or go on, as is wanted now, and counts its time accordingly."""
        if self.end_state is not None or self._is_closed:
            return
        if self._is_standing() and self._running_since is not None:
            self._ran_seconds = self._count_seconds()
            self._running_since = None
            self._stop_processes()
            self._devices.suspend()
        elif not self._is_standing() and self._running_since is None:
            self._running_since = time.monotonic()
            self._devices.resume()
            if self._group is not None and self._group.can_freeze:
                self._group.set_frozen(False)
            else:
                self._process.continue_all()

    def _stop_processes(self) -> bool:
        """Whether the job stands still for certain. Without a freezer it may outrun this once: repeat it."""
        if self._group is not None and self._group.can_freeze:
            self._group.set_frozen(True)
            return self._group.is_frozen
        were_still = False
        for _ in range(_STOP_PASSES):
            before, were_still = were_still, self._process.stop_all()
            if before and were_still:
                return True
        return False

    def _wait_still(self) -> bool:
        """Waits until no process of the job does anything. False if one goes on all the same, or it was ended."""
        deadline = time.monotonic() + _STILL_WAIT_SECONDS
        while time.monotonic() < deadline:
            with self._lock:
                if not self._is_copy_wanted():
                    return False
                if self._stop_processes():
                    return True
            time.sleep(_STILL_POLL_SECONDS)
        return False

    def _copy_folder(self, work: int, target: Path, bytes_max: int) -> bool:
        try:
            copied = workspace.copy_folder(work, CHECKPOINT_NAME, target, bytes_max, self._is_copy_wanted)
        except (OSError, workspace.GivenUp):
            return False
        return copied.files > 0 and copied.left_out == 0

    def _is_copy_wanted(self) -> bool:
        return self.end_state is None and not self._is_closed

    def _kill(self) -> None:
        """Its first process, with which all others inside die; and its group, which wakes those that are frozen."""
        self._process.kill()
        if self._group is not None:
            self._group.kill()

    def _count_seconds(self) -> float:
        """How long the job has run, without the time in which it stood still."""
        with self._lock:
            since = self._running_since
            return self._ran_seconds + (0.0 if since is None else time.monotonic() - since)

    def _read_memory_peak_bytes(self) -> int:
        """What the group counted, or else the highest of the sums that the watch took."""
        return max(self._memory_peak_bytes, 0 if self._group is None else self._group.read_memory_peak_bytes())

    def _read_cpu_us(self) -> int | None:
        return None if self._group is None else self._group.read_cpu_us()
