"""One value has one encoding: what is signed, hashed and stored is the same bytes for everybody, for ever.

Canonical msgpack (spec 2.1): arrays, unsigned integers below 2**53, byte strings and UTF-8 text, each in its
shortest form; no maps, floats, booleans, nil or extensions, so nothing has two spellings. `decode` accepts exactly
the bytes that `encode` produces: the shape is checked type by type, then the value is packed again and compared,
which catches every longer spelling of the same value.

A *shape* describes the values of one place; `shape(value)` raises `InvalidInput` unless the value fits.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import msgpack

from protocol.errors import InvalidInput
from protocol.limits import INTEGER_MAX, PROTOCOL_VERSION

Shape = Callable[[Any], None]

_ARRAY_ITEMS_MAX = 1024
"""Items of one array, before any is allocated. With msgpack's nesting bound of 1,024 this bounds what hostile
headers can make the decoder allocate to 8 MiB."""


def uint(maximum: int = INTEGER_MAX, minimum: int = 0) -> Shape:
    """An integer from `minimum` to `maximum`. `type(x) is int` keeps booleans out, which Python counts as integers."""
    assert 0 <= minimum <= maximum <= INTEGER_MAX

    def check(value: Any) -> None:
        if type(value) is not int or not minimum <= value <= maximum:
            raise InvalidInput(f"an integer from {minimum} to {maximum} is needed, not {_show(value)}")

    return check


VERSION_SHAPE = uint(PROTOCOL_VERSION, PROTOCOL_VERSION)
"""The first item of whatever is kept or sent on its own: records, headers, receipts, proofs, letters."""


def binary(length: int) -> Shape:
    """Exactly `length` bytes."""

    def check(value: Any) -> None:
        if type(value) is not bytes or len(value) != length:
            raise InvalidInput(f"{length} bytes are needed, not {_show(value)}")

    return check


def binary_up_to(length_max: int, length_min: int = 0) -> Shape:
    """A byte string of bounded length."""

    def check(value: Any) -> None:
        if type(value) is not bytes or not length_min <= len(value) <= length_max:
            raise InvalidInput(f"{length_min} to {length_max} bytes are needed, not {_show(value)}")

    return check


def optional_binary(length: int) -> Shape:
    """`length` bytes, or the empty byte string for "none"."""

    def check(value: Any) -> None:
        if type(value) is not bytes or len(value) not in (0, length):
            raise InvalidInput(f"{length} or no bytes are needed, not {_show(value)}")

    return check


def text(bytes_max: int, bytes_min: int = 0) -> Shape:
    """UTF-8 text of bounded size."""

    def check(value: Any) -> None:
        if type(value) is not str:
            raise InvalidInput(f"text is needed, not {_show(value)}")
        if not bytes_min <= len(value.encode("utf-8", "surrogatepass")) <= bytes_max:
            raise InvalidInput(f"{bytes_min} to {bytes_max} bytes of text are needed")

    return check


def items(*shapes: Shape) -> Shape:
    """An array of fixed arity, item by item.

    `type(value) is tuple`, here and in lists, keeps msgpack's extension out, which Python spells as a named tuple.
    """
    arity = len(shapes)

    def check(value: Any) -> None:
        if type(value) is not tuple or len(value) != arity:
            raise InvalidInput(f"an array of {arity} items is needed, not {_show(value)}")
        for item_shape, item in zip(shapes, value, strict=True):
            item_shape(item)

    return check


def list_of(shape: Shape, length_max: int, length_min: int = 0) -> Shape:
    """A homogeneous list of bounded length."""
    assert length_max <= _ARRAY_ITEMS_MAX

    def check(value: Any) -> None:
        if type(value) is not tuple or not length_min <= len(value) <= length_max:
            raise InvalidInput(f"a list of {length_min} to {length_max} items is needed, not {_show(value)}")
        for item in value:
            shape(item)

    return check


def set_of(shape: Shape, length_max: int, length_min: int = 0) -> Shape:
    """A list in strictly ascending order: each set of values has one spelling."""
    check_list = list_of(shape, length_max, length_min)

    def check(value: Any) -> None:
        check_list(value)
        if any(left >= right for left, right in pairwise(value)):
            raise InvalidInput("the items of a set must be strictly ascending")

    return check


_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack
"""One packer for all: it forgets what it wrote before it returns or raises, and a call is never interrupted."""


def encode(value: tuple[Any, ...]) -> bytes:
    """The canonical bytes of a value that fits its shape."""
    return _pack(value)


def unpack(encoded: bytes, bytes_max: int) -> Any:
    """The value that the bytes spell, its shape not yet checked. Raises: InvalidInput."""
    if len(encoded) > bytes_max:
        raise InvalidInput(f"{len(encoded)} bytes, {bytes_max} are allowed")
    try:
        return msgpack.unpackb(
            encoded,
            use_list=False,
            max_array_len=_ARRAY_ITEMS_MAX,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException, RecursionError, TypeError) as error:
        raise InvalidInput(f"no canonical encoding: {type(error).__name__}") from None


def check_canonical(value: Any, encoded: bytes) -> None:
    """Raise `InvalidInput` unless `encoded` is the one spelling of `value`, whose shape has been checked."""
    try:
        if encode(value) != encoded:
            raise InvalidInput("not the canonical encoding")
    except (UnicodeEncodeError, OverflowError):
        raise InvalidInput("not the canonical encoding") from None


def decode(shape: Shape, encoded: bytes, bytes_max: int) -> Any:
    """The value of canonical bytes. Invariant: `encode(decode(shape, b, m)) == b`. Raises: InvalidInput."""
    value = unpack(encoded, bytes_max)
    shape(value)
    check_canonical(value, encoded)
    return value


def _show(value: Any) -> str:
    if isinstance(value, (bytes, str, tuple)):
        return f"{type(value).__name__} of length {len(value)}"
    return f"{type(value).__name__}" if not isinstance(value, int) else "another number"
