"""The versions of the charter that a wallet or a donor knows: the pinned one, and what amendments made of it.

Each amendment comes with its receipt, made final under the version before; so the whole chain hangs on the pinned
federation id, and no node needs to be believed. What is learnt is kept in a file. A version that is not known yet is
asked for when somebody looks it up: then a receipt of the day after an amendment needs no care of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from node.errors import UserError
from node.files import write_atomically
from protocol.charter import Charter
from protocol.codec import binary_up_to, decode, encode, list_of
from protocol.errors import InvalidInput
from protocol.receipts import RECEIPT_BYTES_MAX, verify_amendments

VERSIONS_MAX = 1000
FILE_BYTES_MAX = 1 << 28
_RECEIPTS = list_of(binary_up_to(RECEIPT_BYTES_MAX, 1), VERSIONS_MAX)

Ask = Callable[[], Sequence[bytes]]
"""Asks a node for the receipts of all amendments, the first one first. Raises: UserError; Unreachable."""


class KnownCharters(Mapping[int, Charter]):
    """Version -> charter, all verified. Invariant: no version is missing below the newest."""

    def __init__(self, founding: Charter, path: Path | None = None, ask: Ask | None = None) -> None:
        """`path` is where the receipts are kept; one that can't be read is made anew from what a node tells."""
        self._charters: dict[int, Charter] = {0: founding}
        self._receipts: tuple[bytes, ...] = ()
        self._path = path
        self._ask = ask
        if path is not None and path.exists():
            try:
                self._take(decode(_RECEIPTS, path.read_bytes(), FILE_BYTES_MAX))
            except (OSError, InvalidInput):
                self._receipts = ()

    @property
    def newest(self) -> Charter:
        """The newest version that is known."""
        return self._charters[len(self._charters) - 1]

    def learn(self, receipts: Sequence[bytes]) -> bool:
        """Take in what a node told of all amendments; True when there was a version more.

        Raises: UserError when they prove nothing.
        """
        if len(receipts) <= len(self._receipts):
            return False
        try:
            self._take(receipts)
        except InvalidInput as error:
            raise UserError(f"the node's amendments of the charter do not hold ({error}): choose another") from error
        if self._path is not None:
            write_atomically(self._path, encode(self._receipts))
        return True

    def _take(self, receipts: Sequence[bytes]) -> None:
        self._charters = verify_amendments(self._charters, receipts[len(self._receipts) :])
        self._receipts = tuple(receipts)

    def __getitem__(self, version: int) -> Charter:
        """Raises: KeyError; UserError when the node that is asked for a later version does not answer."""
        if version >= len(self._charters) and self._ask is not None:
            self.learn(self._ask())
        return self._charters[version]

    def __iter__(self) -> Iterator[int]:
        return iter(self._charters)

    def __len__(self) -> int:
        return len(self._charters)
