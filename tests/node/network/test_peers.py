"""Whom to call again and when, and whom to ignore: plain values, no network."""

from __future__ import annotations

import random

import pytest

from node.network.peers import (
    BACKOFF_SECONDS_MAX,
    BACKOFF_SECONDS_MIN,
    FAULT_SEVERITY,
    RECOVERY_PER_SECOND,
    SHUN_SECONDS,
    STABLE_SECONDS,
    STANDING_FULL,
    Peers,
)


@pytest.fixture
def peers():
    book = Peers(random.Random(1))
    book.set_addresses({"a": ["/somewhere"]}, 0.0)
    return book


def wait_until_due(peers, now):
    """The seconds until peer a is called again."""
    start = now
    while not peers.take_due(now):
        now += 0.01
        assert now - start < 2 * BACKOFF_SECONDS_MAX
    return now - start


def test_a_new_peer_is_called_at_once_and_by_one_task_only(peers):
    assert peers.take_due(0.0) == [("a", ("/somewhere",))]
    assert peers.take_due(100.0) == []


def test_waits_double_up_to_a_limit_and_are_spread(peers):
    now = 0.0
    for failures in range(1, 40):
        peers.take_due(now)
        peers.note_call_ended("a", now, is_connected=False)
        waited = wait_until_due(peers, now)
        expected = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN * 2**failures)
        assert 0.5 * expected - 0.02 <= waited <= 1.5 * expected + 0.02
        now += waited


def test_two_nodes_do_not_call_at_the_same_moment():
    waits = set()
    for seed in range(10):
        book = Peers(random.Random(seed))
        book.set_addresses({"a": ["/somewhere"]}, 0.0)
        book.take_due(0.0)
        book.note_call_ended("a", 0.0, is_connected=False)
        waits.add(round(wait_until_due(book, 0.0), 1))
    assert len(waits) > 3


def test_a_connected_peer_is_not_called(peers):
    peers.take_due(0.0)
    peers.note_call_ended("a", 0.0, is_connected=True)
    peers.observe({"a"}, 1.0)
    assert peers.take_due(1000.0) == []


def test_a_lasting_connection_starts_the_waits_afresh(peers):
    for _ in range(10):
        peers.take_due(1000.0)
        peers.note_call_ended("a", 0.0, is_connected=False)
    peers.observe({"a"}, 2000.0)
    peers.observe(set(), 2000.0 + STABLE_SECONDS)
    assert wait_until_due(peers, 2000.0 + STABLE_SECONDS) <= 1.5 * BACKOFF_SECONDS_MIN + 0.02


def test_a_peer_that_hangs_up_at_once_is_called_ever_more_rarely(peers):
    now = 0.0
    for _ in range(10):
        now += wait_until_due(peers, now)
        peers.note_call_ended("a", now, is_connected=True)
        peers.observe(set(), now + 0.1)
    assert wait_until_due(peers, now) >= 0.5 * BACKOFF_SECONDS_MAX


def test_new_addresses_are_tried_at_once_and_same_ones_keep_the_wait(peers):
    peers.take_due(0.0)
    peers.note_call_ended("a", 0.0, is_connected=False)
    peers.set_addresses({"a": ["/somewhere"]}, 0.1)
    assert peers.take_due(0.1) == []
    peers.set_addresses({"a": ["/elsewhere"]}, 0.1)
    assert peers.take_due(0.1) == [("a", ("/elsewhere",))]


def test_a_removed_peer_is_forgotten_even_in_the_middle_of_a_call(peers):
    peers.take_due(0.0)
    peers.set_addresses({}, 1.0)
    peers.note_call_ended("a", 1.0, is_connected=False)
    assert peers.take_due(1000.0) == []


def test_a_few_faults_are_forgiven_with_time(peers):
    assert peers.note_fault("b", 0.0)
    assert peers.compute_standing("b", 0.0) == STANDING_FULL - FAULT_SEVERITY
    assert peers.compute_standing("b", 100.0) == STANDING_FULL - FAULT_SEVERITY + 100.0 * RECOVERY_PER_SECOND
    assert peers.compute_standing("b", 1e6) == STANDING_FULL


def test_many_faults_shun_a_peer_for_a_while_and_never_for_good(peers):
    verdicts = [peers.note_fault("a", 0.0) for _ in range(6)]
    assert verdicts == [True] * 5 + [False]
    assert not peers.is_welcome("a", 0.0)
    assert peers.compute_standing("a", 0.0) == 0.0
    assert peers.take_due(1.0) == []
    assert not peers.note_fault("a", SHUN_SECONDS / 2)
    assert peers.is_welcome("a", SHUN_SECONDS)
    assert peers.compute_standing("a", SHUN_SECONDS) == STANDING_FULL / 2
    assert peers.take_due(SHUN_SECONDS) == [("a", ("/somewhere",))]


def test_the_table_of_standings_does_not_grow_for_ever(peers):
    for number in range(1000):
        peers.note_fault(f"peer {number}", number * 1000.0)
    assert len(peers._standings) < 10
