"""Acts of an institution: done once, never twice for one slot, and taken up again after a crash."""

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node import api
from node.addresses import Kind, decode_address, encode_address
from node.errors import UserError
from node.operator import actions
from protocol.errors import Rejected
from protocol.receipts import verify_receipt
from protocol.records import FREE_LOT, Lot
from tests.node.operator.institution import (
    ALLOWANCE,
    CAP,
    DRAFT,
    EPOCH_SECONDS,
    make_participants,
    make_program,
    name_account,
    name_program,
)

DONOR = encode_address(Kind.ACCOUNT, bytes([9]) * 32)


def get_balance(institution, account, program, epoch=3):
    return institution.member.replica.ledger.get_balance(account, Lot(program, epoch))


async def test_a_program_is_declared_with_a_receipt(institution):
    signed = await institution.actions.create_program(DRAFT)
    program = decode_address(Kind.RECORD, signed.records[0].id)
    state = institution.member.replica.ledger.programs[program]
    assert (state.member, state.body.name, state.body.job_classes) == (1, "Students", ("infer", "train"))
    assert verify_receipt({0: institution.charter}, signed.records[0].receipt).record.id == program
    assert name_program(program) in signed.text
    assert institution.actions.outbox.get_pending() == []


async def test_a_dry_run_signs_nothing_and_names_the_record_that_would_be(institution):
    planned = await institution.actions.create_program(DRAFT, dry_run=True)
    assert planned.text.startswith("Would be signed")
    assert institution.store.count_batches() == 0
    assert list((institution.path / "outbox").iterdir()) == []
    signed = await institution.actions.create_program(DRAFT)
    assert signed.records[0].id == planned.records[0].id


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": ""}, "name"),
        ({"name": "a\x1b[2J"}, "plain text"),
        ({"purpose": "x" * 513}, "purpose"),
        ({"allowance": 0}, "allowance"),
        ({"expiry_epochs": 121}, "epochs"),
        ({"job_classes": ["x" * 33]}, "job class"),
        ({"job_classes": [str(number) for number in range(33)]}, "job classes"),
    ],
)
async def test_a_wrong_draft_is_refused_by_the_field_at_fault(institution, changes, told):
    with pytest.raises(UserError, match=told):
        await make_program(institution, **changes)


async def test_two_programs_of_one_name_are_refused(institution):
    await make_program(institution)
    with pytest.raises(UserError, match="already"):
        await make_program(institution, allowance=5)


async def test_who_asks_is_enrolled_and_takes_part(institution):
    program = await make_program(institution)
    request, account = institution.ask(program)
    assert [(r.id, r.state, r.text) for r in await institution.actions.list_budget_requests()] == [
        (request, "open", "Please!")
    ]
    planned = await institution.actions.approve(request, dry_run=True)
    signed = await institution.actions.approve(request)
    assert planned.records[0].id == signed.records[0].id
    enrolment = institution.member.replica.ledger.enrolments[decode_address(Kind.RECORD, signed.records[0].id)]
    assert (enrolment.member, enrolment.account) == (1, account)
    assert [request.state for request in await institution.actions.list_budget_requests()] == ["approved"]
    again = await institution.actions.approve(request)
    assert again.records == signed.records


async def test_a_second_program_uses_the_enrolment_that_there_is(institution):
    first, second = await make_program(institution), await make_program(institution, name="Teachers")
    person = Ed25519PrivateKey.from_private_bytes(bytes([8]) * 32)
    before = await institution.actions.approve(institution.ask(first, key=person)[0])
    after = await institution.actions.approve(institution.ask(second, key=person)[0])
    assert before.records[0].id == after.records[0].id
    assert len(institution.member.replica.ledger.enrolments) == 1
    assert len(institution.store.list_participants(second)) == 1


async def test_a_request_of_a_past_epoch_or_with_a_taken_tag_must_be_made_anew(institution):
    program = await make_program(institution)
    request, _ = institution.ask(program, tag=bytes([7]) * 32)
    await institution.actions.approve(request)
    copied, _ = institution.ask(program, tag=bytes([7]) * 32)
    with pytest.raises(UserError, match="tag"):
        await institution.actions.approve(copied)
    late, _ = institution.ask(program, epoch=1)
    institution.now += 3 * EPOCH_SECONDS
    with pytest.raises(UserError, match="now is epoch 4"):
        await institution.actions.approve(late)


async def test_an_unknown_request_is_told(institution):
    with pytest.raises(UserError, match="no such request"):
        await institution.actions.approve(encode_address(Kind.RECORD, bytes(32)))


async def test_a_grant_pays_what_is_left_of_the_allowance_and_a_second_one_pays_nothing(institution):
    program = await make_program(institution)
    ada, bob = await make_participants(institution, program, 2)
    await institution.actions.grant(api.GrantOrder(name_program(program), [name_account(ada)], 300))
    signed = await institution.actions.grant(api.GrantOrder(name_program(program)))
    assert "1.700 credits" in signed.text
    assert get_balance(institution, ada, program) == get_balance(institution, bob, program) == ALLOWANCE
    again = await institution.actions.grant(api.GrantOrder(name_program(program)))
    assert again.records == []
    assert "already" in again.text
    institution.member.replica.ledger.check_conservation()


async def test_a_grant_to_many_goes_in_several_records(institution, monkeypatch):
    monkeypatch.setattr(actions, "OUTPUTS_MAX", 2)
    program = await make_program(institution)
    people = await make_participants(institution, program, 5)
    planned = await institution.actions.grant(api.GrantOrder(name_program(program)), dry_run=True)
    signed = await institution.actions.grant(api.GrantOrder(name_program(program)))
    assert len(signed.records) == 3
    assert [record.id for record in planned.records] == [record.id for record in signed.records]
    assert {get_balance(institution, account, program) for account in people} == {ALLOWANCE}


async def test_an_amount_for_everybody_never_exceeds_the_allowance(institution):
    program = await make_program(institution)
    ada, bob = await make_participants(institution, program, 2)
    await institution.actions.grant(api.GrantOrder(name_program(program), [name_account(ada)], 900))
    signed = await institution.actions.grant(api.GrantOrder(name_program(program), None, 400))
    assert "1 of them get less" in signed.text
    assert (get_balance(institution, ada, program), get_balance(institution, bob, program)) == (1000, 400)
    with pytest.raises(UserError, match=r"only 0\.000 credits"):
        await institution.actions.grant(api.GrantOrder(name_program(program), [name_account(ada)], 1))


@pytest.mark.parametrize(("amount", "told"), [(0, "can't be granted"), (ALLOWANCE + 1, "allowance is 1.000")])
async def test_an_impossible_amount_is_refused(institution, amount, told):
    program = await make_program(institution)
    with pytest.raises(UserError, match=told):
        await institution.actions.grant(api.GrantOrder(name_program(program), None, amount))


async def test_a_grant_to_a_stranger_or_beyond_the_cap_signs_nothing(institution):
    program = await make_program(institution, allowance=CAP)
    await make_participants(institution, program, 2)
    with pytest.raises(UserError, match="not enrolled"):
        await institution.actions.grant(api.GrantOrder(name_program(program), [name_account(bytes(32))]))
    before = institution.store.count_batches()
    with pytest.raises(UserError, match=r"cap for this epoch has 1000\.000"):
        await institution.actions.grant(api.GrantOrder(name_program(program)))
    assert institution.store.count_batches() == before
    source = institution.charter.get_issuance_account(1, 1)
    assert institution.member.replica.ledger.get_balance(source, FREE_LOT) == CAP


async def test_a_new_epoch_has_a_new_allowance(institution):
    program = await make_program(institution)
    (ada,) = await make_participants(institution, program, 1)
    await institution.actions.grant(api.GrantOrder(name_program(program)))
    institution.now += EPOCH_SECONDS
    await institution.actions.grant(api.GrantOrder(name_program(program)))
    assert get_balance(institution, ada, program, 3) == get_balance(institution, ada, program, 4) == ALLOWANCE


async def test_a_donor_is_vouched_for_once(institution):
    signed = await institution.actions.sponsor(api.SponsorOrder(DONOR, 3))
    assert ", the end of epoch 3" in signed.text
    again = await institution.actions.sponsor(api.SponsorOrder(DONOR, 2))
    assert again.records == signed.records
    assert ", the end of epoch 3" in again.text
    longer = await institution.actions.sponsor(api.SponsorOrder(DONOR, 4))
    assert longer.records[0].id != signed.records[0].id
    for epochs in (0, 121):
        with pytest.raises(UserError, match="1 to 120"):
            await institution.actions.sponsor(api.SponsorOrder(DONOR, epochs))


async def test_acts_at_the_same_time_take_different_slots(institution):
    async with trio.open_nursery() as together:
        for number in range(8):
            together.start_soon(make_program_named, institution, f"Program {number}")
    assert len(institution.member.replica.ledger.programs) == 8
    assert institution.member.replica.ledger.count_waiting() == 0


async def make_program_named(institution, name):
    await make_program(institution, name=name)


async def test_what_was_signed_before_a_crash_is_sent_again_and_nothing_else_takes_its_slot(institution):
    await institution.restart(is_speaking=False)
    signed = await institution.actions.create_program(DRAFT)
    assert [record.state for record in signed.records] == ["waiting"]
    assert actions.LATER in signed.text
    with pytest.raises(UserError, match="not final yet"):
        await institution.actions.sponsor(api.SponsorOrder(DONOR, 1))
    assert (await institution.actions.create_program(DRAFT)).records == signed.records

    await institution.restart()
    (pending,) = institution.actions.outbox.get_pending()
    assert encode_address(Kind.RECORD, pending.id) == signed.records[0].id
    sponsored = await institution.actions.sponsor(api.SponsorOrder(DONOR, 1))
    assert sponsored.records[0].state == "applied"
    assert pending.id in institution.member.replica.ledger.programs
    assert institution.actions.outbox.get_pending() == []


async def test_an_enrolment_that_is_final_after_a_restart_approves_its_request(institution):
    program = await make_program(institution)
    request, account = institution.ask(program)
    await institution.restart(is_speaking=False)
    await institution.actions.approve(request)
    assert institution.store.list_participants(program) == []
    await institution.restart()
    assert (await institution.actions.approve(request)).records[0].state == "applied"
    assert institution.store.list_participants(program) == [account]


async def test_a_record_whose_epoch_has_passed_unseen_frees_its_slot(institution):
    await institution.restart(is_speaking=False)
    await institution.actions.create_program(DRAFT)
    institution.now += 3 * EPOCH_SECONDS
    await institution.restart()
    with pytest.raises(Rejected):
        await institution.actions.sponsor(api.SponsorOrder(DONOR, 1))
    assert (await institution.actions.sponsor(api.SponsorOrder(DONOR, 1))).records[0].state == "applied"
