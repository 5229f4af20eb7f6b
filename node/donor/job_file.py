"""One job on the donor's disk: what was promised, metered and signed. Each step is written before it is taken.

So `kill -9` at any moment loses no money: after a restart the folder says how far the job came, and what is owed
follows from that. The file is replaced whole (write, sync, rename).
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import msgspec

from node.errors import UserError
from node.files import write_atomically
from protocol.countersigning import choose_voucher
from protocol.metering import END_STATES, JobState, Tick, Voucher, decode_tick

log = logging.getLogger(__name__)

DOCUMENT_NAME = "job.json"
SETTLED = "SETTLED"
RECLAIMED = "RECLAIMED"
"""The payer took everything back: the settlement came too late."""


class Institution(msgspec.Struct, frozen=True):
    """A member that has enrolled the person who pays for a job: it vouches for who that is."""

    number: int
    name: str


class JobDocument(msgspec.Struct):
    """What `job.json` says."""

    conversation: str
    """Id of the quote request, in hex: the folder's name."""
    request: bytes
    quote: bytes
    state: str = JobState.QUOTED
    after: int = 0
    """Last message that was taken from the mailbox."""
    received: int = -1
    """Number of the last envelope that was taken."""
    sent: int = 0
    """Envelopes that may have been posted."""
    suspended_at_seconds: float = 0
    """Since when the job is suspended; 0 while it is not."""
    log_sent: int = 0
    """Bytes of the job's log that may have been posted."""
    hold: bytes = b""
    inputs: bytes = b""
    checkpoint: bytes = b""
    """SHA-256 of the opened checkpoint that a tick named last, or none."""
    ticks: list[bytes] = []
    vouchers: list[tuple[int, int, bytes]] = []
    """(sequence, amount, signature), ascending; the first is for nothing."""
    detail: str = ""
    receipt: bytes = b""
    """The job receipt, with the payer's signature once it came."""
    amount_due: int = 0
    settle: bytes = b""
    """The settle record as it was signed last: whenever it must be sent again, these bytes are."""
    attempt: int = 0
    """The last one at which the settle record was proposed for the hold's slot; 0 if none."""
    settle_receipt: bytes = b""
    """Of the record that ended the hold: a settle, or the payer's reclaim."""
    institutions: list[Institution] = []
    """Those that vouched for the payer when it asked, as the donor's node said."""

    @property
    def is_ended(self) -> bool:
        """True when the job does not run any more and will not again."""
        return self.state in END_STATES or self.is_over

    @property
    def is_over(self) -> bool:
        """True when the hold has ended, as a receipt proves."""
        return bool(self.settle_receipt)

    def list_ticks(self) -> list[Tick]:
        """Every tick, in order."""
        return [decode_tick(encoded) for encoded in self.ticks]

    def list_vouchers(self) -> list[Voucher]:
        """Every voucher, in order."""
        return [Voucher(self.hold, *voucher) for voucher in self.vouchers]

    def choose_voucher(self, amount_due: int) -> Voucher:
        """The best voucher that takes no more than is due. There is one for nothing from the start on."""
        return choose_voucher(self.list_vouchers(), amount_due)


class JobFile:
    """The folder of one job."""

    def __init__(self, directory: Path, document: JobDocument) -> None:
        self.directory = directory
        self.document = document

    @classmethod
    def create(cls, jobs: Path, document: JobDocument) -> JobFile:
        """Make the folder of a new job and write it down."""
        job = cls(jobs / document.conversation, document)
        job.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        job.save()
        return job

    @classmethod
    def load_all(cls, jobs: Path) -> list[JobFile]:
        """Every job that is kept here. Raises: UserError when one can't be read."""
        found = []
        for path in sorted(jobs.glob(f"*/{DOCUMENT_NAME}")):
            try:
                document = msgspec.json.decode(path.read_bytes(), type=JobDocument)
            except msgspec.MsgspecError as error:
                raise UserError(f"{path} is damaged ({error}): money may hang on it, restore it") from error
            found.append(cls(path.parent, document))
        return found

    @property
    def bundle_directory(self) -> Path:
        """Where the inputs are unpacked."""
        return self.directory / "bundle"

    def enter(self, state: JobState) -> None:
        """Write down where the job stands."""
        self.document.state = state
        self.save()
        log.info("job %s: %s", self.document.conversation[:8], state)

    def save(self) -> None:
        """On disk when this returns."""
        write_atomically(self.directory / DOCUMENT_NAME, msgspec.json.encode(self.document))

    def remove_bundle(self) -> None:
        """The inputs are the payer's; nothing of them stays."""
        shutil.rmtree(self.bundle_directory, ignore_errors=True)

    def remove(self) -> None:
        """Forget the job: only before any money was put aside for it."""
        assert not self.document.hold
        shutil.rmtree(self.directory, ignore_errors=True)
