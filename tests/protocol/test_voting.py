"""A correct member's duties: one vote and one commit a slot, a certificate first, nothing lost by a restart."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings

from protocol.batches import Batch
from protocol.errors import Reason, Rejected
from protocol.finality import full_mask
from protocol.records import Draw, Lot, Record, decode_record
from protocol.statements import Commit, CommitBatch, Statement, Vote, VoteBatch
from protocol.voting import BATCH_REFERENCES_MAX
from tests.local_members import Cluster, Gathering, LocalMember, make_prefix
from tests.protocol.test_convergence import Schedule
from tests.strategies import GRANTED, SEEDS, iterate_mask, make_economy, make_federation

FEDERATION = make_federation()
ECONOMY = make_economy(FEDERATION)
ALICE, BOB = ECONOMY.people
PREFIX = make_prefix(FEDERATION)


def pay(amount: int, payer: Any = ALICE, payee: Any = BOB, **place: Any) -> Record:
    return FEDERATION.transfer(payer, [ECONOMY.output(payee, amount)], **place)


def make_member(number: int = 1) -> LocalMember:
    member = LocalMember(FEDERATION, number)
    for batch in PREFIX:
        member.receive(batch)
    while member.speak() is not None:
        pass
    return member


def introduce(*records: Record, votes: bool = True, **place: Any) -> Batch:
    """A batch of member 4, which took no part in the prefix."""
    seen = [PREFIX[-1]]
    return FEDERATION.batch(4, seen=seen, records=records, statements=[VoteBatch(b"", 0)] if votes else [], **place)


def names_voted(member: LocalMember, kinds: tuple[type, ...] = (VoteBatch, Vote)) -> list[bytes]:
    """Ids of the records that the member's next batch votes for."""
    batch = member.speak()
    return [record_id for statement_ids in list_said(member, batch, kinds) for record_id in statement_ids]


def list_said(gathering: Gathering, batch: Batch | None, kinds: tuple[type, ...]) -> list[list[bytes]]:
    said = []
    for statement in batch.statements if batch else ():
        if isinstance(statement, kinds) and isinstance(statement, (VoteBatch, CommitBatch, Vote, Commit)):
            records = gathering.batches[statement.batch or batch.id].records  # type: ignore[union-attr]
            if isinstance(statement, (VoteBatch, CommitBatch)):
                positions = iterate_mask(full_mask(len(records)) & ~statement.excluded)
            else:
                positions = [statement.position]
            said.append([records[position].id for position in positions])
    return said


# -- voting -----------------------------------------------------------------------------------------------------------


def test_a_member_votes_for_a_good_record_of_another():
    member, record = make_member(), pay(10)
    member.receive(introduce(record))
    assert names_voted(member) == [record.id]
    assert not member.voter.has_statements


def test_of_two_records_in_a_slot_the_first_gets_the_vote():
    member, first, second = make_member(), pay(10), pay(20)
    batch = introduce(first, votes=False)
    member.receive(batch)
    member.receive(introduce(second, after=batch))
    assert names_voted(member) == [first.id]
    third = make_member()
    third.receive(introduce(first, second))
    assert names_voted(third) == [first.id]


def test_a_member_that_voted_elsewhere_refuses_to_introduce_a_rival():
    member = make_member()
    member.receive(introduce(pay(10)))
    with pytest.raises(Rejected) as caught:
        member.submit(pay(20))
    assert caught.value.reason is Reason.SLOT_CONTESTED


def test_a_record_whose_signature_does_not_hold_gets_no_vote():
    record = pay(10)
    broken = decode_record(FEDERATION.id, record.encoded[:-1] + bytes([record.encoded[-1] ^ 1]))
    member = make_member()
    member.receive(introduce(broken))
    assert names_voted(member) == []


def test_a_copy_under_a_broken_signature_does_not_keep_the_good_one_from_its_votes():
    """A faulty member could otherwise stop any payment by showing a spoilt copy first."""
    record = pay(10)
    broken = decode_record(FEDERATION.id, record.encoded[:-1] + bytes([record.encoded[-1] ^ 1]))
    assert broken.id == record.id
    cluster = Cluster(FEDERATION, (1, 2, 3))
    for batch in PREFIX:
        cluster.hand_out(batch)
    cluster.settle_down()
    cluster.members[2].submit(record)
    good = cluster.members[2].speak()
    assert good is not None
    for number in (1, 3):
        cluster.members[number].receive(introduce(broken))
    cluster.hand_out(good)
    cluster.hand_out(introduce(broken))
    cluster.settle_down()
    for member in cluster.members.values():
        assert member.replica.is_final(record.id)
    assert len({member.replica.compute_state_root() for member in cluster.members.values()}) == 1


def make_final(member: LocalMember, *records: Record) -> bool:
    """Members 2 to 4 of a world of their own make the records final; then the member hears all of it."""
    cluster = Cluster(FEDERATION, (2, 3, 4))
    for batch in PREFIX:
        cluster.hand_out(batch)
    cluster.settle_down()
    cluster.finalise(records, at=2)
    for batch in cluster.said:
        member.receive(batch)
    return all(member.replica.is_final(record.id) for record in records)


def make_early_records() -> dict[str, tuple[Record, Record]]:
    """What a record lacks -> (the record, what must be final before it)."""
    first = pay(10)
    other = FEDERATION.sponsor(3, ECONOMY.donor)
    return {
        "predecessor": (pay(20, sequence=1, prev=first.id), first),
        "funds": (pay(GRANTED + 300), pay(500, payer=BOB, payee=ALICE)),
        "named record": (FEDERATION.hold(ALICE, ECONOMY.donor, other, [Draw(*ECONOMY.lot, 10)]), other),
    }


@pytest.mark.parametrize("lacking", ["predecessor", "funds", "named record"])
def test_a_record_that_came_too_early_gets_no_vote_and_is_introduced_again_in_time(lacking):
    early, before = make_early_records()[lacking]
    member = make_member()
    member.receive(introduce(early))
    assert not member.voter.has_statements
    with pytest.raises(Rejected):
        member.submit(early)
    assert make_final(member, before)
    member.voter.take_statements()
    member.submit(early)
    spoken = member.speak()
    assert spoken is not None
    assert [record.id for record in spoken.records] == [early.id]


def test_what_a_correct_member_introduces_can_be_judged_by_everybody_who_admits_it():
    """The lemma that makes waiting needless: its batch names all that its decision rested on."""
    cluster = Cluster(FEDERATION, (1, 2, 3))
    for batch in PREFIX:
        cluster.hand_out(batch)
    cluster.settle_down()
    for early, before in make_early_records().values():
        again = Cluster(FEDERATION, (1, 2, 3))
        for batch in PREFIX:
            again.hand_out(batch)
        again.settle_down()
        again.finalise([before], at=1)
        again.finalise([early], at=1)
        late = make_member()
        for batch in again.said:
            late.receive(batch)
        assert late.replica.is_final(early.id)
        assert not late.replica.ledger.count_waiting()


# -- committing -------------------------------------------------------------------------------------------------------


def vote_batches(record: Record, numbers: tuple[int, ...]) -> list[Batch]:
    """The record's introduction by member 4, and votes of others of a world without prefix."""
    first = FEDERATION.batch(4, records=[record], statements=[VoteBatch(b"", 0)])
    return [first, *(FEDERATION.batch(n, seen=[first], statements=[VoteBatch(first.id, 0)]) for n in numbers)]


def test_a_commit_needs_a_certificate():
    program = FEDERATION.program(1)
    member = LocalMember(FEDERATION, 1)
    introduction, second, third = vote_batches(program, (2, 3))
    for batch in (introduction, second):
        member.receive(batch)
    said = member.speak()
    assert list_said(member, said, (CommitBatch, Commit)) == []
    assert list_said(member, said, (VoteBatch, Vote)) == [[program.id]]
    # 4, 2 and its own vote are the quorum of three.
    assert names_voted(member, (CommitBatch, Commit)) == [program.id]
    member.receive(third)
    assert member.speak() is None


@pytest.mark.parametrize("is_applied_between", [False, True])
def test_two_certificates_for_one_slot_get_one_commit(is_applied_between):
    """Beyond the fault bound two certificates exist; a correct member must still not convict itself."""
    left, right = FEDERATION.program(1), FEDERATION.program(1, name="Rival")
    member = LocalMember(FEDERATION, 1)
    committed = []
    for record in (left, right):
        introduction = FEDERATION.batch(4, records=[record])
        statements: list[Statement] = [VoteBatch(introduction.id, 0)]
        if is_applied_between and record is left:
            statements.append(CommitBatch(introduction.id, 0))
        member.receive(introduction)
        committed += list_said(member, member.speak(), (CommitBatch, Commit))
        for number in (2, 3, 4):
            after = introduction if number == 4 else None
            member.receive(FEDERATION.batch(number, after=after, seen=[introduction], statements=statements))
            committed += list_said(member, member.speak(), (CommitBatch, Commit))
    assert committed == [[left.id]]
    assert member.replica.is_final(left.id) == is_applied_between
    rival = member.replica.locate(right.id)
    assert rival is not None
    assert any(tally.reached for tally in rival[0].votes.values()), "the rival has a certificate"


# -- speaking ---------------------------------------------------------------------------------------------------------


def make_programs(count: int) -> list[Record]:
    """Records of different scopes that need no funds."""
    return [FEDERATION.enrol(1, FEDERATION.person(f"person {number}")) for number in range(count)]


def test_two_references_to_a_batch_are_followed_by_single_statements():
    member = LocalMember(FEDERATION, 1)
    records = make_programs(6)
    introduction = FEDERATION.batch(4, records=records)
    member.replica.admit(introduction, member.batches.__getitem__)
    member.batches[introduction.id] = introduction
    held = member.replica.get_introduction(introduction.id)
    assert held is not None
    said = []
    for position in range(6):
        member.voter.handle_verified(held, 1 << position, member.circumstances)
        statements = member.voter.take_statements()
        said += statements
    assert [type(statement) for statement in said] == [VoteBatch] * BATCH_REFERENCES_MAX + [Vote] * 4
    assert [statement.position for statement in said[2:]] == [2, 3, 4, 5]  # type: ignore[union-attr]


def test_more_than_one_batch_of_statements_is_said_in_pieces_and_nothing_is_lost():
    member = LocalMember(FEDERATION, 1)
    introductions = [FEDERATION.batch(4, records=[r], time_ms=i) for i, r in enumerate(make_programs(7))]
    for introduction in introductions:
        member.receive(introduction)
    pieces = [member.voter.take_statements(3) for _ in range(4)]
    assert [len(piece) for piece in pieces] == [3, 3, 1, 0]
    assert {s.batch for piece in pieces for s in piece} == {b.id for b in introductions}  # type: ignore[union-attr]


def test_a_record_that_two_batches_introduce_gets_one_vote():
    member, record = make_member(), pay(10)
    first = introduce(record)
    member.receive(first)
    member.receive(FEDERATION.batch(4, after=first, records=[record], statements=[VoteBatch(b"", 0)]))
    assert names_voted(member) == [record.id]
    assert member.speak() is None


# -- restarting -------------------------------------------------------------------------------------------------------


def test_after_a_restart_nothing_is_said_again():
    cluster = Cluster(FEDERATION)
    for batch in PREFIX:
        cluster.hand_out(batch)
    cluster.settle_down()
    cluster.finalise([pay(10)])
    for member in cluster.members.values():
        again = member.restart()
        assert not again.voter.has_statements
        assert again.replica.compute_state_root() == member.replica.compute_state_root()


def test_a_vote_that_was_said_binds_after_a_restart():
    member, first, second = make_member(), pay(10), pay(20)
    batch = introduce(first)
    member.receive(batch)
    assert names_voted(member) == [first.id]
    again = member.restart()
    again.receive(introduce(second, after=batch))
    assert not again.voter.has_statements
    with pytest.raises(Rejected) as caught:
        again.voter.check_introduction(second, again.circumstances)
    assert caught.value.reason is Reason.SLOT_CONTESTED


def test_a_vote_for_a_record_that_stood_elsewhere_before_binds_after_a_restart():
    """The own batch introduces a record that an earlier batch holds, so its weight is counted there."""
    first, second = pay(10), pay(20)
    member = LocalMember(FEDERATION, 2)
    for batch in PREFIX:
        member.receive(batch)
    before = introduce(first, votes=False)
    own = member.replica.logs[2, 0]
    mine = FEDERATION.batch(
        2,
        after=member.batches[own[len(own) - 1][0]],
        seen=[before],
        records=[first],
        statements=[VoteBatch(b"", 0)],
    )
    again = LocalMember(FEDERATION, 2)
    again.replay((*PREFIX, before, mine))
    again.receive(introduce(second, after=before))
    with pytest.raises(Rejected):
        again.voter.check_introduction(second, again.circumstances)
    assert not again.voter._votes


class RestartingSchedule(Schedule):
    """The random schedules of the convergence test, with members that crash and come back."""

    def speak(self) -> None:
        super().speak()
        if self.random.random() < 0.3:
            place = self.random.randrange(len(self.members))
            self.members[place] = self.members[place].restart()


def check_duties(schedule: Schedule) -> Counter[str]:
    """Assert that no correct member ever broke a duty, from the signed batches alone."""
    counts: Counter[str] = Counter()
    batches = schedule.batches
    federation = schedule.federation
    introduced = {r.id: r for b in batches.values() for r in b.records}
    for member in schedule.members:
        log = [b for b in batches.values() if b.header.member == member.number]
        assert sorted(b.header.index for b in log) == list(range(len(log))), "a correct member forked its log"
        chosen: dict[tuple[type, bytes, int], bytes] = {}
        through: dict[tuple[type, bytes], bytes] = {}
        references: Counter[tuple[type, bytes]] = Counter()
        for batch in sorted(log, key=lambda b: b.header.index):
            past = gather_past(federation, batch, batches)
            for statement in batch.statements:
                if isinstance(statement, (VoteBatch, CommitBatch)):
                    references[type(statement), statement.batch] += bool(statement.batch)
                kind = Vote if isinstance(statement, (Vote, VoteBatch)) else Commit
                single = batch._replace(statements=(statement,))
                whole = Gathering(federation)
                whole.batches = past.batches | {batch.id: batch}
                for ids in list_said(whole, single, (type(statement),)):
                    for record_id in ids:
                        record = introduced[record_id]
                        counts[kind.__name__] += 1
                        slot = (kind, record.scope, record.sequence)
                        assert chosen.setdefault(slot, record_id) == record_id, "two in one slot"
                        name = statement.batch or batch.id  # type: ignore[union-attr]
                        assert through.setdefault((kind, record_id), name) == name, "through two batches"
                        if kind is Commit:
                            assert has_certificate(past, record_id), "a commit without a certificate"
        assert all(count <= BATCH_REFERENCES_MAX for count in references.values())
    return counts


def gather_past(federation: Any, batch: Batch, batches: dict[bytes, Batch]) -> Gathering:
    """The causal past of a batch, itself left out."""
    found: dict[bytes, Batch] = {}
    open_ids = list(batch.parents)
    while open_ids:
        name = open_ids.pop()
        if name not in found:
            found[name] = batches[name]
            open_ids += batches[name].parents
    past = Gathering(federation)
    for other in found.values():
        past.receive(other)
    assert not past.parked
    return past


def has_certificate(past: Gathering, record_id: bytes) -> bool:
    located = past.replica.locate(record_id)
    assert located is not None
    introduction, position = located
    return any(tally.reached >> position & 1 for tally in introduction.votes.values())


totals: Counter[str] = Counter()


@settings(max_examples=150)
@given(SEEDS)
def test_no_restart_and_no_faulty_member_makes_a_correct_one_break_its_duties(seed):
    schedule = RestartingSchedule(seed)
    schedule.run()
    totals.update(check_duties(schedule))


def test_the_duties_were_put_to_work():
    assert totals["Vote"] > 1000
    assert totals["Commit"] > 1000


def test_balances_follow_what_became_final():
    member = make_member()
    assert make_final(member, pay(10))
    assert member.replica.ledger.get_balance(BOB.account, Lot(*ECONOMY.lot)) == GRANTED + 10
