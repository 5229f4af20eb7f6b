"""Signatures that cost a hash: in a simulation nobody breaks them, so nothing is learned from their cost.

Inside `quick_signatures()` a key signs with a hash over its public key and the message. Whoever knows a public key
could forge that; the faulty parties of the simulation sign with their own keys only, or break a signature on purpose.
Batches are decoded once for all members, because decoding is a pure function of the bytes.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from hashlib import sha256, sha512
from typing import Any
from unittest import mock

from protocol import batches


class QuickKey:
    """Private and public key in one."""

    def __init__(self, label: str) -> None:
        self._public = sha256(b"quick key " + label.encode()).digest()

    def public_key(self) -> QuickKey:
        """Itself: there is no secret."""
        return self

    def public_bytes_raw(self) -> bytes:
        """32 bytes that name the key."""
        return self._public

    def sign(self, data: bytes, /) -> bytes:
        """The signature, 64 bytes."""
        return sha512(self._public + data).digest()


_KEYS: dict[bytes, QuickKey] = {}


@lru_cache(maxsize=256)
def make_quick_key(label: str) -> QuickKey:
    """The key with this label."""
    key = QuickKey(label)
    return _KEYS.setdefault(key.public_bytes_raw(), key)


def find_quick_key(public_key: bytes) -> QuickKey:
    """The private key of a public one."""
    return _KEYS[public_key]


def is_quick_signature(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """True when `QuickKey.sign` made the signature."""
    return signature == sha512(public_key + message).digest()


REPLACED = {
    "is_valid_signature": is_quick_signature,
    "is_prime_order_key": lambda public_key: True,
    "make_key": make_quick_key,
    "make_public_key": lambda label: make_quick_key(label).public_bytes_raw(),
    "find_key": find_quick_key,
    "decode_batch": lru_cache(maxsize=1 << 14)(batches.decode_batch),
}

_compute_parents: Any = vars(batches.Batch)["parents"].fget
_PARENTS: dict[bytes, tuple[bytes, ...]] = {}


def _remember_parents(batch: batches.Batch) -> tuple[bytes, ...]:
    """`Batch.parents`, computed once for all members."""
    known = _PARENTS.get(batch.id)
    if known is None:
        if len(_PARENTS) > 1 << 14:
            _PARENTS.clear()
        known = _PARENTS.setdefault(batch.id, _compute_parents(batch))
    return known


@contextmanager
def quick_signatures() -> Iterator[None]:
    """Inside, all keys of `tests/strategies.py` are quick, and all modules take their signatures."""
    ledger_log = logging.getLogger("allmende")
    level = ledger_log.level
    ledger_log.setLevel(logging.CRITICAL)
    with ExitStack() as stack:
        stack.callback(ledger_log.setLevel, level)
        for name, module in sorted(sys.modules.items()):
            if name.startswith(("protocol.", "node.")) or name == "tests.strategies":
                for function, quick in REPLACED.items():
                    if function in vars(module):
                        stack.enter_context(mock.patch.object(module, function, quick))
        stack.enter_context(mock.patch.object(batches.Batch, "parents", property(_remember_parents)))
        yield
