"""One value, one encoding: whatever decodes is spelled in the one canonical way."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.codec import (
    binary,
    binary_up_to,
    decode,
    encode,
    items,
    list_of,
    optional_binary,
    set_of,
    text,
    uint,
    unpack,
)
from protocol.errors import InvalidInput
from protocol.limits import INTEGER_MAX

SHAPE = items(
    uint(),
    binary(4),
    binary_up_to(300),
    optional_binary(2),
    text(200),
    list_of(items(uint(300), text(9)), 5),
    set_of(uint(), 40),
)
VALUES = st.tuples(
    st.one_of(st.integers(0, 300), st.integers(0, INTEGER_MAX)),
    st.binary(min_size=4, max_size=4),
    st.binary(max_size=300),
    st.sampled_from((b"", b"ab")),
    st.text(max_size=50),
    st.lists(st.tuples(st.integers(0, 300), st.text(max_size=2)), max_size=5).map(tuple),
    st.sets(st.integers(0, 70_000), max_size=40).map(lambda numbers: tuple(sorted(numbers))),
)


@given(VALUES)
def test_what_is_encoded_decodes_to_the_same_value(value):
    encoded = encode(value)
    assert decode(SHAPE, encoded, 10_000) == value


@settings(max_examples=1000)
@given(VALUES, st.data())
def test_changed_bytes_are_refused_or_spell_another_value(value, draws):
    encoded = bytearray(encode(value))
    for _ in range(draws.draw(st.integers(1, 3))):
        encoded[draws.draw(st.integers(0, len(encoded) - 1))] = draws.draw(st.integers(0, 255))
    try:
        decoded = decode(SHAPE, bytes(encoded), 10_000)
    except InvalidInput:
        return
    assert encode(decoded) == encoded


@given(st.binary(max_size=80))
def test_any_bytes_are_refused_or_encode_again_to_themselves(encoded):
    for shape in (SHAPE, list_of(uint(), 9), items(uint()), items(binary_up_to(70)), items(text(70))):
        try:
            value = decode(shape, encoded, 1000)
        except InvalidInput:
            continue
        assert encode(value) == encoded


LONGER_SPELLINGS = {
    "an integer in 8 bits": b"\x91\xcc\x05",
    "an integer in 16 bits": b"\x91\xcd\x00\x05",
    "an integer in 32 bits": b"\x91\xce\x00\x00\x00\x05",
    "an integer in 64 bits": b"\x91\xcf" + bytes(7) + b"\x05",
    "a signed integer": b"\x91\xd0\x05",
    "a signed integer in 64 bits": b"\x91\xd3" + bytes(7) + b"\x05",
    "an array in 16 bits": b"\xdc\x00\x01\x05",
    "an array in 32 bits": b"\xdd\x00\x00\x00\x01\x05",
}


@pytest.mark.parametrize("encoded", LONGER_SPELLINGS.values(), ids=LONGER_SPELLINGS.keys())
def test_a_longer_spelling_is_refused(encoded):
    assert decode(items(uint()), b"\x91\x05", 10) == (5,)
    with pytest.raises(InvalidInput, match="not the canonical encoding"):
        decode(items(uint()), encoded, 20)


def test_longer_spellings_of_bytes_and_text_are_refused():
    assert decode(items(binary(1)), b"\x91\xc4\x01a", 10) == (b"a",)
    assert decode(items(text(1)), b"\x91\xa1a", 10) == ("a",)
    for header in (b"\xc5\x00\x01", b"\xc6\x00\x00\x00\x01"):
        with pytest.raises(InvalidInput):
            decode(items(binary(1)), b"\x91" + header + b"a", 10)
    for header in (b"\xd9\x01", b"\xda\x00\x01", b"\xdb\x00\x00\x00\x01"):
        with pytest.raises(InvalidInput):
            decode(items(text(1)), b"\x91" + header + b"a", 10)


WRONG_TYPES = {
    "nil": None,
    "true": True,
    "false": False,
    "a float": 5.0,
    "a negative integer": -5,
    "an integer of 54 bits": 2**53,
    "an integer of 64 bits": 2**64 - 1,
    "text": "5",
    "bytes": b"5",
    "an array": [5],
    "a map": {},
    "a map with a key": {5: 5},
    "an extension": msgpack.ExtType(5, b"5"),
    "an empty extension": msgpack.ExtType(5, b""),
    "a time": msgpack.Timestamp(5),
}


@pytest.mark.parametrize("value", WRONG_TYPES.values(), ids=WRONG_TYPES.keys())
def test_what_is_no_small_unsigned_integer_is_no_integer(value):
    with pytest.raises(InvalidInput):
        decode(items(uint()), msgpack.packb([value]), 50)


def test_an_empty_extension_is_no_pair_of_a_number_and_bytes():
    """msgpack spells an extension in Python as a named tuple (code, content)."""
    encoded = b"\xc7\x00\x05"
    assert unpack(encoded, 3) == (5, b"")
    with pytest.raises(InvalidInput):
        decode(items(uint(), binary_up_to(4)), encoded, 3)
    with pytest.raises(InvalidInput):
        decode(list_of(lambda value: None, 4), encoded, 3)


BROKEN = {
    "nothing": b"",
    "a byte too many": b"\x91\x05\x05",
    "cut off": b"\x92\x05",
    "an array of 2^32 - 1 items": b"\xdd\xff\xff\xff\xff",
    "an array of 1,025 items": b"\xdc\x04\x01" + bytes(1025),
    "bytes of 2^32 - 1": b"\xc6\xff\xff\xff\xff",
    "text of 2^32 - 1": b"\xdb\xff\xff\xff\xff",
    "a type that msgpack never uses": b"\xc1",
    "text that is no UTF-8": b"\x91\xa1\xff",
    "text with half a surrogate pair": b"\x91\xa3\xed\xa0\x80",
    "arrays 100,000 deep": b"\x91" * 100_000,
    "arrays 600 deep": b"\x91" * 600 + b"\x90",
}


@pytest.mark.parametrize("encoded", BROKEN.values(), ids=BROKEN.keys())
def test_broken_bytes_are_invalid_input_and_nothing_else(encoded):
    for shape in (SHAPE, items(uint()), items(text(10)), list_of(items(), 1024)):
        with pytest.raises(InvalidInput):
            decode(shape, encoded, 1_000_000)


def test_the_size_is_bounded_before_anything_is_read():
    with pytest.raises(InvalidInput, match="11 bytes, 10 are allowed"):
        decode(items(binary_up_to(100)), encode((bytes(8),)), 10)


@pytest.mark.parametrize(
    ("shape", "good", "bad"),
    [
        (uint(7, 3), [3, 7], [2, 8]),
        (binary(2), [b"ab"], [b"", b"a", b"abc", "ab"]),
        (binary_up_to(2, 1), [b"a", b"ab"], [b"", b"abc"]),
        (optional_binary(2), [b"", b"ab"], [b"a", b"abc"]),
        (text(3, 1), ["a", "é", "€"], ["", "€a", "abcd", b"a"]),
        (list_of(uint(), 2, 1), [(1,), (2, 1)], [(), (1, 2, 3), ("a",)]),
        (set_of(uint(), 3), [(), (1, 2)], [(2, 1), (1, 1), (1, 2, 2)]),
        (items(uint(), uint()), [(1, 2)], [(1,), (1, 2, 3), ("a", 1)]),
    ],
)
def test_a_shape_accepts_its_bounds_and_refuses_what_lies_beyond(shape, good, bad):
    for value in good:
        assert decode(items(shape), encode((value,)), 100) == (value,)
    for value in bad:
        with pytest.raises(InvalidInput):
            decode(items(shape), encode((value,)), 100)
