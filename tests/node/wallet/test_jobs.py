"""The payer's side of a job against a donor that says whatever the test wants, honest or not."""

from __future__ import annotations

from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node import api
from node.bundles import pack_bundle, unpack_bundle
from node.errors import UserError
from node.sealing import open_sealed, seal
from node.wallet import jobs
from node.wallet.following import Follower, unpack_outputs
from node.wallet.job_records import list_jobs, load_job
from node.wallet.jobs import hold_job, open_job, plan_job, resume_job
from node.wallet.journal import State
from node.wallet.lots import read_lots
from node.wallet.offers import matches, read_offers
from protocol.conversation import (
    Accepted,
    Settled,
    Standing,
    Start,
    Ticked,
    VoucherGiven,
    compute_seal_context,
    decode_script,
    encode_envelope,
)
from protocol.metering import JobState, decode_tick
from protocol.quotes import OfferedGpu, check_hold
from protocol.receipts import verify_receipt
from protocol.records import Kind, Output, Transfer
from tests.node.wallet.scripted_donor import DONOR, DONOR_PUBLIC, SEAL_SEED


def follow(wallet, job, connect):
    told: list[str] = []
    Follower(wallet, job, connect, lambda content: None, told.append).follow(is_waiting=False)
    return told


def test_a_plan_is_priced_before_anything_is_spent(wallet, donor, write_job):
    plan = plan_job(wallet, write_job())
    assert plan.priced.amount_max == 6250  # 100 s of one core in sixteen
    assert sum(amount for _, amount in plan.draws) == 6250
    assert wallet.journal.jobs() == {}


def test_the_cheapest_machine_that_fits_is_chosen_and_forged_offers_are_not_seen(wallet, donor, write_job):
    cheap = donor.make_offer(machine="cheap", weight=10)
    forged = donor.make_offer(machine="forged")._replace(weight=1)
    stale = donor.make_offer(machine="stale", weight=1, valid_until=wallet.now() - 1)
    small = donor.make_offer(machine="small", weight=1, cores=1)
    donor.offers += [cheap, forged, stale, small]
    assert [offer.machine for offer in read_offers(wallet)] == ["small", "cheap", "bench"]
    plan = plan_job(wallet, write_job(resources="{cpus: 2}"))
    assert [match.offer.machine for match in plan.matches] == ["cheap", "bench"]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"max_credits": "6.249"}, "max_credits"),
        ({"resources": "{cpus: 5}"}, "4 cores"),
        ({"resources": "{accelerators: A100}"}, "GPUs"),
        ({"network": "true"}, "reach"),
        ({"runtime": "fortran"}, "runtime"),
        ({"job_class": "games"}, "batch"),
        ({"program": "nobody"}, "nobody"),
        ({"max_duration": "30m", "resources": "{cpus: 4, memory: 8}", "max_credits": "9"}, "max_credits"),
    ],
)
def test_what_can_not_be_done_is_told_before_anything_is_spent(wallet, donor, write_job, fields, told):
    with pytest.raises(UserError, match=told):
        plan_job(wallet, write_job(**fields))


def test_offers_are_filtered_by_conditions(donor):
    (offer,) = donor.offers
    assert matches(offer, "cores>=4 memory>=8 runtime=python-ml")
    assert not matches(offer, "cores>=5")
    assert not matches(offer, "gpu=A100")
    with pytest.raises(UserError, match="condition"):
        matches(offer, "colour=red")


def test_conditions_on_a_gpu_hold_for_one_and_the_same(donor):
    offer = donor.offers[0]._replace(gpus=(OfferedGpu("A100-SXM4-40GB", 42), OfferedGpu("L40S", 48)))
    assert matches(offer, "gpu=a100 vram>=40 cores>=4")
    assert matches(offer, "vram>=48")
    assert not matches(offer, "gpu=A100 vram>=48")
    assert not matches(offer, "gpu=A100 cores>=99")
    assert not matches(donor.offers[0], "vram>=1")
    with pytest.raises(UserError, match="number"):
        matches(offer, "vram>=much")


def test_credits_of_a_program_buy_only_its_classes_of_jobs(wallet, donor, federation, fund, write_job):
    plan = plan_job(wallet, write_job(program="Students"))
    assert all(lot.program for lot, _ in plan.draws)
    donor.get_programs = lambda: [
        api.Program(p.id, 1, "", p.name, "", 1, 1, True, ["training"], 0) for p in donor.client.get_programs()
    ]
    with pytest.raises(UserError, match="batch jobs"):
        plan_job(wallet, write_job())
    plan_job(wallet, write_job(job_class="training"))


@pytest.mark.parametrize(
    "change",
    [
        lambda quote: quote._replace(rate=quote.rate._replace(weight=2000), amount_max=2 * quote.amount_max),
        lambda quote: quote._replace(wall_seconds=200, amount_max=2 * quote.amount_max),
        lambda quote: quote._replace(amount_max=quote.amount_max + 1),
        lambda quote: quote._replace(request=b"x" * 32),
    ],
)
def test_a_quote_that_differs_from_the_offer_is_refused(wallet, donor, write_job, connect, change):
    donor.change_quote = change
    with pytest.raises(UserError, match="nothing was spent"):
        open_job(wallet, plan_job(wallet, write_job()), connect)
    assert list_jobs(wallet) == []


def test_a_donor_that_refuses_or_is_silent_costs_nothing(wallet, donor, write_job, connect, monkeypatch):
    donor.refusal = "busy"
    with pytest.raises(UserError, match="busy"):
        open_job(wallet, plan_job(wallet, write_job()), connect)
    donor.refusal, donor.is_silent = None, True
    monkeypatch.setattr(jobs, "QUOTE_SECONDS", 0.0)
    with pytest.raises(UserError, match="does not answer"):
        open_job(wallet, plan_job(wallet, write_job()), connect)
    assert list_jobs(wallet) == []


def test_the_donor_gets_a_proven_hold_and_inputs_that_only_it_can_open(wallet, donor, running, tmp_path):
    (start,) = donor.get_heard(Start)
    hold = verify_receipt({0: donor.charter}, start.hold_receipt).record
    check_hold(donor.federation, hold, donor.quote, donor.request)
    sealed = donor.blobs[start.inputs]
    bundle = open_sealed(SEAL_SEED, sealed, compute_seal_context(b"inputs", hold.id))
    unpack_bundle(bundle, tmp_path / "unpacked")
    assert (tmp_path / "unpacked" / "work" / "input.txt").read_text() == "seven\n"
    assert decode_script((tmp_path / "unpacked" / "job").read_bytes()).run == "wc input.txt"


def test_a_job_interrupted_after_its_hold_is_started_without_a_second_hold(wallet, donor, write_job, connect):
    spec = write_job()
    job = open_job(wallet, plan_job(wallet, spec), connect)
    interrupted = load_job(wallet, job.job_id)
    hold_job(wallet, wallet.unlock(None), job, spec)
    resume_job(wallet, interrupted, connect)
    hold_job(wallet, wallet.unlock(None), load_job(wallet, job.job_id), spec)
    (start,) = donor.get_heard(Start)
    assert verify_receipt({0: donor.charter}, start.hold_receipt).record.id == job.hold
    assert len(wallet.journal.history()) == 1


def test_a_hold_that_lost_its_slot_to_another_machine_is_signed_anew_and_only_once(
    wallet, node, federation, donor, write_job, connect
):
    spec = write_job()
    job = open_job(wallet, plan_job(wallet, spec), connect)
    node.fault = lambda method, path: (409, "POLICY") if path == "records" else None
    with pytest.raises(UserError, match="not put aside yet"):
        hold_job(wallet, wallet.unlock(None), job, spec)
    (lost,) = wallet.journal.history()
    lot = next(iter(read_lots(wallet.client.get_account(wallet.address))))
    key = wallet.unlock(None)  # it asks the node, so before the lock that the node needs
    with federation.lock:
        body = Transfer((Output(DONOR_PUBLIC, *lot, 1),), "elsewhere")
        federation.sign(Kind.TRANSFER, wallet.account, body, keys=[key])
    node.fault = lambda method, path: None
    hold_job(wallet, wallet.unlock(None), job, spec)
    assert wallet.journal.find(lost.record_id).state is State.REJECTED
    assert list(federation.replica.ledger.holds) == [job.hold]
    assert job.hold != lost.record_id


def test_honest_ticks_are_agreed_to_once_and_answered_again_when_repeated(wallet, donor, running, connect):
    running.started_at_seconds -= 60
    donor.say(Accepted(running.hold))
    first = donor.make_tick(running.hold, 30_000)
    second = donor.make_tick(running.hold, 60_000, first)
    for tick in (first, second, second):
        donor.say(Ticked(tick.encode()))
    follow(wallet, running, connect)
    vouchers = donor.get_heard(VoucherGiven)
    assert [(voucher.sequence, voucher.amount) for voucher in vouchers] == [
        (1, first.amount),
        (2, second.amount),
        (2, second.amount),
    ]
    assert [decode_tick(encoded) for encoded in load_job(wallet, running.job_id).ticks] == [first, second]


def test_a_suspension_is_told_with_its_reason_and_ends_again(wallet, donor, running, connect):
    donor.say(Accepted(running.hold))
    donor.say(Standing("SUSPENDED", "the owner is back"))
    told = follow(wallet, running, connect)
    assert (running.state, told[-1]) == ("SUSPENDED", "the job is suspended: the owner is back; this time is free")
    donor.say(Standing("RUNNING", ""))
    assert follow(wallet, running, connect) == ["the job goes on"]
    assert running.state == "RUNNING"


def test_a_tick_for_time_that_has_not_passed_is_not_agreed_to(wallet, donor, running, connect):
    donor.say(Ticked(donor.make_tick(running.hold, 60_000).encode()))
    (told,) = follow(wallet, running, connect)
    assert "have passed here" in told
    assert donor.get_heard(VoucherGiven) == []
    assert running.dispute == told


def test_a_tick_with_another_price_is_not_agreed_to(wallet, donor, running, connect):
    running.started_at_seconds -= 60
    tick = donor.make_tick(running.hold, 30_000)
    dear = tick._replace(amount=tick.amount + 1)
    dear = dear._replace(signature=DONOR.sign(dear.compute_id(donor.federation)))
    donor.say(Ticked(dear.encode()))
    (told,) = follow(wallet, running, connect)
    assert "another amount" in told
    assert donor.get_heard(VoucherGiven) == []


def test_what_others_put_into_the_mailbox_is_ignored(wallet, donor, running, connect):
    donor.post(b"junk")
    donor.say(Accepted(running.hold), key=Ed25519PrivateKey.generate())
    mailbox = donor.request.mailbox_to_wallet
    plain = encode_envelope(donor.federation, DONOR, mailbox, 9, Accepted(running.hold))
    donor.post(plain)
    assert follow(wallet, running, connect) == []
    assert running.state == "STARTED"


def test_results_are_opened_checked_and_agreed_to(wallet, donor, running, connect, tmp_path):
    running.started_at_seconds -= 60
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "result.txt").write_text("42\n")
    context = compute_seal_context(b"outputs", running.hold)
    sealed = seal(donor.request.result_key, pack_bundle(tmp_path / "made"), context)
    donor.put_blob(sealed)
    tick = donor.make_tick(running.hold, 30_000)
    donor.say(Ticked(tick.encode()))
    donor.say(donor.make_result(running.hold, tick, outputs=sha256(sealed).digest()))
    follow(wallet, running, connect)
    assert running.decode_receipt(wallet).meter_signature
    assert unpack_outputs(wallet, running, tmp_path / "results") == 1
    assert (tmp_path / "results" / "result.txt").read_text() == "42\n"


@pytest.mark.parametrize("lie", ["amount", "outputs", "fault"])
def test_a_receipt_that_lies_is_not_agreed_to(wallet, donor, running, connect, lie):
    running.started_at_seconds -= 60
    tick = donor.make_tick(running.hold, 30_000)
    donor.say(Ticked(tick.encode()))
    if lie == "amount":
        result = donor.make_result(running.hold, tick, amount=tick.amount + 1)
    elif lie == "outputs":
        donor.put_blob(b"nothing that opens")
        result = donor.make_result(running.hold, tick, outputs=sha256(b"nothing that opens").digest())
    else:
        result = donor.make_result(running.hold, tick, state=JobState.DONOR_FAILED)
    donor.say(result)
    follow(wallet, running, connect)
    assert running.dispute
    assert not running.decode_receipt(wallet).meter_signature


def test_a_forged_settlement_does_not_end_the_job(wallet, donor, running, connect):
    donor.say(Settled(running.hold_receipt))
    donor.say(Settled(b"junk"))
    assert len(follow(wallet, running, connect)) == 2
    assert running.paid == -1
    assert not running.is_over
