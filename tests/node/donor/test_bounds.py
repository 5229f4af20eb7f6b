"""What a job may use at most holds, whatever it tries: memory, processes, files, disk, its log.

All run twice: under an agent of the superuser (control group, own user id, real disk) and under an agent of an
ordinary user (limits of single processes, work directory in memory).
"""

from __future__ import annotations

import time
from typing import Any

from node.donor.executors.sandbox import Sandbox
from tests.node.donor.jailed_jobs import MEBIBYTE, attempt, find_processes, make_command, make_limits, play, python


def test_memory_without_a_process_is_none_that_a_job_can_take(agent, home):
    program = """
import os, mmap
taken = 0
try:
    for _ in range(200):
        descriptor = os.memfd_create("x")
        for _ in range(4):
            taken += os.write(descriptor, bytes(1 << 20))
except OSError:
    pass
print(taken)
"""
    told = attempt(agent, home, python(program), memory_bytes=64 * MEBIBYTE)
    if agent == "superuser":
        assert told["state"] == "out_of_memory"
    else:
        assert told["log"] == "0\n"


def test_empty_files_without_number_count_as_memory(agent, home):
    program = """
import os
for number in range(1_000_000):
    os.close(os.open(f"/dev/shm/{number}", os.O_CREAT | os.O_WRONLY))
"""
    told = attempt(agent, home, python(program), memory_bytes=32 * MEBIBYTE)
    assert told["state"] == "out_of_memory"
    assert told["wall_ms"] < 15_000


def test_a_job_that_never_ceases_to_print_costs_its_agent_little(agent, home):
    program = """
import os
while True:
    os.write(1, bytes(1 << 16))
"""

    async def scene(sandbox: Sandbox) -> dict[str, Any]:
        before = time.process_time()
        outcome = await sandbox.run("job", make_command(python(program)), make_limits(wall_seconds=2.0))
        return {
            "seconds": time.process_time() - before,
            "size": outcome.log_path.stat().st_size,
            "state": outcome.state,
        }

    told = play(agent, home, scene)
    assert told["state"] == "walltime"
    assert told["size"] < 2 * MEBIBYTE
    assert told["seconds"] < 1.0


def test_an_output_that_a_job_mails_to_itself_does_not_hold_up_its_end(agent, home):
    program = """
import socket
for _ in range(50):
    one, other = socket.socketpair()
    for end in (one, other):
        socket.send_fds(end, [b"x"], [1, 2, one.fileno(), other.fileno()])
print("bye", flush=True)
"""
    told = attempt(agent, home, python(program), wall_seconds=10.0)
    assert (told["state"], told["exit_status"], told["log"]) == ("exited", 0, "bye\n")


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
    if agent == "superuser" or told["state"] != "exited":  # a slow process may be seen above the limit before it ends
        assert told["state"] == "out_of_memory"
    else:  # the process is refused more memory, and says so itself
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
