"""A member stores before it speaks, comes back from its store as it was, and never says two things for one."""

import pytest
import trio

from node.errors import UserError
from node.storage.store import Store
from protocol.batches import LogPosition, build_batch, decode_batch
from protocol.errors import Reason, Rejected
from protocol.evidence import verify_evidence
from protocol.limits import BATCH_BYTES_MAX
from protocol.receipts import verify_receipt
from protocol.records import Kind, Output, RecordDraft, Transfer, account_scope, decode_record, sign_record
from protocol.statements import (
    VoteBatch,
    decode_unlock_request,
    encode_signed,
    sign_slot_proposal,
    sign_unlock_request,
)
from scripts.benchmarks.federation_in_memory import exchange, list_roots, make_final


def next_position(member, number):
    """Where the next batch of a member's log goes, as another member sees it."""
    entries = member.replica.get_log((number, 0))
    return LogPosition(len(entries), entries[len(entries) - 1][0])


def sign_conflict(cast, payment):
    """Another payment of the same person in the same slot."""
    key = next(key for key in cast.people if key.public_key().public_bytes_raw() == payment.signers[0])
    output = payment.body.outputs[0]
    body = Transfer((Output(cast.accounts[3], output.program, output.expiry_epoch, output.amount + 1),), "again")
    draft = RecordDraft(
        Kind.TRANSFER, 1, account_scope(payment.account), payment.sequence, payment.prev, body, payment.signers
    )
    return sign_record(cast.federation, draft, [key])


async def test_payments_become_final_and_all_members_agree(cast, members):
    payments = cast.make_payments()
    await make_final(members, payments)
    assert len(list_roots(members)) == 1
    for member in members:
        member.replica.ledger.check_conservation()
        assert {member.get_state(payment.id) for payment in payments} == {"applied"}


async def test_a_final_record_has_a_receipt_that_anybody_can_check(cast, members):
    payment = cast.make_payments()[0]
    await make_final(members, [payment])
    for member in members:
        receipt = member.build_receipt(payment.id)
        assert verify_receipt({0: cast.founded.charter}, receipt).record == payment


async def test_a_record_that_was_submitted_twice_is_introduced_once(cast, members):
    payment = cast.make_payments()[0]
    assert await members[0].submit(payment.encoded) == await members[0].submit(payment.encoded)
    await exchange(members)
    assert await members[0].submit(payment.encoded) == payment.id
    assert members[0].say_next() is None


async def test_a_record_handed_to_two_members_becomes_final_once(cast, members):
    payment = cast.make_payments()[0]
    await members[0].submit(payment.encoded)
    await members[1].submit(payment.encoded)
    await exchange(members)
    assert len(list_roots(members)) == 1
    assert members[2].get_state(payment.id) == "applied"
    assert len(members[2].replica.get_introductions(payment.id)) == 2
    receipt = members[2].build_receipt(payment.id)
    assert verify_receipt({0: cast.founded.charter}, receipt).record == payment


async def test_the_second_of_two_conflicting_payments_is_rejected_with_its_reason(cast, members):
    payment = cast.make_payments()[0]
    await members[0].submit(payment.encoded)
    members[0].say_next()
    with pytest.raises(Rejected) as caught:
        await members[0].submit(sign_conflict(cast, payment).encoded)
    assert caught.value.reason is Reason.SLOT_CONTESTED


async def test_a_waiting_submitter_hears_that_its_record_was_rejected(cast, members):
    payment = cast.make_payments()[0]
    conflict = sign_conflict(cast, payment)
    await members[0].submit(payment.encoded)
    await members[0].submit(conflict.encoded)
    members[0].say_next()
    with pytest.raises(Rejected):
        await members[0].wait_final(conflict.id, 5)


async def test_a_member_that_restarts_at_any_batch_votes_for_nothing_else(cast, members):
    payment = cast.make_payments()[0]
    conflict = sign_conflict(cast, payment)
    await members[0].submit(payment.encoded)
    first = members[0].say_next()
    await members[1].ingest([first.encoded], "peer")
    assert members[1].say_next() is not None

    again = cast.restart(members[1])
    await again.restore()
    with pytest.raises(Rejected):
        await again.submit(conflict.encoded)
    assert again.replica.get_frontier() == members[1].replica.get_frontier()
    assert again.say_next() is None


async def test_a_vote_that_was_decided_but_not_stored_is_decided_again_after_a_restart(cast, members):
    payment = cast.make_payments()[0]
    await members[0].submit(payment.encoded)
    first = members[0].say_next()
    await members[1].ingest([first.encoded], "peer")

    again = cast.restart(members[1])
    await again.restore()
    spoken = again.say_next()
    assert [type(statement) for statement in spoken.statements] == [VoteBatch]


async def test_restored_state_equals_the_state_before(cast, members):
    for _ in range(2):
        await make_final(members, cast.make_payments())
    for member in members:
        again = cast.restart(member)
        assert await again.restore() == len(member.replica.entries)
        assert again.replica.compute_state_root() == member.replica.compute_state_root()
        account = cast.accounts[0]
        assert again.get_history(account, None, 50) == member.get_history(account, None, 50)


async def test_batches_that_come_in_any_order_are_parked_until_their_past_is_there(cast, members):
    late = cast.open_member(4, Store.open(":memory:", cast.federation))
    batches = list(members[0].store.iterate_batches())
    missing: list[str] = []
    late.on_missing_past.append(missing.append)
    for encoded in reversed(batches[1:]):
        assert await late.ingest([encoded], "peer") == 0
    assert missing
    assert await late.ingest(batches[:1], "peer") == len(batches)
    assert late.replica.get_frontier() == members[0].replica.get_frontier()


async def test_a_member_that_is_shown_a_batch_of_its_own_that_it_lacks_signs_nothing_more(cast, members):
    backup = Store.restore(members[1].store.serialize(), cast.federation)
    payment = cast.make_payments()[0]
    await make_final(members, [payment])
    restored = cast.open_member(2, backup)
    await restored.restore()
    known = len(restored.replica.entries)
    await restored.ingest(list(members[0].store.iterate_batches()), "peer")
    assert len(restored.replica.entries) > known
    assert restored.signing.is_silenced
    with pytest.raises(Exception, match="signs nothing"):
        await restored.submit(cast.make_payments()[1].encoded)
    assert restored.say_next() is None


async def test_a_member_falls_silent_also_when_the_past_of_its_own_batch_is_not_here(cast, members):
    backup = Store.restore(members[1].store.serialize(), cast.federation)
    await make_final(members, [cast.make_payments()[0]])
    restored = cast.open_member(2, backup)
    await restored.restore()
    *_, (own,) = members[0].replica.get_log((2, 0)).values()
    assert await restored.ingest([members[0].store.get_batch(own)], "peer") == 0
    assert restored.signing.is_silenced


async def test_malformed_and_unsigned_batches_count_against_their_sender_and_change_nothing(cast, members):
    faults: list[str] = []
    members[0].on_fault.append(faults.append)
    before = members[0].replica.compute_state_root()
    good = members[1].store.get_batch(next(iter(members[1].replica.get_frontier()[2, 0])))
    header = decode_batch(cast.federation, good).header
    forged = build_batch(
        cast.founded.charter,
        cast.people[0],
        2,
        LogPosition(header.index + 1, decode_batch(cast.federation, good).id),
        seen=(),
        time_ms=0,
        records=(),
        statements=(VoteBatch(b"", 0),),
    )
    for content in (b"", b"\xc1", good[:-1], good + b"\x00", forged.encoded):
        assert await members[0].ingest([content], "mallory") == 0
    assert faults == ["mallory"] * 5
    assert members[0].replica.compute_state_root() == before


async def test_a_fork_is_noticed_kept_and_convicts_its_member_only(cast, members):
    position = next_position(members[3], 4)
    branches = [
        build_batch(
            cast.founded.charter,
            cast.vote_keys[4],
            4,
            position,
            seen=(),
            time_ms=time_ms,
            records=(),
            statements=(VoteBatch(b"", 0),),
        )
        for time_ms in (1, 2)
    ]
    await members[0].ingest([branches[0].encoded], "peer")
    await members[0].ingest([branches[1].encoded], "peer")
    await members[1].ingest([branches[1].encoded], "peer")
    await members[1].ingest([branches[0].encoded], "peer")
    evidence = members[0].replica.forks[4]
    assert members[1].replica.forks[4] == evidence
    assert verify_evidence({0: cast.founded.charter}, evidence.encode()).members == (4,)
    assert members[0].replica.compute_state_root() == members[1].replica.compute_state_root()


async def test_a_member_that_introduces_a_payment_with_a_broken_signature_hinders_nobody(cast, members):
    payment = cast.make_payments()[0]
    broken = decode_record(cast.federation, payment.encoded[:-1] + bytes([payment.encoded[-1] ^ 1]))
    assert broken.id == payment.id
    spoilt = build_batch(
        cast.founded.charter,
        cast.vote_keys[4],
        4,
        next_position(members[3], 4),
        seen=(),
        time_ms=0,
        records=(broken,),
        statements=(),
    )
    for member in members[:3]:
        await member.ingest([spoilt.encoded], "peer")
        assert member.say_next() is None
    await members[0].submit(payment.encoded)
    await exchange(members[:3])
    for member in members[:3]:
        assert member.get_state(payment.id) == "applied"
    receipt = members[1].build_receipt(payment.id)
    assert verify_receipt({0: cast.founded.charter}, receipt).record.id == payment.id


async def test_a_member_says_nothing_before_it_heard_what_a_quorum_has(cast, members, autojump_clock):
    again = cast.restart(members[1])
    await again.restore()
    await again.submit(cast.make_payments()[0].encoded)
    spoken: list[bytes] = []
    again.on_spoken.append(spoken.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(again.speak)
        await trio.sleep(5)
        assert not spoken
        again.signing.note_heard(1)
        await trio.sleep(5)
        assert not spoken
        again.signing.note_heard(4)
        await trio.sleep(5)
        assert spoken
        nursery.cancel_scope.cancel()


async def test_a_store_that_lost_a_batch_is_refused_in_one_line(cast, members):
    broken = Store.open(":memory:", cast.federation)
    batches = [decode_batch(cast.federation, encoded) for encoded in members[0].store.iterate_batches()]
    broken.append_batches([(batch.id, batch.encoded) for batch in batches[1:]])
    with pytest.raises(UserError, match="batch 1 in the database is damaged"):
        await cast.open_member(1, broken).restore()


# -- unlocking --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def contested(cast, members):
    """Two payments of one slot, of which no one can become final: two members voted for each."""
    payment = cast.make_payments()[0]
    rival = sign_conflict(cast, payment)
    await members[0].submit(payment.encoded)
    await members[2].submit(rival.encoded)
    introductions = [members[0].say_next(), members[2].say_next()]
    for member, heard in ((members[1], introductions[0]), (members[3], introductions[1])):
        await member.ingest([heard.encoded], "peer")
        introductions.append(member.say_next())
    for member in members:
        await member.ingest([batch.encoded for batch in introductions], "peer")
    await exchange(members)
    assert {member.get_state(record.id) for member in members for record in (payment, rival)} == {"introduced"}
    return payment, rival


def sign_request(cast, record, attempt=1):
    key = next(key for key in cast.people if key.public_key().public_bytes_raw() == record.signers[0])
    slot = record.slot
    return slot, encode_signed(sign_unlock_request(cast.federation, slot, attempt, record.signers[0], key))


def sign_proposal(cast, record, batches, attempt=1):
    key = next(key for key in cast.people if key.public_key().public_bytes_raw() == record.signers[0])
    slot = record.slot
    proposal = sign_slot_proposal(cast.federation, slot, attempt, record.id, batches, record.signers[0], key)
    return encode_signed(proposal)


async def test_an_owner_unlocks_its_slot_at_any_node_and_gets_a_receipt(cast, members, contested):
    _, wish = contested
    slot, request = sign_request(cast, wish)
    assert await members[1].unlocking.submit_request(request) == slot
    await exchange(members)
    assert await members[1].unlocking.wait_promises(slot, 1, 0)
    promises = members[1].unlocking.get_promises(slot, 1)
    assert {promise.report for promise in promises.values()} == {None}
    record_id = await members[3].unlocking.submit_proposal(sign_proposal(cast, wish, promises), wish.encoded)
    await exchange(members)
    assert record_id == wish.id
    for member in members:
        assert verify_receipt({0: cast.founded.charter}, member.build_receipt(wish.id)).round.attempt == 1
        assert await member.unlocking.wait_promises(slot, 2, 0), "a decided slot keeps nobody waiting"
    assert len(list_roots(members)) == 1


async def test_a_third_record_comes_with_its_proposal_and_gets_no_vote_at_attempt_0(cast, members, contested):
    payment, _ = contested
    third = sign_conflict(cast, sign_conflict(cast, payment))
    slot, request = sign_request(cast, payment)
    await members[0].unlocking.submit_request(request)
    await exchange(members)
    promises = members[0].unlocking.get_promises(slot, 1)
    await members[0].unlocking.submit_proposal(sign_proposal(cast, third, promises), third.encoded)
    batch = members[0].say_next()
    assert [record.id for record in batch.records] == [third.id]
    assert not any(isinstance(statement, VoteBatch) and not statement.batch for statement in batch.statements)
    for member in members[1:]:
        await member.ingest([batch.encoded], "peer")
    await exchange(members)
    assert {member.get_state(third.id) for member in members} == {"applied"}


async def test_a_promise_outlives_a_crash(cast, members, contested):
    payment, _ = contested
    slot, request = sign_request(cast, payment)
    await members[0].unlocking.submit_request(request)
    await exchange(members)
    again = cast.restart(members[0])
    await again.restore()
    assert again.say_next() is None
    with pytest.raises(Rejected) as caught:
        again.voter.check_request(decode_unlock_request(request), again.compute_circumstances())
    assert caught.value.reason is Reason.ATTEMPT_CLOSED
    assert again.unlocking.get_promises(slot, 1).keys() == members[0].unlocking.get_promises(slot, 1).keys()


async def test_what_a_member_does_at_once_is_what_it_does_beside_an_event_loop(cast, members):
    payments = cast.make_payments()
    twins = [cast.restart(member) for member in members]
    for twin in twins:
        twin.restore_at_once()
    for payment in payments:
        await members[0].submit(payment.encoded)
        twins[0].submit_at_once(payment.encoded)
    while spoken := [batch.encoded for twin in twins if (batch := twin.say_next())]:
        for twin in twins:
            twin.ingest_at_once([*spoken, b"no batch"], "peer")
    await exchange(members)
    assert len({payment.id for payment in payments if twins[3].get_state(payment.id) == "applied"}) == len(payments)
    states = [{frozenset(it.replica.ledger.compute_facts()) for it in each} for each in (twins, members)]
    assert states[0] == states[1], "the batches differ by the times at which they were signed, the ledgers do not"


async def test_proposals_with_large_records_never_make_a_batch_too_large(cast, members):
    """Whoever has a few credits could otherwise stop the process with one batch above the limit."""
    payment = cast.make_payments()[0]
    slot, request = sign_request(cast, payment)
    await members[0].unlocking.submit_request(request)
    await exchange(members)
    promises = members[0].unlocking.get_promises(slot, 1)
    key = cast.people[0]
    output = payment.body.outputs[0]._replace(amount=1)
    for number in range(16):
        body = Transfer((output,) * 256, f"{number}")
        draft = RecordDraft(Kind.TRANSFER, 1, payment.scope, payment.sequence, payment.prev, body, payment.signers)
        record = sign_record(cast.federation, draft, [key])
        await members[0].unlocking.submit_proposal(sign_proposal(cast, record, promises), record.encoded)
    said = members[0].say_next()
    assert said is not None
    assert len(said.records) > 1
    assert len(said.encoded) <= BATCH_BYTES_MAX
