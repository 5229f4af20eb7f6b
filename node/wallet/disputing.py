"""Saying on the ledger that a job's donor broke its rules, with a file of all that the wallet can show (spec 7.14).

The file is on this disk before the record that names its hash is signed, and the record is in the journal before it is
sent. So a command that is run again goes on with the same file and the same bytes. The node gets the file last: it
keeps what a dispute on the ledger names for longer than other bundles.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from node.addresses import Kind as AddressKind
from node.addresses import decode_address, encode_address
from node.errors import Refused, Unreachable, UserError
from node.evidence import describe_reason
from node.files import write_atomically
from node.wallet.job_records import WalletJob, find_signed, get_job_directory, save_job
from node.wallet.journal import Entry
from node.wallet.payments import spend
from node.wallet.sending import WAIT_SECONDS, read_final_record
from protocol.disputes import PAYER_REASONS, Dispute, DisputeReason
from protocol.errors import InvalidInput
from protocol.job_evidence import READINGS_MAX, Claim, JobEvidence, JobVerdict, Rerun, verify_job_evidence
from protocol.metering import Tick, decode_tick, sign_voucher
from protocol.records import Kind, Record, account_scope, decode_record
from protocol.signatures import is_valid_signature

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from node.wallet.wallet import Wallet


class EvidenceFile(NamedTuple):
    """What would be published, and what it proves by itself."""

    content: bytes
    verdict: JobVerdict

    @property
    def digest(self) -> bytes:
        """What the dispute names."""
        return sha256(self.content).digest()


class Disputed(NamedTuple):
    """What came of it."""

    record: bytes
    """Id of the final dispute."""
    evidence: Path
    publishing_problem: str = ""
    """Why the node did not take the file; empty when it did."""
    lost: tuple[Entry, ...] = ()
    """Records of earlier commands that lost their slots meanwhile."""


def build_evidence(
    wallet: Wallet,
    job: WalletJob,
    reason: DisputeReason | None,
    reruns: Sequence[WalletJob] = (),
    *,
    shows_results: bool = False,
) -> EvidenceFile:
    """Everything that the wallet can show of the job. Signs and sends nothing.

    Without a reason, the one that the file proves. With `shows_results` whoever reads the file can open the results.
    Raises: UserError when nothing was put aside for the job, or it proves nothing and no reason is given.
    """
    for each in (job, *reruns):
        if not each.hold_receipt:
            raise UserError(f"nothing was put aside for job {each.job_id} ({each.state}): there is nothing to dispute")
    ticks = _choose_ticks(wallet, job)
    agreed = [tick for tick in ticks if tick.encode() in job.ticks]
    vouchers = {
        sign_voucher(wallet.federation, job.meter_key, job.hold, tick.sequence, tick.amount)[1:] for tick in agreed
    }
    evidence = JobEvidence(
        reason=int(reason or DisputeReason.AMOUNT_NOT_DUE),
        hold_receipt=job.hold_receipt,
        end_receipt=job.settle_receipt or job.reclaim_receipt,
        request=job.request,
        quote=job.quote,
        ticks=tuple(tick.encode() for tick in ticks),
        vouchers=tuple(sorted(vouchers)),
        job_receipt=job.receipt,
        result_key=job.result_seed if shows_results else b"",
        reruns=tuple(_make_rerun(other, shows_results) for other in reruns),
    )
    if reason is None:
        claims = verify_job_evidence(wallet.charters, evidence.encode()).claims
        if not claims:
            names = ", ".join(describe_reason(each) for each in sorted(PAYER_REASONS))
            raise UserError(f"what this wallet has proves no breach by itself: say what it was with --reason ({names})")
        lost = Claim.LOST_WORK_CHARGED in claims
        evidence = evidence._replace(reason=int(DisputeReason.WORK_LOST if lost else DisputeReason.AMOUNT_NOT_DUE))
    content = evidence.encode()
    return EvidenceFile(content, verify_job_evidence(wallet.charters, content))


def _choose_ticks(wallet: Wallet, job: WalletJob) -> list[Tick]:
    """Those that were not agreed to, as far as the donor signed them for this job; those with checkpoints; the newest
    of the rest. Ascending, as a file has them."""
    donor_key = job.decode_quote(wallet).donor_key
    refused = []
    for encoded in job.refused_ticks:
        try:
            tick = decode_tick(encoded)
        except InvalidInput:
            continue
        is_signed = is_valid_signature(donor_key, tick.compute_id(wallet.federation), tick.signature)
        if tick.hold == job.hold and is_signed:
            refused.append(tick)
    agreed = job.list_ticks()[::-1]
    agreed.sort(key=lambda tick: not tick.checkpoint)
    chosen = {tick.encode(): tick for tick in [*refused, *agreed][:READINGS_MAX]}
    return [chosen[encoded] for encoded in sorted(chosen, key=lambda encoded: (chosen[encoded].sequence, encoded))]


def _make_rerun(job: WalletJob, shows_results: bool) -> Rerun:
    if not job.receipt:
        raise UserError(f"job {job.job_id} has no receipt of its donor yet ({job.state}): it shows nothing")
    return Rerun(job.hold_receipt, job.quote, job.receipt, job.result_seed if shows_results else b"")


def find_dispute(wallet: Wallet, job: WalletJob) -> Record | None:
    """This account's dispute of the job, as the ledger has it: also when another machine of the wallet signed it."""
    answer = wallet.client.get_job(encode_address(AddressKind.RECORD, job.hold)) if job.hold else None
    for entry in answer.disputes if answer is not None else ():
        proven = read_final_record(wallet, decode_address(AddressKind.RECORD, entry.record))
        if proven is not None and proven.record.scope == account_scope(wallet.account):
            body = proven.record.body
            if isinstance(body, Dispute) and body.hold == job.hold:
                return proven.record
    return None


def dispute_job(
    wallet: Wallet, key: Ed25519PrivateKey, job: WalletJob, file: EvidenceFile, wait_seconds: float = WAIT_SECONDS
) -> Disputed:
    """Keep the file, sign, write down and send the dispute, and publish the file. Repeating it goes on where it was.

    Raises: UserError; Unreachable; Refused.
    """
    purpose = f"dispute job {job.job_id} ({job.name})"
    entry = find_signed(wallet, purpose)
    known = decode_record(wallet.federation, entry.record) if entry is not None else find_dispute(wallet, job)
    digest = known.body.evidence if known is not None and isinstance(known.body, Dispute) else file.digest
    path = get_job_directory(wallet, job) / f"{digest.hex()}.evidence"
    if digest == file.digest:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(path, file.content)
    lost: tuple[Entry, ...] = ()
    if entry is None and known is not None:
        record_id = known.id
    else:
        body = Dispute(job.hold, int(file.verdict.reason), digest)
        outcome = spend(wallet, key, Kind.DISPUTE, purpose, lambda account: body, wait_seconds, entry)
        record_id, lost = outcome.entry.record_id, outcome.lost
        if outcome.verified is None and outcome.refusal:
            raise Refused(
                f"{wallet.node_url} refused it: {outcome.refusal}; `allmende wallet unlock` frees the account"
            )
        if outcome.verified is None:
            raise Unreachable(f"it is signed and not final yet: `allmende job dispute {job.job_id}` goes on")
    job.dispute_record = record_id
    save_job(wallet, job)
    return Disputed(record_id, path, _publish(wallet, path), lost)


def _publish(wallet: Wallet, path: Path) -> str:
    """Hand the file to the node; why not, where that fails. The dispute stands anyhow."""
    try:
        wallet.client.put_blob(path.read_bytes())
    except FileNotFoundError:
        return "another machine of this wallet has the file"
    except UserError as error:
        return str(error)
    return ""
