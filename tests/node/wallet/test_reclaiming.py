"""Taking back what a donor never settled: asked for once, signed late, and a settlement that comes first wins."""

from __future__ import annotations

import json
import time

import pytest

from node.cli import run
from node.errors import UserError
from node.wallet import reclaiming
from node.wallet.job_records import RECLAIMED, SETTLED, load_job
from node.wallet.reclaiming import ReclaimState, reclaim_job
from node.wallet.sending import read_account
from protocol.errors import Reason
from protocol.metering import sign_voucher
from protocol.records import NONE, Kind, Reclaim, RecordDraft, Settle, hold_scope, sign_record
from tests.node.wallet.scripted_donor import DONOR, DONOR_PUBLIC, FUNDS


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(reclaiming, "POLL_SECONDS", 0.01)


@pytest.fixture
def reclaim(wallet, running):
    return lambda wait_seconds=0.0: reclaim_job(wallet, wallet.unlock(None), running, wait_seconds)


@pytest.fixture
def allmende(wallet, donor, capsys, monkeypatch):
    """A command of the wallet's, with the real client."""
    wallet.__dict__["client"] = donor.client
    monkeypatch.setenv("ALLMENDE_HOME", str(wallet.home))

    def call(*arguments, status=0):
        assert run([*arguments]) == status
        return capsys.readouterr()

    return call


def end_grace(federation):
    with federation.lock:
        federation.grace_is_over = True


def sign_settle(wallet, job, amount):
    """The donor's settlement, with a voucher for this amount."""
    voucher = sign_voucher(wallet.federation, job.meter_key, job.hold, 1, amount)
    body = Settle(1, amount, voucher.signature, NONE, 0, NONE)
    draft = RecordDraft(Kind.SETTLE, 1, hold_scope(job.hold), 0, NONE, body, (DONOR_PUBLIC,))
    return sign_record(wallet.federation, draft, [DONOR])


def settle(federation, wallet, job, amount):
    """The settlement, made final."""
    record = sign_settle(wallet, job, amount)
    with federation.lock:
        federation.submit(record.encoded)
        assert federation.receipt(record.id)


def test_everything_comes_back_when_the_grace_is_over(wallet, federation, running, reclaim):
    assert read_account(wallet).millicredits == FUNDS - 6250
    asked = reclaim()
    assert (asked.state, asked.seconds_left) == (ReclaimState.WAITING, 3600)
    assert wallet.journal.slot(hold_scope(running.hold), 0) == [], "its epoch could end while it waits"
    end_grace(federation)
    assert reclaim().state == ReclaimState.RECLAIMED
    assert read_account(wallet).millicredits == FUNDS
    kept = load_job(wallet, running.job_id)
    assert (kept.state, kept.paid, bool(kept.reclaim_receipt)) == (RECLAIMED, 0, True)


def test_a_command_that_may_wait_so_long_does_it_all(federation, reclaim, monkeypatch):
    monkeypatch.setattr(federation, "compute_seconds_left", lambda request: 0 if federation.grace_is_over else 1)
    monkeypatch.setattr(time, "sleep", lambda seconds: end_grace(federation))
    assert reclaim(5).state == ReclaimState.RECLAIMED


def test_asking_again_signs_nothing_again(wallet, node, federation, reclaim):
    reclaim()
    sent = len(node.received)
    assert reclaim().state == ReclaimState.WAITING
    assert len(node.received) == sent
    end_grace(federation)
    reclaim()
    sent = len(node.received)
    assert reclaim().state == ReclaimState.RECLAIMED
    assert len(node.received) == sent


def test_a_settlement_within_the_grace_wins(wallet, federation, running, reclaim):
    reclaim()
    settle(federation, wallet, running, 1000)
    end_grace(federation)
    assert reclaim().state == ReclaimState.SETTLED
    assert (running.state, running.paid) == (SETTLED, 1000)
    assert read_account(wallet).millicredits == FUNDS - 1000


def test_a_settlement_that_overtakes_the_signed_reclaim_is_shown_and_the_reclaim_is_no_longer_pending(
    wallet, node, federation, running, reclaim
):
    reclaim()
    end_grace(federation)

    def fault(method, path):
        if (method, path) == ("POST", "records"):
            settle(federation, wallet, running, 1000)

    node.fault = fault
    assert reclaim().state == ReclaimState.SETTLED
    (entry,) = wallet.journal.slot(hold_scope(running.hold), 0)
    assert "became final in its place" in entry.reason
    assert wallet.journal.pending() == []


@pytest.mark.parametrize(
    ("reason", "state"),
    [(Reason.GRACE_RUNNING, ReclaimState.SENT), (Reason.SLOT_CONTESTED, ReclaimState.CONTESTED)],
)
def test_what_may_still_become_final_is_kept_and_sent_again(wallet, node, federation, reclaim, reason, state):
    reclaim()
    end_grace(federation)
    node.fault = lambda method, path: (409, reason.name) if (method, path) == ("POST", "records") else None
    assert reclaim().state == state
    node.fault = lambda method, path: None
    assert reclaim().state == ReclaimState.RECLAIMED


def test_a_slot_that_the_donor_claims_too_is_freed_in_the_payers_turn(
    wallet, node, federation, running, reclaim, monkeypatch
):
    reclaim()
    end_grace(federation)
    with federation.lock:
        federation.say_all(unvoted=[sign_settle(wallet, running, 1000)])

    def pass_time(seconds):
        with federation.lock:
            federation.running_seconds += 1

    monkeypatch.setattr(time, "sleep", pass_time)
    node.fault = lambda method, path: (409, "SLOT_CONTESTED") if (method, path) == ("POST", "records") else None
    assert reclaim(20).state == ReclaimState.RECLAIMED
    assert federation.running_seconds >= 20, "the donor's turn comes first"
    assert len(node.proposals) == 1
    assert read_account(wallet).millicredits == FUNDS


def test_a_reclaim_whose_epoch_has_passed_is_signed_anew(wallet, federation, running, reclaim):
    reclaim()
    end_grace(federation)
    (request,) = federation.replica.ledger.requests
    key = wallet.unlock(None)
    signers = (key.public_key().public_bytes_raw(),)
    draft = RecordDraft(Kind.RECLAIM, 99, hold_scope(running.hold), 0, NONE, Reclaim(request), signers)
    old = sign_record(wallet.federation, draft, [key])
    wallet.journal.add(*old.slot, old.id, old.encoded, "take back")
    assert reclaim().state == ReclaimState.RECLAIMED
    assert [entry.attempt for entry in wallet.journal.slot(*old.slot)] == [0, 2]


def test_another_machine_of_the_wallet_may_have_asked(wallet, federation, running, reclaim, monkeypatch):
    reclaim()
    end_grace(federation)
    monkeypatch.setattr(reclaiming, "find_signed", lambda wallet, purpose: None)
    assert reclaim().state == ReclaimState.RECLAIMED


def test_nothing_hinders_other_payments_while_the_grace_runs(wallet, reclaim, allmende, receiver):
    reclaim()
    allmende("wallet", "send", receiver, "1", "-y")


def test_the_command_asks_waits_and_takes_back(wallet, federation, running, allmende):
    job = running.job_id
    planned = allmende("job", "reclaim", job, "--dry-run").out
    assert "within 3600 s" in planned
    assert "may still run" in planned
    assert "Nobody can be asked" in allmende("job", "reclaim", job, status=1).err
    waiting = allmende("job", "reclaim", job, "-y", "--wait", "0", status=3)
    assert "about 3600 seconds of the members' running time" in waiting.out
    end_grace(federation)
    done = json.loads(allmende("job", "reclaim", job, "-y", "--json").out)
    assert (done["state"], done["paid_millicredits"]) == ("RECLAIMED", 0)
    assert "Reclaimed: 6.250 credits" in allmende("job", "reclaim", job).out
    assert "RECLAIMED" in allmende("job", "ls").out
    assert "taken back" in allmende("job", "receipt", job, status=1).err
    shown = allmende("wallet", "history").out
    assert "reclaim" in shown


def test_a_job_without_a_hold_has_nothing_to_reclaim(wallet, running, reclaim):
    running.hold = b""
    with pytest.raises(UserError, match="put aside"):
        reclaim()
