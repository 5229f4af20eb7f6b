"""A whole federation in one process, in which time is a number and every chance follows from the seed.

Events lie on a heap by their time. People, what breaks and what faulty members do come from the plan; everything else
follows. After the last step faults stop: the network is good, clocks are right, whoever is down starts again. Then all
correct members must come to the same state, in which every honest record is final.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import lru_cache, partial
from heapq import heappop, heappush
from random import Random

from tests.simulation.changes import VERSION_MAX, Change
from tests.simulation.checkers import Checkers, Violation
from tests.simulation.disks import DiskShelf
from tests.simulation.errands import Errand, Wallet
from tests.simulation.faults import FAULTS
from tests.simulation.liars import LIES, Liar
from tests.simulation.machines import NOTHING_KNOWN, Machine
from tests.simulation.names import Names
from tests.simulation.network import Network
from tests.simulation.plan import STEP_MS_MAX, Plan, Step
from tests.simulation.stages import START_SECONDS, get_stage
from tests.simulation.unlocking import Unlocker
from tests.simulation.works import HONEST, WORKS

SETTLE_SECONDS_MAX = 40.0
CHECK_SECONDS = 0.25
EVENTS_MAX = 60_000
"""Many times what a run needs: beyond it members talk without end."""


@lru_cache(maxsize=16)
def _get_shelf(federation: bytes) -> DiskShelf:
    return DiskShelf(federation)


class World:
    """One run of a plan."""

    def __init__(self, plan: Plan, tell: Callable[[str], None] | None = None) -> None:
        """`tell` gets the trace, line by line."""
        self.plan = plan
        self.stage = get_stage(plan.weights)
        self.random = Random(f"world {plan.seed}")
        self.now = 0.0
        self.leap_seconds = 0.0
        """Hours in which nothing happened."""
        self.is_over = False
        """True when the last errand was sent off: nothing new begins."""
        self.is_telling = tell is not None
        self.counts: Counter[str] = Counter()
        self.names = Names()
        self.errands: list[Errand] = []
        self.unlockers: list[Unlocker] = []
        self.settles: list[Errand] = []
        self.changes: list[Change] = []
        self.paid_version = 0
        """The last charter version under which somebody paid for the sake of the check alone."""
        self.culprits = dict.fromkeys(plan.faulty, VERSION_MAX)
        """Members that may contradict themselves, and up to which charter version; one whose disk was set back belongs
        to them from then on."""
        self._tell = tell
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._event_count = 0
        self.network = Network(plan.line, Random(f"network {plan.seed}"), self.after)
        self.checkers = Checkers(self)
        shelf = _get_shelf(self.stage.federation.id)
        self.machines: dict[int, Machine] = {}
        for number in (*self.stage.federation.numbers, *plan.newcomers):
            make = Liar if number in plan.faulty else Machine
            self.machines[number] = make(self, number, shelf.take(number, self.stage.content))
        self.correct = [machine for machine in self.machines.values() if not machine.is_faulty]
        self.wallets = [Wallet(self, person) for person in self.stage.people]
        self.donor = Wallet(self, self.stage.economy.donor)

    # -- time -----------------------------------------------------------------------------------------------------

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        """Let something happen later."""
        self._event_count += 1
        heappush(self._events, (self.now + seconds, self._event_count, event))

    def _run_until(self, end: float) -> None:
        while self._events and self._events[0][0] <= end:
            self.now, number, event = heappop(self._events)
            if number > EVENTS_MAX:
                raise Violation("members fall silent", f"more than {EVENTS_MAX} events")
            event()
        self.now = end

    @property
    def epoch(self) -> int:
        """The epoch by a right clock."""
        return self.stage.charter.compute_epoch(int(START_SECONDS + self.now + self.leap_seconds))

    # -- telling --------------------------------------------------------------------------------------------------

    def tell(self, what: str) -> None:
        """A line of the trace."""
        if self._tell is not None:
            self._tell(f"{self.now:7.3f} s  {what}")

    def note(self, kind: str, what: str) -> None:
        """Count something that broke, and tell of it."""
        self.counts[kind] += 1
        self.tell(what)

    # -- the run --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Raises: Violation."""
        for machine in self.machines.values():
            machine.power_on()
            for peer in self.machines.values():
                machine.note_heard(peer, NOTHING_KNOWN)
        for step in self.plan.steps:
            self.after(step.at_ms / 1000, partial(self._take, step))
        self._run_until(STEP_MS_MAX / 1000)
        self._stop_faults()
        self._settle()
        self.checkers.check_end()

    def act(self, kind: str, choice: int) -> None:
        """Something more than the plan's steps, unless faults have stopped."""
        if self.now * 1000 < STEP_MS_MAX:
            self._take(Step(0, kind, choice))

    def _take(self, step: Step) -> None:
        random = Random(step.choice)
        self.counts[step.kind] += 1
        if step.kind in LIES:
            liar = self.machines[random.choice(self.plan.faulty)]
            assert isinstance(liar, Liar)
            LIES[step.kind][0](liar, random)
        else:
            act = WORKS[step.kind] if step.kind in WORKS else FAULTS[step.kind]
            act[0](self, random)

    def _stop_faults(self) -> None:
        self.tell("faults stop")
        self.network.heal()
        for machine in self.machines.values():
            if machine.is_faulty:
                machine.stop()
                continue
            machine.disk.writes_left = -1
            machine.restart()
            machine.set_clock(0.0)

    def _settle(self) -> None:
        """Wait until all are equal. When logs were forked, or members left, payments make each member name what it
        holds of logs that others ignore."""
        end = self.now + SETTLE_SECONDS_MAX
        while self.now < end and not self.checkers.is_settled():
            self._run_until(self.now + CHECK_SECONDS)
            payer, payee = (self.wallets[number] for number in HONEST)
            if self._are_logs_ignored() and not payer.is_busy and payer.funds:
                payer.send(payer.sign_payment(payee.person, 1, "to name branches"))
            self._pay_after_change()
        self.is_over = True

    def _are_logs_ignored(self) -> bool:
        replica = self.checkers.replica
        charters = [charter.members.keys() for charter in replica.ledger.charters.values()]
        return bool(replica.forks) or any(members - replica.charter.members.keys() for members in charters)

    def _pay_after_change(self) -> None:
        """Once a change is in force, somebody pays."""
        payers = [self.wallets[number] for number in HONEST if self.wallets[number].funds]
        version = self.checkers.replica.version
        if not payers:
            self.paid_version = version
        for payer in payers:
            if self.paid_version < version and not payer.is_busy:
                self.paid_version = version
                payer.send(payer.sign_payment(payer.list_payees()[0], 1, "after the change"))

    def list_doors(self) -> list[int]:
        """Members where people hand in: of the charter in force, with a node that answers; if there is none, any."""
        named = [number for number in self.machines if number in self.checkers.replica.charter.members]
        return [number for number in named if self.machines[number].is_up] or named
