"""Finding, limiting, measuring and emptying control groups of both generations.

What this machine does not have mounted is played with plain files: the kernel's interface is files, too.
"""

from __future__ import annotations

import os
import subprocess
import time
import uuid
from pathlib import Path

import pytest

from node.donor.executors import cgroups
from node.donor.executors.cgroups import JobGroup, Tree, find_mounted_trees

PURE_VERSION_2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
HYBRID = """\
22 1 0:20 / / rw - ext4 /dev/vda rw
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw"""
CONTAINER = "35 31 0:32 /box/seven /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"

real_trees = cgroups.open_trees()
needs_groups = pytest.mark.skipif(not real_trees, reason="this user may make no control groups on this machine")


def test_the_one_tree_of_version_2_is_found_at_the_own_group():
    trees = find_mounted_trees(PURE_VERSION_2, "0::/system.slice/donor.service\n")
    assert trees == (Tree(2, Path("/sys/fs/cgroup/system.slice/donor.service"), frozenset()),)


def test_the_trees_of_both_versions_are_found_once_each():
    trees = find_mounted_trees(HYBRID, "4:memory:/agents/one\n2:cpu,cpuacct:/\n1:name=systemd:/\n0::/\n")
    assert trees == (
        Tree(1, Path("/sys/fs/cgroup/cpu,cpuacct"), frozenset({"cpu", "cpuacct"})),
        Tree(1, Path("/sys/fs/cgroup/memory/agents/one"), frozenset({"memory"})),
        Tree(2, Path("/sys/fs/cgroup/unified"), frozenset()),
    )


def test_a_container_sees_its_own_part_of_the_tree():
    assert find_mounted_trees(CONTAINER, "4:memory:/box/seven/agent\n")[0].parent == Path("/sys/fs/cgroup/memory/agent")
    assert find_mounted_trees(CONTAINER, "4:memory:/box/seven\n")[0].parent == Path("/sys/fs/cgroup/memory")
    assert find_mounted_trees(CONTAINER, "4:memory:/elsewhere\n")[0].parent == Path("/sys/fs/cgroup/memory")


def test_limits_of_version_2_go_into_its_files(tmp_path):
    tree = Tree(2, tmp_path, frozenset({"memory", "pids", "cpu"}))
    group = JobGroup.make([tree], "job")
    (tmp_path / "job" / "memory.oom.group").write_text("0")
    (tmp_path / "job" / "memory.swap.max").write_text("max")
    group.set_limits(memory_bytes=1 << 26, processes=12, cores=1.5)
    written = {path.name: path.read_text() for path in (tmp_path / "job").iterdir()}
    assert written == {
        "memory.max": str(1 << 26),
        "memory.oom.group": "1",
        "memory.swap.max": "0",
        "pids.max": "12",
        "cpu.max": "150000 100000",
    }
    assert group.limited == {"memory", "pids", "cpu"}


def test_limits_of_version_1_go_into_the_tree_of_each_controller(tmp_path):
    for name in ("memory", "cpu", "unified"):
        (tmp_path / name).mkdir()
    trees = [
        Tree(1, tmp_path / "memory", frozenset({"memory"})),
        Tree(1, tmp_path / "cpu", frozenset({"cpu", "cpuacct"})),
        Tree(2, tmp_path / "unified", frozenset()),
    ]
    group = JobGroup.make(trees, "job")
    group.set_limits(memory_bytes=1 << 26, processes=12, cores=0.001)
    assert (tmp_path / "memory" / "job" / "memory.limit_in_bytes").read_text() == str(1 << 26)
    assert (tmp_path / "cpu" / "job" / "cpu.cfs_quota_us").read_text() == "1000"
    assert os.listdir(tmp_path / "unified" / "job") == []
    assert group.limited == {"memory", "cpu"}
    assert len(group.join_files) == 3


def test_figures_are_read_from_whatever_counts_them(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    old = JobGroup.make([Tree(1, one, frozenset({"memory", "cpuacct"}))], "job")
    (one / "job" / "cpuacct.usage").write_text("1234567\n")
    (one / "job" / "memory.max_usage_in_bytes").write_text("4096\n")
    (one / "job" / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    assert (old.read_cpu_us(), old.read_memory_peak_bytes(), old.count_memory_kills()) == (1234, 4096, 2)
    new = JobGroup.make([Tree(2, two, frozenset({"memory"}))], "job")
    (two / "job" / "cpu.stat").write_text("usage_usec 77\nuser_usec 70\n")
    (two / "job" / "memory.current").write_text("9000\n")
    (two / "job" / "memory.events").write_text("low 0\noom 1\noom_kill 1\n")
    assert (new.read_cpu_us(), new.read_memory_peak_bytes(), new.count_memory_kills()) == (77, 9000, 1)
    (two / "job" / "memory.current").write_text("10\n")
    assert new.read_memory_peak_bytes() == 9000
    none = JobGroup((), "job")
    assert (none.read_cpu_us(), none.read_memory_peak_bytes(), none.count_memory_kills()) == (None, 0, 0)


def test_a_job_gets_all_its_groups_or_none(tmp_path):
    (tmp_path / "one").mkdir()
    trees = [Tree(1, tmp_path / "one", frozenset({"pids"})), Tree(2, tmp_path / "absent", frozenset())]
    with pytest.raises(FileNotFoundError):
        JobGroup.make(trees, "job")
    assert os.listdir(tmp_path / "one") == []


def start_in(group: JobGroup, program: str) -> subprocess.Popen[bytes]:
    join = "".join(f"echo $$ > {path}; " for path in group.join_files)
    return subprocess.Popen(["/bin/sh", "-c", f"{join} {program}"], stdout=subprocess.PIPE)


@needs_groups
@pytest.mark.parametrize("versions", [{1, 2}, {1}])
@pytest.mark.parametrize("is_frozen", [False, True])
async def test_a_group_is_emptied_of_processes_that_left_their_parents(versions, is_frozen):
    trees = [tree for tree in real_trees if tree.version in versions]
    if not trees:
        pytest.skip("this machine has no such trees")
    group = JobGroup.make(trees, f"allmende-test-{uuid.uuid4().hex}")
    process = start_in(group, "setsid sleep 600 & (setsid sleep 600 &) ; echo up; exec sleep 600")
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"up\n"
    assert len(group.list_processes()) >= 3
    if is_frozen:
        assert group.can_freeze
        group.set_frozen(True)
        deadline = time.monotonic() + 10
        while not group.is_frozen and time.monotonic() < deadline:
            pass
        assert group.is_frozen
    await group.close()
    assert process.wait() == -9
    assert not any(path.exists() for path in group.join_files)


@needs_groups
async def test_processor_time_stays_counted_when_the_process_has_gone():
    group = JobGroup.make(real_trees, f"allmende-test-{uuid.uuid4().hex}")
    before = time.monotonic()
    process = start_in(group, "/usr/bin/python3 -c 'import time\nwhile time.process_time() < 0.2: pass'")
    assert process.wait() == 0
    assert process.stdout is not None
    process.stdout.close()
    cpu_us = group.read_cpu_us()
    assert cpu_us is not None
    assert 200_000 <= cpu_us <= (time.monotonic() - before) * 1_000_000
    await group.close()


@needs_groups
async def test_leftovers_are_found_by_their_prefix_alone():
    prefix = f"allmende-test-{uuid.uuid4().hex}-"
    left = JobGroup.make(real_trees, prefix + "left")
    JobGroup.make(real_trees[:1], prefix + "half")  # its agent died while making it
    other = JobGroup.make(real_trees, f"allmende-test-{uuid.uuid4().hex}")
    process = start_in(left, "echo up; exec sleep 600")
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"up\n"
    assert await cgroups.remove_leftovers(real_trees, prefix) == 2
    assert process.wait() == -9
    assert all(path.exists() for path in other.join_files)
    await other.close()
    assert await cgroups.remove_leftovers(real_trees, prefix) == 0
