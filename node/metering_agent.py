"""Answers the meters of jobs whose wallets are away, so that a person may switch the laptop off.

A task follows each job: it reads the donor's letters at the donor's node, agrees to ticks and to the job receipt by the
rules that a wallet keeps, and stops when the hold has ended, the order runs out or the wallet takes the job back. It
never speaks in a job that was given back: two speakers with one key would use the same numbers twice (spec 12.10).

*Resource handling.* One thread for each job, most of the time in a long poll. What a donor's node answers is bounded in
bytes and time, and its letters in number per second. *Error handling.* A node that is away is asked again; what a
donor says that does not hold is written down for the wallet, and not signed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node import job_api
from node.client import NodeClient
from node.errors import Unreachable, UserError
from node.member import LedgerMember
from node.metering_orders import JobTerms, MeteredJob, check_place, load, load_active, open_order, save
from node.sealing import open_sealed, seal
from node.storage.limits import METERED_MAX
from node.storage.store import Store
from protocol.conversation import (
    Accepted,
    Message,
    ReceiptAgreed,
    Refused,
    Result,
    Standing,
    Started,
    Ticked,
    VoucherGiven,
    compute_seal_context,
    decode_envelope,
    encode_envelope,
)
from protocol.errors import InvalidInput, Reason, Rejected
from protocol.metering import JobState, decode_tick
from protocol.quotes import decode_job_receipt
from protocol.records import hold_scope

log = logging.getLogger("allmende.metering")

T = TypeVar("T")

POLL_SECONDS = 20
ANSWER_BYTES_MAX = 4 * 1024 * 1024
"""A page of letters is 1 MiB at a node, a third more as JSON."""
PAUSE_SECONDS_FIRST = 0.5
PAUSE_SECONDS_MAX = 20.0
LETTER_SECONDS = 0.02
"""Letters of one job are opened at 50 a second at the most: a node that floods takes no more of our time."""

Connect = Callable[[str, bool], NodeClient]


def make_client(url: str, is_public_only: bool) -> NodeClient:
    """The client of a donor's node."""
    return NodeClient(url, json_bytes_max=ANSWER_BYTES_MAX, is_public_only=is_public_only)


class MeteringAgent:
    """All jobs that this node follows. Invariant: a job is followed by at most one task, and only while active."""

    def __init__(
        self,
        member: LedgerMember,
        store: Store,
        own_places: frozenset[str] = frozenset(),
        *,
        clock: Callable[[], float] = time.time,
        connect: Connect = make_client,
        poll_seconds: int = POLL_SECONDS,
    ) -> None:
        self._member = member
        self._store = store
        self._own_places = own_places
        self._clock = clock
        self._connect = connect
        self._poll_seconds = poll_seconds
        self._limiter = trio.CapacityLimiter(2 * METERED_MAX)
        self._nursery: trio.Nursery | None = None
        self._followers: dict[bytes, Follower] = {}

    async def run(self) -> None:
        """Take up every job that is active, and those that are handed over from now on; never ends."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for job in load_active(self._store):
                try:
                    self._start(job)
                except Rejected as rejection:  # the operator has changed what may be called
                    log.warning("job %s is not followed any more: %s", job.hold.hex()[:8], rejection)
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def accept(self, order: job_api.MeteringOrder) -> job_api.Metered:
        """Speak for the wallet from now on. Repeating it changes nothing.

        Raises: InvalidInput; Rejected when this node may not; StoreFull; StoreFailed.
        """
        job = open_order(self._member, self._store, order, int(self._clock()))
        check_place(JobTerms(self._member, order).offer.node_url, self._own_places)
        known = load(self._store, job.ticket)
        if known is not None and known.order.turn >= order.turn:
            return known.describe()
        if known is not None and known.is_active:
            raise Rejected(Reason.SLOT_TAKEN, "this node has the job already: take it back first")
        save(self._store, job)
        self._start(job)
        return job.describe()

    async def give_back(self, ticket: bytes, turn: int) -> job_api.Metered | None:
        """Stop speaking for the wallet, and say how far it came; None for an unknown job. May be repeated.

        Returns when nothing of this turn is on its way any more. Raises: Rejected for another turn.
        """
        known = load(self._store, ticket)
        if known is None:
            return None
        if known.order.turn != turn:
            raise Rejected(Reason.SLOT_TAKEN, f"the job was handed over {known.order.turn} times by now")
        follower = self._followers.get(ticket)
        if follower is not None:
            await follower.stop()
        job = load(self._store, ticket)
        assert job is not None, "only what is over for days is forgotten"
        if job.is_active:
            job.leave("given back")
            save(self._store, job)
        return job.describe()

    def _start(self, job: MeteredJob) -> None:
        if self._nursery is None or job.ticket in self._followers:
            return  # it is taken up when the agent runs
        terms = JobTerms(self._member, job.order)
        is_public_only = check_place(terms.offer.node_url, self._own_places)
        client = self._connect(terms.offer.node_url, is_public_only)
        line = Link(client, self._limiter, self._poll_seconds)
        follower = Follower(self._member, self._store, job, terms, line, self._clock)
        self._followers[job.ticket] = follower
        self._nursery.start_soon(self._look_after, follower)

    async def _look_after(self, follower: Follower) -> None:
        """One job's failure must not take the others along; a restart of the node takes it up again."""
        try:
            await follower.run()
        except Exception:
            log.exception("job %s: stopped by an error of ours", follower.name)
        finally:
            follower.close()
            self._followers.pop(follower.job.ticket, None)
            follower.stopped.set()


class Link:
    """The way to one donor's node: the blocking client, in threads."""

    def __init__(self, client: NodeClient, limiter: trio.CapacityLimiter, poll_seconds: int) -> None:
        self.client = client
        self._limiter = limiter
        self._poll_seconds = poll_seconds
        self._is_closed = False

    def close(self) -> None:
        """Close the connections; those of calls that were abandoned as soon as they end."""
        self._is_closed = True
        self.client.close()

    async def call(self, method: Callable[..., T], *arguments: object, **options: object) -> T:
        """One call, once. One that is cancelled is left to end by itself. Raises: UserError and its kinds."""

        def work() -> T:
            try:
                return method(*arguments, **options)
            finally:
                if self._is_closed:
                    self.client.close()

        return await trio.to_thread.run_sync(work, limiter=self._limiter, abandon_on_cancel=True)

    async def read(self, mailbox: bytes, after: int) -> Sequence[job_api.Message]:
        """Letters after `after`, oldest first; waits a while for the first."""
        return await self.call(self.client.get_messages, mailbox, after=after, wait=self._poll_seconds)


class Follower:
    """Speaks for the wallet in one job."""

    def __init__(
        self,
        member: LedgerMember,
        store: Store,
        job: MeteredJob,
        terms: JobTerms,
        link: Link,
        clock: Callable[[], float],
    ) -> None:
        self.job = job
        self.stopped = trio.Event()
        self._member = member
        self._store = store
        self._terms = terms
        self._link = link
        self._clock = clock
        self._meter = terms.make_meter(job)
        self._meter_key = Ed25519PrivateKey.from_private_bytes(job.order.meter_seed)
        self._waiting = trio.CancelScope()
        self._is_stopping = False

    @property
    def name(self) -> str:
        """For the log."""
        return self.job.hold.hex()[:8]

    def close(self) -> None:
        """Let go of the donor's node."""
        self._link.close()

    async def stop(self) -> None:
        """Hear nothing more; returns when the letter that was being answered is answered or given up."""
        self._is_stopping = True
        self._waiting.cancel()
        await self.stopped.wait()

    @contextmanager
    def _until_stopped(self) -> Iterator[None]:
        """What may be broken off: to wait and to read, but not to post."""
        with trio.CancelScope() as self._waiting:
            if self._is_stopping:
                self._waiting.cancel()
            yield

    async def run(self) -> None:
        """Until the hold has ended, the order has run out or the job is taken back."""
        pause = PAUSE_SECONDS_FIRST
        while not self._is_stopping and not self._look_for_end():
            try:
                if await self._hear():
                    continue
                pause = PAUSE_SECONDS_FIRST
            except UserError as error:
                log.info("job %s: %s", self.name, error)
                pause = min(2 * pause, PAUSE_SECONDS_MAX)
            with self._until_stopped():
                await trio.sleep(pause)

    def _look_for_end(self) -> bool:
        """True when there is nothing left to speak for; the keys are gone then."""
        job, ledger = self.job, self._member.replica.ledger
        hold = ledger.holds.get(job.hold)
        if hold is not None and not hold.is_open:
            ended_by = ledger.heads[hold_scope(job.hold)].record
            job.end_receipt = self._member.build_receipt(ended_by) or b""
            job.state = hold.phase.name
        elif self._clock() < job.order.expires_seconds:
            return False
        job.leave("over")
        save(self._store, job)
        log.info("job %s: over (%s)", self.name, job.state)
        return True

    # -- hearing ----------------------------------------------------------------------------------------------------

    async def _hear(self) -> bool:
        """Answer the donor's new letters, once each, in order; True when there were any.

        Raises: UserError when a node does not answer.

        The place is written down after a letter was answered, so what was not answered comes again after a crash.
        """
        job, mailbox = self.job, self._terms.request.mailbox_to_wallet
        letters: Sequence[job_api.Message] = ()
        after = job.after
        with self._until_stopped():
            letters = await self._link.read(mailbox, job.after)
        for letter in letters:
            if letter.sequence <= job.after:
                continue  # no honest node says so
            opened = self._open(letter.content)
            if opened is not None and opened[0] > job.received:
                await self._handle(opened[1])
                job.received = opened[0]
            job.after = letter.sequence
            if self._is_stopping:
                break
            await trio.sleep(LETTER_SECONDS)
        is_news = job.after > after
        if is_news:
            save(self._store, job)
        return is_news

    def _open(self, sealed: bytes) -> tuple[int, Message] | None:
        mailbox, terms = self._terms.request.mailbox_to_wallet, self._terms
        try:
            envelope = open_sealed(self.job.order.seal_seed, sealed, compute_seal_context(b"message", mailbox))
            return decode_envelope(terms.federation, terms.offer.donor_key, mailbox, envelope)
        except InvalidInput:
            return None  # not the donor's: anybody at that node could have put it there

    async def _handle(self, message: Message) -> None:
        job = self.job
        try:
            match message:
                case Accepted() if not job.receipt:
                    job.state = JobState.STAGING
                case Started() if not job.receipt:
                    job.state = JobState.RUNNING
                case Standing() if not job.receipt:
                    job.state = message.state
                case Refused():
                    job.detail = job.detail or f"the donor refuses: {message.reason}"
                case Ticked():
                    await self._take_tick(message.tick)
                case Result():
                    await self._take_result(message)
        except InvalidInput as error:
            log.info("job %s: not agreed to: %s", self.name, error)
            job.dispute = job.dispute or str(error)
            save(self._store, job)

    # -- agreeing ---------------------------------------------------------------------------------------------------

    async def _take_tick(self, encoded: bytes) -> None:
        """Raises: InvalidInput when it is not agreed to; Unreachable."""
        job, meter = self.job, self._meter
        tick = decode_tick(encoded)
        checkpoint = meter.find_new_checkpoint(tick)
        if checkpoint:
            await self._check_blob(checkpoint, "checkpoint")
        try:
            voucher = meter.answer(tick, int(self._clock()), checkpoint)
        except InvalidInput as error:
            raise InvalidInput(f"a tick was not agreed to: {error}") from error
        if voucher is not None:
            job.last = meter.last.encode() if meter.last else b""
            job.saved = meter.checkpoint.encode() if meter.checkpoint else b""
            await self._say(VoucherGiven(voucher.sequence, voucher.amount, voucher.signature))

    async def _take_result(self, result: Result) -> None:
        """Agree to the end of the job, as far as can be seen from here: whether the results open, the wallet sees.

        Raises: InvalidInput when it is not agreed to; Unreachable.
        """
        job, terms = self.job, self._terms
        receipt = decode_job_receipt(
            self._member.charter, result.receipt, terms.quote.donor_key, terms.request.meter_key
        )
        if (receipt.hold, receipt.quote) != (job.hold, terms.quote.compute_id(terms.federation)):
            raise InvalidInput("the donor's receipt is for another job")
        self._meter.is_closed = True
        if not job.receipt:
            job.receipt, job.detail, job.state = result.receipt, result.detail, receipt.state
        agreed = self._meter.agree(receipt)
        if receipt.outputs:
            await self._check_blob(receipt.outputs, "results")
        if job.dispute:
            return
        job.receipt = agreed.encode()
        await self._say(ReceiptAgreed(agreed.meter_signature))

    async def _check_blob(self, digest: bytes, what: str) -> None:
        """Raises: InvalidInput unless the donor's node gives the blob; Unreachable when nobody can tell now."""
        is_there = False
        with self._until_stopped():
            try:
                await self._link.call(self._link.client.check_blob, digest)
                is_there = True
            except Unreachable:
                raise
            except UserError as error:
                raise InvalidInput(f"the {what} can't be had: {error}") from error
        if not is_there:
            raise Unreachable("the wallet takes the job back")

    async def _say(self, message: Message) -> None:
        """Post a letter; all that it follows from, and its number, are on disk before. Raises: nothing of the node's.

        A letter that may not have come is sent again as it is; the donor takes each number once.
        """
        job, terms = self.job, self._terms
        mailbox, number = terms.request.mailbox_to_donor, job.sent
        job.sent = number + 1
        save(self._store, job)
        envelope = encode_envelope(terms.federation, self._meter_key, mailbox, number, message)
        sealed = seal(terms.offer.seal_key, envelope, compute_seal_context(b"message", mailbox))
        pause = PAUSE_SECONDS_FIRST
        while True:
            try:
                await self._link.call(self._link.client.post_message, mailbox, sealed)
                return
            except Unreachable as error:
                log.info("job %s: a letter waits: %s", self.name, error)
            except (UserError, Rejected) as error:
                log.warning("job %s: the donor's node takes no letter: %s", self.name, error)
                return
            if self._is_stopping or self._clock() > job.order.expires_seconds:
                return
            with self._until_stopped():
                await trio.sleep(pause)
            pause = min(2 * pause, PAUSE_SECONDS_MAX)
