"""A secret key on disk: encrypted by a passphrase, or in the clear on a server; one purpose for each key.

A key file is JSON. Its header (purpose, cost of the passphrase, cipher) is readable and authenticated: the
32-byte seed is encrypted by ChaCha20-Poly1305 under a key that Argon2id (RFC 9106) makes from the passphrase,
with the header as associated data. Whoever changes a byte of the header only makes the file unreadable.
"""

from __future__ import annotations

import json
import os
import re
import sys
import unicodedata
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from node.errors import UserError
from node.files import read_private, write_atomically

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

SEED_BYTES = 32
SALT_BYTES = 16
NONCE_BYTES = 12
FORMAT = "allmende key"
VERSION = 1
PASSPHRASE_VARIABLE = "ALLMENDE_PASSPHRASE"
PASSPHRASE_CHARACTERS_MAX = 1024
PLAIN_WARNING = "This key is not encrypted: whoever reads this file can sign with it."
PURPOSE_FORM = re.compile(r"[a-z][a-z-]{0,31}")
NEVER_SIGN = frozenset({"seal", "wallet"})  # an X25519 key, and the entropy that a wallet's keys grow from


@dataclass(frozen=True)
class Cost:
    """What one guess at a passphrase costs: the parameters of Argon2id."""

    memory_kibibytes: int
    iterations: int
    lanes: int


# The second choice of RFC 9106 (4): 64 MiB, three passes, four lanes: 0.1 to 0.2 s, also on a small machine.
STANDARD_COST = Cost(memory_kibibytes=64 * 1024, iterations=3, lanes=4)
# The dearest file that is opened. A file that names more is a trap that eats the memory, not a stronger key.
COST_MAX = Cost(memory_kibibytes=1024 * 1024, iterations=16, lanes=16)


@dataclass(frozen=True)
class Key:
    """A 32-byte secret and the one purpose that it serves ("account", "member", "vote", "peer", "donor" ...).

    The seed is kept out of `repr`, so that it never gets into a log. The loaded signing key is held: loading
    costs 22 microseconds, half a signature.
    """

    seed: bytes = field(repr=False)
    purpose: str = "account"

    def __post_init__(self) -> None:
        assert len(self.seed) == SEED_BYTES, "a seed has 32 bytes"
        assert PURPOSE_FORM.fullmatch(self.purpose), "a purpose is one word in small letters"

    @cached_property
    def _signing_key(self) -> Ed25519PrivateKey:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        assert self.purpose not in NEVER_SIGN, f"a key for {self.purpose} signs nothing"
        return Ed25519PrivateKey.from_private_bytes(self.seed)

    @cached_property
    def public_key(self) -> bytes:
        """The Ed25519 public key: 32 bytes."""
        return self._signing_key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """The Ed25519 signature: 64 bytes, the same each time for the same message."""
        return self._signing_key.sign(message)


def new_key(purpose: str = "account") -> Key:
    """A fresh key from the system's randomness."""
    return Key(os.urandom(SEED_BYTES), purpose)


@dataclass(frozen=True)
class Passphrase:
    """Where a passphrase comes from: the file that was named, else the environment, else the person."""

    file: Path | None = None
    variable: str = PASSPHRASE_VARIABLE

    def read(self, what: str) -> str:
        """The passphrase that opens an existing `what` ("the key file /home/ada/.allmende/wallet.key").

        Raises: UserError when there is none to be had, or the file is empty or open to others.
        """
        return self._read_unattended() or _prompt(f"Passphrase for {what}: ")

    def choose(self, what: str) -> str:
        """The passphrase for a new `what`; a person is asked twice, since nobody sees what is typed.

        Raises: UserError when there is none to be had, it is empty, or the two differ.
        """
        given = self._read_unattended()
        if given is not None:
            return given
        chosen = _prompt(f"New passphrase for {what}: ")
        if not chosen:
            raise UserError("an empty passphrase protects nothing: choose one")
        if _prompt("The same again: ") != chosen:
            raise UserError("the two passphrases differ: nothing was written, try again")
        return chosen

    def _read_unattended(self) -> str | None:
        if self.file is not None:
            # The first line, so that an editor's last line break is no part of it.
            lines = read_private(self.file).decode("utf-8", "replace").splitlines()
            if not lines or not lines[0]:
                raise UserError(f"the passphrase file {self.file} is empty")
            return lines[0]
        given = os.environ.get(self.variable)
        if given == "":
            raise UserError(f"{self.variable} is set, but empty: set it to the passphrase or unset it")
        return given


def _prompt(question: str) -> str:
    from getpass import getpass

    if not sys.stdin.isatty():
        raise UserError(
            f"a passphrase is needed, and there is no terminal to ask at: "
            f"set {PASSPHRASE_VARIABLE} or give --passphrase-file"
        )
    try:
        return getpass(question)
    except EOFError:
        raise UserError("no passphrase was given") from None


def save_key(
    path: Path,
    seed: bytes,
    passphrase: str | None,
    *,
    purpose: str = "account",
    replace: bool = False,
    cost: Cost = STANDARD_COST,
) -> None:
    """Write a key file of mode 0600. Without a passphrase it is in the clear, and says so.

    Raises: UserError when the file exists, unless `replace` (a new passphrase for the same key), or can't be
    written.
    """
    key = Key(seed, purpose)
    document: dict[str, Any] = {"format": FORMAT, "version": VERSION, "purpose": key.purpose}
    if passphrase is None:
        document |= {"encryption": None, "warning": PLAIN_WARNING, "seed": key.seed.hex()}
    else:
        assert passphrase, "an empty passphrase protects nothing"
        salt, nonce = os.urandom(SALT_BYTES), os.urandom(NONCE_BYTES)
        document["encryption"] = {
            "kdf": "argon2id",
            "memory_kibibytes": cost.memory_kibibytes,
            "iterations": cost.iterations,
            "lanes": cost.lanes,
            "salt": salt.hex(),
            "cipher": "chacha20-poly1305",
            "nonce": nonce.hex(),
        }
        cipher = _make_cipher(passphrase, salt, cost)
        document["ciphertext"] = cipher.encrypt(nonce, key.seed, _associate(document)).hex()
    write_atomically(path, (json.dumps(document, indent=2) + "\n").encode(), replace=replace)


def load_key(path: Path, passphrase: Passphrase | str | None, *, purpose: str | None = None) -> Key:
    """Read a key file. A plain one needs no passphrase; `purpose` refuses a key for something else.

    Raises: UserError, in one line, when the file is missing, open to others, damaged, of a later version or
    another purpose, or the passphrase is wrong or missing.
    """
    document = _read_document(path)
    found = document.get("purpose")
    if not isinstance(found, str) or not PURPOSE_FORM.fullmatch(found):
        raise _damaged(path)
    if purpose is not None and found != purpose:
        raise UserError(f"{path} holds a key for {found}; one for {purpose} is needed")
    if "encryption" in document and document["encryption"] is None:
        return Key(_take_bytes(path, document, "seed", SEED_BYTES), found)
    return Key(_decrypt(path, document, passphrase), found)


def is_encrypted(path: Path) -> bool:
    """True when a passphrase opens the key file. Raises: UserError when it can't be read."""
    document = _read_document(path)
    return document.get("encryption", "") is not None


def _decrypt(path: Path, document: dict[str, Any], passphrase: Passphrase | str | None) -> bytes:
    from cryptography.exceptions import InvalidTag

    encryption = document.get("encryption")
    if not isinstance(encryption, dict) or encryption.get("kdf") != "argon2id":
        raise _damaged(path)
    cost = Cost(
        memory_kibibytes=_take_number(path, encryption, "memory_kibibytes", COST_MAX.memory_kibibytes),
        iterations=_take_number(path, encryption, "iterations", COST_MAX.iterations),
        lanes=_take_number(path, encryption, "lanes", COST_MAX.lanes),
    )
    if encryption.get("cipher") != "chacha20-poly1305" or cost.memory_kibibytes < 8 * cost.lanes:
        raise _damaged(path)
    salt = _take_bytes(path, encryption, "salt", SALT_BYTES)
    nonce = _take_bytes(path, encryption, "nonce", NONCE_BYTES)
    ciphertext = _take_bytes(path, document, "ciphertext", SEED_BYTES + 16)
    # The whole file was checked first: nobody types a passphrase for a file that can't be opened anyway.
    if passphrase is None:
        raise UserError(f"{path} is encrypted, and no passphrase was given")
    text = passphrase.read(f"the key file {path}") if isinstance(passphrase, Passphrase) else passphrase
    try:
        return _make_cipher(text, salt, cost).decrypt(nonce, ciphertext, _associate(document))
    except InvalidTag:
        raise UserError(f"wrong passphrase for {path} (or the file was changed)") from None


def _make_cipher(passphrase: str, salt: bytes, cost: Cost) -> ChaCha20Poly1305:
    """The cipher that a passphrase opens. NFC first (RFC 8265): two keyboards write one é in two ways."""
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

    if len(passphrase) > PASSPHRASE_CHARACTERS_MAX:
        raise UserError(f"a passphrase has at most {PASSPHRASE_CHARACTERS_MAX} characters")
    try:
        secret = unicodedata.normalize("NFC", passphrase).encode()
    except UnicodeEncodeError:
        raise UserError("the passphrase is not valid text (UTF-8)") from None
    derivation = Argon2id(
        salt=salt,
        length=32,
        iterations=cost.iterations,
        lanes=cost.lanes,
        memory_cost=cost.memory_kibibytes,
    )
    try:
        return ChaCha20Poly1305(derivation.derive(secret))
    except MemoryError:
        needed = f"{cost.memory_kibibytes} KiB"
        raise UserError(f"not enough memory to work with the passphrase: {needed} are needed") from None


def _associate(document: dict[str, Any]) -> bytes:
    """The header as bytes, one form for one meaning: everything in the file but the ciphertext itself."""
    header = {name: value for name, value in document.items() if name != "ciphertext"}
    return json.dumps(header, sort_keys=True, separators=(",", ":")).encode()


def _read_document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(read_private(path))
    except (ValueError, RecursionError):
        raise _damaged(path) from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise UserError(f"{path} is not a key file of allmende")
    version = document.get("version")
    if type(version) is not int or version < 1:
        raise _damaged(path)
    if version > VERSION:
        raise UserError(f"{path} was written by a later version: update allmende")
    return document


def _take_bytes(path: Path, values: dict[str, Any], name: str, length: int) -> bytes:
    text = values.get(name)
    if not isinstance(text, str) or not re.fullmatch(f"[0-9a-f]{{{2 * length}}}", text):
        raise _damaged(path)
    return bytes.fromhex(text)


def _take_number(path: Path, values: dict[str, Any], name: str, highest: int) -> int:
    number = values.get(name)
    if type(number) is not int or number < 1:
        raise _damaged(path)
    if number > highest:
        raise UserError(f"{path} asks for too much work to open ({name} {number}, at most {highest})")
    return number


def _damaged(path: Path) -> UserError:
    return UserError(f"the key file {path} is damaged: restore it from a backup")
