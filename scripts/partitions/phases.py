"""Seven real nodes, each on a machine of its own, while the network between them fails in one way after the other."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from scripts.benchmarks.federation_in_memory import Cast
from scripts.benchmarks.local_federation import LocalFederation
from scripts.partitions.load import Load, describe
from scripts.partitions.namespaces import Namespaces

MEMBERS = 7
PEOPLE = 28
PAYMENTS_PER_SECOND = 1
"""In all. With seven members each payment alone makes fourteen batches, which each node hears; seven nodes on two
cores can't do much more, and latencies would tell of the processors."""

DELAY_MS, JITTER_MS, LOSS_PERMILLE = 200, 20, 50
CONVERGENCE_SECONDS_MAX = 180


class SpreadFederation(LocalFederation):
    """Nodes in namespaces."""

    def __init__(self, folder: Path, cast: Cast, machines: Namespaces) -> None:
        self._machines = machines
        super().__init__(folder, cast)

    def choose_p2p(self, number: int) -> str:
        """On its own machine."""
        return f"/ip4/{self._machines.get_address(number)}/tcp/4001"

    def choose_http(self, number: int) -> str:
        """On its own machine."""
        return f"{self._machines.get_address(number)}:8080"

    def make_command(self, number: int) -> list[str]:
        """On its own machine."""
        return self._machines.wrap(number, super().make_command(number))


class _Course:
    """The phases, one after the other, and what was seen in each."""

    def __init__(self, machines: Namespaces, federation: SpreadFederation, load: Load) -> None:
        self._machines = machines
        self._federation = federation
        self._load = load
        self.phases: dict[str, dict[str, object]] = {}

    def fail(self, name: str, seconds: float, fault: Callable[[], None]) -> None:
        """People go on paying while something is wrong with the network."""
        print(f"{name} ...", file=sys.stderr, flush=True)
        fault()
        started = time.monotonic()
        self._load.go_on()
        time.sleep(seconds)
        self.phases[name] = describe(self._load.payments, started, time.monotonic())

    def heal(self, name: str, seconds: float) -> None:
        """The network is well again: nobody pays until all nodes are equal and nothing waits, then people go on."""
        print(f"{name} ...", file=sys.stderr, flush=True)
        self._load.hold()
        self._machines.heal()
        started = time.monotonic()
        while self._load.count_waiting():
            if time.monotonic() - started > CONVERGENCE_SECONDS_MAX:
                raise TimeoutError(f"{self._load.count_waiting()} payments still wait after {name}")
            time.sleep(0.05)
        nothing_waits = time.monotonic()
        self._federation.wait_equal(CONVERGENCE_SECONDS_MAX)
        converged = time.monotonic()
        self._load.go_on()
        time.sleep(seconds)
        self.phases[name] = describe(self._load.payments, started, time.monotonic()) | {
            "all_final_after_seconds": round(nothing_waits - started, 1),
            "all_equal_after_seconds": round(converged - started, 1),
        }


def measure(minutes: float) -> dict[str, object]:
    """Go through all phases. Raises: TimeoutError when the nodes don't become equal again."""
    unit = minutes * 60 / 6.5
    numbers = range(1, MEMBERS + 1)
    with Namespaces(numbers) as machines, tempfile.TemporaryDirectory() as folder:
        cast = Cast(MEMBERS, PEOPLE)
        with SpreadFederation(Path(folder), cast, machines) as federation:
            print("granting credits ...", file=sys.stderr, flush=True)
            for group in cast.make_setup():
                with federation.client(1) as client:
                    for record in group:
                        assert client.submit(record.encoded, 60).receipt is not None, "no quorum in a calm network"
            federation.wait_equal()
            load = Load(federation, PEOPLE, PEOPLE / PAYMENTS_PER_SECOND)
            course = _Course(machines, federation, load)
            try:
                course.fail("calm", unit, lambda: None)
                course.fail("two of seven cut off", unit, lambda: machines.cut({6, 7}))
                course.fail("three of seven cut off", unit, lambda: machines.cut({5, 6, 7}))
                course.heal("healed", unit)
                disturb = lambda: machines.disturb(DELAY_MS, JITTER_MS, LOSS_PERMILLE)  # noqa: E731
                course.fail(f"{DELAY_MS} ms late, {LOSS_PERMILLE / 10:g} % lost", 1.5 * unit, disturb)
                course.heal("healed again", unit)
                load.hold()
                while load.count_waiting():
                    time.sleep(0.05)
                final = federation.wait_equal(CONVERGENCE_SECONDS_MAX)
            finally:
                load.stop()
    return {
        "members": MEMBERS,
        "clients": PEOPLE,
        "phases": course.phases,
        "payments": len(load.payments),
        "refusals": load.failures,
        "state_root": final.state_root,
    }
