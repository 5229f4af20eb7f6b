"""What a cluster's node is told to run: the sandbox's own walls, put up over there. Values in, values out.

The script of a job first claims it: Slurm may start a job again, or a forgotten and a repeated submission may both come
to run, but only one process can make the file `claimed`, so nothing is computed or charged twice. Then it becomes
bubblewrap with the arguments that a job on the donor's own machine would get, but for two things: its work directory is
a folder of the shared file system, and it gets the GPUs that Slurm has allocated, whose numbers are known only there.

The zero byte of the sandbox's gate, which says that the walls are up, goes through a pipe into the file `entered`, out
of the job's reach: whoever could take it back would have run for nothing.
"""

from __future__ import annotations

import math
import shlex
from pathlib import Path

from node.donor.executors import launch
from node.donor.executors.executor import JobCommand, Limits
from node.donor.executors.slurm_settings import SlurmSettings

CLAIMED_STATUS = 99
MEBIBYTE = 1 << 20

_DESCRIPTORS = launch.Descriptors(arguments=3, filter=4, password=5, group=6, script=7, info=8)
_REST = 9
"""Where bubblewrap reads the arguments that follow the GPUs."""
_GPU_DEVICES = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools")

_PRINT = ("/bin/sh", "-c", 'exec "$@" >&2', "sh")
"""Behind the gate, what the job prints goes where Slurm writes it down."""

_SCRIPT = """#!/bin/sh
cd {directory} || exit 125
(set -C; echo "$SLURM_JOB_ID" >claimed) 2>/dev/null || exit {claimed_status}
set --
for number in $(echo "$SLURM_JOB_GPUS" | tr , " "); do
    set -- "$@" --dev-bind {gpu}"$number" "/dev/nvidia$number"
done
if [ $# -gt 0 ]; then
    set -- "$@" {gpu_devices}
fi
mkfifo gate || exit 125
dd bs=1 count=1 <gate >entered 2>/dev/null &
exec {opened} <word >gate
exec {before} "$@" {rest} ${{CUDA_VISIBLE_DEVICES:+--setenv CUDA_VISIBLE_DEVICES "$CUDA_VISIBLE_DEVICES"}} {after}
"""


def build_files(
    command: JobCommand, limits: Limits, work: Path, user: int | None, filter_program: bytes
) -> dict[str, bytes]:
    """What the script reads, by file name, but for itself."""
    walls = _build_walls(user)
    arguments = launch.build_bubblewrap_arguments(command, limits, walls, _DESCRIPTORS)
    # The GPUs come before /dev is closed; the folder comes over the file system in memory that is there instead.
    first, seam, rest = arguments.partition(b"--remount-ro\0/dev\0")
    assert seam
    rest = seam + rest + b"".join(part + b"\0" for part in (b"--bind", bytes(work), launch.WORK.encode()))
    files = launch.build_files(command, filter_program)
    return {**files, "arguments": first, "rest": rest, "word": b"go\n"}


def build_script(
    command: JobCommand, limits: Limits, directory: Path, user: int | None, settings: SlurmSettings
) -> str:
    """The batch script of a job whose files lie in `directory`."""
    line = launch.build_command_line(command, limits, _build_walls(user), _DESCRIPTORS, "/bin/bash")
    place = line.index("bwrap")
    start = [*line[:place], "bwrap", "--args", str(_DESCRIPTORS.arguments)]
    assert line[place + 1 : place + 3] == start[-2:]
    gate = line.index("gate", place) + 1
    devices = [f"--dev-bind-try /dev/{name} /dev/{name}" for name in _GPU_DEVICES]
    names = {name: getattr(_DESCRIPTORS, name) for name in ("arguments", "filter", "password", "group", "script")}
    opened = [f"{number}<{name}" for name, number in {**names, "rest": _REST}.items()]
    return _SCRIPT.format(
        directory=shlex.quote(str(directory)),
        claimed_status=CLAIMED_STATUS,
        gpu=shlex.quote(settings.gpu_device_prefix),
        gpu_devices=" ".join(devices),
        opened=" ".join([*opened, f"{_DESCRIPTORS.info}>/dev/null"]),
        before=shlex.join(start),
        rest=f"--args {_REST}",
        after=shlex.join([*line[place + 3 : gate], *_PRINT, *line[gate:]]),
    )


def build_submission(name: str, comment: str, limits: Limits, directory: Path, settings: SlurmSettings) -> list[str]:
    """The command that submits it. Slurm's own time limit stands behind ours: it counts whole minutes."""
    line = ["sbatch", "--parsable", "--no-requeue", "--nodes=1", "--ntasks=1", "--export=ALL", "--input=/dev/null"]
    line += [f"--job-name={name}", f"--comment={comment}", "--chdir=/", f"--output={directory / 'printed'}"]
    line += [f"--cpus-per-task={math.ceil(limits.cores)}", f"--mem={math.ceil(limits.memory_bytes / MEBIBYTE)}M"]
    line += [f"--time={math.ceil(limits.wall_seconds / 60) + 1}"]
    if limits.gpus:
        line.append(f"--gres={settings.gres}:{limits.gpus}")
    chosen = {"partition": settings.partition, "account": settings.account, "qos": settings.quality_of_service}
    line += [f"--{option}={value}" for option, value in chosen.items() if value]
    return [*line, str(directory / "batch")]


def _build_walls(user: int | None) -> launch.Walls:
    """Memory and processors are Slurm's to bound; how many processes there may be is bounded inside."""
    return launch.Walls(image=None, user=user, join_files=(), limited=frozenset({"memory", "cpu"}), processors=())
