"""Runs jobs on a Slurm cluster. What a job took is what Slurm's accounting says, so anybody there can check a charge.

The agent only wishes and looks: a loop compares what the queue says with what is wanted (run, stand still, end) and
asks for the difference, until accounting knows the end. So a controller that is down, slow or was killed delays, and
changes nothing; and an agent that was killed goes on with the loop where it was (`take_up`).

A job that waits in the queue costs nothing: its handle is reported when its program is about to run, and its time is
Slurm's, from the start on, without suspensions, in whole seconds.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from node.donor.executors.executor import (
    EndState,
    JobCommand,
    JobHandle,
    JobLost,
    JobNotStarted,
    Limits,
    Outcome,
    Usage,
    check_job_id,
)
from node.donor.executors.seccomp import build_filter
from node.donor.executors.slurm_commands import (
    AccountedJob,
    QueuedJob,
    SlurmCommands,
    SlurmRefused,
    SlurmSilent,
    insist,
)
from node.donor.executors.slurm_files import JobFolder, JobNote, TooMany
from node.donor.executors.slurm_script import build_files, build_script, build_submission
from node.donor.executors.slurm_settings import SlurmSettings
from node.errors import UserError

log = logging.getLogger(__name__)

NAME_PREFIX = "allmende-"
JOB_USER_BASE = 1_879_058_192
"""From here on, user ids for jobs under a superuser's agent; above those that the sandbox takes."""
_JOB_USERS = 10_000
ABSENT_LOOKS = 2
"""So often in a row must queue and accounting, both of which answer, not know a job before it is taken as forgotten."""
ABSENT_SECONDS = 1.0
FORGETTING_SECONDS = 120.0
"""A controller that is killed forgets what was submitted some seconds before; older jobs are on its disk."""
DISK_SECONDS = 20.0
END_SECONDS_MAX = 120.0

_END_STATES: dict[str, EndState] = {
    "TIMEOUT": "walltime",
    "DEADLINE": "walltime",
    "OUT_OF_MEMORY": "out_of_memory",
    "PREEMPTED": "preempted",
    "CANCELLED": "preempted",  # by somebody else than us: those whose cluster it is
    "NODE_FAIL": "lost",
    "BOOT_FAIL": "lost",
    "REVOKED": "lost",
}


class SlurmJob:
    """The handle of one job, and what is wanted of it."""

    def __init__(self, folder: JobFolder, note: JobNote, limits: Limits) -> None:
        self.folder = folder
        self.note = note
        self.limits = limits
        self.wish = trio.Event()
        """Set when the loop has to act; it puts a new one in its place."""
        self.is_suspension_wanted = False
        self.is_suspended = False
        self.was_suspended = False
        self.is_reported = False
        self._usage = Usage(wall_ms=0, cpu_us=None, memory_peak_bytes=0)
        self._log_bytes = 0

    @property
    def log_bytes(self) -> int:
        self._log_bytes = max(self._log_bytes, self.folder.printed_bytes)
        return self._log_bytes

    def read_log_tail(self, bytes_max: int) -> bytes:
        return self.folder.read_printed(bytes_max)

    def usage(self) -> Usage:
        return self._usage

    def suspend(self) -> None:
        self.is_suspension_wanted = True
        self.wish.set()

    def resume(self) -> None:
        self.is_suspension_wanted = False
        self.wish.set()

    def copy_checkpoint(self, target: Path, bytes_max: int) -> bool:
        return self.folder.copy_checkpoint(target, bytes_max)

    def stop(self) -> None:
        self.end("killed")

    def end(self, state: EndState) -> None:
        """The first reason counts, and is on disk before anything is done."""
        if not self.note.end_state and not self.note.is_over:
            self.note.end_state = state
            self.folder.save_note(self.note)
            self.wish.set()

    def count(self, queued: QueuedJob) -> None:
        """Take over how long it has run."""
        # Accounting rounds the parts between suspensions for itself.
        wall_ms = max(0, queued.elapsed_seconds - self.was_suspended) * 1000
        if wall_ms > self._usage.wall_ms:
            self._usage = Usage(wall_ms=wall_ms, cpu_us=None, memory_peak_bytes=0)

    def close_books(self, accounted: AccountedJob) -> Usage:
        """What accounting says counts."""
        self._usage = Usage(
            wall_ms=accounted.elapsed_seconds * 1000,
            cpu_us=None if accounted.cpu_seconds is None else accounted.cpu_seconds * 1_000_000,
            memory_peak_bytes=accounted.memory_peak_bytes,
        )
        self.note.is_over = True
        self.folder.save_note(self.note)
        return self._usage


class SlurmExecutor:
    """The executor that gives jobs to a cluster. The settings' shared directory is its own."""

    is_disk_in_memory = False

    def __init__(self, settings: SlurmSettings) -> None:
        self._settings = settings
        self._directory = Path(settings.shared_directory)
        self._slurm = SlurmCommands(tuple(settings.prefix), settings.poll_seconds)

    def close(self) -> None:
        """Nothing is held open."""

    async def sweep(self) -> None:
        """Raises: UserError when the cluster can't be used. Jobs of a killed agent stay, to be taken up."""
        if missing := self._slurm.find_missing_tools():
            raise UserError(f"Slurm can't be used without {' '.join(missing)}: run apt-get install slurm-client")
        try:
            await self._slurm.call("squeue", "--me", "-h")
            await self._slurm.find_accounted(NAME_PREFIX, time.time())
        except SlurmSilent as error:
            raise UserError(
                f"Slurm can't be used, or keeps no accounting (slurmdbd), on which charges rest: {error}"
            ) from None
        await trio.to_thread.run_sync(self._clear_directory)

    def _clear_directory(self) -> None:
        try:
            self._directory.mkdir(mode=0o711, parents=True, exist_ok=True)
            for path in self._directory.iterdir():
                if path.is_dir() and JobFolder(path).load_note() is None:
                    JobFolder(path).remove()
        except OSError as error:
            raise UserError(f"the shared directory {self._directory} can't be used: {error}") from None

    # -- the interface --------------------------------------------------------------------------------------------

    async def run(
        self,
        job_id: str,
        command: JobCommand,
        limits: Limits,
        *,
        task_status: trio.TaskStatus[JobHandle] = trio.TASK_STATUS_IGNORED,
    ) -> Outcome:
        check_job_id(job_id)
        if command.hosts:
            raise JobNotStarted("jobs on this cluster can't reach any other machine")
        folder = JobFolder(self._directory / job_id)
        try:
            folder.path.mkdir(mode=0o700)
        except FileExistsError:
            raise JobNotStarted(f"a job {job_id} is here already: release it first") from None
        except OSError as error:
            raise JobNotStarted(f"the job's folder can't be made: {error}") from None
        job = SlurmJob(folder, JobNote("", 0.0), limits)
        async with self._responsible_for(job_id):
            await trio.to_thread.run_sync(self._stage, job, command, job_id)
            await self._submit(job, job_id)
            return await self._follow(job, job_id, command.output_bytes_max, task_status)

    async def take_up(
        self,
        job_id: str,
        limits: Limits,
        output_bytes_max: int,
        *,
        task_status: trio.TaskStatus[JobHandle] = trio.TASK_STATUS_IGNORED,
    ) -> Outcome:
        check_job_id(job_id)
        folder = JobFolder(self._directory / job_id)
        note = await trio.to_thread.run_sync(folder.load_note)
        if note is None:
            raise JobLost(f"of the job {job_id} nothing is left here")
        job = SlurmJob(folder, note, limits)
        job.was_suspended = True  # it may have been; this only keeps the readings of its time low
        try:
            async with self._responsible_for(job_id):
                return await self._follow(job, job_id, output_bytes_max, task_status)
        except JobNotStarted as error:
            raise JobLost(str(error)) from None

    @asynccontextmanager
    async def _responsible_for(self, job_id: str) -> AsyncIterator[None]:
        """Whatever goes wrong inside, cancellation included, takes the job along."""
        try:
            yield
        except BaseException:
            with trio.CancelScope(shield=True):
                await self.release(job_id)
            raise

    async def release(self, job_id: str) -> None:
        check_job_id(job_id)
        folder = JobFolder(self._directory / job_id)
        note = await trio.to_thread.run_sync(folder.load_note)
        if note is not None and not note.is_over:
            await self._end_by_force(note)
        await trio.to_thread.run_sync(folder.remove)

    # -- before the start -----------------------------------------------------------------------------------------

    def _stage(self, job: SlurmJob, command: JobCommand, job_id: str) -> None:
        """Raises: JobNotStarted."""
        number = int.from_bytes(hashlib.sha256(job_id.encode()).digest()[:4]) % _JOB_USERS
        owner = JOB_USER_BASE + number if os.geteuid() == 0 else None
        folder = job.folder
        # Whether the cluster counts memory is not known here.
        filter_program = build_filter(is_memory_counted=False)
        files = build_files(command, job.limits, folder.work, owner, filter_program)
        files["batch"] = build_script(command, job.limits, folder.path, owner, self._settings).encode()
        try:
            folder.stage(files, command.input_directory, job.limits.disk_bytes, owner)
        except OSError as error:
            raise JobNotStarted(f"the job's inputs can't be placed in its folder: {error}") from error

    async def _submit(self, job: SlurmJob, job_id: str) -> None:
        """Returns when Slurm has taken it in, once. Raises: JobNotStarted when it won't."""
        # A name that was never used keeps apart what was submitted again, or ran before under the same id.
        job.note.name, job.note.submitted_at_seconds = f"{NAME_PREFIX}{job_id}-{secrets.token_hex(4)}", time.time()
        await trio.to_thread.run_sync(job.folder.save_note, job.note)
        line = build_submission(job.note.name, job_id, job.limits, job.folder.path, self._settings)
        while True:
            try:
                await self._slurm.call(*line)
                return
            except SlurmRefused as refusal:
                raise JobNotStarted(f"Slurm does not take the job: {refusal}") from None
            except SlurmSilent as silence:  # it may have taken the job in all the same
                log.warning("job %s: Slurm did not answer the submission (%s)", job_id[:8], silence)
            if not await self._is_surely_absent(job):
                return

    async def _is_surely_absent(self, job: SlurmJob) -> bool:
        """True when the queue does not know the job and accounting not how it ended, though both answer, again and
        again, and no process has claimed it meanwhile.
        """
        name, since, was_claimed = job.note.name, job.note.submitted_at_seconds, job.folder.is_claimed
        for _ in range(ABSENT_LOOKS):
            if await insist(lambda: self._slurm.look(name, is_fresh=True)) is not None:
                return False
            accounted = await insist(lambda: self._slurm.find_accounted(name, since))
            if accounted is not None and accounted.is_ended and not self._may_be_forgotten(job, accounted):
                return False
            await trio.sleep(ABSENT_SECONDS)
        return job.folder.is_claimed == was_claimed

    # -- following ------------------------------------------------------------------------------------------------

    async def _follow(
        self, job: SlurmJob, job_id: str, output_bytes_max: int, task_status: trio.TaskStatus[JobHandle]
    ) -> Outcome:
        """Look and act until the job has ended, then take everything over. Raises: JobNotStarted."""
        disk_at = time.monotonic() + DISK_SECONDS
        while True:
            try:
                queued, accounted = await self._look_and_act(job)
            except SlurmSilent as silence:
                log.warning("job %s: Slurm does not answer (%s)", job_id[:8], silence)
                await trio.sleep(self._settings.poll_seconds)
                continue
            if not job.is_reported and await trio.to_thread.run_sync(lambda: job.folder.is_entered):
                job.is_reported = True
                task_status.started(job)
            if queued is None and self._may_be_forgotten(job, accounted):
                if await self._is_surely_absent(job):
                    log.warning("job %s: Slurm forgot it before it ran; it is submitted again", job_id[:8])
                    await self._submit(job, job_id)
            elif accounted is not None and accounted.is_ended:
                return await self._conclude(job, accounted, output_bytes_max)
            elif queued is None and await self._is_surely_absent(job):
                return await self._give_up(job, output_bytes_max)
            if time.monotonic() > disk_at:
                await self._check_disk(job)
                disk_at = time.monotonic() + DISK_SECONDS
            await self._pause(job, queued)

    async def _look_and_act(self, job: SlurmJob) -> tuple[QueuedJob | None, AccountedJob | None]:
        """What the queue says and, once the job has left it, what accounting does. Raises: SlurmSilent."""
        queued = await self._slurm.look(job.note.name, is_fresh=job.wish.is_set())
        if queued is None or queued.is_ended:
            return queued, await self._slurm.find_accounted(job.note.name, job.note.submitted_at_seconds)
        job.count(queued)
        await self._act(job, queued)
        return queued, None

    def _may_be_forgotten(self, job: SlurmJob, accounted: AccountedJob | None) -> bool:
        """Whether a young job that has vanished from the queue, and that no process has claimed, was forgotten.

        A controller that comes back writes off in accounting what it does not know any more.
        """
        is_young = time.time() - job.note.submitted_at_seconds < FORGETTING_SECONDS
        is_written_off = accounted is None or accounted.state in ("CANCELLED", "NODE_FAIL") or not accounted.is_ended
        return is_young and is_written_off and not (job.folder.is_claimed or job.note.end_state)

    async def _pause(self, job: SlurmJob, queued: QueuedJob | None) -> None:
        """Until the next look, a wish, or the end of the wall time."""
        left = job.limits.wall_seconds - job.usage().wall_ms / 1000 if queued is not None else math.inf
        with trio.move_on_after(min(self._settings.poll_seconds, max(0.2, left))):
            await job.wish.wait()

    async def _act(self, job: SlurmJob, queued: QueuedJob) -> None:
        """Bring about what is wanted of a job that has not ended. Raises: SlurmSilent."""
        if job.wish.is_set():
            job.wish = trio.Event()
        if job.usage().wall_ms >= job.limits.wall_seconds * 1000:
            job.end("walltime")
        try:
            if job.note.end_state:
                await self._slurm.cancel(job.note.name)
            elif job.is_suspension_wanted != job.is_suspended and queued.state in ("RUNNING", "SUSPENDED"):
                await self._change_suspension(job, queued)
        except SlurmRefused as refusal:  # it has just ended, or changes state at this moment: the next look tells
            log.info("Slurm: %s", refusal)

    async def _change_suspension(self, job: SlurmJob, queued: QueuedJob) -> None:
        """Slurm freezes all processes of the job, some two seconds later, and counts no time from now on.

        That needs an operator's rights. Without them the job runs on, and its time counts: signals reach only the
        outermost of its processes. Raises: SlurmSilent, SlurmRefused.
        """
        is_wanted = job.is_suspension_wanted
        job.was_suspended = True
        if (queued.state == "SUSPENDED") != is_wanted:
            try:
                await self._slurm.call("scontrol", "suspend" if is_wanted else "resume", str(queued.number))
            except SlurmRefused as refusal:
                if "permission" not in str(refusal).lower():
                    raise
                log.warning("this cluster does not let the agent suspend jobs, which needs an operator's rights")
        job.is_suspended = is_wanted

    async def _check_disk(self, job: SlurmJob) -> None:
        try:
            taken = await trio.to_thread.run_sync(job.folder.measure_work_bytes)
        except OSError:  # the file system does not answer well
            return
        except TooMany:
            log.warning("a job keeps more files than can be counted, or closed folders: it is ended")
            job.end("killed")
            return
        if taken > job.limits.disk_bytes:
            log.warning("a job keeps %d bytes of %d: it is ended", taken, job.limits.disk_bytes)
            job.end("killed")

    # -- ending ---------------------------------------------------------------------------------------------------

    async def _conclude(self, job: SlurmJob, accounted: AccountedJob, output_bytes_max: int) -> Outcome:
        """The outcome. Raises: JobNotStarted when the program never ran."""
        if not job.is_reported:
            printed = " ".join(job.folder.read_printed(300).decode(errors="replace").split())
            raise JobNotStarted(f"the job did not start on the cluster ({accounted.state.lower()}): {printed}")
        state: EndState = _END_STATES.get(accounted.state, "exited")
        if accounted.state == "CANCELLED" and job.note.end_state:
            state = "walltime" if job.note.end_state == "walltime" else "killed"
        if job.folder.read_claim() != str(accounted.number):
            state = "lost"  # this one found that another, which Slurm has forgotten, had run it
        usage = job.close_books(accounted)
        exit_status = 128 + accounted.exit_signal if accounted.exit_signal else accounted.exit_code
        output, left_out, log_path = await trio.to_thread.run_sync(job.folder.collect, output_bytes_max)
        return Outcome(state, exit_status if state == "exited" else None, usage, output, left_out, log_path)

    async def _give_up(self, job: SlurmJob, output_bytes_max: int) -> Outcome:
        """Slurm forgot a job that ran, and has killed what was left of it. Raises: JobNotStarted."""
        if not job.is_reported:
            raise JobNotStarted("Slurm has forgotten the job, and its program never ran")
        job.note.is_over = True
        await trio.to_thread.run_sync(job.folder.save_note, job.note)
        output, left_out, log_path = await trio.to_thread.run_sync(job.folder.collect, output_bytes_max)
        return Outcome("lost", None, job.usage(), output, left_out, log_path)

    async def _end_by_force(self, note: JobNote) -> None:
        """Returns when no process of the job is left, or Slurm stays silent for too long."""
        with trio.move_on_after(END_SECONDS_MAX):
            while True:
                try:
                    queued = await self._slurm.look(note.name, is_fresh=True)
                    if queued is None or queued.is_ended:
                        return
                    await self._slurm.cancel(note.name)
                except SlurmSilent as silence:
                    log.warning("Slurm does not answer: %s", silence)
                await trio.sleep(min(1.0, self._settings.poll_seconds))
