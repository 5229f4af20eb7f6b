"""Control groups: the kernel's way to bound and to measure a job with all the processes it will ever start.

Two generations exist. Version 2 has one tree; version 1 has a tree for each controller (memory, pids, cpu
...); some machines mount both. A job gets one directory in every tree that we may write to. Limits go
wherever the controller lives; the CPU counter and the kill switch of version 2 need no controller, so they
are used wherever version 2 is mounted. No process can leave its group, and the counters keep what ended
processes used: that is why metering rests on them and never on what a parent process reports of its children.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import trio

PERIOD_US = 100_000  # over which a share of the processors is granted, the kernel's own default
QUOTA_US_MIN = 1_000  # the kernel accepts no smaller share
USED_CONTROLLERS = frozenset({"memory", "pids", "cpu", "cpuacct", "freezer"})
_EMPTY_POLL_SECONDS = 0.005
_EMPTY_WAIT_SECONDS = 10.0  # a process that is stuck in the kernel may take this long to go


@dataclass(frozen=True)
class Tree:
    """One mounted hierarchy in which this process may make groups.

    `parent` is the directory to make them in; `controllers` are those of ours that work there.
    """

    version: int
    parent: Path
    controllers: frozenset[str]


def find_mounted_trees(mounts: str, own_groups: str) -> tuple[Tree, ...]:
    """The hierarchies that are mounted, from the texts of /proc/self/mountinfo and /proc/self/cgroup.

    Groups of version 1 go below this process's own, so that a job stays within what bounds its agent. Writes
    nothing and promises nothing about permissions.
    """
    own_paths: dict[str, str] = {}
    for line in own_groups.splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            own_paths[name] = path
    trees: dict[Path, Tree] = {}
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        root, mounted_at = before.split(" ")[3:5]
        if kind not in ("cgroup", "cgroup2"):
            continue
        controllers = USED_CONTROLLERS.intersection(options.split(","))
        known_as = "" if kind == "cgroup2" else min(controllers, default="none")
        if known_as not in own_paths:
            continue
        path = own_paths[known_as]
        if root != "/":  # a container mounts only its own part of the tree
            path = path.removeprefix(root) if path.startswith(root + "/") or path == root else "/"
        parent = Path(mounted_at, path.lstrip("/"))
        version = 1 if kind == "cgroup" else 2  # which controllers version 2 has here, its own files tell
        trees[parent] = Tree(version, parent, controllers)
    return tuple(trees.values())


def open_trees() -> tuple[Tree, ...]:
    """The hierarchies in which this process can really make groups, controllers of version 2 switched on.

    Empty on a machine where we have no such right; then the caller bounds jobs by other means. Repeating it
    is harmless.
    """
    try:
        mounts = Path("/proc/self/mountinfo").read_text()
        own_groups = Path("/proc/self/cgroup").read_text()
    except OSError:
        return ()
    usable = []
    for tree in find_mounted_trees(mounts, own_groups):
        prepared = _prepare_version_2(tree) if tree.version == 2 else tree
        if prepared is not None and _can_make_groups(prepared.parent):
            usable.append(prepared)
    return tuple(usable)


def _can_make_groups(parent: Path) -> bool:
    probe = parent / f"allmende-probe-{os.getpid()}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError:
        return False
    return True


def _prepare_version_2(tree: Tree) -> Tree | None:
    """Chooses where in the tree of version 2 jobs go, and switches the controllers on there.

    Below our own group if it was handed over to us (systemd's `Delegate=yes`), else, for the superuser, at
    the top. A group can't both hold processes and share out controllers, unless it is the topmost: so in the
    first case this process first moves itself into a group beside the jobs.
    """
    own = tree.parent
    top = own
    while (top.parent / "cgroup.procs").exists():
        top = top.parent
    if own != top and _is_delegated(own):
        parent = own.parent if own.name == "allmende-agent" else own
        if _share_controllers(parent) or _move_aside(parent):
            _share_controllers(parent)
        return Tree(2, parent, _read_shared_controllers(parent))
    if os.access(top / "cgroup.procs", os.W_OK):
        _share_controllers(top)
        return Tree(2, top, _read_shared_controllers(top))
    return None


def _is_delegated(group: Path) -> bool:
    if os.geteuid() != 0:
        return os.access(group, os.W_OK) and os.access(group / "cgroup.procs", os.W_OK)
    for attribute in ("trusted.delegate", "user.delegate"):
        try:
            if os.getxattr(group, attribute) == b"1":
                return True
        except OSError:
            continue
    return False


def _share_controllers(group: Path) -> bool:
    """Passes each of our controllers on to the groups below; whether all that exist here are passed on."""
    for name in _read_words(group / "cgroup.controllers") & USED_CONTROLLERS:
        try:
            (group / "cgroup.subtree_control").write_text(f"+{name}")
        except OSError:
            return False
    return True


def _read_shared_controllers(group: Path) -> frozenset[str]:
    return frozenset(_read_words(group / "cgroup.subtree_control") & USED_CONTROLLERS)


def _move_aside(group: Path) -> bool:
    aside = group / "allmende-agent"
    try:
        aside.mkdir(exist_ok=True)
        for process in _read_words(group / "cgroup.procs"):
            (aside / "cgroup.procs").write_text(process)
    except OSError:
        return False
    return True


def _read_words(path: Path) -> set[str]:
    try:
        return set(path.read_text().split())
    except OSError:
        return set()


def _read_fields(path: Path) -> dict[str, int]:
    """A file of lines `name number`."""
    pairs = (line.split() for line in path.read_text().splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}


class JobGroup:
    """The groups of one job, one directory in each tree.

    Invariants: `limited` names the resources that these groups bound; whatever is missing there the caller
    must bound itself. `close` leaves no directory behind.
    """

    def __init__(self, trees: Iterable[Tree], name: str) -> None:
        """The groups of that name, which exist in all these trees already; `make` makes them."""
        self._directories: list[Path] = []
        self._places: dict[str, Path] = {}
        self._version_2: Path | None = None
        self._memory_peak_bytes = 0
        for tree in trees:
            directory = tree.parent / name
            self._directories.append(directory)
            if tree.version == 2:
                self._version_2 = directory
            for controller in tree.controllers:
                self._places[controller] = directory

    @classmethod
    def make(cls, trees: Iterable[Tree], name: str) -> JobGroup:
        """Makes the groups of a new job: all or none. Raises: OSError."""
        made: list[Path] = []
        trees = tuple(trees)
        try:
            for tree in trees:
                (tree.parent / name).mkdir()
                made.append(tree.parent / name)
        except OSError:
            for directory in made:
                directory.rmdir()
            raise
        return cls(trees, name)

    @property
    def limited(self) -> frozenset[str]:
        return frozenset(self._places) & {"memory", "pids", "cpu"}

    @property
    def join_files(self) -> tuple[Path, ...]:
        """A process that writes its id into each of these files belongs to the job from then on."""
        return tuple(directory / "cgroup.procs" for directory in self._directories)

    def set_limits(self, *, memory_bytes: int, processes: int, cores: float) -> None:
        """Bounds the job; memory includes swap and files that live in memory."""
        quota_us = max(QUOTA_US_MIN, round(cores * PERIOD_US))
        if (place := self._places.get("memory")) is not None:
            if place == self._version_2:
                (place / "memory.max").write_text(str(memory_bytes))
                _write_if_present(place / "memory.swap.max", "0")
                _write_if_present(place / "memory.oom.group", "1")
            else:
                (place / "memory.limit_in_bytes").write_text(str(memory_bytes))
                _write_if_present(place / "memory.memsw.limit_in_bytes", str(memory_bytes))
        if (place := self._places.get("pids")) is not None:
            (place / "pids.max").write_text(str(processes))
        if (place := self._places.get("cpu")) is not None:
            if place == self._version_2:
                (place / "cpu.max").write_text(f"{quota_us} {PERIOD_US}")
            else:
                (place / "cpu.cfs_period_us").write_text(str(PERIOD_US))
                (place / "cpu.cfs_quota_us").write_text(str(quota_us))

    def read_cpu_us(self) -> int | None:
        """Processor time of all processes that ever were in the group; none if no counter is at hand."""
        if self._version_2 is not None:
            return _read_fields(self._version_2 / "cpu.stat")["usage_usec"]
        if (place := self._places.get("cpuacct")) is not None:
            return int((place / "cpuacct.usage").read_text()) // 1000
        return None

    def read_memory_peak_bytes(self) -> int:
        """The most memory that was in use at once; 0 if these groups do not count memory."""
        if (place := self._places.get("memory")) is None:
            return 0
        if place != self._version_2:
            value = int((place / "memory.max_usage_in_bytes").read_text())
        elif (place / "memory.peak").exists():
            value = int((place / "memory.peak").read_text())
        else:  # before Linux 5.19 the peak is what we have seen ourselves
            value = int((place / "memory.current").read_text())
        self._memory_peak_bytes = max(self._memory_peak_bytes, value)
        return self._memory_peak_bytes

    def count_memory_kills(self) -> int:
        """How many processes the kernel ended because the job had used up its memory."""
        if (place := self._places.get("memory")) is None:
            return 0
        name = "memory.events" if place == self._version_2 else "memory.oom_control"
        return _read_fields(place / name).get("oom_kill", 0)

    def list_processes(self) -> list[int]:
        found: set[int] = set()
        for path in self.join_files:
            found.update(int(word) for word in _read_words(path))
        return sorted(found)

    @property
    def can_freeze(self) -> bool:
        """Whether all processes can be stopped at once, those that are born meanwhile included."""
        return self._find_freezer() is not None

    def set_frozen(self, is_frozen: bool) -> None:
        """Stops every process of the job where it is, or lets all go on. Takes effect within moments."""
        freezer = self._find_freezer()
        assert freezer is not None
        if freezer.name == "cgroup.freeze":
            freezer.write_text("1" if is_frozen else "0")
        else:
            freezer.write_text("FROZEN" if is_frozen else "THAWED")

    @property
    def is_frozen(self) -> bool:
        """Whether every process of the group stands still by now; trivially so when there is none."""
        freezer = self._find_freezer()
        assert freezer is not None
        if freezer.name == "cgroup.freeze":
            is_still = _read_fields(freezer.with_name("cgroup.events")).get("frozen") == 1
        else:
            is_still = freezer.read_text().strip() == "FROZEN"
        return is_still or not self.list_processes()

    def _find_freezer(self) -> Path | None:
        if self._version_2 is not None and (self._version_2 / "cgroup.freeze").exists():
            return self._version_2 / "cgroup.freeze"
        place = self._places.get("freezer")
        return None if place is None else place / "freezer.state"

    def kill(self) -> None:
        """Ends every process of the job by force. Without version 2 some may be born meanwhile: repeat it.

        What version 1 has frozen can't even die, so it is let go on after all have got their signal: none of
        them comes to do anything more. The freezer of version 2 stands in no signal's way.
        """
        if self._version_2 is not None and (self._version_2 / "cgroup.kill").exists():
            (self._version_2 / "cgroup.kill").write_text("1")
            return
        if (place := self._places.get("pids")) is not None:
            (place / "pids.max").write_text("0")  # otherwise a fork bomb could outrun the loop below
        for process in self.list_processes():
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if (place := self._places.get("freezer")) is not None and place != self._version_2:
            (place / "freezer.state").write_text("THAWED")

    async def kill_all(self) -> None:
        """Ends every process and waits until none is left. Raises: TimeoutError if one can't be ended."""
        deadline = trio.current_time() + _EMPTY_WAIT_SECONDS
        while self.list_processes():
            if trio.current_time() > deadline:
                raise TimeoutError(f"processes {self.list_processes()} can't be ended")
            self.kill()
            await trio.sleep(_EMPTY_POLL_SECONDS)

    async def close(self) -> None:
        """Ends what is left and removes the directories."""
        await self.kill_all()
        for directory in self._directories:
            await _remove_directory(directory)


async def _remove_directory(directory: Path) -> None:
    deadline = trio.current_time() + _EMPTY_WAIT_SECONDS
    while True:  # the kernel may hold an empty group for some milliseconds more
        try:
            directory.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:
            if trio.current_time() > deadline:
                raise
        await trio.sleep(_EMPTY_POLL_SECONDS)


async def remove_leftovers(trees: Iterable[Tree], prefix: str) -> int:
    """Ends and removes all groups whose name starts with `prefix`: those of an agent that is no more.

    Returns how many jobs it found.
    """
    trees = tuple(trees)
    names = {path.name for tree in trees for path in tree.parent.glob(f"{prefix}*") if path.is_dir()}
    for name in sorted(names):
        existing = [tree for tree in trees if (tree.parent / name).is_dir()]
        await JobGroup(existing, name).close()
    return len(names)


def _write_if_present(path: Path, text: str) -> None:
    """Settings that not every kernel has; without swap they say nothing."""
    if path.exists():
        path.write_text(text)
