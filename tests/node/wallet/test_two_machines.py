"""One wallet on two machines: whatever both sign at once, the account goes on and every payment is made once."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from node.wallet.journal import State
from node.wallet.payments import Payment, plan_transfer, send_transfer, sign_next
from node.wallet.sending import find_pending
from node.wallet.unlocking import is_fence, unlock_account
from node.wallet.wallet import Wallet
from protocol.records import Kind, account_scope
from tests.node.wallet.served_federation import serve_federation

ROUNDS = 10


@pytest.fixture
def federation(words, tmp_path):
    with serve_federation(words, tmp_path) as federation:
        yield federation


@pytest.fixture
def machines(federation, words, tmp_path):
    """Two homes of one wallet, each at a node of its own."""
    wallets = [
        Wallet.create(tmp_path / name, url, words, None)
        for name, url in (("left", federation.urls[0]), ("right", federation.urls[2]))
    ]
    yield wallets
    for wallet in wallets:
        wallet.close()


def get_receiver(machine, number):
    return bytes([machine + 1, number]) * 16


def pay(wallet, machine, number):
    payment = Payment(get_receiver(machine, number), 1000 + number, "")
    return send_transfer(wallet, wallet.unlock(None), payment)


def read_paid(federation, machine, number):
    """Millicredits that arrived at one payment's receiver; all members agree."""
    receiver = get_receiver(machine, number)
    deadline = time.monotonic() + 20
    while True:
        amounts = federation.call(
            lambda: {sum(member.replica.ledger.balances.get(receiver, {}).values()) for member in federation.members}
        )
        if len(amounts) == 1:
            return amounts.pop()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_two_machines_that_pay_at_once_again_and_again_both_go_on_and_nothing_is_paid_twice(federation, machines):
    start = threading.Barrier(2)

    def run(machine):
        outcomes = []
        for number in range(ROUNDS):
            start.wait(timeout=120)
            outcomes.append(pay(machines[machine], machine, number))
        return outcomes

    with ThreadPoolExecutor(2) as pool:
        told = list(pool.map(run, range(2)))
    assert all(outcome.verified is not None for outcomes in told for outcome in outcomes)
    for machine in range(2):
        assert [read_paid(federation, machine, number) for number in range(ROUNDS)] == list(range(1000, 1000 + ROUNDS))
        assert find_pending(machines[machine]) == []
    for machine in range(2):
        assert pay(machines[machine], machine, ROUNDS).verified is not None
    (sequence,) = {machine.client.get_account(machine.address).next_sequence for machine in machines[1:]}
    assert sequence == 2 * (ROUNDS + 1), "each payment took one slot, and nothing else was signed"


def test_a_slot_that_is_split_for_sure_is_freed_by_both_machines_at_once(federation, machines):
    federation.is_together = False
    timer = threading.Timer(1.5, federation.join)
    timer.start()
    with ThreadPoolExecutor(2) as pool:
        left, right = pool.map(lambda machine: pay(machines[machine], machine, 7), range(2))
    timer.join()
    assert left.entry.state is right.entry.state is State.FINAL
    assert {left.entry.sequence, right.entry.sequence} == {0, 1}
    assert [read_paid(federation, machine, 7) for machine in range(2)] == [1007, 1007]
    attempts = [entry.attempt for wallet in machines for entry in wallet.journal.slot(left.entry.scope, 0)]
    assert max(attempts) >= 1, "no record could be final without an unlock"


def test_what_the_old_machine_signed_and_never_sent_can_not_become_final_after_a_restore(federation, machines):
    old, new = machines
    payment = Payment(get_receiver(0, 1), 1001, "")
    entry = sign_next(
        old, old.unlock(None), Kind.TRANSFER, "a payment", lambda account: plan_transfer(old, payment, account).body
    )
    assert entry is not None
    freed = unlock_account(new, new.unlock(None))
    assert freed is not None
    assert freed.record is not None
    assert is_fence(freed.record)
    outcome = send_transfer(old, old.unlock(None), payment, entry=entry)
    assert old.journal.find(entry.record_id).state is State.REJECTED
    assert (outcome.entry.sequence, outcome.entry.state) == (1, State.FINAL)
    assert read_paid(federation, 0, 1) == 1001
    assert [held.state for held in new.journal.slot(account_scope(new.account), 0)] == [State.FINAL]
