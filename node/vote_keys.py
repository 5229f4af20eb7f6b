"""The vote keys of this node: one for each charter version under which it signs, and the next one made beforehand.

A member's log of a charter version is signed by the vote key that this version names. When the next one is in force
the old key is erased: whoever breaks into the machine later can't rewrite what the member said before (spec 9.7).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from node.errors import UserError
from node.files import sync_directory
from node.keystore import Key, Passphrase, is_encrypted, load_key, new_key, save_key

PURPOSE = "vote"


class VoteKeys:
    """The keys that are held, by their public keys; in memory alone, for a member that never restarts."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self._keys = {key.public_key: key for key in keys}

    def find(self, public_key: bytes) -> Key | None:
        """The private key of a public one, if it is held."""
        return self._keys.get(public_key)

    def get_fresh(self, named: Collection[bytes]) -> bytes:
        """The public half of a key that no charter names yet; made when there is none, and kept before it is told."""
        for public_key in self._keys:
            if public_key not in named:
                return public_key
        key = new_key(PURPOSE)
        self._keep(key)
        self._keys[key.public_key] = key
        return key.public_key

    def erase(self, public_keys: Collection[bytes]) -> None:
        """Forget these keys for good, in memory and on disk. A key that is not held is forgotten already."""
        for public_key in public_keys:
            if self._keys.pop(public_key, None) is not None:
                self._remove(public_key)

    def erase_all(self) -> None:
        """Forget every key: they came out of a backup, and may have signed what is not known here (spec 9.6)."""
        self.erase(list(self._keys))

    def _keep(self, key: Key) -> None:
        """Nothing outlives this process."""

    def _remove(self, public_key: bytes) -> None:
        """Nothing to remove."""


class VoteKeyFiles(VoteKeys):
    """The keys in a node's home: the first one as `vote.key`, later ones named by their public keys in a folder.

    Unlinking is all that can be done: a disk may keep what a file held whatever is written over it.
    """

    def __init__(self, first: Path, folder: Path, passphrase: str | None) -> None:
        """Read the keys. New ones are encrypted under `passphrase`, or lie in the clear without one.

        Raises: UserError when a key can't be read.
        """
        self._folder = folder
        self._passphrase = passphrase
        paths = [*([first] if first.exists() else []), *sorted(folder.glob("*.key"))]
        self._paths: dict[bytes, Path] = {}
        keys = []
        for path in paths:
            keys.append(load_key(path, passphrase, purpose=PURPOSE))
            self._paths[keys[-1].public_key] = path
        super().__init__(keys)

    def _keep(self, key: Key) -> None:
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the directory {self._folder}: {error.strerror}") from error
        path = self._folder / f"{key.public_key.hex()[:16]}.key"
        save_key(path, key.seed, self._passphrase, purpose=PURPOSE)
        self._paths[key.public_key] = path

    def _remove(self, public_key: bytes) -> None:
        path = self._paths.pop(public_key)
        path.unlink(missing_ok=True)
        sync_directory(path.parent)


def read_passphrase(key_file: Path, passphrase: Passphrase | None) -> str | None:
    """The passphrase of a node whose keys are encrypted, asked for once; None when they lie in the clear.

    Raises: UserError when the file can't be read, or there is no passphrase to be had.
    """
    if not is_encrypted(key_file):
        return None
    if passphrase is None:
        raise UserError(f"{key_file} is encrypted, and no passphrase was given")
    return passphrase.read("the node's keys")
