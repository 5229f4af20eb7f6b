"""A federation of real node processes on loopback, each with its home and its SQLite file.

For benchmarks and for tests that kill nodes. Processes are ended by their own ids when the block is left.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from node import api
from node.addresses import Kind, encode_address
from node.client import NodeClient
from node.config import Federation, NodeConfig, encode_json, make_home, write_config
from node.errors import UserError
from node.keystore import save_key
from scripts.benchmarks.federation_in_memory import Cast
from scripts.loopback import find_free_port

START_SECONDS = 60
POLL_SECONDS = 0.05


def wait_until(condition: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
    """Raises: TimeoutError when the condition does not come to hold in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s in vain until {what}")
        time.sleep(POLL_SECONDS)


class LocalFederation:
    """The nodes of a cast's members as processes. Use as a context manager."""

    def __init__(self, folder: Path, cast: Cast) -> None:
        self.cast = cast
        self.numbers = list(cast.member_keys)
        self.homes = {number: folder / f"node-{number}" for number in self.numbers}
        self.urls: dict[int, str] = {}
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self._write_homes()

    def _write_homes(self) -> None:
        charter = self.cast.founded.charter
        addresses = {member.name: self.choose_p2p(number) for number, member in charter.members.items()}
        text = encode_address(Kind.FEDERATION, charter.federation)
        federation = encode_json(Federation(self.cast.founded.encode(), text, addresses))
        for number, member in charter.members.items():
            home = make_home(self.homes[number])
            http = self.choose_http(number)
            self.urls[number] = f"http://{http}"
            config = NodeConfig(member.name, addresses[member.name], http, log_level="warning")
            write_config(home.config, config)
            home.federation.write_bytes(federation)
            keys = (self.cast.member_keys, self.cast.vote_keys, self.cast.peer_keys)
            for (purpose, path), private in zip(home.keys, keys, strict=True):
                save_key(path, private[number].private_bytes_raw(), None, purpose=purpose)

    def choose_p2p(self, number: int) -> str:
        """Where a node listens for the others."""
        return f"/ip4/127.0.0.1/tcp/{find_free_port()}"

    def choose_http(self, number: int) -> str:
        """Where a node listens for people."""
        return f"127.0.0.1:{find_free_port()}"

    def make_command(self, number: int) -> list[str]:
        """What starts a node."""
        return [str(Path(sys.executable).parent / "allmende"), "node", "run", "--home", str(self.homes[number])]

    def __enter__(self) -> Self:
        try:
            for number in self.numbers:
                self.start(number)
            for number in self.numbers:
                self.wait_ready(number)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End all nodes that run."""
        for process in self.processes.values():
            process.terminate()
        for number in list(self.processes):
            self.end(number)

    def start(self, number: int, *options: str) -> None:
        """Start a node's process."""
        with (self.homes[number] / "log").open("ab") as log:
            self.processes[number] = subprocess.Popen(
                [*self.make_command(number), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def end(self, number: int) -> None:
        """Wait for a process that was asked to end; kill it when it takes too long."""
        process = self.processes.pop(number)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def kill(self, number: int) -> None:
        """kill -9."""
        process = self.processes.pop(number)
        process.kill()
        process.wait()

    def client(self, number: int, timeout_seconds: float = 40) -> NodeClient:
        """A client of one node."""
        return NodeClient(self.urls[number], timeout_seconds)

    def read_status(self, number: int) -> api.Status | None:
        """A node's status, or None while it does not answer."""
        try:
            with self.client(number, 5) as client:
                return client.get_status()
        except UserError:
            return None

    def wait_ready(self, number: int) -> None:
        """Wait until a node answers and is connected to all members that run."""
        others = len(self.processes.keys() & set(self.numbers) - {number})

        def is_ready() -> bool:
            assert self.processes[number].poll() is None, (self.homes[number] / "log").read_text()[-2000:]
            status = self.read_status(number)
            return status is not None and sum(peer.is_connected for peer in status.peers) >= others

        try:
            wait_until(is_ready, f"node {number} is ready")
        except TimeoutError as error:
            logs = {other: (home / "log").read_text()[-1000:] for other, home in self.homes.items()}
            raise TimeoutError(f"{error}: {self.read_status(number)}; logs: {logs}") from None

    def wait_equal(self, seconds: float = START_SECONDS) -> api.Status:
        """Wait until the nodes of all `numbers` have one frontier and one state root; returns one status. One that left
        the federation may hold a batch of its own that no other takes in any more."""
        found: list[api.Status] = []

        def are_equal() -> bool:
            statuses = [self.read_status(number) for number in self.processes if number in self.numbers]
            found[:] = [status for status in statuses if status is not None]
            return len(found) == len(statuses) and len({(s.frontier, s.state_root) for s in found}) == 1

        wait_until(are_equal, "all nodes agree", seconds)
        return found[0]
