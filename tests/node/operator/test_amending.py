"""A drafted amendment changes what it says, keeps what it may not touch, and can't show one thing and be another."""

from pathlib import Path

import msgspec
import pytest

from node.errors import UserError
from node.operator.amending import Changes, compose_amendment, describe_changes, open_amendment
from node.operator.founding import compose_draft, open_draft
from protocol.charter import Rate, decode_charter
from protocol.credits import format_credits
from tests.node.operator.institution import make_card, make_keys, make_options

FRESH = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
HERE = Path("next.json")


@pytest.fixture
def charters():
    cards = [make_card(number) for number in (1, 2, 3, 4)]
    return {0: open_draft(compose_draft(cards, make_options(epochs=3)), HERE)}


def amend(charters, epoch=2, vote_keys=None, **changes):
    draft = compose_amendment(charters, Changes(**changes), vote_keys or {}, epoch)
    return draft, open_amendment(draft, charters, HERE)


def test_a_new_member_gets_the_next_number_the_lowest_caps_and_nothing_for_epochs_gone_by(charters):
    draft, after = amend(charters, added=[(make_card(5), 1)])
    old, new = after.members[1], after.members[5]
    assert new.issuance_caps == (0, *old.issuance_caps[1:])
    assert new.vote_key == make_keys(5)[1].public_key
    assert any(change.startswith("Member 5 joins as member 5") for change in draft.changes)
    assert any("quorum becomes weight 4 of 5" in change for change in draft.changes)


def test_a_number_of_a_member_that_left_is_not_given_again(charters):
    _, first = amend(charters, added=[(make_card(5), 1)])
    _, second = amend({**charters, 1: first}, removed=["Member 5"])
    _, third = amend({**charters, 1: first, 2: second}, added=[(make_card(6), 1)])
    assert third.members.keys() == {1, 2, 3, 4, 6}


def test_everything_that_may_change_is_told_in_words(charters):
    draft, after = amend(
        charters,
        vote_keys={1: FRESH},
        weights={"Member 2": 2, "Member 1": 2, "Member 3": 2, "Member 4": 2},
        caps={"Member 1": 2_000_000_000},
        names={"Member 3": "Hochschule"},
        member_keys={"Member 4": make_keys(9)[0].public_key},
        rates=(Rate("L4", 300), Rate("T4", 90)),
        acceptable_use="Be kind.",
    )
    text = "\n".join(draft.changes)
    for expected in (
        "The vote key of Member 1 becomes d75a980182b10ab7",
        "The weight of Member 2 becomes 2; it was 1.",
        f"Member 1 may grant up to {format_credits(2_000_000_000)} credits an epoch",
        "Member 3 is called Hochschule from now on.",
        "The member key of Member 4 becomes",
        "The rate of L4 becomes 300; it was 258.",
        "The rate of T4 becomes 90; it is new.",
        "Acceptable use becomes",
    ):
        assert expected in text
    assert after.members[1].issuance_caps[0] == charters[0].members[1].issuance_caps[0]
    assert describe_changes(charters[0], after) == draft.changes
    assert describe_changes(after, after) == []


def test_who_told_no_vote_key_keeps_its_own(charters):
    _, after = amend(charters, vote_keys={1: FRESH}, weights={})
    assert after.members[1].vote_key == FRESH
    assert after.members[2].vote_key == charters[0].members[2].vote_key


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({}, "nothing would change"),
        ({"removed": ["Nobody"]}, "is no member"),
        ({"weights": {"Member 1": 9}}, "block alone"),
        ({"caps": {"Member 1": 1}}, "never lowered"),
        ({"removed": ["Member 1"]}, "can't outvote"),
        ({"added": [(make_card(1, "Twin"), 1)]}, "key of its own"),
    ],
)
def test_what_makes_no_charter_is_refused_in_words(charters, changes, what):
    with pytest.raises(UserError, match=what):
        amend(charters, **changes)


def test_a_draft_that_shows_another_change_than_it_holds_is_refused(charters):
    draft, _ = amend(charters, added=[(make_card(5), 1)])
    other, _ = amend(charters, weights={"Member 1": 2, "Member 2": 2, "Member 3": 2, "Member 4": 2})
    for forged in (
        msgspec.structs.replace(draft, encoded=other.encoded),
        msgspec.structs.replace(draft, changes=draft.changes[:-1]),
        msgspec.structs.replace(draft, version=2),
        msgspec.structs.replace(draft, acceptable_use="Anything goes."),
    ):
        with pytest.raises(UserError, match="not what would be signed"):
            open_amendment(forged, charters, HERE)
    later = {**charters, 1: decode_charter(draft.encoded, charters[0].federation)}
    with pytest.raises(UserError, match="may follow version 1"):
        open_amendment(draft, later, HERE)
