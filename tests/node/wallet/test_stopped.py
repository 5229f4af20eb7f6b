"""An account that a member has stopped, or that is frozen: its owner reads why and where to turn, and signs nothing in
vain."""

from __future__ import annotations

import json

import pytest

from node.addresses import Kind as AddressKind
from node.addresses import decode_address
from node.cli import run
from node.errors import Refused
from node.terminal import format_moment
from node.wallet.jobs import plan_job
from node.wallet.payments import Payment, plan_transfer, send_transfer
from node.wallet.reclaiming import ReclaimState, reclaim_job
from node.wallet.rotating import rotate_key
from protocol.records import Kind, Suspend


@pytest.fixture
def suspend(federation, wallet):
    def stop():
        body = Suspend(1, wallet.account, 3, b"", federation.epochs[-1] + 1, "board@x.org")
        with federation.lock:
            federation.sign(Kind.SUSPEND, federation.member_account, body)

    return stop


def test_a_balance_shows_who_stopped_the_account_and_to_whom_to_turn(wallet, fund, suspend, capsys):
    fund(wallet, 1000)
    suspend()
    assert run(["wallet", "balance", "--home", str(wallet.home)]) == 0
    said = capsys.readouterr().out
    end = format_moment(wallet.compute_epoch_end(2))
    assert f"suspended by Hochschule until {end}, the end of epoch 2 (reason 3 of that " in said
    assert "appeal: board@x.org" in said
    assert run(["wallet", "balance", "--home", str(wallet.home), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["suspensions"][0]["appeal"] == "board@x.org"


def test_a_payment_is_refused_with_the_appeal_before_it_is_signed(wallet, fund, suspend, receiver, capsys):
    fund(wallet, 1000)
    suspend()
    assert run(["wallet", "send", receiver, "1", "-y", "--home", str(wallet.home)]) == 4
    assert "appeal: board@x.org" in capsys.readouterr().err
    assert wallet.journal.history() == []


def test_a_frozen_account_signs_nothing_and_says_why(wallet, node, fund, receiver, capsys):
    fund(wallet, 1000)
    node.overrides["is_frozen"] = True
    assert run(["wallet", "send", receiver, "1", "-y", "--home", str(wallet.home)]) == 4
    assert "two of its payments became final that exclude each other" in capsys.readouterr().err
    assert wallet.journal.history() == []


def test_a_suspension_that_overtakes_a_payment_is_told_with_its_appeal(wallet, node, fund, suspend, receiver):
    fund(wallet, 1000)
    payment = Payment(decode_address(AddressKind.ACCOUNT, receiver), 1, "")
    plan_transfer(wallet, payment)

    def fault(method, path):
        if (method, path) == ("POST", "records") and len(node.received) == 1:
            suspend()

    node.fault = fault
    outcome = send_transfer(wallet, wallet.unlock(None), payment, wait_seconds=0.1)
    assert outcome.refusal.startswith("suspended")
    assert "appeal: board@x.org" in outcome.refusal


def test_a_suspended_account_starts_no_job_and_still_gets_its_credits_back(
    wallet, federation, running, suspend, write_job
):
    suspend()
    with pytest.raises(Refused, match="appeal"):
        plan_job(wallet, write_job())
    reclaim_job(wallet, wallet.unlock(None), running, 0)
    federation.grace_is_over = True
    assert reclaim_job(wallet, wallet.unlock(None), running, 0).state == ReclaimState.RECLAIMED
    assert rotate_key(wallet, *wallet.unlock_with_next(None)).verified is not None, "nobody is locked in"
