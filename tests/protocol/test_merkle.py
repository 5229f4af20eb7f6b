"""Merkle paths prove exactly one leaf at exactly one position."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import InvalidInput
from protocol.identifiers import Tag
from protocol.merkle import (
    EMPTY_ROOT,
    compute_leaf,
    compute_levels,
    compute_path,
    compute_root,
    compute_root_from_path,
)


def make_leaves(count: int) -> list[bytes]:
    return [compute_leaf(Tag.RECORD_LEAF, bytes([number % 256, number // 256])) for number in range(count)]


def compute_root_by_recursion(leaves: list[bytes]) -> bytes:
    """RFC 6962, 2.1: split at the largest power of two below the count."""
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    left, right = compute_root_by_recursion(leaves[:split]), compute_root_by_recursion(leaves[split:])
    return sha256(Tag.MERKLE_NODE.value + left + right).digest()


@pytest.mark.parametrize("count", [*range(1, 70), 127, 128, 129, 1000, 1024])
def test_the_root_is_that_of_the_recursive_definition(count):
    leaves = make_leaves(count)
    assert compute_root(leaves) == compute_root_by_recursion(leaves)
    assert compute_levels(leaves)[-1] == [compute_root(leaves)]


@pytest.mark.parametrize("count", [*range(1, 34), 63, 64, 65])
def test_every_path_leads_to_the_root_and_to_no_other_position(count):
    leaves = make_leaves(count)
    root, levels = compute_root(leaves), compute_levels(leaves)
    for position in range(count):
        path = compute_path(levels, position)
        assert compute_root_from_path(leaves[position], position, count, path) == root
        for other in range(count):
            if other != position:
                assert not leads_to(root, leaves[position], other, count, path)


def leads_to(root: bytes, leaf: bytes, position: int, count: int, path: tuple[bytes, ...]) -> bool:
    try:
        return compute_root_from_path(leaf, position, count, path) == root
    except InvalidInput:
        return False


@settings(max_examples=300)
@given(st.integers(1, 200), st.data())
def test_a_changed_path_leaf_or_length_does_not_lead_to_the_root(count, draws):
    leaves = make_leaves(count)
    root = compute_root(leaves)
    position = draws.draw(st.integers(0, count - 1))
    path = compute_path(compute_levels(leaves), position)
    other_leaf = compute_leaf(Tag.STATEMENT_LEAF, b"another")
    assert not leads_to(root, other_leaf, position, count, path)
    assert not leads_to(root, leaves[position], position, count, (*path, other_leaf))
    if path:
        assert not leads_to(root, leaves[position], position, count, path[:-1])
        changed = list(path)
        changed[draws.draw(st.integers(0, len(path) - 1))] = other_leaf
        assert not leads_to(root, leaves[position], position, count, tuple(changed))


def test_positions_outside_the_list_are_refused():
    for position, count in ((-1, 4), (4, 4), (0, 0)):
        with pytest.raises(InvalidInput, match="outside"):
            compute_root_from_path(bytes(32), position, count, ())


def test_the_empty_list_has_a_root_of_its_own():
    assert compute_root([]) == EMPTY_ROOT
    assert EMPTY_ROOT not in {compute_root(make_leaves(count)) for count in range(1, 9)}


def test_a_node_can_t_pass_for_a_leaf():
    leaves = make_leaves(4)
    nodes = compute_levels(leaves)[1]
    assert compute_root(nodes) == compute_root(leaves)  # so the count must be signed beside the root
    assert not leads_to(compute_root(leaves), nodes[0], 0, 4, compute_path(compute_levels(nodes), 0))
    contents = leaves[0] + leaves[1]
    assert all(compute_leaf(tag, contents) != nodes[0] for tag in Tag if tag is not Tag.MERKLE_NODE)
