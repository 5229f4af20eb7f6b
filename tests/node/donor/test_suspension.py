"""Jobs that are made to stand still, go on, and are copied meanwhile; under each kind of agent.

The superuser's agent has the freezer of a control group, of either version; an ordinary user's stops each process.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from node.donor.executors import cgroups
from node.donor.executors.executor import JobHandle, JobLost
from node.donor.executors.sandbox import Sandbox
from tests.node.donor.jailed_jobs import (
    MEBIBYTE,
    describe,
    find_processes,
    find_traces,
    fork_agent,
    make_command,
    make_limits,
    make_sandbox,
    play,
    python,
)

# Each process counts in a file of its own: one that ignores whatever signal it can, a daemon, one whose first thread
# has ended, and one that wakes all others.
COUNTERS = """
import ctypes, os, signal, threading, time
def count(name):
    number = 0
    while True:
        number += 1
        with open(f"checkpoint/{name}.new", "w") as file:
            file.write(str(number))
        os.rename(f"checkpoint/{name}.new", f"checkpoint/{name}")
        if name == "waker":
            try:
                os.kill(-1, signal.SIGCONT)
            except OSError:
                pass
def ignore():
    for number in set(range(1, 32)) - {signal.SIGCHLD}:
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
for name in ("deaf", "daemon", "headless", "waker"):
    if os.fork() == 0:
        if name == "deaf":
            ignore()
        if name == "daemon":
            os.setsid()
            if os.fork():
                os._exit(0)
        if name == "headless":
            threading.Thread(target=count, args=(name,)).start()
            ctypes.CDLL(None).syscall(60 if os.uname().machine == "x86_64" else 93, 0)
        count(name)
while len([name for name in os.listdir("checkpoint") if "." not in name]) < 4:
    time.sleep(0.01)
print("up", flush=True)
time.sleep(600)
"""


@pytest.fixture(params=["superuser", "version 1", "ordinary"])
def agent(request) -> str:
    kind = str(request.param)
    if kind != "ordinary" and os.geteuid() != 0:
        pytest.skip("these tests run as an ordinary user: nothing to test as the superuser")
    if kind == "version 1" and not any(tree.version == 1 for tree in cgroups.open_trees()):
        pytest.skip("this machine has no control groups of version 1")
    return kind


@asynccontextmanager
async def running(
    sandbox: Sandbox, program: str, told: dict[str, Any] | None = None, **limits: float
) -> AsyncIterator[JobHandle]:
    """A job that has said `up`; it is stopped in the end, and its outcome described in `told`."""

    async def run(task_status: trio.TaskStatus[JobHandle]) -> None:
        outcome = await sandbox.run(
            "job", make_command(python(program)), make_limits(**limits), task_status=task_status
        )
        if told is not None:
            told.update(describe(outcome))

    async with trio.open_nursery() as nursery:
        handle: JobHandle = await nursery.start(run)
        with trio.fail_after(30):
            while b"up" not in handle.read_log_tail(100):
                await trio.sleep(0.01)
        yield handle
        handle.stop()


async def copy(handle: JobHandle, target: Path, bytes_max: int = MEBIBYTE) -> Any:
    """The files of a copied checkpoint, or none."""
    target.mkdir()
    if not await trio.to_thread.run_sync(handle.copy_checkpoint, target, bytes_max):
        return None
    return {path.name: path.read_text() for path in target.iterdir() if path.suffix != ".new"}


def test_a_suspended_job_does_nothing_and_goes_on_when_it_is_resumed(agent, home):
    async def scene(sandbox: Sandbox) -> dict[str, Any]:
        async with running(sandbox, COUNTERS) as handle:
            handle.suspend()
            handle.suspend()
            first, second = [await copy(handle, home / name) for name in ("first", "second")]
            wall_ms = handle.usage().wall_ms
            third = await copy(handle, home / "third")
            is_time_still = handle.usage().wall_ms == wall_ms
            handle.resume()
            handle.resume()
            latest, number = third, 0
            with trio.move_on_after(20):
                while any(latest[name] == third[name] for name in third):
                    latest, number = await copy(handle, home / str(number)), number + 1
            later = {name: int(latest[name]) > int(third[name]) for name in third}
            is_time_running = handle.usage().wall_ms > wall_ms
        return {"copies": [first, second, third], "later": later, "time": [is_time_still, is_time_running]}

    told = play(agent, home, scene)
    first, second, third = told["copies"]
    assert set(first) == {"deaf", "daemon", "headless", "waker"}
    assert first == second == third
    assert all(told["later"].values())
    assert told["time"] == [True, True]


def test_the_wall_time_does_not_pass_while_a_job_stands_still(agent, home):
    async def scene(sandbox: Sandbox) -> dict[str, Any]:
        told: dict[str, Any] = {}
        async with running(sandbox, "print('up', flush=True)\nwhile True: pass", told, wall_seconds=1.0) as handle:
            handle.suspend()
            ran_ms = handle.usage().wall_ms
            until = time.monotonic() + 1.2
            while time.monotonic() < until:
                assert handle.usage().wall_ms == ran_ms
                await trio.sleep(0.05)
            handle.resume()
            with trio.fail_after(20):
                while handle.usage().wall_ms < 1000:
                    await trio.sleep(0.01)
                while "state" not in told:
                    await trio.sleep(0.01)
        return told

    told = play(agent, home, scene)
    assert told["state"] == "walltime"
    assert 1000 <= told["wall_ms"] < 5000


def test_a_checkpoint_is_copied_as_it_is_at_one_moment(agent, home):
    program = """
import os
os.ftruncate(os.open("checkpoint/large", os.O_CREAT | os.O_RDWR), 3 << 20)
first, last = open("checkpoint/a", "w"), open("checkpoint/z", "w")
for number in range(1 << 40):
    for file in (first, last):
        os.pwrite(file.fileno(), b"%d" % number, 0)
    if number == 0:
        print("up", flush=True)
"""

    async def scene(sandbox: Sandbox) -> dict[str, Any]:
        async with running(sandbox, program) as handle:
            copies = [await copy(handle, home / str(number), 8 * MEBIBYTE) for number in range(5)]
        return {"copies": [[int(copied["a"]), int(copied["z"])] for copied in copies]}

    copies = play(agent, home, scene)["copies"]
    assert all(first - last in (0, 1) for first, last in copies)
    assert copies[0][0] < copies[-1][0]


@pytest.mark.parametrize(
    "program",
    [
        "pass",
        "os.rmdir('checkpoint')",
        "os.rmdir('checkpoint'); os.symlink('/usr/lib/python3', 'checkpoint')",
        "os.rmdir('checkpoint'); os.mkfifo('checkpoint')",
        "os.mkdir('checkpoint/folder')",
        "write('a'); os.symlink('/etc/passwd', 'checkpoint/b')",
        "write('a'); os.mkfifo('checkpoint/b')",
        "write('a'); write('b', 1 << 20)",
        "write('a'); write(b'\\xff')",
        "write('a'); os.chmod('checkpoint', 0)",
    ],
)
def test_what_is_no_whole_checkpoint_is_none(home, program):
    """As an ordinary user, whom the rights of files stop as well."""
    prelude = """
import os, time
def write(name, size=10):
    with open(os.path.join(b"checkpoint", os.fsencode(name)), "wb") as file:
        file.write(bytes(size))
"""

    async def scene(sandbox: Sandbox) -> dict[str, Any]:
        async with running(sandbox, f"{prelude}{program}\nprint('up', flush=True)\ntime.sleep(600)") as handle:
            return {"copied": await copy(handle, home / "copied")}

    assert play("ordinary", home, scene) == {"copied": None}


def test_the_checkpoint_of_an_earlier_run_stands_there_at_the_start(agent, home):
    (home / "inputs" / "checkpoint").mkdir(parents=True)
    (home / "inputs" / "checkpoint" / "step").write_text("7")

    async def scene(sandbox: Sandbox) -> dict[str, Any]:
        command = make_command("cat checkpoint/step; echo 8 > checkpoint/step", input_directory=home / "inputs")
        return describe(await sandbox.run("job", command, make_limits()))

    told = play(agent, home, scene)
    assert (told["exit_status"], told["log"]) == (0, "7")


@pytest.mark.parametrize("way", ["stop", "cancel"])
def test_a_suspended_job_can_be_ended(agent, home, marker, way):
    async def scene(sandbox: Sandbox) -> dict[str, Any]:
        told: dict[str, Any] = {}
        with trio.CancelScope() as scope:
            async with running(sandbox, f"{COUNTERS}# {marker}", told) as handle:
                handle.suspend()
                if way == "cancel":
                    scope.cancel()
                    await trio.sleep_forever()
        handle.suspend()
        handle.resume()
        (home / "late").mkdir()
        assert handle.copy_checkpoint(home / "late", MEBIBYTE) is False
        return told

    told = play(agent, home, scene)
    assert told == {} if way == "cancel" else told["state"] == "killed"
    assert find_processes(marker) == []
    assert find_traces(home) == []


def test_a_suspended_job_does_not_outlive_its_agent(agent, home, marker):
    reader, writer = os.pipe()

    async def main() -> None:
        sandbox = await make_sandbox(agent, home)
        async with running(sandbox, f"{COUNTERS}# {marker}", wall_seconds=600) as handle:
            handle.suspend()
            await copy(handle, home / "copied")
            os.write(writer, b"up")
            await trio.sleep_forever()

    process = fork_agent(agent, home, lambda: trio.run(main))
    os.close(writer)
    assert os.read(reader, 2) == b"up"
    os.close(reader)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)

    async def nothing(sandbox: Sandbox) -> dict[str, Any]:
        with pytest.raises(JobLost):
            await sandbox.take_up("job", make_limits(), MEBIBYTE)
        return {}

    play(agent, home, nothing)
    deadline = time.monotonic() + 10
    while find_processes(marker) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert find_processes(marker) == []
    assert find_traces(home) == []


def test_a_stop_is_not_held_up_by_a_copy(agent, home):
    program = """
import os, time
os.ftruncate(os.open("checkpoint/large", os.O_CREAT | os.O_RDWR), 1 << 30)
print("up", flush=True)
time.sleep(600)
"""

    async def scene(sandbox: Sandbox) -> dict[str, Any]:
        told: dict[str, Any] = {}

        async def copy_all() -> None:
            told["copied"] = await copy(handle, home / "copied", 1 << 30)

        async with (
            trio.open_nursery() as nursery,
            running(sandbox, program, told, disk_bytes=1 << 30, memory_bytes=64 * MEBIBYTE) as handle,
        ):
            nursery.start_soon(copy_all)
            while not (home / "copied" / "large").exists():
                await trio.sleep(0.001)
            asked_at = time.monotonic()
            handle.suspend()
            handle.resume()
            assert (home / "copied" / "large").stat().st_size < 1 << 30
            handle.stop()
            told["seconds"] = time.monotonic() - asked_at
        return {**told, "size": (home / "copied" / "large").stat().st_size}

    told = play(agent, home, scene)
    assert told["state"] == "killed"
    assert told["copied"] is None
    assert told["size"] < 1 << 30
    assert told["seconds"] < 1


def test_calls_in_any_order_while_copies_run_end_well(agent, home):
    """Whatever comes between, the job goes on as the last word said."""

    async def scene(sandbox: Sandbox) -> dict[str, Any]:
        chance = random.Random(7)
        copies: list[Any] = []

        async def copy_some(number: int) -> None:
            for turn in range(4):
                copies.append(await copy(handle, home / f"{number}-{turn}"))

        async with running(sandbox, COUNTERS) as handle:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(copy_some, 1)
                nursery.start_soon(copy_some, 2)
                while len(copies) < 8:
                    chance.choice([handle.suspend, handle.resume, handle.usage])()
                    await trio.sleep(chance.random() / 100)
            handle.suspend()
            first, second = [await copy(handle, home / name) for name in ("first", "second")]
            handle.resume()
            third, number = second, 0
            with trio.move_on_after(20):
                while third == second:
                    third, number = await copy(handle, home / f"third-{number}"), number + 1
        return {"copies": len([one for one in copies if one]), "is_still": first == second, "runs": third != second}

    assert play(agent, home, scene) == {"copies": 8, "is_still": True, "runs": True}
