"""Checkpoints: whose turn it is, when a root is certified, and what a proof of facts proves."""

import pytest

from protocol.checkpoints import (
    MS_PER_DAY,
    CheckpointClaims,
    build_checkpoint_proof,
    build_facts_proof,
    is_first_of_day,
    read_balance,
    sort_facts,
    verify_checkpoint,
    verify_facts,
)
from protocol.codec import encode
from protocol.errors import InvalidInput
from protocol.identifiers import Tag
from protocol.ledger import LOTS_PER_FACT
from protocol.merkle import compute_set_root
from protocol.receipts import ProvableBatch
from protocol.records import Lot
from protocol.replica import Replica
from protocol.statements import Checkpoint
from tests.strategies import make_federation, make_id

FEDERATION = make_federation((2, 2, 2, 1))
CHARTERS = {0: FEDERATION.charter}
CLAIM = Checkpoint(make_id("X"), make_id("root"))


def say(member, claim=CLAIM):
    return FEDERATION.batch(member, statements=[claim])


def note(claims, batch):
    return claims.note(CHARTERS, batch.header, batch.id, 0, batch.statements[0])


def begins(number, day, before_ms):
    """True when a member's batch early on this day is the one to pick."""
    batch = FEDERATION.batch(number, statements=[CLAIM], time_ms=day * MS_PER_DAY + 9)
    return is_first_of_day(FEDERATION.charter, batch.header, before_ms)


def test_members_take_turns_by_the_day_and_pick_their_first_batch_of_it():
    for day in range(20_000, 20_008):
        midnight_ms = day * MS_PER_DAY
        picking = FEDERATION.numbers[day % 4]
        assert [n for n in FEDERATION.numbers if begins(n, day, midnight_ms - 1)] == [picking]
        assert not begins(picking, day, midnight_ms + 5)


def test_a_root_is_certified_by_weight_and_each_member_counts_once():
    claims = CheckpointClaims()
    said = [say(1), say(2), say(4)]
    assert [note(claims, batch) for batch in (*said[:2], said[0])] == [False, False, False]
    assert note(claims, said[2]), "2 + 2 + 1 of 7"
    assert not note(claims, say(3)), "it was certified before"


def test_different_roots_and_the_carrying_batch_itself_never_add_up():
    claims = CheckpointClaims()
    for member in FEDERATION.numbers:
        assert not note(claims, say(member, Checkpoint(CLAIM.batch, make_id(f"root of {member}"))))
        assert not note(claims, say(member, Checkpoint(b"", CLAIM.root)))


def test_a_proof_shows_a_quorum_and_no_more():
    claims, batches = CheckpointClaims(), {}
    for member in FEDERATION.numbers:
        batch = say(member)
        note(claims, batch)
        batches[batch.id] = ProvableBatch(batch)
    proof = build_checkpoint_proof(FEDERATION.charter, CLAIM, claims, batches.__getitem__)
    verified = verify_checkpoint(CHARTERS, proof)
    assert (verified.batch, verified.root, verified.members) == (*CLAIM, (1, 2, 3))
    with pytest.raises(InvalidInput, match="not known here"):
        verify_checkpoint({}, proof)


def test_an_account_with_many_lots_is_proved_by_all_parts_of_its_balance():
    ledger = Replica(FEDERATION.charter).ledger
    account = make_id("rich")
    ledger.balances[account] = {Lot(make_id(f"program {n}"), 1): n + 1 for n in range(2 * LOTS_PER_FACT + 1)}
    facts = sort_facts(ledger.compute_facts())
    root = compute_set_root(Tag.STATE_LEAF, facts)
    positions = [number for number, fact in enumerate(facts) if account in fact]
    assert len(positions) == 3
    proved = verify_facts(root, build_facts_proof(facts, positions))
    assert read_balance(account, proved) == ledger.balances[account]
    for left_out in positions:
        part = [position for position in positions if position != left_out]
        with pytest.raises(InvalidInput, match="whole"):
            read_balance(account, verify_facts(root, build_facts_proof(facts, part)))


def test_a_fact_that_is_not_under_the_root_is_refused():
    facts = sort_facts(Replica(FEDERATION.charter).ledger.compute_facts())
    root = compute_set_root(Tag.STATE_LEAF, facts)
    invented = sort_facts([*facts, encode(("applied", 7))])
    position = invented.index(encode(("applied", 7)))
    with pytest.raises(InvalidInput, match="root"):
        verify_facts(root, build_facts_proof(invented, [position]))
