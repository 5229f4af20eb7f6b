"""Ids as people see them."""

from __future__ import annotations

import pytest
from bech32m.codecs import Encoding, bech32_encode, convertbits
from hypothesis import given
from hypothesis import strategies as st

from node.addresses import Kind, decode_address, encode_address, qr_lines
from node.errors import UserError

IDENTIFIER = bytes(range(32))
identifiers = st.binary(min_size=32, max_size=32)
kinds = st.sampled_from(Kind)


@given(kinds, identifiers)
def test_an_address_brings_its_id_back_in_small_and_in_capital_letters(kind, identifier):
    text = encode_address(kind, identifier)
    assert text.startswith(kind.value + "1q")
    assert decode_address(kind, text) == identifier
    assert decode_address(kind, f"  {text.upper()}\n") == identifier


def test_an_address_stays_the_same_for_ever():
    text = encode_address(Kind.ACCOUNT, IDENTIFIER)
    assert text == "alm1qqqqsyqcyq5rqwzqfpg9scrgwpugpzysnzs23v9ccrydpk8qarc0sarxjlm"


@pytest.mark.parametrize("kind", Kind)
def test_every_change_of_a_single_character_is_detected(kind):
    text = encode_address(kind, IDENTIFIER)
    for position, character in enumerate(text):
        for code in range(32, 127):
            if chr(code) == character or (chr(code) == " " and position in {0, len(text) - 1}):
                continue
            with pytest.raises(UserError):
                decode_address(kind, text[:position] + chr(code) + text[position + 1 :])


@given(kinds, identifiers, st.data())
def test_every_change_of_four_characters_is_detected(kind, identifier, data):
    text = encode_address(kind, identifier)
    start = len(kind.value) + 1
    changed = list(text)
    positions = st.lists(st.integers(start, len(text) - 1), min_size=1, max_size=4, unique=True)
    for position in data.draw(positions):
        others = [symbol for symbol in "qpzry9x8gf2tvdw0s3jn54khce6mua7l" if symbol != text[position]]
        changed[position] = data.draw(st.sampled_from(others))
    with pytest.raises(UserError, match="typing error"):
        decode_address(kind, "".join(changed))


@given(identifiers, st.data())
def test_a_left_out_doubled_or_swapped_character_is_detected(identifier, data):
    text = encode_address(Kind.ACCOUNT, identifier)
    at = data.draw(st.integers(0, len(text) - 2))
    swapped = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    for wrong in {text[:at] + text[at + 1 :], text[:at] + text[at] + text[at:], swapped} - {text}:
        with pytest.raises(UserError):
            decode_address(Kind.ACCOUNT, wrong)


@given(st.text(max_size=200))
def test_no_text_at_all_makes_more_than_a_one_line_error(text):
    with pytest.raises(UserError) as caught:
        decode_address(Kind.ACCOUNT, text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_the_wrong_kind_is_named():
    text = encode_address(Kind.PROGRAM, IDENTIFIER)
    with pytest.raises(UserError, match="is a program id; an account is needed here"):
        decode_address(Kind.ACCOUNT, text)
    with pytest.raises(UserError, match="is an account; a federation id is needed here"):
        decode_address(Kind.FEDERATION, encode_address(Kind.ACCOUNT, IDENTIFIER))


def test_mixed_capital_and_small_letters_are_refused():
    text = encode_address(Kind.ACCOUNT, IDENTIFIER)
    with pytest.raises(UserError, match="mixes capital and small letters"):
        decode_address(Kind.ACCOUNT, text[:20] + text[20:].upper())


def encode_otherwise(version: int, identifier: bytes, encoding: Encoding) -> str:
    return bech32_encode("alm", bytes([version]) + convertbits(identifier, 8, 5), encoding)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (encode_otherwise(0, IDENTIFIER, Encoding.BECH32), "older format"),
        (encode_otherwise(1, IDENTIFIER, Encoding.BECH32M), "update allmende"),
        (encode_otherwise(0, IDENTIFIER[:20], Encoding.BECH32M), "wrong length"),
        (bech32_encode("alm", b"", Encoding.BECH32M), "does not know"),
        ("bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4", "starts with alm1"),
        ("", "empty"),
    ],
)
def test_addresses_of_other_makers_and_versions_are_refused(text, complaint):
    with pytest.raises(UserError, match=complaint):
        decode_address(Kind.ACCOUNT, text)


def test_a_qr_code_is_a_block_of_lines_of_one_width():
    lines = qr_lines(encode_address(Kind.ACCOUNT, IDENTIFIER))
    assert len({len(line) for line in lines}) == 1
    assert set("".join(lines)) <= set(" █▀▄")
    assert len(lines[0]) == 33 + 4  # an address fits version 4: 33 modules and the margin
    assert len(qr_lines("https://example.org/a-text-with-small-letters")) > 10
