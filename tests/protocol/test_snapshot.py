"""A replica made from facts goes on like the one whose facts they are: the law of checkpoints, by random schedules."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given, settings

from protocol.finality import iterate_positions
from protocol.replica import Replica
from protocol.snapshot import group_facts, restore_ledger, restore_replica
from protocol.statements import Commit, CommitBatch, Statement, Vote, VoteBatch
from protocol.voting import Voter
from tests.local_members import Gathering, LocalMember
from tests.protocol.test_convergence import Case, build_case, gather
from tests.strategies import SEEDS, make_federation, make_records_of_every_kind, write_history

CASES = 300
covered: Counter[str] = Counter()


def restart_from_facts(case: Case, replica: Replica) -> Gathering:
    """A replica that knows the facts and none of the batches."""
    again = Gathering(case.federation)
    facts = replica.compute_facts()
    again.replica = restore_replica(case.federation.charter, Random(7).sample(facts, len(facts)))
    return again


@settings(max_examples=CASES)
@given(SEEDS)
def test_a_replica_made_from_facts_goes_on_as_the_one_that_took_all_batches(seed):
    case = build_case(seed)
    cut = Random(seed).randint(0, len(case.batches))
    whole = gather(case, case.batches[:cut])
    restored = restart_from_facts(case, whole.replica)
    assert sorted(restored.replica.compute_facts()) == sorted(whole.replica.compute_facts())
    assert restored.replica.get_frontier() == whole.replica.get_frontier()
    restored.replica.ledger.check_conservation()
    covered["open"] += bool(whole.replica.get_open_introductions())
    covered["contests"] += bool(whole.replica.contests)
    covered["repeated"] += any(introduction.repeats for introduction in whole.replica.get_open_introductions())
    covered["forked"] += bool(whole.replica.forks)
    rest = case.batches[cut:]
    for batch in rest:
        whole.receive(batch)
        restored.receive(batch)
        assert restored.replica.compute_state_root() == whole.replica.compute_state_root()
    assert restored.replica.get_frontier() == whole.replica.get_frontier()
    assert restored.replica.forked_members == whole.replica.forked_members == set(whole.replica.forks)
    assert restored.replica.final_count == whole.replica.final_count
    assert restored.replica.double_finals == whole.replica.double_finals


@settings(max_examples=CASES)
@given(SEEDS)
def test_facts_tell_nothing_of_the_order_in_which_batches_came(seed):
    case = build_case(seed)
    shuffled = Random(seed).sample(case.batches, len(case.batches))
    assert sorted(gather(case, shuffled).replica.compute_facts()) == sorted(
        gather(case, case.batches).replica.compute_facts()
    )


def test_the_cases_held_what_is_hard_to_restore():
    assert all(covered[what] >= CASES // 20 for what in ("open", "contests", "repeated", "forked")), covered


@settings(max_examples=100)
@given(SEEDS)
def test_a_correct_member_on_a_restored_replica_says_what_it_would_have_said(seed):
    case = build_case(seed)
    random = Random(seed)
    number = random.choice([number for number in case.federation.numbers if number != case.faulty])
    cut = random.randint(0, len(case.batches))
    member = LocalMember(case.federation, number)
    member.replay(case.batches[:cut])
    restored = LocalMember(case.federation, number)
    restored.replica = restore_replica(case.federation.charter, member.replica.compute_facts())
    restored.voter = Voter(restored.replica, number)
    restored.batches = dict(member.batches)
    for again in (member, restored):
        again.replay(case.batches[cut:])
        again.judge_all()
        again.voter.handle_contests(again.circumstances)
    assert restored.voter._memories == member.voter._memories
    assert list_sayings(restored) == list_sayings(member)


def list_sayings(member: LocalMember) -> list[tuple[object, ...]]:
    """What the member would say now about open records: a restored one speaks of fewer whole batches, and has nothing
    more to say about what was final."""
    said: list[tuple[object, ...]] = []
    for statement in member.voter.take_statements():
        said += describe(member, statement)
    is_open = {
        record.id for it in member.replica.get_open_introductions() for record in it.open_records.values()
    }.__contains__
    return sorted((each for each in said if each[0] not in ("vote", "commit") or is_open(each[2])), key=repr)


def describe(member: LocalMember, statement: Statement) -> list[tuple[object, ...]]:
    if not isinstance(statement, (VoteBatch, CommitBatch, Vote, Commit)):
        return [tuple(statement)]
    records = member.batches[statement.batch].records
    kind = "vote" if isinstance(statement, (VoteBatch, Vote)) else "commit"
    if isinstance(statement, (VoteBatch, CommitBatch)):
        mask = ((1 << len(records)) - 1) & ~statement.excluded
        return [(kind, 0, records[position].id) for position in iterate_positions(mask)]
    return [(kind, statement.attempt, records[statement.position].id)]


def test_every_ledger_comes_back_from_its_facts():
    federation = make_federation()
    for seed in range(20):
        history = write_history(federation, seed, 60)
        check_comes_back(federation, history)
    check_comes_back(federation, make_records_of_every_kind(federation))


def check_comes_back(federation, history):
    whole = Replica(federation.charter).ledger
    for cut, record in enumerate(history):
        whole.offer(record)
        if cut % 16 == 0 or cut == len(history) - 1:
            restored = restore_ledger(federation.charter, group_facts(whole.compute_facts()))
            assert vars(restored).keys() == vars(whole).keys()
            whole.suspensions = {account: them for account, them in whole.suspensions.items() if them}
            for name in vars(whole).keys() - {"charter", "charters", "_blocked_by"}:
                assert getattr(restored, name) == getattr(whole, name), name
            assert [c.id for c in restored.charters.values()] == [c.id for c in whole.charters.values()]


def test_a_final_record_that_waits_is_restored_without_its_signatures():
    federation = make_federation()
    history = write_history(federation, 3, 40)
    whole = Replica(federation.charter).ledger
    for record in history[::-1][:30]:
        whole.offer(record)
    assert whole.count_waiting() > 10
    restored = restore_ledger(federation.charter, group_facts(whole.compute_facts()))
    assert sorted(restored.compute_facts()) == sorted(whole.compute_facts())
    for record in history:
        whole.offer(record)
        restored.offer(record)
    assert restored.count_waiting() == whole.count_waiting() == 0
    assert sorted(restored.compute_facts()) == sorted(whole.compute_facts())
