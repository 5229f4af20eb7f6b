"""One value has one encoding: what is signed, hashed and stored is the same bytes for everybody, for ever.

Canonical msgpack (spec 2.1): arrays, unsigned integers below 2**53, byte strings and UTF-8 text, each in its
shortest form; no maps, floats, booleans, nil or extensions, so nothing has two spellings. `decode` accepts exactly
the bytes that `encode` produces: the shape is checked type by type, then the value is packed again and compared,
which catches every longer spelling of the same value.

A *shape* describes the values of one place; `shape(value)` raises `InvalidInput` unless the value fits. A replica
spends more on shapes than on hashing, so a shape is compiled: see `Shape`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import msgpack

from protocol.errors import InvalidInput
from protocol.limits import INTEGER_MAX

_ARRAY_ITEMS_MAX = 1024
"""Items of one array, before any is allocated. With msgpack's nesting bound of 1,024 this bounds what hostile
headers can make the decoder allocate to 8 MiB."""

Parts = Callable[[tuple[Any, ...]], Iterable[tuple["Shape", Any]]]


class Shape:
    """The values of one place, as a condition in Python: `write(place)` is its text for the value found at `place`.

    The condition of an array holds those of its items, so that of a whole record is one expression, compiled once and
    evaluated without a call an item. The text is made of nothing but this file and the numbers in our own shapes.
    """

    __slots__ = ("_fits", "_parts", "_wanted", "write")

    def __init__(self, write: Callable[[str], str], wanted: str, parts: Parts = lambda _: ()) -> None:
        self.write = write
        self._wanted = wanted
        self._parts = parts
        """The items of a tuple, each with its shape: only to say which of them does not fit."""
        self._fits: Callable[[Any], bool] = eval(f"lambda value: {write('value')}", {"pairwise": pairwise})

    def __call__(self, value: Any) -> None:
        """Raises: InvalidInput unless the value fits."""
        if not self._fits(value):
            if type(value) is tuple:
                for shape, item in self._parts(value):
                    shape(item)
            raise InvalidInput(f"{self._wanted} needed, not {_show(value)}")


ANYTHING = Shape(lambda place: "True", "")
"""Fits whatever is there: another shape looks at it later."""


def uint(maximum: int = INTEGER_MAX, minimum: int = 0) -> Shape:
    """An integer from `minimum` to `maximum`. `type(x) is int` keeps booleans out, which Python counts as integers."""
    assert 0 <= minimum <= maximum <= INTEGER_MAX
    return Shape(
        lambda place: f"type({place}) is int and {minimum:d} <= {place} <= {maximum:d}",
        f"an integer from {minimum:d} to {maximum:d} is",
    )


def binary(length: int) -> Shape:
    """Exactly `length` bytes."""
    return Shape(lambda place: f"type({place}) is bytes and len({place}) == {length:d}", f"{length} bytes are")


def binary_up_to(length_max: int, length_min: int = 0) -> Shape:
    """A byte string of bounded length."""
    return Shape(
        lambda place: f"type({place}) is bytes and {length_min:d} <= len({place}) <= {length_max:d}",
        f"{length_min} to {length_max} bytes are",
    )


def optional_binary(length: int) -> Shape:
    """`length` bytes, or the empty byte string for "none"."""
    return Shape(
        lambda place: f"type({place}) is bytes and len({place}) in (0, {length:d})", f"{length} or no bytes are"
    )


def bitmap(length_max: int) -> Shape:
    """A set of positions as little-endian bits without trailing zero bytes, so each set has one spelling."""
    return Shape(
        lambda place: f"type({place}) is bytes and len({place}) <= {length_max:d} and {place}[-1:] != bytes(1)",
        f"a bitmap of up to {length_max} bytes, the last not zero, is",
    )


def text(bytes_max: int, bytes_min: int = 0) -> Shape:
    """UTF-8 text of bounded size."""

    def write(place: str) -> str:
        size = f"len({place}.encode('utf-8', 'surrogatepass'))"
        return f"type({place}) is str and {bytes_min:d} <= {size} <= {bytes_max:d}"

    return Shape(write, f"{bytes_min} to {bytes_max} bytes of text are")


def items(*shapes: Shape) -> Shape:
    """An array of fixed arity, item by item.

    `type(value) is tuple`, here and in lists, keeps msgpack's extension out, which Python spells as a named tuple.
    """
    arity = len(shapes)

    def write(place: str) -> str:
        conditions = [f"({shape.write(f'{place}[{number}]')})" for number, shape in enumerate(shapes)]
        return " and ".join((f"type({place}) is tuple and len({place}) == {arity}", *conditions))

    return Shape(
        write,
        f"an array of {arity} items is",
        lambda value: zip(shapes, value, strict=True) if len(value) == arity else (),
    )


def list_of(shape: Shape, length_max: int, length_min: int = 0) -> Shape:
    """A homogeneous list of bounded length."""
    assert length_max <= _ARRAY_ITEMS_MAX

    def write(place: str) -> str:
        # An inner list may call its items `item`, too: what follows `in` is read before the name is given anew.
        each = f"all([{shape.write('item')} for item in {place}])"
        return f"type({place}) is tuple and {length_min:d} <= len({place}) <= {length_max:d} and {each}"

    return Shape(
        write,
        f"a list of {length_min} to {length_max} items is",
        lambda value: [(shape, item) for item in value] if length_min <= len(value) <= length_max else (),
    )


def set_of(shape: Shape, length_max: int, length_min: int = 0) -> Shape:
    """A list in strictly ascending order: each set of values has one spelling."""
    whole_list = list_of(shape, length_max, length_min)

    def write(place: str) -> str:
        return f"{whole_list.write(place)} and all([left < right for left, right in pairwise({place})])"

    return Shape(write, "strictly ascending items of a set are", lambda value: [(whole_list, value)])


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
