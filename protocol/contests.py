"""What was said about freeing a slot: its owner's requests and proposals, and the members' promises.

All of it is kept by the batch that carries it, never by what came first, so two replicas that hold the same batches
know the same (spec 5.6). A slot has such an entry only when somebody asked to unlock it, and only until it is decided.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from protocol.attempts import Claim, Round
from protocol.identifiers import Slot
from protocol.statements import SlotProposal, UnlockRequest, encode_signed

Place = tuple[bytes, int]
"""(batch, position) of a record or of a statement."""


class PromiseGiven(NamedTuple):
    """A member's promise, as the batch that carries it says it."""

    member: int
    report: Claim | None


class Contest:
    """One slot's requests, promises and proposals."""

    def __init__(self) -> None:
        self.requests: dict[Place, UnlockRequest] = {}
        self.proposals: dict[Place, SlotProposal] = {}
        self.closed: set[Place] = set()
        """What this replica's member has answered, or refused for good; its own memory, and no part of the state."""
        self.signed: set[Place] = set()
        """Proposals whose signature was checked and holds; likewise."""
        self.promises: dict[Round, dict[bytes, PromiseGiven]] = {}
        """Round -> batch -> the promise in it; a second one for that round in one batch says nothing."""

    def note_promise(self, promised: Round, batch: bytes, promise: PromiseGiven) -> None:
        """A batch holds a promise for a round."""
        self.promises.setdefault(promised, {}).setdefault(batch, promise)

    def choose_promises(self, promised: Round) -> dict[bytes, PromiseGiven]:
        """One promise of each member that gave any in this round, by batch: what a writer rests its proposal on."""
        chosen: dict[int, tuple[bytes, PromiseGiven]] = {}
        for batch, promise in sorted(self.promises.get(promised, {}).items()):
            chosen.setdefault(promise.member, (batch, promise))
        return dict(chosen.values())

    def compute_facts(self, slot: Slot) -> list[tuple[object, ...]]:
        """All of it, for the state of a replica (spec 6.5)."""
        facts: list[tuple[object, ...]] = [
            ("unlock", *place, encode_signed(request)) for place, request in self.requests.items()
        ]
        facts += [("proposal", *place, encode_signed(proposal)) for place, proposal in self.proposals.items()]
        for promised, given in self.promises.items():
            for batch, (member, report) in given.items():
                reported = (*report.round, report.record) if report else (0, 0, b"")
                facts.append(("promise", *slot, *promised, batch, member, *reported))
        return facts

    def find_promises(self, promised: Round, batches: Iterable[bytes]) -> list[PromiseGiven] | None:
        """The promises for this round in these batches, or None when one of them holds none."""
        given = self.promises.get(promised, {})
        found = [given.get(batch) for batch in batches]
        return None if None in found else [promise for promise in found if promise is not None]
