"""Answering who asks: a binding quote when the owner and the machine allow the job now, else one line that says why.

A quote costs the donor a long poll and nothing else; the machine is given to whoever starts first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime

import trio

from node import api
from node.addresses import Kind, encode_address
from node.donor.acceptance import check_request, describe_payer, list_institutions
from node.donor.executors.devices import DevicePool
from node.donor.job_file import JobDocument
from node.donor.offering import Offering
from node.donor.settings import DonorHome
from node.donor.workshop import Workshop
from node.errors import UserError
from node.sealing import open_sealed, seal
from protocol.conversation import Refused, compute_inbox_name, compute_seal_context, encode_envelope
from protocol.errors import InvalidInput, Reason, Rejected
from protocol.metering import REFUND_TABLE_VERSION, compute_charge
from protocol.quotes import Quote, QuoteRequest, check_request_fits, compute_rate, decode_quote_request

log = logging.getLogger(__name__)

QUOTE_VALID_SECONDS = 300
OPEN_QUOTES_MAX = 16
OPEN_QUOTES_PER_ACCOUNT_MAX = 3
"""Quotes that wait for their start; each costs a long poll."""
TICKS_MAX = 2880
"""Of one job: a day with one every 30 s. A longer job is metered less often, so that its mailbox suffices."""


class Quoting:
    """The donor's inbox. `begin(document)` looks after a job from its quote on."""

    def __init__(
        self,
        home: DonorHome,
        shop: Workshop,
        offering: Offering,
        devices: DevicePool,
        begin: Callable[[JobDocument], None],
    ) -> None:
        self._home = home
        self._shop = shop
        self._offering = offering
        self._devices = devices
        self._begin = begin

    async def serve(self) -> None:
        """Answer every request, until cancelled."""
        shop = self._shop
        inbox = compute_inbox_name(shop.account)
        context = compute_seal_context(b"inbox", inbox)
        after = self._home.load_cursor()
        while True:
            for posted in await shop.post.read(inbox, after):
                try:
                    encoded = open_sealed(shop.seal_seed, posted.content, context)
                    await self._answer(decode_quote_request(shop.charter, encoded))
                except InvalidInput as error:
                    log.info("a request is ignored: %s", error)
                after = posted.sequence
                self._home.save_cursor(after)

    async def _answer(self, request: QuoteRequest) -> None:
        shop = self._shop
        conversation = request.compute_id(shop.charter.federation).hex()
        if conversation in shop.documents:
            return
        try:
            quote = self._build_quote(request)
            address = encode_address(Kind.ACCOUNT, request.account)
            account = await shop.post.insist(shop.post.link.get_account, address)
            self._check(request, quote, account)
            if request.gpus > await trio.to_thread.run_sync(self._devices.count_free):
                raise Rejected(Reason.POLICY, "the machine's GPUs are busy, or not well")
        except Rejected as rejection:
            await self._refuse(request, rejection.detail)
            return
        institutions = list_institutions(account)
        log.info("job %s: a quote for %s", conversation[:8], describe_payer(request.account, institutions))
        self._begin(JobDocument(conversation, request.encode(), quote.encode(), institutions=institutions))

    def _check(self, request: QuoteRequest, quote: Quote, account: api.Account) -> None:
        """Raises: Rejected for what the owner does not allow, and for who keeps several quotes open."""
        shop = self._shop
        local = datetime.fromtimestamp(shop.now(), UTC).astimezone()
        use = shop.compute_use(request.account)
        check_request(shop.settings, shop.charters, request, quote.amount_max, account, use, local)
        unused = [document for document in shop.documents.values() if not document.hold]
        if len(unused) >= OPEN_QUOTES_MAX:
            raise Rejected(Reason.LIMIT_EXCEEDED, "too many quotes are open: try again in some minutes")
        asked = (decode_quote_request(shop.charter, document.request).account for document in unused)
        if sum(account == request.account for account in asked) >= OPEN_QUOTES_PER_ACCOUNT_MAX:
            raise Rejected(Reason.LIMIT_EXCEEDED, "this account has several unused quotes: try again in some minutes")

    def _build_quote(self, request: QuoteRequest) -> Quote:
        """Raises: Rejected when the machine can't or won't do it now."""
        shop, offer = self._shop, self._offering.offer
        if offer is None or shop.wish != "run" or not shop.verdict.is_lent:
            reason = shop.verdict.reason
            raise Rejected(Reason.POLICY, f"the donor takes no jobs at the moment{': ' if reason else ''}{reason}")
        check_request_fits(offer, request)
        if not shop.machine.has_room(request):
            raise Rejected(Reason.POLICY, "the machine is busy with other jobs")
        policy, settings = shop.charter.policy, shop.settings
        grace = min(max(settings.grace_seconds, policy.hold_grace_seconds_min), policy.hold_grace_seconds_max)
        rate = compute_rate(offer, request)
        return Quote(
            offer.donor_key,
            request.compute_id(shop.charter.federation),
            offer.sponsor,
            rate,
            request.wall_seconds,
            max(settings.tick_seconds, -(-request.wall_seconds // TICKS_MAX)),
            compute_charge(request.wall_seconds * 1000, rate),
            grace,
            REFUND_TABLE_VERSION,
            shop.charter.version,
            int(shop.now()) + QUOTE_VALID_SECONDS,
            b"",
        ).sign(shop.charter.federation, shop.key)

    async def _refuse(self, request: QuoteRequest, detail: str) -> None:
        mailbox, shop = request.mailbox_to_wallet, self._shop
        envelope = encode_envelope(shop.charter.federation, shop.key, mailbox, 0, Refused(detail[:200]))
        sealed = seal(request.seal_key, envelope, compute_seal_context(b"message", mailbox))
        try:
            await shop.post.insist(shop.post.link.post_message, mailbox, sealed)
        except (UserError, Rejected, InvalidInput) as error:
            log.info("a refusal was not delivered: %s", error)
