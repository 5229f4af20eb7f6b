"""Runs a job of a stranger on this machine so that it can neither see nor harm nor outlast anything else.

The walls, from outside to inside:
- a control group bounds memory, processes and processor time, where we may make one (launch.py names the
  second best);
- under a superuser's agent, a user id of its own, so that even a hole in the rest meets a stranger's rights;
- bubblewrap gives it an empty network, its own process table, a file system of /usr, the runtime, a private
  /tmp and its work directory, and no privilege; hosts that its donor lists it reaches through host_proxy.py;
- the filter of seccomp.py refuses calls that lead around these.

How it ends: the first process of the job's process table is killed, with which the kernel kills all others of
that table at once; then its control group is emptied. The table dies with bubblewrap, and bubblewrap with the
agent's thread that started it (`--die-with-parent`), so `kill -9` of the agent ends the job as well.

How it starts: inside, with all walls up, a gate of one line of shell waits for a word from the agent. Until
then the agent opens the work directory and copies the inputs in. If the agent dies first, the gate reads the
end of file and gives up: no moment exists at which the job could run unwatched.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeVar

import trio

from node.donor.executors import cgroups, launch, workspace
from node.donor.executors.devices import DevicePool
from node.donor.executors.executor import (
    EndState,
    JobCommand,
    JobHandle,
    JobLost,
    JobNotStarted,
    Limits,
    Outcome,
    check_job_id,
)
from node.donor.executors.host_proxy import HostProxy
from node.donor.executors.running_job import RunningJob
from node.donor.executors.sandbox_process import SandboxProcess, open_memory_file
from node.donor.executors.seccomp import build_filter
from node.errors import UserError
from protocol.conversation import OUTPUT_NAME

_Result = TypeVar("_Result")

# The list of user id ranges that systemd publishes marks the ids from here to 2^31 as unused.
JOB_USER_BASE = 1_879_048_192
_JOB_USERS_MAX = 10_000
LOG_BYTES_MAX = 1 << 20
_TOOLS = {"bwrap": "bubblewrap", "prlimit": "util-linux", "taskset": "util-linux"}
_ROOT_TOOLS = {"setpriv": "util-linux", "unshare": "util-linux", "mount": "mount"}


def find_missing_tools() -> list[str]:
    """Debian packages that running jobs needs and this machine lacks."""
    needed = {**_TOOLS, **_ROOT_TOOLS} if os.geteuid() == 0 else _TOOLS
    return sorted({package for tool, package in needed.items() if shutil.which(tool) is None})


def compute_group_prefix(directory: Path) -> str:
    """How the names of a sandbox's control groups begin. Those of all agents of a machine lie side by side; the
    directory tells whose they are.
    """
    return f"allmende-{hashlib.sha256(os.fsencode(directory.resolve())).hexdigest()[:12]}-"


class Sandbox:
    """The executor that runs jobs on this machine. `directory` is its own; nothing else may lie there.

    Works for the superuser (own user id and a real disk for each job) and for an ordinary user (the user's
    own id behind the same walls, work directories in memory).
    """

    def __init__(
        self,
        directory: Path,
        *,
        job_user_base: int = JOB_USER_BASE,
        log_bytes_max: int = LOG_BYTES_MAX,
        is_using_cgroups: bool = True,
        devices: DevicePool | None = None,
    ) -> None:
        self._directory = directory.resolve()
        self._job_user_base = job_user_base
        self._log_bytes_max = log_bytes_max
        self._is_using_cgroups = is_using_cgroups
        self._devices = devices or DevicePool(None)
        self._trees: tuple[cgroups.Tree, ...] = ()
        self._is_swept = False
        self._is_image_possible = False
        self._lock: int | None = None
        self._group_prefix = compute_group_prefix(directory)

    @property
    def is_disk_in_memory(self) -> bool:
        assert self._is_swept, "sweep comes first"
        return not self._is_image_possible

    async def sweep(self) -> None:
        if missing := find_missing_tools():
            packages = " ".join(missing)
            raise UserError(f"jobs can't run here without {packages}: run apt-get install {packages}")
        build_filter(is_memory_counted=True)
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._take_lock()
        if self._is_using_cgroups:
            self._trees = cgroups.open_trees()
            await cgroups.remove_leftovers(self._trees, self._group_prefix)
        await trio.to_thread.run_sync(self._clear_directory)
        self._is_image_possible = await trio.to_thread.run_sync(workspace.is_image_possible, self._directory)
        self._is_swept = True

    def close(self) -> None:
        """Lets another agent use the directory. The end of the process does the same."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take_lock(self) -> None:
        if self._lock is None:
            self._lock = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise UserError(f"another donor agent works in {self._directory}: end it first") from None

    def _clear_directory(self) -> None:
        for path in self._directory.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()

    async def release(self, job_id: str) -> None:
        check_job_id(job_id)
        await trio.to_thread.run_sync(_remove_directory, self._directory / job_id)

    async def run(
        self,
        job_id: str,
        command: JobCommand,
        limits: Limits,
        *,
        task_status: trio.TaskStatus[JobHandle] = trio.TASK_STATUS_IGNORED,
    ) -> Outcome:
        assert self._is_swept, "sweep comes first"
        check_job_id(job_id)
        directory = self._directory / job_id
        try:
            directory.mkdir(mode=0o700)
        except FileExistsError:
            raise JobNotStarted(f"a job {job_id} is here already: release it first") from None
        is_complete = False
        try:
            outcome = await self._run_in(directory, job_id, command, limits, task_status)
            is_complete = True
            return outcome
        finally:
            if not is_complete:
                await _shielded(lambda: self.release(job_id))

    async def take_up(
        self,
        job_id: str,
        limits: Limits,
        output_bytes_max: int,
        *,
        task_status: trio.TaskStatus[JobHandle] = trio.TASK_STATUS_IGNORED,
    ) -> Outcome:
        """Never succeeds: a job in here dies with the agent that started it, however that died, so none is left to
        go on with. That is the price of the promise that no job ever runs unwatched. Raises: JobLost.
        """
        raise JobLost("a job in the sandbox ends with its agent")

    async def _run_in(
        self,
        directory: Path,
        job_id: str,
        command: JobCommand,
        limits: Limits,
        task_status: trio.TaskStatus[JobHandle],
    ) -> Outcome:
        try:
            proxy = HostProxy(command.hosts)
        except UserError as error:
            raise JobNotStarted(str(error)) from error
        async with AsyncExitStack() as stack:
            user = self._reserve_user(stack)
            stack.callback(self._devices.release, job_id)
            gpus = await trio.to_thread.run_sync(self._devices.reserve, job_id, limits.gpus)
            image = await self._make_image(directory, limits, user)
            group = await self._make_group(job_id, limits, stack)
            walls = launch.Walls(
                image=image,
                user=user,
                join_files=() if group is None else group.join_files,
                limited=frozenset() if group is None else group.limited,
                processors=_choose_processors(limits.cores),
                devices=self._devices.build_files(gpus),
            )
            process = _start(command, limits, walls)
            stack.push_async_callback(_shielded, process.close)
            stack.push_async_callback(_shielded, process.end)
            await process.wait_ready()
            door = process.take_door()
            if door is not None:
                stack.callback(door.close)
            if image is not None:
                image.unlink()  # it lives on as long as it is mounted, and no longer
            work = process.open_directory(launch.WORK)
            stack.callback(os.close, work)
            await trio.to_thread.run_sync(_stage, command, limits, work, user)
            log = workspace.BoundedLog(directory / "log", self._log_bytes_max)
            stack.callback(log.close)
            job = RunningJob(process, group, log, limits, work, self._devices.make_books(gpus))
            stack.callback(job.close)
            process.open_gate()
            task_status.started(job)
            async with trio.open_nursery() as nursery:
                if door is not None:
                    nursery.start_soon(proxy.serve, door)
                exit_status = await job.wait_end()
                nursery.cancel_scope.cancel()
            if group is not None:
                await _shielded(group.kill_all)
            usage = job.close_books()
            log.close()
            target = directory / "output"
            target.mkdir(mode=0o700)
            collect = functools.partial(workspace.copy_folder, work, OUTPUT_NAME, target)
            left_out = (await trio.to_thread.run_sync(collect, command.output_bytes_max)).left_out
            state: EndState = job.end_state or ("exited" if exit_status >= 0 else "killed")
            return Outcome(
                state=state,
                exit_status=exit_status if state == "exited" else None,
                usage=usage,
                output_directory=target,
                output_left_out=left_out,
                log_path=directory / "log",
            )

    def _reserve_user(self, stack: AsyncExitStack) -> int | None:
        """A user id that nobody else has, held until the job is over; none if we may not change ours.

        The reservation is an abstract socket name: unique on the machine, gone with this process.
        """
        if os.geteuid() != 0:
            return None
        for user in range(self._job_user_base, self._job_user_base + _JOB_USERS_MAX):
            if _is_user_known(user):
                continue
            reservation = socket.socket(socket.AF_UNIX)
            try:
                reservation.bind(f"\0allmende-job-user-{user}")
            except OSError:
                reservation.close()
                continue
            stack.callback(reservation.close)
            return user
        raise JobNotStarted(f"no user id from {self._job_user_base} on is free")

    async def _make_image(self, directory: Path, limits: Limits, user: int | None) -> Path | None:
        if not self._is_image_possible or user is None:
            return None
        free = shutil.disk_usage(directory).free
        if free < limits.disk_bytes:
            raise JobNotStarted(f"the donor's disk has {free} bytes left, the job wants {limits.disk_bytes}")
        image = directory / "disk"
        try:
            await trio.to_thread.run_sync(workspace.make_image, image, limits.disk_bytes, user)
        except (OSError, subprocess.SubprocessError) as error:
            raise JobNotStarted(f"the job's disk can't be made: {error}") from error
        return image

    async def _make_group(self, job_id: str, limits: Limits, stack: AsyncExitStack) -> cgroups.JobGroup | None:
        if not self._trees:
            return None
        try:
            group = cgroups.JobGroup.make(self._trees, self._group_prefix + job_id)
            stack.push_async_callback(_shielded, group.close)
            processes = limits.processes + launch.OWN_PROCESSES
            group.set_limits(memory_bytes=limits.memory_bytes, processes=processes, cores=limits.cores)
        except OSError as error:
            raise JobNotStarted(f"the job's control group can't be made: {error}") from error
        return group


def _start(command: JobCommand, limits: Limits, walls: launch.Walls) -> SandboxProcess:
    with_files = launch.build_files(command, build_filter("memory" in walls.limited))
    opened = {name: open_memory_file(name, content) for name, content in with_files.items()}
    information = os.pipe()
    door = None
    if command.hosts:
        door, inside = socket.socketpair()
        opened["door"] = inside.detach()
    try:
        opened["arguments"] = os.memfd_create("arguments")
        descriptors = launch.Descriptors(info=information[1], **opened)
        os.write(opened["arguments"], launch.build_bubblewrap_arguments(command, limits, walls, descriptors))
        os.lseek(opened["arguments"], 0, os.SEEK_SET)
        shell = "/usr/bin/bash" if Path("/usr/bin/bash").exists() else "/bin/sh"
        line = launch.build_command_line(command, limits, walls, descriptors, shell)
        return SandboxProcess(line, opened.values(), information, door)
    finally:
        for descriptor in opened.values():
            os.close(descriptor)


async def _shielded(action: Callable[[], Awaitable[_Result]]) -> _Result:
    """Completes an action that must not be given up halfway, even when this task is cancelled."""
    with trio.CancelScope(shield=True):
        result = await action()
    return result


def _stage(command: JobCommand, limits: Limits, work: int, user: int | None) -> None:
    """Fills the work directory before the job sees it. Raises: JobNotStarted if the inputs do not fit."""
    try:
        if "lost+found" in os.listdir(work):
            os.rmdir("lost+found", dir_fd=work)
        if command.input_directory is not None:
            source = os.open(command.input_directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                copied = workspace.copy_tree(source, work, limits.disk_bytes, user)
            finally:
                os.close(source)
            if copied.left_out:
                raise JobNotStarted(f"{copied.left_out} of the job's inputs do not fit or are no plain files")
        workspace.make_folders(work, user)
    except OSError as error:
        raise JobNotStarted(f"the job's inputs can't be placed in its work directory: {error}") from error


def _choose_processors(cores: float) -> tuple[int, ...]:
    allowed = sorted(os.sched_getaffinity(0))
    return tuple(allowed[: max(1, -int(-cores // 1))])


def _is_user_known(user: int) -> bool:
    """Whether an account of this machine or a process that runs now has this user id."""
    try:
        pwd.getpwuid(user)
        return True
    except KeyError:
        pass
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == user:
                return True
        except OSError:
            continue
    return False


def _remove_directory(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)
