"""A node tells how each donor's jobs ended, and a job tells who disputes it."""

from __future__ import annotations

import time

from node.addresses import Kind, encode_address
from protocol.disputes import Dispute, DisputeReason
from protocol.identifiers import compute_voucher_id
from protocol.records import Draw, Hold, Settle, Terms, account_scope, hold_scope
from protocol.records import Kind as RecordKind
from protocol.reliability import JOB_WEIGHT
from tests.node.web.conftest import make_key, public

METER = make_key(9)


def sign_job(federation):
    """The hold of a job, its settlement and the payer's dispute."""
    policy, scope = federation.charter.policy, account_scope(federation.person)
    terms = Terms(0, b"q" * 32, public(METER), 60, policy.acceptable_use, federation.sponsor.id, "train")
    body = Hold(federation.donor, (Draw(federation.program.id, 2, 900),), terms)
    hold = federation.sign(RecordKind.HOLD, scope, 0, b"", body, federation.person_key)
    voucher = METER.sign(compute_voucher_id(federation.id, hold.id, 3, 700))
    end = Settle(3, 700, voucher, b"", 0, b"")
    settle = federation.sign(RecordKind.SETTLE, hold_scope(hold.id), 0, b"", end, federation.donor_key)
    accusation = Dispute(hold.id, int(DisputeReason.RESULTS_WITHHELD), b"e" * 32)
    dispute = federation.sign(RecordKind.DISPUTE, scope, 1, hold.id, accusation, federation.person_key)
    return hold, settle, dispute


async def wait_for_score(node, score):
    """Answers may lie a little back."""
    address = encode_address(Kind.ACCOUNT, node.federation.donor)
    while (found := (await node.call("get_account", address)).reliability).score != score:
        pass
    return found


async def test_the_score_and_its_inputs_follow_the_ledger(funded, federation):
    hold, settle, dispute = sign_job(federation)
    (donor,) = await funded.call("get_donors")
    assert (donor.address, donor.reliability.score) == (encode_address(Kind.ACCOUNT, federation.donor), 500)
    await funded.make_final(hold)
    await funded.make_final(settle)
    kept = await wait_for_score(funded, 666)
    assert (kept.settled, kept.settled_millicredits, kept.kept_weight) == (1, 700, JOB_WEIGHT)
    await funded.make_final(dispute)
    broken = await wait_for_score(funded, 333)
    assert (broken.settled, broken.disputed_by_payer, broken.kept_weight) == (1, 1, 0)
    assert [each.reliability for each in await funded.call("get_donors")] == [broken]


async def test_a_person_is_no_donor(funded, federation):
    assert (await funded.call("get_account", encode_address(Kind.ACCOUNT, federation.person))).reliability is None


async def test_an_offer_comes_with_its_donors_reliability(funded, federation):
    await funded.call("put_offer", federation.sign_offer(int(time.time()) + 600).encode())
    (offer,) = await funded.call("get_offers")
    assert offer.reliability.score == 500


async def test_a_job_names_its_disputes_and_both_sides_find_them(funded, federation):
    hold, settle, dispute = sign_job(federation)
    for record in (hold, settle, dispute):
        await funded.make_final(record)
    job = await funded.call("get_job", encode_address(Kind.RECORD, hold.id))
    assert (job.state, job.end_epoch) == ("SETTLED", 1)
    (told,) = job.disputes
    assert (told.record, told.by) == (encode_address(Kind.RECORD, dispute.id), "payer")
    assert (told.reason, told.evidence) == ("results_withheld", (b"e" * 32).hex())
    for account in (federation.person, federation.donor):
        page = await funded.call("get_account_records", encode_address(Kind.ACCOUNT, account))
        assert page.records[0].kind == "dispute"
