"""A new key from the same words: who signs from then on, and how a wallet finds the key in force."""

from __future__ import annotations

import io
import json

import pytest

from node.addresses import Kind as AddressKind
from node.addresses import decode_address
from node.cli import run
from node.errors import UserError
from node.mnemonics import derive_seed
from node.wallet import sending
from node.wallet.budget_requests import sign_request
from node.wallet.job_records import load_job
from node.wallet.journal import State
from node.wallet.payments import Payment, plan_transfer, send_transfer, sign_next
from node.wallet.reclaiming import ReclaimState, reclaim_job
from node.wallet.rotating import rotate_key
from node.wallet.unlocking import unlock_account
from node.wallet.wallet import SETTINGS_NAME, Wallet
from protocol.records import Enrol, Kind, Rotate, decode_record
from tests.node.wallet.scripted_donor import FUNDS


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    from node.wallet import unlocking

    monkeypatch.setattr(sending, "RETRY_SECONDS_FIRST", 0.01)
    monkeypatch.setattr(unlocking, "PAUSE_SECONDS_FIRST", 0.01)


@pytest.fixture
def program(wallet, fund):
    return fund(wallet, 10_000)


@pytest.fixture
def payment(receiver):
    return Payment(decode_address(AddressKind.ACCOUNT, receiver), 2500, "")


def get_public(key):
    return key.public_key().public_bytes_raw()


def rotate(wallet):
    outcome = rotate_key(wallet, *wallet.unlock_with_next(None))
    assert outcome.verified is not None
    return outcome


def get_signer(entry, wallet):
    return decode_record(wallet.federation, entry.record).signers[0]


def test_the_next_payment_is_signed_by_the_new_key_and_the_address_stays(wallet, federation, program, payment, words):
    first, second = wallet.unlock_with_next(None)
    address = wallet.address
    rotate(wallet)
    assert federation.replica.ledger.get_key(wallet.account) == get_public(second)
    assert get_public(second) != get_public(first)
    paid = send_transfer(wallet, wallet.unlock(None), payment)
    assert get_signer(paid.entry, wallet) == get_public(second)
    with Wallet.open(wallet.home) as again:
        assert (again.address, again.settings.key_index) == (address, 1)
        assert again.unlock_words(None) == words


def test_a_second_rotation_takes_the_next_index(wallet, federation, program, words):
    rotate(wallet)
    rotate(wallet)
    assert wallet.settings.key_index == 2
    assert federation.replica.ledger.get_key(wallet.account) == get_public(wallet.unlock(None))
    assert wallet.unlock(None).private_bytes_raw() == derive_seed(words, "account", 2)


def test_a_wallet_restored_from_paper_finds_the_key_in_force(
    wallet, node, federation, program, words, tmp_path, monkeypatch, capsys, receiver
):
    rotate(wallet)
    rotate(wallet)
    home = str(tmp_path / "restored")
    monkeypatch.setattr("sys.stdin", io.StringIO(words))
    assert run(["wallet", "restore", "--node", node.url, "--no-passphrase", "--home", home]) == 0
    assert wallet.address in capsys.readouterr().out
    assert run(["wallet", "send", receiver, "1", "-y", "--home", home]) == 0
    with Wallet.open(tmp_path / "restored") as restored:
        assert restored.settings.key_index == 2


def test_another_machine_of_the_wallet_follows(wallet, node, program, words, tmp_path, payment):
    with Wallet.create(tmp_path / "other", node.url, words, None) as other:
        rotate(wallet)
        assert send_transfer(other, other.unlock(None), payment).verified is not None
        assert other.settings.key_index == 1


def test_nothing_is_signed_with_a_key_that_was_rotated_meanwhile(wallet, program, payment):
    stale = wallet.unlock(None)
    rotate(wallet)
    with pytest.raises(UserError, match="another key of this account in force"):
        send_transfer(wallet, stale, payment)
    assert wallet.journal.pending() == []


def test_what_the_old_key_signed_for_the_slot_gives_way(wallet, node, federation, program, payment, words, tmp_path):
    """A second machine signed a payment for the slot after the rotation, and the rotation came first."""
    with Wallet.create(tmp_path / "other", node.url, words, None) as other:
        stale = other.unlock(None)
        rotate(wallet)
        node.overrides = {"key": get_public(stale)}
        entry = sign_next(
            other, stale, Kind.TRANSFER, "late", lambda account: plan_transfer(other, payment, account).body
        )
        node.overrides = {}
        freed = unlock_account(other, other.unlock(None))
        assert freed is not None
        assert freed.record is not None
        assert entry is not None
        assert next(kept.state for kept in other.journal.slot(entry.scope, entry.sequence)) is State.REJECTED
        assert send_transfer(other, other.unlock(None), payment).verified is not None


def test_a_rotation_that_was_interrupted_is_finished_and_none_is_signed_twice(
    wallet, node, federation, program, payment, receiver
):
    node.fault = lambda method, path: "drop" if (method, path) == ("POST", "records") else None
    keys = wallet.unlock_with_next(None)
    with pytest.raises(UserError):
        rotate_key(wallet, keys[0], keys[1], wait_seconds=0.1)
    node.fault = lambda method, path: None
    with pytest.raises(UserError, match="allmende wallet rotate"):
        send_transfer(wallet, wallet.unlock(None), payment)
    rotate(wallet)
    assert wallet.settings.key_index == 1
    assert send_transfer(wallet, wallet.unlock(None), payment).verified is not None


def test_a_command_that_dies_before_it_writes_the_new_key_down_is_made_good(wallet, program, payment, monkeypatch):
    monkeypatch.setattr(Wallet, "note_key", lambda self, index, key: None)
    rotate(wallet)
    monkeypatch.undo()
    assert json.loads((wallet.home / SETTINGS_NAME).read_text())["key_index"] == 0
    assert send_transfer(wallet, wallet.unlock(None), payment).verified is not None
    assert wallet.settings.key_index == 1


def test_a_node_can_not_make_the_wallet_use_a_key_of_its_own(wallet, node, program, payment):
    node.overrides = {"key": bytes(32)}
    with pytest.raises(UserError, match="another key"):
        send_transfer(wallet, wallet.unlock(None), payment)
    assert wallet.settings.key_index == 0


def test_a_contested_slot_is_freed_by_the_key_in_force(wallet, federation, program):
    rotate(wallet)
    freed = unlock_account(wallet, wallet.unlock(None))
    assert freed is not None
    assert freed.record is not None
    assert freed.record.signers == (get_public(wallet.unlock(None)),)


def test_an_enrolment_after_a_rotation_names_the_account_and_is_signed_by_the_new_key(wallet, federation, program):
    rotate(wallet)
    key = wallet.unlock(None)
    request = sign_request(wallet, key, federation.declare("Teachers").id, 1, "")
    with federation.lock:
        record = federation.enrol(request.encode())
        assert federation.receipt(record.id)
    assert (record.body, record.signers[1]) == (Enrol(1, wallet.account), get_public(key))


def test_credits_of_a_job_come_back_under_the_new_key(wallet, federation, running, monkeypatch):
    rotate(wallet)
    reclaim_job(wallet, wallet.unlock(None), running, 0)
    rotate(wallet)
    federation.grace_is_over = True
    assert reclaim_job(wallet, wallet.unlock(None), load_job(wallet, running.job_id), 0).state == ReclaimState.RECLAIMED
    assert sending.read_account(wallet).millicredits == FUNDS


def test_a_file_of_an_earlier_version_has_the_first_key(wallet):
    path = wallet.home / SETTINGS_NAME
    document = json.loads(path.read_text())
    del document["key_index"]
    path.write_text(json.dumps(document))
    with Wallet.open(wallet.home) as again:
        assert again.unlock(None).private_bytes_raw() == wallet.unlock(None).private_bytes_raw()


def test_the_command_asks_first_and_says_which_key_signs(wallet, program, capsys, monkeypatch):
    monkeypatch.setenv("ALLMENDE_HOME", str(wallet.home))
    assert run(["wallet", "rotate", "--dry-run"]) == 0
    assert run(["wallet", "rotate"]) == 1
    capsys.readouterr()
    assert run(["wallet", "rotate", "-y"]) == 0
    assert "key number 2 signs" in capsys.readouterr().out
    assert run(["wallet", "rotate", "-y", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["key_index"] == 2
    assert run(["wallet", "history"]) == 0
    assert "rotate" in capsys.readouterr().out
    entries = wallet.journal.history(2)
    assert all(isinstance(decode_record(wallet.federation, entry.record).body, Rotate) for entry in entries)
