"""A wallet leaves a job to its node and comes back: one speaker at a time, and everything checked at the end."""

from __future__ import annotations

from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node import job_api
from node.bundles import pack_bundle
from node.errors import Unreachable, UserError
from node.sealing import seal
from node.wallet.detaching import check_way_is_private, describe_trust, hand_over, take_back
from node.wallet.following import Follower, unpack_outputs
from node.wallet.job_records import load_job
from node.wallet.jobs import resume_job
from protocol.conversation import LogChunk, Ticked, VoucherGiven, compute_metering_ticket, compute_seal_context
from protocol.countersigning import PayersMeter
from protocol.metering import decode_tick
from protocol.quotes import decode_job_receipt, decode_quote, decode_quote_request
from tests.node.wallet.scripted_donor import DONOR


class HomeNode:
    """The wallet's own node: answers ticks by the rules that all speakers keep, at the test's word."""

    def __init__(self, donor):
        self.donor, self.calls = donor, []
        self.order: job_api.MeteringOrder | None = None
        self.fail = lambda call: None
        self.is_active = False
        self.returned = None

    def post_metering(self, order):
        self.calls.append("post")
        self.fail("post")
        if self.order is None or order.turn > self.order.turn:
            charter = self.donor.charter
            request = decode_quote_request(charter, order.request)
            assert request.seal_key == self.donor.request.seal_key
            self.order, self.sent, self.receipt, self.is_active = order, order.sent, b"", True
            last, saved = (decode_tick(tick) if tick else None for tick in (order.last, order.saved))
            quote = decode_quote(charter, order.quote)
            start = self.donor.wallet.now() - order.started_seconds_ago
            key = Ed25519PrivateKey.from_private_bytes(order.meter_seed)
            hold = self.donor.hold
            self.meter = PayersMeter(charter.federation, quote, hold, key, start, last=last, checkpoint=saved)
        return self.describe()

    def take_metering_back(self, ticket, turn):
        self.calls.append("return")
        self.fail("return")
        if self.order is None:
            return None
        assert ticket == compute_metering_ticket(self.order.meter_seed)
        assert turn == self.order.turn
        self.is_active = False
        answer = self.describe()
        self.fail("returned")
        return answer

    def describe(self):
        assert self.order is not None
        last, saved = (tick.encode() if tick else b"" for tick in (self.meter.last, self.meter.checkpoint))
        return job_api.Metered(
            self.order.turn, self.is_active, "RUNNING", self.sent, last, saved, self.receipt, "", "", b""
        )

    def answer(self, tick):
        assert self.is_active
        assert self.meter.answer(tick, self.donor.wallet.now(), tick.checkpoint)
        self.sent += 1

    def agree(self, result):
        quote = self.donor.quote
        receipt = decode_job_receipt(self.donor.charter, result.receipt, quote.donor_key, self.donor.request.meter_key)
        self.receipt = self.meter.agree(receipt).encode()
        self.sent += 1


@pytest.fixture
def home_node(donor, running):
    donor.hold = running.hold
    running.started_at_seconds -= 90
    home_node = HomeNode(donor)
    donor.post_metering, donor.take_metering_back = home_node.post_metering, home_node.take_metering_back
    return home_node


def follow(wallet, job, connect):
    told: list[str] = []
    Follower(wallet, job, connect, lambda content: told.append(content.decode()), told.append).follow(is_waiting=False)
    return told


def test_what_happened_while_the_wallet_was_away_is_read_opened_and_checked_by_itself(
    wallet, donor, running, connect, home_node, tmp_path
):
    first = donor.make_tick(running.hold, 30_000)
    donor.say(Ticked(first.encode()))
    follow(wallet, running, connect)
    hand_over(wallet, running)
    assert home_node.order.last == first.encode()
    assert running.result_seed not in (home_node.order.meter_seed, home_node.order.seal_seed)

    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "result.txt").write_text("42\n")
    outputs = seal(
        donor.request.result_key, pack_bundle(tmp_path / "made"), compute_seal_context(b"outputs", running.hold)
    )
    donor.put_blob(outputs)
    second = donor.make_tick(running.hold, 60_000, first)
    result = donor.make_result(running.hold, second, outputs=sha256(outputs).digest())
    donor.say(LogChunk(0, b"hello\n"))
    donor.say(Ticked(second.encode()))
    donor.say(result)
    home_node.answer(second)
    home_node.agree(result)

    job = load_job(wallet, running.job_id)
    resume_job(wallet, job, connect)
    assert job.list_ticks() == [first, second]
    assert "hello\n" in follow(wallet, job, connect)
    assert (job.state, job.dispute) == ("DONE", "")
    assert job.receipt == home_node.receipt
    assert unpack_outputs(wallet, job, tmp_path / "results") == 1


def test_only_one_speaks_at_a_time(wallet, donor, running, connect, home_node):
    hand_over(wallet, running)
    with pytest.raises(UserError, match="job attach"):
        follow(wallet, load_job(wallet, running.job_id), connect)
    home_node.answer(donor.make_tick(running.hold, 30_000))
    take_back(wallet, running)
    assert not home_node.is_active
    assert running.sent == home_node.sent
    donor.say(Ticked(donor.make_tick(running.hold, 60_000, running.list_ticks()[-1]).encode()))
    follow(wallet, running, connect)
    assert donor.get_heard(VoucherGiven)[-1].sequence == 2


def test_a_result_whose_letter_is_gone_is_taken_from_what_the_node_kept(wallet, donor, running, connect, home_node):
    hand_over(wallet, running)
    tick = donor.make_tick(running.hold, 30_000)
    home_node.answer(tick)
    home_node.agree(donor.make_result(running.hold, tick))
    donor.mailboxes.clear()
    take_back(wallet, running)
    follow(wallet, running, connect)
    assert running.state == "DONE"
    assert running.decode_receipt(wallet).meter_signature


@pytest.mark.parametrize("place", ["post", "return", "returned"])
def test_an_answer_that_is_lost_leaves_the_job_where_it_may_be_and_the_same_call_goes_on(
    wallet, donor, running, connect, home_node, place
):
    def fail(call):
        if call == place:
            home_node.fail = lambda call: None
            raise Unreachable("the line is dead")

    home_node.fail = fail
    if place == "post":
        with pytest.raises(Unreachable):
            hand_over(wallet, running)
        assert load_job(wallet, running.job_id).is_detached
        take_back(wallet, running)
        assert home_node.calls == ["post", "return", "post", "return"]  # what is on its way can do nothing later
    else:
        hand_over(wallet, running)
        home_node.answer(donor.make_tick(running.hold, 30_000))
        with pytest.raises(Unreachable):
            take_back(wallet, running)
        assert load_job(wallet, running.job_id).is_detached
        take_back(wallet, running)
        assert len(running.ticks) == 1
    assert not home_node.is_active
    assert not load_job(wallet, running.job_id).is_detached


def test_a_job_may_be_left_again_and_each_turn_has_its_number(wallet, running, home_node):
    for turn in (1, 2):
        hand_over(wallet, running)
        hand_over(wallet, running)
        assert home_node.order.turn == turn
        take_back(wallet, running)
        take_back(wallet, running)


def test_a_node_that_refuses_leaves_the_job_with_the_wallet(wallet, running, home_node):
    def refuse(call):
        raise UserError("not enrolled here")

    home_node.fail = refuse
    with pytest.raises(UserError, match="keep watching"):
        hand_over(wallet, running)
    assert not load_job(wallet, running.job_id).is_detached


def test_a_checkpoint_that_the_node_agreed_to_is_fetched_and_opened_by_the_wallet(
    wallet, donor, running, connect, home_node, tmp_path
):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state").write_text("where it was")
    bundle = pack_bundle(tmp_path / "saved")
    sealed = seal(donor.request.result_key, bundle, compute_seal_context(b"checkpoint", running.hold))
    donor.put_blob(sealed)
    hand_over(wallet, running)
    tick = donor.make_tick(running.hold, 30_000)
    tick = tick._replace(checkpoint=sha256(sealed).digest())
    home_node.answer(tick._replace(signature=DONOR.sign(tick.compute_id(donor.federation))))
    take_back(wallet, running)
    follow(wallet, running, connect)
    assert (wallet.home / "jobs" / running.job_id / "checkpoint").read_bytes() == bundle
    assert not running.checkpoint_wanted


def test_the_person_is_told_whom_it_trusts_with_how_much(wallet, running, home_node):
    hand_over(wallet, running)
    first, second = describe_trust(wallet, running)
    assert "at most 6.250 credits" in first
    assert wallet.node_url in first
    assert f"job attach {running.job_id}" in second


@pytest.mark.parametrize(
    ("url", "is_private"),
    [
        ("https://node.example.org", True),
        ("http://127.0.0.1:8080", True),
        ("http://localhost", True),
        ("http://node.example.org", False),
        ("http://10.0.0.1", False),
    ],
)
def test_the_key_is_sent_only_where_nobody_listens(wallet, monkeypatch, url, is_private):
    monkeypatch.setattr(wallet, "node_url", url)
    if is_private:
        check_way_is_private(wallet)
    else:
        with pytest.raises(UserError, match="not encrypted"):
            check_way_is_private(wallet)
