"""Everything that the public API promises, asked by the real client of a real node."""

from __future__ import annotations

import time
from hashlib import sha256

import msgspec
import pytest
import trio

from node import api, job_api
from node.addresses import Kind, encode_address
from node.errors import RecordRefused, Unreachable, UserError
from node.running_clock import RunningClock
from node.web.views import name_record
from protocol.charter import decode_founded_charter
from protocol.contests import Contest
from protocol.errors import Reason, Rejected
from protocol.receipts import verify_receipt
from protocol.records import Draw, Hold, Reclaim, ReclaimRequest, Rotate, Suspend, Terms, account_scope, hold_scope
from protocol.records import Kind as RecordKind
from protocol.statements import encode_signed, sign_slot_proposal, sign_unlock_request
from tests.node.web.conftest import make_key, public

ACCOUNT, RECORD = Kind.ACCOUNT, Kind.RECORD
MAILBOX = sha256(b"mailbox").digest()


async def test_a_wallet_can_check_the_charter_that_a_node_shows(node, federation):
    answer = await node.call("get_charter")
    assert decode_founded_charter(answer.founded).charter.id == federation.id
    assert answer.federation == encode_address(Kind.FEDERATION, federation.id)
    assert (answer.epoch, answer.quorum, answer.members[0].name) == (1, 1, "University")


async def test_a_payment_is_final_when_its_submission_returns(funded, federation):
    payment = federation.sign_payment(0, b"", 1500)
    answer = await funded.call("submit_record", payment.encoded, wait=10)
    assert answer.state == "applied"
    assert verify_receipt({0: federation.charter}, answer.receipt).record == payment
    payer = await funded.call("get_account", encode_address(ACCOUNT, federation.person))
    assert (payer.millicredits, payer.next_sequence, payer.head) == (3500, 1, encode_address(RECORD, payment.id))
    assert [(lot.program_name, lot.expiry_epoch, lot.millicredits) for lot in payer.lots] == [("Students", 2, 3500)]
    enrolment = encode_address(RECORD, federation.enrolment.id)
    assert payer.enrolments == [api.Enrolment(enrolment, 1, 0, "University")]
    payee = await funded.call("get_account", encode_address(ACCOUNT, federation.donor))
    assert payee.millicredits == 1500
    assert payee.sponsorships == [api.Sponsorship(encode_address(RECORD, federation.sponsor.id), 1, 3)]


async def test_submitting_twice_gives_the_same_answer(funded, federation):
    payment = federation.sign_payment(0, b"", 1500)
    first = await funded.call("submit", payment.encoded, 10)
    assert await funded.call("submit", payment.encoded, 10) == first


async def test_a_record_that_waits_is_accepted_and_not_final(funded, federation):
    early = federation.sign_payment(1, b"p" * 32, 1)
    answer = await funded.call("submit", early.encoded, 0.5)
    assert (answer.state, answer.receipt) == ("waiting", None)


async def test_a_forbidden_record_is_refused_with_its_reason(funded, federation):
    payment = federation.sign_payment(0, b"", 1500)
    await funded.make_final(payment)
    other = federation.sign_payment(0, b"", 1501)
    with pytest.raises(RecordRefused) as refused:
        await funded.call("submit_record", other.encoded, wait=1)
    assert refused.value.reason is Reason.SLOT_TAKEN
    assert refused.value.exit_status == 4
    assert isinstance(refused.value, Rejected)


async def test_a_reader_waits_for_a_record_to_become_final(funded, federation):
    payment = federation.sign_payment(0, b"", 7)
    answers = []

    async def read():
        answers.append(await funded.call("get_record", encode_address(RECORD, payment.id), wait=10))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await funded.wait_until(lambda: payment.id in funded.member._final_events)
        await funded.member.submit(payment.encoded)
    (record,) = answers
    assert (record.state, record.kind, record.sequence) == ("applied", "transfer", 0)
    assert verify_receipt({0: federation.charter}, record.receipt).record == payment
    (output,) = record.body["outputs"]
    assert output["account"] == encode_address(ACCOUNT, federation.donor)
    assert output["program"] == encode_address(Kind.PROGRAM, federation.program.id)


async def test_a_history_is_read_in_pages_newest_first(funded, federation):
    previous = b""
    payments = []
    for sequence in range(5):
        payment = federation.sign_payment(sequence, previous, 1)
        previous = payment.id
        payments.append(payment)
        await funded.make_final(payment)
    address = encode_address(ACCOUNT, federation.donor)
    first = await funded.call("get_account_records", address, limit=4)
    rest = await funded.call("get_account_records", address, limit=4, before=first.before)
    found = [record.id for record in (*first.records, *rest.records)]
    assert found[:5] == [encode_address(RECORD, payment.id) for payment in reversed(payments)]
    assert len(found) == 6  # and the member's word for the donor
    assert rest.before is None
    assert all(record.receipt is None for record in first.records)


async def test_programs_show_what_was_granted(funded, federation):
    (program,) = await funded.call("get_programs")
    assert program.id == encode_address(Kind.PROGRAM, federation.program.id)
    assert (program.name, program.allowance, program.granted) == ("Students", 10**6, 5000)


async def test_the_status_tells_how_far_the_node_is(funded):
    status = await funded.call("get_status")
    assert (status.member, status.name, status.epoch, status.records_final) == (1, "University", 1, 4)
    assert status.batches == funded.store.count_batches()


async def test_an_account_that_was_never_heard_of_is_empty(node):
    account = await node.call("get_account", encode_address(ACCOUNT, b"x" * 32))
    assert (account.millicredits, account.next_sequence, account.head, account.lots) == (0, 0, None, [])


async def test_unknown_things_are_none_or_one_line(node):
    unknown = encode_address(RECORD, b"x" * 32)
    assert await node.call("get_record", unknown) is None
    assert await node.call("get_job", unknown) is None
    assert await node.call("get_budget_request", unknown) is None
    assert await node.call("get_jobs") == []
    with pytest.raises(UserError, match="does not hold that bundle"):
        await node.call("get_blob", b"x" * 32)
    address = encode_address(ACCOUNT, b"x" * 32)
    with pytest.raises(UserError, match="typing error"):
        await node.call("get_account", address[:-1] + ("q" if address[-1] != "q" else "p"))
    with pytest.raises(UserError, match="an account is needed"):
        await node.call("get_account", unknown)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x00" * 5000, b"\x99" + b"\xff" * 300])
async def test_garbage_is_refused_as_malformed(node, content):
    for method in ("submit_record", "put_offer", "post_budget_request"):
        if method == "post_budget_request" and len(content) > 1024:
            continue
        with pytest.raises(UserError) as refused:
            await node.call(method, content)
        assert not isinstance(refused.value, Unreachable)


async def test_a_request_for_a_budget_is_kept_until_it_is_approved(funded, federation):
    request = federation.sign_budget_request()
    asked = await funded.call("post_budget_request", request.encode())
    assert (asked.state, asked.account) == ("open", encode_address(ACCOUNT, federation.donor))
    assert asked.text == ""
    assert await funded.call("post_budget_request", request.encode()) == asked
    funded.store.mark_approved(request.compute_id(federation.id))
    answer = await funded.call("get_budget_request", asked.id)
    assert answer.state == "approved"


async def test_a_request_for_nobodys_budget_or_another_epoch_is_refused(funded, federation):
    with pytest.raises(UserError, match="no such program"):
        await funded.call("post_budget_request", federation.sign_budget_request(program=b"x" * 32).encode())
    with pytest.raises(RecordRefused) as refused:
        await funded.call("post_budget_request", federation.sign_budget_request(epoch=3).encode())
    assert refused.value.reason is Reason.EPOCH_WRONG
    forged = federation.sign_budget_request()._replace(text="forged").encode()
    forged = federation.sign_budget_request()._replace(signature=bytes(64)).encode()
    with pytest.raises(UserError, match="not signed"):
        await funded.call("post_budget_request", forged)
    assert funded.store.list_budget_requests() == []


async def test_a_donors_offer_is_shown_and_handed_on_once(funded, federation):
    handed_on: list[bytes] = []
    funded.services.on_offer.append(handed_on.append)
    offer = federation.sign_offer(int(time.time()) + 600).encode()
    await funded.call("put_offer", offer)
    await funded.call("put_offer", offer)
    assert handed_on == [offer]
    (shown,) = await funded.call("get_offers")
    assert (shown.encoded, shown.donor) == (offer, encode_address(ACCOUNT, federation.donor))


async def test_an_offer_needs_an_end_a_signature_and_a_member_that_vouches(funded, federation):
    soon = int(time.time()) + 600
    stranger = federation.person_key
    for offer, reason in (
        (federation.sign_offer(soon - 700), Reason.TERMS_WRONG),
        (federation.sign_offer(soon + job_api.OFFER_SECONDS_MAX), Reason.TERMS_WRONG),
        (federation.sign_offer(soon, stranger), Reason.REFERENCE_MISSING),
        (federation.sign_offer(soon, sponsor=b"x" * 32), Reason.REFERENCE_MISSING),
    ):
        with pytest.raises(RecordRefused) as refused:
            await funded.call("put_offer", offer.encode())
        assert refused.value.reason is reason
    with pytest.raises(UserError, match="not signed"):
        await funded.call("put_offer", federation.sign_offer(soon)._replace(cores=64).encode())
    assert await funded.call("get_offers") == []


async def test_a_suspended_donor_is_offered_to_nobody(funded, federation):
    offer = federation.sign_offer(int(time.time()) + 600)
    await funded.call("put_offer", offer.encode())
    body = Suspend(1, federation.donor, 7, b"", 2, "board@a.org")
    scope = account_scope(federation.member_account)
    await funded.make_final(
        federation.sign(RecordKind.SUSPEND, scope, 2, federation.sponsor.id, body, federation.member_key)
    )
    assert await funded.call("get_offers") == []
    with pytest.raises(RecordRefused) as caught:
        await funded.call("put_offer", federation.sign_offer(int(time.time()) + 900).encode())
    assert caught.value.reason is Reason.SUSPENDED


async def test_letters_wait_in_their_mailbox(node):
    first = await node.call("post_message", MAILBOX, b"first")
    second = await node.call("post_message", MAILBOX, b"second")
    assert second > first
    assert [letter.content for letter in await node.call("get_messages", MAILBOX)] == [b"first", b"second"]
    assert await node.call("get_messages", MAILBOX, after=second) == []
    assert await node.call("get_messages", sha256(b"other").digest()) == []


async def test_a_reader_is_woken_by_the_letter(node):
    answers = []

    async def read():
        answers.append(await node.call("get_messages", MAILBOX, wait=10))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        nursery.start_soon(read)
        await node.wait_until(lambda: bool(node.services.mailboxes._bells))
        started = trio.current_time()
        await node.call("post_message", MAILBOX, b"ring")
    assert trio.current_time() - started < 5
    assert [[letter.content for letter in letters] for letters in answers] == [[b"ring"], [b"ring"]]
    assert node.services.mailboxes._bells == {}


async def test_a_poll_without_a_letter_comes_back_empty(node):
    assert await node.call("get_messages", MAILBOX, wait=1) == []
    assert node.services.mailboxes._bells == {}


async def test_bundles_are_kept_under_their_hash(node):
    digest = b""
    for content in (b"", b"sealed", bytes(3_000_000)):
        digest = await node.call("put_blob", content)
        assert digest == sha256(content).digest()
        assert await node.call("get_blob", digest) == content
    (node.home / "blobs" / digest.hex()).write_bytes(b"changed on the disk")
    with pytest.raises(UserError, match="another content"):
        await node.call("get_blob", digest)


async def test_a_bundle_under_a_wrong_name_is_refused(node):
    answer = await node.talk(
        b"PUT /v1/blobs/" + b"ab" * 32 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc"
    )
    assert answer.startswith(b"HTTP/1.1 400")
    assert list((node.home / "blobs").iterdir()) == []


async def test_a_new_letter_takes_the_place_of_the_oldest_in_a_full_mailbox(node, monkeypatch):
    from node.storage import store

    monkeypatch.setattr(store, "MAILBOX_MESSAGES_MAX", 1)
    await node.call("post_message", MAILBOX, b"first")
    await node.call("post_message", MAILBOX, b"second")
    assert [letter.content for letter in await node.call("get_messages", MAILBOX)] == [b"second"]


def ask(federation, attempt=1, key=None):
    key = key or federation.person_key
    slot = (account_scope(federation.person), 0)
    return sign_unlock_request(federation.id, slot, attempt, key.public_key().public_bytes_raw(), key)


def propose(federation, record, batches, attempt=1):
    slot, key = record.slot, federation.person_key
    public_key = key.public_key().public_bytes_raw()
    return encode_signed(sign_slot_proposal(federation.id, slot, attempt, record.id, batches, public_key, key))


async def test_a_slot_is_shown_with_its_claims_and_freed_by_its_owner(funded, federation):
    address = encode_address(ACCOUNT, federation.person)
    assert await funded.call("get_slot", address) == api.AccountSlot(0, 0, None, [], False)
    request, payment = encode_signed(ask(federation)), federation.sign_payment(0, b"", 1500)
    promises = await funded.call("post_unlock", request, wait=10)
    assert (promises.attempt, promises.is_decided, promises.has_quorum) == (1, False, True)
    assert [(promise.member, promise.record) for promise in promises.promises] == [(1, None)]
    assert await funded.call("post_unlock", request, wait=10) == promises, "asking again changes nothing"
    assert await funded.call("get_slot", address) == api.AccountSlot(0, 1, request, [], True)
    with pytest.raises(RecordRefused) as refused:
        await funded.call("submit_record", payment.encoded)
    assert refused.value.reason is Reason.SLOT_CONTESTED
    proposal = propose(federation, payment, [promise.batch for promise in promises.promises])
    answer = await funded.call("post_proposal", proposal, payment.encoded, wait=10)
    assert verify_receipt({0: federation.charter}, answer.receipt).record == payment
    assert await funded.call("post_proposal", proposal, payment.encoded, wait=10) == answer
    assert (await funded.call("get_slot", address)).sequence == 1


async def test_who_may_not_unlock_is_told_by_which_rule(funded, federation):
    with pytest.raises(RecordRefused) as refused:
        await funded.call("post_unlock", encode_signed(ask(federation, key=federation.donor_key)))
    assert refused.value.reason is Reason.WRITER_WRONG
    payment = federation.sign_payment(0, b"", 1500)
    with pytest.raises(RecordRefused) as refused:
        await funded.call("post_proposal", propose(federation, payment, [b"b" * 32]), payment.encoded)
    assert refused.value.reason is Reason.REFERENCE_MISSING
    for nonsense in (b"", b"\xc0"):
        with pytest.raises(UserError):
            await funded.call("post_unlock", nonsense)
        with pytest.raises(UserError):
            await funded.call("post_proposal", nonsense, payment.encoded)


async def test_a_request_that_the_owner_did_not_sign_is_not_shown(funded, federation):
    """A member may carry any bytes; a high attempt that nobody asked for would use up the owner's attempts."""
    contest = funded.member.replica.contests.setdefault((account_scope(federation.person), 0), Contest())
    contest.requests[b"b" * 32, 0] = ask(federation)._replace(attempt=999)
    contest.requests[b"b" * 32, 1] = ask(federation, 5)
    contest.requests[b"b" * 32, 2] = ask(federation, 7, federation.donor_key)
    shown = await funded.call("get_slot", encode_address(ACCOUNT, federation.person))
    assert (shown.attempt, shown.is_contested) == (5, True)


async def test_an_account_shows_the_key_in_force_and_only_that_one_asks_for_a_budget(funded, federation):
    donor, after = encode_address(ACCOUNT, federation.donor), make_key(77)
    assert (await funded.call("get_account", donor)).key is None
    scope = account_scope(federation.donor)
    rotate = federation.sign(RecordKind.ROTATE, scope, 0, b"", Rotate(public(after)), federation.donor_key, after)
    await funded.make_final(rotate)
    assert (await funded.call("get_account", donor)).key == public(after)
    request = federation.sign_budget_request()
    with pytest.raises(RecordRefused) as caught:
        await funded.call("post_budget_request", request.encode())
    assert caught.value.reason is Reason.WRITER_WRONG
    signed = request._replace(person_key=public(after)).sign(federation.charter, after)
    assert (await funded.call("post_budget_request", signed.encode())).account == donor


async def test_a_job_shows_how_long_its_donor_may_still_settle_and_what_ended_it(funded, federation):
    terms = Terms(0, bytes(32), public(make_key(9)), 600, bytes(32), federation.sponsor.id, "train")
    hold = Hold(federation.donor, (Draw(federation.program.id, 2, 300),), terms)
    scope = account_scope(federation.person)
    held = federation.sign(RecordKind.HOLD, scope, 0, b"", hold, federation.person_key)
    asked = federation.sign(
        RecordKind.RECLAIM_REQUEST, scope, 1, held.id, ReclaimRequest(held.id), federation.person_key
    )
    await funded.make_final(held)
    before = await funded.call("get_job", name_record(held.id))
    assert (before.reclaim_request, before.reclaim_seconds_left, before.grace_seconds) == (None, None, 600)
    await funded.make_final(asked)
    running = await funded.call("get_job", name_record(held.id))
    assert running.reclaim_request == name_record(asked.id)
    assert 590 <= running.reclaim_seconds_left <= 600
    funded.member.running_clock.save(at_once=True)
    seconds = [0.0]
    funded.member.running_clock = RunningClock(funded.store, lambda: seconds[0])
    seconds[0] = 600.0
    assert (await funded.call("get_job", name_record(held.id))).reclaim_seconds_left == 0
    taken = federation.sign(RecordKind.RECLAIM, hold_scope(held.id), 0, b"", Reclaim(asked.id), federation.person_key)
    await funded.make_final(taken)
    after = await funded.call("get_job", name_record(held.id))
    assert (after.state, after.paid, after.ended_by) == ("RECLAIMED", 0, name_record(taken.id))


async def test_the_api_describes_itself(node):
    answer = await node.talk(b"GET /schema/openapi.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    document = msgspec.json.decode(answer.partition(b"\r\n\r\n")[2])
    assert document["openapi"].startswith("3.1")
    assert document["info"]["title"] == "Allmende node"
    paths = document["paths"]
    assert "/v1/records/{record_id}" in paths
    assert not any("operator" in path for path in paths)
    assert "application/octet-stream" in paths["/v1/records"]["post"]["requestBody"]["content"]
    for operations in paths.values():
        for operation in operations.values():
            assert operation["description"].endswith((".", ")"))
            assert not any(parameter["name"] == "services" for parameter in operation.get("parameters", ()))
