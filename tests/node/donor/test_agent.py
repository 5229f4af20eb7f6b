"""A whole job, both sides, in a real sandbox: quote, hold, run, tick, voucher, results, receipt, settlement."""

from __future__ import annotations

import shutil
import threading
import time
from typing import Any

import msgspec
import pytest
import trio

from node.donor.job_file import JobFile
from node.errors import UserError
from node.sealing import open_sealed
from node.wallet.calling import Line
from node.wallet.following import Follower, unpack_outputs
from node.wallet.job_receipts import verify_job
from node.wallet.job_records import load_job
from node.wallet.job_spec import read_job_file
from node.wallet.jobs import hold_job, open_job, plan_job, start_job
from protocol.conversation import Cancel, compute_seal_context
from protocol.errors import Reason, Rejected
from protocol.metering import JobState
from protocol.quotes import decode_offer
from protocol.receipts import verify_receipt
from protocol.records import (
    Kind,
    Reclaim,
    ReclaimRequest,
    RecordDraft,
    ScopeKind,
    account_scope,
    decode_record,
    sign_record,
)

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap")

FUNDS = 10**6
WEIGHT = 1000  # of the machine in conftest.py


class Payer:
    """A person's side, which works in a thread as the commands do."""

    def __init__(self, wallet, fake_node):
        self.wallet = wallet
        self.connect = lambda url: fake_node
        self.log = bytearray()
        self.told: list[str] = []
        self.job: Any = None

    def ask(self, path):
        plan = plan_job(self.wallet, read_job_file(path))
        self.job = open_job(self.wallet, plan, self.connect)

    def pay(self):
        hold_job(self.wallet, self.wallet.unlock(None), self.job, self.job.needs)
        start_job(self.wallet, self.job, self.connect)

    def begin(self, path):
        self.ask(path)
        self.pay()

    def follow(self):
        follower = Follower(self.wallet, self.job, self.connect, self.log.extend, self.told.append)
        follower.follow()

    def run(self, path):
        self.begin(path)
        self.follow()


@pytest.fixture
def payer(wallet, fake_node, person_key, donor_account):
    fake_node.fund(person_key, FUNDS)
    fake_node.sponsor(donor_account)
    return Payer(wallet, fake_node)


async def run_in_thread(action, *arguments):
    with trio.fail_after(60):
        await trio.to_thread.run_sync(action, *arguments, abandon_on_cancel=True)


async def test_a_whole_job_is_run_metered_paid_and_proven(
    fake_node, donor_home, payer, write_job, donor_account, tmp_path, start_agent
):
    path = write_job("echo working; sleep 2.5; wc -c < input.txt > out/count; echo $GREETING", envs="{GREETING: bye}")
    async with start_agent():
        await run_in_thread(payer.run, path)
    job, wallet = payer.job, payer.wallet
    receipt = job.decode_receipt(wallet)
    assert receipt.state is JobState.DONE
    assert receipt.exit_status == 0
    assert receipt.meter_signature
    assert job.dispute == ""
    assert payer.log == b"working\nbye\n"
    assert unpack_outputs(wallet, job, tmp_path / "results") == 1
    assert (tmp_path / "results" / "count").read_text() == "6\n"
    assert len(job.ticks) >= 3
    assert job.paid == receipt.amount == fake_node.get_hold().paid
    assert receipt.wall_ms >= 2500
    assert receipt.amount == -(-receipt.wall_ms * WEIGHT * 15 // 240_000)
    assert fake_node.get_balance(donor_account) == job.paid
    assert fake_node.get_balance(wallet.account) == FUNDS - job.paid
    settle = verify_receipt(wallet.charters, job.settle_receipt).record
    proven = verify_job(wallet.charters, settle, job.hold_receipt, job.receipt)
    assert (proven.payer, proven.payee) == (wallet.account, donor_account)
    assert load_job(wallet, job.job_id[:4]) == job


async def test_a_job_that_fails_by_its_own_fault_is_charged(fake_node, donor_home, payer, write_job, start_agent):
    async with start_agent():
        await run_in_thread(payer.run, write_job("echo no >&2; exit 3"))
    receipt = payer.job.decode_receipt(payer.wallet)
    assert (receipt.state, receipt.exit_status) == (JobState.USER_FAILED, 3)
    assert payer.job.paid == receipt.amount > 0
    assert payer.log == b"no\n"


async def test_after_the_agent_is_killed_the_payer_gets_everything_back(
    fake_node, donor_home, payer, write_job, donor_account, start_agent
):
    path = write_job("echo up; sleep 50")
    async with start_agent() as agent:
        await run_in_thread(payer.begin, path)
        await wait_until(agent, JobState.RUNNING)
    assert fake_node.get_hold().is_open
    async with start_agent():
        await run_in_thread(payer.follow)
    receipt = payer.job.decode_receipt(payer.wallet)
    assert receipt.state is JobState.DONOR_FAILED
    assert receipt.amount == payer.job.paid == 0
    assert fake_node.get_balance(payer.wallet.account) == FUNDS
    assert fake_node.get_balance(donor_account) == 0


async def test_after_the_agent_is_killed_the_payer_pays_for_the_checkpoint_that_it_has_in_hand(
    fake_node, donor_home, payer, write_job, start_agent
):
    path = write_job("echo half > checkpoint/state; sleep 50")
    async with start_agent():
        await run_in_thread(payer.begin, path)
        follower = threading.Thread(target=payer.follow, daemon=True)
        follower.start()
        with trio.fail_after(30):
            while not any(tick.checkpoint for tick in payer.job.list_ticks()):
                await trio.sleep(0.05)
    async with start_agent():
        await run_in_thread(follower.join)
    receipt, ticks = payer.job.decode_receipt(payer.wallet), payer.job.list_ticks()
    assert receipt.state is JobState.DONOR_FAILED
    assert [bool(tick.checkpoint) for tick in ticks].count(True) == 1
    assert payer.job.paid == receipt.amount == next(tick.amount for tick in ticks if tick.checkpoint) > 0
    assert payer.job.dispute == ""


async def test_a_settlement_that_was_signed_before_a_crash_is_sent_again_byte_for_byte(
    fake_node, donor_home, payer, write_job, start_agent
):
    reached, seen = threading.Event(), []

    def refuse_settle(record):
        if record.scope[0] == 2:
            seen.append(record.encoded)
            reached.set()
            raise UserError("the node has a bad day")

    fake_node.on_submit = refuse_settle
    follower = None
    async with start_agent():
        await run_in_thread(payer.begin, write_job("true"))
        follower = threading.Thread(target=payer.follow, daemon=True)
        follower.start()
        with trio.fail_after(30):
            while not reached.is_set():
                await trio.sleep(0.05)
    fake_node.on_submit = lambda record: seen.append(record.encoded)
    async with start_agent():
        await run_in_thread(follower.join)
    assert payer.job.state == "SETTLED"
    assert len(set(seen)) == 1


async def test_a_settlement_whose_slot_the_payer_claims_too_is_proposed_in_the_donors_turn(
    fake_node, donor_home, payer, write_job, start_agent
):
    def contest(record):
        if record.scope[0] == ScopeKind.HOLD:
            raise Rejected(Reason.SLOT_CONTESTED, "this member voted for another record in that slot")

    fake_node.on_submit = contest
    async with start_agent():
        await run_in_thread(payer.run, write_job("true"))
    (proposal,) = fake_node.proposals
    (job,) = JobFile.load_all(donor_home.jobs)
    assert proposal.record == decode_record(fake_node.charter.federation, job.document.settle).id
    assert job.document.state == payer.job.state == "SETTLED"


async def test_a_hold_that_its_payer_took_back_ends_the_job_unpaid(
    fake_node, donor_home, payer, write_job, donor_account, person_key, start_agent
):
    def take_back(settle):
        if settle.scope[0] != ScopeKind.HOLD:
            return
        wallet, head = payer.wallet, fake_node.replica.ledger.heads[account_scope(payer.wallet.account)]
        signers = (person_key.public_key().public_bytes_raw(),)
        place = (account_scope(wallet.account), head.sequence + 1, head.record)
        request = RecordDraft(Kind.RECLAIM_REQUEST, 1, *place, ReclaimRequest(settle.account), signers)
        asked = sign_record(wallet.federation, request, [person_key])
        fake_node.make_final(asked)
        reclaim = RecordDraft(Kind.RECLAIM, 1, settle.scope, 0, b"", Reclaim(asked.id), signers)
        fake_node.make_final(sign_record(wallet.federation, reclaim, [person_key]), ripe=[asked.id])
        raise Rejected(Reason.SLOT_TAKEN, "slot 0 has a final record already")

    fake_node.on_submit = take_back
    async with start_agent():
        await run_in_thread(payer.run, write_job("true"))
    (job,) = JobFile.load_all(donor_home.jobs)
    assert job.document.state == payer.job.state == "RECLAIMED"
    assert fake_node.get_balance(payer.wallet.account) == FUNDS
    assert fake_node.get_balance(donor_account) == 0


async def test_a_payer_who_falls_silent_stops_the_job(
    fake_node, donor_home, payer, write_job, donor_account, start_agent
):
    path = write_job("sleep 50")
    async with start_agent():
        await run_in_thread(payer.begin, path)
        with trio.fail_after(20):
            while not any(job.document.receipt for job in JobFile.load_all(donor_home.jobs)):
                await trio.sleep(0.05)
        (job,) = JobFile.load_all(donor_home.jobs)
        assert job.document.state == JobState.POLICY_KILLED
        await run_in_thread(payer.follow)
    assert payer.job.paid == payer.job.decode_receipt(payer.wallet).amount
    assert fake_node.get_balance(donor_account) == payer.job.paid


async def test_a_payer_who_asks_for_its_credits_back_while_the_job_runs_stops_it(
    fake_node, donor_home, payer, write_job, donor_account, start_agent
):
    async with start_agent() as agent:
        await run_in_thread(payer.begin, write_job("sleep 50"))
        await wait_until(agent, JobState.RUNNING)
        get_job = fake_node.get_job
        fake_node.get_job = lambda hold: msgspec.structs.replace(get_job(hold), reclaim_request="almr1")
        await run_in_thread(payer.follow)
    receipt = payer.job.decode_receipt(payer.wallet)
    assert receipt.state is JobState.POLICY_KILLED
    assert fake_node.get_balance(donor_account) == payer.job.paid == receipt.amount
    assert "asked for its credits back" in payer.job.detail


async def test_the_owner_takes_the_machine_back_and_nothing_is_charged(
    fake_node, donor_home, payer, write_job, start_agent
):
    async with start_agent(suspend_seconds_max=0) as agent:
        await run_in_thread(payer.begin, write_job("sleep 50"))
        await wait_until(agent, JobState.RUNNING)
        donor_home.write_wish("pause")
        await run_in_thread(payer.follow)
    receipt = payer.job.decode_receipt(payer.wallet)
    assert (receipt.state, receipt.amount, payer.job.paid) == (JobState.EVICTED, 0, 0)


async def test_an_evicted_job_is_paid_up_to_the_checkpoint_that_its_payer_has_in_hand(
    fake_node, donor_home, payer, write_job, start_agent
):
    path = write_job("echo half > checkpoint/state; echo saved; sleep 50")
    async with start_agent(suspend_seconds_max=0) as agent:
        await run_in_thread(payer.begin, path)
        await wait_until(agent, JobState.RUNNING)
        (run,) = agent.jobs.values()
        with trio.fail_after(20):
            while not run.document.log_sent:
                await trio.sleep(0.05)
        donor_home.write_wish("pause")
        await run_in_thread(payer.follow)
    receipt = payer.job.decode_receipt(payer.wallet)
    last = payer.job.list_ticks()[-1]
    assert receipt.state is JobState.EVICTED
    assert payer.job.dispute == ""
    assert payer.job.paid == receipt.amount == max(tick.amount for tick in payer.job.list_ticks() if tick.checkpoint)
    assert (receipt.tick, receipt.amount > 0) == (last.compute_id(payer.wallet.federation), True)
    context = compute_seal_context(b"checkpoint", payer.job.hold)
    content = open_sealed(payer.job.result_seed, fake_node.blobs[last.checkpoint], context)
    assert b"half" in content


async def test_suspended_time_is_free_and_the_job_goes_on_where_it_was(
    fake_node, donor_home, payer, write_job, start_agent
):
    path = write_job("echo up; for i in 1 2 3 4 5 6 7 8; do sleep 0.25; done; echo done")
    async with start_agent() as agent:
        await run_in_thread(payer.begin, path)
        await wait_until(agent, JobState.RUNNING)
        donor_home.write_wish("pause")
        await wait_until(agent, JobState.SUSPENDED)
        began = time.monotonic()
        with pytest.raises(UserError, match="the owner has paused lending"):
            await run_in_thread(Payer(payer.wallet, fake_node).begin, path)
        (run,) = agent.jobs.values()
        with trio.fail_after(20):
            while run.suspended_ms < 3000:
                await trio.sleep(0.05)
        donor_home.write_wish("run")
        suspended_seconds = time.monotonic() - began
        await run_in_thread(payer.follow)
    receipt = payer.job.decode_receipt(payer.wallet)
    assert receipt.state is JobState.DONE
    assert payer.log == b"up\ndone\n"
    assert receipt.wall_ms < 1000 * (2 + suspended_seconds)
    assert receipt.amount == payer.job.paid == -(-receipt.wall_ms * WEIGHT * 15 // 240_000)


async def test_two_jobs_share_the_machine_and_a_third_waits_until_there_is_room(
    fake_node, payer, write_job, start_agent
):
    path = write_job("while [ ! -e stop ]; do sleep 0.1; done")
    async with start_agent() as agent:
        await run_in_thread(payer.begin, path)
        second = Payer(payer.wallet, fake_node)
        await run_in_thread(second.begin, path)
        with trio.fail_after(20):
            while [run.document.state for run in agent.jobs.values()] != [JobState.RUNNING] * 2:
                await trio.sleep(0.05)
        with pytest.raises(UserError, match="busy"):
            await run_in_thread(Payer(payer.wallet, fake_node).begin, path)
        await run_in_thread(Line(payer.wallet, payer.job, payer.connect).say, Cancel("enough"))
        await run_in_thread(payer.follow)
        assert payer.job.decode_receipt(payer.wallet).state is JobState.CANCELLED
        third = Payer(payer.wallet, fake_node)
        await run_in_thread(third.begin, path)


async def wait_until(agent, state):
    with trio.fail_after(20):
        while not any(run.document.state == state for run in agent.jobs.values()):
            await trio.sleep(0.05)


async def test_a_job_that_its_payer_cancels_is_charged_until_then(fake_node, payer, write_job, start_agent):
    async with start_agent() as agent:
        await run_in_thread(payer.begin, write_job("sleep 50"))
        await wait_until(agent, JobState.RUNNING)
        await run_in_thread(Line(payer.wallet, payer.job, payer.connect).say, Cancel("enough"))
        await run_in_thread(payer.follow)
    receipt = payer.job.decode_receipt(payer.wallet)
    assert receipt.state is JobState.CANCELLED
    assert 0 < receipt.amount == payer.job.paid < payer.job.decode_quote(payer.wallet).amount_max


async def test_a_job_that_outlasts_its_wall_time_costs_what_was_put_aside_and_no_more(payer, write_job, start_agent):
    path = write_job("sleep 50")
    path.write_text(path.read_text().replace("60s", "2s"))
    async with start_agent():
        await run_in_thread(payer.run, path)
    receipt = payer.job.decode_receipt(payer.wallet)
    assert receipt.state is JobState.WALLTIME
    assert receipt.amount == payer.job.paid == payer.job.decode_quote(payer.wallet).amount_max


async def test_a_second_job_is_told_that_the_machine_is_busy_and_its_money_stays(
    fake_node, payer, write_job, start_agent
):
    path = write_job("sleep 50")
    async with start_agent(cores=1) as agent:
        await run_in_thread(payer.begin, path)
        await wait_until(agent, JobState.RUNNING)
        before = fake_node.get_balance(payer.wallet.account)
        with pytest.raises(UserError, match="busy"):
            await run_in_thread(Payer(payer.wallet, fake_node).begin, path)
        assert fake_node.get_balance(payer.wallet.account) == before


async def test_inputs_that_can_not_be_opened_cost_nothing_but_the_time_that_never_was(
    fake_node, payer, write_job, start_agent
):
    put_blob = fake_node.put_blob

    async with start_agent():
        fake_node.put_blob = lambda content: (
            put_blob(content) or fake_node.blobs.update(dict.fromkeys(fake_node.blobs, b"junk"))
        )
        await run_in_thread(payer.run, write_job("true"))
    receipt = payer.job.decode_receipt(payer.wallet)
    assert (receipt.state, receipt.amount, payer.job.paid) == (JobState.USER_FAILED, 0, 0)
    assert "inputs" in payer.job.detail


async def test_a_paused_donor_gives_no_quote_and_nothing_is_spent(fake_node, donor_home, payer, write_job, start_agent):
    async with start_agent():
        donor_home.write_wish("pause")
        await trio.sleep(1.2)
        with pytest.raises(UserError, match="takes no jobs"):
            await run_in_thread(payer.begin, write_job("true"))
    assert fake_node.get_balance(payer.wallet.account) == FUNDS
    assert payer.wallet.journal.jobs() == {}


async def test_what_donor_toml_names_twice_is_offered_once(fake_node, payer, start_agent):
    hosts = ["PyPI.org:443", "pypi.org:443", "[2001:DB8::1]:80"]
    async with start_agent(hosts=hosts, job_classes=["batch", "batch"]):
        (published,) = fake_node.get_offers()
    offer = decode_offer(fake_node.charter, published.encoded)
    assert offer.hosts == ("[2001:db8::1]:80", "pypi.org:443")
    assert offer.job_classes == ("batch",)
