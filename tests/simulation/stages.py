"""Where every seed begins: a federation in which a few people have credits, built once for each set of weights."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache
from typing import Any

from node.member import LedgerMember
from node.storage.store import Store
from node.vote_keys import VoteKeys
from tests import strategies
from tests.strategies import Economy, Federation, make_economy

PEOPLE = 4
"""Two who pay honestly, two who sign what they like."""

WEIGHTS: tuple[tuple[int, ...], ...] = (
    *[(1, 1, 1, 1)] * 8,
    *[(3, 2, 2, 2, 1)] * 4,
    *[(2, 2, 1, 1, 1, 1)] * 2,
    (5, 5, 5, 1, 1, 1),
    (1, 1, 1, 1, 1, 1, 1),
    (10, 10, 10, 1, 1, 1, 1, 1, 1, 1),
)
"""What a seed chooses from; small federations more often, for they cost less and show as much."""

GENESIS_SECONDS = 1_000_000
"""As `tests/strategies.py` founds its federations."""

START_SECONDS = GENESIS_SECONDS + 600.0


class LabelledVoteKeys(VoteKeys):
    """Vote keys that follow from labels, so that a seed makes the same ones each time."""

    def __init__(self, label: str, public_keys: Sequence[bytes] = ()) -> None:
        super().__init__()
        self._label = label
        self._made = 0
        self.hold(public_keys)

    @property
    def held(self) -> tuple[bytes, ...]:
        """The public halves, for a backup."""
        return tuple(self._keys)

    def hold(self, public_keys: Sequence[bytes]) -> None:
        """Hold these keys and no others."""
        held: dict[bytes, Any] = {public_key: strategies.find_key(public_key) for public_key in public_keys}
        self._keys = held

    def get_fresh(self, named: Collection[bytes]) -> bytes:
        """As a node's, but for where the key comes from."""
        for public_key in self._keys:
            if public_key not in named:
                return public_key
        self._made += 1
        public_key = strategies.make_public_key(f"{self._label} {self._made}")
        self.hold((*self.held, public_key))
        return public_key


class Stage:
    """A founded federation, its people, and a store with the batches by which they got their credits."""

    def __init__(self, weights: Sequence[int]) -> None:
        self.federation = Federation(weights, name="Simulation")
        self.charter = self.federation.charter
        self.founded = self.federation.found()
        self.economy: Economy = make_economy.__wrapped__(self.federation, PEOPLE)
        self.people = self.economy.people
        self.content = self._hand_out_credits()
        """The disk of every member when a seed begins."""

    def _hand_out_credits(self) -> bytes:
        """The heaviest members that make a quorum bring the economy's records to finality, in few batches."""
        others = {number: self._open_member(number) for number in self.charter.weights}
        members = [others.pop(number) for number in self._choose_quorum()]
        for group in (self.economy.setup, (self.economy.grant,)):
            for record in group:
                members[0].submit_at_once(record.encoded)
            while sum(self._let_speak(member, members) for member in members):
                pass
        for late in others.values():
            late.ingest_at_once(list(members[0].store.iterate_batches()), "stage")
            self._let_speak(late, members)
        assert all(members[0].replica.is_final(record.id) for record in self.economy.records)
        return members[0].store.serialize()

    def _choose_quorum(self) -> list[int]:
        chosen: list[int] = []
        for number in sorted(self.charter.weights, key=lambda number: (-self.charter.weights[number], number)):
            if sum(self.charter.weights[other] for other in chosen) < self.charter.quorum:
                chosen.append(number)
        return chosen

    def _open_member(self, number: int) -> LedgerMember:
        store = Store.open(":memory:", self.federation.id)
        return LedgerMember(self.founded, number, self.get_vote_keys(number), store, clock=lambda: START_SECONDS - 60)

    def get_vote_keys(self, number: int) -> LabelledVoteKeys:
        """The key of a member's log, as its node holds it; none yet of who is no member."""
        member = self.charter.members.get(number)
        return LabelledVoteKeys(f"vote key of {number}", [member.vote_key] if member is not None else [])

    @staticmethod
    def _let_speak(speaker: LedgerMember, members: Sequence[LedgerMember]) -> bool:
        batch = speaker.say_next()
        for member in members if batch else ():
            if batch is not None and member is not speaker:
                member.ingest_at_once([batch.encoded], "stage")
        return batch is not None


@cache
def get_stage(weights: tuple[int, ...]) -> Stage:
    """The stage with these weights; to be asked for inside `quick_signatures()` only."""
    return Stage(weights)
