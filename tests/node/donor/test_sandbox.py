"""Each attack that a job may try, carried out for real, and what the sandbox does about it.

Most run twice: under an agent of the superuser (control group, own user id, real disk) and under an agent of an
ordinary user (limits of single processes, work directory in memory).
"""

from __future__ import annotations

import os
import signal
import socket
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
    build_filter()


REACH_OUT = """
import socket, sys
port, name, outside = int(sys.argv[1]), sys.argv[2], sys.argv[3]
for family, kind, address in [
    (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", port)),
    (socket.AF_INET, socket.SOCK_STREAM, (outside, port)),
    (socket.AF_INET, socket.SOCK_STREAM, ("192.0.2.1", 80)),
    (socket.AF_INET, socket.SOCK_DGRAM, ("192.0.2.1", 53)),
    (socket.AF_UNIX, socket.SOCK_STREAM, "\\0" + name),
    (getattr(socket, "AF_VSOCK", 40), socket.SOCK_STREAM, (2, port)),
]:
    try:
        one = socket.socket(family, kind)
        one.settimeout(2)
        one.connect(address)
        one.send(b"x")
        print("reached", address)
    except OSError:
        pass
"""


def find_own_address() -> str:
    """This machine's address on its network, if it has one; asking for a route sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.2"


def test_a_job_reaches_no_network(agent, home, marker):
    with socket.create_server(("0.0.0.0", 0)) as server, socket.socket(socket.AF_UNIX) as unix_server:
        unix_server.bind(f"\0{marker}")
        unix_server.listen()
        port = server.getsockname()[1]
        arguments = (str(port), marker, find_own_address())
        # The same attempt from outside succeeds, or the test would prove nothing.
        outside = subprocess.run([*python(REACH_OUT), *arguments], capture_output=True, text=True, check=True)
        assert outside.stdout.count("reached") >= 3
        told = attempt(agent, home, (*python(REACH_OUT), *arguments))
    assert (told["state"], told["exit_status"], told["log"]) == ("exited", 0, "")


def test_a_job_sees_nothing_of_the_donor(agent, home):
    secret = home / "donor.key"
    secret.write_text("secret")
    secret.chmod(0o644)
    program = f"""
import os
for path in ["{secret}", "{home}", "/root", "/home", "/etc/shadow", "/etc/hostname", "/var", "/sys", "/run", "/mnt"]:
    if os.path.exists(path):
        print("sees", path)
for path in ["/", "/usr", "/etc", "/usr/bin", "/job", "/dev", "/proc/sys/kernel/hostname"]:
    try:
        open(path + "/x" if os.path.isdir(path) else path, "w").write("x")
        print("wrote", path)
    except OSError:
        pass
print(os.listdir("/tmp"), sorted(os.listdir("/work")), os.getuid())
"""
    told = attempt(agent, home, python(program))
    assert told["log"] == "[] ['checkpoint', 'out'] 65534\n"


def test_forking_without_bound_is_bounded_and_leaves_nothing(agent, home, marker):
    program = f"""
import os, time
count = 0
try:
    while count < 500:
        if os.fork() == 0:
            time.sleep(60)
        count += 1
except OSError:
    pass
print(count, flush=True)
while True:
    try:
        os.fork()
    except OSError:
        pass
# {marker}
"""
    told = attempt(agent, home, python(program), processes=20, wall_seconds=1.0)
    assert told["state"] == "walltime"
    assert 10 <= int(told["log"].split()[0]) <= 20
    assert find_processes(marker) == []


def test_a_job_can_fill_only_its_own_disk(agent, home):
    program = """
import os
for place in ["/work", "/tmp", "/dev/shm"]:
    written = 0
    try:
        while written < 300 << 20:
            with open(f"{place}/{written}", "wb", buffering=0) as file:
                written += file.write(bytes(1 << 20))
    except OSError:
        pass
    print(written >> 20)
    for name in os.listdir(place):
        if name not in ("checkpoint", "out"):
            os.remove(f"{place}/{name}")
"""
    told = attempt(agent, home, python(program), memory_bytes=512 * MEBIBYTE)
    work, temporary, shared = map(int, told["log"].split())
    assert 7 <= work <= 9
    assert temporary <= 64
    assert shared <= 64
    assert told["state"] == "exited"


def test_a_balloon_stops_at_the_memory_limit(agent, home):
    program = """
kept = []
while True:
    kept.append(bytearray(1 << 20))
    for offset in range(0, 1 << 20, 4096):
        kept[-1][offset] = 1
"""
    told = attempt(agent, home, python(program), memory_bytes=64 * MEBIBYTE)
    assert told["memory_peak_bytes"] <= 66 * MEBIBYTE
    if agent == "superuser":
        assert told["state"] == "out_of_memory"
    else:  # the process is refused more memory, and says so itself
        assert told["state"] == "exited"
        assert "MemoryError" in told["log"]


def test_many_children_share_one_memory_limit(agent, home, marker):
    program = f"""
import os, time
for _ in range(8):
    if os.fork() == 0:
        kept = bytearray(b"x") * (24 << 20)
        time.sleep(60)  # {marker}
time.sleep(60)
"""
    told = attempt(agent, home, python(program), memory_bytes=64 * MEBIBYTE)
    assert told["state"] == "out_of_memory"
    assert told["exit_status"] is None
    assert told["wall_ms"] < 10_000
    assert find_processes(marker) == []


def test_no_daemon_outlives_a_job_that_ends(agent, home, marker):
    told = attempt(agent, home, python(f"{DAEMON}\nprint('bye')  # {marker}"))
    assert (told["state"], told["exit_status"], told["log"]) == ("exited", 0, "bye\n")
    assert find_processes(marker) == []


def test_the_wall_time_ends_a_job_with_all_its_daemons(agent, home, marker):
    told = attempt(agent, home, python(f"{DAEMON}\ntime.sleep(600)  # {marker}"), wall_seconds=0.5)
    assert (told["state"], told["exit_status"]) == ("walltime", None)
    assert 500 <= told["wall_ms"] < 5000
    assert find_processes(marker) == []


def test_a_job_neither_sees_nor_traces_other_processes(agent, home):
    program = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
print(sorted(int(name) for name in os.listdir("/proc") if name.isdigit())[-1] < 20)
def call(name, number, *arguments):
    ctypes.set_errno(0)
    if libc.syscall(number, *arguments) != -1 or ctypes.get_errno() != errno.EPERM:
        print(name, errno.errorcode.get(ctypes.get_errno()))
if os.uname().machine == "x86_64":
    for other in (1, os.getppid()):
        call("ptrace attach", 101, 16, other, 0, 0)
        call("ptrace seize", 101, 0x4206, other, 0, 0)
        call("process_vm_readv", 310, other, 0, 0, 0, 0, 0)
        call("pidfd_getfd", 438, 0, 0, 0)
    call("io_uring_setup", 425, 4, 0)
    call("bpf", 321, 0, 0, 0)
    call("perf_event_open", 298, 0, 0, 0, 0, 0)
    call("keyctl", 250, 0, -3, 1)
    call("userfaultfd", 323, 0)
"""
    told = attempt(agent, home, python(program))
    assert told["log"] == "True\n"


def test_a_job_gains_no_rights_by_namespaces_or_mounts(agent, home):
    program = """
import ctypes, errno, fcntl, os, subprocess
libc = ctypes.CDLL(None, use_errno=True)
for words in ["unshare -U true", "unshare -m true", "unshare -rn true", "mount -t tmpfs none /tmp", "umount /tmp",
              "chroot / true", "nsenter -t 1 -m true", "mknod /tmp/disk b 7 0", "su -c true",
              "mount -o remount,rw /usr", "setpriv --reuid 0 true", "bwrap --ro-bind / / true", "dmesg"]:
    if subprocess.run("PATH=$PATH:/usr/sbin " + words, shell=True, capture_output=True).returncode == 0:
        print("done:", words)
if os.uname().machine == "x86_64":
    for flag in (0x10000000, 0x00020000, 0x40000000):
        if libc.syscall(56, flag | 17, 0, 0, 0, 0) != -1:
            os._exit(77)
    ctypes.set_errno(0)
    if libc.syscall(435, 0, 0) != -1 or ctypes.get_errno() != errno.ENOSYS:
        print("clone3")
try:
    fcntl.ioctl(os.openpty()[1], 0x5412, b"x")
    print("typed into a terminal")
except OSError:
    pass
for line in open("/proc/self/status"):
    if line.startswith(("CapEff", "CapBnd", "CapPrm")) and int(line.split()[1], 16):
        print(line)
print("end")
"""
    told = attempt(agent, home, python(program))
    assert told["log"] == "end\n"


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


def test_results_lead_nowhere_and_are_bounded(agent, home):
    (home / "donor.key").write_text("secret")
    program = f"""
cd out
echo good > good
ln -s {home}/donor.key link; ln -s / folder; mkfifo pipe; ln good again
head -c 2000000 /dev/zero > large
printf x > "$(printf 'odd\\377name')"
"""
    told = attempt(agent, home, program)
    assert told["output"] == {"good": "good\n", "again": "good\n"}
    assert told["left_out"] == 5


def test_a_folder_of_results_that_is_a_link_gives_nothing(agent, home):
    (home / "donor.key").write_text("secret")
    told = attempt(agent, home, f"rmdir out; ln -s {home} out")
    assert (told["output"], told["left_out"]) == ({}, 1)


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
