"""Freeing a slot: whoever signed two records for it can always go on, and nothing that may be final is lost."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from unittest import mock

import pytest

from protocol.attempts import Claim, Round
from protocol.batches import Batch
from protocol.errors import Reason, Rejected
from protocol.identifiers import Slot
from protocol.records import Record, account_scope, decode_record
from protocol.rules import Circumstances
from protocol.statements import (
    Commit,
    Promise,
    Proposal,
    SlotProposal,
    Statement,
    Unlock,
    UnlockRequest,
    Vote,
    encode_signed,
    is_signed_by_writer,
    sign_slot_proposal,
    sign_unlock_request,
)
from tests.local_members import Cluster, Gathering, LocalMember, make_prefix
from tests.protocol.test_contest import Network
from tests.strategies import Person, make_economy, make_federation

FEDERATION = make_federation()
ECONOMY = make_economy(FEDERATION)
ALICE, BOB = ECONOMY.people
PREFIX = make_prefix(FEDERATION)
QUORUM = FEDERATION.charter.quorum


def pay(amount: int, payer: Person = ALICE, payee: Person = BOB) -> Record:
    return FEDERATION.transfer(payer, [ECONOMY.output(payee, amount)])


def get_slot(record: Record) -> Slot:
    return record.scope, record.sequence


def ask(record: Record, attempt: int = 1, owner: Person = ALICE) -> UnlockRequest:
    return sign_unlock_request(FEDERATION.id, get_slot(record), attempt, owner.public_key, owner.key)


def propose(record: Record, batches: Iterable[bytes], attempt: int = 1, owner: Person = ALICE) -> SlotProposal:
    return sign_slot_proposal(FEDERATION.id, get_slot(record), attempt, record.id, batches, owner.public_key, owner.key)


def list_promises(gathering: Gathering, record: Record, attempt: int = 1) -> dict[bytes, Claim | None]:
    """Batch -> what the promise in it reports; one for each member."""
    contest = gathering.replica.contests[get_slot(record)]
    chosen = contest.choose_promises(Round(0, attempt))
    return {batch: promise.report for batch, promise in chosen.items()}


def make_cluster(numbers: Iterable[int] = ()) -> Cluster:
    cluster = Cluster(FEDERATION, numbers)
    for batch in PREFIX:
        cluster.hand_out(batch)
    cluster.settle_down()
    return cluster


def split_votes(cluster: Cluster, left: Record, right: Record) -> None:
    """Half of the members vote for one record, half for the other, and then all hear all of it."""
    said = []
    half = len(cluster.members) // 2
    for record, numbers in ((left, list(cluster.members)[:half]), (right, list(cluster.members)[half:])):
        members = [cluster.members[number] for number in numbers]
        members[0].submit(record)
        introduction = members[0].speak()
        assert introduction is not None
        for member in members[1:]:
            member.receive(introduction)
        said += [introduction, *filter(None, (member.speak() for member in members[1:]))]
    for batch in said:
        cluster.hand_out(batch)
    cluster.settle_down()


def unlock(cluster: Cluster, wish: Record, attempt: int = 1, at: int = 1) -> Record:
    """The owner's way: ask, wait for promises, propose what they force or else its wish; returns what it proposed."""
    member = cluster.members[at]
    member.ask(ask(wish, attempt))
    cluster.settle_down()
    promises = list_promises(member, wish, attempt)
    forced = max((report for report in promises.values() if report), default=None)
    claims = {record.id: record for record in member.replica.get_claims(get_slot(wish))}
    record = claims[forced.record] if forced else wish
    member.propose(propose(record, promises, attempt), record)
    cluster.settle_down()
    return record


def is_final_everywhere(cluster: Cluster, record: Record) -> bool:
    roots = {member.replica.compute_state_root() for member in cluster.members.values()}
    return len(roots) == 1 and all(member.replica.is_final(record.id) for member in cluster.members.values())


def test_an_owner_who_signed_two_records_is_freed_by_one_attempt():
    cluster = make_cluster()
    left, right = pay(10), pay(20)
    split_votes(cluster, left, right)
    assert not any(
        member.replica.is_final(record.id) for member in cluster.members.values() for record in (left, right)
    )
    unlock(cluster, right)
    assert is_final_everywhere(cluster, right)
    assert not cluster.members[1].replica.is_final(left.id)
    assert not cluster.members[1].replica.contests


def test_a_third_record_may_take_the_slot_when_nothing_was_certified():
    cluster = make_cluster()
    split_votes(cluster, pay(10), pay(20))
    third = pay(30)
    unlock(cluster, third)
    assert is_final_everywhere(cluster, third)


def commit_at_one_member(cluster: Cluster, record: Record, number: int = 1) -> None:
    """A quorum votes for the record, but only this member sees the certificate and commits."""
    member = cluster.members[number]
    member.submit(record)
    introduction = member.speak()
    assert introduction is not None
    others = [other for other in cluster.members.values() if other is not member][: QUORUM - 1]
    for other in others:
        other.receive(introduction)
        vote = other.speak()
        assert vote is not None
        member.receive(vote)
    assert member.speak() is not None


def catch_up(cluster: Cluster) -> None:
    """Everybody hears all that anybody has."""
    for member in list(cluster.members.values()):
        for batch in list(member.batches.values()):
            cluster.hand_out(batch)


def test_a_record_that_one_member_committed_is_the_only_one_that_can_be_proposed():
    cluster = make_cluster()
    first, wish = pay(10), pay(20)
    commit_at_one_member(cluster, first)
    # The others hear of the request before the certificate: only the one commit tells of the record.
    request = ask(wish)
    cluster.members[1].ask(request)
    for batch in filter(None, [cluster.members[1].speak()]):
        cluster.hand_out(batch)
    catch_up(cluster)
    cluster.settle_down()
    promises = list_promises(cluster.members[1], wish)
    assert {report.record for report in promises.values() if report} == {first.id}
    with pytest.raises(Rejected) as caught:
        cluster.members[2].propose(propose(wish, promises), wish)
    assert caught.value.reason is Reason.TERMS_WRONG
    cluster.members[2].propose(propose(first, promises), first)
    cluster.settle_down()
    assert is_final_everywhere(cluster, first)


def test_a_forced_record_is_voted_for_although_its_epoch_is_over():
    """Otherwise an owner whose record was certified in the last minute of an epoch would be locked out for good."""
    cluster = make_cluster()
    first = pay(10)
    commit_at_one_member(cluster, first)
    for member in cluster.members.values():
        member.circumstances = Circumstances(range(7, 8))
    cluster.members[1].ask(ask(first))
    catch_up(cluster)
    cluster.settle_down()
    promises = list_promises(cluster.members[1], first)
    cluster.members[1].propose(propose(first, promises), first)
    cluster.settle_down()
    assert is_final_everywhere(cluster, first)


def test_a_record_of_a_past_epoch_that_nobody_certified_is_replaced_by_its_owner():
    cluster = make_cluster()
    left, right = pay(10), pay(20)
    split_votes(cluster, left, right)
    for member in cluster.members.values():
        member.circumstances = Circumstances(range(2, 3))
    with pytest.raises(Rejected) as caught:
        unlock(cluster, left)
    assert caught.value.reason is Reason.EPOCH_WRONG
    fresh = FEDERATION.transfer(ALICE, [ECONOMY.output(BOB, 10)], epoch=2)
    unlock(cluster, fresh, attempt=2)
    assert is_final_everywhere(cluster, fresh)


def test_nobody_but_the_owner_can_ask():
    cluster = make_cluster()
    split_votes(cluster, pay(10), pay(20))
    with pytest.raises(Rejected) as caught:
        cluster.members[1].ask(ask(pay(10), owner=BOB))
    assert caught.value.reason is Reason.WRITER_WRONG
    forged = ask(pay(10))._replace(signature=bytes(64))
    with pytest.raises(Rejected) as caught:
        cluster.members[1].ask(forged)
    assert caught.value.reason is Reason.SIGNATURE_INVALID
    introduction = FEDERATION.batch(4, seen=[PREFIX[-1]], statements=[Unlock(encode_signed(forged))])
    member = make_member()
    member.receive(introduction)
    assert not list_statements(member.speak(), Promise)


def make_member(number: int = 1) -> LocalMember:
    return make_cluster((number,)).members[number]


def test_nobody_blocks_a_record_by_introducing_it_with_a_broken_signature():
    cluster, record = make_cluster((1, 2, 3)), pay(10)
    broken = decode_record(FEDERATION.id, record.encoded[:-1] + bytes([record.encoded[-1] ^ 1]))
    assert broken.id == record.id
    cluster.hand_out(carry(Vote(b"", 0, 0, b"", 0), broken))
    cluster.settle_down()
    unlock(cluster, record)
    assert is_final_everywhere(cluster, record)


def list_statements(batch: Batch | None, kind: type) -> list[Statement]:
    return [statement for statement in batch.statements if isinstance(statement, kind)] if batch else []


def carry(statement: Statement, *records: Record, **place: object) -> Batch:
    """A batch of member 4, which took no part in the prefix."""
    return FEDERATION.batch(4, seen=[PREFIX[-1]], records=records, statements=[statement], **place)  # type: ignore[arg-type]


def test_a_member_that_promised_votes_for_nothing_at_the_attempt_before():
    member, record = make_member(), pay(10)
    member.receive(carry(Unlock(encode_signed(ask(record)))))
    assert len(list_statements(member.speak(), Promise)) == 1
    with pytest.raises(Rejected) as caught:
        member.submit(record)
    assert caught.value.reason is Reason.SLOT_CONTESTED
    again = member.restart()
    with pytest.raises(Rejected):
        again.submit(record)
    assert again.speak() is None, "a promise is given once, also after a restart"


def test_what_was_decided_and_not_said_is_not_said_after_a_promise():
    member, record = make_member(), pay(10)
    introduction = carry(Vote(b"", 0, 0, b"", 0), record)
    member.receive(introduction)
    assert member.voter.has_statements
    member.receive(carry(Unlock(encode_signed(ask(record))), after=introduction))
    (said,) = filter(None, [member.speak()])
    assert [type(statement) for statement in said.statements] == [Promise]


def test_a_promise_reports_a_certificate_that_came_before_it_in_the_same_moment():
    member, record = make_member(), pay(10)
    introduction = carry(Vote(b"", 0, 0, b"", 0), record)
    request = carry(Unlock(encode_signed(ask(record))), after=introduction)
    votes = [
        FEDERATION.batch(
            n, after=PREFIX_HEADS[n], seen=[introduction], statements=[Vote(introduction.id, 0, 0, b"", 0)]
        )
        for n in (2, 3)
    ]
    for batch in (introduction, *votes, request):
        member.receive(batch)
    (promise,) = list_statements(member.speak(), Promise)
    assert isinstance(promise, Promise)
    assert promise.report == Claim(Round(0, 0), record.id)


PREFIX_HEADS = {batch.header.member: batch for batch in PREFIX}


def test_an_invented_report_makes_a_proposal_void_and_a_true_one_does_not():
    """A faulty member may claim any certificate; a claim that nothing stands behind is no report at all."""
    cluster = make_cluster((1, 2, 3))
    left, right = pay(10), pay(20)
    split_votes(cluster, left, right)
    request = carry(Unlock(encode_signed(ask(left))))
    lie = carry(Promise(request.id, 0, left.id, 0, 0), after=request)
    for batch in (request, lie):
        cluster.hand_out(batch)
    cluster.settle_down()
    promises = list_promises(cluster.members[1], left)
    assert len(promises) == 4
    with pytest.raises(Rejected) as caught:
        cluster.members[1].propose(propose(left, promises), left)
    assert caught.value.reason is Reason.TERMS_WRONG
    honest = [batch for batch in promises if batch != lie.id]
    cluster.members[1].propose(propose(right, honest), right)
    cluster.settle_down()
    assert is_final_everywhere(cluster, right)


def test_promises_of_less_than_a_quorum_carry_no_proposal():
    cluster = make_cluster()
    left, right = pay(10), pay(20)
    split_votes(cluster, left, right)
    cluster.members[1].ask(ask(left))
    cluster.settle_down()
    some = list(list_promises(cluster.members[1], left))[: QUORUM - 1]
    with pytest.raises(Rejected) as caught:
        cluster.members[1].propose(propose(left, some), left)
    assert caught.value.reason is Reason.TERMS_WRONG
    with pytest.raises(Rejected):
        cluster.members[1].propose(propose(left, [*some, PREFIX[0].id]), left)


def test_a_promise_leaves_out_no_commit_that_the_member_made():
    """A commit that would fall below a promise is not made at all."""
    member, record = make_member(), pay(10)
    introduction = carry(Vote(b"", 0, 0, b"", 0), record)
    request = carry(Unlock(encode_signed(ask(record))), after=introduction)
    for batch in (introduction, request):
        member.receive(batch)
    said = member.speak()
    assert list_statements(said, Promise)
    for number in (2, 3):
        votes = [Vote(introduction.id, 0, 0, b"", 0)]
        member.receive(FEDERATION.batch(number, after=PREFIX_HEADS[number], seen=[introduction], statements=votes))
    assert not list_statements(member.speak(), Commit)


# -- hostile members --------------------------------------------------------------------------------------------------


def test_a_member_that_repeats_a_proposal_in_its_own_batch_splits_no_votes():
    """With one silent member of four every vote is needed, wherever the voter saw the owner's words first."""
    cluster = make_cluster((1, 2, 3))
    wish = pay(10)
    cluster.members[1].ask(ask(wish))
    cluster.settle_down()
    proposal = propose(wish, list_promises(cluster.members[1], wish))
    cluster.members[1].propose(proposal, wish)
    (told,) = filter(None, [cluster.members[1].speak()])
    seen = list(cluster.members[1].batches.values())[-8:-1]
    repeated = FEDERATION.batch(4, seen=seen, records=[wish], statements=[Proposal(encode_signed(proposal))])
    cluster.members[3].receive(repeated)
    cluster.hand_out(told)
    cluster.hand_out(repeated)
    cluster.settle_down()
    assert is_final_everywhere(cluster, wish)


def test_a_forged_request_is_checked_once_and_no_more():
    member, record = make_member(), pay(10)
    forged = ask(record)._replace(signature=bytes(64))
    with mock.patch("protocol.voting.is_signed_by_writer", wraps=is_signed_by_writer) as checked:
        member.receive(carry(Unlock(encode_signed(forged))))
        for _ in range(5):
            member.voter.handle_contests(member.circumstances)
    assert checked.call_count == 1


def ask_for_first_slot(person: Person) -> UnlockRequest:
    return sign_unlock_request(FEDERATION.id, (account_scope(person.account), 0), 1, person.public_key, person.key)


def test_a_slot_of_an_account_that_never_had_anything_is_not_unlocked():
    with pytest.raises(Rejected) as caught:
        make_member().ask(ask_for_first_slot(FEDERATION.person("a stranger")))
    assert caught.value.reason is Reason.FUNDS_MISSING


def test_who_was_vouched_for_frees_a_slot_before_it_received_anything():
    make_member().ask(ask_for_first_slot(make_economy(FEDERATION).donor))


# -- any schedule -----------------------------------------------------------------------------------------------------


def run_unlocking(seed: int, quorum_of_promises: int = QUORUM) -> tuple[int, Gathering]:
    """Two records, a faulty member that promises the opposite of what it did, an owner that asks until it is free.

    Returns (how many records of the slot became final, whether the owner was freed).
    """
    random = Random(seed)
    correct = {number: LocalMember(FEDERATION, number) for number in (1, 2, 3)}
    union = Gathering(FEDERATION)
    network = Network(random)
    records = [pay(10), pay(20)]
    heads: list[Batch] = []

    def say(batch: Batch | None) -> None:
        if batch is not None:
            union.receive(batch)
            for number in correct:
                if number != batch.header.member:
                    network.send(batch, number)

    def lie(statements: list[Statement], *seen: Batch) -> None:
        heads.append(FEDERATION.batch(4, after=heads[-1] if heads else None, seen=seen, statements=statements))
        say(heads[-1])

    def deliver(steps: int) -> None:
        for receiver, batch in network:
            correct[receiver].receive(batch)
            if random.random() < 0.6:
                say(correct[receiver].speak())
            steps -= 1
            if steps < 0:
                return

    for batch in PREFIX:
        for gathering in (union, *correct.values()):
            gathering.receive(batch)
    for record, number in zip(records, random.sample(sorted(correct), 2), strict=True):
        correct[number].submit(record)
        introduction = correct[number].speak()
        assert introduction is not None
        say(introduction)
        for choice in (Vote(introduction.id, 0, 0, b"", 0), Commit(introduction.id, 0, 0)):
            if random.random() < 0.7:
                lie([choice], introduction)
    deliver(random.randrange(40))
    for attempt in range(1, 12):
        if any(union.replica.is_final(record.id) for record in records):
            break
        _attempt(random, correct, union, records, attempt, say, lie, deliver)
    deliver(10_000)
    for _ in range(6):
        for number, member in correct.items():
            for batch in union.batches.values():
                member.receive(batch)
            say(correct[number].speak())
    deliver(10_000)
    final = [record for record in records if union.replica.is_final(record.id)]
    for member in correct.values():
        member.replica.ledger.check_conservation()
        assert [record.id for record in final if not member.replica.is_final(record.id)] == []
    return len(final), union


def _attempt(random, correct, union, records, attempt, say, lie, deliver):
    """The owner asks one member, waits, and proposes on any quorum of promises that it finds."""
    slot = get_slot(records[0])
    helper = correct[random.choice(sorted(correct))]
    try:
        helper.ask(ask(records[0], attempt))
    except Rejected:
        return
    say(helper.speak())
    contest = helper.replica.contests.get(slot)
    if contest is None:
        return
    (place,) = {place for place, request in contest.requests.items() if request.attempt == attempt}
    carrier = union.batches[place[0]]
    claimed = random.choice([None, *records])
    lie([Promise(place[0], place[1], claimed.id if claimed else b"", 0, 0)], carrier)
    deliver(random.choice((60, 10_000)))
    contest = helper.replica.contests.get(slot)
    promises = contest.choose_promises(Round(0, attempt)) if contest else {}
    for _ in range(8):
        chosen = random.sample(sorted(promises), min(QUORUM, len(promises)))
        reports = [promises[batch].report for batch in chosen if promises[batch].report]
        forced = max(reports, default=None)
        record = next((r for r in records if forced and r.id == forced.record), random.choice(records))
        try:
            helper.propose(propose(record, chosen or [b"\0" * 32], attempt), record)
        except Rejected:
            continue
        say(helper.speak())
        break
    deliver(random.choice((60, 10_000)))


def test_whatever_the_network_and_a_lying_member_do_one_record_becomes_final():
    freed = 0
    for seed in range(300):
        final_count, _ = run_unlocking(seed)
        assert final_count <= 1, f"seed {seed}: two records of one slot are final"
        freed += final_count
    assert freed == 300
