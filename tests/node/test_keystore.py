"""Keys on disk: what opens them, and what never does."""

from __future__ import annotations

import json
import os
import pty
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.errors import UserError
from node.files import write_atomically
from node.keystore import (
    STANDARD_COST,
    Cost,
    Key,
    Passphrase,
    load_key,
    new_key,
    save_key,
)

SEED = bytes(range(32))
CHEAP = Cost(memory_kibibytes=8, iterations=1, lanes=1)
SAME_DIRECTORY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "wallet.key"


@pytest.fixture(autouse=True)
def _no_passphrase_around(monkeypatch):
    monkeypatch.delenv("ALLMENDE_PASSPHRASE", raising=False)


def test_a_key_opens_with_its_passphrase_at_the_standard_cost(path):
    save_key(path, SEED, "correct horse", purpose="wallet")
    assert load_key(path, "correct horse", purpose="wallet") == Key(SEED, "wallet")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SEED.hex() not in path.read_text()
    assert json.loads(path.read_text())["encryption"]["memory_kibibytes"] == STANDARD_COST.memory_kibibytes


def test_a_wrong_passphrase_is_refused_in_one_line(path):
    save_key(path, SEED, "right", cost=CHEAP)
    with pytest.raises(UserError, match="wrong passphrase") as caught:
        load_key(path, "wrong")
    assert "\n" not in str(caught.value)


def test_two_ways_of_typing_one_letter_are_one_passphrase(path):
    save_key(path, SEED, "caf\u00e9", cost=CHEAP)
    assert load_key(path, "cafe\u0301").seed == SEED


def test_a_plain_key_says_that_it_is_plain_and_asks_for_nothing(path):
    save_key(path, SEED, None, purpose="vote")
    assert load_key(path, Passphrase()) == load_key(path, None) == Key(SEED, "vote")
    assert "not encrypted" in json.loads(path.read_text())["warning"]


def test_a_key_that_others_may_read_is_refused(path):
    save_key(path, SEED, None)
    path.chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        load_key(path, None)


def test_a_key_serves_its_purpose_only(path):
    save_key(path, SEED, None, purpose="vote")
    with pytest.raises(UserError, match="holds a key for vote; one for member is needed"):
        load_key(path, None, purpose="member")


def test_an_existing_key_is_never_overwritten_by_accident(path):
    save_key(path, SEED, "old", cost=CHEAP)
    with pytest.raises(UserError, match="exists already"):
        save_key(path, bytes(32), "new", cost=CHEAP)
    assert load_key(path, "old").seed == SEED
    save_key(path, SEED, "new", cost=CHEAP, replace=True)
    assert load_key(path, "new").seed == SEED


def test_a_file_cut_anywhere_is_an_error_and_no_traceback(path):
    save_key(path, SEED, "x", cost=CHEAP)
    whole = path.read_bytes()
    for length in range(len(whole) - 2):
        write_atomically(path, whole[:length])
        with pytest.raises(UserError):
            load_key(path, "x")


@SAME_DIRECTORY
@given(data=st.data())
def test_a_changed_byte_never_brings_out_another_key(path, data):
    save_key(path, SEED, "x", cost=CHEAP, replace=True)
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] = data.draw(st.integers(0, 255))
    write_atomically(path, bytes(content))
    with suppress(UserError):
        assert load_key(path, "x") == Key(SEED)  # white space between the values may differ


def test_the_header_cannot_be_exchanged_for_another_purpose(path):
    save_key(path, SEED, "x", purpose="vote", cost=CHEAP)
    write_atomically(path, path.read_bytes().replace(b'"vote"', b'"member"'))
    with pytest.raises(UserError, match="wrong passphrase"):
        load_key(path, "x")


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("memory_kibibytes", 1 << 40, "too much work"),
        ("iterations", 10**9, "too much work"),
        ("lanes", 1000, "too much work"),
        ("lanes", 16, "damaged"),  # with 8 KiB: Argon2 wants 8 a lane
        ("memory_kibibytes", True, "damaged"),
        ("memory_kibibytes", -1, "damaged"),
        ("iterations", 1.0, "damaged"),
        ("kdf", "scrypt", "damaged"),
        ("cipher", "none", "damaged"),
        ("salt", "", "damaged"),
        ("nonce", "00", "damaged"),
        ("nonce", None, "damaged"),
    ],
)
def test_parameters_that_would_eat_the_machine_or_mean_nothing_are_refused(path, name, value, complaint):
    save_key(path, SEED, "x", cost=CHEAP)
    document = json.loads(path.read_text())
    document["encryption"][name] = value
    write_atomically(path, json.dumps(document).encode())
    with pytest.raises(UserError, match=complaint):
        load_key(path, "x")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "damaged"),
        (b"\xff\xfe", "damaged"),
        (b"[" * 100_000, "damaged"),
        (b"[]", "not a key file"),
        (b'{"format": "other"}', "not a key file"),
        (b'{"format": "allmende key"}', "damaged"),
        (b'{"format": "allmende key", "version": 2}', "update allmende"),
        (b'{"format": "allmende key", "version": 1}', "damaged"),
        (b'{"format": "allmende key", "version": 1, "purpose": "vote"}', "damaged"),
        (b'{"format": "allmende key", "version": 1, "purpose": "vote", "encryption": null}', "damaged"),
        (b'{"format": "allmende key", "version": 1, "purpose": "../x", "encryption": null}', "damaged"),
    ],
)
def test_what_is_no_key_file_is_said_to_be_none(path, content, complaint):
    write_atomically(path, content)
    with pytest.raises(UserError, match=complaint):
        load_key(path, "x")


def test_a_passphrase_comes_from_a_file_before_the_environment(path, tmp_path, monkeypatch):
    save_key(path, SEED, "from the file", cost=CHEAP)
    write_atomically(tmp_path / "passphrase", b"from the file\n")
    monkeypatch.setenv("ALLMENDE_PASSPHRASE", "from the environment")
    assert load_key(path, Passphrase(tmp_path / "passphrase")).seed == SEED
    assert Passphrase().read("x") == Passphrase().choose("x") == "from the environment"


def test_an_empty_or_open_passphrase_file_and_an_empty_variable_are_refused(tmp_path, monkeypatch):
    write_atomically(tmp_path / "empty", b"\n")
    write_atomically(tmp_path / "open", b"secret\n", 0o644)
    with pytest.raises(UserError, match="is empty"):
        Passphrase(tmp_path / "empty").read("x")
    with pytest.raises(UserError, match="chmod 600"):
        Passphrase(tmp_path / "open").read("x")
    monkeypatch.setenv("ALLMENDE_PASSPHRASE", "")
    with pytest.raises(UserError, match="is set, but empty"):
        Passphrase().read("x")


def test_without_a_terminal_it_is_said_where_to_put_the_passphrase(path, monkeypatch):
    save_key(path, SEED, "x", cost=CHEAP)
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        with pytest.raises(UserError, match="set ALLMENDE_PASSPHRASE or give --passphrase-file"):
            load_key(path, Passphrase())
    with pytest.raises(UserError, match="no passphrase was given"):
        load_key(path, None)


def ask_at_a_terminal(program: str, *answers: str) -> str:
    """What a Python program prints when a person at a terminal types these answers, one a question."""
    terminal, far_side = pty.openpty()
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=far_side, stdout=far_side, stderr=far_side, start_new_session=True):
        os.close(far_side)
        heard = b""
        for answer in answers:
            question_end = len(heard)
            while b": " not in heard[question_end:]:
                heard += os.read(terminal, 1024)
            os.write(terminal, answer.encode() + b"\n")
        with suppress(OSError):  # how Linux says that the program has closed its side
            while more := os.read(terminal, 1024):
                heard += more
    os.close(terminal)
    return heard.decode()


ASK = """
from node.errors import UserError
from node.keystore import Passphrase
try:
    print("got", Passphrase().{verb}("the key").upper())
except UserError as error:
    print("Error", error)
"""


def test_a_person_is_asked_without_an_echo_and_twice_for_a_new_passphrase():
    heard = ask_at_a_terminal(ASK.format(verb="read"), "hush")
    assert "got HUSH" in heard
    assert "hush" not in heard
    assert "got HUSH" in ask_at_a_terminal(ASK.format(verb="choose"), "hush", "hush")
    assert "the two passphrases differ" in ask_at_a_terminal(ASK.format(verb="choose"), "hush", "hash")
    assert "protects nothing" in ask_at_a_terminal(ASK.format(verb="choose"), "")


def test_signatures_verify_and_the_seed_is_never_shown():
    key = new_key("member")
    Ed25519PublicKey.from_public_bytes(key.public_key).verify(key.sign(b"m"), b"m")
    assert key.seed.hex() not in repr(key)
    assert repr(key) == "Key(purpose='member')"


@pytest.mark.parametrize("purpose", ["seal", "wallet"])
def test_a_key_that_is_no_signing_key_signs_nothing(purpose):
    with pytest.raises(AssertionError):
        Key(SEED, purpose).sign(b"m")


def test_the_first_key_of_rfc_8032_gives_its_public_key():
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    assert Key(seed).public_key.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"


def test_a_missing_key_file_is_named():
    with pytest.raises(UserError, match=r"/nowhere/member\.key does not exist"):
        load_key(Path("/nowhere/member.key"), None)
