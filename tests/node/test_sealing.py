"""Letters to one addressee."""

from __future__ import annotations

from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.sealing import (
    HEADER,
    PIECE_BYTES,
    WRAPPED_BYTES,
    compute_sealed_bytes,
    open_sealed,
    open_stream,
    seal,
    seal_public_key,
    seal_stream,
)
from protocol.errors import InvalidInput

SEED = bytes(range(32))
PUBLIC_KEY = seal_public_key(SEED)
START = len(HEADER) + WRAPPED_BYTES
SEALED_PIECE_BYTES = PIECE_BYTES + 16


def cut(sealed: bytes) -> tuple[bytes, list[bytes]]:
    """The head of a sealed letter and its pieces."""
    pieces = [sealed[at : at + SEALED_PIECE_BYTES] for at in range(START, len(sealed), SEALED_PIECE_BYTES)]
    return sealed[:START], pieces


@given(st.binary(max_size=300), st.binary(max_size=64))
def test_a_letter_opens_for_its_addressee(plaintext, associated):
    sealed = seal(PUBLIC_KEY, plaintext, associated)
    assert open_sealed(SEED, sealed, associated) == plaintext
    assert len(sealed) == compute_sealed_bytes(len(plaintext))
    assert seal(PUBLIC_KEY, plaintext, associated) != sealed


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES])
def test_letters_of_every_number_of_pieces_open(size):
    plaintext = bytes(range(256)) * (size // 256) + bytes(size % 256)
    sealed = seal(PUBLIC_KEY, plaintext, b"job")
    assert len(sealed) == compute_sealed_bytes(size)
    assert open_sealed(SEED, sealed, b"job") == plaintext


def test_nobody_else_and_for_nothing_else_it_opens():
    sealed = seal(PUBLIC_KEY, b"letter", b"inputs of job 1")
    with pytest.raises(InvalidInput):
        open_sealed(bytes(32), sealed, b"inputs of job 1")
    with pytest.raises(InvalidInput):
        open_sealed(SEED, sealed, b"outputs of job 1")


@given(st.data())
def test_a_changed_bit_anywhere_is_detected(data):
    sealed = bytearray(seal(PUBLIC_KEY, b"letter", b""))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(InvalidInput):
        open_sealed(SEED, bytes(sealed), b"")


def test_a_letter_that_ends_early_or_late_is_detected():
    sealed = seal(PUBLIC_KEY, b"letter", b"")
    for length in range(len(sealed)):
        with pytest.raises(InvalidInput):
            open_sealed(SEED, sealed[:length], b"")
    with pytest.raises(InvalidInput):
        open_sealed(SEED, sealed + b"\0", b"")


def test_missing_swapped_repeated_and_foreign_pieces_are_detected():
    head, pieces = cut(seal(PUBLIC_KEY, b"a" * PIECE_BYTES + b"b" * PIECE_BYTES + b"c", b""))
    _, others = cut(seal(PUBLIC_KEY, b"x" * PIECE_BYTES + b"y" * PIECE_BYTES + b"z", b""))
    first, second, third = pieces
    assert len(open_sealed(SEED, head + first + second + third, b"")) == 2 * PIECE_BYTES + 1
    for wrong in [
        [],
        [first],
        [first, second],
        [first, third],
        [second, third],
        [second, first, third],
        [first, first, second, third],
        [first, second, third, third],
        [others[0], second, third],
        [first, second, others[2]],
        others,
    ]:
        with pytest.raises(InvalidInput):
            open_sealed(SEED, head + b"".join(wrong), b"")


@given(st.binary(max_size=400))
def test_noise_is_no_letter(noise):
    for sealed in (noise, HEADER + noise):
        with pytest.raises(InvalidInput):
            open_sealed(SEED, sealed, b"")


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33), bytes(32), b"\1" + bytes(31)])
def test_what_is_no_key_or_a_weak_one_gets_no_letter(key):
    with pytest.raises(InvalidInput):
        seal(key, b"letter", b"")


class Dribble(BytesIO):
    """A source that gives at most a thousand bytes at a time, as a pipe may."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(1000, size) if size is not None and size >= 0 else 1000)


def test_slow_sources_make_and_open_the_same_pieces():
    plaintext = b"a" * PIECE_BYTES + b"b"
    sealed, opened = BytesIO(), BytesIO()
    seal_stream(PUBLIC_KEY, Dribble(plaintext), sealed, b"")
    assert open_sealed(SEED, sealed.getvalue(), b"") == plaintext
    open_stream(SEED, Dribble(sealed.getvalue()), opened, b"")
    assert opened.getvalue() == plaintext
