"""What exists when correct members have said certain things and faulty members have said all that they can.

A faulty member has voted for and committed to everything, and its promises report any certificate that exists, or
none; whichever of this it really said, and to whom, correct members act on a part of what is computed here. So what
they can do in the model contains all that they can do in the world.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from protocol.attempts import Claim
from tests.simulation.model.members import UNSAID, Table
from tests.simulation.model.settings import RECORD_NAMES


class World(NamedTuple):
    """What exists in a state."""

    certificates: int
    """Bit i: claim i has one."""
    finals: int
    enabled: int
    """The bits that steps need."""
    choices: tuple[tuple[int, int], ...]
    """(place of a round, records as a mask) that an honest writer may propose now."""


class Existence:
    """Certificates, final records, proposals and hand-overs, from the states of the correct members."""

    def __init__(self, table: Table, *, with_faulty: bool = True) -> None:
        self.table = table
        self.setting = setting = table.setting
        self.rules = rules = table.rules
        self._is_quiet = not with_faulty
        self._claim_count = len(table.claims)
        self._all_records = (1 << setting.record_count) - 1
        self._later_rounds = [(place, round_) for place, round_ in enumerate(setting.rounds) if round_.attempt]
        versions = range(len(setting.weights))
        totals = [sum(weights.values()) for weights in setting.weights]
        self._has_faulty = [with_faulty and setting.get_faulty_weight(version) > 0 for version in versions]
        self._vote_quorums = [
            (
                self._get_version_mask(version),
                self._list_minimal(version, rules.compute_quorum(totals[version]), with_faulty),
            )
            for version in versions
        ]
        self._promise_quorums = [
            self._list_quorums(version, rules.compute_promise_quorum(totals[version]), with_faulty)
            for version in versions
        ]
        self._adopt_quorums = self._list_quorums(0, rules.compute_adopt_quorum(totals[0]), with_faulty)
        self._allowed: dict[tuple[int, tuple[int, ...], int], tuple[int, bool]] = {}
        self._bounds: dict[tuple[tuple[int, ...], int], int] = {}
        self._below = [
            sum(1 << number for number, claim in enumerate(table.claims) if claim.round < round_)
            for round_ in setting.rounds
        ]

    def _get_version_mask(self, version: int) -> int:
        return sum(1 << number for number, claim in enumerate(self.table.claims) if claim.round.version == version)

    def _list_minimal(self, version: int, quorum: int, with_faulty: bool) -> list[tuple[int, ...]]:
        """Quorums without a smaller one inside: they suffice where only their existence matters."""
        quorums = [set(chosen) for chosen in self.setting.list_quorums(version, quorum, with_faulty=with_faulty)]
        return [tuple(sorted(chosen)) for chosen in quorums if not any(other < chosen for other in quorums)]

    def _list_quorums(self, version: int, quorum: int, with_faulty: bool) -> list[tuple[tuple[int, ...], bool]]:
        """Every quorum, with the faulty members inside or not."""
        found = [(chosen, False) for chosen in self.setting.list_quorums(version, quorum, with_faulty=False)]
        if with_faulty and self._has_faulty[version]:
            found += [(chosen, True) for chosen in self.setting.list_quorums(version, quorum, with_faulty=True)]
        return found

    def compute_world(self, state: Sequence[int]) -> World:
        """Certificates, finals, proposals and hand-overs in a state (see `Exploration`)."""
        table, setting, rules = self.table, self.setting, self.rules
        said = [table.said[number] for number in state[:-1]]
        certificates = self._find_claims([table.votes[number] for number in state[:-1]])
        if self._is_quiet:
            for one in said:
                certificates |= one.commits  # whoever committed shows the certificate, faulty members' votes and all
        finals = self._find_claims([one.commits for one in said])
        record_count, honest, proposals, choices = setting.record_count, setting.honest_writer, 0, []
        for place, round_ in self._later_rounds:
            reports = tuple([one.promises[place] for one in said])
            forced, is_free = self._find_proposals(place, reports, certificates)
            if not forced and not is_free:
                continue
            if honest is None or rules.is_turn(round_.attempt, setting.writer_count, 1 - honest):
                proposals |= (self._all_records if is_free else forced) << place * record_count
            if honest is not None and rules.is_turn(round_.attempt, setting.writer_count, honest):
                proposed = state[-1] >> place * record_count & self._all_records
                proposals |= proposed << place * record_count
                if not proposed:
                    choices.append((place, forced | is_free))  # free to choose, it takes its own: the first
        enabled = certificates | proposals << self._claim_count
        if len(setting.weights) == 2:
            adopted = tuple([one.adopted for one in said])
            enabled |= self._find_bounds(adopted, certificates) << 2 * self._claim_count
        return World(certificates, finals, enabled, tuple(choices))

    def _find_claims(self, masks: Sequence[int]) -> int:
        """The claims that a quorum stands behind, when correct member i stands behind `masks[i]`."""
        found = 0
        for version_mask, quorums in self._vote_quorums:
            for chosen in quorums:
                behind = version_mask
                for place in chosen:
                    behind &= masks[place]
                found |= behind
        return found

    def _find_proposals(self, place: int, reports: tuple[int, ...], certificates: int) -> tuple[int, bool]:
        """Records that may be proposed in a round after promises with these reports, as a mask; and whether some quorum
        leaves the choice to the writer."""
        key = (place, reports, certificates & self._below[place] if self.rules.is_report_below else certificates)
        found = self._allowed.get(key)
        if found is None:
            found = self._allowed[key] = self._compute_proposals(*key)
        return found

    def _compute_proposals(self, place: int, reports: tuple[int, ...], certificates: int) -> tuple[int, bool]:
        claims, records, is_free = self.table.claims, 0, False
        for chosen, has_faulty in self._promise_quorums[self.setting.rounds[place].version]:
            said = [reports[member] for member in chosen]
            # A promise whose report shows no certificate, or one that is not below its round, does not count.
            if any(report == UNSAID or (report >= 0 and not certificates >> report & 1) for report in said):
                continue
            reported = [claims[report] for report in said if report >= 0]
            for lie in self._list_lies(certificates) if has_faulty else (None,):
                forced = self.rules.compute_forced((*reported, lie))
                if forced is None:
                    is_free = True
                else:
                    records |= 1 << RECORD_NAMES.index(forced)
        return records, is_free

    def _list_lies(self, certificates: int) -> Iterator[Claim | None]:
        yield None
        for number, claim in enumerate(self.table.claims):
            if certificates >> number & 1:
                yield claim

    def _find_bounds(self, adopted: tuple[int, ...], certificates: int) -> int:
        """What may bind a member that enters version 1: bit 0 nothing, bit i + 1 claim i.

        It sees an adopt quorum, in whose past lie at least the certificates of its members' commits, perhaps more.
        """
        old = certificates & self._get_version_mask(0)
        key = (adopted, old)
        found = self._bounds.get(key)
        if found is None:
            found = 0
            for chosen, _ in self._adopt_quorums:
                said = [adopted[member] for member in chosen]
                if UNSAID in said:
                    continue
                reported = [self.table.claims[report] for report in said if report >= 0]
                for more in self._list_lies(old):
                    bound = self.rules.compute_bound((*reported, more))
                    found |= 1 << (1 + self.table.numbers[bound] if bound is not None else 0)
            self._bounds[key] = found
        return found
