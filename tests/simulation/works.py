"""What people do: pay, put funds aside for a job and settle it, enrol somebody, and cheat."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from protocol.disputes import DisputeReason
from protocol.records import Draw, Hold, Record
from tests.simulation.changes import amend
from tests.simulation.errands import Errand, Wallet
from tests.simulation.unlocking import Unlocker
from tests.strategies import make_id

if TYPE_CHECKING:
    from tests.simulation.world import World

HONEST = (0, 1)
"""The people who sign one record for a slot, by their places in the economy."""

CHEATS = (2, 3)

EPOCH_SECONDS, GRACE_SECONDS = 3600.0, 60.0
"""As `tests/strategies.py` founds its federations."""

Work = Callable[["World", Random], None]


def pay(world: World, random: Random) -> None:
    """An honest person pays somebody a part of what it has, if nothing of it is on its way."""
    wallet = world.wallets[random.choice(HONEST)]
    payee = random.choice(wallet.list_payees())
    if not wallet.is_busy and wallet.funds:
        wallet.send(wallet.sign_payment(payee, random.randint(1, min(200, wallet.funds))))


def buy_job(world: World, random: Random) -> None:
    """An honest person puts funds aside; when that is final, the donor settles a part of them."""
    wallet = world.wallets[random.choice(HONEST)]
    economy, federation = world.stage.economy, world.stage.federation
    if wallet.is_busy or not wallet.funds:
        return
    amount = random.randint(1, min(100, wallet.funds))
    draws = [Draw(*economy.lot, amount)]
    version = world.checkers.replica.ledger.charter.version
    place = {"charter_version": version, **wallet.place}
    hold = federation.hold(wallet.person, economy.donor, economy.sponsor, draws, **place)
    assert isinstance(hold.body, Hold)
    due = random.randint(0, amount)

    def settle() -> None:
        if hold.id[0] % 3 == 0:
            world.after(0.5, lambda: _dispute(world, wallet, hold))
        record = federation.settle(world.donor.person, hold, due, epoch=world.epoch)
        words = f"the donor settles {due} of {amount}"
        is_honest = not world.donor.is_busy  # else its key may change before this is final
        world.settles.append(Errand(world, world.names.note(record, words), lambda: None, is_honest))
        if random.random() < 0.5:
            world.after(0.2 * random.random(), lambda: _rotate(world, world.donor))

    wallet.send(world.names.note(hold, f"{wallet.person.name} puts {amount} aside"), settle)


def _dispute(world: World, wallet: Wallet, hold: Record) -> None:
    """The payer accuses the donor, whether or not the hold has ended by then."""
    if wallet.is_busy or world.is_over:
        return
    record = world.stage.federation.dispute(wallet.person, hold, DisputeReason.WORK_LOST, hold.id, **wallet.place)
    world.counts["disputes"] += 1
    wallet.send(world.names.note(record, f"{wallet.person.name} disputes a hold"))


def pay_on_two_machines(world: World, random: Random) -> None:
    """An honest person's two machines sign different payments for one slot; each then frees the slot if it must."""
    wallet = world.wallets[random.choice(HONEST)]
    payees = wallet.list_payees()
    if wallet.is_busy or wallet.funds < 10:
        return
    world.counts["slots of two machines"] += 1
    signed = [wallet.sign_payment(payee, random.randint(1, wallet.funds)) for payee in random.sample(payees, 2)]
    for record in signed:
        wallet.send(record, is_honest=False)
    Unlocker(world, wallet, signed, random.getrandbits(32))
    if random.random() < 0.5:
        Unlocker(world, wallet, signed[::-1], random.getrandbits(32))


def pay_twice(world: World, random: Random) -> None:
    """Somebody signs two payments of all it has, for one slot, and hands each to other members."""
    wallet = world.wallets[random.choice(CHEATS)]
    payees = wallet.list_payees()
    if not wallet.funds or wallet.is_busy:
        return
    signed = [wallet.sign_payment(payee, wallet.funds, "all") for payee in payees[: random.choice((2, 2, 3))]]
    for record in signed:
        wallet.send(record, is_honest=False)
        world.counts["double payments"] += 1
    for _ in range(random.choice((0, 1, 2))):
        Unlocker(world, wallet, random.sample(signed, len(signed)), random.getrandbits(32), is_honest=False)


def overdraw(world: World, random: Random) -> None:
    """Somebody pays more than it has."""
    wallet = world.wallets[random.choice(CHEATS)]
    if not wallet.is_busy:
        record = wallet.sign_payment(world.stage.people[random.choice(HONEST)], wallet.funds + random.randint(1, 50))
        world.counts["overdrafts"] += 1
        for number in random.sample(list(world.machines), 2):
            world.machines[number].take_record(record.encoded)


def fight_over_person(world: World, random: Random) -> None:
    """Two members enrol two people under one tag, at the same moment."""
    federation = world.stage.federation
    tag = make_id(f"tag {random.getrandbits(32)}")
    world.counts["fights of writers"] += 1
    for number in random.sample(federation.numbers, 2):
        person = world.stage.people[random.randrange(len(world.stage.people))]
        record = world.names.note(
            federation.enrol(number, person, tag, epoch=world.epoch), f"member {number} enrols {person.name}"
        )
        Errand(world, record, lambda: None, is_honest=False)


def rotate(world: World, random: Random) -> None:
    """A person who pays honestly, or the donor, takes another key."""
    _rotate(world, random.choice([*(world.wallets[number] for number in HONEST), world.donor]))


def _rotate(world: World, wallet: Wallet) -> None:
    if wallet.is_busy or world.is_over:
        return
    if wallet is world.donor:
        for errand in world.settles:  # signed by the old key, they may come too late
            errand.is_honest = errand.is_done
    world.counts["rotations"] += 1
    wallet.send(wallet.sign_rotation())


def let_epoch_pass(world: World, random: Random) -> None:
    """An hour passes in which nothing happens: the epoch changes and its grace ends. Honest people sign anew what was
    not final by then, and free its slot."""
    if world.leap_seconds or any(change.is_voted_on for change in world.changes):
        return
    world.tell("an hour passes")
    world.leap_seconds = EPOCH_SECONDS + GRACE_SECONDS
    for errand in world.settles:
        errand.is_honest = errand.is_done
    for unlocker in world.unlockers:
        if unlocker.is_honest and not unlocker.is_done:
            unlocker.signed.insert(0, unlocker.wallet.renew(unlocker.signed[0]))
    for wallet in (*(world.wallets[number] for number in HONEST), world.donor):
        if wallet.is_busy and wallet.errand is not None and not wallet.errand.is_done:
            wallet.errand.is_honest = False
            record = wallet.errand.record
            Unlocker(world, wallet, [wallet.renew(record), record], random.getrandbits(32))


WORKS: dict[str, tuple[Work, int]] = {
    "pay": (pay, 6),
    "buy_job": (buy_job, 2),
    "pay_on_two_machines": (pay_on_two_machines, 4),
    "pay_twice": (pay_twice, 5),
    "rotate": (rotate, 1),
    "overdraw": (overdraw, 1),
    "let_epoch_pass": (let_epoch_pass, 1),
    "fight_over_person": (fight_over_person, 1),
    "amend": (amend, 0),
}
"""Name -> what is done, and how often a plan chooses it beside what it must choose."""
