"""Which GPUs are lent, which job has which of them now, and what each job takes of its own.

A job is given whole cards, and nobody else's: it sees the device files of its own cards alone, so no setting of its
own leads to another. Only cards that are lent, whole, sound and in nobody else's use are given (spec 12.11). The books
of a job's cards are kept here, too: energy from the cards' own counters, busy time by looking often.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import trio

from node.donor.executors.executor import JobNotStarted
from node.donor.gpus import Activity, Gpu, GpuDriver, is_descendant

DEVICES = Path("/dev")
SAMPLE_SECONDS = 1.0
"""Time between two looks at what a card does: the cards average over up to a second themselves."""
_SHARED = ("nvidiactl", "nvidia-uvm")
_SHARED_OPTIONAL = ("nvidia-uvm-tools",)


class DeviceFiles(NamedTuple):
    """What the walls of a job let through for its cards, and how its programs find them."""

    needed: tuple[Path, ...] = ()
    optional: tuple[Path, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


NO_DEVICES = DeviceFiles()


class DevicePool:
    """The cards that are lent. Invariant: a card belongs to one job at most.

    `is_ours` tells processes of our jobs from those of others; `devices` is where the device files lie.
    """

    def __init__(
        self,
        driver: GpuDriver | None,
        lent: Collection[str] = (),
        *,
        is_ours: Callable[[int], bool] | None = None,
        devices: Path = DEVICES,
    ) -> None:
        self._driver = driver
        self._lent = frozenset(lent)
        self._is_ours = is_ours or _is_of_this_agent
        self._devices = devices
        self._owners: dict[str, str] = {}
        self._lock = threading.Lock()

    def reserve(self, job_id: str, count: int) -> tuple[Gpu, ...]:
        """Give a job so many cards, or none at all. May block for some milliseconds. Raises: JobNotStarted."""
        if count == 0:
            return ()
        with self._lock:
            free, reasons = self._find_free()
            if len(free) < count:
                why = f" ({'; '.join(reasons)})" if reasons else ""
                raise JobNotStarted(f"the job wants {count} GPUs, {len(free)} of {len(self._lent)} are free{why}")
            chosen = tuple(free[:count])
            for gpu in chosen:
                self._owners[gpu.uuid] = job_id
        return chosen

    def release(self, job_id: str) -> None:
        """The job has no process any more."""
        with self._lock:
            self._owners = {uuid: owner for uuid, owner in self._owners.items() if owner != job_id}

    @property
    def lent(self) -> frozenset[str]:
        """UUIDs of the cards that are lent."""
        return self._lent

    def lend(self, uuids: Collection[str]) -> None:
        """Lend these from now on; jobs keep what they have."""
        with self._lock:
            self._lent = frozenset(uuids)

    def list_lent(self) -> tuple[Gpu, ...]:
        """Those that are lent and answer, as their driver describes them now."""
        return tuple(gpu for gpu in self._driver.list_gpus() if gpu.uuid in self._lent) if self._driver else ()

    def count_free(self) -> int:
        """Cards that could be given now."""
        with self._lock:
            return len(self._find_free()[0])

    def list_foreign_processes(self) -> tuple[int, ...]:
        """Ids of processes on lent cards that are not of our jobs: the owner, or another program, is at work there."""
        found = (
            {process for uuid in self._lent for process in self._driver.find_processes(uuid)} if self._driver else ()
        )
        return tuple(sorted(process for process in found if not self._is_ours(process)))

    def build_files(self, gpus: Collection[Gpu]) -> DeviceFiles:
        """What has to be let through for these cards. Raises: JobNotStarted when a file is missing or closed."""
        if not gpus:
            return NO_DEVICES
        needed = [self._devices / f"nvidia{gpu.minor_number}" for gpu in gpus]
        needed += [self._devices / name for name in _SHARED]
        for path in needed:
            _check_usable(path)
        # By name: numbers count the cards that one can see, so they differ inside and outside.
        uuids = ",".join(gpu.uuid for gpu in gpus)
        return DeviceFiles(
            tuple(needed),
            tuple(self._devices / name for name in _SHARED_OPTIONAL),
            (("CUDA_VISIBLE_DEVICES", uuids), ("NVIDIA_VISIBLE_DEVICES", uuids)),
        )

    def make_books(self, gpus: Collection[Gpu]) -> DeviceBooks:
        """The books of a job with these cards, perhaps none."""
        return DeviceBooks(self._driver, [gpu.uuid for gpu in gpus])

    def _find_free(self) -> tuple[list[Gpu], list[str]]:
        """Lent cards that can be given, and why some can't."""
        if self._driver is None:
            return [], ["this machine has no working driver"] if self._lent else []
        free, reasons = [], []
        there = {gpu.uuid: gpu for gpu in self._driver.list_gpus()}
        for uuid in sorted(self._lent, key=lambda uuid: there[uuid].minor_number if uuid in there else -1):
            gpu = there.get(uuid)
            why = self._find_reason(uuid, gpu)
            if gpu is not None and not why:
                free.append(gpu)
            else:
                reasons.append(f"{uuid}: {why}")
        return free, reasons

    def _find_reason(self, uuid: str, gpu: Gpu | None) -> str:
        """Why a card can't be given; empty when it can."""
        assert self._driver is not None
        if uuid in self._owners:
            return "another job has it"
        if gpu is None:
            return ", ".join(self._driver.read_health(uuid).faults) or "it does not answer"
        found = self._driver.survey(gpu, self._is_ours)
        return found.obstacle or ("somebody else computes on it" if found.foreign_processes else "")


class DeviceBooks:
    """What one job's cards did for it, from `watch` on, without suspensions; nothing for a job without cards.

    Busy time is a sample: each look counts the share of time in which a card computed for the time since the look
    before. Energy is exact where every card of the job counts it, else none. Calls block for milliseconds; any thread
    may make them.
    """

    def __init__(
        self, driver: GpuDriver | None, uuids: Collection[str], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._driver = driver
        self._uuids = tuple(uuids) if driver is not None else ()
        self._now = now
        self._lock = threading.Lock()
        self._is_running = False
        self._last_at = 0.0
        self._last_energy: dict[str, int | None] = {}
        self._busy_ms: float | None = 0.0 if self._uuids else None
        self._energy_millijoules: int | None = 0 if self._uuids else None

    @property
    def gpu_busy_ms(self) -> int | None:
        """Milliseconds in which cards computed, summed over them; none once a card did not tell."""
        return None if self._busy_ms is None else round(self._busy_ms)

    @property
    def energy_joules(self) -> int | None:
        """What they took, summed over them; none once a card did not tell."""
        return None if self._energy_millijoules is None else self._energy_millijoules // 1000

    async def watch(self) -> None:
        """Keep the books until cancelled; a last look is taken then."""
        if not self._uuids:
            return
        await trio.to_thread.run_sync(self.resume)
        try:
            while True:
                await trio.sleep(SAMPLE_SECONDS)
                await trio.to_thread.run_sync(self.sample)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self.suspend)

    def resume(self) -> None:
        """The job computes from now on. Has no effect when it does already."""
        with self._lock:
            if not self._is_running:
                self._is_running = True
                self._last_at = self._now()
                self._last_energy = {uuid: self._read(uuid).energy_millijoules for uuid in self._uuids}

    def suspend(self) -> None:
        """What follows is not the job's, until `resume`."""
        with self._lock:
            self._look()
            self._is_running = False

    def sample(self) -> None:
        """One look. Has no effect while the job is suspended."""
        with self._lock:
            self._look()

    def _look(self) -> None:
        if not self._is_running:
            return
        now = self._now()
        for uuid in self._uuids:
            activity = self._read(uuid)
            self._add_busy(activity.utilisation_percent, (now - self._last_at) * 1000)
            self._add_energy(uuid, activity.energy_millijoules)
        self._last_at = now

    def _read(self, uuid: str) -> Activity:
        assert self._driver is not None
        return self._driver.read_activity(uuid)

    def _add_busy(self, utilisation_percent: int | None, passed_ms: float) -> None:
        if utilisation_percent is None or self._busy_ms is None:
            self._busy_ms = None
        else:
            self._busy_ms += passed_ms * min(100, utilisation_percent) / 100

    def _add_energy(self, uuid: str, energy: int | None) -> None:
        before = self._last_energy[uuid]
        # A counter that went back was reset with its card: nobody knows what was taken meanwhile.
        if energy is None or before is None or energy < before or self._energy_millijoules is None:
            self._energy_millijoules = None
        else:
            self._energy_millijoules += energy - before
        self._last_energy[uuid] = energy


def _is_of_this_agent(process: int) -> bool:
    return is_descendant(process, {os.getpid()})


def _check_usable(path: Path) -> None:
    """A job runs under a user id of its own, so only what anybody may use is of use to it. Raises: JobNotStarted."""
    try:
        mode = path.stat().st_mode
    except OSError:
        raise JobNotStarted(
            f"{path} is missing: is the NVIDIA driver complete? (nvidia-modprobe -u makes it)"
        ) from None
    if not stat.S_ISCHR(mode) or mode & 0o006 != 0o006:
        raise JobNotStarted(f"{path} can't be used by jobs: it must be a device that everybody may read and write")
