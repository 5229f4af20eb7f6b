"""Ending a hold on the ledger: the donor's record in the hold's slot, sent until the hold has ended.

A settle takes the best voucher that asks for no more than is due and returns the rest to the payer. Its bytes are on
disk before they are sent; after a crash the same bytes go out again. Another one is signed only when the first has
found no quorum and its epoch has passed, and comes into the slot by an attempt (spec 5.6).
"""

from __future__ import annotations

import logging

import trio

from node.addresses import Kind as AddressKind
from node.addresses import encode_address
from node.donor.job_file import RECLAIMED, SETTLED, JobFile
from node.donor.workshop import Workshop
from node.errors import UserError
from node.hold_slots import PAYEE, HoldSlot
from protocol.errors import InvalidInput, Reason, Rejected
from protocol.quotes import decode_job_receipt, decode_quote, decode_quote_request
from protocol.receipts import find_charter_version, verify_receipt
from protocol.records import NONE, Kind, Record, RecordDraft, Settle, decode_record, hold_scope, sign_record

log = logging.getLogger(__name__)

SUBMIT_WAIT_SECONDS = 20
PAUSE_SECONDS_FIRST = 0.5
PAUSE_SECONDS_MAX = 60.0


def build_settle(shop: Workshop, job: JobFile) -> Record:
    """The settle record of a job that has ended."""
    charter, document = shop.charter, job.document
    voucher = document.choose_voucher(document.amount_due)
    quote = decode_quote(charter, document.quote)
    request = decode_quote_request(charter, document.request)
    receipt = decode_job_receipt(charter, document.receipt, quote.donor_key, request.meter_key)
    draft = RecordDraft(
        Kind.SETTLE,
        charter.compute_epoch(int(shop.now())),
        hold_scope(document.hold),
        0,
        NONE,
        Settle(
            voucher.sequence,
            voucher.amount,
            voucher.signature,
            NONE,
            0,
            receipt.compute_id(charter.federation),
        ),
        (quote.donor_key,),
    )
    return sign_record(charter.federation, draft, [shop.key])


async def settle(shop: Workshop, job: JobFile) -> None:
    """Returns when the hold has ended: settled or, too late for us, reclaimed by its payer. A refusal is logged and
    tried again: members may have to catch up. When the payer signed for the slot, too, we take our turns to free it."""
    document = job.document
    if not document.settle:
        _keep(job, build_settle(shop, job))
    slot: HoldSlot | None = None
    pause = PAUSE_SECONDS_FIRST
    while True:
        try:
            if slot is None:
                answer = await shop.post.insist(shop.post.link.submit_record, document.settle, wait=SUBMIT_WAIT_SECONDS)
                receipt = answer.receipt
            else:
                epoch = shop.charter.compute_epoch(int(shop.now()))
                receipt = await shop.post.insist(slot.take_turn, shop.post.link, epoch, SUBMIT_WAIT_SECONDS)
            if await _take_end(shop, job, receipt or await _find_end(shop, job)):
                return
        except (Rejected, InvalidInput, UserError) as error:
            log.warning("job %s can't be settled yet: %s", document.conversation[:8], error)
            reason = error.reason if isinstance(error, Rejected) else None
            if reason is not None and await _take_end(shop, job, await _find_end(shop, job)):
                return
            if reason is Reason.EPOCH_WRONG and slot is None:
                _keep(job, build_settle(shop, job))
                await trio.sleep(pause)
                continue
        if slot is None:
            record = decode_record(shop.charter.federation, document.settle)
            slot = HoldSlot(shop.charter.federation, PAYEE, record, shop.key, lambda renewed, _: _keep(job, renewed))
        await trio.sleep(pause)
        pause = min(2 * pause, PAUSE_SECONDS_MAX)


def _keep(job: JobFile, settle: Record) -> None:
    job.document.settle = settle.encoded
    job.save()


async def _find_end(shop: Workshop, job: JobFile) -> bytes | None:
    """The receipt of what ended the hold, as the node knows it."""
    link, hold = shop.post.link, encode_address(AddressKind.RECORD, job.document.hold)
    answer = await shop.post.insist(link.get_job, hold)
    ended_by = answer.ended_by if answer is not None else None
    found = await shop.post.insist(link.get_record, ended_by) if ended_by else None
    return found.receipt if found is not None else None


async def _take_end(shop: Workshop, job: JobFile, receipt: bytes | None) -> bool:
    """Write down how the hold ended; False when nothing proves it. Raises: InvalidInput when this is no proof of it."""
    if receipt is None:
        return False
    if find_charter_version(receipt) not in shop.charters:
        await shop.learn_charters()
    proven = verify_receipt(shop.charters, receipt).record
    document = job.document
    if proven.scope != hold_scope(document.hold):
        raise InvalidInput("the node's receipt is for another record")
    document.settle_receipt = receipt
    document.state = SETTLED if isinstance(proven.body, Settle) else RECLAIMED
    if document.state == SETTLED:
        document.settle = proven.encoded
    job.save()
    return True
