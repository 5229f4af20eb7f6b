"""When a signature holds: one strict rule, the same at every replica whatever library is below it.

Libraries disagree about odd Ed25519 keys and signatures; where two replicas disagree, a key's owner can split a
quorum. The rule (spec 2.2), on top of RFC 8032: with the sign bit cleared, neither the key A nor the commitment R may
be a non-canonical y (y >= p) or the y of a point of small order, and S < L. The sign bit is cleared first because
x = 0 with the sign bit set is a second spelling of small-order points that some libraries accept.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


class Signer(Protocol):
    """Whoever holds a private key: an `Ed25519PrivateKey`, or a key file that was opened."""

    def sign(self, data: bytes, /) -> bytes:
        """The Ed25519 signature, 64 bytes."""


PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64
NO_SIGNATURE = bytes(SIGNATURE_BYTES)
"""Stands where somebody still has to sign: valid for no key."""

FIELD_PRIME = 2**255 - 19
GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493
CURVE_D = -121665 * pow(121666, -1, FIELD_PRIME) % FIELD_PRIME

_ORDER_EIGHT_Y = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
SMALL_ORDER_Y = (0, 1, FIELD_PRIME - 1, _ORDER_EIGHT_Y, FIELD_PRIME - _ORDER_EIGHT_Y)
"""The y of the eight points whose order divides 8: of order 4, 1, 2, 8 and 8 (x and -x share one y)."""

_SIGN_BIT = 1 << 255
FORBIDDEN_POINTS = frozenset(
    (y | sign).to_bytes(32, "little")
    for y in (*SMALL_ORDER_Y, *range(FIELD_PRIME, _SIGN_BIT))
    for sign in (0, _SIGN_BIT)
)
"""Every encoding of 32 bytes that is refused as A or R: small order, or y >= p; 48 in all, with both sign bits."""


LOADED_KEYS_MAX = 8192
"""Keys that stay loaded, half a kB each: an account pays often, and loading its key is 2 % of a verification."""

_ORDER_TOP_BYTE = GROUP_ORDER >> 248
"""The top byte of L: an S whose own is smaller is below L."""


@lru_cache(maxsize=LOADED_KEYS_MAX)
def _load_key(public_key: bytes) -> Ed25519PublicKey | None:
    """The key, or None when the rule refuses it whatever was signed. A pure function, so remembering is safe."""
    if len(public_key) != PUBLIC_KEY_BYTES or public_key in FORBIDDEN_POINTS:
        return None
    try:
        return Ed25519PublicKey.from_public_bytes(public_key)
    except ValueError:
        return None


def is_valid_signature(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """True when `signature` is the key's over `message` under the strict rule. Never raises for any bytes."""
    if len(signature) != SIGNATURE_BYTES or signature[:32] in FORBIDDEN_POINTS:
        return False
    if signature[63] >= _ORDER_TOP_BYTE and int.from_bytes(signature[32:], "little") >= GROUP_ORDER:
        return False
    key = _load_key(public_key)
    if key is None:
        return False
    try:
        key.verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


Point = tuple[int, int]


def add_points(left: Point, right: Point) -> Point:
    """The group law of edwards25519 in affine coordinates; slow and plain, for checks made once."""
    (x1, y1), (x2, y2) = left, right
    product = CURVE_D * x1 * x2 * y1 * y2 % FIELD_PRIME
    x3 = (x1 * y2 + x2 * y1) * pow(1 + product, -1, FIELD_PRIME) % FIELD_PRIME
    y3 = (y1 * y2 + x1 * x2) * pow(1 - product, -1, FIELD_PRIME) % FIELD_PRIME
    return x3, y3


def multiply_point(scalar: int, point: Point) -> Point:
    """scalar * point by doubling and adding."""
    total: Point = (0, 1)
    while scalar:
        if scalar & 1:
            total = add_points(total, point)
        point = add_points(point, point)
        scalar >>= 1
    return total


def decompress_point(encoded: bytes) -> Point | None:
    """The point of 32 bytes (RFC 8032, 5.1.3), or None when they name none."""
    number = int.from_bytes(encoded, "little")
    sign, y = number >> 255, number & (_SIGN_BIT - 1)
    if y >= FIELD_PRIME:
        return None
    square = (y * y - 1) * pow(CURVE_D * y * y + 1, -1, FIELD_PRIME) % FIELD_PRIME
    x = pow(square, (FIELD_PRIME + 3) // 8, FIELD_PRIME)
    if x * x % FIELD_PRIME != square:
        x = x * pow(2, (FIELD_PRIME - 1) // 4, FIELD_PRIME) % FIELD_PRIME
    if x * x % FIELD_PRIME != square or (x == 0 and sign):
        return None
    return (FIELD_PRIME - x if x % 2 != sign else x), y


@lru_cache(maxsize=4096)
def is_prime_order_key(public_key: bytes) -> bool:
    """True when the key lies in the subgroup of prime order, so it has no component of small order.

    About 50 ms of plain arithmetic, so a key is asked about once, however many charters name it (spec 2.2).
    """
    if len(public_key) != PUBLIC_KEY_BYTES or public_key in FORBIDDEN_POINTS:
        return False
    point = decompress_point(public_key)
    return point is not None and multiply_point(GROUP_ORDER, point) == (0, 1)
