"""What gossip brings is checked before it is passed on, by the charter version that it names."""

import pytest

from node.network.gossip import Gossip
from node.storage.store import Store
from protocol.errors import InvalidInput
from scripts.benchmarks.federation_in_memory import Cast, exchange
from tests.amendments import put_in_force, sign_amendment


@pytest.fixture
async def cast():
    return Cast(4, 0)


@pytest.fixture
async def members(cast):
    return [cast.open_member(number, Store.open(":memory:", cast.federation)) for number in cast.member_keys]


async def test_a_batch_of_an_unknown_charter_version_is_not_forwarded_not_blamed_and_asked_for(cast, members):
    await put_in_force(members, sign_amendment(cast, members[0], {}, speakers=members), members[:3])
    second = sign_amendment(cast, members[0], {}, speakers=members)
    await members[0].approve(second.id)
    await members[0].submit(second.encoded)
    spoken = await exchange(members)

    asked: list[str] = []
    behind = Gossip({0: cast.founded.charter}, members[0].take_in)
    behind.on_unknown_version.append(asked.append)
    assert not behind.is_worth_forwarding("peer", behind.topics[0], spoken[0])
    assert asked == ["peer"]
    ahead = Gossip(members[1].replica.ledger.charters, members[1].take_in)
    assert ahead.is_worth_forwarding("peer", ahead.topics[0], spoken[0])
    with pytest.raises(InvalidInput):
        ahead.is_worth_forwarding("peer", ahead.topics[0], spoken[0][:-1])
