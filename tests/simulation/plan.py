"""What happens in one run, decided beforehand: who is faulty, what people do, what breaks, and when.

A plan follows from its seed alone. It is a list of steps, each of which draws what else it needs from a number of its
own; so steps can be taken out one by one, and what is left does the same as before. That is how a failure is shrunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any, NamedTuple

from protocol.charter import compute_quorum
from tests.simulation.stages import WEIGHTS

STEP_MS_MAX = 8_000
"""Everything begins within so many milliseconds of simulated time; then faults stop."""

MESSAGES_GOAL = 200
"""Batches times members that a run should come to, about: it bounds the work of a seed."""

CHANGE_SHARE = 0.3
"""Of the plans, in so many the charter changes."""


class Step(NamedTuple):
    """One thing that somebody does or that breaks."""

    at_ms: int
    kind: str
    choice: int
    """Seed of everything that the step decides."""


class Line(NamedTuple):
    """How the network treats messages until faults stop."""

    delay_ms: int
    """Mean of the usual delay."""
    loss_permille: int
    repeat_permille: int
    slow_permille: int
    """Messages that take seconds, so that later ones overtake them."""


class Plan(NamedTuple):
    """A whole run."""

    seed: int
    weights: tuple[int, ...]
    faulty: tuple[int, ...]
    """Members that say what they like."""
    backed_up: tuple[int, ...]
    """Correct members whose disk is set back; they weigh as faulty ones (spec 9.6)."""
    line: Line
    steps: tuple[Step, ...]
    newcomers: tuple[int, ...] = ()
    """Institutions that the charter does not name at the start; an amendment may."""

    def to_mapping(self) -> dict[str, Any]:
        """For a scenario file."""
        return self._asdict()

    @classmethod
    def from_mapping(cls, value: Mapping[str, Any]) -> Plan:
        """What `to_mapping` gave, and JSON carried."""
        return cls(
            value["seed"],
            tuple(value["weights"]),
            tuple(value["faulty"]),
            tuple(value["backed_up"]),
            Line._make(value["line"]),
            tuple(Step._make(step) for step in value["steps"]),
            tuple(value.get("newcomers", ())),
        )


def draw_plan(seed: int, works: Mapping[str, int], faults: Mapping[str, int], lies: Mapping[str, int]) -> Plan:
    """The plan of a seed. The mappings give the kinds of steps and how often each is chosen: of people, of what
    breaks, and of what faulty members do."""
    random = Random(f"plan {seed}")
    weights = random.choice(WEIGHTS)
    culprits = _draw_culprits(weights, random)
    faulty = tuple(number for number in culprits if random.random() < 0.8)
    backed_up = tuple(number for number in culprits if number not in faulty)
    line = Line(
        random.choice((5, 20, 60)),
        random.choice((0, 0, 50, 200)),
        random.choice((0, 50)),
        random.choice((0, 20, 100)),
    )
    steps = _draw_steps(random, works, max(2, MESSAGES_GOAL // (2 * len(weights) ** 2)))
    steps += _draw_steps(random, faults, random.choice((0, 2, 4, 8)))
    if faulty:
        steps += _draw_steps(random, lies, random.choice((1, 3, 6)) * len(faulty))
    if backed_up:
        steps += _draw_steps(random, {"set_back": 1}, 1)
    changes, newcomers = _draw_changes(random, len(weights))
    return Plan(seed, weights, faulty, backed_up, line, tuple(sorted(steps + changes)), newcomers)


def _draw_changes(random: Random, member_count: int) -> tuple[list[Step], tuple[int, ...]]:
    """Amendments of the charter in a share of the plans, and who may join by them."""
    if random.random() >= CHANGE_SHARE:
        return [], ()
    newcomers = (member_count + 1,) if random.random() < 0.7 else ()
    return _draw_steps(random, {"amend": 1}, random.choice((1, 1, 2))), newcomers


def _draw_culprits(weights: tuple[int, ...], random: Random) -> list[int]:
    """Members, in order of their numbers, that together weigh less than a third; in some runs none."""
    numbers = list(range(1, len(weights) + 1))
    random.shuffle(numbers)
    left = random.choice((0, 1, 1, 1)) * (sum(weights) - compute_quorum(sum(weights)))
    culprits = []
    for number in numbers:
        if weights[number - 1] <= left:
            left -= weights[number - 1]
            culprits.append(number)
    return sorted(culprits)


def _draw_steps(random: Random, kinds: Mapping[str, int], count: int) -> list[Step]:
    chosen = random.choices(list(kinds), list(kinds.values()), k=count)
    return [Step(random.randrange(STEP_MS_MAX), kind, random.getrandbits(32)) for kind in chosen]
