"""Changes of the charter in the middle of a run: members leave and join, weights change, all take fresh vote keys.

An honest member drafts the amendment when every correct member has told its next vote key, which it does after it has
heard a quorum (spec 9.8). Then the people of each institution approve it, each in their own time. What can go wrong
around an adoption goes wrong more often than elsewhere: an hour passes, cheats pay twice, members die or are cut off.
"""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TYPE_CHECKING

from protocol.charter import Charter, CharterFields, Member
from protocol.errors import InvalidInput
from protocol.records import Kind, Record
from protocol.statements import Adopt
from tests.simulation.errands import Errand
from tests.simulation.plan import STEP_MS_MAX

if TYPE_CHECKING:
    from tests.simulation.machines import Machine
    from tests.simulation.world import World

DRAFT_AGAIN_SECONDS = 0.3
APPROVAL_SECONDS_MAX = 2.0
VERSION_MAX = 1 << 30
"""Above every charter version."""


class Change:
    """One amendment, from the draft to its adoption."""

    def __init__(self, world: World, random: Random) -> None:
        self.world = world
        self.after: Charter | None = None
        """What it makes of the charter, once it is drafted."""
        self.record: Record | None = None
        self.is_final = False
        self._random = random
        self._is_adopted = False
        world.changes.append(self)
        self._draft()

    @property
    def is_voted_on(self) -> bool:
        """True from the draft until the amendment is final."""
        return self.record is not None and not self.is_final

    # -- drafting -------------------------------------------------------------------------------------------------

    def _draft(self) -> None:
        """Draft and sign it as soon as nothing is in the way."""
        world, random = self.world, self._random
        if not self._is_ready():
            world.after(DRAFT_AGAIN_SECONDS, self._draft)
            return
        before = world.checkers.replica.charter
        fields = self._draw_fields(before)
        if fields is None:
            world.changes.remove(self)
            return
        self.after = Charter(fields, before.federation)
        index = world.changes.index(self)
        earlier = world.changes[index - 1].record if index else None
        federation = world.stage.federation.amended(earlier) if earlier else world.stage.federation
        writers = [it.number for it in world.correct if it.number in before.members and it.may_speak]
        writer = random.choice([number for number in writers if number in federation.member_keys])
        record = federation.amend(earlier, writer=writer, epoch=world.epoch, members=fields.members)
        weights = ", ".join(f"{it.number}: {it.weight}" for it in fields.members)
        self.record = world.names.note(record, f"member {writer} amends the charter, weights {weights}")
        Errand(world, record, self._note_final)
        for machine in world.machines.values():
            if not machine.is_faulty or random.random() < 0.7:
                world.after(APPROVAL_SECONDS_MAX * random.random(), partial(self._approve, machine))
        self._make_trouble()

    def _is_ready(self) -> bool:
        """True when the change before is in force at all correct members, all of them are up and have heard a quorum,
        and no hold is on its way that two changes would outdate."""
        world = self.world
        earlier = world.changes.index(self)
        is_calm = all(
            machine.is_up and machine.member.signing.has_heard_quorum and machine.member.voter.version == earlier
            for machine in world.correct
        )
        pending = [it.record for it in world.errands if it.is_honest and not it.is_done]
        pending += [it.signed[0] for it in world.unlockers if it.is_honest and not it.is_done]
        has_holds = any(record.kind == Kind.HOLD for record in pending)
        return is_calm and world.checkers.replica.version == earlier and not (earlier and has_holds)

    def _draw_fields(self, before: Charter) -> CharterFields | None:
        """A charter that keeps the rules, under which the faulty members weigh less than a third."""
        world, random = self.world, self._random
        culprits = {*world.plan.faulty, *world.plan.backed_up}
        for _ in range(20):
            members = self._draw_members(before)
            fields = before.fields._replace(version=before.version + 1, prev=before.id, members=members)
            try:
                after = Charter(CharterFields(*fields), before.federation)
                before.check_successor(after)
            except InvalidInput:
                continue
            guilty = sum(member.weight for member in members if member.number in culprits)
            if guilty <= sum(after.weights.values()) - after.quorum:
                return fields
        world.tell(f"no amendment of the charter keeps the rules {random.random():.2f}")
        return None

    def _draw_members(self, before: Charter) -> tuple[Member, ...]:
        world, random = self.world, self._random
        chosen = dict(before.members)
        for number in world.plan.newcomers:
            if number not in chosen and number not in world.stage.federation.numbers and random.random() < 0.8:
                chosen[number] = world.stage.federation.change_member(number)[-1]
        if random.random() < 0.5:
            del chosen[random.choice(sorted(chosen))]
        if random.random() < 0.3:
            number = random.choice(sorted(chosen))
            chosen[number] = chosen[number]._replace(weight=random.randint(1, 1 + chosen[number].weight))
        return tuple(chosen[number]._replace(vote_key=self._ask_for_key(number)) for number in sorted(chosen))

    def _ask_for_key(self, number: int) -> bytes:
        charters = self.world.checkers.replica.ledger.charters.values()
        named = {charter.members[number].vote_key for charter in charters if number in charter.members}
        return self.world.machines[number].vote_keys.get_fresh(named)

    # -- on its way -----------------------------------------------------------------------------------------------

    def _approve(self, machine: Machine) -> None:
        """The institution's people say yes, when their node answers."""
        assert self.record is not None
        if machine.is_up:
            machine.approve(self.record.id)
        if not machine.is_faulty and not (machine.is_up and machine.member.has_approved(self.record.id)):
            self.world.after(DRAFT_AGAIN_SECONDS, partial(self._approve, machine))

    def _note_final(self) -> None:
        self.is_final = True

    def note_adoption(self, machine: Machine, adopt: Adopt) -> None:
        """A correct member adopted a charter; with the first one trouble begins."""
        if self._is_adopted or self.after is None or adopt.charter != self.after.id:
            return
        self._is_adopted = True
        self._trouble("let_epoch_pass", 0.5, 0.1)
        self._make_trouble()
        if self._random.random() < 0.3 and self.world.now * 1000 < STEP_MS_MAX:
            self.world.after(0.1 * self._random.random(), lambda: self._kill(machine))

    def _kill(self, machine: Machine) -> None:
        if machine.is_up and self.world.now * 1000 < STEP_MS_MAX:
            self.world.note("kills at an adoption", f"member {machine.number} dies at its adoption")
            machine.stop()
            self.world.after(self._random.random(), machine.restart)

    def _make_trouble(self) -> None:
        for kind, share in (("pay_twice", 0.8), ("pay_twice", 0.5), ("part_network", 0.4), ("set_back", 0.4)):
            self._trouble(kind, share, 1.0)

    def _trouble(self, kind: str, share: float, seconds: float) -> None:
        if self._random.random() < share and (kind != "set_back" or self.world.plan.backed_up):
            self.world.after(
                seconds * self._random.random(), partial(self.world.act, kind, self._random.getrandbits(32))
            )


def amend(world: World, random: Random) -> None:
    """An honest member drafts an amendment, as soon as it can."""
    Change(world, random)
