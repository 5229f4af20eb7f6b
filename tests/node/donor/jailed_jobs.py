"""Agents of each kind, each in a process of its own, and what jobs of theirs did."""

from __future__ import annotations

import json
import os
import traceback
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from node.donor.executors import cgroups
from node.donor.executors.executor import JobCommand, Limits, Outcome
from node.donor.executors.sandbox import Sandbox, compute_group_prefix

MEBIBYTE = 1 << 20
ORDINARY_USER = 64_123  # nobody's; only the process that plays the ordinary user's agent has it
PYTHON = "/usr/bin/python3"

Scene = Callable[[Sandbox], Awaitable[dict[str, Any]]]

DAEMON = """
import os, signal, time
for number in set(range(1, 32)) - {signal.SIGCHLD}:
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for descriptor in range(3):
            os.close(descriptor)
        time.sleep(600)
    os._exit(0)
os.wait()
"""


def fork_agent(agent: str, home: Path, play: Callable[[], None]) -> int:
    """Runs `play` in a process of its own, under the agent's user; its process id."""
    if agent == "ordinary" and os.geteuid() == 0:
        os.chown(home, ORDINARY_USER, ORDINARY_USER)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the threads that trio keeps are idle
        process = os.fork()
    if process:
        return process
    try:
        os.chdir("/")
        if agent == "ordinary" and os.geteuid() == 0:
            os.setgroups([])
            os.setgid(ORDINARY_USER)
            os.setuid(ORDINARY_USER)
        play()
        os._exit(0)
    except BaseException:
        os.write(2, traceback.format_exc().encode())
        os._exit(1)


async def make_sandbox(agent: str, home: Path) -> Sandbox:
    sandbox = Sandbox(home / "jobs")
    await sandbox.sweep()
    if agent == "version 1":
        sandbox._trees = tuple(tree for tree in sandbox._trees if tree.version == 1)
    return sandbox


def play(agent: str, home: Path, scene: Scene) -> dict[str, Any]:
    """Plays a scene with a sandbox of this agent; what it returned, through JSON."""
    reader, writer = os.pipe()

    async def main() -> dict[str, Any]:
        return await scene(await make_sandbox(agent, home))

    def in_child() -> None:
        os.close(reader)
        with os.fdopen(writer, "w") as file:
            json.dump(trio.run(main), file)

    process = fork_agent(agent, home, in_child)
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read()
    assert os.waitpid(process, 0)[1] == 0
    result: dict[str, Any] = json.loads(text)
    return result


def describe(outcome: Outcome) -> dict[str, Any]:
    files = [path for path in outcome.output_directory.rglob("*") if path.is_file()]
    return {
        "state": outcome.state,
        "exit_status": outcome.exit_status,
        "wall_ms": outcome.usage.wall_ms,
        "cpu_us": outcome.usage.cpu_us,
        "memory_peak_bytes": outcome.usage.memory_peak_bytes,
        "log": outcome.log_path.read_text(),
        "output": {str(path.relative_to(outcome.output_directory)): path.read_text() for path in files},
        "left_out": outcome.output_left_out,
    }


def make_limits(**changes: float) -> Limits:
    values: dict[str, Any] = {
        "cores": 1.0,
        "memory_bytes": 128 * MEBIBYTE,
        "processes": 32,
        "disk_bytes": 8 * MEBIBYTE,
        "wall_seconds": 20.0,
    }
    return Limits(**{**values, **changes})


def make_command(program: str | tuple[str, ...], **changes: Any) -> JobCommand:
    return JobCommand(**{"program": program, "output_bytes_max": MEBIBYTE, "environment": {}, **changes})


def attempt(agent: str, home: Path, program: str | tuple[str, ...], **limits: float) -> dict[str, Any]:
    """Runs one job and tells how it went."""

    async def scene(sandbox: Sandbox) -> dict[str, Any]:
        return describe(await sandbox.run("job", make_command(program), make_limits(**limits)))

    return play(agent, home, scene)


def python(program: str) -> tuple[str, ...]:
    return (PYTHON, "-c", program)


def find_processes(marker: str) -> list[int]:
    """Living processes of this machine with this word in their command line."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if marker.encode() in Path("/proc", name, "cmdline").read_bytes():
                found.append(int(name))
        except OSError:
            continue
    return found


def find_traces(home: Path) -> list[str]:
    """Mounts, loop devices and control groups that a sandbox of this home has left."""
    traces = [line for line in Path("/proc/mounts").read_text().splitlines() if str(home) in line]
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        traces += [str(path)] if str(home) in path.read_text() else []
    prefix = compute_group_prefix(home / "jobs")
    for tree in cgroups.open_trees():
        traces += [str(path) for path in tree.parent.glob(f"{prefix}*")]
    return traces
