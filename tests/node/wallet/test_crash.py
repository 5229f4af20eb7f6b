"""A wallet that is killed at the worst moment: the next command sends the very same bytes, and pays once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from node.cli import run
from node.wallet.wallet import Wallet

SIGN_AND_DIE = """
import os, pathlib, signal, sys
from node.addresses import Kind as AddressKind, decode_address
from node.wallet.payments import Payment, plan_transfer, sign_next
from node.wallet.wallet import Wallet
from protocol.records import Kind
wallet = Wallet.open(pathlib.Path(sys.argv[1]))
payment = Payment(decode_address(AddressKind.ACCOUNT, sys.argv[2]), 2500, "")
build = lambda account: plan_transfer(wallet, payment, account).body
sign_next(wallet, wallet.unlock(None), Kind.TRANSFER, "pay", build)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def home(wallet, fund):
    fund(wallet, 10_000)
    wallet.close()
    return wallet.home


@pytest.fixture
def get_paid(federation, receiver):
    """Millicredits that arrived at the receiver."""
    from node.addresses import Kind, decode_address

    account = decode_address(Kind.ACCOUNT, receiver)
    return lambda: sum(federation.replica.ledger.balances.get(account, {}).values())


def kill_while_sending(node, environment, home, receiver, moment):
    """`wallet send`, killed when its record arrives at the node; the node answers nobody any more, or forgets it."""
    started: list[subprocess.Popen] = []

    def fault(method, path):
        if path != "records":
            return None
        os.kill(started[0].pid, signal.SIGKILL)
        return moment

    node.fault = fault
    command = [sys.executable, "-m", "node", "wallet", "send", receiver, "2.5", "-y", "--home", str(home)]
    started.append(subprocess.Popen(command, env=environment))
    assert started[0].wait(timeout=60) == -signal.SIGKILL
    node.fault = lambda method, path: None


def kill_before_sending(environment, home, receiver):
    done = subprocess.run([sys.executable, "-c", SIGN_AND_DIE, str(home), receiver], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL


def read_only_pending(home):
    with Wallet.open(home) as wallet:
        (entry,) = wallet.journal.pending()
        return entry.record


@pytest.mark.parametrize("moment", ["drop", "drop after"])
def test_killed_between_send_and_answer_the_same_bytes_go_out_again(
    node, environment, home, receiver, get_paid, moment
):
    kill_while_sending(node, environment, home, receiver, moment)
    record = read_only_pending(home)
    assert run(["wallet", "pending", "--resend", "--home", str(home)]) == 0
    assert set(node.received) == {record}
    assert len(node.received) == 2
    assert get_paid() == 2500


def test_killed_between_journal_and_send_the_same_bytes_go_out(node, environment, home, receiver, get_paid):
    kill_before_sending(environment, home, receiver)
    assert node.received == []
    record = read_only_pending(home)
    assert run(["wallet", "pending", "--resend", "--home", str(home)]) == 0
    assert node.received == [record]
    assert get_paid() == 2500


def test_the_same_command_again_finishes_the_payment_and_does_not_pay_twice(
    node, environment, home, receiver, get_paid, capsys
):
    kill_before_sending(environment, home, receiver)
    record = read_only_pending(home)
    assert run(["wallet", "send", receiver, "2.5", "-y", "--home", str(home)]) == 0
    assert "not a second time" in capsys.readouterr().err
    assert node.received == [record]
    assert get_paid() == 2500


def test_another_payment_afterwards_finishes_the_first_one_first(node, environment, home, receiver, get_paid):
    kill_while_sending(node, environment, home, receiver, "drop")
    record = read_only_pending(home)
    assert run(["wallet", "send", receiver, "1", "-y", "--home", str(home)]) == 0
    assert node.received[:2] == [record, record]
    assert len(node.received) == 3
    assert get_paid() == 3500
