"""One job on a donated machine, from the quote to the last millicredit.

    QUOTED > HELD > STAGING > RUNNING > (an end state) > SETTLED

Each state is on disk before it is acted on. A job that was under way when the agent died ended by the donor's fault:
nothing is charged for work that is lost, and the hold is settled so that the payer has the rest back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from node.donor.calling import Line
from node.donor.executors.executor import JobCommand, JobHandle, JobNotStarted, Limits, Outcome
from node.donor.job_file import JobFile
from node.donor.meter import Meter
from node.donor.outputs import fetch_inputs, hand_over_outputs, read_script
from node.donor.settling import settle
from node.donor.workshop import Workshop
from node.errors import UserError
from protocol.conversation import (
    LOG_CHUNK_BYTES_MAX,
    Accepted,
    Cancel,
    LogChunk,
    Message,
    Quoted,
    ReceiptAgreed,
    Refused,
    Result,
    Settled,
    Start,
    Started,
    Ticked,
    VoucherGiven,
    compute_seal_context,
)
from protocol.errors import InvalidInput
from protocol.metering import CHARGED_STATES, JobState, Voucher
from protocol.quotes import (
    NO_EXIT_STATUS,
    JobReceipt,
    check_hold,
    decode_job_receipt,
    decode_quote,
    decode_quote_request,
)
from protocol.receipts import find_charter_version, verify_receipt

log = logging.getLogger(__name__)

LOG_SECONDS_FIRST = 0.5
LOG_SECONDS_MAX = 15.0
LOG_END_BYTES_MAX = 256 * 1024
LOG_BYTES_MAX = 4 * 1024 * 1024
LOG_MESSAGES_MAX = 800
"""A mailbox takes 8 MiB in 4,096 messages; the ticks need most of the latter."""
END_PATIENCE_SECONDS = 600.0
OUTPUT_BYTES_MAX = 60 * 1024 * 1024
LATE_SECONDS = 600
"""How long after its end a quote is listened for: a hold that was made in the last moment must be given back."""
REASON_CHARACTERS_MAX = 200


class JobRun:
    """A job that the agent looks after, in a task of its own."""

    def __init__(self, shop: Workshop, job: JobFile) -> None:
        self.shop = shop
        self.job = job
        self.document = job.document
        self.request = decode_quote_request(shop.charter, job.document.request)
        self.quote = decode_quote(shop.charter, job.document.quote)
        federation = shop.charter.federation
        self.meter = Meter(federation, shop.key, job, self.quote, self.request)
        self.line = Line(federation, shop.key, shop.seal_seed, shop.post, job, self.request)
        self._start_heard = trio.Event()
        self._news = trio.Event()
        self._handle: JobHandle | None = None
        self._stop_state: JobState | None = None
        self._log_sent = 0
        self._log_said = 0

    async def run(self) -> None:
        """To the end of the job's life, from wherever its file says that it stands."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.line.hear, self._handle_message)
                await self._run_from_state()
                nursery.cancel_scope.cancel()
        finally:
            self.shop.free_machine(self.document.conversation)

    async def _run_from_state(self) -> None:
        document = self.document
        if document.state == JobState.QUOTED:
            await self.line.say(Quoted(document.quote))
            patience = self.quote.valid_until + LATE_SECONDS - self.shop.now()
            with trio.move_on_after(max(0.0, patience)):
                await self._start_heard.wait()
            if not document.hold:
                self.job.remove()
                return
            if document.state == JobState.HELD:
                await self._work()
                self.shop.free_machine(self.document.conversation)
        elif not document.is_ended:
            self._end(JobState.DONOR_FAILED, None, b"", "the donor's machine was interrupted")
        await self._conclude()

    def stop(self, state: JobState) -> None:
        """End the job if it has not ended; the first reason counts."""
        if not self.document.is_ended and self._stop_state is None:
            self._stop_state = state
            if self._handle is not None:
                self._handle.stop()

    # -- hearing ------------------------------------------------------------------------------------------------

    async def _handle_message(self, message: Message) -> None:
        match message:
            case Start() if not self.document.hold:
                try:
                    if find_charter_version(message.hold_receipt) not in self.shop.charters:
                        await self.shop.learn_charters()
                    self._handle_start(message)
                except InvalidInput as error:
                    await self.line.say(Refused(f"this is no start of the job: {error}"[:REASON_CHARACTERS_MAX]))
            case VoucherGiven() if self.document.hold:
                self.meter.accept_voucher(*message)
            case ReceiptAgreed() if self.document.receipt:
                self._handle_agreement(message.signature)
            case Cancel():
                self.stop(JobState.CANCELLED)
        self._news.set()
        self._news = trio.Event()

    def _handle_start(self, start: Start) -> None:
        """Check that the money is really put aside, for this quote. What does not hold is no start at all."""
        charter, document = self.shop.charter, self.document
        hold = verify_receipt(self.shop.charters, start.hold_receipt).record
        check_hold(charter.federation, hold, self.quote, self.request)
        self.meter.check_signature(Voucher(hold.id, 0, 0, start.voucher_signature))
        document.hold = hold.id
        document.inputs = start.inputs
        document.vouchers = [(0, 0, start.voucher_signature)]
        document.state = JobState.HELD
        self.job.save()
        refusal = self._find_refusal()
        if refusal:
            self._end(JobState.DONOR_FAILED, None, b"", refusal)
        self._start_heard.set()

    def _find_refusal(self) -> str:
        if self.shop.now() > self.quote.valid_until:
            return "the quote has run out"
        if not self.shop.take_machine(self.document.conversation):
            return "the machine is busy with another job"
        return ""

    def _handle_agreement(self, signature: bytes) -> None:
        """The payer's signature for the job receipt."""
        receipt = self._decode_receipt(self.document.receipt)._replace(meter_signature=signature)
        self._decode_receipt(receipt.encode())
        self.document.receipt = receipt.encode()
        self.job.save()

    def _decode_receipt(self, encoded: bytes) -> JobReceipt:
        return decode_job_receipt(self.shop.charter, encoded, self.quote.donor_key, self.request.meter_key)

    # -- working ------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        """Stage, run, meter, and write down how it ended."""
        document = self.document
        await self.line.say(Accepted(document.hold))
        self._enter(JobState.STAGING)
        try:
            command = await self._stage()
            outcome = await self._execute(command)
        except InvalidInput as error:
            self._end(JobState.USER_FAILED, None, b"", f"the inputs can't be used: {error}")
            return
        except (JobNotStarted, UserError, OSError) as error:
            log.warning("job %s did not start: %s", document.conversation[:8], error)
            self._end(JobState.DONOR_FAILED, None, b"", f"the job could not be started: {error}")
            return
        finally:
            self.job.remove_bundle()
        state = self._stop_state or _compute_end_state(outcome)
        if state in CHARGED_STATES:
            self.meter.add_tick(outcome.usage.wall_ms)
        outputs, detail = await hand_over_outputs(self.shop.post, self.request.result_key, document.hold, outcome)
        self._end(state, outcome, outputs, detail)
        await self.shop.executor.release(self._job_id)

    async def _stage(self) -> JobCommand:
        """Fetch, open and unpack the inputs. Raises: InvalidInput when they are not what was announced."""
        await fetch_inputs(
            self.shop.post,
            self.shop.seal_seed,
            self.document.inputs,
            compute_seal_context(b"inputs", self.document.hold),
            self.job.bundle_directory,
            self.request.disk_bytes,
        )
        script = read_script(self.job.bundle_directory)
        runtime = self.shop.runtimes.get(self.request.runtime)
        return JobCommand(
            program=f"set -e\n{script.setup}\n{script.run}\n",
            output_bytes_max=min(OUTPUT_BYTES_MAX, self.request.disk_bytes),
            environment=dict(script.environment),
            runtime=runtime.directory if runtime else None,
            input_directory=self.job.bundle_directory / "work",
        )

    async def _execute(self, command: JobCommand) -> Outcome:
        """Run the job, its meter and its log until it has ended. Raises: JobNotStarted."""
        ended: list[Outcome] = []
        failed: list[JobNotStarted] = []
        request = self.request
        limits = Limits(
            cores=request.cores,
            memory_bytes=request.memory_bytes,
            processes=self.shop.settings.processes_max,
            disk_bytes=request.disk_bytes,
            wall_seconds=request.wall_seconds,
        )

        async def run_job(task_status: trio.TaskStatus[JobHandle | None]) -> None:
            try:
                ended.append(await self.shop.executor.run(self._job_id, command, limits, task_status=task_status))
            except JobNotStarted as error:
                failed.append(error)
                task_status.started(None)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            self._handle = await nursery.start(run_job)
            if self._handle is not None:
                self.document.started_at_seconds = int(self.shop.now())
                self._enter(JobState.RUNNING)
                if self._stop_state is not None:
                    self._handle.stop()
                nursery.start_soon(self.line.say, Started(self.document.hold))
                nursery.start_soon(self._watch_meter, self._handle)
                nursery.start_soon(self._watch_log, self._handle)
        if failed:
            raise failed[0]
        assert self._handle is not None
        await self._send_log(self._handle, LOG_END_BYTES_MAX)
        return ended[0]

    @property
    def _job_id(self) -> str:
        return self.document.hold.hex()

    async def _watch_meter(self, handle: JobHandle) -> None:
        while True:
            await trio.sleep(self.quote.tick_seconds)
            if self.meter.is_payer_behind:
                self.document.detail = "stopped: the payer did not agree to the last tick in time"
                self.stop(JobState.POLICY_KILLED)
                return
            self.meter.add_tick(handle.usage().wall_ms)
            for tick in self.meter.list_unanswered_ticks():
                await self.line.say(Ticked(tick.encode()))

    async def _watch_log(self, handle: JobHandle) -> None:
        pause, pause_max = LOG_SECONDS_FIRST, max(LOG_SECONDS_MAX, 1.5 * self.quote.wall_seconds / LOG_MESSAGES_MAX)
        while self._log_said < LOG_BYTES_MAX:
            await trio.sleep(pause)
            pause = min(pause * 1.5, pause_max)
            await self._send_log(handle, LOG_CHUNK_BYTES_MAX)

    async def _send_log(self, handle: JobHandle, bytes_max: int) -> None:
        """What the job wrote since the last time, or the end of it when that is too much."""
        end = handle.log_bytes
        fresh = end - self._log_sent
        if fresh <= 0:
            return
        content = handle.read_log_tail(min(fresh, bytes_max))
        self._log_sent = end
        self._log_said += len(content)
        for start in range(0, len(content), LOG_CHUNK_BYTES_MAX):
            chunk = content[start : start + LOG_CHUNK_BYTES_MAX]
            await self.line.say(LogChunk(end - len(content) + start, chunk))

    def _enter(self, state: JobState) -> None:
        self.document.state = state
        self.job.save()
        log.info("job %s: %s", self.document.conversation[:8], state)

    # -- ending -------------------------------------------------------------------------------------------------

    def _end(self, state: JobState, outcome: Outcome | None, outputs: bytes, detail: str) -> None:
        """Write the job receipt: from here on the amount due is fixed."""
        federation, document = self.shop.charter.federation, self.document
        amount, tick = self.meter.compute_due(state)
        last = self.meter.last_tick
        usage = outcome.usage if outcome else None
        cpu_us = usage.cpu_us if usage else None
        exit_status = outcome.exit_status if outcome else None
        receipt = JobReceipt(
            document.hold,
            self.quote.compute_id(federation),
            state,
            NO_EXIT_STATUS if exit_status is None else exit_status,
            usage.wall_ms if usage else (last.elapsed_ms if last else 0),
            0 if cpu_us is None else max(0, cpu_us) + 1,
            usage.memory_peak_bytes if usage else 0,
            usage.energy_joules + 1 if usage and usage.energy_joules is not None else 0,
            outputs,
            amount,
            tick.compute_id(federation) if tick else b"",
            b"",
            b"",
        ).sign_as_donor(federation, self.shop.key)
        document.receipt = receipt.encode()
        document.amount_due = amount
        document.detail = (document.detail or detail)[:REASON_CHARACTERS_MAX]
        self._enter(state)

    async def _conclude(self) -> None:
        """Say how it ended, wait for the payer's agreement within half the grace, settle."""
        document = self.document
        if not document.settle:
            self.job.remove_bundle()
            for tick in self.meter.list_unanswered_ticks():
                await self.line.say(Ticked(tick.encode()), END_PATIENCE_SECONDS)
            await self.line.say(Result(document.receipt, document.detail), END_PATIENCE_SECONDS)
            with trio.move_on_after(self.quote.grace_seconds / 2):
                await self._wait_until(
                    lambda: self.meter.is_paid_up and bool(self._decode_receipt(document.receipt).meter_signature)
                )
        if not document.is_over:
            await settle(self.shop, self.job)
        await self.line.say(Settled(document.settle_receipt), END_PATIENCE_SECONDS)
        log.info("job %s: %s", document.conversation[:8], document.state.lower())

    async def _wait_until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await self._news.wait()


def _compute_end_state(outcome: Outcome) -> JobState:
    if outcome.state == "walltime":
        return JobState.WALLTIME
    return JobState.DONE if outcome.exit_status == 0 else JobState.USER_FAILED
