"""Payments: one signature for one slot, whatever the node says, loses or claims."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from node.addresses import Kind as AddressKind
from node.addresses import decode_address, encode_address
from node.errors import Unreachable, UserError
from node.wallet import sending
from node.wallet.journal import State
from node.wallet.payments import (
    Payment,
    find_same_payment,
    plan_transfer,
    resend_pending,
    send_transfer,
    sign_next,
)
from node.wallet.refusals import describe_refusal
from node.wallet.sending import find_pending, submit_entry
from node.wallet.wallet import Wallet
from protocol.errors import Reason, Rejected
from protocol.records import Kind, Lot, Output, RecordDraft, Transfer, account_scope, sign_record


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(sending, "RETRY_SECONDS_FIRST", 0.01)
    monkeypatch.setattr(sending, "CATCH_UP_SECONDS", 0.05)


@pytest.fixture
def payment(receiver):
    return Payment(decode_address(AddressKind.ACCOUNT, receiver), 2500, "thank you")


def get_balance(federation, account):
    return sum(federation.replica.ledger.balances.get(account, {}).values())


def sign(wallet, payment):
    def build(account):
        return plan_transfer(wallet, payment, account).body

    return sign_next(wallet, wallet.unlock(None), Kind.TRANSFER, "a payment", build)


def test_a_payment_is_final_with_a_receipt_that_the_wallet_checked(wallet, federation, fund, payment):
    fund(wallet, 10_000)
    outcome = send_transfer(wallet, wallet.unlock(None), payment)
    assert outcome.entry.state is State.FINAL
    assert outcome.verified is not None
    assert outcome.verified.members == (1,)
    assert get_balance(federation, payment.account) == 2500
    assert get_balance(federation, wallet.account) == 7500
    assert wallet.journal.find(outcome.entry.record_id).receipt == federation.receipt(outcome.entry.record_id)


def test_an_amount_may_be_spread_over_lots_soonest_expiry_first(wallet, fund, payment):
    soon = fund(wallet, 2000, "Soon", expiry_epochs=1)
    late = fund(wallet, 2000, "Late", expiry_epochs=9)
    plan = plan_transfer(wallet, payment)
    assert plan.draws == ((Lot(soon.id, 2), 2000), (Lot(late.id, 10), 500))
    assert plan.body.outputs == (
        Output(payment.account, soon.id, 2, 2000),
        Output(payment.account, late.id, 10, 500),
    )


def test_credits_that_may_not_be_passed_on_are_not_offered(wallet, fund, payment):
    fund(wallet, 10_000, "Bound", is_transferable=0)
    with pytest.raises(UserError, match="belong to programs"):
        send_transfer(wallet, wallet.unlock(None), payment)
    assert wallet.journal.history() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"amount": 0}, "above 0"),
        ({"memo": "ä" * 65}, "128 bytes"),
        ({"memo": "\udcff"}, "valid text"),
        ({"amount": 10**12}, "are needed"),
    ],
)
def test_what_the_rules_forbid_is_never_signed(wallet, fund, payment, change, message):
    fund(wallet, 10_000)
    with pytest.raises(UserError, match=message):
        send_transfer(wallet, wallet.unlock(None), payment._replace(**change))
    assert wallet.journal.history() == []


def test_nobody_pays_oneself_by_mistake(wallet, fund, payment):
    fund(wallet, 10_000)
    with pytest.raises(UserError, match="own address"):
        plan_transfer(wallet, payment._replace(account=wallet.account))


def test_a_lost_answer_leads_to_the_same_bytes_again(wallet, node, federation, fund, payment):
    fund(wallet, 10_000)
    lost = iter(["drop", "drop after"])
    node.fault = lambda method, path: next(lost, None) if path == "records" else None
    outcome = send_transfer(wallet, wallet.unlock(None), payment)
    assert outcome.entry.state is State.FINAL
    assert len(node.received) >= 3
    assert set(node.received) == {outcome.entry.record}
    assert get_balance(federation, payment.account) == 2500


def test_an_unreachable_node_leaves_the_payment_kept_and_named(wallet, node, federation, fund, payment):
    fund(wallet, 10_000)
    node.fault = lambda method, path: "drop" if path == "records" else None
    with pytest.raises(Unreachable, match="pending --resend"):
        send_transfer(wallet, wallet.unlock(None), payment, wait_seconds=0.05)
    (entry,) = find_pending(wallet)
    assert find_same_payment(wallet, payment) == entry
    assert find_same_payment(wallet, payment._replace(amount=1)) is None
    node.fault = lambda method, path: None
    (outcome,) = resend_pending(wallet)
    assert (outcome.entry.state, outcome.entry.record) == (State.FINAL, entry.record)
    assert get_balance(federation, payment.account) == 2500


def test_what_is_pending_goes_first_and_takes_the_slot_before(wallet, node, federation, fund, payment):
    fund(wallet, 10_000)
    first = sign(wallet, payment)
    assert sign(wallet, payment._replace(amount=1)) is None, "nothing is signed after an open record"
    outcome = send_transfer(wallet, wallet.unlock(None), payment._replace(amount=1))
    assert wallet.journal.find(first.record_id).state is State.FINAL
    assert (first.sequence, outcome.entry.sequence) == (0, 1)
    assert get_balance(federation, payment.account) == 2501


def test_nothing_new_is_signed_while_something_stays_pending(wallet, node, fund, payment):
    fund(wallet, 10_000)
    first = sign(wallet, payment)
    node.fault = lambda method, path: (409, "POLICY") if path == "records" else None
    with pytest.raises(UserError, match=r"not final yet.*policy.*nothing new was signed"):
        send_transfer(wallet, wallet.unlock(None), payment._replace(amount=1))
    assert [entry.record_id for entry in wallet.journal.history()] == [first.record_id]


@pytest.mark.parametrize("reason", ["FUNDS_MISSING", "EPOCH_WRONG", "SLOT_TAKEN", "POLICY", "SIGNATURE_INVALID"])
def test_one_nodes_refusal_is_no_proof_so_the_payment_stays_pending(wallet, node, fund, payment, reason):
    fund(wallet, 10_000)
    node.fault = lambda method, path: (409, reason) if path == "records" else None
    outcome = send_transfer(wallet, wallet.unlock(None), payment)
    assert outcome.refusal == describe_refusal(Rejected(Reason[reason], reason))
    assert outcome.verified is None
    assert [entry.record_id for entry in find_pending(wallet)] == [outcome.entry.record_id]


def test_a_receipt_that_does_not_hold_is_never_called_final(wallet, node, fund, payment):
    fund(wallet, 10_000)
    node.forged_receipt = b"trust me"
    outcome = send_transfer(wallet, wallet.unlock(None), payment)
    assert outcome.verified is None
    assert "does not hold" in outcome.refusal
    assert find_pending(wallet)


def test_the_receipt_of_another_record_is_never_called_final(wallet, node, federation, fund, payment):
    fund(wallet, 10_000)
    first = send_transfer(wallet, wallet.unlock(None), payment)
    node.forged_receipt = federation.receipt(first.entry.record_id)
    second = send_transfer(wallet, wallet.unlock(None), payment)
    assert second.verified is None
    assert "another record" in second.refusal


def sign_elsewhere(wallet, federation, payment, program):
    """The same words on a second machine."""
    key = wallet.unlock(None)
    body = Transfer((Output(payment.account, program.id, 3, 1),), "elsewhere")
    scope = account_scope(wallet.account)
    public_key = key.public_key().public_bytes_raw()
    record = sign_record(
        wallet.federation, RecordDraft(Kind.TRANSFER, wallet.compute_epoch(), scope, 0, b"", body, (public_key,)), [key]
    )
    with federation.lock:
        federation.submit(record.encoded)
    return record


def test_a_slot_that_provably_went_to_another_record_is_given_up_and_life_goes_on(wallet, federation, fund, payment):
    program = fund(wallet, 10_000)
    lost = sign(wallet, payment)
    other = sign_elsewhere(wallet, federation, payment, program)
    (outcome,) = resend_pending(wallet)
    assert outcome.entry.state is State.REJECTED
    assert encode_address(AddressKind.RECORD, other.id) in outcome.entry.reason
    following = send_transfer(wallet, wallet.unlock(None), payment)
    assert (following.entry.sequence, following.entry.state) == (1, State.FINAL)
    assert lost.record_id != following.entry.record_id


def test_slots_that_a_second_machine_filled_are_believed_with_a_receipt(wallet, federation, fund, payment):
    program = fund(wallet, 10_000)
    sign_elsewhere(wallet, federation, payment, program)
    assert send_transfer(wallet, wallet.unlock(None), payment).entry.sequence == 1


def test_a_node_can_not_talk_the_wallet_into_a_slot_that_is_not_there(wallet, node, fund, payment):
    program = fund(wallet, 10_000)
    node.overrides = {"next_sequence": 7, "head": encode_address(AddressKind.RECORD, program.id)}
    with pytest.raises(UserError, match="can't prove it"):
        send_transfer(wallet, wallet.unlock(None), payment)
    node.overrides = {"next_sequence": 7}
    with pytest.raises(UserError, match="contradicts itself"):
        send_transfer(wallet, wallet.unlock(None), payment)
    assert wallet.journal.history() == []


def test_a_node_that_lags_behind_the_wallet_gets_no_new_record(wallet, node, fund, payment):
    fund(wallet, 10_000)
    send_transfer(wallet, wallet.unlock(None), payment)
    node.overrides = {"next_sequence": 0, "head": None}
    with pytest.raises(UserError, match="does not yet know"):
        send_transfer(wallet, wallet.unlock(None), payment)
    assert len(wallet.journal.history()) == 1


def test_a_wrong_clock_signs_nothing(wallet, fund, payment):
    fund(wallet, 10_000)
    with (
        Wallet.open(wallet.home, clock=lambda: time.time() + 400 * 24 * 3600) as late,
        pytest.raises(UserError, match="set the clock right"),
    ):
        send_transfer(late, late.unlock(None), payment)
    assert wallet.journal.history() == []


def test_two_commands_at_once_take_two_slots(wallet, federation, fund, payment):
    fund(wallet, 10_000)

    def pay(amount):
        with Wallet.open(wallet.home) as own:
            return send_transfer(own, own.unlock(None), payment._replace(amount=amount)).entry

    with ThreadPoolExecutor(4) as pool:
        entries = list(pool.map(pay, [1000, 2000, 3000, 4000]))
    assert sorted(entry.sequence for entry in entries) == [0, 1, 2, 3]
    assert {entry.state for entry in entries} == {State.FINAL}
    assert get_balance(federation, payment.account) == 10_000


def test_a_node_that_signs_nothing_leaves_the_payment_pending(wallet, node, fund, payment):
    fund(wallet, 10_000)
    node.fault = lambda method, path: (400, None) if path == "records" else None
    outcome = send_transfer(wallet, wallet.unlock(None), payment)
    assert outcome.refusal
    assert [entry.record_id for entry in find_pending(wallet)] == [outcome.entry.record_id]


def test_sending_what_is_final_already_changes_nothing(wallet, federation, fund, payment):
    fund(wallet, 10_000)
    entry = send_transfer(wallet, wallet.unlock(None), payment).entry
    again = submit_entry(wallet, entry)
    assert again.entry == entry
    assert get_balance(federation, payment.account) == 2500
