"""Letters that only their addressee can open: nobody between reads what goes into a job or comes out.

A fresh content key is sealed to the addressee by HPKE (RFC 9180, base mode: X25519, HKDF-SHA256,
ChaCha20-Poly1305); the letter itself follows in pieces of 1 MiB under that key. A piece's nonce is its index
and a mark on the last one (the STREAM construction of Hoang, Reyhanitabar, Rogaway and Vizár, 2015), so a
letter that was cut, reordered or repeated does not open. To seal each piece by HPKE on its own would be
weaker: anybody could put a piece of theirs in the place of one of ours.

    sealed  = MAGIC, version, HPKE(content key) [80 bytes], piece 0, ..., piece n-1
    piece i = ChaCha20-Poly1305(content key, nonce = i as 11 bytes, 1 if last else 0)    [+ 16 bytes]

What is not hidden: the length. What is not proven: who sent it. A signature over the digest does that.
"""

from __future__ import annotations

import os
from io import BytesIO
from typing import TYPE_CHECKING, BinaryIO

from protocol.errors import InvalidInput

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.hpke import Suite

MAGIC = b"ALMSEAL"
VERSION = 1
HEADER = MAGIC + bytes([VERSION])
TAG = b"allmende/seal/1"
CONTENT_KEY_BYTES = 32
WRAPPED_BYTES = 32 + CONTENT_KEY_BYTES + 16  # HPKE: the ephemeral key, the content key, its tag
PIECE_BYTES = 1 << 20
PIECE_TAG_BYTES = 16
ASSOCIATED_BYTES_MAX = 1024  # ids and roles, not content


def seal_public_key(seed: bytes) -> bytes:
    """The X25519 public key (32 bytes) to which others seal; `seed` is its private key."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def compute_sealed_bytes(plaintext_bytes: int) -> int:
    """The exact length of a sealed letter: 104 bytes more than the letter, and 16 for each further 1 MiB."""
    pieces = max(1, -(-plaintext_bytes // PIECE_BYTES))
    return len(HEADER) + WRAPPED_BYTES + plaintext_bytes + pieces * PIECE_TAG_BYTES


def seal(public_key: bytes, plaintext: bytes, associated: bytes) -> bytes:
    """Seal a letter to the holder of a key. It opens only with the same `associated` bytes (job, direction).

    Raises: InvalidInput when the public key is none (32 bytes, not of small order).
    """
    sealed = BytesIO()
    seal_stream(public_key, BytesIO(plaintext), sealed, associated)
    return sealed.getvalue()


def open_sealed(private_seed: bytes, sealed: bytes, associated: bytes) -> bytes:
    """The letter, if it was sealed to this key with these associated bytes and is whole.

    Raises: InvalidInput for everything else; it does not say which, so it tells a forger nothing.
    """
    plaintext = BytesIO()
    open_stream(private_seed, BytesIO(sealed), plaintext, associated)
    return plaintext.getvalue()


def seal_stream(public_key: bytes, source: BinaryIO, sink: BinaryIO, associated: bytes) -> None:
    """Seal what `source` holds from here to its end into `sink`, with two pieces of 1 MiB in memory.

    Raises: InvalidInput when the public key is none.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    content_key = os.urandom(CONTENT_KEY_BYTES)
    try:
        addressee = X25519PublicKey.from_public_bytes(public_key)
        wrapped = _suite().encrypt(content_key, addressee, info=_bind(associated))
    except ValueError as error:
        raise InvalidInput("not a key that letters can be sealed to") from error
    assert len(wrapped) == WRAPPED_BYTES
    sink.write(HEADER + wrapped)
    cipher = ChaCha20Poly1305(content_key)
    index, piece = 0, _read_exactly(source, PIECE_BYTES)
    while True:
        # One piece is read ahead: only then is it known which one is the last.
        following = _read_exactly(source, PIECE_BYTES) if len(piece) == PIECE_BYTES else b""
        sink.write(cipher.encrypt(_nonce(index, last=not following), piece, None))
        if not following:
            return
        index, piece = index + 1, following


def open_stream(private_seed: bytes, source: BinaryIO, sink: BinaryIO, associated: bytes) -> None:
    """Open what `source` holds into `sink`, piece by piece.

    Each piece that is written is genuine, but only a return says that it is all of them: on an exception the
    caller throws away what `sink` got.

    Raises: InvalidInput when it was not sealed to this key with these associated bytes, or is not whole.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    private_key = X25519PrivateKey.from_private_bytes(private_seed)
    if _read_exactly(source, len(HEADER)) != HEADER:
        raise InvalidInput("not a sealed letter")
    sealed_piece_bytes = PIECE_BYTES + PIECE_TAG_BYTES
    try:
        wrapped = _read_exactly(source, WRAPPED_BYTES)
        cipher = ChaCha20Poly1305(_suite().decrypt(wrapped, private_key, info=_bind(associated)))
        index, piece = 0, _read_exactly(source, sealed_piece_bytes)
        while True:
            following = _read_exactly(source, sealed_piece_bytes) if len(piece) == sealed_piece_bytes else b""
            if index and len(piece) <= PIECE_TAG_BYTES:
                raise InvalidInput("a sealed letter ends with an empty piece")  # a letter has one sealed form
            sink.write(cipher.decrypt(_nonce(index, last=not following), piece, None))
            if not following:
                return
            index, piece = index + 1, following
    except (InvalidTag, ValueError) as error:
        raise InvalidInput("the sealed letter is damaged, or not for this key and purpose") from error


def _suite() -> Suite:
    from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

    return Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


def _bind(associated: bytes) -> bytes:
    """HPKE's `info`: everything that must be equal on both sides besides the keys."""
    assert len(associated) <= ASSOCIATED_BYTES_MAX, "associated bytes are ids, not content"
    return TAG + associated


def _nonce(index: int, *, last: bool) -> bytes:
    """Different for every piece under one content key, which is used for one letter only."""
    return index.to_bytes(11, "big") + bytes([last])


def _read_exactly(source: BinaryIO, count: int) -> bytes:
    """`count` bytes, fewer only at the end: a socket or pipe may give less at a time."""
    read = source.read(count)
    if len(read) == count or not read:
        return read
    parts, missing = [read], count - len(read)
    while missing and (read := source.read(missing)):
        parts.append(read)
        missing -= len(read)
    return b"".join(parts)
