"""Following a job: agree to ticks that hold, print what the job says, take the results, check what was paid.

The wallet agrees to a tick only when it asks for exactly what the quote says for a time that can have passed by the
wallet's own clock. It agrees to the donor's receipt only when the amount follows from the quote and the results can be
opened. What it does not agree to it says, and keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from node.bundles import unpack_bundle
from node.errors import Unreachable, UserError
from node.files import write_atomically
from node.sealing import open_sealed
from node.wallet.calling import Line
from node.wallet.checkpoints import keep_checkpoint
from node.wallet.job_ends import look_for_end, take_end
from node.wallet.job_records import WalletJob, get_checkpoint_path, get_job_directory, get_outputs_path, save_job
from protocol.conversation import (
    Accepted,
    LogChunk,
    Message,
    ReceiptAgreed,
    Refused,
    Result,
    Settled,
    Standing,
    Started,
    Ticked,
    VoucherGiven,
    compute_seal_context,
)
from protocol.errors import InvalidInput
from protocol.metering import JobState, decode_tick
from protocol.quotes import NO_EXIT_STATUS, decode_job_receipt

if TYPE_CHECKING:
    from node.wallet.jobs import Connect
    from node.wallet.wallet import Wallet

POLL_SECONDS = 5.0
"""How long one question for news waits; another command that cancels the job waits so long, too."""
REFUSED_TICKS_MAX = 16
LOG_BYTES_MAX = 16 * 1024 * 1024

Tell = Callable[[str], None]
Show = Callable[[bytes], None]


class Follower:
    """Takes the donor's messages for one job."""

    def __init__(
        self,
        wallet: Wallet,
        job: WalletJob,
        connect: Connect,
        show_log: Show,
        tell: Tell,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """`beat` is called before each look into the mailbox."""
        if job.is_detached:
            raise UserError(f"your node looks after job {job.job_id}: `allmende job attach {job.job_id}` takes it back")
        self._wallet = wallet
        self._job = job
        self._line = Line(wallet, job, connect)
        self._quote = job.decode_quote(wallet)
        self._request = job.decode_request(wallet)
        self._meter = job.make_meter(wallet)
        self._show_log = show_log
        self._tell = tell
        self._beat = beat

    def follow(self, *, is_waiting: bool = True) -> None:
        """Take what there is; with `is_waiting` until the job is settled. Raises: Unreachable."""
        self._fetch_wanted_checkpoint()
        while not self._job.is_over:
            self._beat()
            count = self._line.hear(self._handle, POLL_SECONDS if is_waiting else 0)
            if not count:
                self._take_kept_result()
                look_for_end(self._wallet, self._job)  # the donor may be gone, or not say that it has settled
            if not count and not is_waiting:
                return

    def _fetch_wanted_checkpoint(self) -> None:
        """Have the checkpoint that our node agreed to while the job was with it: the node could not open it."""
        if self._job.checkpoint_wanted:
            try:
                self._keep_checkpoint(self._job.checkpoint_wanted)
            except InvalidInput as error:
                self._tell(str(error))
            self._job.checkpoint_wanted = b""
            save_job(self._wallet, self._job)

    def _take_kept_result(self) -> None:
        """The donor's letter on the end may be gone by now; our node has kept what was in it."""
        if self._job.metered_receipt and not self._job.receipt:
            self._take_result(Result(self._job.metered_receipt, self._job.detail))

    def _handle(self, message: Message) -> None:
        match message:
            case Accepted():
                self._enter(JobState.STAGING, "the donor has accepted, and fetches the inputs")
            case Started():
                self._enter(JobState.RUNNING, "the job runs")
            case Standing():
                self._take_standing(message)
            case LogChunk():
                self._take_log(message)
            case Ticked():
                self._take_tick(message.tick)
            case Result():
                self._take_result(message)
            case Refused():
                self._job.dispute = self._job.dispute or f"the donor refuses: {message.reason}"
                self._tell(f"the donor refuses: {message.reason}")
            case Settled():
                self._take_settlement(message.finality_receipt)

    def _enter(self, state: str, text: str) -> None:
        if not self._job.has_ended:
            self._job.state = state
            save_job(self._wallet, self._job)
            self._tell(text)

    def _take_standing(self, standing: Standing) -> None:
        reason = f": {standing.detail}" if standing.detail else ""
        if standing.state == JobState.SUSPENDED:
            self._enter(JobState.SUSPENDED, f"the job is suspended{reason}; this time is free")
        elif standing.state == JobState.RUNNING:
            self._enter(JobState.RUNNING, f"the job goes on{reason}")

    def _take_log(self, chunk: LogChunk) -> None:
        directory = get_job_directory(self._wallet, self._job)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = directory / "log"
        if chunk.offset + len(chunk.content) <= LOG_BYTES_MAX:
            with open(path, "r+b" if path.exists() else "w+b") as file:
                file.seek(chunk.offset)
                file.write(chunk.content)
        self._show_log(chunk.content)

    # -- paying as it goes --------------------------------------------------------------------------------------

    def _take_tick(self, encoded: bytes) -> None:
        """Agree, or say why not. What is agreed to is on disk before it is said."""
        job, meter = self._job, self._meter
        try:
            tick = decode_tick(encoded)
            checkpoint = meter.find_new_checkpoint(tick)
            if checkpoint:
                self._keep_checkpoint(checkpoint)
            before = meter.last
            voucher = meter.answer(tick, self._wallet.now(), checkpoint)
        except InvalidInput as error:
            job.dispute = job.dispute or f"a tick was not agreed to: {error}"
            if len(job.refused_ticks) < REFUSED_TICKS_MAX and encoded not in job.refused_ticks:
                job.refused_ticks.append(encoded)  # a dispute shows it
            save_job(self._wallet, job)
            self._tell(job.dispute)
            return
        if meter.last is not before:
            job.ticks.append(encoded)
            save_job(self._wallet, job)
        if voucher is not None:
            self._line.say(VoucherGiven(voucher.sequence, voucher.amount, voucher.signature))

    def _keep_checkpoint(self, digest: bytes) -> None:
        """Have what the job could go on from before its time is agreed to. Raises: InvalidInput; Unreachable."""
        try:
            keep_checkpoint(self._wallet, self._job, self._line, digest)
        except Unreachable:
            raise
        except (UserError, InvalidInput) as error:
            raise InvalidInput(f"the checkpoint can't be had: {error}") from error

    # -- the end ------------------------------------------------------------------------------------------------

    def _take_result(self, result: Result) -> None:
        job = self._job
        if job.receipt:
            self._agree()
            return
        try:
            receipt = decode_job_receipt(
                self._wallet.charter, result.receipt, self._quote.donor_key, self._request.meter_key
            )
            if (receipt.hold, receipt.quote) != (job.hold, self._quote.compute_id(self._wallet.federation)):
                raise InvalidInput("it is for another job")
        except InvalidInput as error:
            job.dispute = f"the donor's receipt does not hold: {error}"
            self._tell(job.dispute)
            return
        self._meter.is_closed = True
        job.receipt, job.detail = result.receipt, result.detail
        job.state = receipt.state
        save_job(self._wallet, job)
        status = "" if receipt.exit_status == NO_EXIT_STATUS else f", exit status {receipt.exit_status}"
        self._tell(f"ended: {receipt.state}{status}{': ' if result.detail else ''}{result.detail}")
        problem = self._find_problem()
        if problem:
            job.dispute = job.dispute or problem
            save_job(self._wallet, job)
            self._tell(f"not agreed to: {problem}")
        else:
            self._agree()

    def _find_problem(self) -> str:
        """Why the wallet won't sign the donor's receipt, or nothing."""
        receipt = self._job.decode_receipt(self._wallet)
        assert receipt is not None
        try:
            self._meter.agree(receipt)
        except InvalidInput as error:
            return str(error)
        if receipt.outputs:
            try:
                self._keep_outputs(receipt.outputs)
            except Unreachable:
                raise
            except (UserError, InvalidInput) as error:
                return f"the results can't be opened: {error}"
        return ""

    def _keep_outputs(self, digest: bytes) -> None:
        """Fetch, open and keep the results. Raises: UserError, InvalidInput."""
        sealed = self._line.get_blob(digest)
        opened = open_sealed(self._job.result_seed, sealed, compute_seal_context(b"outputs", self._job.hold))
        write_atomically(get_outputs_path(self._wallet, self._job), opened)

    def _agree(self) -> None:
        receipt = self._job.decode_receipt(self._wallet)
        assert receipt is not None
        if self._job.dispute:
            return
        agreed = self._meter.agree(receipt)
        self._job.receipt = agreed.encode()
        save_job(self._wallet, self._job)
        self._line.say(ReceiptAgreed(agreed.meter_signature))

    def _take_settlement(self, finality_receipt: bytes) -> None:
        """Believe the members' signatures, not the donor."""
        try:
            take_end(self._wallet, self._job, finality_receipt)
        except InvalidInput as error:
            self._tell(f"the donor's proof of settlement does not hold: {error}")


def unpack_outputs(wallet: Wallet, job: WalletJob, directory: Path) -> int:
    """Write a job's results into `directory`; returns how many files. Raises: UserError when there are none."""
    path = get_outputs_path(wallet, job)
    if not path.exists():
        raise UserError(f"job {job.job_id} has no results here yet (it is {job.state}): `allmende job logs -f`")
    return _unpack(path, directory, f"the results of job {job.job_id}")


def unpack_checkpoint(wallet: Wallet, job: WalletJob, directory: Path) -> int:
    """Write a job's last checkpoint into `directory`; returns how many files. Raises: UserError when there is none."""
    path = get_checkpoint_path(wallet, job)
    if not path.exists():
        raise UserError(f"job {job.job_id} has handed over no checkpoint: it keeps one when it writes into checkpoint/")
    return _unpack(path, directory, f"the checkpoint of job {job.job_id}")


def _unpack(path: Path, directory: Path, what: str) -> int:
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        entries = unpack_bundle(path.read_bytes(), directory)
    except InvalidInput as error:
        raise UserError(f"{what} are no bundle: {error}") from error
    return sum(not entry.is_directory for entry in entries)
