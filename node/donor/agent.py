"""The donor's agent: publishes what this machine lends, answers requests, and looks after each job to its end.

It opens no port: it asks its sponsor's node for messages, so it works behind any router. Jobs run side by side as far
as the machine has room for them; the agent of a machine is alone with it, kept so by a lock.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node import api
from node.addresses import Kind, decode_address, encode_address
from node.donor.executors.executor import Executor
from node.donor.job import JobRun
from node.donor.job_file import JobDocument, JobFile
from node.donor.machine import Machine, Share
from node.donor.post import NodeLink, Post
from node.donor.runtimes import Runtime
from node.donor.settings import DonorHome, Score, Settings
from node.donor.workshop import Workshop
from node.errors import UserError
from node.known_charters import KnownCharters
from node.sealing import open_sealed, seal, seal_public_key
from protocol.charter import Charter
from protocol.conversation import Refused, compute_inbox_name, compute_seal_context, encode_envelope
from protocol.errors import InvalidInput, Reason, Rejected
from protocol.identifiers import compute_account_id
from protocol.metering import REFUND_TABLE_VERSION, JobState, compute_charge
from protocol.quotes import (
    Offer,
    Quote,
    QuoteRequest,
    RuntimeName,
    check_request_fits,
    compute_rate,
    decode_quote_request,
)

log = logging.getLogger(__name__)

OFFER_SECONDS = 120
"""Time between two publications of the offer."""
OFFER_VALID_SECONDS = 600
UNSPONSORED_SECONDS = 3
"""Time between two looks whether a member vouches for this donor by now."""
QUOTE_VALID_SECONDS = 300
OPEN_QUOTES_MAX = 16
OPEN_QUOTES_PER_ACCOUNT_MAX = 3
"""Quotes that wait for their start; each costs a long poll."""
WISH_SECONDS = 1.0
TICKS_MAX = 2880
"""Of one job: a day with one every 30 s. A longer job is metered less often, so that its mailbox suffices."""


class Agent:
    """One donor's agent. Invariant: the jobs that run have room on the machine, all together."""

    def __init__(
        self,
        home: DonorHome,
        settings: Settings,
        score: Score,
        charter: Charter,
        key: Ed25519PrivateKey,
        seal_seed: bytes,
        link: NodeLink,
        executor: Executor,
        runtimes: dict[str, Runtime],
        *,
        now: Callable[[], float] = time.time,
        poll_seconds: int = 20,
    ) -> None:
        self.home = home
        self.settings = settings
        self.score = score
        self.charters = KnownCharters(charter, home.amendments_path)
        self.donor_key = key.public_key().public_bytes_raw()
        self.account = compute_account_id(charter.federation, self.donor_key)
        self.address = encode_address(Kind.ACCOUNT, self.account)
        self._key = key
        self._seal_seed = seal_seed
        self._post = Post(link, poll_seconds)
        self._executor = executor
        self._offered_runtimes = {name: runtimes[name] for name in settings.runtimes if name in runtimes}
        self._now = now
        self._jobs: dict[str, JobRun] = {}
        self._wish = home.read_wish()
        self._offer: Offer | None = None
        self._shop = Workshop(
            self.charters,
            key,
            seal_seed,
            settings,
            self._post,
            executor,
            {runtime.digest: runtime for runtime in self._offered_runtimes.values()},
            (),
            now,
            lambda conversation, request: self.machine.take(conversation, request),
            lambda conversation: self.machine.give_back(conversation),
        )

    @property
    def charter(self) -> Charter:
        """The newest version that is known here."""
        return self.charters.newest

    async def run(self) -> None:
        """Sweep, take up every unfinished job, then serve until told to finish."""
        await self._executor.sweep()
        settings = self.settings
        lent = Share(settings.cores, settings.memory_bytes, settings.disk_bytes, 0)
        self.machine = Machine(lent, self._executor.is_disk_in_memory)
        async with trio.open_nursery() as nursery:
            for job in JobFile.load_all(self.home.jobs):
                if not job.document.is_over:
                    self._take_up(job, nursery)
            nursery.start_soon(self._publish_offers)
            nursery.start_soon(self._serve_inbox, nursery)
            await self._watch_wish()
            nursery.cancel_scope.cancel()

    def evict_all(self) -> None:
        """The owner takes the machine back: running jobs end, and are not charged for what is lost."""
        for run in list(self._jobs.values()):
            if run.is_started:
                run.stop(JobState.EVICTED)

    # -- jobs ---------------------------------------------------------------------------------------------------

    def _take_up(self, job: JobFile, nursery: trio.Nursery) -> None:
        run = JobRun(self._shop, job)
        if run.is_started and job.document.state != JobState.HELD:
            self.machine.keep(job.document.conversation, run.request)
        self._jobs[job.document.conversation] = run
        nursery.start_soon(self._look_after, run)

    async def _look_after(self, run: JobRun) -> None:
        """One job's failure must not take the others along; its file says what is left to do after a restart."""
        try:
            await run.run()
        except Exception:
            log.exception("job %s: stopped by an error of ours", run.document.conversation[:8])
        finally:
            self._jobs.pop(run.document.conversation, None)

    async def _watch_wish(self) -> None:
        """Returns when the donor asked to finish and no job is under way."""
        while True:
            wish = self.home.read_wish()
            if wish != self._wish:
                log.info("the donor asks to %s", wish)
                self._wish = wish
            if wish == "pause":
                self.evict_all()
            if wish == "finish" and not any(run.document.hold for run in self._jobs.values()):
                return
            await trio.sleep(WISH_SECONDS)

    # -- offering -----------------------------------------------------------------------------------------------

    async def _publish_offers(self) -> None:
        while True:
            if self._wish == "run":
                try:
                    await self._shop.learn_charters()
                    await self._publish_offer()
                except (UserError, Rejected, InvalidInput) as error:
                    log.warning("the offer was not published: %s", error)
            await trio.sleep(OFFER_SECONDS if self._offer is not None else UNSPONSORED_SECONDS)

    async def _publish_offer(self) -> None:
        account = await self._post.insist(self._post.link.get_account, self.address)
        sponsor = _find_sponsor(account)
        if sponsor is None:
            self._offer = None
            log.warning("no member vouches for %s yet: nothing is offered", self.address)
            return
        self._offer = self._build_offer(sponsor)
        await self._post.insist(self._post.link.put_offer, self._offer.encode())

    def _build_offer(self, sponsor: bytes) -> Offer:
        settings = self.settings
        runtimes = (RuntimeName(name, runtime.digest) for name, runtime in self._offered_runtimes.items())
        # GPUs are not lent before the executor can pass them into a job.
        return Offer(
            self.donor_key,
            seal_public_key(self._seal_seed),
            sponsor,
            settings.node_url,
            settings.machine,
            settings.cores,
            settings.memory_bytes,
            settings.disk_bytes,
            int(self._executor.is_disk_in_memory),
            (),
            self.score.weight,
            tuple(sorted(runtimes)),
            tuple(sorted(settings.job_classes)),
            (),
            settings.wall_seconds_max,
            int(self._now()) + OFFER_VALID_SECONDS,
            b"",
        ).sign(self.charter.federation, self._key)

    # -- quoting ------------------------------------------------------------------------------------------------

    async def _serve_inbox(self, nursery: trio.Nursery) -> None:
        inbox = compute_inbox_name(self.account)
        context = compute_seal_context(b"inbox", inbox)
        after = self.home.load_cursor()
        while True:
            for posted in await self._post.read(inbox, after):
                try:
                    encoded = open_sealed(self._seal_seed, posted.content, context)
                    await self._answer(decode_quote_request(self.charter, encoded), nursery)
                except InvalidInput as error:
                    log.info("a request is ignored: %s", error)
                after = posted.sequence
                self.home.save_cursor(after)

    async def _answer(self, request: QuoteRequest, nursery: trio.Nursery) -> None:
        conversation = request.compute_id(self.charter.federation).hex()
        if conversation in self._jobs or (self.home.jobs / conversation).exists():
            return
        try:
            quote = self._build_quote(request)
            await self._check_payer(request, quote)
        except Rejected as rejection:
            await self._refuse(request, rejection.detail)
            return
        document = JobDocument(conversation, request.encode(), quote.encode())
        self._take_up(JobFile.create(self.home.jobs, document), nursery)

    async def _check_payer(self, request: QuoteRequest, quote: Quote) -> None:
        """Raises: Rejected for somebody who could not pay, or who keeps several quotes open: quotes are scarce."""
        account = encode_address(Kind.ACCOUNT, request.account)
        found = await self._post.insist(self._post.link.get_account, account)
        if found.millicredits < quote.amount_max:
            raise Rejected(Reason.FUNDS_MISSING, "the account does not hold what the job could cost")
        unused = [run for run in self._jobs.values() if not run.document.hold]
        if sum(run.request.account == request.account for run in unused) >= OPEN_QUOTES_PER_ACCOUNT_MAX:
            raise Rejected(Reason.LIMIT_EXCEEDED, "this account has several unused quotes: try again in some minutes")

    def _build_quote(self, request: QuoteRequest) -> Quote:
        """Raises: Rejected when the machine can't or won't do it now."""
        offer = self._offer
        if offer is None or self._wish != "run":
            raise Rejected(Reason.POLICY, "the donor takes no jobs at the moment")
        if sum(not run.document.hold for run in self._jobs.values()) >= OPEN_QUOTES_MAX:
            raise Rejected(Reason.LIMIT_EXCEEDED, "too many quotes are open: try again in some minutes")
        check_request_fits(offer, request)
        if not self.machine.has_room(request):
            raise Rejected(Reason.POLICY, "the machine is busy with other jobs")
        policy = self.charter.policy
        grace = min(max(self.settings.grace_seconds, policy.hold_grace_seconds_min), policy.hold_grace_seconds_max)
        rate = compute_rate(offer, request)
        return Quote(
            self.donor_key,
            request.compute_id(self.charter.federation),
            offer.sponsor,
            rate,
            request.wall_seconds,
            max(self.settings.tick_seconds, -(-request.wall_seconds // TICKS_MAX)),
            compute_charge(request.wall_seconds * 1000, rate),
            grace,
            REFUND_TABLE_VERSION,
            self.charter.version,
            int(self._now()) + QUOTE_VALID_SECONDS,
            b"",
        ).sign(self.charter.federation, self._key)

    async def _refuse(self, request: QuoteRequest, detail: str) -> None:
        mailbox = request.mailbox_to_wallet
        envelope = encode_envelope(self.charter.federation, self._key, mailbox, 0, Refused(detail[:200]))
        sealed = seal(request.seal_key, envelope, compute_seal_context(b"message", mailbox))
        try:
            await self._post.insist(self._post.link.post_message, mailbox, sealed)
        except (UserError, Rejected, InvalidInput) as error:
            log.info("a refusal was not delivered: %s", error)


def _find_sponsor(account: api.Account) -> bytes | None:
    """The record by which a member vouches for the donor the longest from now on."""
    current = [entry for entry in account.sponsorships if entry.until_epoch >= account.epoch]
    if not current:
        return None
    return decode_address(Kind.RECORD, max(current, key=lambda entry: entry.until_epoch).record)
