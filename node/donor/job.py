"""One job on a donated machine, from the quote to the last millicredit.

    QUOTED > HELD > STAGING > RUNNING <> SUSPENDED > (an end state) > SETTLED

Each state is on disk before it is acted on. A job that was under way when the agent died goes on when its executor
still has it; else it ended by the donor's fault: what its last checkpoint does not hold is not charged, and the hold
is settled so that the payer has the rest back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from node.donor.acceptance import check_start
from node.donor.calling import PATIENCE_SECONDS, Line
from node.donor.execution import Execution
from node.donor.executors.executor import JobCommand, JobLost, JobNotStarted, Outcome
from node.donor.job_file import JobFile
from node.donor.meter import Meter
from node.donor.outputs import fetch_inputs, hand_over_outputs, read_script
from node.donor.settling import is_reclaim_asked, settle
from node.donor.workshop import Workshop
from node.errors import UserError
from protocol.conversation import (
    WORK_NAME,
    Accepted,
    Cancel,
    Message,
    Quoted,
    ReceiptAgreed,
    Refused,
    Result,
    Settled,
    Start,
    Ticked,
    VoucherGiven,
    compute_seal_context,
)
from protocol.errors import InvalidInput, Rejected
from protocol.metering import JobState, Voucher
from protocol.quotes import (
    NO_EXIT_STATUS,
    JobReceipt,
    check_hold,
    decode_job_receipt,
    decode_quote,
    decode_quote_request,
)
from protocol.receipts import find_charter_version, verify_receipt
from protocol.records import Hold

log = logging.getLogger(__name__)

END_PATIENCE_SECONDS = 600.0
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
        self._execution = Execution(shop, job, self.quote, self.request, self.meter, self.line)

    async def run(self) -> None:
        """To the end of the job's life, from wherever its file says that it stands."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.line.hear, self._handle_message)
                await self._run_from_state()
                nursery.cancel_scope.cancel()
        finally:
            self.shop.machine.give_back(self.document.conversation)

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
        if not document.is_ended:
            if self.shop.machine.take(document.conversation, self.request):
                await self._work()
            else:
                self._end(JobState.DONOR_FAILED, "the machine is busy with other jobs")
            self.shop.machine.give_back(document.conversation)
        await self._conclude()

    @property
    def suspended_ms(self) -> int | None:
        """How long the job has been suspended; None while it is not."""
        since = self.document.suspended_at_seconds
        return round(max(0.0, self.shop.now() - since) * 1000) if since else None

    @property
    def is_running(self) -> bool:
        """True when the job's program has begun, and has not ended."""
        return self.document.state in (JobState.RUNNING, JobState.SUSPENDED)

    def read_cpu_us(self) -> int | None:
        """Processor time that the job's program has used here; none when nothing can tell."""
        return self._execution.read_cpu_us()

    @property
    def is_started(self) -> bool:
        """True from the start, when the money was put aside, to the end."""
        return bool(self.document.hold) and not self.document.is_ended

    def stop(self, state: JobState) -> None:
        """End the job if it has not ended; the first reason counts."""
        if not self.document.is_ended:
            self._execution.stop(state)

    def suspend(self, reason: str) -> None:
        """The owner wants the machine: the job stands still, and its meter with it."""
        self._execution.suspend(reason)

    def resume(self) -> None:
        """The job may go on."""
        self._execution.resume()

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
        body = check_hold(charter.federation, hold, self.quote, self.request)
        self.meter.check_signature(Voucher(hold.id, 0, 0, start.voucher_signature))
        document.hold = hold.id
        document.inputs = start.inputs
        document.vouchers = [(0, 0, start.voucher_signature)]
        document.state = JobState.HELD
        self.job.save()
        if refusal := self._find_refusal(body):
            self._end(JobState.DONOR_FAILED, refusal)
        self._start_heard.set()

    def _find_refusal(self, hold: Hold) -> str:
        """Why the job is not begun although it is paid for; empty when nothing is against it."""
        shop, account = self.shop, self.request.account
        if shop.now() > self.quote.valid_until:
            return "the quote has run out"
        use = shop.compute_use(account, but=self.document.conversation)
        try:
            check_start(shop.settings, account, self.document.institutions, hold.draws, self.quote.amount_max, use)
        except Rejected as rejection:
            return rejection.detail
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
        try:
            outcome = await self._run_or_take_up()
        except InvalidInput as error:
            self._end(JobState.USER_FAILED, f"the inputs can't be used: {error}")
            return
        except JobLost:
            self._end(JobState.DONOR_FAILED, "the donor's machine was interrupted")
            return
        except (JobNotStarted, UserError, OSError) as error:
            log.warning("job %s did not start: %s", document.conversation[:8], error)
            state = self._execution.stop_state or JobState.DONOR_FAILED
            self._end(state, f"the job could not be started: {error}")
            return
        finally:
            self.job.remove_bundle()
        state = self._execution.stop_state or _compute_end_state(outcome)
        outputs, detail = b"", "the outputs could not be handed over in time"
        with trio.move_on_after(self.quote.grace_seconds / 4):  # who waits for ever does not settle
            outputs, detail = await hand_over_outputs(self.shop.post, self.request.result_key, document.hold, outcome)
        self._end(state, detail, outcome, outputs)
        try:
            await self.shop.executor.release(document.hold.hex())
        except OSError as error:  # what is left there must not keep the job from being settled
            log.warning("job %s: its files stay: %s", document.conversation[:8], error)

    async def _run_or_take_up(self) -> Outcome:
        """A job that the executor still has is never run a second time."""
        if self.document.state != JobState.HELD:
            try:
                return await self._execution.take_up()
            except JobLost:
                if self.document.state != JobState.STAGING:
                    raise
        await self.line.say(Accepted(self.document.hold))
        self.job.enter(JobState.STAGING)
        return await self._execution.run(await self._stage())

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
            output_bytes_max=self._execution.output_bytes_max,
            environment=dict(script.environment),
            runtime=runtime.directory if runtime else None,
            input_directory=self.job.bundle_directory / WORK_NAME,
            hosts=tuple(self.shop.settings.hosts) if self.request.is_online else (),
        )

    # -- ending -------------------------------------------------------------------------------------------------

    def _end(self, state: JobState, detail: str, outcome: Outcome | None = None, outputs: bytes = b"") -> None:
        """Write the job receipt: the amount due is fixed from here on. Without an outcome, nothing ran to an end."""
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
        self.job.enter(state)

    async def _conclude(self) -> None:
        """Say how it ended, wait for the payer's agreement within half the grace, settle."""
        document = self.document
        if not document.settle:
            self.job.remove_bundle()
            with trio.move_on_after(await self._compute_agreement_seconds()):
                for tick in self.meter.list_unanswered_ticks():
                    await self.line.say(Ticked(tick.encode()), END_PATIENCE_SECONDS)
                await self.line.say(Result(document.receipt, document.detail), END_PATIENCE_SECONDS)
                await self._wait_until(
                    lambda: self.meter.is_paid_up and bool(self._decode_receipt(document.receipt).meter_signature)
                )
        if not document.is_over:
            await settle(self.shop, self.job)
        await self.line.say(Settled(document.settle_receipt), END_PATIENCE_SECONDS)
        log.info("job %s: %s", document.conversation[:8], document.state.lower())

    async def _compute_agreement_seconds(self) -> float:
        """How long the payer's agreement is waited for, letters included: a payer who has asked for its credits back
        may have done so long ago, so that no more time is left than a voucher on its way needs (spec 12.8, D3)."""
        if await is_reclaim_asked(self.shop, self.document.hold, self.quote.grace_seconds / 8):
            return min(PATIENCE_SECONDS, self.quote.grace_seconds / 8)
        return self.quote.grace_seconds / 2

    async def _wait_until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await self._news.wait()


def _compute_end_state(outcome: Outcome) -> JobState:
    named = {"walltime": JobState.WALLTIME, "preempted": JobState.EVICTED, "lost": JobState.DONOR_FAILED}
    if outcome.state in named:
        return named[outcome.state]
    return JobState.DONE if outcome.exit_status == 0 else JobState.USER_FAILED
