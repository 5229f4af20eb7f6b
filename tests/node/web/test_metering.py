"""A node answers a job's meter while the wallet is away: who may ask it, what it signs, and what a crash leaves."""

from __future__ import annotations

from functools import partial
from hashlib import sha256
from types import SimpleNamespace

import msgspec
import pytest
import trio

from node import job_api
from node.client import NodeClient
from node.errors import Refused, Unreachable, UserError
from node.metering_agent import MeteringAgent
from node.metering_orders import check_place, find_origin, load
from node.sealing import open_sealed, seal, seal_public_key
from node.storage.store import Store
from protocol.conversation import (
    LogChunk,
    ReceiptAgreed,
    Result,
    Standing,
    Started,
    Ticked,
    VoucherGiven,
    compute_metering_ticket,
    compute_seal_context,
    decode_envelope,
    encode_envelope,
)
from protocol.errors import InvalidInput, Rejected
from protocol.metering import JobState, compute_charge, sign_tick, sign_voucher
from protocol.quotes import JobReceipt, Quote, QuoteRequest, compute_rate
from protocol.records import Draw, Hold, Kind, Settle, Terms, account_scope, hold_scope
from tests.node.web.conftest import make_key, public

METER_KEY = make_key(31)
METER_SEED, SEAL_SEED = METER_KEY.private_bytes_raw(), bytes([32]) * 32
DONOR_SEAL_SEED = bytes([33]) * 32
TICKET = compute_metering_ticket(METER_SEED)
CHECKPOINT = b"what the job could go on from"
RESULTS = b"sealed results"
AGO = 300


class Job:
    """A job that is paid for and runs, at a donor's node that is a dictionary here."""

    def __init__(self, node, url):
        federation = node.federation
        self.node, self.federation = node, federation
        self.donor_key = federation.donor_key
        now = int(node.services.clock())
        offer = federation.sign_offer(now + 600)._replace(node_url=url, seal_key=seal_public_key(DONOR_SEAL_SEED))
        self.offer = offer.sign(federation.id, self.donor_key)
        self.request = QuoteRequest(
            federation.person, public(METER_KEY), seal_public_key(SEAL_SEED), b"r" * 32, 1, 10**9, 10**9, 0, 0, 600,
            b"", "train", b"d" * 32, b"w" * 32, b"",
        ).sign(federation.id, METER_KEY)  # fmt: skip
        self.rate = compute_rate(self.offer, self.request)
        self.quote = Quote(
            public(self.donor_key), self.request.compute_id(federation.id), federation.sponsor.id, self.rate, 600, 30,
            compute_charge(600_000, self.rate), 60, 1, 0, now + 300, b"",
        ).sign(federation.id, self.donor_key)  # fmt: skip
        terms = Terms(
            0, self.quote.compute_id(federation.id), public(METER_KEY), 60,
            federation.charter.policy.acceptable_use, federation.sponsor.id, "train",
        )  # fmt: skip
        body = Hold(federation.donor, (Draw(federation.program.id, 2, self.quote.amount_max),), terms)
        self.hold = federation.sign(Kind.HOLD, account_scope(federation.person), 0, b"", body, federation.person_key)
        self.ticks = []
        self.said = 0
        self.letters = []
        self.heard = []

    async def begin(self):
        await self.node.make_final(self.hold)
        self.node.services.accept_offer(self.offer.encode())
        return self

    def make_order(self, **changes):
        order = job_api.MeteringOrder(
            turn=1,
            offer=self.offer.encode(),
            request=self.request.encode(),
            quote=self.quote.encode(),
            hold_receipt=self.node.member.build_receipt(self.hold.id),
            meter_seed=METER_SEED,
            seal_seed=SEAL_SEED,
            started_seconds_ago=AGO,
            amount_max=self.quote.amount_max,
            expires_seconds=int(self.node.services.clock()) + 3600,
            sent=2,
            after=0,
            received=-1,
        )
        return msgspec.structs.replace(order, **changes)

    # what the donor says

    def seal(self, message, key=None):
        mailbox = self.request.mailbox_to_wallet
        envelope = encode_envelope(self.federation.id, key or self.donor_key, mailbox, self.said, message)
        self.said += 1
        return seal(self.request.seal_key, envelope, compute_seal_context(b"message", mailbox))

    def tick(self, elapsed_ms, checkpoint=b""):
        before = self.ticks[-1] if self.ticks else None
        tick = sign_tick(self.federation.id, self.donor_key, self.hold.id, self.rate, before, elapsed_ms, checkpoint)
        self.ticks.append(tick)
        return Ticked(tick.encode())

    def result(self, amount=None, outputs=b""):
        last = self.ticks[-1]
        receipt = JobReceipt(
            self.hold.id, self.quote.compute_id(self.federation.id), JobState.DONE, 0, last.elapsed_ms, 0, 0, 0,
            outputs, last.amount if amount is None else amount, last.compute_id(self.federation.id), b"", b"",
        )  # fmt: skip
        return Result(receipt.sign_as_donor(self.federation.id, self.donor_key).encode(), "well done")

    def open(self, sealed):
        mailbox = self.request.mailbox_to_donor
        envelope = open_sealed(DONOR_SEAL_SEED, sealed, compute_seal_context(b"message", mailbox))
        return decode_envelope(self.federation.id, public(METER_KEY), mailbox, envelope)


class DonorsNode:
    """A donor's node in a dictionary, as the agent's client sees it. `step` is called at each of its calls."""

    def __init__(self, job, letters, blobs=(), step=lambda name: None):
        self.job, self.blobs, self.step = job, {sha256(blob).digest() for blob in blobs}, step
        self.letters = [job_api.Message(number + 1, job.seal(letter)) for number, letter in enumerate(letters)]

    def close(self):
        pass

    def get_messages(self, mailbox, after=0, wait=0):
        assert mailbox == self.job.request.mailbox_to_wallet
        return [letter for letter in self.letters if letter.sequence > after]

    def post_message(self, mailbox, content):
        self.step("before post")
        assert mailbox == self.job.request.mailbox_to_donor
        self.job.heard.append(self.job.open(content))
        self.step("after post")

    def check_blob(self, digest):
        if digest not in self.blobs:
            raise UserError("the node does not hold that bundle")

    def get_heard(self, kind):
        return [message for _, message in self.job.heard if isinstance(message, kind)]


@pytest.fixture
async def job(funded):
    return await Job(funded, "http://donors-node").begin()


@pytest.fixture
def make_agent(job):
    """An agent on a store of its own that knows the donor's offer, or on the store of another that died."""

    def make(donors_node, store=None):
        if store is None:
            store = Store.open(":memory:", job.federation.id)
            store.put_offer(job.federation.donor, job.offer.encode(), job.offer.valid_until)
        agent = MeteringAgent(
            job.node.member, store, connect=lambda url, is_public_only: donors_node, clock=job.node.services.clock
        )
        return agent, store

    return make


async def follow(agent, store, is_done, order=None):
    """Run the agent until the state is as wished."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(agent.run)
        await trio.testing.wait_all_tasks_blocked()
        if order is not None:
            agent.accept(order)
        with trio.fail_after(600):
            while not is_done(load(store, TICKET)):
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    return load(store, TICKET)


def make_story(job):
    """An honest job from its first tick to its end."""
    return [
        Started(job.hold.id),
        job.tick(30_000),
        LogChunk(0, b"hello"),
        job.tick(60_000, sha256(CHECKPOINT).digest()),
        Standing("SUSPENDED", "somebody works at the machine"),
        job.tick(60_000),
        Standing("RUNNING", ""),
        job.tick(95_000),
        job.result(outputs=sha256(RESULTS).digest()),
    ]


async def test_an_honest_job_is_agreed_to_from_its_first_tick_to_its_receipt(job, make_agent, autojump_clock):
    donors_node = DonorsNode(job, make_story(job), [CHECKPOINT, RESULTS])
    agent, store = make_agent(donors_node)
    found = await follow(agent, store, lambda found: found.after == len(donors_node.letters), job.make_order())
    assert [(voucher.sequence, voucher.amount) for voucher in donors_node.get_heard(VoucherGiven)] == [
        (tick.sequence, tick.amount) for tick in job.ticks
    ]
    (agreed,) = donors_node.get_heard(ReceiptAgreed)
    assert agreed.signature
    assert [number for number, _ in job.heard] == [2, 3, 4, 5, 6]
    assert (found.state, found.detail, found.dispute) == (JobState.DONE, "well done", "")


@pytest.mark.parametrize(
    ("make_letters", "blobs", "told"),
    [
        (lambda job: [job.tick(500_000)], (), "have passed"),
        (lambda job: [job.tick(30_000, sha256(CHECKPOINT).digest())], (), "checkpoint"),
        (lambda job: [Ticked(job.ticks[-1].encode()) for _ in [job.tick(30_000), job.tick(60_000)]][:1], (), "follow"),
        (lambda job: [job.tick(30_000), job.result(amount=1)], (), "due"),
        (lambda job: [job.tick(30_000), job.result(outputs=sha256(RESULTS).digest())], (), "results"),
    ],
)
async def test_what_does_not_hold_is_not_signed_and_told_to_the_wallet(
    job, make_agent, make_letters, blobs, told, autojump_clock
):
    donors_node = DonorsNode(job, make_letters(job), blobs)
    agent, store = make_agent(donors_node)
    found = await follow(agent, store, lambda found: found.dispute, job.make_order())
    assert told in found.dispute
    assert not donors_node.get_heard(ReceiptAgreed)
    assert len(donors_node.get_heard(VoucherGiven)) == len(donors_node.letters) - 1


async def test_nothing_is_signed_above_the_orders_limit(job, make_agent, autojump_clock):
    first = job.tick(30_000)
    donors_node = DonorsNode(job, [first, job.tick(60_000)])
    agent, store = make_agent(donors_node)
    order = job.make_order(amount_max=job.ticks[0].amount)
    await follow(agent, store, lambda found: found.dispute, order)
    (voucher,) = donors_node.get_heard(VoucherGiven)
    assert voucher.amount == job.ticks[0].amount


async def test_letters_of_others_are_ignored(job, make_agent, autojump_clock):
    donors_node = DonorsNode(job, [job.tick(30_000)])
    forged = job.seal(job.tick(60_000), key=job.federation.person_key)
    donors_node.letters += [job_api.Message(2, forged), job_api.Message(3, b"junk")]
    agent, store = make_agent(donors_node)
    await follow(agent, store, lambda found: found.after == 3, job.make_order())
    assert [voucher.sequence for voucher in donors_node.get_heard(VoucherGiven)] == [1]


class Crash(Exception):
    """The node's power is cut."""


@pytest.mark.parametrize("place", ["save", "saved", "before post", "after post"])
async def test_a_crash_at_any_step_loses_nothing_and_signs_nothing_differently(
    job, make_agent, monkeypatch, autojump_clock, place
):
    story = make_story(job)
    for count in range(1, 8):
        job.heard.clear()
        left = [count]

        def step(name, left=left):
            left[0] -= name == place
            if left[0] == 0 and name == place:
                raise Crash

        donors_node = DonorsNode(job, story, [CHECKPOINT, RESULTS], step)
        agent, store = make_agent(donors_node)
        put = store.put_metering

        def put_metering(row, put=put, step=step):
            step("save")
            put(row)
            step("saved")

        store.put_metering = put_metering
        try:
            is_done = partial(lambda left, found: left[0] <= 0 or found.after == len(story), left)
            await follow(agent, store, is_done, job.make_order())
        except* Crash:  # before the order was taken: the wallet hands it over again
            pass
        again, _ = make_agent(donors_node, store)
        await follow(again, store, lambda found: found.after == len(story), job.make_order())
        check_what_was_heard(job)


def check_what_was_heard(job):
    """The donor has a voucher for each tick and the agreement; no number and no sequence stands for two things."""
    numbers = [number for number, _ in job.heard]
    assert numbers == sorted(set(numbers))
    vouchers = [message for _, message in job.heard if isinstance(message, VoucherGiven)]
    assert set(vouchers) == {
        VoucherGiven(*sign_voucher(job.federation.id, METER_KEY, job.hold.id, tick.sequence, tick.amount)[1:])
        for tick in job.ticks
    }
    assert len({message.signature for _, message in job.heard if isinstance(message, ReceiptAgreed)}) == 1


async def test_a_job_that_is_given_back_is_not_spoken_for_any_more_and_may_be_handed_over_again(
    job, make_agent, autojump_clock
):
    donors_node = DonorsNode(job, [job.tick(30_000)])
    agent, store = make_agent(donors_node)
    order = job.make_order()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(agent.run)
        await trio.testing.wait_all_tasks_blocked()
        assert await agent.give_back(TICKET, 1) is None
        agent.accept(order)
        while len(job.heard) < 1:
            await trio.sleep(0.05)
        back = await agent.give_back(TICKET, 1)
        assert (back.is_active, back.sent, back.last) == (False, 3, job.ticks[0].encode())
        assert await agent.give_back(TICKET, 1) == back
        assert not agent.accept(order).is_active  # a late repetition changes nothing
        donors_node.letters.append(job_api.Message(2, job.seal(job.tick(60_000))))
        await trio.sleep(120)
        assert len(job.heard) == 1
        kept = load(store, TICKET)
        assert kept is not None
        assert (kept.order.meter_seed, kept.order.seal_seed) == (b"", b"")
        with pytest.raises(Rejected, match="handed over"):
            await agent.give_back(TICKET, 2)
        agent.accept(job.make_order(turn=2, sent=back.sent, last=back.last, after=1, received=0))
        with pytest.raises(Rejected, match="take it back"):
            agent.accept(job.make_order(turn=3))
        while len(job.heard) < 2:
            await trio.sleep(0.05)
        assert [number for number, _ in job.heard] == [2, 3]
        nursery.cancel_scope.cancel()


async def test_the_keys_are_dropped_when_the_hold_has_ended(job, make_agent, monkeypatch, autojump_clock):
    donors_node = DonorsNode(job, [job.tick(30_000)])
    agent, store = make_agent(donors_node)
    await follow(agent, store, lambda found: found.after, job.make_order())
    federation = job.federation
    voucher = donors_node.get_heard(VoucherGiven)[0]
    body = Settle(voucher.sequence, voucher.amount, voucher.signature, b"", 0, b"")
    settle = federation.sign(Kind.SETTLE, hold_scope(job.hold.id), 0, b"", body, federation.donor_key)
    await job.node.make_final(settle)
    agent, _ = make_agent(donors_node, store)
    found = await follow(agent, store, lambda found: not found.is_active)
    assert found.state == "SETTLED"
    assert found.end_receipt == job.node.member.build_receipt(settle.id)
    assert (found.order.meter_seed, found.order.seal_seed) == (b"", b"")
    with pytest.raises(Rejected, match="hold has ended"):
        make_agent(donors_node)[0].accept(job.make_order())


async def test_an_order_runs_out(job, make_agent, autojump_clock):
    donors_node = DonorsNode(job, [])
    agent, store = make_agent(donors_node)
    now = [job.node.services.clock()]
    agent._clock = lambda: now[0]

    def is_done(found):
        now[0] += 60
        return not found.is_active

    found = await follow(agent, store, is_done, job.make_order())
    assert (found.order.meter_seed, found.end_receipt) == (b"", b"")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"meter_seed": bytes(32)}, "keys"),
        ({"seal_seed": bytes(32)}, "keys"),
        ({"meter_seed": b""}, "missing"),
        ({"amount_max": 10**6}, "limit"),
        ({"amount_max": 0}, "limit"),
        ({"expires_seconds": 1}, "days"),
        ({"expires_seconds": 2**50}, "days"),
        ({"turn": 0}, "below"),
        ({"hold_receipt": b"junk"}, None),
        ({"started_seconds_ago": -1}, "start"),
    ],
)
async def test_an_order_that_does_not_hold_together_is_refused(job, make_agent, changes, told):
    agent, store = make_agent(DonorsNode(job, []))
    with pytest.raises((InvalidInput, Rejected), match=told):
        agent.accept(job.make_order(**changes))
    assert load(store, TICKET) is None


async def test_only_accounts_of_this_institution_and_known_offers_are_served(job, make_agent, monkeypatch):
    agent, _ = make_agent(DonorsNode(job, []))
    monkeypatch.setattr(job.node.member, "number", 2)
    with pytest.raises(Rejected, match="enrolled"):
        agent.accept(job.make_order())
    monkeypatch.undo()
    bare = Store.open(":memory:", job.federation.id)
    with pytest.raises(Rejected, match="no offer"):
        make_agent(DonorsNode(job, []), bare)[0].accept(job.make_order())
    moved = job.offer._replace(node_url="http://elsewhere", valid_until=job.offer.valid_until + 1)
    bare.put_offer(job.federation.donor, moved.sign(job.federation.id, job.donor_key).encode(), moved.valid_until)
    with pytest.raises(Rejected, match="no offer"):
        make_agent(DonorsNode(job, []), bare)[0].accept(job.make_order())


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8080", "http://localhost", "http://10.1.2.3", "http://[::1]:80", "http://169.254.169.254",
        "http://192.168.0.1", "http://0.0.0.0", "http://[::ffff:10.0.0.1]", "file:///etc/passwd", "http://user@host",
        "http://host/?query", "gopher://host", "http://host:99999", "",
    ],
)  # fmt: skip
def test_no_order_sends_this_node_into_its_own_network(url):
    with pytest.raises(Rejected):
        check_place(url, frozenset({"http://10.0.0.7:8080"}))


def test_a_place_that_the_operator_names_may_be_private_and_all_others_must_be_public():
    own = frozenset({find_origin("http://10.0.0.7:8080")})
    assert not check_place("http://10.0.0.7:8080/", own)
    assert check_place("https://node.example.org", own)


async def test_over_http_with_a_real_node(funded):
    node = funded
    agent = MeteringAgent(node.member, node.store, frozenset({find_origin(node.url)}), poll_seconds=1)
    node.services.metering = agent
    job = await Job(node, node.url).begin()
    node.services.blobs.put(sha256(CHECKPOINT).digest(), CHECKPOINT)
    node.services.blobs.put(sha256(RESULTS).digest(), RESULTS)

    def is_agreed(letters):
        return any(isinstance(job.open(letter.content)[1], ReceiptAgreed) for letter in letters)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(agent.run)
        assert (await node.call("post_metering", job.make_order())).is_active
        for letter in make_story(job):
            node.services.mailboxes.post(job.request.mailbox_to_wallet, job.seal(letter))
        await node.wait_until(lambda: is_agreed(node.store.read_messages(job.request.mailbox_to_donor, 0)))
        back = await node.call("take_metering_back", TICKET, 1)
        assert (back.is_active, back.sent, back.state) == (False, 7, "DONE")
        assert await node.call("take_metering_back", b"x" * 32, 1) is None
        with pytest.raises(Refused):
            await node.call("take_metering_back", TICKET, 2)
        nursery.cancel_scope.cancel()


async def test_a_node_that_meters_for_nobody_says_so(funded):
    job = SimpleNamespace(order=await Job(funded, "http://donors-node").begin())
    with pytest.raises(UserError, match="no meters"):
        await funded.call("post_metering", job.order.make_order())


async def test_a_client_that_a_stranger_sends_somewhere_reaches_no_private_address(node):
    for url in (node.url, node.url.replace("127.0.0.1", "localhost")):
        with NodeClient(url, is_public_only=True) as client, pytest.raises(Unreachable, match="no public address"):
            await trio.to_thread.run_sync(client.get_health)
