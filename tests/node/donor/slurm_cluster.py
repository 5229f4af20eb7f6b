"""A real Slurm cluster on this machine, for tests and demonstrations: accounting, GPUs, control groups, N nodes.

All its daemons live in namespaces of their own: a network with nothing but a loopback, so that no port is opened on
this machine and two clusters never meet; a process table whose end is the end of every daemon and every job; a view of
the file system. So one kill takes the whole cluster away, and the kernel does the same when the process that made it
dies.

The GPUs are character devices with the numbers of NVIDIA's, and nothing behind them. That is enough for Slurm to count
them, to hand them out, and to keep a job from opening those of another.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGES = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "munged": "munge",
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server-core",
    "mariadb": "mariadb-client-core",
    "bwrap": "bubblewrap",
    "ip": "iproute2",
}
CONTROLLERS = ("freezer", "memory", "devices", "cpuset", "cpuacct")
"""Of control groups, version 1: with them Slurm bounds memory and devices."""
CGROUPS = Path("/sys/fs/cgroup")
GPU_MAJOR = 195
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
START_SECONDS_MAX = 30.0
CLUSTER = "allmende"

# Without an address besides 127.0.0.1 the C library finds no host at all, not even by its number.
_FIRST_PROCESS = "ip link set lo up; ip address add 10.77.0.1/32 dev lo; sleep infinity & wait"


def find_obstacle() -> str:
    """Why no cluster can be started here, and what to do; empty when one can."""
    if os.geteuid() != 0:
        return "a Slurm cluster for tests needs the superuser's rights"
    missing = sorted({package for tool, package in PACKAGES.items() if shutil.which(tool, path=PATH) is None})
    return f"install Slurm for this: apt-get install {' '.join(missing)}" if missing else ""


class SlurmCluster:
    """A running cluster. `directory` holds everything of it, `shared` is what agent and nodes share."""

    def __init__(self, directory: Path, *, node_count: int = 3, cores: int = 2, memory_mb: int = 4000, gpus: int = 2):
        self.directory = directory
        self.shared = directory / "shared"
        self.gpu_prefix = str(directory / "gpu" / "nvidia")
        self.configuration = directory / "slurm.conf"
        self.is_confining = all((CGROUPS / controller).is_dir() for controller in CONTROLLERS)
        # Control groups are the machine's, named after the node: no two clusters may share a name.
        name = f"x{secrets.token_hex(3)}n"
        self.nodes = [f"{name}{number}" for number in range(node_count)]
        self._cores, self._memory_mb, self._gpus = cores, memory_mb, gpus
        self._environment = {"PATH": PATH, "LANG": "C.UTF-8", "SLURM_CONF": str(self.configuration)}
        self._holder: subprocess.Popen[bytes] | None = None
        self._init = 0

    @property
    def prefix(self) -> tuple[str, ...]:
        """What stands before a client's command so that it reaches the cluster."""
        return ("nsenter", f"--net=/proc/{self._init}/ns/net", "env", f"SLURM_CONF={self.configuration}")

    # -- coming and going -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Bring everything up; returns when all nodes are idle. Raises: RuntimeError."""
        for name in ("munge", "state", "log", "run", "gpu", "spool", "database", "shared"):
            (self.directory / name).mkdir()
        self.directory.chmod(0o755)  # munged insists, and jobs under their own user ids must come by
        self.shared.chmod(0o711)
        self._open_namespaces()
        self._make_gpus()
        self._write_configuration()
        self._start_munge()
        self._start_database()
        self.start_accounting()
        self.start_controller()
        for node in self.nodes:
            (self.directory / "spool" / node).mkdir()
            self._run("slurmd", "-N", node)
        self._wait(
            "every node is idle", lambda: len(self.read("sinfo", "-hN", "-t", "idle", "-o", "%n").split()) == self.size
        )

    @property
    def size(self) -> int:
        return len(self.nodes)

    def stop(self) -> None:
        """End every process of the cluster and remove what is left of it. Repeating it does nothing."""
        if self._holder is None:
            return
        os.kill(self._init, signal.SIGKILL)
        self._holder.wait()
        self._holder = None
        for controller in CONTROLLERS:
            for node in self.nodes:
                _remove_group(CGROUPS / controller / f"slurm_{node}")
        shutil.rmtree(self.directory)

    def _open_namespaces(self) -> None:
        # The shell is the first process of the table: it takes up the orphans, as such a one must.
        line = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]
        line += ["--mount-proc", "--propagation", "private", "sh", "-c", _FIRST_PROCESS]
        quiet = subprocess.DEVNULL
        self._holder = subprocess.Popen(line, stdin=quiet, stdout=quiet, stderr=quiet, env=self._environment)
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children")
        self._wait("the namespaces stand", lambda: bool(children.read_text().split()))
        self._init = int(children.read_text().split()[0])
        self._wait("the loopback is up", lambda: "10.77.0.1" in self.read("ip", "address", "show", "lo"))

    def _make_gpus(self) -> None:
        for number in range(self._gpus * self.size):
            os.mknod(f"{self.gpu_prefix}{number}", 0o666 | 0o020000, os.makedev(GPU_MAJOR, number))

    def _start_munge(self) -> None:
        place = self.directory / "munge"
        place.chmod(0o755)
        key = place / "key"
        key.touch(mode=0o400)
        key.write_bytes(secrets.token_bytes(128))
        names = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        self._run("munged", "--force", *(f"--{option}={place / name}" for option, name in names.items()))

    def _start_database(self) -> None:
        place, socket = self.directory / "database", self.directory / "run" / "database"
        self._run("mount", "-t", "tmpfs", "tmpfs", str(place))  # seen in the namespaces only, and gone with them
        # Nobody else can reach it, so it needs no users, and its tables of users not to be made, which takes seconds.
        self._start(
            "mariadbd", "--no-defaults", f"--datadir={place}", "--user=root", f"--socket={socket}",
            "--bind-address=127.0.0.1", "--port=3306", "--skip-grant-tables", "--innodb-lock-wait-timeout=900",
            "--innodb-log-file-size=8M", "--innodb-buffer-pool-size=32M", "--innodb-flush-log-at-trx-commit=0",
            "--skip-innodb-doublewrite", f"--log-error={self.directory / 'log' / 'database'}",
        )  # fmt: skip
        client = ("mariadb", "--no-defaults", "--user=root", f"--socket={socket}", "--execute")
        self._wait("the database answers", lambda: self.call(*client, "select 1").returncode == 0)
        self._run(*client, "create database slurm_acct_db")

    def start_accounting(self) -> None:
        """slurmdbd, which keeps what every job took."""
        self._run("slurmdbd")
        self._wait("accounting answers", lambda: self.call("sacctmgr", "-n", "show", "cluster").returncode == 0)
        self.call("sacctmgr", "-i", "add", "cluster", CLUSTER)

    # -- the controller, which tests kill -------------------------------------------------------------------------

    def start_controller(self) -> None:
        """slurmctld, which knows the queue."""
        self._run("slurmctld", "-i")

    def kill_controller(self, *, is_forgetting: bool = False) -> None:
        """`kill -9` of slurmctld; returns when it has gone. It writes its jobs down every few seconds: one that is to
        forget had not done so yet.
        """
        # The number in the file counts in the cluster's own table of processes.
        pid_file = self.directory / "run" / "slurmctld.pid"
        self._run("kill", "-9", pid_file.read_text().strip())
        pid_file.unlink()
        self._wait("the controller has gone", lambda: not self._is_controller_there())
        if is_forgetting:
            for path in (self.directory / "state").glob("job_state*"):
                path.unlink()

    def write_down(self, name: str) -> None:
        """Returns when the controller, killed now, would still know this job as it is."""
        state = self.directory / "state" / "job_state"
        before = state.stat().st_mtime_ns if state.exists() else 0
        # Any change makes it write within some seconds.
        self._run("scontrol", "update", f"JobName={name}", "Comment=changed")
        self._wait("the queue is on disk", lambda: state.exists() and state.stat().st_mtime_ns > before)

    def _is_controller_there(self) -> bool:
        return self.call("pgrep", "-x", "slurmctld").returncode == 0

    # -- calling --------------------------------------------------------------------------------------------------

    def read(self, *command: str) -> str:
        """What a command in the cluster's namespaces prints."""
        return self.call(*command).stdout

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the cluster's namespaces, to its end."""
        return subprocess.run(
            self._enter(command), env=self._environment, capture_output=True, text=True, timeout=60, check=False
        )

    def _run(self, *command: str) -> None:
        """Run a command that must succeed, such as a daemon, which goes to the background by itself."""
        output = self.directory / "log" / "commands"
        with output.open("ab") as file:
            done = subprocess.run(
                self._enter(command), env=self._environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        if done.returncode != 0:
            raise RuntimeError(f"{command[0]} failed: {output.read_text()[-500:]}")

    def _start(self, *command: str) -> None:
        """Start a daemon that stays in the foreground; it ends with the namespaces."""
        quoted = ("sh", "-c", '"$@" >/dev/null 2>&1 & exit 0', "sh", *command)
        self._run(*quoted)

    def _enter(self, command: tuple[str, ...]) -> list[str]:
        return ["nsenter", "--target", str(self._init), "--net", "--mount", "--pid", *command]

    def _wait(self, what: str, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        while not holds():
            if time.monotonic() > deadline:
                raise RuntimeError(f"not within {START_SECONDS_MAX:g} s: {what}")
            time.sleep(0.02)

    # -- configuration --------------------------------------------------------------------------------------------

    def _write_configuration(self) -> None:
        self.configuration.write_text("\n".join(self._iterate_settings()) + "\n")
        gres = (
            f"NodeName={node} Name=gpu Type=h100 File={self.gpu_prefix}[{first}-{first + self._gpus - 1}]"
            for node, first in zip(self.nodes, range(0, self._gpus * self.size, self._gpus), strict=True)
        )
        (self.directory / "gres.conf").write_text("\n".join(gres) + "\n")
        confined = "yes" if self.is_confining else "no"
        (self.directory / "cgroup.conf").write_text(
            f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={CGROUPS}\nCgroupAutomount=no\nConstrainCores=no\n"
            f"ConstrainRAMSpace={confined}\nConstrainSwapSpace=no\nConstrainDevices={confined}\n"
        )
        accounting = self.directory / "slurmdbd.conf"
        accounting.touch(mode=0o600)
        accounting.write_text(
            f"AuthType=auth/munge\nAuthInfo=socket={self.directory}/munge/socket\nDbdHost=localhost\n"
            f"DbdAddr=127.0.0.1\nDbdPort=6819\nSlurmUser=root\nLogFile={self.directory}/log/slurmdbd\n"
            f"PidFile={self.directory}/run/slurmdbd.pid\nStorageType=accounting_storage/mysql\n"
            "StorageHost=127.0.0.1\nStoragePort=3306\nStorageUser=slurm\nStoragePass=slurm\n"
            "StorageLoc=slurm_acct_db\n"
        )

    def _iterate_settings(self) -> Iterator[str]:
        place = self.directory
        yield f"ClusterName={CLUSTER}"
        yield "SlurmctldHost=localhost(127.0.0.1)"
        yield "SlurmUser=root\nSlurmdUser=root\nSlurmctldPort=6817"
        yield f"AuthType=auth/munge\nAuthInfo=socket={place}/munge/socket\nCredType=cred/munge"
        yield f"StateSaveLocation={place}/state\nSlurmdSpoolDir={place}/spool/%n"
        yield f"SlurmctldPidFile={place}/run/slurmctld.pid\nSlurmdPidFile={place}/run/slurmd-%n.pid"
        yield f"SlurmctldLogFile={place}/log/slurmctld\nSlurmdLogFile={place}/log/slurmd-%n"
        yield "MpiDefault=none\nSwitchType=switch/none\nReturnToService=2\nJobAcctGatherFrequency=task=1"
        yield "SlurmdParameters=config_overrides"  # a node has the cores and memory that we say, whatever is there
        yield "SchedulerType=sched/backfill"
        yield "SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1"
        yield "SelectType=select/cons_tres\nSelectTypeParameters=CR_Core_Memory\nGresTypes=gpu"
        yield "KillWait=2\nMinJobAge=300\nOverTimeLimit=0\nSlurmdTimeout=60\nInactiveLimit=0"
        if self.is_confining:
            yield "ProctrackType=proctrack/cgroup\nTaskPlugin=task/cgroup\nJobAcctGatherType=jobacct_gather/cgroup"
        else:
            yield "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nJobAcctGatherType=jobacct_gather/linux"
            yield "JobAcctGatherParams=OverMemoryKill"
        yield "AccountingStorageType=accounting_storage/slurmdbd\nAccountingStorageHost=127.0.0.1"
        yield f"AccountingStoragePass={place}/munge/socket\nAccountingStoragePort=6819"
        yield "AccountingStorageTRES=gres/gpu\nAccountingStoreFlags=job_comment"
        for number, node in enumerate(self.nodes):
            yield (
                f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={17000 + number} CPUs={self._cores} "
                f"Boards=1 SocketsPerBoard=1 CoresPerSocket={self._cores} ThreadsPerCore=1 "
                f"RealMemory={self._memory_mb} Gres=gpu:h100:{self._gpus} State=UNKNOWN"
            )
        yield f"PartitionName=main Nodes={','.join(self.nodes)} Default=YES MaxTime=24:00:00 DefMemPerCPU=500 State=UP"


@contextmanager
def running_cluster(**options: int) -> Iterator[SlurmCluster]:
    """A cluster that is there inside the block, and of which nothing is left behind it."""
    directory = Path(tempfile.mkdtemp(prefix="allmende-slurm-"))
    cluster = SlurmCluster(directory, **options)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def _remove_group(group: Path) -> None:
    """A control group and all below it; the processes in them have gone."""
    for path, _, _ in os.walk(group, topdown=False):
        os.rmdir(path)
