"""Everything that a load of jobs needs, as real processes: four nodes, three donors, ten wallets with budgets.

Each donor has a sponsor of its own, so its conversations go through a node of its own; the wallets are spread over all
four. What a self-test would measure plays no part here: all donors weigh the same.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from node.client import NodeClient
from node.donor.executors.slurm_settings import SlurmSettings
from node.donor.settings import DIRECTORY_NAME, DonorHome, Score
from node.errors import UserError
from scripts.demonstration.run import GRANTER, INSTITUTIONS, found_federation, start_node
from scripts.demonstration.stage import Stage
from scripts.job_loads.chaos import Victim
from tests.node.donor.slurm_cluster import SlurmCluster

CORES = 4
MEMORY_BYTES, DISK_BYTES = 2 * 10**9, 10**9
TICK_SECONDS = 2
WEIGHT = 1000
ALLOWANCE = "100000"
POLL_SECONDS = 0.5
SIDE_BY_SIDE = 4
RESTART_SECONDS_MAX = 60.0


class Scene:
    """The processes, by their names, and the addresses of who pays and who earns."""

    def __init__(self, stage: Stage, cluster: SlurmCluster | None) -> None:
        self.stage = stage
        self.cluster = cluster
        self.donors: dict[str, str] = {}
        """Address by machine; the machine's name is the agent's and the home's."""
        self.wallets: list[str] = []

    def build(self, wallet_count: int) -> None:
        """Bring everything up; returns when the donors' offers are public. Raises: DemoFailed."""
        self._federation = found_federation(self.stage)
        machines = ["sandbox-1", "sandbox-2", *(["slurm"] if self.cluster else [])]
        self.stage.title(f"{len(machines)} donors lend machines")
        for machine, sponsor in zip(machines, INSTITUTIONS, strict=False):
            self._open_donor(machine, sponsor)
        self.stage.title(f"{wallet_count} people get their budgets")
        self._open_wallets(wallet_count)
        self.stage.wait_until("every donor's offer is public", self._has_all_offers)

    def _open_donor(self, machine: str, sponsor: str) -> None:
        stage, home = self.stage, self.stage.home(machine)
        setup = stage.allmende_json(
            "donor", "setup", "--home", home, "--node", stage.urls[sponsor], "--machine", machine,
            "--memory", "1", "--disk", "1", "--gpus", "0", "--tick", TICK_SECONDS, "-y", quiet=True,
        )  # fmt: skip
        donor = DonorHome(home / DIRECTORY_NAME)
        changes: dict[str, Any] = {"cores": CORES, "memory_bytes": MEMORY_BYTES, "disk_bytes": DISK_BYTES}
        if machine == "slurm":
            assert self.cluster is not None
            shared = str(self.cluster.shared / "jobs")
            slurm = SlurmSettings(shared, prefix=list(self.cluster.prefix), poll_seconds=POLL_SECONDS)
            changes |= {"executor": "slurm", "slurm": slurm}
        donor.save_settings(msgspec.structs.replace(donor.load_settings(), runtimes=[], **changes))
        donor.save_score(Score(WEIGHT, 1.0, 1.0, 1.0, 0))
        address = setup["address"]
        stage.allmende("member", "sponsor", address, "--epochs", "12", "--home", stage.home(sponsor), "-y", quiet=True)
        self._start_agent(machine)
        self.donors[machine] = address

    def _start_agent(self, machine: str) -> None:
        self.stage.start(machine, "donor", "start", "--home", self.stage.home(machine))

    def _open_wallets(self, count: int) -> None:
        stage, granter = self.stage, self.stage.home(GRANTER)
        stage.allmende(
            "program", "create", "Load", "--purpose", "Many short jobs", "--allowance", ALLOWANCE,
            "--expiry-epochs", "2", "--home", granter, "-y", quiet=True,
        )  # fmt: skip
        (program,) = stage.allmende_json("program", "ls", "--home", granter, quiet=True)["programs"]
        self.wallets = [f"wallet-{number}" for number in range(count)]
        with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            list(pool.map(partial(self._open_wallet, program["id"]), range(count)))
        stage.allmende("program", "approve", "--all", program["id"], "--home", granter, "-y", quiet=True)
        stage.allmende("program", "grant", program["id"], "--home", granter, "-y", quiet=True)
        for name in self.wallets:
            stage.wait_until(f"{name} has its budget", partial(self._is_funded, name))

    def _open_wallet(self, program: str, number: int) -> None:
        stage, home = self.stage, self.stage.home(self.wallets[number])
        url = stage.urls[INSTITUTIONS[number % len(INSTITUTIONS)]]
        stage.allmende("wallet", "init", "--home", home, "--node", url, "--no-passphrase", quiet=True)
        asked = ("budget", "request", program, "--home", home, "--node", stage.urls[GRANTER], "-y")
        stage.allmende(*asked, quiet=True)

    def read_balance(self, name: str) -> int:
        """Millicredits that a wallet can spend."""
        home = self.stage.home(name)
        return int(self.stage.allmende_json("wallet", "balance", "--home", home, quiet=True)["millicredits"])

    def _is_funded(self, name: str) -> bool:
        return self.read_balance(name) > 0

    def _has_all_offers(self) -> bool:
        offers = self.stage.allmende_json("offers", "--home", self.stage.home(self.wallets[0]), quiet=True)["offers"]
        return len(offers) == len(self.donors)

    def list_sandboxes(self) -> list[Path]:
        """Where donors' jobs run, where they do."""
        return [DonorHome(self.stage.home(machine) / DIRECTORY_NAME).sandbox for machine in self.donors]

    def list_victims(self) -> list[Victim]:
        """What may be killed at any moment."""
        victims = [
            Victim(machine, "agent", partial(self.stage.kill, machine), partial(self._start_agent, machine))
            for machine in self.donors
        ]
        victims += [
            Victim(name, "node", partial(self.stage.kill, name), partial(self._restart_node, name))
            for name in INSTITUTIONS
        ]
        if self.cluster is not None:
            victims.append(
                Victim("slurmctld", "scheduler", self.cluster.kill_controller, self.cluster.start_controller)
            )
        return victims

    def _restart_node(self, name: str) -> None:
        """Returns when it answers: a second node that is away would leave two of four, which are no quorum."""
        start_node(self.stage, name, self._federation)
        deadline = time.monotonic() + RESTART_SECONDS_MAX
        with NodeClient(self.stage.urls[name], RESTART_SECONDS_MAX) as client:
            while time.monotonic() < deadline:
                try:
                    client.get_status()
                    return
                except UserError:
                    time.sleep(POLL_SECONDS)
