"""Ending a hold on the ledger: the donor's record in the hold's slot, sent until the hold has ended.

A settle takes the best voucher that asks for no more than is due and returns the rest to the payer. Its bytes are on
disk before they are sent; after a crash the same bytes go out again. Another one is signed only when members refuse the
first because its epoch has passed; where both claim the slot, our turns decide it (spec 5.8).
"""

from __future__ import annotations

import logging
from contextlib import suppress

import trio

from node.addresses import Kind as AddressKind
from node.addresses import encode_address
from node.donor.job_file import RECLAIMED, SETTLED, JobFile
from node.donor.workshop import Workshop
from node.errors import UserError
from node.hold_slots import HoldSlot
from protocol.errors import InvalidInput, Reason, Rejected
from protocol.quotes import decode_job_receipt, decode_quote, decode_quote_request
from protocol.receipts import find_charter_version, verify_receipt
from protocol.records import NONE, Kind, Record, RecordDraft, Settle, decode_record, hold_scope, sign_record
from protocol.turns import PAYEE_TURN

log = logging.getLogger(__name__)

SUBMIT_WAIT_SECONDS = 20
PAUSE_SECONDS_FIRST = 0.5
PAUSE_SECONDS_MAX = 60.0
CLAIM_SECONDS_MAX = 10.0
"""For the question whether the payer has asked for its credits back."""


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


async def is_reclaim_asked(shop: Workshop, hold: bytes, patience_seconds: float) -> bool:
    """Whether only the grace is left to settle in (spec 12.8, D3). False when nobody says so in that time: a node that
    does not answer brings no vouchers either, so a job does not go on for long."""
    answer = None
    with suppress(UserError), trio.move_on_after(min(patience_seconds, CLAIM_SECONDS_MAX)):
        answer = await shop.post.call(shop.post.link.get_job, encode_address(AddressKind.RECORD, hold))
    return answer is not None and answer.reclaim_request is not None


async def settle(shop: Workshop, job: JobFile) -> None:
    """Returns when the hold has ended: settled or, too late for us, reclaimed by its payer. A refusal is logged and
    tried again: members may have to catch up."""

    def keep(settle: Record, attempt: int = 0) -> None:
        job.document.settle, job.document.attempt = settle.encoded, max(attempt, job.document.attempt)
        job.save()

    if not job.document.settle:
        keep(build_settle(shop, job))
    slot = HoldSlot(shop.charter.federation, PAYEE_TURN, shop.key, job.document.attempt, keep)
    pause = PAUSE_SECONDS_FIRST
    while True:
        try:
            receipt = await _bring_through(shop, job, slot)
            if receipt is not None:
                await _take_end(shop, job, receipt)
                return
        except (Rejected, InvalidInput, UserError) as error:
            log.warning("job %s can't be settled yet: %s", job.document.conversation[:8], error)
            if isinstance(error, Rejected) and error.reason is Reason.EPOCH_WRONG:
                keep(build_settle(shop, job))
        await trio.sleep(pause)
        pause = min(2 * pause, PAUSE_SECONDS_MAX)


async def _bring_through(shop: Workshop, job: JobFile, slot: HoldSlot) -> bytes | None:
    """Send the settle record; if that brings nothing, look whether the hold has ended; if not, the payer may claim the
    slot, too, so take a turn at it. The receipt of what ended the hold."""
    link, settle = shop.post.link, job.document.settle
    receipt, refusal = None, None
    try:
        receipt = (await shop.post.insist(link.submit_record, settle, wait=SUBMIT_WAIT_SECONDS)).receipt
    except Rejected as rejection:
        refusal = rejection
    receipt = receipt or await _find_end(shop, job)
    if receipt is not None:
        return receipt
    if refusal is not None and refusal.reason is not Reason.SLOT_CONTESTED:
        raise refusal
    record = decode_record(shop.charter.federation, settle)
    return await shop.post.insist(slot.take_turn, link, record, SUBMIT_WAIT_SECONDS)


async def _find_end(shop: Workshop, job: JobFile) -> bytes | None:
    """The receipt of what ended the hold, as the node knows it."""
    link, hold = shop.post.link, encode_address(AddressKind.RECORD, job.document.hold)
    answer = await shop.post.insist(link.get_job, hold)
    ended_by = answer.ended_by if answer is not None else None
    found = await shop.post.insist(link.get_record, ended_by) if ended_by else None
    return found.receipt if found is not None else None


async def _take_end(shop: Workshop, job: JobFile, receipt: bytes) -> None:
    """Write down how the hold ended. Raises: InvalidInput when this is no proof of it."""
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
