"""Wallets: who hands in a record, asks again until it is final, and then does the next thing."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from protocol.records import Kind, Lot, Output, Record, RecordDraft, Rotate, account_scope, sign_record
from tests import strategies
from tests.strategies import Person, rekey

if TYPE_CHECKING:
    from tests.simulation.world import World

ASK_AGAIN_SECONDS = 1.0
CHEAT_HANDS_MAX = 2
"""A cheat hands each of its records to so many members."""


class Errand:
    """A record on its way: handed to one member after the other until one of them shows that it is final."""

    def __init__(self, world: World, record: Record, when_final: Callable[[], None], is_honest: bool = True) -> None:
        self.world = world
        self.record = record
        self.is_done = False
        self.is_honest = is_honest
        self._when_final = when_final
        self._random = Random(record.id)
        self._asked: list[int] = []
        world.errands.append(self)
        self._go()

    def _go(self) -> None:
        if self.is_done or self.world.is_over:
            return
        shown_at = [number for number in self._asked if self.world.machines[number].has_final(self.record.id)]
        if any(not self.world.machines[number].is_faulty for number in shown_at):
            self.is_done = True
            self.world.tell(f"{self.world.names.describe(self.record)} is final, says member {shown_at[0]}")
            self._when_final()
            return
        if self.is_honest or len(self._asked) < CHEAT_HANDS_MAX:
            self._hand_in()
        self.world.after(ASK_AGAIN_SECONDS * (0.5 + self._random.random()), self._go)

    def _hand_in(self) -> None:
        number = self._random.choice(self.world.list_doors())
        refusal = self.world.machines[number].take_record(self.record.encoded)
        self._asked.append(number)
        if self.world.is_telling:
            what = f"refused: {refusal}" if refusal else "taken"
            self.world.tell(f"{self.world.names.describe(self.record)} handed to member {number}, {what}")


class Wallet:
    """A person's own books: the next slot, and whether a record is on its way."""

    def __init__(self, world: World, person: Person) -> None:
        self.world = world
        self.person = person
        self.scope = account_scope(person.account)
        self.is_busy = False
        self.errand: Errand | None = None
        """The last record that was sent, alone in its slot."""
        self.sequence = 0
        self.prev = b""

    @property
    def funds(self) -> int:
        """What the person can spend, in the lot that everybody was granted."""
        return self.world.checkers.replica.ledger.get_balance(self.person.account, Lot(*self.world.stage.economy.lot))

    @property
    def place(self) -> dict[str, object]:
        """Slot and predecessor of the next record."""
        return {"sequence": self.sequence, "prev": self.prev, "epoch": self.world.epoch}

    def list_payees(self) -> list[Person]:
        """Everybody else."""
        return [person for person in self.world.stage.people if person.account != self.person.account]

    def sign_rotation(self) -> Record:
        """The account's next key, in the next slot."""
        after = rekey(self.person, f"{self.person.name} key {self.sequence}")
        return self.world.names.note(
            self.world.stage.federation.rotate(self.person, after, **self.place), f"{self.person.name} rotates its key"
        )

    def sign_payment(self, payee: Person, amount: int, memo: str = "") -> Record:
        """A transfer in the next slot."""
        economy = self.world.stage.economy
        output = Output(payee.account, *economy.lot, amount)
        return self.world.names.note(
            self.world.stage.federation.transfer(self.person, [output], memo, **self.place),
            f"{self.person.name} pays {payee.name} {amount}",
        )

    def send(self, record: Record, when_final: Callable[[], None] = lambda: None, is_honest: bool = True) -> Errand:
        """Hand a record in; the next one has to wait until it is final."""
        self.is_busy = True

        def go_on() -> None:
            self.note_final(record)
            when_final()

        errand = Errand(self.world, record, go_on, is_honest)
        self.errand = errand if is_honest else None
        return errand

    def renew(self, record: Record) -> Record:
        """The same payment in the present epoch."""
        draft = RecordDraft(
            Kind(record.kind), self.world.epoch, record.scope, record.sequence, record.prev, record.body, record.signers
        )
        keys = [strategies.find_key(signer) for signer in record.signers]
        renewed = sign_record(self.world.stage.federation.id, draft, keys)
        return self.world.names.note(renewed, f"{self.person.name} signs {record.id.hex()[:4]} anew")

    def note_final(self, record: Record) -> None:
        """The next slot is free to use, with another key after a rotation."""
        if record.sequence >= self.sequence:
            if isinstance(record.body, Rotate):
                key = record.body.key
                self.person = self.person._replace(key=strategies.find_key(key), public_key=key)
            self.is_busy = False
            self.sequence, self.prev = record.sequence + 1, record.id
