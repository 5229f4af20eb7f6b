"""Becoming a donor: pin the federation's charter, make the keys, write down what is lent."""

from __future__ import annotations

from pathlib import Path

from node.addresses import Kind, encode_address
from node.donor.settings import DonorHome, Settings
from node.files import write_atomically
from node.keystore import PASSPHRASE_VARIABLE, Key, Passphrase, load_key, new_key, save_key
from protocol.charter import FoundedCharter
from protocol.identifiers import compute_account_id

KEY_PURPOSE = "donor"
SEAL_PURPOSE = "seal"
ADDRESS_NAME = "address"


def make_donor(home: DonorHome, settings: Settings, founded: FoundedCharter, passphrase_file: Path | None) -> str:
    """Write everything; `donor.toml` comes last, so a half-made donor is none. Returns the donor's address."""
    home.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in (home.jobs, home.runtimes):
        path.mkdir(mode=0o700, exist_ok=True)
    if home.key_path.exists():
        key = load_donor_key(home, passphrase_file)
    else:
        key = new_key(KEY_PURPOSE)
        passphrase = Passphrase(passphrase_file).choose("the donor key") if passphrase_file else None
        save_key(home.key_path, key.seed, passphrase, purpose=KEY_PURPOSE)
    if not home.seal_key_path.exists():
        save_key(home.seal_key_path, new_key(SEAL_PURPOSE).seed, None, purpose=SEAL_PURPOSE)
    write_atomically(home.charter_path, founded.encode())
    account = compute_account_id(founded.charter.federation, key.public_key)
    address = encode_address(Kind.ACCOUNT, account)
    write_atomically(home.directory / ADDRESS_NAME, address.encode() + b"\n")
    home.save_settings(settings)
    return address


def load_donor_key(home: DonorHome, passphrase_file: Path | None) -> Key:
    """The key that earns. Raises: UserError."""
    return load_key(home.key_path, Passphrase(passphrase_file, PASSPHRASE_VARIABLE), purpose=KEY_PURPOSE)


def load_seal_seed(home: DonorHome) -> bytes:
    """The key that opens what is sealed to this machine. Raises: UserError."""
    return load_key(home.seal_key_path, None, purpose=SEAL_PURPOSE).seed


def read_address(home: DonorHome) -> str:
    """The donor's address, without opening the key."""
    return (home.directory / ADDRESS_NAME).read_text().strip()
