"""What the sandbox does with a job from its inputs to its results, and that nothing of it is left.

Most run twice: under an agent of the superuser (control group, own user id, real disk) and under an agent of an
ordinary user (limits of single processes, work directory in memory).
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import Any

import pytest
import trio

from node.donor.executors.executor import JobHandle, JobNotStarted
from node.donor.executors.launch import Descriptors, Walls, build_command_line
from node.donor.executors.sandbox import Sandbox, find_missing_tools
from node.donor.executors.seccomp import build_filter
from node.errors import UserError
from tests.node.donor.jailed_jobs import (
    DAEMON,
    MEBIBYTE,
    ORDINARY_USER,
    attempt,
    describe,
    find_processes,
    find_traces,
    fork_agent,
    make_command,
    make_limits,
    play,
    python,
)


@pytest.fixture(scope="module", autouse=True)
def _bubblewrap_is_here() -> None:
    if missing := find_missing_tools():
        pytest.fail(f"the sandbox can't be tested: run apt-get install {' '.join(missing)}")
    build_filter(is_memory_counted=True)


def test_no_daemon_outlives_a_job_that_ends(agent, home, marker):
    told = attempt(agent, home, python(f"{DAEMON}\nprint('bye')  # {marker}"))
    assert (told["state"], told["exit_status"], told["log"]) == ("exited", 0, "bye\n")
    assert find_processes(marker) == []


def test_the_wall_time_ends_a_job_with_all_its_daemons(agent, home, marker):
    told = attempt(agent, home, python(f"{DAEMON}\ntime.sleep(600)  # {marker}"), wall_seconds=0.5)
    assert (told["state"], told["exit_status"]) == ("walltime", None)
    assert 500 <= told["wall_ms"] < 5000
    assert find_processes(marker) == []


def test_killing_the_agent_kills_the_job_and_the_next_agent_sweeps_up(agent, home, marker):
    reader, writer = os.pipe()

    async def main() -> None:
        sandbox = Sandbox(home / "jobs")
        await sandbox.sweep()
        command = make_command(python(f"{DAEMON}\nprint('up', flush=True)\ntime.sleep(600)  # {marker}"))
        async with trio.open_nursery() as nursery:
            handle: JobHandle = await nursery.start(sandbox.run, "job", command, make_limits(wall_seconds=600))
            while handle.log_bytes == 0:
                await trio.sleep(0.01)
            os.write(writer, b"up")

    process = fork_agent(agent, home, lambda: trio.run(main))
    os.close(writer)
    assert os.read(reader, 2) == b"up"
    os.close(reader)
    assert len(find_processes(marker)) >= 2
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    deadline = time.monotonic() + 10
    while find_processes(marker) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert find_processes(marker) == []
    assert (home / "jobs" / "job").exists()

    async def nothing(sandbox: Sandbox) -> dict[str, Any]:
        return {}

    play(agent, home, nothing)
    assert os.listdir(home / "jobs") == ["lock"]
    assert find_traces(home) == []


def test_a_gate_without_an_agent_stays_shut(home):
    walls = Walls(None, None, (), frozenset({"memory", "pids", "cpu"}), (0,))
    descriptors = Descriptors(*[0] * 6)
    command = make_command(("/usr/bin/touch", str(home / "ran")))
    line = build_command_line(command, make_limits(), walls, descriptors, "/bin/sh")
    gate = line[line.index("--") + 1 :]
    assert subprocess.run(gate, stdin=subprocess.DEVNULL, capture_output=True).returncode == 125
    assert not (home / "ran").exists()
    assert subprocess.run(gate, input=b"go\n", capture_output=True).returncode == 0
    assert (home / "ran").exists()


def test_processor_time_of_an_orphan_is_metered(agent, home):
    program = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the child, so its parent learns nothing of it
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while time.process_time() < 0.5:
            pass
        open("/work/out/done", "w").close()
    os._exit(0)
while not os.path.exists("/work/out/done"):
    time.sleep(0.01)
"""
    told = attempt(agent, home, python(program))
    assert told["state"] == "exited"
    assert told["wall_ms"] >= 500
    if agent == "superuser":
        assert 500_000 <= told["cpu_us"] < 1_500_000
    else:  # no counter that the job could not escape: then none is claimed
        assert told["cpu_us"] is None


def test_a_share_of_a_processor_is_kept(home):
    if os.geteuid() != 0:
        pytest.skip("an ordinary user can't bound processor time")
    program = "import time\nend = time.monotonic() + 1.0\nwhile time.monotonic() < end: pass"
    told = attempt("superuser", home, python(program), cores=0.3)
    assert told["cpu_us"] < 0.5 * told["wall_ms"] * 1000


def test_inputs_environment_and_results_make_the_round_trip(agent, home):
    inputs = home / "inputs"
    (inputs / "deep").mkdir(parents=True)
    (inputs / "deep" / "number").write_text("20")
    (inputs / "start").write_text("#!/bin/sh\necho started with $MORE\n")
    (inputs / "start").chmod(0o700)
    if os.geteuid() == 0:
        subprocess.run(["chown", "-R", f"{ORDINARY_USER}", str(inputs)], check=True)
    program = (
        "./start; mkdir out/sub; echo $(( $(cat deep/number) + MORE )) > out/sub/sum; echo x >> deep/number; exit 7"
    )

    async def scene(sandbox: Sandbox) -> dict[str, Any]:
        command = make_command(program, environment={"MORE": "22"}, input_directory=inputs)
        told = describe(await sandbox.run("job", command, make_limits()))
        await sandbox.release("job")
        await sandbox.release("job")
        return {**told, "kept": os.listdir(home / "jobs")}

    told = play(agent, home, scene)
    assert (told["state"], told["exit_status"]) == ("exited", 7)
    assert told["log"] == "started with 22\n"
    assert told["output"] == {"sub/sum": "42\n"}
    assert told["kept"] == ["lock"]
    assert (inputs / "deep" / "number").read_text() == "20"
    assert find_traces(home) == []


def test_a_log_keeps_its_head_and_its_tail(home):
    async def scene(sandbox: Sandbox) -> dict[str, Any]:
        sandbox._log_bytes_max = 4096
        command = make_command("echo first; head -c 3000000 /dev/zero | tr '\\0' x; echo; echo last")
        return describe(await sandbox.run("job", command, make_limits()))

    log = play("ordinary", home, scene)["log"]
    assert log.startswith("first\nxxx")
    assert log.endswith("xxx\nlast\n")
    assert "bytes left out here" in log
    assert len(log) < 4200


@pytest.mark.parametrize("way", ["stop", "cancel"])
def test_a_job_that_is_ended_leaves_nothing(agent, home, marker, way):
    async def scene(sandbox: Sandbox) -> dict[str, Any]:
        told: dict[str, Any] = {}

        async def run(task_status: trio.TaskStatus[JobHandle]) -> None:
            command = make_command(python(f"{DAEMON}\nprint('up', flush=True)\ntime.sleep(600)  # {marker}"))
            told.update(describe(await sandbox.run("job", command, make_limits(), task_status=task_status)))

        async with trio.open_nursery() as nursery:
            handle: JobHandle = await nursery.start(run)
            while handle.read_log_tail(100) != b"up\n":
                await trio.sleep(0.01)
            assert handle.usage().wall_ms > 0
            if way == "stop":
                handle.stop()
            else:
                nursery.cancel_scope.cancel()
        handle.stop()
        assert handle.usage().wall_ms > 0
        return {**told, "here": os.path.exists(home / "jobs" / "job")}

    told = play(agent, home, scene)
    assert told == {"here": False} if way == "cancel" else told["state"] == "killed"
    assert find_processes(marker) == []
    assert find_traces(home) == []


def test_jobs_run_side_by_side_without_seeing_each_other(agent, home):
    async def scene(sandbox: Sandbox) -> dict[str, Any]:
        told: dict[str, Any] = {}

        async def run(number: int) -> None:
            program = f"echo {number} > out/number; echo {number} > /tmp/{number}; sleep 0.3; ls /tmp"
            told[str(number)] = describe(await sandbox.run(f"job{number}", make_command(program), make_limits()))

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(run, number)
        return told

    for number, told in play(agent, home, scene).items():
        assert told["log"] == f"{number}\n"
        assert told["output"] == {"number": f"{number}\n"}


async def test_what_never_ran_is_told_apart_from_what_failed(home):
    sandbox = Sandbox(home / "jobs")
    await sandbox.sweep()
    large = home / "inputs"
    large.mkdir()
    (large / "file").write_bytes(bytes(9 * MEBIBYTE))
    with pytest.raises(JobNotStarted, match="do not fit"):
        await sandbox.run("job", make_command("true", input_directory=large), make_limits())
    with pytest.raises(JobNotStarted, match="could not be set up"):
        await sandbox.run("job", make_command("true", runtime=home / "absent"), make_limits())
    with pytest.raises(JobNotStarted, match="can't be a job's id"):
        await sandbox.run("../job", make_command("true"), make_limits())
    assert os.listdir(home / "jobs") == ["lock"]
    outcome = await sandbox.run("job", make_command(("/nowhere",)), make_limits())
    assert (outcome.state, outcome.exit_status) == ("exited", 127)
    with pytest.raises(JobNotStarted, match="release it first"):
        await sandbox.run("job", make_command("true"), make_limits())
    sandbox.close()
    assert find_traces(home) == []


async def test_one_directory_serves_one_agent(home):
    first, second = Sandbox(home / "jobs"), Sandbox(home / "jobs")
    await first.sweep()
    with pytest.raises(UserError, match="another donor agent"):
        await second.sweep()
    first.close()
    await second.sweep()
    second.close()


async def test_a_machine_without_bubblewrap_is_told_what_to_install(home, monkeypatch):
    monkeypatch.setenv("PATH", str(home))
    with pytest.raises(UserError, match="apt-get install bubblewrap"):
        await Sandbox(home / "jobs").sweep()


def test_limits_and_commands_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="wall_seconds must be positive"):
        make_limits(wall_seconds=0)
    with pytest.raises(ValueError, match="environment variable"):
        make_command("true", environment={"A=B": ""})
    with pytest.raises(ValueError, match="needs a program"):
        make_command("")
    with pytest.raises(ValueError, match="zero bytes"):
        make_command(("a", "b\0c"))
