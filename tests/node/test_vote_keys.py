"""Vote keys lie in files of their own, are made before they are told, and are gone once they are erased."""

import pytest

from node.errors import UserError
from node.keystore import Key, Passphrase, load_key, save_key
from node.vote_keys import VoteKeyFiles, VoteKeys, read_passphrase

FIRST = Key(bytes([1]) * 32, "vote")


@pytest.fixture
def first(tmp_path):
    path = tmp_path / "vote.key"
    save_key(path, FIRST.seed, None, purpose="vote")
    return path


def test_a_fresh_key_is_on_disk_before_it_is_told_and_found_again(first, tmp_path):
    keys = VoteKeyFiles(first, tmp_path / "vote-keys", None)
    fresh = keys.get_fresh({FIRST.public_key})
    path = tmp_path / "vote-keys" / f"{fresh.hex()[:16]}.key"
    assert load_key(path, None, purpose="vote").public_key == fresh
    assert path.stat().st_mode & 0o777 == 0o600
    again = VoteKeyFiles(first, tmp_path / "vote-keys", None)
    assert again.get_fresh({FIRST.public_key}) == fresh, "a key that no charter names is not made twice"
    assert again.find(fresh) == keys.find(fresh) is not None


def test_an_erased_key_is_gone_in_memory_and_on_disk(first, tmp_path):
    keys = VoteKeyFiles(first, tmp_path / "vote-keys", None)
    fresh = keys.get_fresh({FIRST.public_key})
    keys.erase({FIRST.public_key})
    assert keys.find(FIRST.public_key) is None
    assert not first.exists()
    again = VoteKeyFiles(first, tmp_path / "vote-keys", None)
    assert again.find(fresh) is not None
    again.erase_all()
    assert again.find(fresh) is None
    assert not list((tmp_path / "vote-keys").iterdir())


def test_new_keys_are_encrypted_where_the_others_are(tmp_path):
    path = tmp_path / "vote.key"
    save_key(path, FIRST.seed, "open sesame", purpose="vote")
    (tmp_path / "passphrase").write_text("open sesame\n")
    (tmp_path / "passphrase").chmod(0o600)
    text = read_passphrase(path, Passphrase(tmp_path / "passphrase"))
    assert text == "open sesame"
    fresh = VoteKeyFiles(path, tmp_path / "vote-keys", text).get_fresh({FIRST.public_key})
    with pytest.raises(UserError, match="encrypted"):
        load_key(tmp_path / "vote-keys" / f"{fresh.hex()[:16]}.key", None)


def test_plain_keys_need_no_passphrase(first):
    assert read_passphrase(first, None) is None


def test_in_memory_nothing_is_written():
    keys = VoteKeys([FIRST])
    fresh = keys.get_fresh({FIRST.public_key})
    assert keys.find(fresh) is not None
    keys.erase({fresh, bytes(32)})
    assert keys.find(fresh) is None
