"""What must hold in every run, whatever breaks; each check names the promise that it watches.

The cheap ones are made with every batch that a correct member takes in or says, the dear ones when all is over. A set
of all batches that any correct member ever held is kept beside: what is final there must not contradict what is final
anywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.attempts import Claim, Round, compute_forced
from protocol.batches import Batch
from protocol.finality import full_mask, iterate_positions
from protocol.identifiers import Slot
from protocol.introductions import Introduction
from protocol.receipts import verify_receipt
from protocol.records import Record
from protocol.replica import Admission, Replica
from protocol.statements import Commit, CommitBatch, Promise, Vote, VoteBatch
from tests.simulation.unlocking import is_decided_everywhere

if TYPE_CHECKING:
    from tests.simulation.machines import Machine
    from tests.simulation.world import World


class Violation(Exception):
    """A promise is broken: which check saw it, and what it saw."""

    def __init__(self, check: str, what: str) -> None:
        super().__init__(f"{check}: {what}")
        self.check = check


class Checkers:
    """All that is watched in one run."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.replica = Replica(world.stage.charter)
        """The union of all correct members' sets."""
        self.batches: dict[bytes, Batch] = {}
        self.finals: dict[Slot, bytes] = {}
        self.acknowledged: dict[int, set[bytes]] = {number: set() for number in world.stage.federation.numbers}
        """Member -> records that its disk proves final."""
        self.records: dict[bytes, Record] = {}
        self._promised: dict[tuple[int, Slot], Round] = {}
        self._commits: dict[tuple[int, Slot], list[Claim]] = {}
        self._said: dict[tuple[int, type, Slot, object], bytes] = {}
        self._spoken: set[bytes] = set()

    # -- with every batch -----------------------------------------------------------------------------------------

    def note_admission(self, machine: Machine, admission: Admission) -> None:
        """A member took in a batch, or met it again at its start."""
        if machine.is_faulty:
            return
        batch = admission.batch
        if batch.id not in self.replica:
            self.batches[batch.id] = batch
            for record in batch.records:
                self.records.setdefault(record.id, record)
            union = self.replica.admit(batch, self.batches.__getitem__)
            assert union is not None
            self._note_finals(union, "all together")
        elif machine.is_set_back and not machine.is_starting and batch.header.member == machine.number:
            machine.was_shown_own = True
        self._note_finals(admission, f"member {machine.number}")
        if admission.final and not machine.is_set_back:
            known = self.acknowledged[machine.number]
            known.update(
                introduction.ids[position]
                for introduction, mask in admission.final
                for position in iterate_positions(mask)
            )
        if admission.fork is not None:
            member = batch.header.member
            if member not in self.world.culprits:
                raise Violation("only the guilty are convicted", f"member {member} signed two batches for one place")

    def _note_finals(self, admission: Admission, who: str) -> None:
        for introduction, mask in admission.final:
            for position in iterate_positions(mask):
                record = self.records[introduction.ids[position]]
                slot = record.slot
                if self.finals.setdefault(slot, record.id) != record.id:
                    names = self.world.names
                    raise Violation(
                        "no double spend",
                        f"{names.describe_id(self.finals[slot])} and {names.describe(record)} are final ({who})",
                    )
        if admission.final:
            self.replica.ledger.check_conservation()

    def note_spoken(self, machine: Machine, batch: Batch) -> None:
        """A correct member said something; a faulty one may say anything."""
        if machine.is_faulty or batch.id in self._spoken:
            return
        self._spoken.add(batch.id)
        if machine.was_shown_own or batch.header.index < max(machine.known_of_us.values(), default=0):
            raise Violation(
                "a member with an old disk stays silent", f"member {machine.number} was shown a later batch before"
            )
        if machine.is_set_back:
            return
        for statement in batch.statements:
            if isinstance(statement, (VoteBatch, CommitBatch, Vote, Commit)):
                self._check_duty(machine, batch, statement)
            elif isinstance(statement, Promise):
                self._check_promise(machine, batch, statement)

    def _check_duty(self, machine: Machine, batch: Batch, statement: VoteBatch | CommitBatch | Vote | Commit) -> None:
        """One vote in a slot and round; one commit, and only on a certificate (spec 5.2, 5.3)."""
        introduction = machine.member.replica.get_introduction(statement.batch or batch.id)
        if introduction is None:
            return
        if isinstance(statement, (VoteBatch, CommitBatch)):
            mask, attempt = full_mask(len(introduction.ids)) & ~statement.excluded, 0
        else:
            mask, attempt = 1 << statement.position, statement.attempt
        said_round = Round(batch.header.charter_version, attempt)
        kind = Vote if isinstance(statement, (Vote, VoteBatch)) else Commit
        for position in iterate_positions(mask):
            record = self.records[introduction.ids[position]]
            slot = record.slot
            said = self._said.setdefault((machine.number, kind, slot, said_round), record.id)
            if said != record.id:
                raise Violation(
                    f"one {kind.__name__.lower()} in a slot and round", f"member {machine.number} said two: {slot[1]}"
                )
            if isinstance(statement, Vote) and attempt:
                self._check_proposal(machine, statement, record)
            if said_round < self._promised.get((machine.number, slot), said_round):
                raise Violation(
                    "nothing is said below a promise",
                    f"member {machine.number}, {kind.__name__} for {self.world.names.describe(record)}",
                )
            if kind is Commit:
                self._commits.setdefault((machine.number, slot), []).append(Claim(said_round, record.id))
            if kind is Commit and not _is_certified(introduction, position, said_round):
                raise Violation(
                    "no commit without a certificate",
                    f"member {machine.number} commits to {self.world.names.describe(record)}",
                )

    def _check_promise(self, machine: Machine, batch: Batch, promise: Promise) -> None:
        """A promise reports the highest commit of its member, or a certificate above it (spec 5.6)."""
        request = machine.member.replica.get_request((promise.unlock_batch or batch.id, promise.unlock_position))
        if request is None:
            return
        key = (machine.number, request.slot)
        promised = Round(batch.header.charter_version, request.attempt)
        self._promised[key] = max(promised, self._promised.get(key, promised))
        highest = max((claim for claim in self._commits.get(key, ()) if claim.round < promised), default=None)
        if highest is not None and (promise.report is None or promise.report < highest):
            raise Violation(
                "a promise hides nothing", f"member {machine.number}, {self.world.names.describe_id(highest.record)}"
            )

    def _check_proposal(self, machine: Machine, vote: Vote, record: Record) -> None:
        """A vote at a later attempt is for the record that the proposal's promises force, if they force any."""
        contest = machine.member.replica.contests.get(record.slot)
        proposal = contest.proposals.get((vote.proposal_batch, vote.proposal_position)) if contest else None
        if contest is None or proposal is None:
            return
        promised = Round(machine.member.replica.version, proposal.attempt)
        promises = contest.find_promises(promised, proposal.promise_batches)
        forced = compute_forced(given.report for given in promises or ())
        if promises is None or (forced is not None and forced != record.id):
            raise Violation(
                "a proposal obeys its promises",
                f"member {machine.number} votes for {self.world.names.describe(record)}",
            )

    def note_start(self, machine: Machine) -> None:
        """A member started again: what it showed as final before is final still."""
        if machine.is_set_back:
            return
        for record_id in self.acknowledged[machine.number]:
            if not machine.member.replica.is_final(record_id):
                raise Violation(
                    "nothing final is lost",
                    f"member {machine.number} forgot {self.world.names.describe_id(record_id)}",
                )

    # -- when all is over -----------------------------------------------------------------------------------------

    def is_settled(self) -> bool:
        """True when all correct members hold the same batches and every honest record is final at each."""
        frontiers = [replica.get_frontier() for replica in self._list_replicas().values()]
        return all(frontier == frontiers[0] for frontier in frontiers) and not self._find_late()

    def _list_replicas(self) -> dict[int, Replica]:
        """Those of members that may speak. One whose disk was set back stays silent, so it can't name the branches
        of a forked log that it alone holds."""
        return {machine.number: machine.member.replica for machine in self.world.correct if not machine.is_set_back}

    def _find_late(self) -> str:
        for errand in self.world.errands:
            for machine in self.world.correct if errand.is_honest else ():
                if machine.member.get_state(errand.record.id) != "applied":
                    return f"{self.world.names.describe(errand.record)} at member {machine.number}"
        return is_decided_everywhere(self.world.unlockers, self.world)

    def check_end(self) -> None:
        """Faults have stopped and everything had its time."""
        late = self._find_late()
        if late:
            raise Violation("an honest owner is never locked out", f"not final: {late}")
        replicas = self._list_replicas()
        roots = {replica.compute_state_root() for replica in replicas.values()}
        frontiers = list(map(Replica.get_frontier, replicas.values()))
        if len(roots) > 1 or any(frontier != frontiers[0] for frontier in frontiers):
            raise Violation("convergence", f"{len(roots)} states at {sorted(replicas)}")
        nothing_was_lost = len(replicas) == len(self.world.correct)
        if nothing_was_lost and roots != {self.replica.compute_state_root()}:
            raise Violation("convergence", "the union of all sets has another state")
        for machine in self.world.correct:
            number, replica = machine.number, machine.member.replica
            replica.ledger.check_conservation()
            if any(held < 0 for lots in replica.ledger.balances.values() for held in lots.values()):
                raise Violation("no overdraft", f"at member {number}")
            for record_id in self.acknowledged[number] if number in replicas else ():
                if not replica.is_final(record_id):
                    raise Violation("nothing final is lost", self.world.names.describe_id(record_id))
        self._check_receipts()

    def _check_receipts(self) -> None:
        """The last record that became final has a receipt that holds."""
        record_id = next(reversed(self.finals.values()))
        steady = next(machine for machine in self.world.correct if not machine.is_set_back)
        receipt = steady.member.build_receipt(record_id)
        assert receipt is not None
        if verify_receipt(steady.member.replica.ledger.charters, receipt).record.id != record_id:
            raise Violation("receipts", self.world.names.describe_id(record_id))


def _is_certified(introduction: Introduction, position: int, said_round: Round) -> bool:
    """True when votes of a quorum in this round, for one proposal, stand behind the record where it is counted."""
    original, place = introduction.aliases.get(position, (introduction, position))
    return any(ballot[0] == said_round and tally.reached >> place & 1 for ballot, tally in original.votes.items())
