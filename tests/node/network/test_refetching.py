"""Old batches come back by their ids, in bounded pieces, from a peer that need not be trusted."""

from contextlib import AsyncExitStack

import pytest
import trio

from node.network.refetching import BatchExchange
from node.network.simulated_transport import SimulatedNetwork, SimulatedTransport
from node.storage.store import Store
from protocol.errors import InvalidInput
from scripts.benchmarks.federation_in_memory import Cast, make_final


@pytest.fixture
async def batches(autojump_clock):
    """(federation, id -> batch) of some ledger."""
    cast = Cast(4, 6)
    members = [cast.open_member(number, Store.open(":memory:", cast.federation)) for number in cast.member_keys]
    for group in cast.make_setup():
        await make_final(members, group)
    return cast.federation, {batch: encoded for _, batch, encoded in members[0].store.get_batches(1, 100)}


async def ignore(*_):
    raise AssertionError("nobody gossips here")


async def fetch(federation, held, wanted):
    """What the right one gets of the left one, which holds `held`; and what it is handed piece by piece."""
    network = SimulatedNetwork()
    transports = {
        name: SimulatedTransport(
            network, name, topics=(), validate=lambda *_: True, on_gossip=ignore, is_admitted=lambda _: True
        )
        for name in ("left", "right")
    }
    BatchExchange(federation, transports["left"], held.get)
    asking = BatchExchange(federation, transports["right"], lambda _: None)
    transports["left"].set_peers({"right": ["right"]})
    transports["right"].set_peers({"left": ["left"]})
    kept: list[bytes] = []
    async with AsyncExitStack() as stack:
        for transport in transports.values():
            await stack.enter_async_context(transport.run())
        with trio.fail_after(5):
            while "left" not in transports["right"].connected():
                await trio.sleep(0.01)
        found = await asking.fetch("left", wanted)
        count = await asking.fetch_all(wanted, kept.extend)
    assert count == len(kept) == len(found)
    return found


async def test_what_the_peer_has_comes_back_and_the_rest_is_left_out(batches, monkeypatch):
    federation, held = batches
    monkeypatch.setattr("node.network.refetching.SYNC_BYTES_MAX", 3000)
    monkeypatch.setattr("node.network.refetching.PIECE_BATCHES_MAX", 5)
    wanted = [b"?" * 32, *held, b"!" * 32]
    assert await fetch(federation, held, wanted) == held
    some = dict(list(held.items())[::2])
    assert await fetch(federation, some, wanted) == some


async def test_a_batch_under_another_id_is_refused(batches):
    federation, held = batches
    names = list(held)
    swapped = {names[0]: held[names[1]]}
    with pytest.raises(ExceptionGroup) as caught:
        await fetch(federation, swapped, names[:1])
    assert caught.group_contains(InvalidInput)
