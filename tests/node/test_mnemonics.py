"""Words on paper."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import UserError
from node.mnemonics import check_mnemonic, compute_entropy, compute_mnemonic, derive_seed, new_mnemonic

ART = "abandon " * 23 + "art"  # 32 zero bytes, from the vectors of BIP 39
LETTER = (
    "letter advice cage absurd amount doctor acoustic avoid letter advice cage absurd amount doctor acoustic "
    "avoid letter advice cage absurd amount doctor acoustic bless"
)


def test_fresh_words_are_valid_and_never_the_same():
    first, second = new_mnemonic(), new_mnemonic()
    assert check_mnemonic(first) == first
    assert first != second
    assert len(first.split()) == 24


def test_the_vectors_of_bip_39_hold():
    assert compute_mnemonic(bytes(32)) == ART
    assert compute_mnemonic(b"\x80" * 32) == LETTER
    assert compute_entropy(LETTER) == b"\x80" * 32


@given(st.binary(min_size=32, max_size=32))
def test_words_and_bytes_bring_each_other_back(entropy):
    assert compute_entropy(compute_mnemonic(entropy)) == entropy


def test_capitals_and_line_breaks_are_forgiven():
    assert check_mnemonic(f"\n{LETTER.upper().replace(' ', chr(9), 3)}  ") == LETTER


def test_an_unknown_word_is_named_with_its_place_and_a_suggestion():
    with pytest.raises(UserError, match=r'word 2 .* "advise" \(did you mean "advice"\?\)'):
        check_mnemonic(LETTER.replace("advice", "advise", 1))
    with pytest.raises(UserError, match=r'word 1 .* "lettr" \(did you mean "letter"\?\)'):
        check_mnemonic(LETTER.replace("letter", "lettr", 1))
    with pytest.raises(UserError, match=r'word 24 .* "0123456789"'):
        check_mnemonic(LETTER.replace("bless", "0123456789"))


def test_a_wrong_count_and_a_wrong_order_are_told_apart():
    with pytest.raises(UserError, match="24 words; these are 23"):
        check_mnemonic(LETTER.rpartition(" ")[0])
    with pytest.raises(UserError, match="these are 0"):
        check_mnemonic("")
    with pytest.raises(UserError, match="checksum"):
        check_mnemonic(LETTER.replace("letter advice", "advice letter", 1))


@given(st.text(max_size=300))
def test_no_text_makes_more_than_a_one_line_error(text):
    with pytest.raises(UserError) as caught:
        check_mnemonic(text)
    assert str(caught.value).isprintable()


def test_derived_keys_stay_the_same_for_ever():
    assert derive_seed(ART, "account").hex() == ("1914442a084e7b57a0f5ff79b56afef314496b9c64408959218ea90a22273737")


def test_every_purpose_and_index_has_a_key_of_its_own():
    derived = {
        derive_seed(words, purpose, index)
        for words in (ART, LETTER)
        for purpose in ("account", "meter", "seal")
        for index in (0, 1, 2**32 - 1)
    }
    assert len(derived) == 18
    assert derive_seed(ART.upper(), "account") == derive_seed(ART, "account", 0)


def test_wrong_words_derive_nothing():
    with pytest.raises(UserError):
        derive_seed(ART.replace("art", "abandon"), "account")
