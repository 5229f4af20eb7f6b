"""What a disputed job's file proves by itself, and that no honest donor is ever convicted by it."""

from __future__ import annotations

from functools import cache
from random import Random

import pytest
from hypothesis import given, settings

from protocol.disputes import DisputeReason
from protocol.errors import InvalidInput
from protocol.job_evidence import Claim, JobEvidence, JobVerdict, Rerun, decode_job_evidence, verify_job_evidence
from protocol.metering import CHARGED_STATES, END_STATES, JobState, Tick
from protocol.quotes import JobReceipt
from tests.disputed_jobs import DONOR_KEY, SignedJob, make_job, make_shared_job
from tests.strategies import SEEDS, make_economy, make_id, make_key, memoised_signature_checks

JOB = make_shared_job()
LAW = {0: JOB.federation.charter}
LOST = JobState.DONOR_FAILED


@cache
def make_settled(amount: int) -> SignedJob:
    job = make_job()
    job.settle(amount)
    return job


def judge(evidence: JobEvidence) -> JobVerdict:
    return verify_job_evidence(LAW, evidence.encode())


def judge_settled(ticks: list[Tick], receipt: JobReceipt, paid: int) -> tuple[Claim, ...]:
    """The claims when the hold was settled for so much."""
    job = make_settled(paid)
    end = job.federation.settle(make_economy(job.federation).donor, job.hold, paid)
    return judge(job.make_evidence(ticks, receipt, end)).claims


@settings(max_examples=200, deadline=None)
@given(SEEDS)
def test_an_honest_donor_is_never_convicted_whatever_is_left_out(seed):
    random = Random(seed)
    times = sorted(random.choice((0, 5, 5000, random.randint(0, 40_000))) for _ in range(random.randint(0, 6)))
    ticks = JOB.make_ticks(*times, checkpoints=random.sample(range(6), random.randint(0, 6)))
    receipt = JOB.make_receipt(ticks, random.choice(sorted(END_STATES)))
    shown = random.sample(ticks, random.randint(0, len(ticks)))
    paid = random.choice((0, 5, 5000))
    with memoised_signature_checks():
        for reason in DisputeReason:
            verdict = judge(JOB.make_evidence(shown, random.choice((None, receipt)), reason=int(reason)))
            assert verdict.claims == ()
            assert not verdict.is_reason_proven
        if paid <= receipt.amount:
            assert judge_settled(shown, receipt, paid) == ()


def test_two_readings_of_one_sequence_convict():
    first, _ = JOB.make_ticks(10, 20)
    _, other = JOB.make_ticks(10, 25)
    verdict = judge(JOB.make_evidence([*JOB.make_ticks(10, 20), other]))
    assert verdict.claims == (Claim.METER_FORKED,)
    assert verdict.is_reason_proven
    assert verdict.payee == make_economy(JOB.federation).donor.account
    assert judge(JOB.make_evidence([first, other])).claims == ()


def test_a_meter_that_runs_backwards_convicts():
    first = JOB.make_ticks(500)[0]
    second = JOB.make_ticks(10, 20)[1]
    assert judge(JOB.make_evidence([first, second])).claims == (Claim.METER_BACKWARDS,)


def sign_anew(tick: Tick, **changes: int) -> Tick:
    changed = tick._replace(**changes)  # type: ignore[arg-type]
    return changed._replace(signature=DONOR_KEY.sign(changed.compute_id(JOB.federation.id)))


@pytest.mark.parametrize("changes", [{"amount": 101}, {"elapsed_ms": 70_000, "amount": 40_001}])
def test_a_tick_above_the_quote_convicts(changes):
    tick = sign_anew(JOB.make_ticks(100)[0], **changes)
    assert judge(JOB.make_evidence([tick])).claims == (Claim.TICK_OVERCHARGED,)
    assert judge(JOB.make_evidence([sign_anew(tick, amount=1)])).claims == ()


def test_a_receipt_above_the_tick_that_it_names_convicts():
    ticks = JOB.make_ticks(100, 200)
    receipt = JOB.make_receipt(ticks, amount=201)
    assert judge(JOB.make_evidence(ticks, receipt)).claims == (Claim.RECEIPT_OVERCHARGED,)
    assert judge(JOB.make_evidence(ticks[:1], receipt)).claims == (), "the tick may have been left out"
    assert judge(JOB.make_evidence((), JOB.make_receipt((), amount=1))).claims == (Claim.RECEIPT_OVERCHARGED,)


def test_a_settlement_above_the_donors_own_receipt_convicts():
    ticks = JOB.make_ticks(5000)
    receipt = JOB.make_receipt(ticks)
    assert judge_settled(ticks, receipt, 5000) == ()
    assert judge_settled(ticks, JOB.make_receipt(ticks, amount=4999), 5000) == (Claim.SETTLE_OVERCHARGED,)


@pytest.mark.parametrize("state", sorted(END_STATES))
def test_taking_what_a_lost_job_counted_after_its_checkpoint_proves_lost_work(state):
    ticks = JOB.make_ticks(5, 5000, checkpoints=[0])
    receipt = JOB.make_receipt(ticks, state)
    claims = judge_settled(ticks, receipt, 5000)
    lost = (Claim.SETTLE_OVERCHARGED, Claim.LOST_WORK_CHARGED)
    assert claims == (() if state in CHARGED_STATES else lost)
    named = JOB.make_receipt(ticks, state, amount=5000, tick=ticks[1].compute_id(JOB.federation.id))
    verdict = judge(JOB.make_evidence(ticks, named, reason=int(DisputeReason.WORK_LOST)))
    assert verdict.claims == (() if state in CHARGED_STATES else (Claim.LOST_WORK_CHARGED,))
    assert verdict.is_reason_proven == (state not in CHARGED_STATES)


def test_a_proven_overcharge_proves_no_other_reason():
    receipt = JOB.make_receipt((), amount=1)
    proven = [
        reason for reason in DisputeReason if judge(JOB.make_evidence((), receipt, reason=int(reason))).is_reason_proven
    ]
    assert proven == [DisputeReason.AMOUNT_NOT_DUE]


def test_a_rerun_is_shown_and_proves_nothing():
    other = JOB.make_receipt(JOB.make_ticks(7), outputs=make_id("other results"))
    base = JOB.make_evidence((), JOB.make_receipt((), outputs=make_id("results")), reason=3)
    rerun = Rerun(base.hold_receipt, base.quote, other.encode(), make_id("key"))
    verdict = judge(base._replace(reruns=(rerun,), result_key=make_id("own key")))
    assert [it.outputs for it in verdict.reruns] == [make_id("other results")]
    assert verdict.claims == ()
    assert not verdict.is_reason_proven


def make_foreign_parts() -> dict[str, JobEvidence]:
    """Files of which one part is another job's, another donor's, or of another kind."""
    ticks, federation = JOB.make_ticks(10, 20), JOB.federation
    receipt = JOB.make_receipt(ticks)
    whole = JOB.make_evidence(ticks, receipt)
    stranger, other_quote = make_key("stranger"), JOB.quote._replace(grace_seconds=601)
    other_request = JOB.request._replace(cores=1).sign(federation.id, make_key("meter"))
    forged = receipt.sign_as_donor(federation.id, stranger)
    elsewhere = JOB.make_receipt(ticks, hold=make_id("another hold"))
    economy = make_economy(federation)
    tick = ticks[0]._replace(hold=make_id("another hold"))
    own = tick._replace(signature=DONOR_KEY.sign(tick.compute_id(federation.id)))
    not_own = ticks[0]._replace(signature=bytes(64))
    return {
        "the hold is a program": whole._replace(hold_receipt=JOB.cluster.members[1].receipt(economy.program)),
        "the end is a hold": whole._replace(end_receipt=whole.hold_receipt),
        "another quote": whole._replace(quote=other_quote.sign(federation.id, DONOR_KEY).encode()),
        "another request": whole._replace(request=other_request.encode()),
        "another job's tick": whole._replace(ticks=(own.encode(),)),
        "an unsigned tick": whole._replace(ticks=(not_own.encode(),)),
        "ticks out of order": whole._replace(ticks=whole.ticks[::-1]),
        "a tick twice": whole._replace(ticks=whole.ticks[:1] * 2),
        "a forged voucher": whole._replace(vouchers=((1, 11, whole.vouchers[0][2]),)),
        "a voucher twice": whole._replace(vouchers=whole.vouchers * 2),
        "a forged job receipt": whole._replace(job_receipt=forged.encode()),
        "another job's receipt": whole._replace(job_receipt=elsewhere.encode()),
        "a forged rerun": whole._replace(reruns=(Rerun(whole.hold_receipt, whole.quote, forged.encode(), b""),)),
        "an unknown reason": whole._replace(reason=len(DisputeReason) + 1),
    }


@pytest.mark.parametrize("what", make_foreign_parts())
def test_one_foreign_part_spoils_the_file(what):
    with pytest.raises(InvalidInput) as caught:
        judge(make_foreign_parts()[what])
    assert "\n" not in str(caught.value)


def test_a_file_is_its_canonical_bytes():
    evidence = JOB.make_evidence(JOB.make_ticks(10), JOB.make_receipt(()))
    assert decode_job_evidence(evidence.encode()) == evidence
    for broken in (b"", b"\xc0", evidence.encode()[:-1], evidence.encode() + b"\0"):
        with pytest.raises(InvalidInput):
            decode_job_evidence(broken)
