"""Where a job keeps its files: a disk of fixed size while it runs, a plain folder of results afterwards.

While the job runs, its disk is mounted only in the job's own view of the file system. The agent reaches it
through one open directory, which outlives that view. So nothing is ever mounted where others see it, and when
the agent dies, however it dies, the kernel itself takes the disk away.

Files are copied in before the job's first instruction and out after its last process has gone, or while it stands
still. Nobody changes them meanwhile; still, no link is ever followed, because what lies there was made by a stranger.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from protocol.conversation import CHECKPOINT_NAME, OUTPUT_NAME

_COPY_BYTES = 1 << 20
_DEPTH_MAX = 32  # folders within folders; each costs an open file while copying
_ENTRIES_MAX = 20_000  # files and folders in one copy, so that a million empty ones can't hold up the donor
_IMAGE_EXTRA_BYTES = 2 << 20  # what the file system needs for itself, beside a thirty-second of its size
_TOOL_SECONDS_MAX = 60.0

_PROBE_MOUNT = 'set -e; mount -t tmpfs tmpfs /run; mkdir /run/work; mount -o loop,nosuid,nodev "$1" /run/work'


def is_image_possible(directory: Path) -> bool:
    """Whether this process may mount disk images: it needs the superuser's rights, and loop devices."""
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        return False
    image = directory / "probe.image"
    try:
        make_image(image, _IMAGE_EXTRA_BYTES, owner=0)
        view = ["unshare", "--mount", "--propagation", "private"]
        finished = subprocess.run(
            [*view, "/bin/sh", "-c", _PROBE_MOUNT, "sh", str(image)],
            capture_output=True,
            timeout=_TOOL_SECONDS_MAX,
        )
        return finished.returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False
    finally:
        image.unlink(missing_ok=True)


def make_image(path: Path, size_bytes: int, owner: int) -> None:
    """Writes an empty ext4 file system with room for about `size_bytes`; its root folder is `owner`'s.

    The file has holes: it takes real disk only as the job fills it. Without a journal: a disk that was in use
    when the machine went down is thrown away, never repaired. Raises: OSError, subprocess.SubprocessError.
    """
    with path.open("xb") as file:
        file.truncate(size_bytes + size_bytes // 32 + _IMAGE_EXTRA_BYTES)
    options = f"root_owner={owner}:{owner},lazy_itable_init=1"
    subprocess.run(
        ["mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", "-E", options, str(path)],
        check=True,
        capture_output=True,
        timeout=_TOOL_SECONDS_MAX,
    )


@dataclass
class Copied:
    """What a copy took over and what it left out (links, devices, odd names, what exceeds a limit)."""

    files: int = 0
    size_bytes: int = 0
    left_out: int = 0
    entries: int = 0


class GivenUp(Exception):
    """A copy is not wanted any more."""


def copy_tree(
    source: int,
    destination: int,
    bytes_max: int,
    owner: int | None = None,
    is_wanted: Callable[[], bool] = lambda: True,
) -> Copied:
    """Copies regular files and folders from one open directory into another.

    Names must be UTF-8; of a file's mode only whether its owner may execute it is kept. Files that would
    exceed `bytes_max` in all are left out whole. `owner` becomes user and group of the copies (superuser
    only). Raises: OSError if the destination can't take it, GivenUp soon after `is_wanted` says no.
    """
    copied = Copied()
    _copy_directory(source, destination, bytes_max, owner, copied, is_wanted, depth=0)
    return copied


def make_folders(work: int, owner: int | None) -> None:
    """Makes what every job finds in its work directory, unless its inputs brought it. Raises: OSError."""
    for folder in {OUTPUT_NAME, CHECKPOINT_NAME}.difference(os.listdir(work)):
        os.mkdir(folder, 0o755, dir_fd=work)
        if owner is not None:
            os.chown(folder, owner, owner, dir_fd=work, follow_symlinks=False)


def copy_folder(
    parent: int, name: str, destination: Path, bytes_max: int, is_wanted: Callable[[], bool] = lambda: True
) -> Copied:
    """Copies one folder of an open directory, if it is there; left out if it is a link or can't be opened.

    Raises: OSError if the destination can't take it, GivenUp.
    """
    try:
        source = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except FileNotFoundError:
        return Copied()
    except OSError:
        return Copied(left_out=1)
    try:
        target = os.open(destination, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return copy_tree(source, target, bytes_max, is_wanted=is_wanted)
        finally:
            os.close(target)
    finally:
        os.close(source)


def _copy_directory(
    source: int,
    destination: int,
    bytes_max: int,
    owner: int | None,
    copied: Copied,
    is_wanted: Callable[[], bool],
    depth: int,
) -> None:
    names: list[str] = []
    with os.scandir(source) as entries:
        for found in entries:  # counted while listing: a job may leave more names than fit in memory
            copied.entries += 1
            if copied.entries > _ENTRIES_MAX:
                copied.left_out += 1
            else:
                names.append(found.name)
    for name in sorted(names):
        if not is_wanted():
            raise GivenUp
        if not _is_utf8(name):
            copied.left_out += 1
            continue
        try:
            # Not blocking: opening a named pipe would otherwise wait for a writer for ever.
            entry = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source)
        except OSError:
            copied.left_out += 1
            continue
        try:
            status = os.fstat(entry)
            if stat.S_ISDIR(status.st_mode) and depth < _DEPTH_MAX:
                os.mkdir(name, 0o755, dir_fd=destination)
                below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=destination)
                try:
                    _copy_directory(entry, below, bytes_max, owner, copied, is_wanted, depth + 1)
                    _give(below, owner)
                finally:
                    os.close(below)
            elif stat.S_ISREG(status.st_mode) and copied.size_bytes + status.st_size <= bytes_max:
                _copy_file(entry, destination, name, status, owner, is_wanted)
                copied.files += 1
                copied.size_bytes += status.st_size
            else:
                copied.left_out += 1
        finally:
            os.close(entry)


def _copy_file(
    source: int,
    directory: int,
    name: str,
    status: os.stat_result,
    owner: int | None,
    is_wanted: Callable[[], bool],
) -> None:
    mode = 0o755 if status.st_mode & stat.S_IXUSR else 0o644
    target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode, dir_fd=directory)
    with os.fdopen(target, "wb") as file:
        offset = 0
        while offset < status.st_size:
            if not is_wanted():
                raise GivenUp
            block = os.pread(source, min(_COPY_BYTES, status.st_size - offset), offset)
            if not block:
                break
            file.write(block)
            offset += len(block)
        _give(target, owner)


def _give(file: int, owner: int | None) -> None:
    if owner is not None:
        os.fchown(file, owner, owner)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that are not UTF-8 come from the system as lone surrogates
        return False
    return True


class BoundedLog:
    """What a job printed: the first half and the last half of the allowance; what was between is counted.

    Both ends matter: how it began, and why it failed. Invariant: the file never exceeds `bytes_max` by more
    than the line that tells of the gap.
    """

    def __init__(self, path: Path, bytes_max: int) -> None:
        self.bytes_written = 0
        self._half = bytes_max // 2
        self._file = path.open("xb", buffering=0)
        self._in_file = 0
        self._tail = bytearray()  # all that came last, whether it is in the file or not

    def write(self, text: bytes) -> None:
        self.bytes_written += len(text)
        head = text[: self._half - self._in_file]
        self._file.write(head)
        self._in_file += len(head)
        self._tail += text
        if len(self._tail) > 2 * self._half:  # cutting seldom keeps the cost of a byte constant
            del self._tail[: -self._half]

    def read_tail(self, bytes_max: int) -> bytes:
        kept = min(bytes_max, self._half, len(self._tail))
        return bytes(self._tail[len(self._tail) - kept :])

    def close(self) -> None:
        """Writes the last half into the file. Repeating it does nothing."""
        if self._file.closed:
            return
        missing = self.bytes_written - self._in_file
        if missing > 0:
            tail = self.read_tail(min(missing, self._half))
            if missing > len(tail):
                self._file.write(b"\n[%d bytes left out here]\n" % (missing - len(tail)))
            self._file.write(tail)
        self._file.close()
