"""One strict rule for signatures, at its edges and against libsodium as a second opinion."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.bindings import crypto_sign_open
from nacl.exceptions import CryptoError

from protocol.signatures import (
    FIELD_PRIME,
    FORBIDDEN_POINTS,
    GROUP_ORDER,
    SMALL_ORDER_Y,
    add_points,
    decompress_point,
    is_prime_order_key,
    is_valid_signature,
    multiply_point,
)
from tests.strategies import make_key, make_public_key

VECTORS = Path(__file__).resolve().parent.parent / "vectors" / "ed25519_edge_cases.json"
CASES = json.loads(VECTORS.read_text(encoding="utf-8"))["cases"]
CASES_BY_NAME = {case["name"]: case for case in CASES}
MIXED_KEY = bytes.fromhex(CASES_BY_NAME["mixed-order key, 8 divides the challenge"]["public_key"])


def read(case):
    return tuple(bytes.fromhex(case[part]) for part in ("public_key", "message", "signature"))


def asks_libsodium(public_key, message, signature):
    try:
        return crypto_sign_open(signature + message, public_key) == message
    except CryptoError:
        return False


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_strict_rule_decides_every_edge_case_as_libsodium_does(case):
    assert is_valid_signature(*read(case)) == case["is_valid"]
    assert asks_libsodium(*read(case)) == case["is_valid"]


@settings(max_examples=300)
@given(st.sampled_from(CASES), st.integers(0, 96 * 8 - 1), st.booleans())
def test_one_flipped_bit_never_makes_the_two_disagree(case, bit, is_honest):
    key, message, signature = read(CASES_BY_NAME["ordinary"] if is_honest else case)
    both = bytearray(key + signature)
    both[bit // 8] ^= 1 << bit % 8
    flipped = bytes(both[:32]), message, bytes(both[32:])
    assert is_valid_signature(*flipped) == asks_libsodium(*flipped)
    if is_honest:
        assert not is_valid_signature(*flipped)


@given(st.binary(max_size=70), st.binary(max_size=5), st.binary(max_size=130))
def test_no_bytes_at_all_raise(key, message, signature):
    assert not is_valid_signature(key, message, signature)


def test_keys_and_signatures_of_another_length_are_refused():
    key, message, signature = read(CASES_BY_NAME["ordinary"])
    assert is_valid_signature(key, message, signature)
    assert not is_valid_signature(key + b"\0", message, signature)
    assert not is_valid_signature(key[:31], message, signature)
    assert not is_valid_signature(key, message, signature + b"\0")
    assert not is_valid_signature(key, message, signature[:63])


def test_the_forbidden_points_are_all_of_small_order_and_all_that_have_two_spellings():
    assert len(FORBIDDEN_POINTS) == 48
    for y in SMALL_ORDER_Y:
        point = decompress_point(y.to_bytes(32, "little"))
        assert point is not None
        assert multiply_point(8, point) == (0, 1)
    # The eight points are the multiples of one of order 8; x and -x share one y.
    torsion = set()
    generator = next(
        point
        for y in SMALL_ORDER_Y
        if (point := decompress_point(y.to_bytes(32, "little"))) and multiply_point(4, point) != (0, 1)
    )
    for count in range(8):
        torsion.add(multiply_point(count, generator))
    assert {y for _, y in torsion} == set(SMALL_ORDER_Y)
    assert len(torsion) == 8
    for y in range(FIELD_PRIME, 2**255):
        assert y.to_bytes(32, "little") in FORBIDDEN_POINTS


def test_ordinary_keys_have_prime_order_and_others_don_t():
    assert all(is_prime_order_key(make_public_key(f"key {number}")) for number in range(3))
    assert not is_prime_order_key(MIXED_KEY)
    assert not any(is_prime_order_key(encoded) for encoded in FORBIDDEN_POINTS)
    assert not is_prime_order_key(b"")


def test_half_of_all_numbers_are_no_points():
    points = [decompress_point(y.to_bytes(32, "little")) for y in range(2, 60)]
    assert 10 < sum(point is None for point in points) < 48
    for point in points:
        if point is not None:
            assert add_points(point, (-point[0] % FIELD_PRIME, point[1])) == (0, 1)


def test_the_scalar_must_be_below_the_order_of_the_group():
    key = make_key("scalar")
    public_key, signature = make_public_key("scalar"), key.sign(b"m")
    scalar = int.from_bytes(signature[32:], "little")
    assert is_valid_signature(public_key, b"m", signature)
    for multiple in range(1, 16):
        if scalar + multiple * GROUP_ORDER < 2**256:
            malleable = signature[:32] + (scalar + multiple * GROUP_ORDER).to_bytes(32, "little")
            assert not is_valid_signature(public_key, b"m", malleable)
