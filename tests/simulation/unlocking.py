"""Owners who free a slot in which they signed more than one record: they ask, wait for promises, and propose.

An honest one proposes what the promises force, else its wish, in one attempt after the other until the slot is decided
(spec 5.6). A cheat rests two proposals of one attempt on two choices of promises and hands them to two members.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import TYPE_CHECKING

from protocol.attempts import compute_forced
from protocol.contests import PromiseGiven
from protocol.identifiers import Slot
from protocol.records import Record
from protocol.statements import encode_signed, sign_slot_proposal, sign_unlock_request

if TYPE_CHECKING:
    from tests.simulation.errands import Wallet
    from tests.simulation.world import World

WAIT_SECONDS = 0.5
"""For promises, and then for a certificate, in the first attempt; each further one waits half as long again."""

WAIT_SECONDS_MAX = 2.0
CHEAT_ATTEMPTS_MAX = 3


class Unlocker:
    """One machine of an owner, at work on one slot."""

    def __init__(
        self, world: World, wallet: Wallet, signed: list[Record], choice: int, *, is_honest: bool = True
    ) -> None:
        """`signed` are the records that the owner signed for the slot; the first is what it wishes."""
        self.world = world
        self.wallet = wallet
        self.signed = signed
        self.slot: Slot = (signed[0].scope, signed[0].sequence)
        self.is_honest = is_honest
        self.is_done = False
        self._random = Random(choice)
        self._attempt = 0
        self._wait = WAIT_SECONDS
        world.unlockers.append(self)
        world.after(2 * self._wait, self._ask)

    def _find_final(self) -> Record | None:
        """The slot's record, when a correct member shows that it is final."""
        shown_at = [machine for machine in self.world.correct if machine.is_up]
        decided = [machine for machine in shown_at if machine.member.replica.ledger.is_decided(*self.slot)]
        if not decided:
            return None
        record_id = self.world.checkers.finals[self.slot]
        record = self.world.checkers.records[record_id]
        return record if decided[0].has_final(record_id) else None

    def _ask(self) -> None:
        final = self._find_final()
        if final is not None and not self.is_done:
            self.is_done = True
            self.wallet.note_final(final)
        if self.is_done or self.world.is_over or (not self.is_honest and self._attempt == CHEAT_ATTEMPTS_MAX):
            return
        self._attempt += 1
        self._wait = min(WAIT_SECONDS_MAX, 1.5 * self._wait)
        person, federation = self.wallet.person, self.world.stage.federation
        request = sign_unlock_request(federation.id, self.slot, self._attempt, person.public_key, person.key)
        number = self._choose_member()
        refusal = self.world.machines[number].take_request(encode_signed(request))
        self.world.note(
            "unlock requests",
            f"{person.name} asks member {number} for attempt {self._attempt} at slot {self.slot[1]} {refusal}",
        )
        self.world.after(self._wait * (0.5 + self._random.random()), self._propose)

    def _choose_member(self) -> int:
        return self._random.choice(self.world.list_doors())

    def _propose(self) -> None:
        for _ in range(1 if self.is_honest else 2):
            number = self._choose_member()
            machine = self.world.machines[number]
            promises = machine.list_promises(self.slot, self._attempt)
            if not self.is_honest:
                promises = self._choose_quorum(promises)
            if sum(self._weigh(given) for given in promises.values()) >= machine.quorum:
                self._hand_in(number, promises)
        self.world.after(self._wait * (0.5 + self._random.random()), self._ask)

    def _weigh(self, given: PromiseGiven) -> int:
        return self.world.checkers.replica.charter.weights.get(given.member, 0)

    def _choose_quorum(self, promises: dict[bytes, PromiseGiven]) -> dict[bytes, PromiseGiven]:
        """Some promises that make a quorum: a cheat takes those that suit it."""
        batches = list(promises)
        self._random.shuffle(batches)
        chosen: dict[bytes, PromiseGiven] = {}
        for batch in batches:
            if sum(self._weigh(given) for given in chosen.values()) < self.world.checkers.replica.charter.quorum:
                chosen[batch] = promises[batch]
        return chosen

    def _hand_in(self, number: int, promises: dict[bytes, PromiseGiven]) -> None:
        forced = compute_forced(given.report for given in promises.values())
        record = self._choose_record(forced)
        if record is None:
            return
        person, federation = self.wallet.person, self.world.stage.federation
        proposal = sign_slot_proposal(
            federation.id, self.slot, self._attempt, record.id, promises, person.public_key, person.key
        )
        refusal = self.world.machines[number].take_proposal(encode_signed(proposal), record.encoded)
        self.world.note(
            "proposals",
            f"{person.name} proposes {self.world.names.describe(record)} at attempt {self._attempt} to member {number}"
            f"{' as forced' if forced else ''} {refusal}",
        )

    def _choose_record(self, forced: bytes | None) -> Record | None:
        if forced is not None and (self.is_honest or self._random.random() < 0.7):
            return self.world.checkers.records.get(forced)
        return self.signed[0] if self.is_honest else self._random.choice(self.signed)


def is_decided_everywhere(unlockers: Iterable[Unlocker], world: World) -> str:
    """Empty when the slot of each honest owner is decided at every correct member, else which is not."""
    for unlocker in unlockers:
        for machine in world.correct if unlocker.is_honest else ():
            if not machine.member.replica.ledger.is_decided(*unlocker.slot):
                return f"slot {unlocker.slot[1]} of {unlocker.wallet.person.name} at member {machine.number}"
    return ""
