"""What a wallet remembers of a job: enough to take it up again after any crash, and to prove everything afterwards.

It stands in the journal (mode 0600) because it holds the job's meter key, which signs away the hold's money, and the
key that opens the results.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.errors import UserError
from node.wallet.journal import Entry, State
from node.wallet.matching import JobNeeds
from protocol.countersigning import PayersMeter, find_saved_tick
from protocol.metering import END_STATES, JobState, Tick, decode_tick
from protocol.quotes import (
    JobReceipt,
    Offer,
    Quote,
    QuoteRequest,
    decode_job_receipt,
    decode_offer,
    decode_quote,
    decode_quote_request,
)

if TYPE_CHECKING:
    from node.wallet.wallet import Wallet

SETTLED = "SETTLED"
RECLAIMED = "RECLAIMED"
"""The donor never settled, and the payer took everything back."""
DISPUTED = "DISPUTED"
STARTED = "STARTED"
"""The donor was told to start; it has not said yet what came of it."""


class WalletJob(msgspec.Struct):
    """One job, as the wallet knows it."""

    job_id: str
    name: str
    created_at_seconds: int
    offer: bytes
    request: bytes
    meter_seed: bytes
    seal_seed: bytes
    """Opens the donor's messages."""
    result_seed: bytes
    """Opens results and checkpoints."""
    quote: bytes = b""
    state: str = JobState.QUOTED
    detail: str = ""
    hold: bytes = b""
    hold_receipt: bytes = b""
    inputs: bytes = b""
    started_at_seconds: int = 0
    """By this machine's clock, when the donor was told to start: no tick can count time before it."""
    sent: int = 0
    after: int = 0
    received: int = -1
    ticks: list[bytes] = []
    receipt: bytes = b""
    settle_receipt: bytes = b""
    reclaim_receipt: bytes = b""
    paid: int = -1
    """Millicredits that the ledger paid, once that is proven."""
    is_detached: bool = False
    """The wallet's node answers the meter, or may do so; nothing is said from here."""
    detached_turns: int = 0
    """How often the job was left to the node."""
    detached_until_seconds: int = 0
    metered_receipt: bytes = b""
    """The job receipt as the node kept it."""
    checkpoint_wanted: bytes = b""
    """A checkpoint that the node agreed to and that was not fetched yet."""
    refused_ticks: list[bytes] = []
    """Ticks that did not hold, as the donor sent them: evidence."""
    dispute_record: bytes = b""
    """Id of this account's final dispute of the job."""
    dispute: str = ""
    """What in the donor's account of the job does not hold; empty when it was agreed to."""
    needs: JobNeeds | None = None
    """What it asked for; `amount_max` is what all its runs together may take. None for jobs of earlier versions."""
    source_digest: bytes = b""
    """SHA-256 of the inputs as they were packed, without a checkpoint."""
    secrets: list[str] = []
    """Names of the secret variables; the values are in the inputs alone."""
    path: str = ""
    """The job file that it was made from."""
    retry_of: str = ""
    """Id of the job that this one goes on with, because its donor did not finish."""
    recheck_of: str = ""
    """Id of the job whose results this one compares with its own."""

    @property
    def is_over(self) -> bool:
        """True when nothing more is to come."""
        return self.state in (SETTLED, RECLAIMED)

    @property
    def shown_state(self) -> str:
        """Where it stands, for people: a disputed job is shown as such, however it ended."""
        return DISPUTED if self.dispute_record else self.state

    @property
    def has_ended(self) -> bool:
        """True when the job does not run any more."""
        return self.is_over or self.state in END_STATES

    @property
    def meter_key(self) -> Ed25519PrivateKey:
        """Signs the wallet's messages and vouchers."""
        return Ed25519PrivateKey.from_private_bytes(self.meter_seed)

    def list_ticks(self) -> list[Tick]:
        """Every tick that the wallet agreed to, in order."""
        return [decode_tick(encoded) for encoded in self.ticks]

    def decode_offer(self, wallet: Wallet) -> Offer:
        """The offer that the job was made for."""
        return decode_offer(wallet.charter, self.offer)

    def decode_request(self, wallet: Wallet) -> QuoteRequest:
        """What the donor was asked for."""
        return decode_quote_request(wallet.charter, self.request)

    def decode_quote(self, wallet: Wallet) -> Quote:
        """The donor's binding answer."""
        return decode_quote(wallet.charter, self.quote)

    def make_meter(self, wallet: Wallet) -> PayersMeter:
        """The payer's side of the meter, as far as it was agreed to."""
        ticks = self.list_ticks()
        meter = PayersMeter(
            wallet.federation,
            self.decode_quote(wallet),
            self.hold,
            self.meter_key,
            self.started_at_seconds,
            last=ticks[-1] if ticks else None,
            checkpoint=find_saved_tick(ticks),
        )
        meter.is_closed = bool(self.receipt)
        return meter

    def decode_receipt(self, wallet: Wallet) -> JobReceipt | None:
        """How the job ended, once the donor said so."""
        if not self.receipt:
            return None
        meter_key = self.decode_request(wallet).meter_key
        return decode_job_receipt(wallet.charter, self.receipt, self.decode_quote(wallet).donor_key, meter_key)


def save_job(wallet: Wallet, job: WalletJob) -> None:
    """On disk when this returns."""
    wallet.journal.save_job(job.job_id, msgspec.to_builtins(job))


def list_jobs(wallet: Wallet) -> list[WalletJob]:
    """Every job of this wallet, newest first."""
    jobs = [_read(document) for document in wallet.journal.jobs().values()]
    return sorted(jobs, key=lambda job: (-job.created_at_seconds, job.job_id))


def load_job(wallet: Wallet, job_id: str) -> WalletJob:
    """The job with this id, or whose id or name starts so. Raises: UserError when there is none or several."""
    jobs = list_jobs(wallet)
    found = [job for job in jobs if job.job_id == job_id] or [
        job for job in jobs if job.job_id.startswith(job_id) or job.name == job_id
    ]
    if not found:
        raise UserError(f"this wallet has no job {job_id!r}: see `allmende job ls`")
    if len(found) > 1:
        names = ", ".join(job.job_id for job in found[:5])
        raise UserError(f"{job_id!r} names {len(found)} jobs ({names}): give more of the id")
    return found[0]


def remove_job(wallet: Wallet, job: WalletJob) -> None:
    """Forget a job with all that belongs to it. Raises: UserError while money hangs on it."""
    is_unpaid = not job.hold and find_signed_hold(wallet, job) is None
    if not job.is_over and not is_unpaid:
        raise UserError(
            f"credits are still put aside for job {job.job_id} ({job.state}): `allmende job logs -f {job.job_id}` "
            f"sees it to its end, `allmende job reclaim {job.job_id}` takes them back"
        )
    wallet.journal.remove_job(job.job_id)
    shutil.rmtree(get_job_directory(wallet, job), ignore_errors=True)


def make_purpose(job: WalletJob) -> str:
    """What the wallet's journal says of the job's hold."""
    return f"job {job.job_id} ({job.name})"


def find_signed_hold(wallet: Wallet, job: WalletJob) -> Entry | None:
    """The hold that was signed for the job, whether or not it is final yet."""
    return find_signed(wallet, make_purpose(job))


def find_signed(wallet: Wallet, purpose: str) -> Entry | None:
    """The newest record that was signed for this purpose and can still become final, or is."""
    before: int | None = None
    while page := wallet.journal.history(200, before):
        for entry in page:
            if entry.purpose == purpose and entry.state is not State.REJECTED:
                return entry
        before = page[-1].number
    return None


def get_job_directory(wallet: Wallet, job: WalletJob) -> Path:
    """Where the wallet keeps what belongs to a job and is too large for the journal."""
    return wallet.home / "jobs" / job.job_id


def get_inputs_path(wallet: Wallet, job: WalletJob) -> Path:
    """The bundle that is sent, kept for as long as the job may have to be sent again."""
    return get_job_directory(wallet, job) / "inputs"


def drop_inputs(wallet: Wallet, job: WalletJob) -> None:
    """Nobody needs the inputs any more, and there may be secrets in them."""
    get_inputs_path(wallet, job).unlink(missing_ok=True)


def get_checkpoint_path(wallet: Wallet, job: WalletJob) -> Path:
    """The bundle of the last checkpoint that was agreed to."""
    return get_job_directory(wallet, job) / "checkpoint"


def get_outputs_path(wallet: Wallet, job: WalletJob) -> Path:
    """The bundle of the results."""
    return get_job_directory(wallet, job) / "outputs"


def _read(document: dict[str, object]) -> WalletJob:
    try:
        return msgspec.convert(document, WalletJob)
    except msgspec.ValidationError as error:
        raise UserError(f"the journal holds a job that can't be read ({error}): update allmende") from error
