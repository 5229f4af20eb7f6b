"""Who is let in follows the charter; where nodes are reached is learnt from files, settings and cards."""

import pytest

from node.errors import UserError
from node.neighbours import Neighbours
from node.network.peer_ids import compute_peer_id
from protocol.charter import Charter
from scripts.benchmarks.federation_in_memory import Cast

HERE = "/ip4/192.0.2.1/tcp/4001"
THERE = "/ip4/192.0.2.2/tcp/4001"


@pytest.fixture
def charters():
    cast = Cast(4, 0)
    first = cast.founded.charter
    members = (*first.fields.members[1:], cast.make_member(5)._replace(name="Newcomer"))
    fields = first.fields._replace(version=1, prev=first.id, members=members)
    return {0: first, 1: Charter(fields, first.federation)}


def name_peer(charters, number, version=0):
    return compute_peer_id(charters[version].members[number].peer_key)


def test_members_of_all_versions_that_are_followed_are_let_in_but_not_we(charters):
    neighbours = Neighbours(2, charters, {}, [])
    assert name_peer(charters, 1) in neighbours
    assert name_peer(charters, 5, 1) in neighbours
    assert name_peer(charters, 2) not in neighbours
    assert "12D3KooWstranger" not in neighbours
    neighbours.follow([charters[1]])
    assert name_peer(charters, 1) not in neighbours
    assert neighbours.get_number(name_peer(charters, 1)) == 0
    assert neighbours.get_number(name_peer(charters, 5, 1)) == 5


def test_a_member_that_left_may_call_until_the_charter_changes_again_and_nobody_calls_it(charters):
    neighbours = Neighbours(2, charters, {"member 1": HERE, "member 3": HERE}, [])
    left = name_peer(charters, 1)
    neighbours.follow([charters[1]], before=[charters[0]])
    assert left in neighbours
    assert neighbours.get_number(left) == 1
    assert left not in neighbours.list_calls()
    assert set(neighbours.list_calls()) == {name_peer(charters, number, 1) for number in (3, 4, 5)}
    assert neighbours.list_addresses() == {"member 3": HERE}


def test_addresses_come_from_the_file_the_settings_and_cards(charters):
    new = name_peer(charters, 5, 1)
    other = f"{THERE}/p2p/{name_peer(charters, 3)}"
    neighbours = Neighbours(2, charters, {"member 2": HERE, "member 3": HERE}, [other])
    assert neighbours.list_calls()[name_peer(charters, 3)] == [HERE, other]
    assert not neighbours.has_address(new)
    assert not neighbours.note_address(new, "nonsense")
    assert neighbours.note_address(new, THERE)
    assert neighbours.list_addresses() == {"member 2": HERE, "member 3": HERE, "Newcomer": THERE}


def test_settings_that_name_a_stranger_are_refused(charters):
    with pytest.raises(UserError, match="no other member"):
        Neighbours(2, charters, {}, [f"{THERE}/p2p/12D3KooWstranger"])
