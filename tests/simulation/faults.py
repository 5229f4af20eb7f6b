"""What breaks: power, disks, clocks and the network between correct members."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from tests.simulation.machines import RESTART_SECONDS, Machine
from tests.simulation.plan import STEP_MS_MAX

if TYPE_CHECKING:
    from tests.simulation.world import World

Fault = Callable[["World", Random], None]

CLOCK_JUMPS_SECONDS = (-4000.0, -30.0, -0.5, 0.3, 45.0, 3000.0, 3700.0, 90_000.0)
"""Within an epoch of an hour, to the one before and after, and far away."""


def _choose(world: World, random: Random) -> Machine:
    return random.choice(world.correct)


def cut_power(world: World, random: Random) -> None:
    """A member loses power at one of its next writes, before or after it takes effect."""
    _choose(world, random).disk.cut_power(random.randint(0, 12), random.choice(("before", "after")))


def kill(world: World, random: Random) -> None:
    """A member's process dies between two writes, and starts again after a while."""
    machine = _choose(world, random)
    if machine.is_up:
        world.tell(f"member {machine.number} dies")
        machine.stop()
        world.after(4 * RESTART_SECONDS * random.random(), machine.restart)


def jump_clock(world: World, random: Random) -> None:
    """A member's clock shows another time from now on."""
    machine = _choose(world, random)
    offset = random.choice(CLOCK_JUMPS_SECONDS)
    world.tell(f"the clock of member {machine.number} jumps to {offset:+} s")
    machine.set_clock(offset)


def part_network(world: World, random: Random) -> None:
    """Some members don't reach the others for a while."""
    numbers = list(world.machines)
    side = random.sample(numbers, random.randint(1, len(numbers) - 1))
    seconds = 4 * random.random()
    world.tell(f"members {sorted(side)} are cut off for {seconds:.1f} s")
    world.network.part(side, seconds)


def set_back(world: World, random: Random) -> None:
    """A member's disk is copied now; later it breaks and the copy is put back (spec 9.6)."""
    machine = world.machines[random.choice(world.plan.backed_up)]
    content, vote_keys = machine.disk.serialize(), machine.vote_keys.held

    def put_back() -> None:
        world.tell(f"member {machine.number} dies; an old copy of its disk is put back")
        machine.stop()
        machine.disk.fill(content)
        machine.vote_keys.hold(vote_keys)
        machine.shown_version = -1
        machine.forgotten_version = world.checkers.get_spoken_version(machine.number)
        world.culprits[machine.number] = machine.forgotten_version
        world.after(RESTART_SECONDS * random.random(), machine.restart)

    world.after((STEP_MS_MAX / 1000 - world.now) * random.random(), put_back)


FAULTS: dict[str, tuple[Fault, int]] = {
    "cut_power": (cut_power, 4),
    "kill": (kill, 1),
    "jump_clock": (jump_clock, 2),
    "part_network": (part_network, 3),
    "set_back": (set_back, 0),
}
"""Name -> what breaks, and how often a plan chooses it beside what it must choose."""
