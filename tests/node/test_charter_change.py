"""Members join, leave and change their vote keys while payments go on: nothing is lost, and all agree."""

import logging

import pytest

from node.errors import UserError
from node.storage.store import MarkKind, Store
from protocol.batches import LogPosition, build_batch, decode_batch
from protocol.receipts import verify_receipt
from protocol.statements import VoteBatch
from scripts.benchmarks.federation_in_memory import exchange, list_roots, make_final
from tests.amendments import put_in_force, sign_amendment


async def join(cast, members, number=5):
    """One member more; returns it after it fetched everything."""
    amendment = sign_amendment(cast, members[0], {number: cast.make_member(number)}, speakers=members)
    await put_in_force(members, amendment, members[:3])
    new = cast.open_member(number, Store.open(":memory:", cast.federation))
    await new.ingest(list(members[0].store.iterate_batches()), "peer")
    assert new.replica.version == amendment.sequence + 1
    return new, amendment


async def test_four_become_five_and_four_again_without_a_founder_while_payments_go_on(cast, members):
    payments = cast.make_payments()
    for number, payment in enumerate(payments):
        await members[number % 4].submit(payment.encoded)
    new, first = await join(cast, members)
    five = [*members, new]
    assert new.signing.find_obstacle() is None
    assert len(list_roots(five)) == 1

    payments += cast.make_payments()
    for number, payment in enumerate(payments[-len(cast.people) :]):
        await five[number % 5].submit(payment.encoded)
    second = sign_amendment(cast, new, {}, without=(2,), speakers=five)
    for voter in (members[0], members[2], members[3], new):
        await voter.approve(second.id)
    await new.submit(second.encoded)
    await exchange(five)
    assert {member.replica.version for member in five} == {2}
    assert "no member of the federation any more" in members[1].signing.find_obstacle()
    payments += cast.make_payments()
    with pytest.raises(UserError, match="no member"):
        await members[1].submit(payments[-1].encoded)
    four = [members[0], members[2], members[3], new]
    await make_final(four, payments[-len(cast.people) :])
    assert len(list_roots(four)) == 1
    for member in four:
        assert {member.get_state(record.id) for record in payments} == {"applied"}
        member.replica.ledger.check_conservation()
    charters = four[0].replica.ledger.charters
    assert verify_receipt(charters, new.build_receipt(first.id)).round.version == 0
    assert verify_receipt(charters, new.build_receipt(second.id)).round.version == 1
    assert verify_receipt(charters, new.build_receipt(payments[-1].id)).round.version == 2


async def test_who_joins_reads_through_the_versions_before_it_without_an_error_in_its_log(cast, members, caplog):
    amendment = sign_amendment(cast, members[0], {5: cast.make_member(5)}, speakers=members)
    await put_in_force(members, amendment, members)
    caplog.set_level(logging.INFO)
    caplog.clear()
    new = cast.open_member(5, Store.open(":memory:", cast.federation))
    await new.restore()
    await new.ingest(list(members[0].store.iterate_batches()), "peer")
    assert new.signing.find_obstacle() is None
    told = {(record.levelname, record.getMessage().split(":")[0]) for record in caplog.records}
    assert ("INFO", "this institution is no member yet") in told
    assert not {level for level, _ in told} & {"WARNING", "ERROR"}


async def test_what_a_member_says_after_it_was_removed_has_no_effect(cast, members):
    amendment = sign_amendment(cast, members[0], {5: cast.make_member(5)}, without=(2,), speakers=members)
    await put_in_force(members, amendment, members)
    four = [members[0], members[2], members[3], cast.open_member(5, Store.open(":memory:", cast.federation))]
    await four[3].ingest(list(members[0].store.iterate_batches()), "peer")
    log = members[0].replica.get_log((2, 0))
    late = build_batch(
        cast.founded.charter,
        cast.vote_keys[2],
        2,
        LogPosition(len(log), log[len(log) - 1][0]),
        seen=(),
        time_ms=0,
        records=(),
        statements=(VoteBatch(b"", 0),),
    )
    before = list_roots(four)
    for member in four:
        assert await member.ingest([late.encoded], "peer") == 0
    assert list_roots(four) == before
    assert four[0].arrivals.list_ignored_logs() == {(2, 0)}


async def test_vote_keys_change_with_the_version_and_the_old_ones_are_gone(cast, members):
    amendment = sign_amendment(cast, members[0], {}, speakers=members)
    await put_in_force(members, amendment, members)
    for member in members:
        held = cast.held_vote_keys[member.number]
        assert held.find(cast.founded.charter.members[member.number].vote_key) is None
        assert held.find(member.charter.members[member.number].vote_key) is member.signing.key
    await make_final(members, cast.make_payments())
    assert len(list_roots(members)) == 1


async def test_a_member_that_could_not_be_asked_keeps_its_vote_key(cast, members):
    amendment = sign_amendment(cast, members[0], {}, speakers=members[:3])
    await put_in_force(members, amendment, members)
    assert members[3].signing.key.public_key == cast.founded.charter.members[4].vote_key
    await make_final(members, cast.make_payments())


async def test_an_amendment_that_too_few_approved_changes_nothing(cast, members):
    amendment = sign_amendment(cast, members[0], {5: cast.make_member(5)}, speakers=members)
    await members[0].approve(amendment.id)
    await members[0].submit(amendment.encoded)
    await members[1].approve(amendment.id)
    await exchange(members)
    assert {member.replica.version for member in members} == {0}
    await make_final(members, cast.make_payments())
    await members[2].approve(amendment.id)
    await exchange(members)
    assert {member.replica.version for member in members} == {1}


async def test_an_approval_and_the_version_in_force_outlive_a_restart(cast, members):
    amendment = sign_amendment(cast, members[0], {}, speakers=members)
    await members[0].approve(amendment.id)
    await members[0].submit(amendment.encoded)
    await exchange(members)
    await members[1].approve(amendment.id)
    again = cast.restart(members[1])
    await again.restore()
    assert again.has_approved(amendment.id)
    members[1] = again
    await members[2].approve(amendment.id)
    await exchange(members)
    again = cast.restart(members[2])
    await again.restore()
    assert again.replica.version == again.voter.version == 1
    assert again.signing.find_obstacle() is None
    assert again.store.get_marks(MarkKind.IN_FORCE).keys() == {(1).to_bytes(8, "big")}
    members[2] = again
    await make_final(members, cast.make_payments())
    assert len(list_roots(members)) == 1


async def test_a_member_restored_from_a_backup_signs_again_under_the_next_version_with_a_new_key(cast, members):
    backup = Store.restore(members[1].store.serialize(), cast.federation)
    old_next = members[1].signing.get_fresh_vote_key()
    await make_final(members, cast.make_payments())
    restored = cast.open_member(2, backup)
    await restored.restore()
    await restored.ingest(list(members[0].store.iterate_batches()), "peer")
    assert restored.signing.is_silenced
    assert restored.say_next() is None
    fresh = restored.signing.get_fresh_vote_key()
    assert fresh != old_next, "the key of the backup may have been used by what is not known here"

    members[1] = restored
    amendment = sign_amendment(cast, members[0], {}, speakers=members)
    voters = [members[0], members[2], members[3]]
    await put_in_force(members, amendment, voters)
    assert restored.charter.members[2].vote_key == fresh
    assert restored.signing.find_obstacle() is None
    await make_final([restored, members[0], members[2]], cast.make_payments())
    again = cast.restart(restored)
    await again.restore()
    assert again.signing.find_obstacle() is None


async def test_a_new_member_takes_in_a_piece_in_which_amendments_come_into_force(cast, members):
    faults: list[str] = []
    new, _ = await join(cast, members)
    second = sign_amendment(cast, members[0], {}, speakers=[*members, new])
    await put_in_force([*members, new], second, members)
    await make_final([*members, new], cast.make_payments())
    late = cast.open_member(5, Store.open(":memory:", cast.federation))
    late.on_fault.append(faults.append)
    batches = list(members[2].store.iterate_batches())
    last = decode_batch(cast.federation, batches[-1])
    assert last.header.charter_version == 2
    assert await late.ingest(batches[-1:], "peer") == 0
    assert await late.ingest(batches, "peer") == len(batches)
    assert late.replica.compute_state_root() == members[2].replica.compute_state_root()
    assert not faults
