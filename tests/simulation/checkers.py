"""What must hold in every run, whatever breaks; each check names the promise that it watches.

The cheap ones are made with every batch that a correct member takes in or says, the dear ones when all is over. A set
of all batches that any correct member ever held is kept beside: what is final there must not contradict what is final
anywhere.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from protocol.attempts import Claim, Round, compute_bound, compute_forced
from protocol.batches import Batch
from protocol.finality import full_mask, iterate_positions
from protocol.identifiers import Slot
from protocol.introductions import Introduction
from protocol.receipts import verify_receipt
from protocol.records import Record
from protocol.replica import Admission, Replica
from protocol.statements import Adopt, Commit, CommitBatch, Promise, Vote, VoteBatch
from tests.simulation.machines import NOTHING_KNOWN
from tests.simulation.unlocking import is_decided_everywhere

if TYPE_CHECKING:
    from tests.simulation.machines import Machine
    from tests.simulation.world import World


RECEIPTS_CHECKED = 4
"""When all is over; the last ones, so that they come from the last charter version and often from the one before."""


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
        self.acknowledged: dict[int, set[bytes]] = defaultdict(set)
        """Member -> records that its disk proves final."""
        self.records: dict[bytes, Record] = {}
        self._promised: dict[tuple[int, Slot], Round] = {}
        self._commits: dict[tuple[int, Slot], list[Claim]] = {}
        self._said: dict[tuple[int, type, Slot, object], bytes] = {}
        self._spoken: set[bytes] = set()
        self._spoken_versions: dict[int, int] = {}
        self._adopted: dict[int, int] = {}
        self._bound: dict[tuple[int, int], dict[Slot, Claim | None]] = {}
        """(Member, charter version) -> what was certified before it entered that version."""

    # -- with every batch -----------------------------------------------------------------------------------------

    def note_admission(self, machine: Machine, admission: Admission) -> None:
        """A member took in a batch, or met it again at its start."""
        if machine.is_faulty:
            return
        batch = admission.batch
        header = batch.header
        if header.member not in machine.member.replica.ledger.charters[header.charter_version].members:
            raise Violation("only members are heard", f"member {machine.number} took in a batch of {header.member}")
        if batch.id not in self.replica:
            self.batches[batch.id] = batch
            for record in batch.records:
                self.records.setdefault(record.id, record)
            union = self.replica.admit(batch, self.batches.__getitem__)
            assert union is not None
            self._note_finals(union, "all together")
        elif machine.is_set_back and not machine.is_starting and batch.header.member == machine.number:
            machine.shown_version = max(machine.shown_version, header.charter_version)
        self._note_finals(admission, f"member {machine.number}")
        if admission.final and not machine.is_set_back:
            known = self.acknowledged[machine.number]
            known.update(
                introduction.ids[position]
                for introduction, mask in admission.final
                for position in iterate_positions(mask)
            )
        if admission.fork is not None and self.world.culprits.get(header.member, -1) < header.charter_version:
            what = f"member {header.member} signed two batches for one place"
            raise Violation("only the guilty are convicted", what)

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
        version, index = batch.header.charter_version, batch.header.index
        known = max(machine.known_of_us.values(), default=NOTHING_KNOWN)
        if version <= machine.shown_version or (known.batches and (version, index) < known):
            raise Violation(
                "a member with an old disk stays silent", f"member {machine.number} was shown a later batch before"
            )
        if version <= machine.forgotten_version:
            return
        self._spoken_versions[machine.number] = version
        if version < self._adopted.get(machine.number, 0):
            raise Violation("an adoption is the last word", f"member {machine.number} speaks under {version}")
        for statement in batch.statements:
            if isinstance(statement, (VoteBatch, CommitBatch, Vote, Commit)):
                self._check_duty(machine, batch, statement)
            elif isinstance(statement, Promise):
                self._check_promise(machine, batch, statement)
            elif isinstance(statement, Adopt):
                self._adopted[machine.number] = statement.charter_version
                for change in self.world.changes:
                    change.note_adoption(machine, statement)

    def note_entry(self, machine: Machine) -> None:
        """A member entered a charter version, or started again before it said anything there: what its set certifies
        binds it (spec 9.7)."""
        version = machine.member.voter.version
        if version and self.get_spoken_version(machine.number) < version:
            found = machine.member.replica.find_certificates().items()
            self._bound[machine.number, version] = {
                slot: compute_bound(claim for claim in claims if claim.round.version < version)
                for slot, claims in found
            }

    def get_spoken_version(self, number: int) -> int:
        """The last charter version under which a correct member said something."""
        return self._spoken_versions.get(number, 0)

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
            bound = self._bound.get((machine.number, said_round.version), {}).get(slot)
            if kind is Vote and not attempt and bound is not None and bound.record != record.id:
                what = f"member {machine.number} votes for {self.world.names.describe(record)}"
                raise Violation("what was certified before binds", what)
            if isinstance(statement, Vote) and attempt:
                self._check_proposal(machine, said_round, statement, record)
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
        remembered = [it for it in self._commits.get(key, ()) if it.round.version > machine.forgotten_version]
        highest = max((claim for claim in remembered if claim.round < promised), default=None)
        if highest is not None and (promise.report is None or promise.report < highest):
            raise Violation(
                "a promise hides nothing", f"member {machine.number}, {self.world.names.describe_id(highest.record)}"
            )

    def _check_proposal(self, machine: Machine, promised: Round, vote: Vote, record: Record) -> None:
        """A vote at a later attempt is for the record that the proposal's promises force, if they force any."""
        contest = machine.member.replica.contests.get(record.slot)
        proposal = contest.proposals.get((vote.proposal_batch, vote.proposal_position)) if contest else None
        if contest is None or proposal is None:
            return
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
        if self._find_behind():
            return False
        frontiers = [replica.get_frontier() for replica in self._list_replicas().values()]
        return all(frontier == frontiers[0] for frontier in frontiers) and not self._find_late()

    def _list_replicas(self) -> dict[int, Replica]:
        """Those of members that may speak. One whose disk was set back stays silent, and one that left, so it can't
        name the branches of a forked log that it alone holds."""
        return {machine.number: machine.member.replica for machine in self.world.correct if machine.may_speak}

    def _find_behind(self) -> str:
        """Empty when every change of the charter is in force at all correct members, and somebody paid after it."""
        reached = len(self.world.changes)
        for machine in self.world.correct:
            member = machine.member
            if not member.voter.version == member.replica.version == reached:
                return f"member {machine.number} is at version {member.voter.version} of {reached}"
            if member.number in member.charter.members and not machine.is_set_back and not machine.may_speak:
                return f"member {machine.number} may not speak: {member.signing.find_obstacle()}"
        return "nobody paid after the change" if self.world.paid_version < reached else ""

    def _find_late(self) -> str:
        for errand in self.world.errands:
            for machine in self.world.correct if errand.is_honest else ():
                if machine.member.get_state(errand.record.id) != "applied":
                    return f"{self.world.names.describe(errand.record)} at member {machine.number}"
        return is_decided_everywhere(self.world.unlockers, self.world)

    def check_end(self) -> None:
        """Faults have stopped and everything had its time."""
        self._count_changes()
        behind = self._find_behind()
        if behind:
            raise Violation("every change comes into force", behind)
        late = self._find_late()
        if late:
            raise Violation("an honest owner is never locked out", f"not final: {late}")
        replicas = self._list_replicas()
        roots = {replica.compute_state_root() for replica in replicas.values()}
        frontiers = list(map(Replica.get_frontier, replicas.values()))
        if len(roots) > 1 or any(frontier != frontiers[0] for frontier in frontiers):
            raise Violation("convergence", f"{len(roots)} states at {sorted(replicas)}")
        was_set_back = any(machine.is_set_back for machine in self.world.correct)
        if (
            len(replicas) == len(self.world.correct)
            and not was_set_back
            and roots != {self.replica.compute_state_root()}
        ):
            raise Violation("convergence", "the union of all sets has another state")
        for machine in self.world.correct:
            number, replica = machine.number, machine.member.replica
            replica.ledger.check_conservation()
            if any(held < 0 for lots in replica.ledger.balances.values() for held in lots.values()):
                raise Violation("no overdraft", f"at member {number}")
            for record_id in self.acknowledged[number] if not machine.is_set_back else ():
                if not replica.is_final(record_id):
                    raise Violation("nothing final is lost", self.world.names.describe_id(record_id))
        self._check_receipts(was_set_back)

    def _count_changes(self) -> None:
        """How much the run was worth as a test of changes."""
        counts, charters = self.world.counts, self.replica.ledger.charters
        counts["changes in force"] += self.replica.version
        for version in range(self.replica.version):
            before, after = charters[version].members.keys(), charters[version + 1].members.keys()
            counts["members that joined"] += len(after - before)
            counts["members that left"] += len(before - after)
        for member, version in self.replica.logs:
            machine = self.world.machines[member]
            counts["logs of newcomers"] += member in self.world.plan.newcomers
            counts["logs of members that were set back before"] += 0 <= machine.forgotten_version < version

    def _check_receipts(self, was_set_back: bool) -> None:
        """The last records that became final have receipts that hold, under whatever charter version; no receipt shows
        another record of a slot. A commit that only a lost disk held is known to nobody but these checkers."""
        steady = next(machine for machine in self.world.correct if not machine.is_set_back)
        for record_id in list(self.finals.values())[-RECEIPTS_CHECKED:]:
            receipt = steady.member.build_receipt(record_id)
            if receipt is None and was_set_back and not steady.member.replica.is_final(record_id):
                continue
            assert receipt is not None
            if verify_receipt(steady.member.replica.ledger.charters, receipt).record.id != record_id:
                raise Violation("receipts", self.world.names.describe_id(record_id))


def _is_certified(introduction: Introduction, position: int, said_round: Round) -> bool:
    """True when votes of a quorum in this round, for one proposal, stand behind the record where it is counted."""
    original, place = introduction.aliases.get(position, (introduction, position))
    return any(ballot[0] == said_round and tally.reached >> place & 1 for ballot, tally in original.votes.items())
