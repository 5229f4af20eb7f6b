"""Saying on the ledger that a job's payer broke its rules, with a file of all that the donor keeps of it (spec 7.14).

The file and the signed record are in the job's folder before anything is sent; run again, the same bytes go out. They
lie beside `job.json`, which belongs to the agent, so this works while the agent runs.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node import api
from node.addresses import Kind as AddressKind
from node.addresses import decode_address, encode_address
from node.donor.job_file import JobFile
from node.donor.post import NodeLink
from node.errors import Unreachable, UserError
from node.files import write_atomically
from protocol.charter import Charters
from protocol.disputes import Dispute, DisputeReason
from protocol.errors import InvalidInput, Reason, Rejected
from protocol.identifiers import compute_account_id
from protocol.job_evidence import READINGS_MAX, JobEvidence, JobVerdict, verify_job_evidence
from protocol.receipts import verify_receipt
from protocol.records import NONE, Kind, Record, RecordDraft, account_scope, decode_record, sign_record

RECORD_NAME = "dispute"
EVIDENCE_NAME = "dispute.evidence"
WAIT_SECONDS = 20


class DonorEvidence(NamedTuple):
    """What would be published, and what it shows."""

    content: bytes
    verdict: JobVerdict

    @property
    def digest(self) -> bytes:
        """What the dispute names."""
        return sha256(self.content).digest()


def find_job(jobs: Path, text: str) -> JobFile:
    """The job whose id starts so. Raises: UserError when there is none or several."""
    found = [job for job in JobFile.load_all(jobs) if text and job.document.conversation.startswith(text)]
    if len(found) != 1:
        problem = "no job's id starts" if not found else f"the ids of {len(found)} jobs start"
        raise UserError(f"{problem} with {text}: see `allmende donor status`")
    return found[0]


def build_donor_evidence(link: NodeLink, charters: Charters, job: JobFile, reason: DisputeReason) -> DonorEvidence:
    """What the donor can show; the file of an earlier call, if there is a signed record that names it.

    Raises: UserError; Unreachable.
    """
    if (job.directory / RECORD_NAME).exists():
        content = (job.directory / EVIDENCE_NAME).read_bytes()
        return DonorEvidence(content, verify_job_evidence(charters, content))
    document = job.document
    known = link.get_record(encode_address(AddressKind.RECORD, document.hold)) if document.hold else None
    if known is None or known.receipt is None:
        raise UserError("nothing is known to be put aside for this job: there is nothing to dispute")
    evidence = JobEvidence(
        reason=int(reason),
        hold_receipt=known.receipt,
        end_receipt=document.settle_receipt,
        request=document.request,
        quote=document.quote,
        ticks=tuple(document.ticks[-READINGS_MAX:]),
        vouchers=tuple(document.vouchers[-READINGS_MAX:]),
        job_receipt=document.receipt,
        result_key=b"",
        reruns=(),
    )
    content = evidence.encode()
    try:
        return DonorEvidence(content, verify_job_evidence(charters, content))
    except InvalidInput as error:
        raise UserError(f"what is kept of this job does not fit what the node proves: {error}") from error


def dispute_job(
    link: NodeLink, charters: Charters, key: Ed25519PrivateKey, job: JobFile, evidence: DonorEvidence
) -> bytes:
    """Sign, keep, send and publish; the id of the final record. Repeating it goes on where it was.

    Raises: UserError; Unreachable; Rejected.
    """
    path, federation = job.directory / RECORD_NAME, charters[0].federation
    write_atomically(job.directory / EVIDENCE_NAME, evidence.content)
    account = link.get_account(
        encode_address(AddressKind.ACCOUNT, compute_account_id(federation, key.public_key().public_bytes_raw()))
    )
    record = decode_record(federation, path.read_bytes()) if path.exists() else None
    if record is None or _is_lost(link, record, account):
        record = _sign(federation, key, job.document.hold, evidence, account)
        write_atomically(path, record.encoded)
    try:
        receipt = link.submit_record(record.encoded, wait=WAIT_SECONDS).receipt
    except Rejected as rejection:
        if rejection.reason is Reason.EPOCH_WRONG:
            path.unlink()  # nobody votes for it any more: the next call signs another one for the place
        raise
    if receipt is None:
        raise Unreachable("it is signed and not final yet: run the command again")
    if verify_receipt(charters, receipt).record.id != record.id:
        raise UserError("the node's receipt is for another record: ask another node")
    link.put_blob(evidence.content)
    return record.id


def _is_lost(link: NodeLink, record: Record, account: api.Account) -> bool:
    """True when another record of the account stands in its place, so that this one never applies."""
    if account.next_sequence <= record.sequence:
        return False
    known = link.get_record(encode_address(AddressKind.RECORD, record.id))
    return known is None or known.receipt is None


def _sign(
    federation: bytes, key: Ed25519PrivateKey, hold: bytes, evidence: DonorEvidence, account: api.Account
) -> Record:
    public_key = key.public_key().public_bytes_raw()
    prev = decode_address(AddressKind.RECORD, account.head) if account.head else NONE
    body = Dispute(hold, int(evidence.verdict.reason), evidence.digest)
    scope = account_scope(compute_account_id(federation, public_key))
    draft = RecordDraft(Kind.DISPUTE, account.epoch, scope, account.next_sequence, prev, body, (public_key,))
    return sign_record(federation, draft, [key])
