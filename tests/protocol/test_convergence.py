"""Convergence: the same batches give the same state, in any order, repeated, and through any tree of merges.

Every case runs a small federation by a random schedule. One member is faulty: it forks its log, votes for and commits
to conflicting records, introduces records again under broken signatures, and speaks of batches that it has not seen.
A failing case names its seed; `build_case(seed)` makes it again.
"""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import NamedTuple

from hypothesis import given, settings

from protocol.batches import Batch
from protocol.errors import Rejected
from protocol.finality import full_mask
from protocol.records import Output, Record, decode_record
from protocol.statements import (
    Adopt,
    Checkpoint,
    Commit,
    CommitBatch,
    Promise,
    Proposal,
    Statement,
    Unlock,
    Vote,
    VoteBatch,
    encode_signed,
    encode_statement,
    sign_slot_proposal,
    sign_unlock_request,
)
from tests.local_members import Gathering, LocalMember, make_prefix
from tests.oracles import NaiveFold
from tests.strategies import SEEDS, Federation, make_economy, make_federation, make_id

WEIGHTS = ((1, 1, 1, 1), (1, 1, 1, 1), (2, 2, 2, 1), (1, 1, 1, 1, 1))
"""One faulty member's weight never exceeds W - q."""

CASES = 1000
CASES_OF_TOO_MANY = 300
covered: Counter[str] = Counter()
"""What the generated cases held, so that the last test can tell that they were not empty."""


class Case(NamedTuple):
    """A closed set of batches, in an order in which parents come first."""

    federation: Federation
    batches: list[Batch]
    faulty: int = 0
    """A member that contradicts itself."""


class Schedule:
    """A random run of one federation with one faulty member, or several that work together."""

    def __init__(self, seed: int, faulty_count: int = 1) -> None:
        self.random = Random(seed)
        self.federation = make_federation(self.random.choice(WEIGHTS))
        self.economy = make_economy(self.federation)
        self.faulty, *self.accomplices = self.random.sample(self.federation.numbers, faulty_count)
        self.batches: dict[bytes, Batch] = {}
        correct = [n for n in self.federation.numbers if n not in (self.faulty, *self.accomplices)]
        self.members = [LocalMember(self.federation, number) for number in correct]
        self.records: list[Record] = []
        for batch in make_prefix(self.federation):
            self.spread(batch, 100)

    def spread(self, batch: Batch, percent: int) -> None:
        """Some of the correct members hear it now."""
        self.batches[batch.id] = batch
        for member in self.members:
            if self.random.randrange(100) < percent:
                member.receive(batch)

    def pay(self) -> None:
        """A wallet signs one or two records for its next slot, and hands each to somebody."""
        payer, payee = self.random.sample(self.economy.people, 2)
        scope = b"\x01" + payer.account
        ledger = self.random.choice(self.members).replica.ledger
        head = ledger.heads.get(scope)
        sequence, prev = (head.sequence + 1, head.record) if head else (0, b"")
        for member in self.random.sample(self.members, self.random.choice((1, 1, 2))):
            outputs = [Output(payee.account, *self.economy.lot, self.random.randint(1, 600))]
            record = self.federation.transfer(payer, outputs, sequence=sequence, prev=prev)
            self.records.append(record)
            try:
                member.submit(record)
            except Rejected:
                continue

    def speak(self) -> None:
        """A correct member says what it has to say."""
        batch = self.random.choice(self.members).speak()
        if batch is not None:
            self.spread(batch, self.random.choice((0, 50, 100)))

    def deliver(self) -> None:
        """Somebody hears something late, or again."""
        some = self.random.choices(list(self.batches.values()), k=6)
        for batch in some:
            self.random.choice(self.members).receive(batch)

    def collude(self) -> None:
        """All faulty members tell each correct one apart that they vote for and commit to what it introduces."""
        for member in self.members:
            introduced = member.speak()
            if introduced is None or not introduced.records:
                continue
            self.spread(introduced, 0)
            said: list[Statement] = [VoteBatch(introduced.id, 0), CommitBatch(introduced.id, 0)]
            for number in (self.faulty, *self.accomplices):
                own = [batch for batch in member.batches.values() if batch.header.member == number]
                told = self.federation.batch(number, after=own[-1] if own else None, statements=said)
                self.spread(told, 0)
                member.receive(told)
            committed = member.speak()
            if committed is not None:
                self.spread(committed, 0)

    def lie(self) -> None:
        """A faulty member signs whatever it likes, after any batch of its log."""
        liar = self.random.choice([self.faulty, *self.accomplices])
        own = [batch for batch in self.batches.values() if batch.header.member == liar]
        others = [batch for batch in self.batches.values() if batch.header.member != liar]
        after = self.random.choice([*own[-2:], *own[-1:]]) if own else None
        records = [self.twist(r) for r in self.random.sample(self.records, min(len(self.records), 2))]
        records = records if self.random.random() < 0.5 else []
        statements = [self.say_anything() for _ in range(self.random.randint(1, 4))]
        batch = self.federation.batch(
            liar,
            after=after,
            seen=self.random.sample(others, min(len(others), self.random.randint(0, 2))),
            records=list({record.id: record for record in records}.values()),
            statements=statements,
            time_ms=self.random.randrange(1000),
        )
        self.spread(batch, self.random.choice((0, 50, 100)))

    def twist(self, record: Record) -> Record:
        """The same record, perhaps under a signature that does not hold: the id stays."""
        if self.random.random() < 0.5:
            return record
        return decode_record(self.federation.id, record.encoded[:-1] + bytes([record.encoded[-1] ^ 1]))

    def say_anything(self) -> Statement:
        """About any batch with records, or its own one. Nobody takes in what speaks of a batch that nobody has."""
        introducing = [batch for batch in self.batches.values() if batch.records][-6:]
        batch = self.random.choice(introducing)
        name = self.random.choice((batch.id, batch.id, batch.id, b""))
        excluded = self.random.choice((0, 0, 1, full_mask(len(batch.records))))
        position = self.random.randrange(len(batch.records) + 1)
        attempt = self.random.choice((0, 0, 1))
        proposal = (self.random.choice(introducing).id, 1) if attempt else (b"", 0)
        request, place, wish = self.ask_to_unlock()
        about = self.random.choice(self.records or [self.economy.grant])
        return self.random.choice(
            (
                VoteBatch(name, excluded),
                VoteBatch(name, 0),
                CommitBatch(name, excluded),
                CommitBatch(name, 0),
                Vote(name, position, attempt, *proposal),
                Commit(name, position, attempt),
                request,
                wish,
                Promise(*place, b"", 0, 0),
                Promise(*place, about.id, 0, 0),
                Adopt(1, make_id("amendment")),
                Checkpoint(name, make_id("root")),
            )
        )

    def ask_to_unlock(self) -> tuple[Statement, tuple[bytes, int], Statement]:
        """A payer's request for the slot of some record, where one stands already, and a proposal on top of it."""
        record = self.random.choice(self.records or [self.economy.grant])
        slot, attempt = record.slot, self.random.choice((1, 1, 2))
        signer, key = self.economy.people[0].public_key, self.economy.people[0].key
        request = sign_unlock_request(self.federation.id, slot, attempt, signer, key)
        places = [
            (batch.id, position)
            for batch in self.batches.values()
            for position, statement in enumerate(batch.statements)
            if isinstance(statement, Unlock)
        ]
        promising = [b.id for b in self.batches.values() if any(isinstance(s, Promise) for s in b.statements)]
        promises = self.random.sample(promising, min(len(promising), 3)) or [next(iter(self.batches))]
        proposal = sign_slot_proposal(self.federation.id, slot, attempt, record.id, promises, signer, key)
        place = self.random.choice(places[-3:]) if places else (b"", 0)
        return Unlock(encode_signed(request)), place, Proposal(encode_signed(proposal))

    def run(self) -> None:
        """Some steps, then in most cases everybody hears everything and answers."""
        wrongs = (self.lie, self.collude, self.collude) if self.accomplices else (self.lie,)
        for _ in range(self.random.randint(5, 25)):
            self.random.choice((self.pay, self.speak, self.speak, self.deliver, *wrongs))()
        for _ in range(self.random.choice((0, 2, 4))):
            for batch in list(self.batches.values()):
                self.spread(batch, 100)
            self.speak()
            self.speak()


def build_case(seed: int, faulty_count: int = 1) -> Case:
    """The batches of a random run; all of one seed are the same."""
    schedule = Schedule(seed, faulty_count)
    schedule.run()
    return Case(schedule.federation, list(schedule.batches.values()), schedule.faulty)


def check_never_wrong(gathering: Gathering) -> None:
    gathering.replica.ledger.check_conservation()


def gather(case: Case, batches: list[Batch]) -> Gathering:
    """A replica that took the batches in this order, looked at after every step."""
    gathering = Gathering(case.federation)
    for batch in batches:
        if gathering.receive(batch):
            check_never_wrong(gathering)
    return gathering


def merge_tree(case: Case, random: Random) -> Gathering:
    """Replicas that each took a part, most of it parked for want of parents, joined two by two in random order."""
    replicas = [Gathering(case.federation) for _ in range(random.randint(2, 5))]
    for batch in case.batches:
        for replica in random.sample(replicas, random.choice((1, 1, 2))):
            replica.receive(batch)
    while len(replicas) > 1:
        left, right = random.sample(replicas, 2)
        left.merge(right, random)
        check_never_wrong(left)
        replicas.remove(right)
    return replicas[0]


@settings(max_examples=CASES)
@given(SEEDS)
def test_any_order_any_repetition_and_any_merge_tree_give_one_state(seed):
    case = build_case(seed)
    random = Random(seed)
    in_order = gather(case, case.batches)
    root, frontier = in_order.replica.compute_state_root(), in_order.replica.get_frontier()
    assert len(in_order.batches) == len(case.batches)

    shuffled = case.batches + random.choices(case.batches, k=5)
    random.shuffle(shuffled)
    merged = merge_tree(case, random)
    for other in (gather(case, shuffled), merged):
        assert not other.parked
        assert other.replica.compute_state_root() == root
        assert other.replica.get_frontier() == frontier
        assert set(other.replica.forks) == set(in_order.replica.forks)

    final = in_order.collect_final_records()
    slots = Counter(record.slot for record in final)
    assert set(slots.values()) <= {1}, "two final records in one slot"
    NaiveFold(case.federation.charter, final).check_equals(in_order.replica.ledger)

    covered["forked"] += bool(in_order.replica.forks)
    covered["final payments"] += len(final) > 5
    covered["open records"] += bool(in_order.replica.get_open_introductions())
    covered["repeated records"] += bool(in_order.replica._repeated)
    covered["contested slots"] += has_contested_slot(in_order)


@settings(max_examples=CASES_OF_TOO_MANY)
@given(SEEDS)
def test_replicas_agree_even_when_more_are_faulty_than_the_quorum_tolerates(seed):
    case = build_case(seed, faulty_count=2)
    random = Random(seed)
    in_order = gather(case, case.batches)
    shuffled = gather(case, random.sample(case.batches, len(case.batches)))
    for other in (shuffled, merge_tree(case, random)):
        assert sorted(other.replica.compute_facts()) == sorted(in_order.replica.compute_facts())
        assert other.replica.is_outnumbered == in_order.replica.is_outnumbered
    NaiveFold(case.federation.charter, in_order.collect_final_records()).check_equals(in_order.replica.ledger)
    covered["two finals"] += bool(in_order.replica.ledger.frozen)
    covered["outnumbered"] += in_order.replica.is_outnumbered


def test_the_cases_of_too_many_faulty_were_rich():
    assert all(covered[it] >= CASES_OF_TOO_MANY // 20 for it in ("two finals", "outnumbered")), covered


def has_contested_slot(gathering: Gathering) -> bool:
    ids: dict[tuple[bytes, int], set[bytes]] = {}
    for batch in gathering.batches.values():
        for record in batch.records:
            ids.setdefault(record.slot, set()).add(record.id)
    return any(len(names) > 1 for names in ids.values())


def test_the_generated_cases_were_rich():
    """At least a twentieth of the cases hold each thing that could have made replicas differ."""
    expected = ("forked", "final payments", "open records", "repeated records", "contested slots")
    assert all(covered[what] >= CASES // 20 for what in expected), covered


@settings(max_examples=50)
@given(SEEDS)
def test_a_part_of_the_batches_is_never_ahead_of_the_whole(seed):
    """Finality is monotone: what is final in a part is final in every larger set."""
    case = build_case(seed)
    random = Random(seed)
    part = gather(case, random.sample(case.batches, len(case.batches) // 2))
    whole = gather(case, case.batches)
    assert {r.id for r in part.collect_final_records()} <= {r.id for r in whole.collect_final_records()}


def test_equal_frontiers_mean_equal_sets_and_unequal_ones_do_not():
    case = build_case(7)
    whole = gather(case, case.batches)
    for count in range(len(case.batches)):
        part = gather(case, case.batches[:count])
        assert part.replica.get_frontier() != whole.replica.get_frontier()


def test_a_statement_that_comes_before_the_batch_it_speaks_of_counts_all_the_same():
    federation = make_federation()
    program = federation.program(1)
    introducing = federation.batch(1, records=[program], statements=[VoteBatch(b"", 0)])
    early = federation.batch(2, statements=[VoteBatch(introducing.id, 0), CommitBatch(introducing.id, 0)])
    case = Case(federation, [early, introducing])
    roots = {gather(case, order).replica.compute_state_root() for order in (case.batches, case.batches[::-1])}
    assert len(roots) == 1
    assert encode_statement(early.statements[0])
