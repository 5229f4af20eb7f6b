"""How a hold ended: settled by its payee or reclaimed by its payer, as a receipt proves it, whatever anybody says.

A hold has one slot, so it ends once (spec 7.10). What ended it is looked up at the node by the hold's id.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from node.addresses import Kind as AddressKind
from node.addresses import decode_address, encode_address
from node.wallet.job_records import RECLAIMED, SETTLED, WalletJob, drop_inputs, save_job
from node.wallet.sending import Proven, note_final, read_final_record
from protocol.errors import InvalidInput
from protocol.metering import CHARGED_STATES, END_STATES
from protocol.receipts import verify_receipt
from protocol.records import Settle, hold_scope

if TYPE_CHECKING:
    from node.wallet.wallet import Wallet

LET_DOWN = END_STATES - CHARGED_STATES
"""Ends that are not the job's own doing (spec 12.4): the same inputs may well succeed elsewhere."""


def take_end(wallet: Wallet, job: WalletJob, receipt: bytes) -> None:
    """Believe the receipt of the record in the hold's slot. Raises: InvalidInput when it proves something else."""
    record = verify_receipt(wallet.charters, receipt).record
    if record.scope != hold_scope(job.hold):
        raise InvalidInput("it is not the settlement of this job")
    note_final(wallet, Proven(record, receipt))
    if isinstance(record.body, Settle):
        job.settle_receipt, job.paid, job.state = receipt, record.body.amount, SETTLED
        due = job.decode_receipt(wallet)
        if due is not None and job.paid > due.amount:
            job.dispute = job.dispute or f"the donor took {job.paid} millicredits, {due.amount} were due"
    else:
        job.reclaim_receipt, job.paid, job.state = receipt, 0, RECLAIMED
    save_job(wallet, job)
    if not is_let_down(wallet, job):
        drop_inputs(wallet, job)


def is_let_down(wallet: Wallet, job: WalletJob) -> bool:
    """Whether its donor did not do the job: it failed, took its machine back, or never settled anything."""
    receipt = job.decode_receipt(wallet)
    if receipt is not None:
        return receipt.state in LET_DOWN
    return bool(job.reclaim_receipt)


def look_for_end(wallet: Wallet, job: WalletJob) -> bool:
    """Ask the node what ended the hold; True when the job is over, with proof. Raises: Unreachable."""
    if job.hold and not job.is_over:
        answer = wallet.client.get_job(encode_address(AddressKind.RECORD, job.hold))
        name = answer.ended_by if answer is not None else None
        proven = read_final_record(wallet, decode_address(AddressKind.RECORD, name)) if name else None
        if proven is not None and proven.record.scope == hold_scope(job.hold):
            take_end(wallet, job, proven.receipt)
    return job.is_over
