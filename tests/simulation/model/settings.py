"""The three situations that are explored: one slot, a hold's slot with two writers, and a change of the charter.

A setting says who the members are in each charter version, who of them is faulty, and which rounds and records there
are. Faulty members need no state: they have said everything that they could ever say from the start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import NamedTuple

from protocol.attempts import Claim, Round

RECORD_NAMES = (b"A", b"B", b"C")


class Setting(NamedTuple):
    """A federation with one slot."""

    name: str
    weights: tuple[Mapping[int, int], ...]
    """For each charter version: member -> weight."""
    faulty: frozenset[int]
    rounds: tuple[Round, ...]
    """Ascending."""
    record_count: int = 2
    writer_count: int = 1
    honest_writer: int | None = None
    """Of several writers, the one that follows the rules and owns record A; None: the adversary proposes."""

    @property
    def claims(self) -> tuple[Claim, ...]:
        """Every record in every round, ascending: a claim's number is its place here."""
        return tuple(Claim(round_, name) for round_ in self.rounds for name in RECORD_NAMES[: self.record_count])

    @property
    def classes(self) -> tuple[tuple[int, ...], ...]:
        """The correct members in groups of interchangeable ones: equal weights in all versions."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for member in sorted({member for version in self.weights for member in version} - self.faulty):
            groups.setdefault(tuple(version.get(member, 0) for version in self.weights), []).append(member)
        return tuple(tuple(group) for group in groups.values())

    @property
    def correct(self) -> tuple[int, ...]:
        """In the order in which a state lists them."""
        return tuple(member for group in self.classes for member in group)

    def get_faulty_weight(self, version: int) -> int:
        """The adversary's weight."""
        return sum(weight for member, weight in self.weights[version].items() if member in self.faulty)

    def list_quorums(self, version: int, quorum: int, *, with_faulty: bool) -> list[tuple[int, ...]]:
        """Sets of correct members, by their places in a state, that make a quorum with or without the faulty ones."""
        weights = self.weights[version]
        places = [place for place, member in enumerate(self.correct) if member in weights]
        wanted = quorum - (self.get_faulty_weight(version) if with_faulty else 0)
        return [
            chosen
            for count in range(len(places) + 1)
            for chosen in combinations(places, count)
            if sum(weights[self.correct[place]] for place in chosen) >= wanted
        ]


def _equal(*members: int) -> Mapping[int, int]:
    return dict.fromkeys(members, 1)


def _attempts(version: int, last: int) -> tuple[Round, ...]:
    return tuple(Round(version, attempt) for attempt in range(last + 1))


def make_slot_settings(bound: int) -> Iterator[Setting]:
    """Four members, one faulty, an adversarial owner, attempts 0 to `bound`."""
    yield Setting("one slot", (_equal(1, 2, 3, 4),), frozenset({4}), _attempts(0, bound))


def make_hold_settings(bound: int) -> Iterator[Setting]:
    """The same slot with two writers; the one whose turn the last attempt is follows the rules, the other does not."""
    yield Setting(
        f"a hold's slot, {('payer', 'payee')[bound % 2]} honest",
        (_equal(1, 2, 3, 4),),
        frozenset({4}),
        _attempts(0, bound),
        writer_count=2,
        honest_writer=bound % 2,
    )


def make_charter_setting(last_old: int, last_new: int, *faulty: int) -> Setting:
    """Member 5 takes the place of member 4; attempts 0 to `last_old` in the old version, to `last_new` in the new."""
    return Setting(
        f"a new charter, attempts to {last_old} and {last_new}, {' and '.join(map(str, faulty))} faulty",
        (_equal(1, 2, 3, 4), _equal(1, 2, 3, 5)),
        frozenset(faulty),
        (*_attempts(0, last_old), *_attempts(1, last_new)),
    )


def make_faultless_setting(last_old: int, last_new: int, new_members: tuple[int, int]) -> Setting:
    """Two members, none faulty: small enough for the long schedules that a broken hand-over needs."""
    rounds = (*_attempts(0, last_old), *_attempts(1, last_new))
    return Setting("a new charter of two members", (_equal(1, 2), _equal(*new_members)), frozenset(), rounds)


def make_charter_settings(bound: int) -> Iterator[Setting]:
    """One member that stays is faulty, or the one that goes and the one that comes are.

    Bound 0: attempt 0 in both versions. 1: attempt 1 as well in either the old or the new one. 2: in both.
    """
    for last_old, last_new in {0: ((0, 0),), 1: ((0, 1), (1, 0))}.get(bound, ((bound - 1, bound - 1),)):
        for faulty in ((4, 5), (1,)):
            yield make_charter_setting(last_old, last_new, *faulty)
