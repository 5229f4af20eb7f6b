"""What each side loses when the other one, or the node between them, breaks the rules: measured, against spec 12.8.

Whole jobs run, both sides for real, with a tick of 1 s. `SLACK_MS` is for what starting and stopping a sandbox takes
on a busy machine. `pytest --log-cli-level=INFO` shows each loss beside its bound.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from contextlib import suppress

import msgspec
import pytest
import trio

from node.donor.job import JobRun
from node.donor.job_file import JobFile
from node.donor.meter import Meter
from node.donor.settling import build_settle
from node.errors import Unreachable, UserError
from node.wallet.following import Follower
from protocol.countersigning import CLOCK_SLACK_MS
from protocol.metering import JobState, compute_charge, decode_tick, sign_voucher
from protocol.quotes import decode_job_receipt
from tests.node.donor.conftest import SCORE, WEIGHT
from tests.node.donor.test_agent import FUNDS, Payer, run_in_thread, wait_until

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap")

log = logging.getLogger(__name__)

TICK_MS = 1000
SLACK_MS = 1500
CLOCK_MS = CLOCK_SLACK_MS + 1000
"""How much more than the time that has passed a payer lets a tick count (P1)."""
LONG_JOB = "sleep 50"


@pytest.fixture
def payer(wallet, fake_node, person_key, donor_account):
    fake_node.fund(person_key, FUNDS)
    fake_node.sponsor(donor_account)
    return Payer(wallet, fake_node)


@pytest.fixture
def charge(payer):
    """Millicredits for so many milliseconds of the payer's job."""
    return lambda elapsed_ms: compute_charge(elapsed_ms, payer.job.decode_quote(payer.wallet).rate)


@pytest.fixture
def lost():
    """Tell a loss, and hold it against its bound."""

    def check(who, millicredits, bound):
        log.info("%s lost %d of at most %d millicredits", who, millicredits, bound)
        assert millicredits <= bound

    return check


@pytest.fixture
def endless():
    """An answer of a node that does not come while the test lasts."""
    end = threading.Event()

    def keep_waiting(*_arguments, **_options):
        end.wait(60)
        raise Unreachable("the test is over")

    yield keep_waiting
    end.set()


class Asleep(Exception):
    """The payer's side is over with the test."""


@pytest.fixture
def follow_aside(payer):
    """Start the payer's side in a thread of its own, for as long as the test lasts."""
    is_over, threads = threading.Event(), []

    def check_over():
        if is_over.is_set():
            raise Asleep

    def follow():
        with suppress(Asleep, UserError):
            Follower(payer.wallet, payer.job, payer.connect, payer.log.extend, payer.told.append, check_over).follow()

    def start():
        threads.append(threading.Thread(target=follow, daemon=True))
        threads[-1].start()

    yield start
    is_over.set()
    for thread in threads:
        thread.join(20)


async def wait_for_ticks(payer, number):
    with trio.fail_after(30):
        while len(payer.job.ticks) < number:
            await trio.sleep(0.05)


async def wait_for_end(home):
    """What the donor keeps of its one job, once the job receipt is written: from then on the amount due is fixed."""
    with trio.fail_after(40):
        while True:
            (job,) = JobFile.load_all(home.jobs)
            if job.document.receipt:
                return job.document
            await trio.sleep(0.05)


def measure_work_ms(payer, document):
    """How long the job occupied the machine, as the donor's own executor counted it."""
    wallet = payer.wallet
    keys = payer.job.decode_quote(wallet).donor_key, payer.job.decode_request(wallet).meter_key
    return decode_job_receipt(wallet.charter, document.receipt, *keys).wall_ms


def measure_unpaid(payer, document, charge):
    """Millicredits' worth of work for which the donor has no voucher."""
    return charge(measure_work_ms(payer, document)) - document.choose_voucher(document.amount_due).amount


# -- payers -----------------------------------------------------------------------------------------------------------


async def test_a_donor_loses_two_ticks_to_a_payer_that_never_answers(
    donor_home, payer, write_job, start_agent, charge, lost
):
    async with start_agent():
        await run_in_thread(payer.begin, write_job(LONG_JOB))
        document = await wait_for_end(donor_home)
    assert document.state == JobState.POLICY_KILLED
    lost("the donor", measure_unpaid(payer, document, charge), charge(2 * TICK_MS + SLACK_MS))


async def test_a_donor_loses_two_ticks_to_a_payer_that_disappears(
    fake_node, donor_home, payer, follow_aside, write_job, start_agent, charge, lost
):
    post_message = fake_node.post_message
    async with start_agent():
        await run_in_thread(payer.begin, write_job(LONG_JOB))
        follow_aside()
        await wait_for_ticks(payer, 2)
        to_donor = payer.job.decode_request(payer.wallet).mailbox_to_donor
        fake_node.post_message = lambda box, letter: 0 if box == to_donor else post_message(box, letter)
        document = await wait_for_end(donor_home)
    assert document.vouchers[-1][1] > 0
    lost("the donor", measure_unpaid(payer, document, charge), charge(2 * TICK_MS + SLACK_MS))


async def test_a_bundle_that_is_not_what_was_announced_takes_no_time_of_the_machine(
    fake_node, donor_home, payer, write_job, start_agent, charge, lost
):
    get_blob = fake_node.get_blob
    fake_node.get_blob = lambda digest: get_blob(digest)[:-1]
    async with start_agent():
        await run_in_thread(payer.begin, write_job(LONG_JOB))
        document = await wait_for_end(donor_home)
    assert (document.state, document.amount_due) == (JobState.USER_FAILED, 0)
    lost("the donor", charge(measure_work_ms(payer, document)), 0)


async def test_a_payer_that_asks_its_credits_back_is_settled_with_at_once(
    fake_node, donor_home, payer, follow_aside, write_job, start_agent, charge, lost
):
    """Else it would stay silent, or keep the letters from being taken, until the grace is over (D3)."""
    get_job = fake_node.get_job

    def refuse(mailbox, content):
        raise Unreachable("the mailboxes are full")

    async with start_agent():
        await run_in_thread(payer.begin, write_job(LONG_JOB))
        follow_aside()
        await wait_for_ticks(payer, 2)
        fake_node.post_message = refuse
        fake_node.get_job = lambda hold: msgspec.structs.replace(get_job(hold), reclaim_request="almr1")
        document = await wait_for_end(donor_home)
        began = time.monotonic()
        with trio.fail_after(40):
            while fake_node.get_hold().is_open:
                await trio.sleep(0.05)
        assert time.monotonic() - began < payer.job.decode_quote(payer.wallet).grace_seconds / 4
    assert fake_node.get_hold().paid == document.vouchers[-1][1] > 0
    lost("the donor", measure_unpaid(payer, document, charge), charge(2 * TICK_MS + SLACK_MS))


# -- the node between them --------------------------------------------------------------------------------------------


async def test_a_node_that_takes_no_letters_costs_the_donor_two_ticks(
    fake_node, donor_home, payer, write_job, start_agent, charge, lost, endless
):
    async with start_agent() as agent:
        await run_in_thread(payer.begin, write_job(LONG_JOB))
        await wait_until(agent, JobState.RUNNING)
        fake_node.post_message = endless
        document = await wait_for_end(donor_home)
    lost("the donor", measure_unpaid(payer, document, charge), charge(2 * TICK_MS + SLACK_MS))


async def test_a_node_that_keeps_the_donor_waiting_costs_it_three_ticks(
    fake_node, donor_home, payer, write_job, start_agent, charge, lost, endless
):
    async with start_agent() as agent:
        await run_in_thread(payer.begin, write_job(LONG_JOB))
        await wait_until(agent, JobState.RUNNING)
        fake_node.get_job = endless
        document = await wait_for_end(donor_home)
    lost("the donor", measure_unpaid(payer, document, charge), charge(3 * TICK_MS + SLACK_MS))


async def test_a_node_that_takes_no_results_does_not_keep_the_donor_from_its_credits(
    fake_node, donor_home, payer, follow_aside, write_job, start_agent, charge, lost, endless
):
    fake_put = fake_node.put_blob
    async with start_agent() as agent:
        await run_in_thread(payer.begin, write_job("sleep 2.5; echo 1 > out/one"))
        follow_aside()
        await wait_until(agent, JobState.RUNNING)
        fake_node.put_blob = endless
        document = await wait_for_end(donor_home)
        fake_node.put_blob = fake_put
        with trio.fail_after(40):
            while fake_node.get_hold().is_open:
                await trio.sleep(0.05)
    assert document.state == JobState.DONE
    lost("the donor", charge(measure_work_ms(payer, document)) - fake_node.get_hold().paid, 0)


async def test_a_node_with_the_meter_key_can_give_away_the_hold_and_nothing_else(
    fake_node, donor_home, payer, write_job, start_agent, donor_account, lost
):
    """A home node and a donor that are hand in glove (spec 12.10)."""
    async with start_agent() as agent:
        await run_in_thread(payer.begin, write_job(LONG_JOB))
        await wait_until(agent, JobState.RUNNING)
    (job,) = JobFile.load_all(donor_home.jobs)
    amount = payer.job.decode_quote(payer.wallet).amount_max
    stolen = sign_voucher(payer.wallet.federation, payer.job.meter_key, job.document.hold, 1, amount)
    job.document.vouchers.append(stolen[1:])
    settle_as(agent, job, JobState.DONE, due=amount)
    assert fake_node.get_balance(donor_account) == amount
    lost("the payer", FUNDS - fake_node.get_balance(payer.wallet.account), amount)


# -- donors -----------------------------------------------------------------------------------------------------------


def settle_as(agent, job, state, due=None):
    """What a dishonest donor does with a job: say that it ended so, and take the best voucher."""
    run = JobRun(agent.shop, job)
    run._end(state, "")
    job.document.amount_due = job.document.amount_due if due is None else due
    agent.shop.post.link.submit_record(build_settle(agent.shop, job).encoded)


async def test_a_donor_that_disappears_costs_its_payer_nothing_and_takes_what_was_signed_at_most(
    fake_node, donor_home, payer, follow_aside, write_job, start_agent, charge, lost
):
    async with start_agent() as agent:
        await run_in_thread(payer.begin, write_job(LONG_JOB))
        follow_aside()
        await wait_for_ticks(payer, 3)
    passed_ms = (time.time() + 1 - payer.job.started_at_seconds) * 1000
    hold = fake_node.get_hold()
    assert (hold.is_open, hold.paid) == (True, 0)  # and comes back after the grace, if the donor says nothing more
    (job,) = JobFile.load_all(donor_home.jobs)
    settle_as(agent, job, JobState.DONE)  # it comes back, and claims an end that never was
    signed = max(tick.amount for tick in payer.job.list_ticks())
    assert 0 < fake_node.get_hold().paid <= signed
    lost("the payer", signed, charge(round(passed_ms) + CLOCK_MS))


async def test_a_meter_that_runs_four_times_too_fast_gains_six_seconds(
    donor_home, payer, follow_aside, write_job, start_agent, charge, lost, monkeypatch
):
    add_tick = Meter.add_tick
    monkeypatch.setattr(Meter, "add_tick", lambda self, elapsed_ms, *more: add_tick(self, 4 * elapsed_ms, *more))
    async with start_agent():
        await run_in_thread(payer.begin, write_job(LONG_JOB))
        follow_aside()
        document = await wait_for_end(donor_home)
    assert "have passed here" in payer.job.dispute
    signed = decode_tick(payer.job.ticks[-1])
    too_much = signed.amount - charge(signed.elapsed_ms // 4)
    lost("the payer", too_much, charge(CLOCK_MS + SLACK_MS))
    assert measure_work_ms(payer, document) < 50_000


async def test_results_that_do_not_open_cost_what_was_signed_and_are_not_agreed_to(
    donor_home, payer, follow_aside, write_job, start_agent, charge, lost, monkeypatch
):
    monkeypatch.setattr("node.donor.outputs.seal", lambda key, content, associated: bytes(len(content) + 100))
    async with start_agent():
        await run_in_thread(payer.begin, write_job("sleep 2; echo 1 > out/one"))
        follow_aside()
        document = await wait_for_end(donor_home)
        with trio.fail_after(20):
            while not payer.job.dispute:
                await trio.sleep(0.05)
    assert "the results can't be opened" in payer.job.dispute
    assert not payer.job.decode_receipt(payer.wallet).meter_signature
    signed = max(tick.amount for tick in payer.job.list_ticks())
    lost("the payer", signed, charge(measure_work_ms(payer, document)))


async def test_a_machine_that_claims_twice_its_speed_gains_what_its_quote_says_at_most(
    donor_home, payer, write_job, start_agent, charge, lost
):
    async with start_agent(score=msgspec.structs.replace(SCORE, weight=2 * WEIGHT)):
        await run_in_thread(payer.begin, write_job("sleep 2"))
        await run_in_thread(payer.follow)
    quote = payer.job.decode_quote(payer.wallet)
    fair = compute_charge(quote.wall_seconds * 1000, quote.rate._replace(weight=WEIGHT))
    assert quote.amount_max == 2 * fair  # in the open, before anything is put aside
    lost("the payer", payer.job.paid - payer.job.paid // 2, charge(measure_work_ms(payer, load(donor_home))))


def load(home):
    (job,) = JobFile.load_all(home.jobs)
    return job.document
