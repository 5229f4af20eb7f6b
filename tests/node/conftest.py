"""Four members in this process with all that they need, but no network; six people have credits."""

import pytest

from node.storage.store import Store
from scripts.benchmarks.federation_in_memory import Cast, make_final


@pytest.fixture
async def cast():
    return Cast(4, 6)


@pytest.fixture
async def members(cast):
    members = [cast.open_member(number, Store.open(":memory:", cast.federation)) for number in cast.member_keys]
    for group in cast.make_setup():
        await make_final(members, group)
    return members
