"""Faulty members: they hear all that the others hear, and say what they like in batches that are well-formed.

A liar's process is a real member that is only used as an ear: its log is written here. Some of its batches are what a
correct member would say, so that records become final with its help; others branch its log, vote and commit without
reason, introduce what must not pass, or are shown to some members only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from protocol.batches import Batch, LogPosition, build_batch
from protocol.introductions import Introduction
from protocol.records import Record, decode_record
from protocol.statements import Adopt, Commit, CommitBatch, Promise, Statement, Vote, VoteBatch
from tests import strategies
from tests.simulation.disks import Disk
from tests.simulation.machines import Machine

if TYPE_CHECKING:
    from tests.simulation.world import World

HEADS_MAX = 12


class Liar(Machine):
    """A faulty member's machine."""

    is_faulty = True

    def __init__(self, world: World, number: int, disk: Disk) -> None:
        super().__init__(world, number, disk)
        self.own: list[Batch] = []
        """All that it ever signed, in any branch."""
        self.is_helpful = Random(f"{world.plan.seed} {number}").random() < 0.7
        """True while it also says what a correct member would."""

    def start(self) -> None:
        """Start the ear; what it signed before the seed began is in the log."""
        super().start()
        logs = self.member.replica.logs
        own = [logs[name] for name in sorted(logs) if name[0] == self.number]
        self.own = self._fetch_all(batch for log in own for index in sorted(log) for batch in log[index])

    def _fetch_all(self, batch_ids: Iterable[bytes]) -> list[Batch]:
        fetched = map(self.member.archive.fetch, batch_ids)
        return [batch for batch in fetched if batch is not None]

    def _say_next(self) -> None:
        if self.is_helpful and not self.world.is_over and self.member.voter.is_speaking:
            statements = self.member.voter.take_statements()
            if statements:
                self.say(statements, after=self._get_last(self.member.voter.version))
        if self.member.replica.version != self.member.voter.version:
            self.member.watch_at_once()

    # -- its log --------------------------------------------------------------------------------------------------

    def say(
        self,
        statements: Sequence[Statement],
        records: Sequence[Record] = (),
        to: Iterable[int] | None = None,
        after: Batch | None = None,
        time_ms: int = 0,
    ) -> Batch:
        """Sign a batch that follows `after` in this log, and show it to some members or all; without `after`, the
        first one under its newest version."""
        federation = self.world.stage.federation
        charters = self.member.replica.ledger.charters
        heads = [head for member, heads in self.member.replica.get_frontier().items() for head in heads]
        seen = self._fetch_all(sorted(heads)[:HEADS_MAX])
        batch = federation.batch(
            self.number,
            after=after,
            seen=[head for head in seen if head.header.member != self.number],
            records=records,
            statements=statements,
            time_ms=time_ms or int(self.world.now * 1000),
            charter=charters[after.header.charter_version if after else self.version],
        )
        self.own.append(batch)
        if batch.id not in self.member.replica:
            self.disk.append_batches([(batch.id, batch.encoded)])
            admission = self.member.replica.admit(batch, self.member.archive.fetch)
            assert admission is not None
            self.member.voter.handle_admission(admission)
        if self.world.is_telling:
            self.world.tell(f"member {self.number} (faulty) says {self.world.names.describe_batch(batch)}")
        for number in self.world.machines if to is None else to:
            peer = self.world.machines[number]
            if peer is not self:
                self.send(peer, partial(peer.receive, (batch.encoded,), self.number))
        return batch

    def list_open(self) -> list[Introduction]:
        """Introductions that hold a record which is not final."""
        return self.member.replica.get_open_introductions()

    @property
    def last(self) -> Batch | None:
        """The batch that it signed last under its newest version."""
        return self._get_last(self.version)

    @property
    def version(self) -> int:
        """The newest charter version in force that names it: an old one for ever, when it was removed."""
        charters = self.member.replica.ledger.charters
        return next(v for v in range(self.member.replica.version, -1, -1) if self.number in charters[v].members)

    def _get_last(self, version: int) -> Batch | None:
        return next((batch for batch in reversed(self.own) if batch.header.charter_version == version), None)


Lie = Callable[[Liar, Random], None]


def grab(liar: Liar, random: Random) -> None:
    """Vote for everything and commit to it, without a certificate."""
    statements: list[Statement] = []
    for introduction in liar.list_open():
        if random.random() < 0.7:
            statements.append(VoteBatch(introduction.batch, 0))
        if random.random() < 0.7:
            statements.append(CommitBatch(introduction.batch, 0))
        position = random.randrange(len(introduction.ids))
        single = (Vote(introduction.batch, position, 0, b"", 0), Commit(introduction.batch, position, 0))
        statements.append(random.choice(single))
    if statements:
        liar.say(statements, after=liar.last)


def branch(liar: Liar, random: Random) -> None:
    """Two batches for one place of the log: each votes for and commits to something else, and goes to other members."""
    after = liar.last if random.random() < 0.7 or not liar.own else random.choice(liar.own)
    others = [number for number in liar.world.machines if number != liar.number]
    random.shuffle(others)
    half = random.randint(1, len(others) - 1)
    introductions = liar.list_open()
    for number, audience in enumerate((others[:half], others[half:])):
        statements: list[Statement] = []
        for introduction in random.sample(introductions, min(len(introductions), 2)):
            statements += [VoteBatch(introduction.batch, 0), CommitBatch(introduction.batch, 0)]
        if not statements:
            statements = [VoteBatch(b"", 0)]
        liar.say(statements, to=audience, after=after, time_ms=int(liar.world.now * 1000) + 1 + number)


def introduce_badly(liar: Liar, random: Random) -> None:
    """Introduce a record with a broken signature, one that nobody can pay for, or one that comes too early."""
    wallet = random.choice(list(liar.world.wallets))
    payee = random.choice(liar.world.stage.people)
    match random.randrange(3):
        case 0:
            pending = [errand.record for errand in liar.world.errands if not errand.is_done]
            if not pending:
                return
            encoded = random.choice(pending).encoded
            record = decode_record(liar.world.stage.federation.id, encoded[:-1] + bytes([encoded[-1] ^ 1]))
        case 1:
            record = liar.world.wallets[-1].sign_payment(payee, liar.world.wallets[-1].funds + 1, "too much")
        case _:
            if wallet.is_busy or not wallet.funds or wallet is not liar.world.wallets[-1]:
                return
            wallet.sequence, before = wallet.sequence + 1, wallet.sequence
            wallet.prev, prev = bytes(32), wallet.prev
            record = wallet.sign_payment(payee, 1, "too early")
            wallet.sequence, wallet.prev = before, prev
    liar.say([VoteBatch(b"", 0)], [record], after=liar.last)


def promise_falsely(liar: Liar, random: Random) -> None:
    """Answer requests with promises that hide a commit or report one that was never made; vote and commit besides."""
    statements: list[Statement] = []
    for slot, contest in liar.member.replica.contests.items():
        claims = liar.member.replica.get_claim_places(slot)
        for place, request in contest.requests.items():
            promise = Promise(*place, b"", 0, 0)
            if claims and random.random() < 0.4:
                introduction, position = random.choice(claims)
                claimed = introduction.ids[position]
                promise = promise._replace(record=claimed, attempt=random.randrange(request.attempt))
            statements.append(promise)
            for introduction, position in random.sample(claims, min(1, len(claims))):
                statements.append(Commit(introduction.batch, position, request.attempt))
        for place, proposal in contest.proposals.items():
            for introduction, position in claims:
                statements.append(Vote(introduction.batch, position, proposal.attempt, *place))
    if statements:
        liar.say(random.sample(statements, min(len(statements), 8)), after=liar.last)


def replay(liar: Liar, random: Random) -> None:
    """Send old batches of anybody to anybody again."""
    known = list(liar.member.store.iterate_batches())
    for number in random.sample(list(liar.world.machines), 2):
        peer = liar.world.machines[number]
        chosen = tuple(random.choices(known, k=3))
        liar.send(peer, partial(peer.receive, chosen, liar.number))


def flood(liar: Liar, random: Random) -> None:
    """Many batches that say nothing, and bytes that are no batches."""
    for _ in range(random.randint(2, 5)):
        liar.say([VoteBatch(b"", 0)], after=liar.last)
    for peer in liar.world.machines.values():
        liar.send(peer, partial(peer.receive, (b"no batch", random.randbytes(40)), liar.number))


def fall_silent(liar: Liar, random: Random) -> None:
    """Say nothing of its own will for the rest of the run."""
    liar.is_helpful = False


def repeat_after_pause(liar: Liar, random: Random) -> None:
    """Say what it said last once more, in a new batch."""
    if liar.own:
        last = random.choice(liar.own)
        named = [statement for statement in last.statements if getattr(statement, "batch", b"")]
        if named:
            liar.say(named, after=liar.last)


def adopt_anything(liar: Liar, random: Random) -> None:
    """Adopt the next charter, whether or not it is final, or one that does not exist; or go on under an old version."""
    charters = liar.member.replica.ledger.charters
    drafted = [change.after for change in liar.world.changes if change.after is not None]
    after = random.choice([*drafted, *charters.values()])
    charter_id = after.id if random.random() < 0.8 else random.randbytes(32)
    named = [version for version in range(liar.version + 1) if liar.number in charters[version].members]
    last = random.choice([liar.last, *map(liar._get_last, named)])
    liar.say([Adopt(after.version, charter_id)], after=last)


def speak_without_key(liar: Liar, random: Random) -> None:
    """Sign a batch of the version in force with the key of the first one: nobody must take it in."""
    world, replica = liar.world, liar.member.replica
    if not replica.version:
        return
    statements = [kind(it.batch, 0) for it in liar.list_open()[:4] for kind in (VoteBatch, CommitBatch)]
    key = strategies.find_key(world.stage.charter.members[liar.number].vote_key)
    time_ms, first = int(world.now * 1000), LogPosition(0, b"")
    batch = build_batch(
        replica.charter, key, liar.number, first, seen=[], time_ms=time_ms, records=[], statements=statements
    )
    for peer in world.machines.values():
        liar.send(peer, partial(peer.receive, (batch.encoded,), liar.number))


LIES: dict[str, tuple[Lie, int]] = {
    "grab": (grab, 4),
    "branch": (branch, 5),
    "introduce_badly": (introduce_badly, 2),
    "promise_falsely": (promise_falsely, 5),
    "replay": (replay, 1),
    "flood": (flood, 1),
    "fall_silent": (fall_silent, 1),
    "repeat_after_pause": (repeat_after_pause, 1),
    "adopt_anything": (adopt_anything, 1),
    "speak_without_key": (speak_without_key, 1),
}
"""Name -> what a faulty member does, and how often a plan chooses it."""
