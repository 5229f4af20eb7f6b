"""An institution hands out its vote key, proposes an amendment and approves one; nobody does so in its place."""

from contextlib import AsyncExitStack

import pytest
import trio

from node import api
from node.errors import UserError
from node.keystore import Key
from node.network.simulated_transport import SimulatedNetwork, SimulatedTransport
from node.operator.actions import OperatorActions
from node.operator.amending import Changes, compose_amendment
from node.operator.amendments import AmendmentActions
from node.operator.cli_amend import describe_contest, describe_proposals
from node.operator.outbox import Outbox
from node.operator.vote_cards import VoteCards
from node.storage.store import Store
from node.web.charter_views import CharterViews
from protocol.errors import Reason, Rejected
from scripts.benchmarks.federation_in_memory import Cast, exchange
from tests.node.operator.institution import make_card, make_keys


@pytest.fixture
async def cast():
    return Cast(4, 0)


class Acting:
    """A member with what its operator uses."""

    def __init__(self, cast, number, folder, transport=None):
        self.member = cast.open_member(number, Store.open(":memory:", cast.federation))
        for other in cast.member_keys:
            self.member.signing.note_heard(other)
        key = Key(cast.member_keys[number].private_bytes_raw(), "member")
        (folder / str(number)).mkdir()
        actions = OperatorActions(self.member, key, Outbox(folder / str(number), cast.federation), final_seconds=0)
        self.cards = VoteCards(self.member, key, f"/ip4/192.0.2.{number}/tcp/4001", transport)
        self.amendments = AmendmentActions(actions, self.cards)

    def draft(self, **changes):
        charters = self.member.replica.ledger.charters
        card = self.cards.build_own()
        return api.AmendmentOrder(
            compose_amendment(charters, Changes(**changes), {card.member: card.vote_key}, 1).encoded
        )


@pytest.fixture
async def acting(cast, tmp_path):
    return [Acting(cast, number, tmp_path) for number in (1, 2, 3, 4)]


async def test_an_amendment_comes_into_force_when_a_quorum_of_people_approved_it(acting, autojump_clock):
    members = [it.member for it in acting]
    order = acting[0].draft(added=[(make_card(5), 1)])
    planned = await acting[0].amendments.propose(order, dry_run=True)
    assert members[0].get_state(b"") is None
    signed = await acting[0].amendments.propose(order)
    assert [it.id for it in planned.records] == [it.id for it in signed.records]
    assert "allmende member vote" in signed.text
    await exchange(members)
    record_id = signed.records[0].id
    assert "Member 5 joins" in (await acting[1].amendments.approve_amendment(record_id, dry_run=True)).text
    for it in acting[1:3]:
        assert {member.replica.version for member in members} == {0}
        await it.amendments.approve_amendment(record_id)
        await exchange(members)
    assert {member.replica.version for member in members} == {1}
    assert "decided already" in (await acting[3].amendments.approve_amendment(record_id)).text


async def test_what_breaks_the_charters_rules_is_refused_before_anything_is_signed(acting):
    order = acting[0].draft(added=[(make_card(5), 1)])
    for wrong in (order.charter[:-1], acting[0].member.charter.encoded):
        with pytest.raises(Rejected) as caught:
            await acting[0].amendments.propose(api.AmendmentOrder(wrong))
        assert caught.value.reason is Reason.TERMS_WRONG
    with pytest.raises(UserError, match="no such amendment"):
        await acting[0].amendments.approve_amendment(
            (await acting[1].amendments.propose(order, dry_run=True)).records[0].id
        )


async def test_a_node_gives_no_card_before_it_heard_a_quorum_or_with_another_member_key(cast, tmp_path):
    member = cast.open_member(1, Store.open(":memory:", cast.federation))
    key = Key(cast.member_keys[1].private_bytes_raw(), "member")
    with pytest.raises(UserError, match="not heard yet"):
        VoteCards(member, key, "", None).build_own()
    with pytest.raises(UserError, match="does not name"):
        VoteCards(member, Key(bytes(32), "member"), "", None).build_own()


async def test_cards_are_collected_from_all_that_answer(cast, tmp_path):
    network = SimulatedNetwork()

    async def ignore(*_):
        raise AssertionError("nobody gossips here")

    def make_transport(name):
        return SimulatedTransport(
            network, name, topics=(), validate=lambda *_: True, on_gossip=ignore, is_admitted=lambda _: True
        )

    transports = [make_transport(f"peer {number}") for number in (1, 2, 3)]
    acting = [Acting(cast, number, tmp_path, transport) for number, transport in enumerate(transports, 1)]
    acting[2].member.signing.is_silenced = True
    acting[2].cards._member_key = Key(bytes(32), "member")  # an impostor: its card would not hold
    names = [f"peer {number}" for number in (1, 2, 3)]
    async with AsyncExitStack() as stack:
        for transport in transports:
            await stack.enter_async_context(transport.run())
            transport.set_peers({name: [name] for name in names if name != transport.peer_id})
        with trio.fail_after(5):
            while len(transports[0].connected()) < 2:
                await trio.sleep(0.01)
        found = await acting[0].amendments.collect_vote_cards()
    assert [(it.member, it.address) for it in found] == [(n, f"/ip4/192.0.2.{n}/tcp/4001") for n in (1, 2)]
    for it, one in zip(found, acting, strict=False):
        assert one.member.signing.get_fresh_vote_key() == it.vote_key


async def test_a_member_key_is_replaced_by_the_others_and_the_old_one_signs_nothing_more(acting, autojump_clock):
    new = Key(bytes([77]) * 32, "member")
    signed = await acting[0].amendments.propose(acting[0].draft(member_keys={"member 2": new.public_key}))
    members = [it.member for it in acting]
    await exchange(members)
    for it in acting[2:]:
        await it.amendments.approve_amendment(signed.records[0].id)
    await exchange(members)
    assert {member.replica.version for member in members} == {1}
    with pytest.raises(UserError, match="another member key"):
        await acting[1].amendments.propose(acting[0].draft(added=[(make_card(5), 1)]))
    with pytest.raises(UserError, match="does not name"):
        acting[1].cards.build_own()
    VoteCards(members[1], new, "", None).build_own()


async def test_a_federation_of_one_changes_its_charter_alone(institution):
    cards = VoteCards(institution.member, make_keys(1)[0], "", None)
    amendments = AmendmentActions(institution.actions, cards)
    charters = institution.member.replica.ledger.charters
    fresh = cards.build_own().vote_key
    draft = compose_amendment(charters, Changes(names={"Member 1": "Hochschule"}), {1: fresh}, 1)
    signed = await amendments.propose(api.AmendmentOrder(draft.encoded))
    assert signed.records[0].state == "applied"
    with trio.fail_after(10):
        while institution.member.voter.version != 1:
            await trio.sleep(0.01)
    assert institution.member.charter.members[1].vote_key == fresh
    await institution.restart()
    assert institution.member.charter.members[1].name == "Hochschule"
    assert institution.member.signing.key is None, "this test keeps the key in memory alone"


async def test_split_votes_are_freed_by_the_member_whose_turn_it_is(acting, autojump_clock):
    members = [it.member for it in acting]
    ids = []
    for it, new in ((acting[0], 5), (acting[1], 6)):
        signed = await it.amendments.propose(it.draft(added=[(make_card(new), 1)]))
        ids.append(signed.records[0].id)
    (lone,) = CharterViews(members[0]).build_charter(1, {}).proposals
    assert describe_contest([lone], {0: members[0].charter}) == []
    spoken = [member.say_next() for member in members[:2]]
    for proposer, voter, record_id in ((0, 2, ids[0]), (1, 3, ids[1])):
        await members[voter].ingest([spoken[proposer].encoded], "peer")
        await acting[voter].amendments.approve_amendment(record_id)
    await exchange(members)
    for member in members:
        await member.ingest([batch.encoded for batch in spoken], "peer")
    await exchange(members)
    assert {member.replica.version for member in members} == {0}
    lines = describe_proposals(CharterViews(members[0]).build_charter(1, {}).proposals, {0: members[0].charter})
    assert "one can win: votes of weight 2 and 2, 3 needed, 0 not voted yet" in lines[-2]
    assert "The votes are split" in lines[-1]
    for it in (acting[0], acting[2], acting[3]):
        await it.amendments.approve_amendment(ids[1])

    for member in members:
        member.running_clock._before += 1000  # every turn has begun
    with trio.fail_after(600):
        async with trio.open_nursery() as nursery:

            async def talk():
                while True:
                    await exchange(members)
                    await trio.sleep(1)

            nursery.start_soon(talk)
            done = await acting[1].amendments.unlock_amendment(ids[1])
            while {member.replica.version for member in members} != {1}:
                await trio.sleep(1)
            nursery.cancel_scope.cancel()
    assert done.records[0].id == ids[1]
    assert 5 in members[0].charter.members
    assert members[0].charter.members[5].name == "Member 6"
