"""What signs for the institution is reached over the private socket alone."""

from __future__ import annotations

import pytest

from node import api
from node.addresses import Kind, decode_address, encode_address
from node.errors import UserError
from node.keystore import Key
from node.operator.actions import OperatorActions
from node.operator.conduct import ConductActions
from node.operator.outbox import Outbox

DRAFT = api.ProgramDraft("Students", "for courses", 10**6, 1, True, ["train"])


@pytest.fixture
async def node(start, federation, tmp_path):
    async with start() as running:
        outbox = Outbox(tmp_path / "outbox", federation.id)
        member_key = Key(federation.member_key.private_bytes_raw(), "member")
        running.services.operator = OperatorActions(running.member, member_key, outbox)
        running.services.conduct = ConductActions(running.services.operator)
        yield running


async def test_an_institution_declares_enrols_grants_and_vouches(node, federation):
    signed = await node.call("create_program", DRAFT, place=node.socket)
    assert [record.state for record in signed.records] == ["applied"]
    (program,) = await node.call("get_programs")
    assert program.name == "Students"

    request = federation.sign_budget_request(decode_address(Kind.PROGRAM, program.id))
    await node.call("post_budget_request", request.encode())
    (asked,) = await node.call("list_budget_requests", place=node.socket)
    assert (asked.text, asked.state) == ("please", "open")
    await node.call("approve_budget_request", asked.id, place=node.socket)
    assert (await node.call("get_budget_request", asked.id)).state == "approved"
    await node.call("grant", api.GrantOrder(program.id, None, 7000), place=node.socket)
    donor = encode_address(Kind.ACCOUNT, federation.donor)
    assert (await node.call("get_account", donor)).millicredits == 7000
    await node.call("sponsor", api.SponsorOrder(donor, 3), place=node.socket)
    assert len((await node.call("get_account", donor)).sponsorships) == 1


async def test_a_dry_run_signs_nothing(node):
    await node.call("create_program", DRAFT, dry_run=True, place=node.socket)
    assert await node.call("get_programs") == []
    assert node.store.count_batches() == 0


async def test_the_public_address_has_no_such_routes(node):
    for method, arguments in (
        ("create_program", (DRAFT,)),
        ("list_budget_requests", ()),
        ("approve_budget_request", ("x",)),
        ("grant", (api.GrantOrder("x"),)),
        ("sponsor", (api.SponsorOrder("x", 1),)),
    ):
        with pytest.raises(UserError):
            await node.call(method, *arguments)
    assert node.store.count_batches() == 0


async def test_a_wrong_order_gets_one_line(node):
    with pytest.raises(UserError) as refused:
        await node.call("sponsor", api.SponsorOrder("alm1wrong", 1), place=node.socket)
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError):
        await node.call("grant", api.ProgramDraft("x", "", 1, 1, True, []), place=node.socket)


async def test_a_node_that_signs_nothing_says_at_once_why_it_asks_for_no_checkpoint(node):
    node.member.signing.silence()
    with pytest.raises(UserError, match=r"signs nothing.*any other member can ask for a checkpoint"):
        await node.call("pick_checkpoint", place=node.socket)


async def test_a_node_without_a_member_key_says_so(start):
    async with start() as node:
        with pytest.raises(UserError, match="no member key"):
            await node.call("create_program", DRAFT, place=node.socket)


async def test_an_institution_suspends_and_reinstates_and_everybody_can_read_it(node, federation):
    await node.make_final(federation.program, federation.enrolment)
    person = encode_address(Kind.ACCOUNT, federation.person)
    order = api.SuspendOrder(person, 3, 14, b"", "board@a.org")
    await node.call("suspend", order, place=node.socket)
    (entry,) = await node.call("get_suspensions")
    assert (entry.account, entry.appeal, entry.member_name) == (person, "board@a.org", "University")
    assert (await node.call("get_account", person)).suspensions == [entry]
    with pytest.raises(UserError):
        await node.call("suspend", order)
    await node.call("reinstate", api.ReinstateOrder(person), place=node.socket)
    assert await node.call("get_suspensions") == []
