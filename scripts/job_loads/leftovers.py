"""What a load of jobs may have left behind on this machine: processes, mounts, loop devices, control groups."""

from __future__ import annotations

import os
from pathlib import Path

from node.donor.executors.sandbox import compute_group_prefix

CGROUPS = Path("/sys/fs/cgroup")


def find_leftovers(folder: Path, sandboxes: list[Path]) -> list[str]:
    """Processes that name the folder, other than those that lead to this one; mounts in it and images of it; groups of
    the sandboxes' jobs.
    """
    found = [f"mounted: {line}" for line in Path("/proc/self/mounts").read_text().splitlines() if str(folder) in line]
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        if str(folder) in backing.read_text():
            found.append(f"loop device: {backing.parts[3]}")
    own = set(_list_ancestors())
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has just ended
        if str(folder) in line and int(process.name) not in own:
            found.append(f"process {process.name}: {line[:120]}")
    for sandbox in sandboxes:
        found += (f"control group: {path}" for path in CGROUPS.rglob(f"{compute_group_prefix(sandbox)}*"))
    return found


def _list_ancestors() -> list[int]:
    found, process = [], os.getpid()
    while process > 1:
        found.append(process)
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return found
