"""What this machine has: processor cores, memory, disk, GPUs. A claim only: the self-test measures what they do."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from node.donor.gpus import SurveyedGpu, survey_gpus

_MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_UNLIMITED_BYTES = 1 << 60


class Hardware(NamedTuple):
    """What was found."""

    cores: int
    """Cores that this process may use."""
    memory_bytes: int
    """Memory of the machine, or of the container that we are in."""
    disk_free_bytes: int
    gpus: tuple[SurveyedGpu, ...]


def find_hardware(directory: Path, is_ours: Callable[[int], bool] = lambda process: False) -> Hardware:
    """Look around; `directory` lies on the disk that jobs would use, `is_ours` knows processes of our jobs."""
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    return Hardware(
        len(os.sched_getaffinity(0)),
        _find_memory_bytes(),
        shutil.disk_usage(existing).free,
        survey_gpus(is_ours),
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
