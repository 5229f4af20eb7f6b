"""Ending a hold on the ledger: the donor's one record in the hold's slot, signed once and sent until it is final.

A settle takes the best voucher that asks for no more than is due and returns the rest to the payer. Its bytes are on
disk before they are sent; after a crash the same bytes go out again, so the slot is never contested.
"""

from __future__ import annotations

import logging

import trio

from node.donor.job_file import SETTLED, JobFile
from node.donor.workshop import Workshop
from node.errors import UserError
from protocol.errors import InvalidInput, Rejected
from protocol.quotes import decode_job_receipt, decode_quote, decode_quote_request
from protocol.receipts import find_charter_version, verify_receipt
from protocol.records import NONE, Kind, Record, RecordDraft, Settle, hold_scope, sign_record

log = logging.getLogger(__name__)

SUBMIT_WAIT_SECONDS = 20
PAUSE_SECONDS_FIRST = 0.5
PAUSE_SECONDS_MAX = 60.0


def is_settled(job: JobFile) -> bool:
    """True when a receipt proves the settle record final."""
    return bool(job.document.settle_receipt)


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
    """Returns when the settle record is final. A refusal is logged and tried again: members may have to catch up."""
    document = job.document
    if not document.settle:
        document.settle = build_settle(shop, job).encoded
        job.save()
    pause = PAUSE_SECONDS_FIRST
    while True:
        try:
            answer = await shop.post.insist(shop.post.link.submit_record, document.settle, wait=SUBMIT_WAIT_SECONDS)
            if answer.receipt is not None:
                if find_charter_version(answer.receipt) not in shop.charters:
                    await shop.learn_charters()
                proven = verify_receipt(shop.charters, answer.receipt).record
                if proven.encoded != document.settle:
                    raise InvalidInput("the node's receipt is for another record")
                document.settle_receipt = answer.receipt
                document.state = SETTLED
                job.save()
                return
        except (Rejected, InvalidInput, UserError) as error:
            log.warning("job %s can't be settled yet: %s", document.conversation[:8], error)
        await trio.sleep(pause)
        pause = min(2 * pause, PAUSE_SECONDS_MAX)
