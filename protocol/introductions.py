"""The records that one batch brought into the ledger, and what members said of them, counted for all at once."""

from __future__ import annotations

from collections.abc import Sequence

from protocol.attempts import Round
from protocol.finality import CommitStatement, Tally
from protocol.records import Record

Ballot = tuple[Round, bytes, int]
"""Votes that add up: the round, batch and position of the owner's proposal; none and 0 at attempt 0."""


def discard_position(decided: dict[Introduction, int], introduction: Introduction, position: int) -> None:
    """Take one position out of masks by introduction."""
    if introduction in decided:
        decided[introduction] &= ~(1 << position)
        if not decided[introduction]:
            del decided[introduction]


class Introduction:
    """The records that one batch brought into the ledger, and what members said of them."""

    __slots__ = ("aliases", "batch", "commit_statements", "commits", "final", "ids", "records", "repeats", "votes")

    def __init__(self, batch: bytes, records: Sequence[Record]) -> None:
        self.batch = batch
        self.ids = tuple([record.id for record in records])
        self.records: dict[int, Record] = dict(enumerate(records))
        """Position -> record, until it is final."""
        self.votes: dict[Ballot, Tally] = {}
        self.commits: dict[Round, Tally] = {}
        self.commit_statements: list[CommitStatement] = []
        self.final = 0
        """Positions that are final."""
        self.aliases: dict[int, tuple[Introduction, int]] = {}
        """Positions whose record another batch introduced here before: all weight is counted there."""
        self.repeats: dict[int, Record] = {}
        """Of these, the records as this batch spells them, until they are decided: signatures are no part of an id."""

    @property
    def open_records(self) -> dict[int, Record]:
        """Position -> record as this batch spells it, of those whose slots are open."""
        return self.records | self.repeats

    def compute_facts(self) -> list[tuple[object, ...]]:
        """Where open records stand, and what members said of those that are counted here."""
        count = len(self.ids)
        facts: list[tuple[object, ...]] = [
            ("open", self.batch, position, count, record.encoded) for position, record in self.open_records.items()
        ]
        for position, record in self.records.items():
            for (vote_round, *proposal), tally in self.votes.items():
                if members := tally.list_members(position):
                    facts.append(("votes", record.id, *vote_round, *proposal, members))
            for commit_round, tally in self.commits.items():
                if members := tally.list_members(position):
                    facts.append(("commits", record.id, *commit_round, members))
        return facts
