"""Machines on one machine: network namespaces that a bridge joins, with faults between them.

Each has an address of its own; the machine itself is on the bridge, too, and no fault touches what it says. All names
carry the process id, so that two runs never meet; leaving the block removes everything, whatever happened inside.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from types import TracebackType

PREFIX = "10.213.77"
HOST_ADDRESS = f"{PREFIX}.254"
QUEUE = 7
REQUIRED = {"ip": "iproute2", "iptables": "iptables"}
DELAYING = Path(__file__).with_name("delaying.py")


def find_obstacle() -> str | None:
    """Why no namespaces can be made here, in one line, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [package for command, package in REQUIRED.items() if shutil.which(command) is None]
    if missing:
        return f"missing: {' '.join(missing)} (apt-get install {' '.join(missing)})"
    if f" {PREFIX}." in _run("ip", "-o", "-4", "addr"):
        return f"the addresses {PREFIX}.0/24 are in use here"
    return None


def _run(*command: str, text: str | None = None) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
    return done.stdout


class Namespaces:
    """So many machines, numbered from 1. Use as a context manager."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers = list(numbers)
        self._bridge = f"alm{os.getpid()}"
        self._delaying: list[subprocess.Popen[str]] = []

    def get_address(self, number: int) -> str:
        """The IP address of a machine."""
        return f"{PREFIX}.{number}"

    def get_name(self, number: int) -> str:
        """The name of its namespace."""
        return f"allmende-{os.getpid()}-{number}"

    def wrap(self, number: int, command: Sequence[str]) -> list[str]:
        """A command that runs on that machine."""
        return ["ip", "netns", "exec", self.get_name(number), *command]

    def __enter__(self) -> Namespaces:
        try:
            _run("ip", "link", "add", self._bridge, "type", "bridge")
            _run("ip", "addr", "add", f"{HOST_ADDRESS}/24", "dev", self._bridge)
            _run("ip", "link", "set", self._bridge, "up")
            for number in self.numbers:
                self._add(number)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _add(self, number: int) -> None:
        name, outside = self.get_name(number), f"{self._bridge}v{number}"
        _run("ip", "netns", "add", name)
        _run("ip", "link", "add", outside, "type", "veth", "peer", "name", "net", "netns", name)
        _run("ip", "link", "set", outside, "master", self._bridge, "up")
        _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("ip", "-n", name, "addr", "add", f"{self.get_address(number)}/24", "dev", "net")
        _run("ip", "-n", name, "link", "set", "net", "up")

    def _remove(self) -> None:
        self._stop_delaying()
        for command in (
            *(["ip", "netns", "delete", self.get_name(number)] for number in self.numbers),
            # A namespace takes its links with it, in a while: nobody waits for that.
            *(["ip", "link", "delete", f"{self._bridge}v{number}"] for number in self.numbers),
            ["ip", "link", "delete", self._bridge],
        ):
            subprocess.run(command, capture_output=True, check=False)

    # -- faults -----------------------------------------------------------------------------------------------------

    def cut(self, side: Collection[int]) -> None:
        """Nothing passes between these machines and the others, in either direction."""
        for number in self.numbers:
            others = [self.get_address(other) for other in self.numbers if (other in side) != (number in side)]
            self._add_rule(number, "-s", ",".join(others), "-j", "DROP")

    def disturb(self, delay_ms: int, jitter_ms: int, loss_permille: int) -> None:
        """Each packet from one machine to another comes late, or not at all."""
        for number in self.numbers:
            arguments = map(str, (QUEUE, delay_ms, jitter_ms, loss_permille, number))
            process = subprocess.Popen(
                self.wrap(number, [sys.executable, str(DELAYING), *arguments]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            self._delaying.append(process)
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise OSError("packets can't be delayed here: the kernel has no NFQUEUE")
            others = [self.get_address(other) for other in self.numbers if other != number]
            self._add_rule(number, "-s", ",".join(others), "-j", "NFQUEUE", "--queue-num", str(QUEUE))

    def heal(self) -> None:
        """Everything passes."""
        for number in self.numbers:
            _run(*self.wrap(number, ["iptables", "-F", "INPUT"]))
        self._stop_delaying()

    def _add_rule(self, number: int, *rule: str) -> None:
        _run(*self.wrap(number, ["iptables", "-A", "INPUT", *rule]))

    def _stop_delaying(self) -> None:
        for process in self._delaying:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._delaying.clear()
