"""A person's wallet on disk: the address in clear, the key under a passphrase, the charter that every node is held to.

`wallet.json` holds nothing secret, so a balance is read without a passphrase. The federation's founding document is
verified once, when the wallet is made, and pinned: a node that serves another federation is refused ever after,
whatever it calls itself. `wallet.key` holds the entropy of the 24 words, from which all keys of the wallet grow.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from node.addresses import Kind, decode_address, encode_address
from node.errors import UserError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from node.client import NodeClient
    from node.keystore import Passphrase
    from node.known_charters import KnownCharters
    from node.wallet.journal import Journal
    from protocol.charter import Charter, FoundedCharter

VERSION = 1
_NUMBERS = ("version", "genesis_seconds", "epoch_seconds", "key_index")
SETTINGS_NAME = "wallet.json"
KEY_NAME = "wallet.key"
JOURNAL_NAME = "journal.sqlite"
AMENDMENTS_NAME = "amendments"
"""Receipts of the amendments that the wallet knows of; nothing is lost with this file."""
LOCK_NAME = "wallet.lock"
KEY_PURPOSE = "wallet"
ROTATIONS_MAX = 100
"""How many rotations on other machines a wallet looks for."""

LOCK_SECONDS = 30.0
"""How long one command waits while another chooses credits and signs; that takes a second on a slow line."""


class Settings(NamedTuple):
    """What `wallet.json` says."""

    version: int
    address: str
    public_key: str
    """Hex."""
    node: str
    federation: str
    founded: str
    """The founding document, base64."""
    genesis_seconds: int
    """Copied out of the charter, as is the next: dates are shown without reading it."""
    epoch_seconds: int
    key_index: int = 0
    """Which of the keys that grow from the words is in force: `public_key` is that one's. The address is the hash of
    the first one for ever."""


class Wallet:
    """One wallet, open.

    Resource handling: the journal and the connection open at their first use; `close`, or a `with` block, ends them.
    """

    def __init__(
        self, home: Path, settings: Settings, node_url: str | None, clock: Callable[[], float] = time.time
    ) -> None:
        self.home = home
        self.settings = settings
        self.node_url = node_url or settings.node
        self.address = settings.address
        self.account = decode_address(Kind.ACCOUNT, settings.address)
        self.federation_address = settings.federation
        self.federation = decode_address(Kind.FEDERATION, settings.federation)
        self._clock = clock

    # -- making and opening -------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        home: Path,
        node_url: str,
        mnemonic: str,
        passphrase: str | None,
        *,
        federation: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Wallet:
        """Make a wallet in `home` for the federation that the node serves; `federation` is the one expected.

        The key is written first, so whatever interrupts this, no wallet exists whose words are lost.

        Raises: UserError when there is a wallet already, the founding document does not hold, or the federation is
        another than the expected one; Unreachable.
        """
        from node.files import write_atomically
        from node.keystore import Key, save_key
        from node.mnemonics import compute_entropy, derive_seed
        from node.served_charter import fetch_charter
        from node.wallet.journal import Journal
        from protocol.identifiers import compute_account_id

        check_no_wallet(home)
        founded = fetch_charter(node_url, federation).founded
        charter = founded.charter
        public_key = Key(derive_seed(mnemonic, "account")).public_key
        settings = Settings(
            VERSION,
            encode_address(Kind.ACCOUNT, compute_account_id(charter.federation, public_key)),
            public_key.hex(),
            node_url,
            encode_address(Kind.FEDERATION, charter.federation),
            b64encode(founded.encode()).decode(),
            charter.fields.genesis_seconds,
            charter.fields.epoch_seconds,
        )
        _make_directory(home)
        Journal(home / JOURNAL_NAME).close()
        save_key(home / KEY_NAME, compute_entropy(mnemonic), passphrase, purpose=KEY_PURPOSE)
        write_atomically(home / SETTINGS_NAME, _encode_settings(settings), replace=False)
        return cls(home, settings, None, clock)

    @classmethod
    def open(cls, home: Path, node_url: str | None = None, *, clock: Callable[[], float] = time.time) -> Wallet:
        """The wallet in `home`; `node_url` is asked instead of its own node, this time.

        Raises: UserError when there is none, or its file is damaged.
        """
        path = home / SETTINGS_NAME
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise UserError(
                f"there is no wallet in {home}: make one with `allmende wallet init`, or name its place with --home"
            ) from None
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        return cls(home, _read_settings(path, content), node_url, clock)

    # -- parts --------------------------------------------------------------------------------------------------

    @cached_property
    def founded(self) -> FoundedCharter:
        """The pinned founding document, its signatures checked once more: files get changed.

        Raises: UserError when it is not what the wallet was made with.
        """
        from protocol.charter import decode_founded_charter
        from protocol.errors import InvalidInput

        try:
            founded = decode_founded_charter(b64decode(self.settings.founded))
        except (InvalidInput, ValueError) as error:
            raise UserError(f"the charter in {self.home / SETTINGS_NAME} is damaged: {error}") from error
        if founded.charter.federation != self.federation:
            raise UserError(f"the charter in {self.home / SETTINGS_NAME} is another federation's than its address")
        return founded

    @property
    def charter(self) -> Charter:
        """The newest version that is known here."""
        return self.charters.newest

    @cached_property
    def charters(self) -> KnownCharters:
        """The pinned charter and its amendments, by which receipts are checked. A version that is not known here is
        asked for at the node, and verified."""
        from node.known_charters import KnownCharters

        def ask() -> list[bytes]:
            return [amendment.receipt for amendment in self.client.get_charter().amendments]

        return KnownCharters(self.founded.charter, self.home / AMENDMENTS_NAME, ask)

    @cached_property
    def client(self) -> NodeClient:
        """The connection to the node, which was asked first whether it serves the wallet's own federation.

        Raises: UserError when it does not; Unreachable.
        """
        from node.client import NodeClient

        client = NodeClient(self.node_url)
        try:
            answer = client.get_charter()
            if answer.federation != self.federation_address:
                raise UserError(
                    f"{self.node_url} serves the federation {answer.federation}, and this wallet belongs to "
                    f"{self.federation_address}: choose another node with --node"
                )
            if answer.amendments:
                self.charters.learn([amendment.receipt for amendment in answer.amendments])
        except BaseException:
            client.close()
            raise
        return client

    @cached_property
    def journal(self) -> Journal:
        """Everything that this wallet signed. Raises: UserError when it is gone: a slot might be signed twice."""
        from node.wallet.journal import Journal

        if not (self.home / JOURNAL_NAME).exists():
            raise UserError(
                f"{self.home / JOURNAL_NAME} is gone, and with it what may be on its way: put it back, or move the "
                "rest away and make the wallet again from its words with `allmende wallet restore`"
            )
        return Journal(self.home / JOURNAL_NAME, self._clock)

    def close(self) -> None:
        """Give back what was opened. Closing twice is fine."""
        for name in ("client", "journal"):
            part: Any = self.__dict__.pop(name, None)
            if part is not None:
                part.close()

    def __enter__(self) -> Wallet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- keys ---------------------------------------------------------------------------------------------------

    def unlock(self, passphrase: Passphrase | str | None) -> Ed25519PrivateKey:
        """The key in force of the wallet's account. When another machine of the wallet rotated it, the node says so.

        Raises: UserError when the passphrase is wrong, or the key is not the one that `wallet.json` names.
        """
        return self._find_key(self.unlock_words(passphrase))

    def unlock_with_next(self, passphrase: Passphrase | str | None) -> tuple[Ed25519PrivateKey, Ed25519PrivateKey]:
        """The key in force, and the one that the words give next. Raises: UserError as `unlock` does."""
        words = self.unlock_words(passphrase)
        return self._find_key(words), _derive_account_key(words, self.settings.key_index + 1)

    def _find_key(self, words: str) -> Ed25519PrivateKey:
        """What the node says is believed only as far as the words give that very key."""
        index = self.settings.key_index
        key = _derive_account_key(words, index)
        public_key = key.public_key().public_bytes_raw()
        if public_key.hex() != self.settings.public_key:
            raise UserError(f"{KEY_NAME} and {SETTINGS_NAME} in {self.home} belong to two different wallets")
        in_force = self._ask_key()
        if in_force in (None, public_key):
            return key
        for later in range(index + 1, index + 1 + ROTATIONS_MAX):
            found = _derive_account_key(words, later)
            if found.public_key().public_bytes_raw() == in_force:
                self.note_key(later, in_force)
                return found
        return key  # the node lags, or is wrong: nothing is signed while it disagrees

    def _ask_key(self) -> bytes | None:
        from node.errors import Unreachable

        try:
            return self.client.get_account(self.address).key
        except Unreachable:
            return None

    def note_key(self, index: int, public_key: bytes) -> None:
        """The ledger has this key in force now; everything is signed with it from here on."""
        from node.files import write_atomically

        self.settings = self.settings._replace(key_index=index, public_key=public_key.hex())
        write_atomically(self.home / SETTINGS_NAME, _encode_settings(self.settings))

    def unlock_words(self, passphrase: Passphrase | str | None) -> str:
        """The 24 words: the whole wallet. Raises: UserError when the passphrase is wrong."""
        from node.keystore import load_key
        from node.mnemonics import compute_mnemonic

        return compute_mnemonic(load_key(self.home / KEY_NAME, passphrase, purpose=KEY_PURPOSE).seed)

    # -- time and turns -----------------------------------------------------------------------------------------

    def now(self) -> int:
        """Unix seconds by the wallet's clock."""
        return int(self._clock())

    def compute_epoch(self) -> int:
        """The epoch by the wallet's clock and its pinned charter."""
        return self.charter.compute_epoch(self.now())

    def compute_epoch_end(self, epoch: int) -> int:
        """Unix seconds at which an epoch ends: when credits that expire with it are gone."""
        return self.settings.genesis_seconds + epoch * self.settings.epoch_seconds

    @contextmanager
    def lock(self, seconds: float = LOCK_SECONDS) -> Iterator[None]:
        """Be the only command of this wallet that chooses credits and signs. Others wait for their turn.

        Two commands that chose at once would both spend the same credits, and the second record would wait for ever.
        The kernel holds the lock and lets it go when the process ends, however it ends.

        Raises: UserError when the turn does not come in time.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(self.home / LOCK_NAME, flags, 0o600)
        except OSError as error:
            raise UserError(f"cannot use the directory {self.home}: {error.strerror}") from error
        try:
            deadline = time.monotonic() + seconds
            while not _try_lock(descriptor):
                if time.monotonic() > deadline:
                    raise UserError(
                        f"another command of the wallet in {self.home} has been signing for {seconds:.0f} s: "
                        "wait for it, or end it"
                    )
                time.sleep(0.02)
            yield
        finally:
            os.close(descriptor)


def check_no_wallet(home: Path) -> None:
    """Raise UserError when `home` holds a wallet, or the key of one that was never finished."""
    if (home / SETTINGS_NAME).exists():
        raise UserError(f"there is a wallet in {home} already: use it, or name another place with --home")
    if (home / KEY_NAME).exists():
        raise UserError(
            f"{home / KEY_NAME} is the key of a wallet whose making was interrupted: move it away, then try again"
        )


def _derive_account_key(words: str, index: int) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from node.mnemonics import derive_seed

    return Ed25519PrivateKey.from_private_bytes(derive_seed(words, "account", index))


def _encode_settings(settings: Settings) -> bytes:
    return (json.dumps(settings._asdict(), indent=2) + "\n").encode()


def _read_settings(path: Path, content: bytes) -> Settings:
    damaged = UserError(f"{path} is damaged: restore it from a backup, or run `allmende wallet restore` elsewhere")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise damaged from None
    if not isinstance(document, dict) or type(document.get("version")) is not int:
        raise damaged
    if document["version"] > VERSION:
        raise UserError(f"{path} was written by a later version: update allmende")
    values = []
    for name in Settings._fields:
        value = document.get(name, Settings._field_defaults.get(name))
        if type(value) is not (int if name in _NUMBERS else str):
            raise damaged
        values.append(value)
    return Settings._make(values)


def _make_directory(home: Path) -> None:
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the directory {home}: {error.strerror}") from error


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
