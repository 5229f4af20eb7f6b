"""A job's program while it runs: watched, metered, reported, suspended when the owner wants the machine, and ended.

It ends by itself, by a limit, by the payer's wish, by the meter when the payer falls silent, or by the owner. Which of
these came first is kept, since the refund depends on it (spec 12.4).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from node.donor.calling import PATIENCE_SECONDS, Line
from node.donor.checkpoints import CheckpointKeeper
from node.donor.executors.executor import (
    FOREIGN_ENDS,
    JobCommand,
    JobHandle,
    JobLost,
    JobNotStarted,
    Limits,
    Outcome,
)
from node.donor.idleness import Sample, add_sample, describe_idleness, is_idle
from node.donor.job_file import JobFile
from node.donor.meter import Meter
from node.donor.settling import is_reclaim_asked
from node.donor.workshop import Workshop
from protocol.conversation import LOG_CHUNK_BYTES_MAX, LogChunk, Standing, Started, Ticked
from protocol.metering import CHARGED_STATES, JobState
from protocol.quotes import Quote, QuoteRequest

log = logging.getLogger(__name__)

LOG_SECONDS_FIRST = 0.05
"""A person waits for a job's first line; a look costs next to nothing, and each pause is longer than the last."""
LOG_SECONDS_MAX = 15.0
LOG_END_BYTES_MAX = 256 * 1024
LOG_BYTES_MAX = 4 * 1024 * 1024
LOG_MESSAGES_MAX = 800
"""A mailbox takes 8 MiB in 4,096 messages; the ticks need most of the latter."""
OUTPUT_BYTES_MAX = 60 * 1024 * 1024
IDLENESS_SECONDS = 60.0
EVICTION_SECONDS = 5.0
"""What the owner waits at most for a last checkpoint before the machine is free again."""

Begin = Callable[..., Awaitable[Outcome]]


class Execution:
    """One job on the executor. `run` or `take_up` once; the other methods at any time, from the same thread."""

    def __init__(
        self, shop: Workshop, job: JobFile, quote: Quote, request: QuoteRequest, meter: Meter, line: Line
    ) -> None:
        self.stop_state: JobState | None = None
        """Why it was ended from outside, if it was."""
        self._shop = shop
        self._job = job
        self._quote = quote
        self._request = request
        self._meter = meter
        self._line = line
        self._keeper = CheckpointKeeper(shop.post, job, request)
        self._handle: JobHandle | None = None
        self._waiting = trio.CancelScope()
        """Around the time until its first instruction: a batch system may let it wait for long."""
        self._suspension = ""
        self._changed = trio.Event()
        self._log_said = 0
        self._limits = Limits(
            cores=request.cores,
            memory_bytes=request.memory_bytes,
            processes=shop.settings.processes_max,
            disk_bytes=request.disk_bytes,
            wall_seconds=request.wall_seconds,
            gpus=request.gpus,
        )

    @property
    def output_bytes_max(self) -> int:
        """What of the results is handed over."""
        return min(OUTPUT_BYTES_MAX, self._request.disk_bytes)

    async def run(self, command: JobCommand) -> Outcome:
        """From the first instruction to the end. Raises: JobNotStarted."""
        return await self._look_after(partial(self._shop.executor.run, self._job_id, command, self._limits))

    async def take_up(self) -> Outcome:
        """From where an agent that is no more had left it, to the end. Raises: JobLost."""
        return await self._look_after(
            partial(self._shop.executor.take_up, self._job_id, self._limits, self.output_bytes_max)
        )

    def stop(self, state: JobState) -> None:
        """End it, unless it is ending; the first reason counts."""
        if self.stop_state is None:
            self.stop_state = state
            self._waiting.cancel()
            self._change()

    def suspend(self, reason: str) -> None:
        """Take the machine away from it for a while; nothing is charged for that time."""
        self._suspension = reason
        self._change()

    def resume(self) -> None:
        """Let it go on."""
        self._suspension = ""
        self._change()

    def read_cpu_us(self) -> int | None:
        """Processor time that it has used; none when nothing can tell, 0 before it runs."""
        return self._handle.usage().cpu_us if self._handle is not None else 0

    @property
    def _job_id(self) -> str:
        return self._job.document.hold.hex()

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _look_after(self, begin: Begin) -> Outcome:
        ended: list[Outcome] = []
        failed: list[JobNotStarted | JobLost] = []

        async def run_job(task_status: trio.TaskStatus[JobHandle | None]) -> None:
            try:
                ended.append(await begin(task_status=task_status))
            except (JobNotStarted, JobLost) as error:
                failed.append(error)
                task_status.started(None)
            watchers.cancel_scope.cancel()

        async with trio.open_nursery() as watchers:
            with self._waiting:
                self._handle = await watchers.start(run_job)
            if self._handle is not None:
                if self._job.document.state != JobState.SUSPENDED:
                    self._job.enter(JobState.RUNNING)
                watchers.start_soon(self._line.say, Started(self._job.document.hold))
                watchers.start_soon(self._follow_wishes, self._handle)
                watchers.start_soon(self._watch_meter, self._handle)
                watchers.start_soon(self._watch_log, self._handle)
                watchers.start_soon(self._watch_idleness, self._handle)
        if failed:
            raise failed[0]
        if self._handle is None:
            raise JobNotStarted("it was stopped before it began")
        with trio.move_on_after(min(PATIENCE_SECONDS, self._quote.grace_seconds / 8)):
            await self._send_log(self._handle, LOG_END_BYTES_MAX)
        await self._read_meter_at_the_end(ended[0])
        return ended[0]

    async def _follow_wishes(self, handle: JobHandle) -> None:
        """What `stop`, `suspend` and `resume` ask for, as soon as it is asked."""
        while self.stop_state is None:
            changed = self._changed
            is_suspended = self._job.document.state == JobState.SUSPENDED
            if bool(self._suspension) != is_suspended:
                if is_suspended:
                    handle.resume()
                else:
                    handle.suspend()
                self._job.document.suspended_at_seconds = 0 if is_suspended else self._shop.now()
                self._job.enter(JobState.RUNNING if is_suspended else JobState.SUSPENDED)
                await self._line.say(Standing(self._job.document.state, self._suspension))
            if self.stop_state is None:
                await changed.wait()
        if self.stop_state == JobState.EVICTED:
            handle.suspend()
            async with trio.open_nursery() as copying:
                copying.start_soon(self._stop_in_time, handle)
                await self._keeper.take(handle)
                copying.cancel_scope.cancel()
        handle.stop()

    async def _stop_in_time(self, handle: JobHandle) -> None:
        """A copy that takes too long gives up when its job is stopped."""
        await trio.sleep(EVICTION_SECONDS)
        handle.stop()

    async def _watch_meter(self, handle: JobHandle) -> None:
        """One tick after the other, as long as each is agreed to before the next. A suspended job's meter stands.

        No answer of the node's is waited for beyond the moment at which the next tick falls due: a node that keeps us
        waiting would let the job run on unpaid (spec 12.8, D1).
        """
        tick_seconds = self._quote.tick_seconds
        while True:
            due_at = trio.current_time() + tick_seconds
            with trio.move_on_at(due_at):
                for tick in self._meter.list_unanswered_ticks():
                    await self._line.say(Ticked(tick.encode()))
            await trio.sleep_until(due_at)
            if self._meter.must_stop(is_reclaim_asked=False):
                self._end_by_policy("stopped: the payer did not agree to the last tick in time")
                return
            is_asked = await is_reclaim_asked(self._shop, self._job.document.hold, tick_seconds)
            if self._meter.must_stop(is_reclaim_asked=is_asked):
                self._end_by_policy("stopped: the payer has asked for its credits back")
                return
            if self._job.document.state == JobState.RUNNING and self.stop_state is None:
                elapsed_ms, checkpoint = handle.usage().wall_ms, b""
                with trio.move_on_after(tick_seconds):
                    checkpoint = await self._keeper.renew(handle)
                self._meter.add_tick(elapsed_ms if checkpoint else handle.usage().wall_ms, checkpoint)

    def _end_by_policy(self, detail: str) -> None:
        if self.stop_state is None:
            self._job.document.detail = detail
            self.stop(JobState.POLICY_KILLED)

    async def _watch_idleness(self, handle: JobHandle) -> None:
        """A job that computes nothing for too long is ended (spec 12.9)."""
        samples: tuple[Sample, ...] = ()
        while True:
            seconds_max = self._shop.settings.idle_seconds_max
            usage = handle.usage()
            samples = add_sample(samples, Sample(usage.wall_ms, usage.cpu_us, usage.gpu_busy_ms), seconds_max)
            if is_idle(samples, self._request.gpus, seconds_max):
                self._end_by_policy(describe_idleness(self._request.gpus, seconds_max))
                return
            await trio.sleep(min(IDLENESS_SECONDS, max(1.0, seconds_max / 10)))

    async def _read_meter_at_the_end(self, outcome: Outcome) -> None:
        """The last tick: for all the time when the end is charged, else for the last checkpoint if there is one."""
        if self.stop_state == JobState.EVICTED:
            checkpoint = await self._keeper.hand_over() if self._keeper.has_taken else b""
            if checkpoint:
                self._meter.add_tick(outcome.usage.wall_ms, checkpoint)
        elif self.stop_state in CHARGED_STATES or (self.stop_state is None and outcome.state not in FOREIGN_ENDS):
            self._meter.add_tick(outcome.usage.wall_ms)

    async def _watch_log(self, handle: JobHandle) -> None:
        pause, pause_max = LOG_SECONDS_FIRST, max(LOG_SECONDS_MAX, 1.5 * self._quote.wall_seconds / LOG_MESSAGES_MAX)
        while self._log_said < LOG_BYTES_MAX:
            await trio.sleep(pause)
            pause = min(pause * 1.5, pause_max)
            with trio.CancelScope(shield=True):  # what was taken from the log is on its way, also when the job ends now
                await self._send_log(handle, LOG_CHUNK_BYTES_MAX)

    async def _send_log(self, handle: JobHandle, bytes_max: int) -> None:
        """What the job wrote since the last time, or the end of it when that is too much."""
        end = handle.log_bytes
        fresh = end - self._job.document.log_sent
        if fresh <= 0:
            return
        content = handle.read_log_tail(min(fresh, bytes_max))
        self._job.document.log_sent = end
        self._log_said += len(content)
        for start in range(0, len(content), LOG_CHUNK_BYTES_MAX):
            chunk = content[start : start + LOG_CHUNK_BYTES_MAX]
            await self._line.say(LogChunk(end - len(content) + start, chunk))
