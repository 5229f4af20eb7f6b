"""A new charter: what was final stays, what was certified is handed over, and only its own members speak under it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from random import Random

import pytest

from protocol.attempts import Claim, Round
from protocol.batches import Batch, is_signed_batch
from protocol.charter import Charter, Member
from protocol.errors import Reason, Rejected
from protocol.receipts import verify_receipt
from protocol.records import Record
from protocol.rules import Circumstances
from protocol.statements import Adopt, Commit, CommitBatch, Promise, Statement, Vote, VoteBatch, sign_unlock_request
from tests.local_members import Cluster, Gathering, LocalMember, make_prefix
from tests.protocol.test_contest import Network
from tests.strategies import make_economy, make_federation, make_public_key

FEDERATION = make_federation()
ECONOMY = make_economy(FEDERATION)
ALICE, BOB = ECONOMY.people
PREFIX = make_prefix(FEDERATION)


def pay(amount: int, **place: int) -> Record:
    return FEDERATION.transfer(ALICE, [ECONOMY.output(BOB, amount)], "", **place)


def choose_members(*numbers: int) -> tuple[Member, ...]:
    """These members, each under a new vote key; number 5 is new."""
    members = {member.number: member for member in FEDERATION.change_member(5)}
    return tuple(members[n]._replace(vote_key=make_public_key(f"vote {n} version 1")) for n in numbers)


FIVE_MEMBERS = choose_members(1, 2, 3, 4, 5)
FIVE = FEDERATION.amend(members=FIVE_MEMBERS)
WITHOUT_ONE = FEDERATION.amend(members=choose_members(2, 3, 4, 5))


def make_cluster(numbers: Iterable[int] = (), approved: Iterable[Record] = (FIVE, WITHOUT_ONE)) -> Cluster:
    """Members whose people approve these amendments."""
    cluster = Cluster(FEDERATION, numbers)
    names = frozenset(record.id for record in approved)
    for member in cluster.members.values():
        member.circumstances = Circumstances(range(1, 2), approved=names)
    for batch in PREFIX:
        cluster.hand_out(batch)
    cluster.settle_down()
    return cluster


def get_roots(cluster: Cluster) -> set[bytes]:
    return {member.replica.compute_state_root() for member in cluster.members.values()}


def list_statements(batches: Iterable[Batch], kind: type) -> list[Statement]:
    return [statement for batch in batches for statement in batch.statements if isinstance(statement, kind)]


def test_an_amendment_that_is_final_and_adopted_comes_into_force():
    cluster = make_cluster((1, 2, 3, 4, 5))
    cluster.finalise([FIVE])
    for member in cluster.members.values():
        assert (member.replica.version, member.voter.version) == (1, 1)
    payment = pay(10)
    cluster.finalise([payment], at=5)
    assert all(member.replica.is_final(payment.id) for member in cluster.members.values())
    assert len(get_roots(cluster)) == 1
    receipt = cluster.members[5].receipt(payment)
    verified = verify_receipt(cluster.members[5].replica.ledger.charters, receipt)
    assert (verified.round, len(verified.members)) == (Round(1, 0), 4)


def test_nobody_votes_for_an_amendment_that_its_people_did_not_approve():
    cluster = make_cluster(approved=())
    with pytest.raises(Rejected) as caught:
        cluster.members[1].submit(FIVE)
    assert caught.value.reason is Reason.NOT_APPROVED
    for member in list(cluster.members.values())[:2]:
        member.circumstances = Circumstances(range(1, 2), approved={FIVE.id})
    cluster.members[1].submit(FIVE)
    cluster.settle_down()
    assert not cluster.members[1].replica.is_final(FIVE.id)


def test_a_founder_leaves_and_its_vote_counts_no_more():
    cluster = make_cluster((1, 2, 3, 4, 5))
    cluster.finalise([WITHOUT_ONE])
    assert not cluster.members[1].voter.is_speaking
    with pytest.raises(Rejected) as caught:
        cluster.members[1].submit(pay(10))
    assert caught.value.reason is Reason.CHARTER_CHANGING
    payment = pay(10)
    cluster.finalise([payment], at=2)
    assert all(member.replica.is_final(payment.id) for member in cluster.members.values())
    assert (
        1 not in verify_receipt(cluster.members[2].replica.ledger.charters, cluster.members[2].receipt(payment)).members
    )


def test_adopt_is_the_last_that_a_member_says_under_a_version():
    cluster = make_cluster()
    cluster.finalise([FIVE])
    for number in FEDERATION.numbers:
        own = [batch for batch in cluster.said if batch.header.member == number and batch.header.charter_version == 0]
        adopts = list_statements(own, Adopt)
        if adopts:
            assert own[-1].statements[-1] == adopts[-1]
            assert len(adopts) == 1


def test_a_member_between_two_versions_says_nothing():
    member = make_cluster((1,)).members[1]
    others = make_cluster((2, 3, 4))
    others.members[2].submit(FIVE)
    others.settle_down()
    for batch in others.said:
        if not list_statements([batch], Adopt) and batch.header.charter_version == 0:
            member.receive(batch)
    assert list_statements(filter(None, [member.speak()]), Adopt)
    member.receive(FEDERATION.batch(4, seen=[PREFIX[-1]], records=[pay(10)], statements=[VoteBatch(b"", 0)]))
    assert not member.voter.has_statements
    assert member.speak() is None
    assert member.restart().speak() is None


def test_a_batch_of_a_version_needs_that_version_to_be_in_force_and_its_own_key():
    after = FEDERATION.amended(FIVE).charter
    early = FEDERATION.batch(5, statements=[VoteBatch(PREFIX[0].id, 0)], charter=after)
    assert is_signed_batch(after, early)
    assert not is_signed_batch(FEDERATION.charter, early)
    gathering = Gathering(FEDERATION)
    for batch in (*PREFIX, early):
        gathering.receive(batch)
    assert early.id in gathering.parked


# -- hand-over --------------------------------------------------------------------------------------------------------


PREFIX_HEADS = {batch.header.member: batch for batch in PREFIX}
LATE = FEDERATION.amend(members=FIVE_MEMBERS, epoch=7)


def write_change(record: Record) -> tuple[list[Batch], list[Batch], list[Batch]]:
    """What members 1, 2 and 4 say: the amendment until it is final; votes for a record; that they adopt."""
    heads = dict(PREFIX_HEADS)

    def say(number: int, *statements: Statement, records: Iterable[Record] = ()) -> Batch:
        seen = [batch for batch in heads.values() if batch.header.member != number]
        after = heads.get(number)
        heads[number] = FEDERATION.batch(number, after=after, seen=seen, records=tuple(records), statements=statements)
        return heads[number]

    introduction = say(1, VoteBatch(b"", 0), records=[LATE])
    amending = [introduction, *(say(number, VoteBatch(introduction.id, 0)) for number in (2, 4))]
    amending += [say(number, CommitBatch(introduction.id, 0)) for number in (1, 2, 4)]
    voted = say(1, VoteBatch(b"", 0), records=[record])
    voting = [voted, *(say(number, VoteBatch(voted.id, 0)) for number in (2, 4))]
    adopting = [say(number, Adopt(1, FEDERATION.amended(LATE).charter.id)) for number in (1, 2, 4)]
    return amending, voting, adopting


def make_late_member(record: Record) -> LocalMember:
    """Member 3 in epoch 7: it has adopted before it hears of the votes for a record of epoch 1, then others adopt."""
    member = make_cluster((3,)).members[3]
    member.circumstances = Circumstances(range(7, 8), approved={LATE.id})
    amending, voting, adopting = write_change(record)
    for batch in amending:
        member.receive(batch)
    assert list_statements(filter(None, [member.speak()]), Adopt)
    for batch in (*voting, *adopting):
        member.receive(batch)
    return member


def test_what_was_certified_before_is_voted_for_after_the_change_and_nothing_else():
    """Its epoch is over: without the hand-over the member would vote for a rival of the new epoch, and the record may
    be final by commits of the old version that it has not seen."""
    first, rival = pay(10), pay(20, epoch=7)
    member = make_late_member(first)
    assert member.voter.version == 1
    with pytest.raises(Rejected) as caught:
        member.submit(rival)
    assert caught.value.reason is Reason.SLOT_CONTESTED
    (vote,) = list_statements(filter(None, [member.speak()]), VoteBatch)
    assert isinstance(vote, VoteBatch)
    assert member.replica.locate(first.id)[0].batch == vote.batch  # type: ignore[index]
    again = make_late_member(first).restart()
    with pytest.raises(Rejected):
        again.submit(rival)


def test_a_promise_after_the_change_reports_what_was_certified_before():
    first = pay(10)
    member = make_late_member(first)
    request = sign_unlock_request(FEDERATION.id, (first.scope, 0), 1, ALICE.public_key, ALICE.key)
    member.ask(request)
    assert member.speak() is not None
    (promise,) = list_statements(filter(None, [member.speak()]), Promise)
    assert isinstance(promise, Promise)
    assert promise.report == Claim(Round(0, 0), first.id)


def test_a_certificate_of_the_version_before_makes_nobody_commit():
    member = make_late_member(pay(10))
    assert not list_statements(filter(None, [member.speak()]), CommitBatch)


def test_a_certificate_that_came_before_a_member_entered_the_version_is_committed():
    """As at a restart: the others' votes under the new version are read before the member speaks under it again."""
    member = make_late_member(pay(10))
    after = FEDERATION.amended(LATE).charter
    introduction = member.replica.locate(pay(10).id)[0].batch  # type: ignore[index]
    votes = [FEDERATION.batch(n, statements=[VoteBatch(introduction, 0)], charter=after) for n in (1, 2, 4, 5)]
    again = LocalMember(FEDERATION, 3)
    again.circumstances = member.circumstances
    again.replay([*member.batches.values(), *votes])
    assert again.voter.enter_version()
    assert list_statements(filter(None, [again.speak()]), CommitBatch)


def test_a_restart_in_any_moment_of_the_change_forgets_nothing():
    cluster = make_cluster()
    cluster.members[1].submit(pay(10))
    cluster.members[2].submit(FIVE)
    for _ in range(8):
        for number, member in list(cluster.members.items()):
            again = member.restart()
            again.submitted = member.submitted
            cluster.members[number] = again
            assert again.replica.compute_state_root() == member.replica.compute_state_root()
            batch = again.speak()
            if batch is not None:
                cluster.hand_out(batch)
    assert {member.voter.version for member in cluster.members.values()} == {1}
    assert not any(member.replica.forks for member in cluster.members.values())
    assert len(get_roots(cluster)) == 1


# -- any schedule -----------------------------------------------------------------------------------------------------


@cache
def get_next_charter() -> Charter:
    return FEDERATION.amended(WITHOUT_ONE).charter


def run_change(seed: int) -> tuple[int, set[int]]:
    """Two records for one slot and an amendment, side by side; member 4 is faulty and says both, in both versions.

    Returns how many records of the slot are final in the union of all, and the versions in force.
    """
    random = Random(seed)
    cluster = make_cluster((1, 2, 3, 5))
    correct = cluster.members
    union = Gathering(FEDERATION)
    network = Network(random)
    records = [pay(10), pay(20)]
    heads: dict[int, Batch] = {}
    for batch in (*PREFIX, *cluster.said):
        union.receive(batch)

    def say(batch: Batch | None) -> None:
        if batch is not None:
            union.receive(batch)
            for number in correct:
                if number != batch.header.member:
                    network.send(batch, number)

    def lie() -> None:
        """Votes and commits for everything, and adopts as soon as it can."""
        version = random.choice((0, union.replica.version))
        charter = union.replica.ledger.charters[version]
        statements: list[Statement] = []
        for introduction in union.replica.get_open_introductions():
            for position in introduction.records:
                statements += [Vote(introduction.batch, position, 0, b"", 0), Commit(introduction.batch, position, 0)]
        if version == 0 and 1 in union.replica.ledger.charters:
            statements.append(Adopt(1, get_next_charter().id))
        if statements:
            seen = [union.batches[head] for heads in union.replica.get_frontier().values() for head in heads]
            batch = FEDERATION.batch(4, after=heads.get(version), seen=seen, statements=statements, charter=charter)
            heads[version] = batch
            say(batch)

    for record, number in zip(records, random.sample((1, 2, 3), 2), strict=True):
        correct[number].submit(record)
        say(correct[number].speak())
    correct[random.choice((1, 2, 3))].submit(WITHOUT_ONE)
    for _ in range(400):
        if not network.queue:
            for number in correct:
                say(correct[number].speak())
            lie()
        for receiver, batch in network:
            correct[receiver].receive(batch)
            if random.random() < 0.5:
                say(correct[receiver].speak())
            if random.random() < 0.05:
                lie()
            if random.random() < 0.02:
                network.send(random.choice(list(union.batches.values())), random.choice(list(correct)))
            break
    for _ in range(4):
        for number, member in correct.items():
            for batch in list(union.batches.values()):
                member.receive(batch)
            say(correct[number].speak())
    roots = {member.replica.compute_state_root() for member in correct.values()}
    if len({tuple(sorted(member.batches)) for member in correct.values()}) == 1:
        assert len(roots) == 1, f"seed {seed}: replicas with the same batches differ"
    for member in correct.values():
        member.replica.ledger.check_conservation()
        assert set(member.replica.forks) <= {4}
    final = sum(union.replica.is_final(record.id) for record in records)
    return final, {member.replica.version for member in correct.values()}


def test_a_change_amid_a_contest_never_makes_two_records_final():
    versions: set[int] = set()
    for seed in range(150):
        final, reached = run_change(seed)
        assert final <= 1, f"seed {seed}: two records of one slot are final"
        versions |= reached
    assert versions == {1}, "every change came into force"


def test_commits_of_two_versions_do_not_add_up():
    """Commits of three members, two under the old charter and one under the new one, are no quorum of either."""
    first = pay(10)
    member = make_late_member(first)
    introduction = member.replica.locate(first.id)[0].batch  # type: ignore[index]
    heads = {batch.header.member: batch for batch in member.batches.values() if batch.header.charter_version == 0}
    said = [FEDERATION.batch(number, after=heads[number], statements=[Commit(introduction, 0, 0)]) for number in (1, 2)]
    after = FEDERATION.amended(LATE).charter
    said.append(FEDERATION.batch(4, statements=[Commit(introduction, 0, 0)], charter=after))
    for batch in said:
        member.receive(batch)
    assert not member.parked
    assert not member.replica.is_final(first.id)
    member.receive(FEDERATION.batch(4, after=heads[4], statements=[Commit(introduction, 0, 0)]))
    assert member.replica.is_final(first.id), "commits of the old version count for ever"
