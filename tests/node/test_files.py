"""Writing whole, reading privately, working alone."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from node.errors import UserError
from node.files import lock_directory, read_private, write_atomically


def test_a_file_is_written_whole_and_private_whatever_the_umask(tmp_path):
    path = tmp_path / "wallet.key"
    before = os.umask(0o777)
    try:
        write_atomically(path, b"one")
        write_atomically(path, b"two")
    finally:
        os.umask(before)
    assert read_private(path) == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["wallet.key"]


def test_a_public_file_gets_the_mode_that_was_asked_for(tmp_path):
    write_atomically(tmp_path / "charter.json", b"{}", 0o644)
    assert stat.S_IMODE((tmp_path / "charter.json").stat().st_mode) == 0o644


def test_a_link_is_followed_and_stays(tmp_path):
    (tmp_path / "stick").mkdir()
    write_atomically(tmp_path / "stick" / "real.key", b"old")
    (tmp_path / "wallet.key").symlink_to(tmp_path / "stick" / "real.key")
    write_atomically(tmp_path / "wallet.key", b"new")
    assert (tmp_path / "wallet.key").is_symlink()
    assert read_private(tmp_path / "stick" / "real.key") == b"new"


def test_without_replace_only_the_first_of_many_writers_wins(tmp_path):
    path = tmp_path / "member.key"

    def attempt(content: bytes) -> bytes | None:
        try:
            write_atomically(path, content, replace=False)
        except UserError:
            return None
        return content

    with ThreadPoolExecutor(8) as pool:
        written = [content for content in pool.map(attempt, [b"%d" % n for n in range(32)]) if content]
    assert [read_private(path)] == written
    assert os.listdir(tmp_path) == ["member.key"]


def test_a_write_that_fails_leaves_the_old_content_and_no_rest(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        write_atomically(tmp_path / "taken", b"x")
    with pytest.raises(UserError, match="No such file"):
        write_atomically(tmp_path / "missing" / "file", b"x")
    assert os.listdir(tmp_path) == ["taken"]


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o660, 0o602, 0o777])
def test_a_secret_that_others_may_touch_is_refused_with_the_remedy(tmp_path, mode):
    path = tmp_path / "wallet.key"
    write_atomically(path, b"x", mode)
    with pytest.raises(UserError, match=f"chmod 600 {path}"):
        read_private(path)


def test_what_is_no_file_of_reasonable_size_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "directory").mkdir(0o700)
    write_atomically(tmp_path / "large", bytes((1 << 20) + 1))
    for name, complaint in [
        ("pipe", "not a plain file"),
        ("directory", "not a plain file"),
        ("large", "too large"),
        ("nothing", "does not exist"),
        ("large/below", "cannot read"),
    ]:
        with pytest.raises(UserError, match=complaint):
            read_private(tmp_path / name)


def test_a_second_process_is_told_who_works_in_the_directory(tmp_path):
    program = (
        "import sys; from pathlib import Path; from node.files import lock_directory\n"
        "with lock_directory(Path(sys.argv[1]), 'node'): print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with (
            pytest.raises(UserError, match=rf"another node is running \(pid {holder.pid}\)"),
            lock_directory(tmp_path, "node"),
        ):
            pass
        holder.kill()  # a process that ends in the worst way leaves no lock behind
    with lock_directory(tmp_path, "node"):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"
    with lock_directory(tmp_path, "node"):
        pass


def test_a_directory_that_is_not_there_cannot_be_locked(tmp_path):
    with pytest.raises(UserError, match="cannot use the directory"), lock_directory(tmp_path / "none"):
        pass
