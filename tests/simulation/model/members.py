"""What one correct member has said about the slot, and every batch that it may say next.

Members are explored apart from each other: a batch needs some certificates and proposals to exist, written as a bit
mask, and leads to another state of the same member. So its rules are evaluated once for each state of a member, and a
step of the whole federation is a look-up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from protocol.attempts import NOTHING_SAID, Claim, Round, SlotMemory
from tests.simulation.model.rules import Rules
from tests.simulation.model.settings import Setting

NOTHING = -1
"""Instead of a claim's number: reports no certificate, is bound by none."""
UNSAID = -2
"""Instead of a claim's number: did not promise, adopt or enter."""


class Said(NamedTuple):
    """All that one member has said, and what it remembers of it."""

    memory: SlotMemory
    votes: int
    """Bit i: it voted for claim i."""
    commits: int
    promises: tuple[int, ...]
    """For each round the reported claim."""
    adopted: int
    """Its highest commit when it adopted version 1."""
    bound: int
    """The certificate that binds it since it entered version 1."""


class Step(NamedTuple):
    """One batch of one member."""

    needs: int
    """Bits of what must exist: `Table` says which bit is which."""
    then: int
    """The member's state afterwards."""
    text: str
    round: Round | None
    """Of its last statement."""


class Draft(NamedTuple):
    """A statement on its way into a batch."""

    kind: str
    needs: int
    said: Said
    text: str
    round: Round | None


class Table:
    """The states of correct members by number, with their steps.

    Bits of `needs`, with n claims: i, a certificate for claim i; n + i, a proposal of claim i; 2n, an adopt quorum
    under which no certificate binds; 2n + 1 + i, one under which claim i does.
    """

    def __init__(self, setting: Setting, rules: Rules) -> None:
        self.setting = setting
        self.rules = rules
        self.claims = setting.claims
        self.numbers = {claim: number for number, claim in enumerate(self.claims)}
        self._ids: dict[tuple[int, Said], int] = {}
        self.said: list[Said] = []
        self.classes: list[int] = []
        self.votes: list[int] = []
        """Of each state the claims for which its votes count."""
        self._steps: list[list[Step] | None] = []
        self._renamed: dict[tuple[int, tuple[int, ...]], int] = {}
        self.problems: list[str] = []

    def get_number(self, member_class: int, said: Said) -> int:
        """The number of a state; a new one at first sight."""
        key = (member_class, said)
        number = self._ids.get(key)
        if number is None:
            number = self._ids[key] = len(self.said)
            self.said.append(said)
            self.classes.append(member_class)
            self.votes.append(self._spread(said.votes))
            self._steps.append(None)
            self.problems.append(find_contradiction(said, self.claims, self.setting.rounds))
        return number

    def make_start(self, member_class: int) -> int:
        """A member that has said nothing."""
        return self.get_number(
            member_class, Said(NOTHING_SAID, 0, 0, (UNSAID,) * len(self.setting.rounds), UNSAID, UNSAID)
        )

    def get_steps(self, number: int) -> list[Step]:
        """Every batch that the member may say in this state."""
        steps = self._steps[number]
        if steps is None:
            found: dict[tuple[int, int], Step] = {}
            for step in self._list_steps(number):
                found.setdefault((step.needs, step.then), step)
            steps = self._steps[number] = list(found.values())
        return steps

    def rename(self, number: int, names: tuple[int, ...]) -> int:
        """The same state with record i called `names[i]`."""
        key = (number, names)
        renamed = self._renamed.get(key)
        if renamed is None:
            renamed = self.get_number(self.classes[number], self._rename(self.said[number], names))
            self._renamed[key] = renamed
        return renamed

    def _rename(self, said: Said, names: tuple[int, ...]) -> Said:
        count = len(names)

        def number(claim: int) -> int:
            return claim if claim < 0 else claim // count * count + names[claim % count]

        def mask(claims: int) -> int:
            return sum(1 << number(claim) for claim in range(len(self.claims)) if claims >> claim & 1)

        def named(claim: Claim | None) -> Claim | None:
            return claim if claim is None else self.claims[number(self.numbers[claim])]

        memory = SlotMemory(named(said.memory.voted), named(said.memory.committed), said.memory.promised)
        promises = tuple(map(number, said.promises))
        return Said(memory, mask(said.votes), mask(said.commits), promises, number(said.adopted), number(said.bound))

    def _spread(self, votes: int) -> int:
        return sum(
            1 << number
            for number, claim in enumerate(self.claims)
            if any(
                votes >> other & 1
                and voted.record == claim.record
                and self.rules.do_votes_add_up(voted.round, claim.round)
                for other, voted in enumerate(self.claims)
            )
        )

    # -- what a member may say ----------------------------------------------------------------------------------

    def _list_steps(self, number: int) -> Iterator[Step]:
        member_class, said = self.classes[number], self.said[number]
        for first in self._list_statements(member_class, said, said.memory):
            yield Step(first.needs, self.get_number(member_class, first.said), first.text, first.round)
            if first.kind not in ("commit", "promise"):
                continue
            for second in self._list_statements(member_class, first.said, said.memory):
                if {first.kind, second.kind} == {"commit", "promise"}:
                    text = f"{first.text} and, in the same batch, {second.text}"
                    then = self.get_number(member_class, second.said)
                    yield Step(first.needs | second.needs, then, text, second.round)

    def _list_statements(self, member_class: int, said: Said, at_start: SlotMemory) -> Iterator[Draft]:
        """Every statement that may come next in a batch before which the member remembered `at_start`."""
        member = self.setting.classes[member_class][0]
        is_member = [member in weights for weights in self.setting.weights]
        for number, claim in enumerate(self.claims):
            version = claim.round.version
            if is_member[version] and (version == 0 or said.bound != UNSAID):
                yield from self._list_votes_and_commits(said, number, claim, at_start)
        for place, round_ in enumerate(self.setting.rounds):
            if is_member[round_.version] and (round_.version == 0 or said.bound != UNSAID) and round_.attempt:
                yield from self._list_promises(said, place, round_, at_start)
        if len(is_member) == 2:
            yield from self._list_charter_changes(said, *is_member)

    def _list_votes_and_commits(self, said: Said, number: int, claim: Claim, at_start: SlotMemory) -> Iterator[Draft]:
        rules, bit, where = self.rules, 1 << number, describe(claim)
        is_first = claim.round.attempt == 0
        # At attempt 0 of a new version the hand-over stands for the quorum of promises.
        forced = rules.compute_forced((self._get_claim(said.bound),)) if is_first and rules.binds_first_votes else None
        if not said.votes & bit and forced in (None, claim.record) and rules.may_vote(said.memory, claim):
            needs = 0 if is_first else bit << len(self.claims)
            after = said._replace(memory=rules.apply_vote(said.memory, claim), votes=said.votes | bit)
            yield Draft("vote", needs, after, f"votes for {where}", claim.round)
        if not said.commits & bit and rules.may_commit(rules.get_memory_of_commit(at_start, said.memory), claim):
            needs = bit if rules.needs_certificate else 0
            after = said._replace(memory=rules.apply_commit(said.memory, claim), commits=said.commits | bit)
            yield Draft("commit", needs, after, f"commits to {where}", claim.round)

    def _list_promises(self, said: Said, place: int, round_: Round, at_start: SlotMemory) -> Iterator[Draft]:
        if said.promises[place] != UNSAID or not self.rules.may_promise(said.memory, round_):
            return
        remembered = self.rules.get_memory_of_report(at_start, said.memory)
        report = self.rules.compute_report(remembered, self._get_claim(said.bound))
        if report is not None and report.round >= round_ and self.rules.is_report_below:
            report = (
                None  # under the rules in force there is none such: a promise can only tell of rounds below its own
            )
        promises = list(said.promises)
        promises[place] = self._get_number(report)
        after = said._replace(memory=self.rules.apply_promise(said.memory, round_), promises=tuple(promises))
        shown = f"reporting {describe(report)}" if report else "reporting nothing"
        yield Draft("promise", 0, after, f"promises round {describe_round(round_)}, {shown}", round_)

    def _list_charter_changes(self, said: Said, is_old_member: bool, is_new_member: bool) -> Iterator[Draft]:
        new = Round(1, 0)
        if is_old_member and said.adopted == UNSAID:
            committed = self._get_number(said.memory.committed)
            after = said._replace(memory=self.rules.apply_adopt(said.memory, new), adopted=committed)
            yield Draft("adopt", 0, after, "adopts version 1", None)
        if not is_new_member or said.bound != UNSAID or (is_old_member and said.adopted == UNSAID):
            return
        for seen in range(NOTHING, len(self.claims)):
            # Its own commits' certificates lie in its past, too.
            bound = self.rules.compute_bound((self._get_claim(seen), self._get_claim(said.adopted)))
            after = said._replace(bound=self._get_number(bound))
            shown = f"bound by {describe(bound)}" if bound else "bound by nothing"
            yield Draft("enter", 1 << (2 * len(self.claims) + 1 + seen), after, f"enters version 1, {shown}", None)

    def _get_claim(self, number: int) -> Claim | None:
        return self.claims[number] if number >= 0 else None

    def _get_number(self, claim: Claim | None) -> int:
        return NOTHING if claim is None else self.numbers[claim]


def find_contradiction(said: Said, claims: Sequence[Claim], rounds: Sequence[Round]) -> str:
    """Where a member's memory disagrees with what it said, or what it said with itself; empty when all is well."""
    memory = said.memory
    for name, mask, remembered in (("vote", said.votes, memory.voted), ("commit", said.commits, memory.committed)):
        made = [claim for number, claim in enumerate(claims) if mask >> number & 1]
        if made and (remembered not in made or remembered.round != made[-1].round):
            return f"a member forgot its highest {name}"
    for place, report in enumerate(said.promises):
        if report == UNSAID:
            continue
        if memory.promised < rounds[place]:
            return "a member forgot its highest promise"
        above = claims[report].round if report >= 0 else Round(-1, 0)
        for number, claim in enumerate(claims):
            if said.commits >> number & 1 and above < claim.round < rounds[place]:
                return "a promise hides a commit"
    if said.adopted != UNSAID:
        above = claims[said.adopted].round if said.adopted >= 0 else Round(-1, 0)
        for number, claim in enumerate(claims):
            if said.commits >> number & 1 and above < claim.round < Round(1, 0):
                return "a member committed in a version after it adopted the next"
    return ""


def describe_round(round_: Round) -> str:
    """Version and attempt; the version is left out where there is one only."""
    return f"{round_.version}.{round_.attempt}"


def describe(claim: Claim | None) -> str:
    """A claim for people."""
    return "nothing" if claim is None else f"{claim.record.decode()} in round {describe_round(claim.round)}"
