"""The receipt of a job, tied to the ledger: the settle names it, the hold names the key that agreed to it.

Three proofs make one: the settle is final and names the receipt's id; the hold is final and names the payer's meter
key; both keys signed the receipt. So anybody can check, offline, what ran for how long at what price.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from node.addresses import Kind, encode_address
from protocol.charter import Charters
from protocol.credits import format_credits
from protocol.errors import InvalidInput
from protocol.identifiers import compute_account_id
from protocol.quotes import NO_EXIT_STATUS, JobReceipt, decode_job_receipt
from protocol.receipts import verify_receipt
from protocol.records import Hold, Record, Settle


class ProvenJob(NamedTuple):
    """A job's receipt, and the two accounts between which it was."""

    receipt: JobReceipt
    payer: bytes
    payee: bytes


def verify_job(charters: Charters, settle: Record, hold_receipt: bytes, job_receipt: bytes) -> ProvenJob:
    """What a job's receipt proves together with a proven settle and the receipt of its hold.

    Raises: InvalidInput when they don't belong together, or a signature does not hold.
    """
    if not isinstance(settle.body, Settle):
        raise InvalidInput("a job's receipt is checked together with the receipt of its settle")
    hold = verify_receipt(charters, hold_receipt).record
    if not isinstance(hold.body, Hold) or hold.id != settle.account:
        raise InvalidInput("the hold is not the one that the settle ends")
    donor_key = settle.signers[0]
    if compute_account_id(charters[0].federation, donor_key) != hold.body.payee:
        raise InvalidInput("the settle is not signed by the hold's payee")
    receipt = decode_job_receipt(charters[0], job_receipt, donor_key, hold.body.terms.meter_key)
    if receipt.compute_id(charters[0].federation) != settle.body.job_receipt:
        raise InvalidInput("the settle names another job receipt")
    if receipt.hold != hold.id or receipt.quote != hold.body.terms.quote:
        raise InvalidInput("the job receipt names another hold or quote")
    return ProvenJob(receipt, hold.account, hold.body.payee)


def describe_job(job: ProvenJob) -> tuple[dict[str, Any], list[str]]:
    """The same for programs and for people."""
    receipt = job.receipt
    is_agreed = bool(receipt.meter_signature)
    document = {
        "state": receipt.state.name,
        "exit_status": receipt.exit_status if receipt.exit_status != NO_EXIT_STATUS else None,
        "wall_ms": receipt.wall_ms,
        "memory_peak_bytes": receipt.memory_peak_bytes,
        "outputs": receipt.outputs.hex(),
        "millicredits": receipt.amount,
        "payer": encode_address(Kind.ACCOUNT, job.payer),
        "payee": encode_address(Kind.ACCOUNT, job.payee),
        "is_signed_by_payer": is_agreed,
    }
    lines = [
        f"Job: {receipt.state.name}, exit status {document['exit_status']}, {receipt.wall_ms / 1000:.1f} s, "
        f"{format_credits(receipt.amount)} credits",
        f"  from {document['payer']} to {document['payee']}",
        "  signed by both sides" if is_agreed else "  signed by the donor; the payer has not agreed",
    ]
    return document, lines
