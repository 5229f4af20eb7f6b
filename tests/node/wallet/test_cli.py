"""The commands of a wallet, as a person and as a program uses them."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest

from node.addresses import Kind as AddressKind
from node.addresses import decode_address, encode_address
from node.cli import run
from node.wallet.payments import Payment, send_transfer


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The default home of this test's commands, without a terminal and without settings of the machine."""
    monkeypatch.setenv("ALLMENDE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ALLMENDE_NODE", raising=False)
    monkeypatch.delenv("ALLMENDE_PASSPHRASE", raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    return tmp_path / "home"


@pytest.fixture
def ask(home, capsys):
    """Run a command that must succeed; returns its JSON."""

    def call(*arguments):
        assert run([*arguments, "--json"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    return call


@pytest.fixture
def fail(home, capsys):
    """Run a command that must fail; returns the exit status and the one line that it says."""

    def call(*arguments):
        status = run(list(arguments))
        said = capsys.readouterr().err.strip()
        assert said.startswith("Error: ")
        assert "\n" not in said
        return status, said

    return call


def type_words(monkeypatch, words):
    monkeypatch.setattr("sys.stdin", io.StringIO(words + "\n"))


def test_a_new_wallet_shows_its_words_once_and_they_bring_it_back(ask, node, tmp_path, monkeypatch):
    made = ask("wallet", "init", "--node", node.url, "--no-passphrase")
    type_words(monkeypatch, made["words"])
    assert ask("wallet", "backup", "verify") == {"address": made["address"], "matches": True}
    type_words(monkeypatch, made["words"].upper())
    elsewhere = str(tmp_path / "elsewhere")
    restored = ask("wallet", "restore", "--node", node.url, "--no-passphrase", "--home", elsewhere)
    assert restored["address"] == made["address"]
    assert ask("wallet", "backup")["words"] == made["words"]


def test_the_place_of_a_wallet_may_stand_on_either_side_of_backup_verify(ask, node, tmp_path, monkeypatch):
    elsewhere = ["--home", str(tmp_path / "elsewhere")]
    made = ask("wallet", "init", "--node", node.url, "--no-passphrase", *elsewhere)
    for words in (["wallet", "backup", *elsewhere, "verify"], ["wallet", "backup", "verify", *elsewhere]):
        type_words(monkeypatch, made["words"])
        assert ask(*words) == {"address": made["address"], "matches": True}


def test_the_words_of_another_wallet_are_told_apart(wallet, fail, other_words, monkeypatch):
    type_words(monkeypatch, other_words)
    status, said = fail("wallet", "backup", "verify")
    assert (status, "another wallet" in said) == (1, True)


def test_a_passphrase_may_come_from_a_file_or_the_environment(ask, fail, node, tmp_path, monkeypatch):
    file = tmp_path / "passphrase"
    file.write_text("correct horse\n")
    file.chmod(0o600)
    made = ask("wallet", "init", "--node", node.url, "--passphrase-file", str(file))
    monkeypatch.setenv("ALLMENDE_PASSPHRASE", "correct horse")
    assert ask("wallet", "backup")["words"] == made["words"]
    monkeypatch.setenv("ALLMENDE_PASSPHRASE", "wrong")
    assert "wrong passphrase" in fail("wallet", "backup")[1]


def test_without_a_wallet_a_command_says_how_to_make_one(fail):
    status, said = fail("wallet", "balance")
    assert (status, "wallet init" in said) == (1, True)


def test_a_node_that_does_not_answer_is_exit_status_3(wallet, fail):
    assert fail("wallet", "balance", "--node", "http://127.0.0.1:9")[0] == 3


def test_a_balance_names_each_program_and_when_its_credits_end(wallet, ask, fund, capsys):
    fund(wallet, 10_000, "Students")
    answer = ask("wallet", "balance")
    assert (answer["address"], answer["millicredits"]) == (wallet.address, 10_000)
    (lot,) = answer["lots"]
    assert (lot["program_name"], lot["millicredits"], lot["is_expired"]) == ("Students", 10_000, False)
    assert lot["expires_seconds"] == wallet.compute_epoch_end(lot["expiry_epoch"])
    run(["wallet", "balance"])
    assert "10.000 credits\n          10.000  Students, until 20" in capsys.readouterr().out


def test_a_balance_imports_nothing_heavy(wallet, environment):
    program = (
        "import sys; from node.cli import run; status = run(['wallet', 'balance'])\n"
        "heavy = {'trio', 'cryptography', 'libp2p', 'litestar', 'peewee', 'hypercorn'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_address_can_be_shown_as_a_qr_code(wallet, home, capsys):
    assert run(["wallet", "address", "--qr"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == wallet.address
    assert len(lines) > 15


def test_a_payment_is_told_with_its_proof(wallet, ask, fund, receiver, federation):
    fund(wallet, 10_000)
    planned = ask("wallet", "send", receiver, "2.5", "--memo", "hi", "--dry-run")
    assert (planned["dry_run"], planned["millicredits"]) == (True, 2500)
    assert wallet.journal.history() == []
    paid = ask("wallet", "send", receiver, "2.5", "--memo", "hi", "-y")
    assert (paid["state"], paid["members"], paid["was_pending"]) == ("final", [1], False)
    assert ask("wallet", "pending") == {"pending": []}


def test_nothing_is_paid_without_a_yes(wallet, fail, fund, receiver):
    fund(wallet, 10_000)
    assert "needs -y" in fail("wallet", "send", receiver, "2.5")[1]
    assert wallet.journal.history() == []


@pytest.mark.parametrize(
    ("to", "amount", "message"),
    [("alm1nonsense", "1", "typing error"), (None, "1.0001", "no amount"), (None, "-1", None), (None, "99", "needed")],
)
def test_a_mistyped_payment_is_one_clear_error(wallet, home, fund, receiver, capsys, to, amount, message):
    fund(wallet, 10_000)
    assert run(["wallet", "send", "-y", to or receiver, amount]) in (1, 2)
    assert message is None or message in capsys.readouterr().err
    assert wallet.journal.history() == []


def test_a_refusal_is_exit_status_4_and_the_payment_stays_pending(wallet, fail, ask, node, fund, receiver):
    fund(wallet, 10_000)
    node.fault = lambda method, path: (409, "POLICY") if path == "records" else None
    status, said = fail("wallet", "send", receiver, "1", "-y")
    assert (status, "It stays pending, because other members may have taken it" in said) == (4, True)
    (entry,) = ask("wallet", "pending")["pending"]
    assert entry["state"] == "signed"


def test_what_is_not_final_in_time_is_exit_status_3(wallet, fail, fund, receiver, federation, monkeypatch):
    fund(wallet, 10_000)
    monkeypatch.setattr(federation, "submit", lambda encoded: wait(federation, encoded))
    status, said = fail("wallet", "send", receiver, "1", "-y", "--wait", "0")
    assert (status, "signed and kept" in said) == (3, True)
    assert run(["wallet", "pending", "--resend", "--wait", "0"]) == 3


def wait(federation, encoded):
    from protocol.records import decode_record

    return decode_record(federation.charter.federation, encoded)


def test_the_history_tells_what_the_wallet_has_proven_from_what_the_node_says(wallet, ask, fund, receiver):
    fund(wallet, 10_000)
    send_transfer(
        wallet, wallet.unlock(None), Payment(decode_address(AddressKind.ACCOUNT, receiver), 2500, "\x1b[2Jhi")
    )
    records = ask("wallet", "history")["records"]
    told = [(record["kind"], record["change_millicredits"], record["is_proven"]) for record in records]
    assert told == [("transfer", -2500, True), ("grant", 10_000, False), ("enrol", 0, False)]
    assert [record["is_proven"] for record in ask("wallet", "history", "--verify")["records"]] == [True] * 3


def test_a_memo_can_not_rewrite_the_terminal(wallet, home, fund, receiver, capsys):
    fund(wallet, 10_000)
    account = decode_address(AddressKind.ACCOUNT, receiver)
    send_transfer(wallet, wallet.unlock(None), Payment(account, 2500, "\x1b[2Jhi"))
    assert run(["wallet", "history"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_without_the_node_the_history_is_the_wallets_own(wallet, home, node, fund, receiver, capsys):
    fund(wallet, 10_000)
    account = decode_address(AddressKind.ACCOUNT, receiver)
    send_transfer(wallet, wallet.unlock(None), Payment(account, 2500, ""))
    assert run(["wallet", "history", "--json", "--node", "http://127.0.0.1:9"]) == 0
    said = capsys.readouterr()
    answer = json.loads(said.out)
    assert answer["is_from_node"] is False
    assert [record["change_millicredits"] for record in answer["records"]] == [-2500]
    assert "does not answer" in said.err


def test_a_journal_that_was_left_behind_is_taken_up_by_a_restore(
    wallet, ask, node, fund, receiver, words, federation, monkeypatch
):
    fund(wallet, 10_000)
    node.fault = lambda method, path: (409, "POLICY") if path == "records" else None
    account = decode_address(AddressKind.ACCOUNT, receiver)
    signed = send_transfer(wallet, wallet.unlock(None), Payment(account, 2500, "")).entry
    wallet.close()
    for name in ("wallet.json", "wallet.key"):
        (wallet.home / name).unlink()
    type_words(monkeypatch, words)
    restored = ask("wallet", "restore", "--node", node.url, "--no-passphrase")
    assert restored["final"] == encode_address(AddressKind.RECORD, signed.record_id)
    assert federation.replica.ledger.balances[account]
    assert ask("wallet", "pending") == {"pending": []}


def test_a_restored_wallet_goes_on_where_the_old_one_stopped(wallet, ask, fund, receiver, words, monkeypatch):
    node_url = wallet.node_url
    fund(wallet, 10_000)
    ask("wallet", "send", receiver, "1", "-y")
    new_home = wallet.home.with_name("new")
    type_words(monkeypatch, words)
    restored = ask("wallet", "restore", "--node", node_url, "--no-passphrase", "--home", str(new_home))
    assert (restored["slot"], restored["attempts"]) == (1, 1)
    assert ask("wallet", "send", receiver, "1", "-y", "--home", str(new_home))["sequence"] == 2


def test_an_unlock_by_hand_says_what_it_found_and_what_became_final(wallet, ask, node, fund, receiver):
    assert ask("wallet", "unlock") == {
        "claims": 0, "attempts_before": 0, "slot": None, "final": None, "attempts": 0
    }  # fmt: skip
    fund(wallet, 10_000)
    node.fault = lambda method, path: (409, "POLICY") if path == "records" else None
    account = decode_address(AddressKind.ACCOUNT, receiver)
    signed = send_transfer(wallet, wallet.unlock(None), Payment(account, 2500, "")).entry
    freed = ask("wallet", "unlock", "-y")
    assert (freed["slot"], freed["final"]) == (0, encode_address(AddressKind.RECORD, signed.record_id))


def test_a_node_of_another_federation_is_refused_by_every_command(wallet, fail, start_node, make_federation, receiver):
    url = start_node(make_federation("Stranger", b"o" * 16)).url
    for verb in (["balance"], ["history"], ["send", receiver, "1", "-y"]):
        assert "serves the federation" in fail("wallet", *verb, "--node", url)[1]
