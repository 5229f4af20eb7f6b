"""Twenty-four words on paper that bring a wallet back: BIP 39, and the keys that grow from them.

The words write down 32 random bytes and 8 bits of checksum. Every key of a wallet is derived from them, so
the paper is a full backup. A derived key carries its purpose and index in its derivation (HKDF, RFC 5869): no
key serves two ends, and whoever learns one learns nothing about the words or the others.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import TYPE_CHECKING

from node.errors import UserError

if TYPE_CHECKING:
    from mnemonic import Mnemonic

WORDS = 24
ENTROPY_BYTES = 32
SEED_BYTES = 32
INDEX_MAX = 2**32 - 1
_NUMBER = re.compile(r"\d{1,2}\.")
DERIVATION_TAG = b"allmende/derive/1"


@cache
def _words() -> Mnemonic:
    """The English list: the only one that every other wallet reads too."""
    from mnemonic import Mnemonic

    return Mnemonic("english")


def new_mnemonic() -> str:
    """Twenty-four fresh words: 256 bits of the system's randomness."""
    return _words().generate(ENTROPY_BYTES * 8)


def check_mnemonic(text: str) -> str:
    """The words in normal form: small letters, one space between them. Numbers before them ("1.") are left out.

    Raises: UserError that names the first unknown word, or says that the count or the checksum is wrong.
    """
    words = [word for word in unicodedata.normalize("NFKD", text).lower().split() if not _NUMBER.fullmatch(word)]
    known = _words().wordlist
    for position, word in enumerate(words[: WORDS * 2], start=1):
        if word not in known:
            raise UserError(f"word {position} of the backup is not in the list: {_suggest(word, known)}")
    if len(words) != WORDS:
        raise UserError(f"a backup has {WORDS} words; these are {len(words)}")
    normal = " ".join(words)
    if not _words().check(normal):
        raise UserError(
            "every word is in the list, but together they are no backup (the checksum is wrong): "
            "look for swapped words and for one word read as another"
        )
    return normal


def _suggest(word: str, known: list[str]) -> str:
    """The unknown word and what it may have been. Four letters tell each word of the list from the rest."""
    from difflib import get_close_matches

    shown = "".join(character for character in word[:24] if character.isprintable())
    alike = [candidate for candidate in known if len(word) >= 4 and candidate[:4] == word[:4]]
    alike = alike or get_close_matches(word[:24], known, n=1)
    return f'"{shown}" (did you mean "{alike[0]}"?)' if alike else f'"{shown}"'


def compute_entropy(mnemonic: str) -> bytes:
    """The 32 bytes that the words write down: what a wallet keeps in its key file.

    Raises: UserError as `check_mnemonic` does.
    """
    return bytes(_words().to_entropy(check_mnemonic(mnemonic)))


def compute_mnemonic(entropy: bytes) -> str:
    """The words for 32 bytes; the inverse of `compute_entropy`."""
    assert len(entropy) == ENTROPY_BYTES, "24 words write down 32 bytes"
    return _words().to_mnemonic(entropy)


def derive_seed(mnemonic: str, purpose: str, index: int = 0) -> bytes:
    """The 32-byte seed of one key: BIP 39's seed (without its extra passphrase), then HKDF-SHA512.

    The purpose is length-prefixed, so ("a", ...) and ("ab", ...) cannot meet. Of purpose "account"
    index 0 is the account's first key, and each rotation takes the next one; no other purpose is in use.

    Raises: UserError as `check_mnemonic` does.
    """
    from cryptography.hazmat.primitives.hashes import SHA512
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    named = purpose.encode("ascii")
    assert 1 <= len(named) <= 64, "a purpose has a name"
    assert 0 <= index <= INDEX_MAX, "an index has 32 bits"
    root = _words().to_seed(check_mnemonic(mnemonic))
    label = DERIVATION_TAG + len(named).to_bytes(1, "big") + named + index.to_bytes(4, "big")
    return HKDF(algorithm=SHA512(), length=SEED_BYTES, salt=None, info=label).derive(root)
