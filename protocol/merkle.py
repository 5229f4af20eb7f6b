"""A short proof that one item stands in a long list, so a receipt needs not carry the whole batch.

The tree of RFC 6962: leaves in order, an odd last node moves up unchanged. The number of leaves stands beside
the root, so the shape of a path is fixed by (position, count) and no path serves for two positions (spec 2.4).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256

from protocol.errors import InvalidInput
from protocol.identifiers import Tag

_NODE = Tag.MERKLE_NODE
EMPTY_ROOT = sha256(Tag.MERKLE_EMPTY).digest()


def compute_leaf(tag: Tag, content: bytes) -> bytes:
    """The leaf of `content`; the tag keeps leaves apart from nodes, and leaves of one type from those of another."""
    return sha256(tag + content).digest()


def _next_level(level: Sequence[bytes]) -> list[bytes]:
    parents = [sha256(_NODE + left + right).digest() for left, right in zip(level[::2], level[1::2], strict=False)]
    if len(level) % 2:
        parents.append(level[-1])
    return parents


def compute_root(leaves: Sequence[bytes]) -> bytes:
    """The root over `leaves` in their order; the empty list has a root of its own."""
    level = leaves
    while len(level) > 1:
        level = _next_level(level)
    return level[0] if level else EMPTY_ROOT


def compute_set_root(tag: Tag, contents: Iterable[bytes]) -> bytes:
    """The root over a set: the leaves of its items in ascending order, so that each set has one root."""
    return compute_root(sorted(compute_leaf(tag, content) for content in contents))


def compute_levels(leaves: Sequence[bytes]) -> list[Sequence[bytes]]:
    """All levels of the tree, leaves first: kept by whoever proves many leaves of one list."""
    levels = [leaves]
    while len(levels[-1]) > 1:
        levels.append(_next_level(levels[-1]))
    return levels


def compute_path(levels: Sequence[Sequence[bytes]], position: int) -> tuple[bytes, ...]:
    """The siblings from the leaf at `position` up to the root, lowest first; levels without a sibling give none."""
    assert 0 <= position < len(levels[0])
    path = []
    for level in levels:
        sibling = position ^ 1
        if sibling < len(level):
            path.append(level[sibling])
        position //= 2
    return tuple(path)


def compute_root_from_path(leaf: bytes, position: int, count: int, path: Sequence[bytes]) -> bytes:
    """The root that `leaf` at `position` of `count` leaves implies. Raises: InvalidInput when the path can't fit."""
    if not 0 <= position < count:
        raise InvalidInput("the position lies outside the list")
    node = leaf
    siblings = iter(path)
    while count > 1:
        if position ^ 1 < count:
            sibling = next(siblings, None)
            if sibling is None:
                raise InvalidInput("the Merkle path is too short")
            node = sha256(_NODE + (sibling + node if position % 2 else node + sibling)).digest()
        position //= 2
        count = (count + 1) // 2
    if next(siblings, None) is not None:
        raise InvalidInput("the Merkle path is too long")
    return node
