"""An institution suspends, reinstates and lets go, and what that means for grants."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node import api
from node.addresses import Kind, encode_address
from node.errors import UserError
from node.terminal import format_moment
from node.web.views import LedgerViews
from protocol.errors import Reason, Rejected
from protocol.identifiers import compute_account_id
from protocol.records import Kind as RecordKind
from protocol.records import Leave, RecordDraft
from tests.node.operator.institution import (
    EPOCH_SECONDS,
    make_participants,
    make_program,
    name_account,
    name_program,
)

EPOCHS_OF_A_DAY = 24 * 3600 // EPOCH_SECONDS + 1
PERSON = Ed25519PrivateKey.from_private_bytes(bytes([8]) * 32)


def order(account, **changes):
    fields = {"account": name_account(account), "reason": 7, "days": 1, "evidence": b"e" * 32, "appeal": "board@a.org"}
    return api.SuspendOrder(**{**fields, **changes})


def list_suspensions(institution):
    return LedgerViews(institution.member, lambda: institution.now).list_suspensions()


async def test_a_suspension_is_bounded_and_says_to_whom_to_turn(institution):
    (ada,) = await make_participants(institution, await make_program(institution), 1)
    signed = await institution.conduct.suspend(order(ada))
    assert [record.state for record in signed.records] == ["applied"]
    end = format_moment(institution.member.charter.compute_epoch_end(EPOCHS_OF_A_DAY))
    assert f"until {end}, the end of epoch {EPOCHS_OF_A_DAY}" in signed.text
    (entry,) = list_suspensions(institution)
    assert (entry.account, entry.member_name, entry.appeal) == (name_account(ada), "Member 1", "board@a.org")
    assert (entry.reason, entry.evidence) == (7, (b"e" * 32).hex())
    assert entry.until_epoch == EPOCHS_OF_A_DAY
    assert format_moment(entry.until_seconds) == end
    assert LedgerViews(institution.member, lambda: institution.now).build_account(ada).suspensions == [entry]
    institution.now += EPOCHS_OF_A_DAY * EPOCH_SECONDS
    assert list_suspensions(institution) == []


async def test_the_same_order_twice_is_carried_out_once(institution):
    (ada,) = await make_participants(institution, await make_program(institution), 1)
    first = await institution.conduct.suspend(order(ada))
    assert (await institution.conduct.suspend(order(ada))).records == first.records
    await institution.conduct.suspend(order(ada, days=2))
    (entry,) = list_suspensions(institution)
    assert entry.until_epoch > EPOCHS_OF_A_DAY, "a newer one replaces it"


async def test_a_suspended_account_is_granted_nothing_until_it_is_reinstated(institution):
    program = await make_program(institution)
    (ada,) = await make_participants(institution, program, 1)
    await institution.conduct.suspend(order(ada))
    with pytest.raises(Rejected) as caught:
        await institution.actions.grant(api.GrantOrder(name_program(program)))
    assert caught.value.reason is Reason.SUSPENDED
    await institution.conduct.reinstate(api.ReinstateOrder(name_account(ada)))
    assert list_suspensions(institution) == []
    assert (await institution.actions.grant(api.GrantOrder(name_program(program)))).records
    with pytest.raises(UserError, match="have not suspended"):
        await institution.conduct.reinstate(api.ReinstateOrder(name_account(ada)))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"days": 0}, "days"),
        ({"days": 91}, "90 days"),
        ({"reason": 256}, "reason"),
        ({"appeal": ""}, "owner can turn"),
        ({"appeal": "x" * 129}, "owner can turn"),
        ({"evidence": b"e"}, "SHA-256"),
    ],
)
async def test_a_wrong_order_is_refused_by_the_field_at_fault(institution, changes, told):
    with pytest.raises(UserError, match=told):
        await institution.conduct.suspend(order(bytes(32), **changes))


async def test_a_stranger_can_not_be_suspended_and_nothing_is_signed(institution):
    with pytest.raises(Rejected, match="enrolled or sponsors"):
        await institution.conduct.suspend(order(bytes(32)))
    assert institution.store.count_batches() == 0


async def test_a_dry_run_suspends_nobody(institution):
    (ada,) = await make_participants(institution, await make_program(institution), 1)
    planned = await institution.conduct.suspend(order(ada), dry_run=True)
    assert planned.text.startswith("Would be signed")
    assert list_suspensions(institution) == []


async def test_a_suspension_outlasts_a_restart_with_its_appeal(institution):
    (ada,) = await make_participants(institution, await make_program(institution), 1)
    await institution.conduct.suspend(order(ada))
    before = list_suspensions(institution)
    await institution.restart()
    assert list_suspensions(institution) == before != []


async def test_a_suspension_whose_record_is_not_here_is_listed_and_ended_all_the_same(institution):
    """As at a node that began from a certified state."""
    (ada,) = await make_participants(institution, await make_program(institution), 1)
    await institution.conduct.suspend(order(ada))
    institution.member.history.suspensions.clear()
    (entry,) = list_suspensions(institution)
    assert (entry.member_name, entry.appeal, entry.record) == ("Member 1", "", None)
    await institution.conduct.reinstate(api.ReinstateOrder(name_account(ada)))
    assert list_suspensions(institution) == []


# -- leaving --------------------------------------------------------------------------------------------------------


async def enrol(institution, program):
    """A person who takes part; (account, enrolment)."""
    request, account = institution.ask(program, key=PERSON)
    await institution.actions.approve(request)
    return account, next(iter(institution.member.replica.ledger.enrolments))


def sign_leave(institution, account, enrolment, *, key=PERSON, epoch=1):
    """What a person's wallet writes into the file."""
    federation = institution.charter.federation
    state = institution.member.replica.ledger.enrolments[enrolment]
    signers = (institution.charter.members[1].member_key, key.public_key().public_bytes_raw())
    scope = b"\x03" + state.tag
    draft = RecordDraft(RecordKind.LEAVE, epoch, scope, 1, enrolment, Leave(1, account), signers)
    return draft.assemble(federation, [bytes(64), key.sign(draft.compute_id(federation))]).encoded


async def test_who_left_is_granted_this_epochs_credits_and_none_later(institution):
    program = await make_program(institution)
    account, enrolment = await enrol(institution, program)
    planned = await institution.conduct.complete_leave(sign_leave(institution, account, enrolment), dry_run=True)
    assert planned.text.startswith("Would be signed")
    signed = await institution.conduct.complete_leave(sign_leave(institution, account, enrolment))
    assert [record.state for record in signed.records] == ["applied"]
    assert signed.records[0].id == planned.records[0].id
    again = await institution.conduct.complete_leave(sign_leave(institution, account, enrolment))
    assert again.records == signed.records
    assert (await institution.actions.grant(api.GrantOrder(name_program(program)))).records
    institution.now += EPOCH_SECONDS
    assert (await institution.actions.grant(api.GrantOrder(name_program(program)))).records == []
    with pytest.raises(UserError, match="not enrolled"):
        await institution.actions.grant(api.GrantOrder(name_program(program), [name_account(account)]))


async def test_who_left_others_are_granted_all_the_same(institution):
    program = await make_program(institution)
    account, enrolment = await enrol(institution, program)
    (bob,) = await make_participants(institution, program, 1)
    await institution.conduct.complete_leave(sign_leave(institution, account, enrolment))
    institution.now += EPOCH_SECONDS
    signed = await institution.actions.grant(api.GrantOrder(name_program(program)))
    assert "for 1 people" in signed.text
    assert institution.member.replica.ledger.balances[bob]


async def test_who_left_and_asks_again_is_enrolled_anew(institution):
    program = await make_program(institution)
    account, enrolment = await enrol(institution, program)
    await institution.conduct.complete_leave(sign_leave(institution, account, enrolment))
    request, _ = institution.ask(program, key=PERSON)
    signed = await institution.actions.approve(request)
    assert signed.records[0].id != encode_address(Kind.RECORD, enrolment)
    assert len(institution.member.replica.ledger.enrolments) == 2


async def test_a_leave_that_the_person_did_not_sign_for_us_is_refused(institution):
    program = await make_program(institution)
    account, enrolment = await enrol(institution, program)
    forged = bytearray(sign_leave(institution, account, enrolment))
    forged[-1] ^= 1
    stranger = Ed25519PrivateKey.from_private_bytes(bytes([7]) * 32)
    assert compute_account_id(institution.charter.federation, stranger.public_key().public_bytes_raw()) != account
    for content, told in ((bytes(forged), "not signed by the person"), (b"\xc0", "no request to leave")):
        with pytest.raises(UserError, match=told):
            await institution.conduct.complete_leave(content)
    with pytest.raises(Rejected):
        await institution.conduct.complete_leave(sign_leave(institution, account, enrolment, key=stranger))
    with pytest.raises(Rejected):
        await institution.conduct.complete_leave(sign_leave(institution, account, enrolment, epoch=2))
    assert institution.actions.outbox.get_pending() == []
