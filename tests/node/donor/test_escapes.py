"""Each attack that a job may try, carried out for real, and what the sandbox does about it.

All run twice: under an agent of the superuser (control group, own user id, real disk) and under an agent of an
ordinary user (limits of single processes, work directory in memory).
"""

from __future__ import annotations

import io
import os
import socket
import subprocess
from typing import Any

import pytest
import trio

from node.bundles import pack_bundle_to, unpack_bundle
from node.donor.executors import workspace
from node.donor.executors.executor import JobHandle, JobNotStarted
from node.donor.executors.sandbox import Sandbox
from tests.node.donor.jailed_jobs import (
    ORDINARY_USER,
    attempt,
    describe,
    find_processes,
    find_traces,
    make_command,
    make_limits,
    play,
    python,
)

# Calls by their numbers, on the one kind of processor for which they are written down here.
CALL = """
import ctypes, errno, os, sys
if os.uname().machine != "x86_64":
    sys.exit()
libc = ctypes.CDLL(None, use_errno=True)
def call(name, number, *arguments, refusal=errno.EPERM):
    ctypes.set_errno(0)
    if libc.syscall(number, *map(ctypes.c_long, arguments)) != -1 or ctypes.get_errno() != refusal:
        print(name, errno.errorcode.get(ctypes.get_errno()))
"""


# Other jobs and the agent.


VICTIM = """
import os, socket, time
for place in ("/work", "/work/out", "/work/checkpoint", "/tmp", "/dev/shm"):
    with open(f"{place}/secret", "w") as file:
        file.write("MARKER")
servers = []
addresses = [(socket.AF_INET, ("127.0.0.1", 5555)), (socket.AF_UNIX, "\\0MARKER"), (socket.AF_UNIX, "/tmp/s")]
for family, address in addresses:
    servers.append(socket.socket(family))
    servers[-1].bind(address)
    servers[-1].listen()
print("up", flush=True)
time.sleep(600)
"""
THIEF = """
import os, socket
addresses = [(socket.AF_INET, ("127.0.0.1", 5555)), (socket.AF_UNIX, "\\0MARKER"), (socket.AF_UNIX, "/tmp/s")]
for family, address in addresses:
    try:
        socket.socket(family).connect(address)
        print("reached", address)
    except OSError:
        pass
mine = "/proc/%d/" % os.getpid()
for place in ("/work", "/tmp", "/dev/shm", "/proc"):
    for folder, folders, files in os.walk(place):
        for name in files:
            path = os.path.join(folder, name)
            if path.startswith((mine, "/proc/self", "/proc/thread-self")) or name in ("kmsg", "pagemap", "mem"):
                continue
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                if b"MARK" + b"ER" in os.read(descriptor, 1 << 16) and "cmdline" not in path:
                    print("read", path)
                os.close(descriptor)
            except OSError:
                pass
print("end")
"""


def test_two_jobs_at_once_reach_nothing_of_each_other(agent, home, marker):
    async def scene(sandbox: Sandbox) -> dict[str, Any]:
        async with trio.open_nursery() as nursery:

            async def run(task_status: trio.TaskStatus[JobHandle]) -> None:
                command = make_command(
                    python(VICTIM.replace("MARKER", marker)), environment={"SECRET": marker}, output_bytes_max=1
                )
                await sandbox.run("victim", command, make_limits(), task_status=task_status)

            handle = await nursery.start(run)
            while handle.log_bytes == 0:
                await trio.sleep(0.01)
            told = describe(await sandbox.run("thief", make_command(python(THIEF)), make_limits()))
            handle.stop()
        return told

    assert play(agent, home, scene)["log"] == "end\n"


def test_a_job_inherits_nothing_of_its_agent(agent, home, marker):
    (home / "donor.key").write_text(marker)
    program = f"""
import os, socket
for process in ("self", "1"):
    for number in os.listdir(f"/proc/{{process}}/fd"):
        try:
            print(os.readlink(f"/proc/{{process}}/fd/{{number}}").split(":")[0])
        except OSError:
            pass
    for name in ("environ", "mountinfo", "cgroup"):
        if {str(home)!r} in open(f"/proc/{{process}}/{{name}}").read():
            print("donor's folder in", name)
    for folder in (f"/proc/{{process}}/root", f"/proc/{{process}}/cwd", "/work", "/"):
        for up in ("", "/..", "/../..", "/../../.."):
            if os.path.exists(folder + up + {str(home)!r}):
                print("sees", folder + up)
            try:
                socket.socket(socket.AF_UNIX).connect(folder + up + {str(home / "agent.sock")!r})
                print("reached", folder + up)
            except OSError:
                pass
if "SECRET_OF_AGENT" in open("/proc/1/environ").read() + str(os.environ):
    print("environment")
"""

    async def scene(sandbox: Sandbox) -> dict[str, Any]:
        os.environ["SECRET_OF_AGENT"] = marker
        opened = [os.open(home / "donor.key", os.O_RDONLY), os.open(home, os.O_RDONLY | os.O_DIRECTORY)]
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(home / "agent.sock"))
            server.listen()
            for descriptor in (*opened, server.fileno()):
                os.set_inheritable(descriptor, True)
            return describe(await sandbox.run("job", make_command(python(program)), make_limits()))

    words = play(agent, home, scene)["log"].split()
    assert set(words) == {"/dev/null", "pipe", "anon_inode"}


def test_the_sandboxs_own_first_process_is_no_way_out(agent, home, marker):
    """A job may write into the memory of bubblewrap's process inside. That has no more rights than the job itself,
    and its end is the end of all."""
    program = f"""
import os, re, time
for line in open("/proc/1/status"):
    if line.startswith("Cap") and int(line.split()[1], 16) or line.startswith(("NoNewPrivs:\\t0", "Seccomp:\\t0")):
        print(line)
for number in (9, 15, 19):
    os.kill(1, number)
print("alive", flush=True)
memory = os.open("/proc/1/mem", os.O_RDWR)
for start, end in re.findall(r"(\\w+)-(\\w+) r-xp", open("/proc/1/maps").read()):
    try:
        os.pwrite(memory, b"\\xcc" * (int(end, 16) - int(start, 16)), int(start, 16))
    except OSError:
        pass
if os.fork() == 0:  # an orphan that ends wakes the process
    os.fork()
    os._exit(0)
time.sleep(600)  # {marker}
"""
    told = attempt(agent, home, python(program), wall_seconds=2.0)
    assert told["log"] == "alive\n"
    assert told["state"] in ("exited", "killed", "walltime")
    assert find_processes(marker) == []
    assert find_traces(home) == []


# Devices and calls to the kernel.


def test_a_job_has_no_device_but_the_harmless_ones(agent, home):
    program = """
import os, stat
print(*sorted(os.listdir("/dev")))
for kind, major, minor in [("b", 7, 0), ("c", 1, 1), ("c", 1, 3), ("c", 195, 0), ("c", 10, 229), ("b", 254, 0)]:
    for place in ("/work", "/tmp", "/dev", "/dev/shm", "/work/out"):
        try:
            mode = (stat.S_IFBLK if kind == "b" else stat.S_IFCHR) | 0o666
            os.mknod(f"{place}/node", mode, os.makedev(major, minor))
            print("made", place, kind, major, minor)
        except OSError:
            pass
for name in ("mem", "kmem", "port", "nvidia0", "nvidiactl", "loop0", "loop-control", "fuse", "kvm", "sda", "vda",
             "vhost-vsock", "net/tun", "console", "kmsg", "hugepages", "mqueue"):
    if os.path.exists("/dev/" + name):
        print("there is", name)
for name in os.listdir("/dev/pts"):
    print("terminal", name) if name != "ptmx" else None
try:
    os.open("/dev/tty", os.O_RDWR)
    print("terminal")
except OSError:
    pass
for line in open("/proc/self/mountinfo"):
    options, place = line.split()[5], line.split()[4]
    # The few harmless devices are files that are mounted one by one, and a terminal's file system holds devices.
    if "nosuid" not in options or ("nodev" not in options and not place.startswith("/dev/")):
        print(line)
"""
    told = attempt(agent, home, python(program))
    assert told["log"] == "core fd full null ptmx pts random shm stderr stdin stdout tty urandom zero\n"


def test_calls_that_lead_around_the_walls_are_refused(agent, home):
    program = """
call("ptrace attach", 101, 16, 1, 0, 0)
call("ptrace traceme", 101, 0, 0, 0, 0)
call("process_vm_writev", 311, 1, 0, 0, 0, 0, 0)
for number in (425, 426, 427):
    call("io_uring", number, 4, 0, 0, 0, 0, 0)
for number in (248, 249, 250):
    call("keys", number, 0, -3, 1, 0, 0)
for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000, 0x80):
    call("unshare", 272, flag)
    if flag != 0x80:  # among clone's flags this is a part of a signal's number
        call("clone", 56, flag | 17, 0, 0, 0, 0)
call("clone3", 435, 0, 0, refusal=errno.ENOSYS)
call("setns", 308, os.open("/proc/1/ns/user", os.O_RDONLY), 0)
call("setns to itself", 308, os.open("/proc/self/ns/net", os.O_RDONLY), 0)
for name, number in [("mount", 165), ("umount2", 166), ("fsopen", 430), ("open_tree", 428), ("move_mount", 429),
                     ("pivot_root", 155), ("chroot", 161), ("name_to_handle_at", 303), ("open_by_handle_at", 304)]:
    call(name, number, 0, 0, 0, 0, 0)
call("io_setup", 206, 128, 0)
call("huge pages", 9, 0, 2 << 20, 3, 0x40022, -1, 0)
call("huge pages of a size", 9, 0, 2 << 20, 3, 0x40022 | 21 << 26, -1, 0)
call("personality", 135, 0x40000)
call("swapon", 167, 0, 0)
call("TIOCSTI", 16, os.openpty()[1], 0x5412, id(b"x"))
call("TIOCSTI with high bits", 16, os.openpty()[1], 0x100005412, id(b"x"))
call("TIOCLINUX", 16, os.openpty()[1], 0x541C, id(b"x"))
for family in (3, 9, 17, 21, 30, 38, 40, 44):
    call(f"socket {family}", 41, family, 2, 0)
print("end")
"""
    log = attempt(agent, home, python(CALL + program))["log"]
    assert log == ("end\n" if os.uname().machine == "x86_64" else "")


def test_calls_by_the_numbers_of_another_word_size_end_the_caller(agent, home):
    """The filter knows the numbers of one word size. The same machine understands two more."""
    program = """
import mmap, signal
def die(action):
    if (child := os.fork()) == 0:
        action()
        os._exit(0)
    print(os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGSYS)
code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20; int 0x80; ret: asks for the process's id
die(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code))))
die(lambda: libc.syscall(ctypes.c_long(0x40000000 | 39)))
"""
    log = attempt(agent, home, python(CALL + program))["log"]
    assert log == ("True\nTrue\n" if os.uname().machine == "x86_64" else "")


def test_no_program_gives_a_job_more_rights(agent, home):
    program = """
import os, shutil, subprocess
shutil.copy("/usr/bin/id", "/work/id")
try:
    os.chmod("/work/id", 0o6755)
except OSError:
    pass
found = ["/work/id"]
for folder, _, files in os.walk("/usr"):
    for name in files:
        path = os.path.join(folder, name)
        try:
            if os.lstat(path).st_mode & 0o6000 and os.access(path, os.X_OK):
                found.append(path)
        except OSError:
            pass
print(len(found) > 1)
reader = "import os; print(os.getresuid(), os.getresgid())"
for path in found:
    process = subprocess.Popen([path], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    for line in open(f"/proc/{process.pid}/status"):
        if line.startswith(("Uid", "Gid")) and set(line.split()[1:]) != {"65534"}:
            print(path, line)
    process.kill()
    process.communicate()
for change in (lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0]), lambda: os.setresuid(0, 0, 0),
               lambda: os.chown("/work/id", 0, 0)):
    try:
        change()
        print("changed")
    except OSError:
        pass
"""
    assert attempt(agent, home, python(program))["log"] == "True\n"


def test_a_job_changes_no_limit_of_its_own(agent, home):
    """Control groups are out of its sight, and what is bounded for single processes stays bounded.

    A core limit of one byte is the only one that keeps a crash from the crash handler of the donor's machine.
    """
    program = """
import os, resource
for path in ("/sys", "/sys/fs/cgroup", "/run", "/var"):
    if os.path.exists(path):
        print("sees", path)
for name in ("oom_score_adj", "cgroup", "uid_map", "gid_map", "setgroups", "projid_map", "attr/current"):
    for process in ("self", "1"):
        try:
            with open(f"/proc/{process}/{name}", "w") as file:
                file.write("-999")
            print("wrote", process, name)
        except OSError:
            pass
print(resource.getrlimit(resource.RLIMIT_CORE))
for limit in (resource.RLIMIT_CORE, resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_RTPRIO):
    for value in (1 << 40, 0):
        try:
            resource.setrlimit(limit, (value if limit == resource.RLIMIT_CORE else 1 << 40, 1 << 40))
            print("set", limit)
        except (OSError, ValueError):
            pass
try:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 1))
    print("no core limit")
except (OSError, ValueError):
    pass
try:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    print("real time")
except OSError:
    pass
try:
    os.nice(-1)
    print("nicer")
except OSError:
    pass
"""
    assert attempt(agent, home, python(program))["log"] == "(1, 1)\n"


def test_libraries_that_a_job_brings_are_loaded_by_nothing_but_the_job(agent, home):
    """They come with the inputs, and its environment may make every program load them. A file that is no library
    makes each program complain that tries: the job's own, and none of those that bound it."""
    (home / "inputs").mkdir()
    (home / "inputs" / "library.so").write_text("none")

    async def scene(sandbox: Sandbox) -> dict[str, Any]:
        command = make_command(
            ("/usr/bin/printenv", "LD_PRELOAD"),
            environment={"LD_PRELOAD": "/work/library.so", "LD_DEBUG_OUTPUT": "/work/debug"},
            input_directory=home / "inputs",
        )
        return describe(await sandbox.run("job", command, make_limits()))

    log = play(agent, home, scene)["log"]
    assert log.count("from LD_PRELOAD") == 1
    assert log.endswith("/work/library.so\n")


def test_an_environment_that_makes_every_program_talk_does_not_hinder_the_start(agent, home):
    async def scene(sandbox: Sandbox) -> dict[str, Any]:
        command = make_command("exit 3", environment={"LD_DEBUG": "all"})
        return describe(await sandbox.run("job", command, make_limits()))

    assert play(agent, home, scene)["exit_status"] == 3


# Inputs and results.


@pytest.mark.parametrize("thing", ["absolute", "upwards", "dangling", "pipe", "socket", "device", "deep", "name"])
def test_inputs_that_are_no_plain_files_start_nothing(agent, home, thing):
    (home / "donor.key").write_text("secret")
    inputs = home / "inputs"
    inputs.mkdir()
    (inputs / "good").write_text("good")
    match thing:
        case "absolute":
            (inputs / "link").symlink_to(home / "donor.key")
        case "upwards":
            (inputs / "link").symlink_to("../donor.key")
        case "dangling":
            (inputs / "link").symlink_to("/work/out")
        case "pipe":
            os.mkfifo(inputs / "pipe")
        case "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(inputs / "socket"))
        case "device":
            if os.geteuid() != 0:
                pytest.skip("only the superuser can make a device")
            os.mknod(inputs / "null", 0o020666, os.makedev(1, 3))
        case "deep":
            (inputs / "/".join(["d"] * 40)).mkdir(parents=True)
        case "name":
            os.close(os.open(os.fsencode(inputs) + b"/\xff", os.O_CREAT | os.O_WRONLY))
    if os.geteuid() == 0:
        subprocess.run(["chown", "-hR", f"{ORDINARY_USER}", str(inputs)], check=True)

    async def scene(sandbox: Sandbox) -> dict[str, Any]:
        with pytest.raises(JobNotStarted, match="no plain files"):
            await sandbox.run("job", make_command("true", input_directory=inputs), make_limits())
        return {"kept": os.listdir(home / "jobs")}

    assert play(agent, home, scene) == {"kept": ["lock"]}


def test_hostile_results_become_a_bundle_of_plain_files(agent, home):
    (home / "donor.key").write_text("secret")
    program = f"""
import os
os.chdir("out")
open("good", "w").write("good")
os.link("good", "again")
for name, target in [("absolute", "{home}/donor.key"), ("up", "../../../../{home}/donor.key"), ("root", "/"),
                     ("proc", "/proc/self/root"), ("loop", "loop"), ("checkpoint", "../checkpoint")]:
    os.symlink(target, name)
for target in ("/usr/bin/true", "/etc/passwd", "/proc/1/environ", "/dev/zero"):
    try:
        os.link(target, "linked")
        print("linked", target)
    except OSError:
        pass
os.mkfifo("pipe")
for name in (b"\\xff\\xfe", "new\\nline".encode(), "e\\u0301".encode(), b"\\x1b[31m", b"back\\\\slash", b"x" * 255):
    open(name, "w").write("odd")
os.makedirs("/".join(["d"] * 60))
os.mkdir("closed"), open("closed/file", "w").write("x"), os.chmod("closed", 0)
os.mkdir("many")
for number in range(500):
    os.link("good", f"many/{{number}}")
with open("sparse", "w") as file:
    file.truncate(7 << 20)
"""

    async def scene(sandbox: Sandbox) -> dict[str, Any]:
        workspace._ENTRIES_MAX = 300  # so that the test need not make ten thousands of files
        outcome = await sandbox.run("job", make_command(python(program)), make_limits())
        packed = pack_bundle_to(outcome.output_directory, sink := io.BytesIO(), skip=True)
        unpack_bundle(sink.getvalue(), home / "unpacked")
        await sandbox.release("job")
        return {"left_out": outcome.output_left_out, "skipped": packed.skipped, "log": outcome.log_path.exists()}

    told = play(agent, home, scene)
    found = list((home / "unpacked").rglob("*"))
    assert all(path.is_dir() or (path.is_file() and not path.is_symlink()) for path in found)
    assert (home / "unpacked" / "good").read_text() == "good"
    assert not any("secret" in path.read_text(errors="replace") for path in found if path.is_file())
    assert {path.name for path in (home / "unpacked").iterdir()} <= {"good", "again", "many", "d", "closed", "x" * 255}
    assert told["left_out"] >= 209
    assert len(found) <= 300


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
