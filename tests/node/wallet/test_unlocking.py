"""Freeing a slot: what the wallet proposes, what it does not believe, and that it signs nothing twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from node import api
from node.addresses import Kind as AddressKind
from node.addresses import decode_address, encode_address
from node.cli import run
from node.errors import UserError
from node.wallet import sending
from node.wallet.journal import State
from node.wallet.payments import Payment, plan_transfer, send_transfer, sign_next
from node.wallet.sending import find_pending, read_account
from node.wallet.unlocking import is_fence, unlock_account, unlock_slot
from node.wallet.wallet import Wallet
from protocol.records import Kind, Output, RecordDraft, Transfer, account_scope, sign_record
from protocol.statements import decode_slot_proposal, encode_signed, sign_unlock_request
from tests.node.wallet.lone_federation import split_proposal


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    from node.wallet import unlocking

    monkeypatch.setattr(sending, "RETRY_SECONDS_FIRST", 0.01)
    monkeypatch.setattr(unlocking, "PAUSE_SECONDS_FIRST", 0.01)
    monkeypatch.setattr(unlocking, "POLL_SECONDS", 0.01)


@pytest.fixture
def program(wallet, fund):
    return fund(wallet, 10_000)


@pytest.fixture
def payment(receiver):
    return Payment(decode_address(AddressKind.ACCOUNT, receiver), 2500, "")


@pytest.fixture
def get_paid(federation, payment):
    return lambda: sum(federation.replica.ledger.balances.get(payment.account, {}).values())


def get_slot(wallet):
    return account_scope(wallet.account), 0


def sign_elsewhere(wallet, program, amount, *, epoch=1, sequence=0, key=None):
    """A record that a second machine with the same words signs."""
    key = key or wallet.unlock(None)
    public_key = key.public_key().public_bytes_raw()
    body = Transfer((Output(b"e" * 32, program.id, 3, amount),), "elsewhere")
    prev = b"p" * 32 if sequence else b""
    draft = RecordDraft(Kind.TRANSFER, epoch, account_scope(wallet.account), sequence, prev, body, (public_key,))
    return sign_record(wallet.federation, draft, [key])


def ask_elsewhere(wallet, federation, attempt=1):
    """A second machine asks for an attempt, and is never heard of again: the slot is contested."""
    key = wallet.unlock(None)
    public_key = key.public_key().public_bytes_raw()
    request = sign_unlock_request(wallet.federation, get_slot(wallet), attempt, public_key, key)
    with federation.lock:
        federation.unlock(encode_signed(request))
    return request


def sign(wallet, payment):
    entry = sign_next(
        wallet, wallet.unlock(None), Kind.TRANSFER, "a payment", lambda a: plan_transfer(wallet, payment, a).body
    )
    assert entry is not None
    return entry


def list_proposals(node):
    return [decode_slot_proposal(split_proposal(body)[0]) for body in node.proposals]


# -- a payment frees its own slot -----------------------------------------------------------------------------------


def test_a_payment_whose_slot_is_contested_unlocks_it_and_is_paid_once(
    wallet, node, federation, program, payment, get_paid
):
    ask_elsewhere(wallet, federation)
    outcome = send_transfer(wallet, wallet.unlock(None), payment)
    assert (outcome.entry.state, outcome.entry.sequence, outcome.entry.attempt) == (State.FINAL, 0, 2)
    assert outcome.verified is not None
    assert get_paid() == 2500
    assert [proposal.attempt for proposal in list_proposals(node)] == [2]


def test_where_another_record_took_the_slot_the_payment_is_signed_anew_in_the_same_command(
    wallet, federation, program, payment, get_paid
):
    entry = sign(wallet, payment)
    other = sign_elsewhere(wallet, program, 7)
    with federation.lock:
        federation.submit(other.encoded)
    outcome = send_transfer(wallet, wallet.unlock(None), payment, entry=entry)
    assert (outcome.entry.state, outcome.entry.sequence) == (State.FINAL, 1)
    assert wallet.journal.find(entry.record_id).state is State.REJECTED
    assert get_paid() == 2500
    assert outcome.lost == (), "it was paid after all"


def test_an_earlier_payment_that_lost_its_slot_is_named_and_not_forgotten(
    wallet, federation, program, payment, capsys, receiver
):
    entry = sign(wallet, payment)
    other = sign_elsewhere(wallet, program, 7)
    with federation.lock:
        federation.submit(other.encoded)
    assert run(["wallet", "send", receiver, "1", "-y", "--home", str(wallet.home)]) == 0
    assert f"Not done: {entry.purpose}" in capsys.readouterr().err


def test_two_commands_at_a_contested_slot_propose_once_for_each_attempt(
    wallet, node, federation, program, payment, get_paid
):
    ask_elsewhere(wallet, federation)

    def pay(amount):
        with Wallet.open(wallet.home) as own:
            return send_transfer(own, own.unlock(None), payment._replace(amount=amount)).entry

    with ThreadPoolExecutor(2) as pool:
        entries = list(pool.map(pay, [1000, 2000]))
    assert sorted(entry.sequence for entry in entries) == [0, 1]
    assert get_paid() == 3000
    rounds = [(proposal.sequence, proposal.attempt) for proposal in list_proposals(node)]
    assert len(rounds) == len(set(rounds))


def test_nothing_else_is_signed_by_this_wallet_during_an_attempt(wallet, node, federation, program):
    tried = []

    def fault(method, path):
        if path in ("unlocks", "proposals"):
            with pytest.raises(UserError, match="another command"), wallet.lock(0):
                pass
            tried.append(path)

    node.fault = fault
    assert unlock_slot(wallet, wallet.unlock(None), 0, None, 1).record is not None
    assert tried == ["unlocks", "proposals"]


# -- what is proposed -----------------------------------------------------------------------------------------------


def show_claims(node, *records):
    node.slot_overrides = {"records": [record.encoded for record in records]}


def test_two_machines_propose_the_same_record_when_none_is_forced(wallet, node, program):
    mine, other = sorted((sign_elsewhere(wallet, program, amount) for amount in (1, 2)), key=lambda record: record.id)
    show_claims(node, other, mine)
    assert unlock_slot(wallet, wallet.unlock(None), 0, other, 0).record == mine


def test_the_record_that_the_promises_force_is_the_one_proposed(wallet, node, federation, program, monkeypatch):
    wish, forced = sorted((sign_elsewhere(wallet, program, amount) for amount in (1, 2)), key=lambda record: record.id)
    name = encode_address(AddressKind.RECORD, forced.id)
    promise = api.SlotPromise(b"b" * 32, 1, name, 0, 0)
    answer = api.Promises(0, 1, False, True, [promise], [forced.encoded])
    monkeypatch.setattr(federation, "unlock", lambda encoded: answer)
    unlock_slot(wallet, wallet.unlock(None), 0, wish, 0)
    assert [proposal.record for proposal in list_proposals(node)] == [forced.id]


def test_nothing_is_proposed_when_the_node_hides_the_forced_record(wallet, node, federation, program, monkeypatch):
    name = encode_address(AddressKind.RECORD, b"h" * 32)
    answer = api.Promises(0, 1, False, True, [api.SlotPromise(b"b" * 32, 1, name, 0, 0)], [])
    monkeypatch.setattr(federation, "unlock", lambda encoded: answer)
    assert unlock_slot(wallet, wallet.unlock(None), 0, sign_elsewhere(wallet, program, 1), 0).record is None
    assert node.proposals == []


def test_only_what_the_wallets_own_key_signed_for_this_slot_counts_as_a_claim(wallet, node, federation, program):
    forged, honest = sorted((sign_elsewhere(wallet, program, n) for n in (1, 2)), key=lambda record: record.id)
    forged = forged._replace(encoded=forged.encoded[:-1] + bytes([forged.encoded[-1] ^ 1]))
    show_claims(
        node,
        sign_elsewhere(wallet, program, 3, key=federation.member_key),
        sign_elsewhere(wallet, program, 4, sequence=1),
        forged,
        honest,
    )
    node.slot_overrides["records"].append(b"nonsense")
    assert unlock_slot(wallet, wallet.unlock(None), 0, None, 0).record == honest


def test_a_node_can_not_make_the_wallet_skip_attempts(wallet, node, federation, program):
    """Attempts end at 1000; a node that invents high ones could lock the account."""
    request = ask_elsewhere(wallet, federation)
    forged = encode_signed(request._replace(attempt=999))
    node.slot_overrides = {"attempt": 999, "request": forged}
    assert unlock_slot(wallet, wallet.unlock(None), 0, None, 1).record is not None
    assert max(proposal.attempt for proposal in list_proposals(node)) <= 3


def test_what_no_member_may_vote_for_any_more_gives_way_to_a_fence(wallet, node, federation, program, capsys):
    """A record of another epoch was signed for the slot, and nobody certified it."""
    late = sign_elsewhere(wallet, program, 1, epoch=7)
    wallet.journal.add(late.scope, 0, late.id, late.encoded, "a late payment")
    assert run(["wallet", "unlock", "-y", "--home", str(wallet.home)]) == 0
    said = capsys.readouterr()
    assert "Not done: a late payment" in said.err
    assert "0.001 credits to yourself" in said.out
    assert len(list_proposals(node)) == 1, "it is not even tried"
    assert find_pending(wallet) == []


def test_a_record_that_a_rule_forbids_is_not_proposed_again_and_again(wallet, node, federation, program):
    too_much = sign_elsewhere(wallet, program, 10**9)
    freed = unlock_slot(wallet, wallet.unlock(None), 0, too_much, 5)
    assert freed.record is not None
    assert is_fence(freed.record)
    assert [proposal.record for proposal in list_proposals(node)] == [too_much.id, freed.record.id]


def test_credits_that_can_not_be_passed_on_make_a_fence_all_the_same(wallet, fund):
    fund(wallet, 10_000, is_transferable=0)
    freed = unlock_account(wallet, wallet.unlock(None))
    assert freed is not None
    assert freed.record is not None
    assert is_fence(freed.record)
    assert read_account(wallet).millicredits == 10_000


def test_an_account_without_claims_and_credits_needs_no_unlock(wallet, node):
    assert unlock_account(wallet, wallet.unlock(None)) is None
    assert node.proposals == []


def test_an_unlock_by_hand_signs_nothing_when_nothing_is_to_be_freed(wallet, node, program, capsys):
    assert run(["wallet", "unlock", "-y", "--home", str(wallet.home)]) == 0
    assert "Nothing has to be unlocked" in capsys.readouterr().out
    assert node.proposals == []
    assert wallet.journal.history(10) == []


def test_an_unlock_by_hand_shows_what_it_would_do_and_asks(wallet, node, federation, program, payment, capsys):
    ask_elsewhere(wallet, federation)
    sign(wallet, payment)
    assert run(["wallet", "unlock", "--dry-run", "--home", str(wallet.home)]) == 0
    assert (
        "1 record claims this account's place 0 (attempts to free it so far: 1): a payment" in capsys.readouterr().out
    )
    assert run(["wallet", "unlock", "--home", str(wallet.home)]) == 1
    assert "needs -y" in capsys.readouterr().err
    assert node.proposals == []
    assert run(["wallet", "unlock", "-y", "--home", str(wallet.home)]) == 0
    assert len(list_proposals(node)) == 1


def test_after_a_restore_that_broke_off_the_slot_is_filled_on_request(wallet, node, program, capsys):
    assert run(["wallet", "unlock", "--fill", "-y", "--home", str(wallet.home)]) == 0
    assert "0.001 credits to yourself" in capsys.readouterr().out
    assert len(list_proposals(node)) == 1


def test_the_history_says_in_words_what_an_unlock_paid_to_oneself(wallet, program, capsys):
    unlock_account(wallet, wallet.unlock(None))
    assert run(["wallet", "history", "--home", str(wallet.home)]) == 0
    assert "to yourself, which closed what another machine may have signed" in capsys.readouterr().out.splitlines()[0]


def test_without_the_node_the_history_calls_a_payment_void_that_lost_its_place(
    wallet, federation, program, payment, capsys
):
    sign(wallet, payment)
    other = sign_elsewhere(wallet, program, 7)
    with federation.lock:
        federation.submit(other.encoded)
    unlock_account(wallet, wallet.unlock(None))
    assert run(["wallet", "history", "--home", str(wallet.home), "--node", "http://127.0.0.1:9"]) == 0
    assert any(line.startswith("void ") for line in capsys.readouterr().out.splitlines())


def test_a_stranger_is_told_that_the_account_is_not_theirs(wallet, program, federation):
    with pytest.raises(UserError, match="does not unlock this account"):
        unlock_slot(wallet, federation.member_key, 0, None, 0)


def test_an_attempt_that_stands_in_the_journal_is_never_used_again_whatever_the_node_says(wallet, node, program):
    first = sign_elsewhere(wallet, program, 1)
    wallet.journal.add(first.scope, 0, first.id, first.encoded, "a payment", attempt=4)
    unlock_slot(wallet, wallet.unlock(None), 0, None, 0)
    assert [proposal.attempt for proposal in list_proposals(node)] == [5]


# -- killed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["unlocks", "proposals"])
@pytest.mark.parametrize("moment", ["drop", "drop after"])
def test_killed_at_any_step_of_an_unlock_the_next_command_goes_on_and_signs_nothing_twice(
    wallet, node, federation, program, environment, receiver, get_paid, place, moment
):
    ask_elsewhere(wallet, federation)
    wallet.close()
    started: list[subprocess.Popen] = []

    def fault(method, path):
        if path != place:
            return None
        os.kill(started[0].pid, signal.SIGKILL)
        return moment

    node.fault = fault
    command = [sys.executable, "-m", "node", "wallet", "send", receiver, "2.5", "-y", "--home", str(wallet.home)]
    started.append(subprocess.Popen(command, env=environment))
    assert started[0].wait(timeout=60) == -signal.SIGKILL
    node.fault = lambda method, path: None
    assert run(["wallet", "send", receiver, "2.5", "-y", "--home", str(wallet.home)]) == 0
    assert get_paid() == 2500
    rounds = [(proposal.sequence, proposal.attempt) for proposal in list_proposals(node)]
    assert len(rounds) == len(set(rounds))
    with Wallet.open(wallet.home) as again:
        assert {entry.attempt for entry in again.journal.slot(*get_slot(again))} >= {r[1] for r in rounds}
        assert find_pending(again) == []


def test_killed_between_journal_and_proposal_the_attempt_is_given_up(
    wallet, node, federation, program, environment, receiver, get_paid
):
    ask_elsewhere(wallet, federation)
    wallet.close()
    program_text = (
        "import os, signal, sys\n"
        "from node import cli, client\n"
        "client.NodeClient.post_proposal = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\n"
        "cli.run(sys.argv[1:])"
    )
    command = ["wallet", "send", receiver, "2.5", "-y", "--home", str(wallet.home)]
    done = subprocess.run([sys.executable, "-c", program_text, *command], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert node.proposals == []
    assert run(command) == 0
    assert get_paid() == 2500
    assert [proposal.attempt for proposal in list_proposals(node)] == [3]
