"""Running seeds and scenario files, and making a failure small.

A scenario file is a plan in JSON with a sentence about what it once showed. It is written when a seed fails, with all
steps taken out that the failure does not need, and replayed by a test from then on.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.simulation.checkers import Violation
from tests.simulation.faults import FAULTS
from tests.simulation.liars import LIES
from tests.simulation.network import GOOD_LINE
from tests.simulation.plan import Plan, draw_plan
from tests.simulation.works import WORKS
from tests.simulation.world import World

SCENARIOS = Path(__file__).resolve().parent / "scenarios"
SHRINK_RUNS_MAX = 400


class Outcome(NamedTuple):
    """How a run ended."""

    seed: int
    check: str
    """The check that failed; empty when everything held."""
    what: str
    counts: Counter[str]


def _list_weights(kinds: Mapping[str, tuple[object, int]]) -> dict[str, int]:
    return {name: weight for name, (_, weight) in kinds.items()}


def make_plan(seed: int) -> Plan:
    """The plan of a seed."""
    return draw_plan(seed, _list_weights(WORKS), _list_weights(FAULTS), _list_weights(LIES))


def run_plan(plan: Plan, tell: Callable[[str], None] | None = None) -> Outcome:
    """Run a plan to its end; inside `quick_signatures()` only. An exception that nobody expects is a failure, too."""
    world = World(plan, tell)
    check = what = ""
    try:
        world.run()
    except Violation as violation:
        check, what = violation.check, str(violation)
    except Exception as error:
        check, what = f"no {type(error).__name__}", f"{type(error).__name__}: {error} {_find_place(error)}"
    if tell is not None:
        world.tell(what or "everything held")
    return Outcome(plan.seed, check, what, world.counts + world.network.counts)


def _find_place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"at {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else ""


def run_seeds(seeds: Iterable[int]) -> list[Outcome]:
    """Each seed once."""
    return [run_plan(make_plan(seed)) for seed in seeds]


def shrink(plan: Plan, check: str) -> Plan:
    """A smaller plan that fails the same check: first large parts are left out, then single steps."""
    runs = 0

    def fails(candidate: Plan) -> bool:
        nonlocal runs
        runs += 1
        return runs <= SHRINK_RUNS_MAX and run_plan(candidate).check == check

    for simpler in (plan._replace(line=GOOD_LINE), plan._replace(line=plan.line._replace(slow_permille=0))):
        if fails(simpler):
            plan = simpler
            break
    size = max(1, len(plan.steps) // 2)
    while size:
        start = 0
        while start < len(plan.steps):
            candidate = plan._replace(steps=plan.steps[:start] + plan.steps[start + size :])
            if fails(candidate):
                plan = candidate
            else:
                start += size
        size //= 2
    return plan


class Scenario(NamedTuple):
    """A plan that once failed."""

    name: str
    why: str
    """What it shows, in one sentence."""
    plant: str
    """The planted fault with which it fails; empty when it must hold as it is, and did not once."""
    check: str
    """The check that failed."""
    plan: Plan

    def write(self) -> Path:
        """Keep it beside the others."""
        content = self.plan.to_mapping()
        head = {"why": self.why, "plant": self.plant, "check": self.check}
        steps = ",\n  ".join(map(json.dumps, content.pop("steps")))
        body = json.dumps({**head, "plan": {**content, "steps": []}}, ensure_ascii=False)
        path = SCENARIOS / f"{self.name}.json"
        path.write_text(body[: -len("]}}")] + f"\n  {steps}\n]}}}}\n", encoding="utf-8")
        return path


def read_scenario(path: Path) -> Scenario:
    """A scenario file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    plan = Plan.from_mapping(content["plan"])
    return Scenario(path.stem, content["why"], content["plant"], content["check"], plan)


def list_scenarios() -> list[Path]:
    """All scenario files."""
    return sorted(SCENARIOS.glob("*.json"))
