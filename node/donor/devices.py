"""What this machine has: processor cores, memory, disk, GPUs. A claim only: the self-test measures what they do."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

_NVIDIA = Path("/proc/driver/nvidia/gpus")
_MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_UNLIMITED_BYTES = 1 << 60


class Machine(NamedTuple):
    """What was found."""

    cores: int
    """Cores that this process may use."""
    memory_bytes: int
    """Memory of the machine, or of the container that we are in."""
    disk_free_bytes: int
    gpus: tuple[str, ...]


def find_machine(directory: Path) -> Machine:
    """Look around; `directory` lies on the disk that jobs would use."""
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    return Machine(
        len(os.sched_getaffinity(0)),
        _find_memory_bytes(),
        shutil.disk_usage(existing).free,
        find_gpus(_NVIDIA),
    )


def _find_memory_bytes() -> int:
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _MEMORY_LIMITS:
        try:
            limit = int(path.read_text())
        except (OSError, ValueError):  # no such file, or "max"
            continue
        if limit < _UNLIMITED_BYTES:
            found = min(found, limit)
    return found


def find_gpus(directory: Path) -> tuple[str, ...]:
    """Names of the GPUs that the kernel's NVIDIA driver lists, one for each."""
    names = []
    for path in sorted(directory.glob("*/information")):
        for line in path.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "Model":
                names.append(value.strip())
    return tuple(names)
