"""Receipts on files: checked without any network, and worth nothing when a byte differs."""

from __future__ import annotations

import io
import json
import socket

import pytest

from node.addresses import Kind as AddressKind
from node.addresses import decode_address, encode_address
from node.cli import run
from node.wallet.payments import Payment, send_transfer


@pytest.fixture
def payment_entry(wallet, fund, receiver, monkeypatch):
    monkeypatch.setenv("ALLMENDE_HOME", str(wallet.home))
    monkeypatch.setattr("sys.stdin", io.StringIO())
    fund(wallet, 10_000)
    payment = Payment(decode_address(AddressKind.ACCOUNT, receiver), 2500, "thank you")
    return send_transfer(wallet, wallet.unlock(None), payment).entry


@pytest.fixture
def receipt_file(payment_entry, tmp_path):
    path = tmp_path / "payment.receipt"
    path.write_bytes(payment_entry.receipt)
    return path


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a receipt is checked offline")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


def test_a_receipt_is_checked_offline_with_the_charter_alone(
    receipt_file, founding_file, wallet, receiver, no_network, tmp_path, capsys
):
    command = ["receipt", "verify", str(receipt_file), "--charter", str(founding_file), "--home", str(tmp_path / "no")]
    assert run([*command, "--json"]) == 0
    proven = json.loads(capsys.readouterr().out)
    assert proven["record"]["kind"] == "transfer"
    assert proven["record"]["from"] == wallet.address
    assert [(part["to"], part["millicredits"]) for part in proven["record"]["movements"]] == [(receiver, 2500)]
    assert proven["members"] == [{"number": 1, "name": "Hochschule"}]
    assert proven["attempt"] == 0
    assert run(command) == 0
    said = capsys.readouterr().out
    assert "Proven: final in the federation Test" in said
    assert f"2.500 credits ({encode_address(AddressKind.PROGRAM, wallet_program(proven))}" in said


def wallet_program(proven):
    return decode_address(AddressKind.PROGRAM, proven["record"]["movements"][0]["program"])


def test_the_wallets_own_charter_serves_too(receipt_file, no_network):
    assert run(["receipt", "verify", str(receipt_file)]) == 0


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: b"", lambda content: content + b"x"])
def test_a_damaged_receipt_proves_nothing(receipt_file, capsys, damage):
    receipt_file.write_bytes(damage(receipt_file.read_bytes()))
    assert run(["receipt", "verify", str(receipt_file)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "proves nothing" in said.err
    assert said.err.count("\n") == 1


def test_a_receipt_proves_nothing_in_another_federation(receipt_file, tmp_path, make_federation, capsys):
    other = tmp_path / "other"
    other.write_bytes(make_federation("Stranger", b"o" * 16).founded.encode())
    assert run(["receipt", "verify", str(receipt_file), "--charter", str(other)]) == 1
    assert "Stranger" in capsys.readouterr().err


def test_an_expected_federation_is_held_to(receipt_file, wallet, founding_file, make_federation, capsys):
    command = ["receipt", "verify", str(receipt_file), "--charter", str(founding_file), "--federation"]
    assert run([*command, wallet.federation_address]) == 0
    other = encode_address(AddressKind.FEDERATION, make_federation(nonce=b"o" * 16).charter.federation)
    assert run([*command, other]) == 1
    assert "was expected" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"{}", b'{"founded": 1}', b'{"founded": "AA=="}', b"\xff", b"{" * 10])
def test_a_file_that_is_no_charter_is_one_clear_error(receipt_file, tmp_path, content, capsys):
    path = tmp_path / "charter"
    path.write_bytes(content)
    assert run(["receipt", "verify", str(receipt_file), "--charter", str(path)]) == 1
    assert "founding document" in capsys.readouterr().err


def test_a_receipt_is_fetched_checked_and_written(payment_entry, wallet, node, tmp_path, federation, capsys):
    out = tmp_path / "out.receipt"
    record = encode_address(AddressKind.RECORD, payment_entry.record_id)
    assert run(["receipt", "get", record, "--out", str(out)]) == 0
    assert out.read_bytes() == payment_entry.receipt
    assert run(["receipt", "verify", str(out)]) == 0


def test_the_receipt_of_a_record_of_others_is_fetched_from_the_node(payment_entry, wallet, federation, tmp_path):
    with federation.lock:
        record = federation.declare("Others")
    out = tmp_path / "out.receipt"
    assert run(["receipt", "get", encode_address(AddressKind.RECORD, record.id), "--out", str(out)]) == 0
    assert out.read_bytes() == federation.receipt(record.id)


def test_an_unknown_record_is_one_clear_error(payment_entry, tmp_path, capsys):
    out = tmp_path / "out.receipt"
    assert run(["receipt", "get", encode_address(AddressKind.RECORD, b"x" * 32), "--out", str(out)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not out.exists()
