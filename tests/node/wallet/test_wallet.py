"""A wallet on disk: what it pins, what it refuses, and who has its turn."""

from __future__ import annotations

import json
import stat
import subprocess
import sys

import pytest

from node.errors import UserError
from node.mnemonics import derive_seed
from node.wallet.wallet import KEY_NAME, SETTINGS_NAME, Wallet
from protocol.identifiers import compute_account_id


def test_a_new_wallet_knows_its_address_and_pins_the_charter(wallet, federation):
    with Wallet.open(wallet.home) as again:
        key = again.unlock(None)
    assert again.federation == federation.charter.federation
    assert again.charter.encoded == federation.charter.encoded
    assert again.account == compute_account_id(again.federation, key.public_key().public_bytes_raw())


def test_the_words_come_back_with_the_passphrase_alone(tmp_path, node, words):
    Wallet.create(tmp_path / "home", node.url, words, "correct horse").close()
    wallet = Wallet.open(tmp_path / "home")
    assert wallet.unlock_words("correct horse") == words
    with pytest.raises(UserError, match="wrong passphrase"):
        wallet.unlock("wrong")


def test_nothing_secret_stands_in_the_clear(tmp_path, node, words):
    with Wallet.create(tmp_path / "home", node.url, words, "correct horse") as wallet:
        seed = derive_seed(wallet.unlock_words("correct horse"), "account")
    for path in (tmp_path / "home").iterdir():
        content = path.read_bytes()
        assert words.split()[0].encode() not in content
        assert seed.hex().encode() not in content
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700


def test_a_second_wallet_in_one_place_is_refused_and_the_first_stays(wallet, node, other_words):
    before = (wallet.home / KEY_NAME).read_bytes()
    with pytest.raises(UserError, match="there is a wallet"):
        Wallet.create(wallet.home, node.url, other_words, None)
    assert (wallet.home / KEY_NAME).read_bytes() == before


def test_an_unexpected_federation_is_refused_before_anything_is_written(tmp_path, node, words, make_federation):
    from node.addresses import Kind, encode_address

    expected = encode_address(Kind.FEDERATION, make_federation(nonce=b"o" * 16).charter.federation)
    with pytest.raises(UserError, match=expected):
        Wallet.create(tmp_path / "home", node.url, words, None, federation=expected)
    assert not (tmp_path / "home").exists()


def test_a_node_of_another_federation_is_refused_later_and_both_are_named(wallet, start_node, make_federation):
    from node.addresses import Kind, encode_address

    stranger = make_federation("Stranger", b"o" * 16)
    found = encode_address(Kind.FEDERATION, stranger.charter.federation)
    with (
        Wallet.open(wallet.home, start_node(stranger).url) as moved,
        pytest.raises(UserError, match=f"{found}.*{wallet.federation_address}"),
    ):
        moved.client


def test_a_charter_that_its_founders_did_not_sign_is_refused(tmp_path, node, words, federation):
    signature = federation.founded.signatures[0][1]
    federation.founded = federation.founded._replace(signatures=((1, bytes(64 - len(signature[:1])) + signature[:1]),))
    with pytest.raises(UserError, match="does not hold"):
        Wallet.create(tmp_path / "home", node.url, words, None)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 1}', b"\xff", b'{"version": true}'])
def test_a_damaged_file_is_one_clear_error(wallet, content):
    (wallet.home / SETTINGS_NAME).write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        Wallet.open(wallet.home)


def test_a_changed_charter_in_the_file_is_noticed(wallet, make_federation):
    from base64 import b64encode

    document = json.loads((wallet.home / SETTINGS_NAME).read_text())
    stranger = make_federation("Stranger", b"o" * 16).founded.encode()
    (wallet.home / SETTINGS_NAME).write_text(json.dumps(document | {"founded": b64encode(stranger).decode()}))
    with pytest.raises(UserError, match="another federation"):
        Wallet.open(wallet.home).charter


def test_the_key_of_another_wallet_is_noticed(wallet, tmp_path, node, other_words):
    with Wallet.create(tmp_path / "other", node.url, other_words, None) as other:
        (wallet.home / KEY_NAME).write_bytes((other.home / KEY_NAME).read_bytes())
    with pytest.raises(UserError, match="two different wallets"):
        wallet.unlock(None)


def test_one_command_signs_at_a_time_and_a_dead_one_blocks_nobody(wallet, environment):
    program = (
        "import sys, pathlib; from node.wallet.wallet import Wallet\n"
        "with Wallet.open(pathlib.Path(sys.argv[1])).lock():\n    print('locked', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(wallet.home)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match="another command"), wallet.lock(seconds=0):
            pass
        child.kill()
        child.wait()
        with wallet.lock(seconds=5):
            pass
