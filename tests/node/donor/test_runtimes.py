"""Runtimes are the same wherever they lie, are found again, and work inside the sandbox."""

from __future__ import annotations

import hashlib
import os
import shutil

import pytest

from node.donor.executors.executor import JobCommand, Limits
from node.donor.executors.sandbox import Sandbox, find_missing_tools
from node.donor.runtimes import KNOWN_RUNTIMES, build_runtime, compute_runtime_digest, load_runtimes
from node.errors import UserError


@pytest.fixture(scope="module", autouse=True)
def _bubblewrap_is_here() -> None:
    if missing := find_missing_tools():
        pytest.fail(f"runtimes can't be tested: run apt-get install {' '.join(missing)}")


def write_tree(directory) -> None:
    (directory / "bin").mkdir(parents=True)
    (directory / "bin" / "run").write_text("#!/bin/sh\n")
    (directory / "bin" / "run").chmod(0o755)
    (directory / "bin.txt").write_text("text")
    (directory / "link").symlink_to("bin/run")


def test_the_digest_is_what_its_definition_says(tmp_path):
    write_tree(tmp_path / "tree")

    def hash_text(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    by_hand = (
        "allmende runtime 1\n"
        f"f {hash_text('text')} bin.txt\0"
        f"x {hash_text(chr(35) + '!/bin/sh' + chr(10))} bin/run\0"
        f"l {hash_text('bin/run')} link\0"
    )
    assert compute_runtime_digest(tmp_path / "tree") == hashlib.sha256(by_hand.encode()).digest()


def test_the_digest_depends_on_the_contents_and_on_nothing_else(tmp_path):
    write_tree(tmp_path / "one")
    write_tree(tmp_path / "far" / "away" / "two")
    one = compute_runtime_digest(tmp_path / "one")
    assert compute_runtime_digest(tmp_path / "far" / "away" / "two") == one
    os.utime(tmp_path / "one" / "bin.txt", (1, 1))
    (tmp_path / "one" / "bin.txt").chmod(0o600)
    (tmp_path / "one" / "bin" / "__pycache__").mkdir()
    (tmp_path / "one" / "bin" / "__pycache__" / "run.pyc").write_bytes(b"derived")
    assert compute_runtime_digest(tmp_path / "one") == one


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: (tree / "bin.txt").write_text("Text"),
        lambda tree: (tree / "bin.txt").chmod(0o755),
        lambda tree: (tree / "bin.txt").rename(tree / "other.txt"),
        lambda tree: (tree / "more").write_text(""),
        lambda tree: (tree / "link").unlink(),
        lambda tree: ((tree / "link").unlink(), (tree / "link").symlink_to("bin.txt")),
        lambda tree: ((tree / "link").unlink(), (tree / "link").write_text("bin/run")),
    ],
)
def test_any_change_that_a_job_could_see_changes_the_digest(tmp_path, change):
    write_tree(tmp_path / "tree")
    before = compute_runtime_digest(tmp_path / "tree")
    change(tmp_path / "tree")
    assert compute_runtime_digest(tmp_path / "tree") != before


def test_what_is_neither_file_nor_link_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="neither file nor link"):
        compute_runtime_digest(tmp_path)


def test_two_donors_build_the_same_runtime(tmp_path):
    one = build_runtime("plain", (), tmp_path / "one")
    two = build_runtime("plain", (), tmp_path / "a" / "longer" / "way")
    assert one.digest == two.digest
    assert sorted(os.listdir(tmp_path / "one")) == ["plain", "plain.json"]
    assert str(tmp_path) not in (one.directory / "pyvenv.cfg").read_text()


def test_a_runtime_is_built_once_and_found_again(tmp_path):
    built = build_runtime("plain", (), tmp_path)
    changed_at = (built.directory / "pyvenv.cfg").stat().st_mtime_ns
    assert build_runtime("plain", (), tmp_path) == built
    assert (built.directory / "pyvenv.cfg").stat().st_mtime_ns == changed_at
    assert load_runtimes(tmp_path) == {"plain": built}
    with pytest.raises(UserError, match="other requirements"):
        build_runtime("plain", ("numpy==2.4.6",), tmp_path)
    shutil.rmtree(built.directory)
    assert load_runtimes(tmp_path) == {}


def test_a_runtime_that_was_changed_is_offered_under_its_new_digest(tmp_path):
    built = build_runtime("plain", (), tmp_path)
    (built.directory / "more").write_text("more")
    found = load_runtimes(tmp_path)["plain"]
    assert found.digest == compute_runtime_digest(built.directory) != built.digest
    assert load_runtimes(tmp_path)["plain"] == found


def test_a_failed_build_leaves_nothing_and_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(UserError, match=r"can't be built.*no-such-package"):
        build_runtime("broken", ("no-such-package==1.0",), tmp_path / "runtimes")
    assert os.listdir(tmp_path / "runtimes") == []
    with pytest.raises(UserError, match="exact versions"):
        build_runtime("loose", ("numpy>=2",), tmp_path / "runtimes")
    with pytest.raises(UserError, match="can't be a runtime's name"):
        build_runtime("../up", (), tmp_path / "runtimes")


def test_an_unreadable_record_is_told_with_what_to_do(tmp_path):
    runtime = build_runtime("plain", (), tmp_path)
    (tmp_path / "plain.json").write_text("{")
    with pytest.raises(UserError, match="remove"):
        load_runtimes(tmp_path)
    assert runtime.directory.exists()


def test_known_runtimes_name_exact_versions():
    assert "python-ml" in KNOWN_RUNTIMES
    assert all("==" in requirement for known in KNOWN_RUNTIMES.values() for requirement in known)


async def test_a_job_uses_its_runtime_and_cannot_change_it(tmp_path):
    runtime = build_runtime("plain", (), tmp_path / "runtimes")
    (packages,) = runtime.directory.glob("lib/python3*/site-packages")
    (packages / "lent.py").write_text("ANSWER = 42\n")
    sandbox = Sandbox(tmp_path / "jobs")
    await sandbox.sweep()
    program = """
import lent, os, sys
print(lent.ANSWER, sys.prefix, os.access("/runtime/x", os.W_OK))
try:
    open("/runtime/x", "w")
except OSError as error:
    print(error.strerror)
"""
    command = JobCommand(("python3", "-c", program), 1 << 20, {}, runtime=runtime.directory)
    outcome = await sandbox.run("job", command, Limits(1, 1 << 27, 32, 1 << 23, 20))
    sandbox.close()
    assert outcome.log_path.read_text() == "42 /runtime False\nRead-only file system\n"
    assert (outcome.state, outcome.exit_status) == ("exited", 0)
