"""The command line that puts a job behind its walls. Values in, values out: nothing is started here.

It is a chain of programs, each of which sets one thing up and then becomes the next, so that all of them are
one process whose parent is the agent: a shell that joins the control group (and, for a superuser, mounts the
disk in a file system view of its own), setpriv, prlimit, bubblewrap, and inside it the gate and then the job.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from node.donor.executors.devices import NO_DEVICES, DeviceFiles
from node.donor.executors.executor import JobCommand, Limits

WORK = "/work"
RUNTIME = "/runtime"
SCRIPT = "/job"
SMALL_FILE_SYSTEMS = ("/tmp", "/dev/shm")  # both lie in memory
SMALL_FILE_SYSTEM_BYTES = 64 << 20
OPEN_FILES_MAX = 4096
OWN_PROCESSES = 2  # bubblewrap outside and its first process inside count against the job's limit, too
READY = b"\0"

# Bubblewrap can mount only what the job's user may reach, but disk and runtime lie in the donor's private
# folders. So the superuser first brings them to /run, in a view of the file system that only this chain of
# programs has.
_MOUNT = """set -e
mount -t tmpfs -o mode=755,size=64k tmpfs /run
mkdir /run/work /run/runtime
mount -o loop,nosuid,nodev "$1" /run/work
if [ -n "$2" ]; then mount --bind "$2" /run/runtime; fi
shift 2
exec "$@"
"""
_JOIN = 'while [ "$1" != -- ]; do echo $$ > "$1" || exit 1; shift; done; shift; exec "$@"'
# Says that the walls are up, then waits for one line. At the end of file (the agent is dead) it gives up.
_GATE = 'printf "\\000"; IFS= read -r word || exit 125; exec "$@" </dev/null'

# The job's door to the proxy (host_proxy.py): a socket that listens in its network is handed to the agent, which
# answers there. Nothing of it stays inside. Python ignores signals that the job must not.
DOOR_PORT = 3128
_OPEN_DOOR = f"""
import os, signal, socket, sys
door = socket.create_server(("127.0.0.1", {DOOR_PORT}), backlog=64)
with socket.socket(fileno=int(sys.argv[1])) as agent:
    socket.send_fds(agent, [b"door"], [door.fileno()])
door.close()
for number in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(number, signal.SIG_DFL)
os.execv(sys.argv[2], sys.argv[2:])
"""
_CERTIFICATES = ("/etc/ssl/certs", "/etc/pki/ca-trust", "/etc/pki/tls/certs", "/etc/ca-certificates")

_PASSWORD_FILE = b"job:x:65534:65534:job:/work:/bin/sh\n"
_GROUP_FILE = b"job:x:65534:\n"


@dataclass(frozen=True)
class Walls:
    """How this job is shut in on this machine.

    `image` is the disk to mount; without one the work directory lies in memory. `user` is the user id to
    change to, if we may. `join_files` and `limited` describe the job's control group; what it does not limit
    is limited by the second-best means (see `_build_prlimit`). `devices` are its GPUs: no other is in its /dev.
    """

    image: Path | None
    user: int | None
    join_files: tuple[Path, ...]
    limited: frozenset[str]
    processors: tuple[int, ...]
    devices: DeviceFiles = NO_DEVICES


@dataclass(frozen=True)
class Descriptors:
    """Numbers of the open files that bubblewrap inherits; `door` for a job that may reach hosts."""

    arguments: int
    info: int
    filter: int
    password: int
    group: int
    script: int
    door: int | None = None


def build_files(command: JobCommand, filter_program: bytes) -> dict[str, bytes]:
    """Contents of the inherited files, all but `arguments` and `info`. A job's text never appears in `ps`."""
    script = command.program if isinstance(command.program, str) else ""
    return {
        "filter": filter_program,
        "password": _PASSWORD_FILE,
        "group": _GROUP_FILE,
        "script": script.encode(),
    }


def build_command_line(
    command: JobCommand, limits: Limits, walls: Walls, descriptors: Descriptors, shell: str
) -> list[str]:
    """The whole chain of programs. `shell` runs the job's script."""
    line: list[str] = []
    if walls.image is not None:
        runtime = "" if command.runtime is None else str(command.runtime)
        line += ["unshare", "--mount", "--propagation", "private"]
        line += ["/bin/sh", "-c", _MOUNT, "sh", str(walls.image), runtime]
    if walls.join_files:
        line += ["/bin/sh", "-c", _JOIN, "sh", *map(str, walls.join_files), "--"]
    if walls.user is not None:
        line += ["setpriv", "--reuid", str(walls.user), "--regid", str(walls.user), "--clear-groups"]
        line += ["--no-new-privs"]
    line += _build_prlimit(limits, walls)
    # Of the job's environment and folders other users of this machine see nothing: bubblewrap reads them from
    # a file.
    line += ["bwrap", "--args", str(descriptors.arguments), "--"]
    if "pids" not in walls.limited:
        # Set inside, this counts the processes of the job's own user namespace and not what else the user runs.
        # Before the gate opens: the job's environment may name libraries among its files that every program loads.
        most = limits.processes + 1
        line += ["/usr/bin/prlimit", f"--nproc={most}:{most}"]
    if descriptors.door is not None:
        line += ["/usr/bin/python3", "-I", "-S", "-c", _OPEN_DOOR, str(descriptors.door)]
    line += ["/bin/sh", "-c", _GATE, "gate"]
    program = command.program
    return line + ([shell, SCRIPT] if isinstance(program, str) else list(program))


def _build_prlimit(limits: Limits, walls: Walls) -> list[str]:
    """Bounds for each single process. They stand in for the control group's where that lacks a controller.

    They do not see a sum over processes, so the executor polls that of the memory; and a job may undo the
    choice of processors, so its bound on processor time is the wall time on all of them.
    """
    disk = limits.disk_bytes
    line = ["prlimit", "--core=1", f"--fsize={disk}:{disk}", f"--nofile={OPEN_FILES_MAX}:{OPEN_FILES_MAX}"]
    if "memory" not in walls.limited:
        line.append(f"--data={limits.memory_bytes}:{limits.memory_bytes}")
    if "cpu" not in walls.limited:
        seconds = math.ceil(limits.wall_seconds * max(1, len(walls.processors))) + 1
        line += [f"--cpu={seconds}:{seconds}"]
        line += ["taskset", "--cpu-list", ",".join(map(str, walls.processors))]
    return line


def build_bubblewrap_arguments(command: JobCommand, limits: Limits, walls: Walls, descriptors: Descriptors) -> bytes:
    """What bubblewrap reads from its file of arguments: the view of the world that the job gets."""
    arguments = ["--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    arguments += ["--unshare-cgroup-try", "--disable-userns", "--die-with-parent", "--new-session"]
    arguments += ["--cap-drop", "ALL", "--uid", "65534", "--gid", "65534", "--hostname", "job"]
    arguments += ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib64"):
        arguments += ["--symlink", f"usr/{name}", f"/{name}"]
    for path in ("/etc/ld.so.cache", "/etc/alternatives"):
        arguments += ["--ro-bind-try", path, path]
    for path in _CERTIFICATES if command.hosts else ():
        arguments += ["--ro-bind-try", path, path]
    arguments += ["--ro-bind-data", str(descriptors.password), "/etc/passwd"]
    arguments += ["--ro-bind-data", str(descriptors.group), "/etc/group"]
    arguments += ["--perms", "0444", "--ro-bind-data", str(descriptors.script), SCRIPT]
    arguments += ["--proc", "/proc", "--dev", "/dev", *_build_device_arguments(walls.devices)]
    for path in SMALL_FILE_SYSTEMS:
        arguments += ["--size", str(SMALL_FILE_SYSTEM_BYTES), "--tmpfs", path]
    arguments += ["--remount-ro", "/dev"]  # it would be a file system in memory without any bound
    if command.runtime is not None:
        source = str(command.runtime) if walls.image is None else "/run/runtime"
        arguments += ["--ro-bind", source, RUNTIME]
    if walls.image is None:
        arguments += ["--size", str(limits.disk_bytes), "--tmpfs", WORK]
    else:
        arguments += ["--bind", "/run/work", WORK]
    arguments += ["--chdir", WORK, "--remount-ro", "/", "--clearenv"]
    for name, value in {**build_environment(command, limits), **dict(walls.devices.environment)}.items():
        arguments += ["--setenv", name, value]
    arguments += ["--seccomp", str(descriptors.filter), "--info-fd", str(descriptors.info)]
    return b"".join(argument.encode() + b"\0" for argument in arguments)


def _build_device_arguments(devices: DeviceFiles) -> list[str]:
    arguments: list[str] = []
    for option, paths in (("--dev-bind", devices.needed), ("--dev-bind-try", devices.optional)):
        for path in paths:
            arguments += [option, str(path), f"/dev/{path.name}"]
    return arguments


def build_environment(command: JobCommand, limits: Limits) -> dict[str, str]:
    """The job's environment variables.

    Numeric libraries would otherwise start a thread for each processor that they see, and these would then wait
    for one another within the job's smaller share.
    """
    environment = {"PATH": "/usr/bin:/bin", "HOME": WORK, "TMPDIR": "/tmp", "LANG": "C.UTF-8", "USER": "job"}
    threads = str(max(1, math.floor(limits.cores)))
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        environment[name] = threads
    if command.runtime is not None:
        environment["PATH"] = f"{RUNTIME}/bin:/usr/bin:/bin"
        environment["VIRTUAL_ENV"] = RUNTIME
    if command.hosts:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            environment[name] = environment[name.upper()] = f"http://127.0.0.1:{DOOR_PORT}"
        environment["no_proxy"] = environment["NO_PROXY"] = "localhost,127.0.0.1,::1"
    return {**environment, **command.environment}
