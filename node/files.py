"""Files that must survive a power cut and stay private: written whole or not at all, read by their owner.

A write goes to a new file beside the old one, is forced to disk, and then takes the old one's name: whoever
looks, whenever the machine stops, finds the old content or the new one, never a part (POSIX `rename` is
atomic).
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from node.errors import UserError

PRIVATE_FILE_BYTES_MAX = 1 << 20  # keys and settings are small; a larger file is some other file
LOCK_NAME = ".lock"


def write_atomically(path: Path, content: bytes, mode: int = 0o600, *, replace: bool = True) -> None:
    """Put `content` at `path`, whole and on disk when this returns. A link is followed, not replaced.

    With `replace=False` an existing file stays as it is, even when two processes try at once: the new file
    gets its name by a hard link, which fails where a name is taken.

    Raises: UserError when the file exists (`replace=False`) or the system refuses; the old content is
    untouched.
    """
    target = Path(os.path.realpath(path))
    fresh = target.with_name(f".{target.name[:200]}.{os.urandom(8).hex()}.new")
    try:
        try:
            _write_durably(fresh, content, mode)
            if replace:
                os.replace(fresh, target)
            else:
                os.link(fresh, target)
        finally:
            with suppress(FileNotFoundError):
                fresh.unlink()
        sync_directory(target.parent)
    except FileExistsError:
        raise UserError(f"{path} exists already and is left as it is: move it away first") from None
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def _write_durably(path: Path, content: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with open(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)  # exactly this mode, whatever the umask took away
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def sync_directory(directory: Path) -> None:
    """Make a new name in a directory durable: the content of a file and its name are two different writes."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_private(path: Path) -> bytes:
    """The content of a file that holds a secret.

    Raises: UserError when it is missing, no plain file, larger than 1 MiB, or open to anybody but its owner.
    """
    return read_plain(path, 0o077, "holds a secret, and others may read it", "600")


def read_plain(path: Path, mode_forbidden: int = 0, fault: str = "", remedy: str = "") -> bytes:
    """The content of a small file.

    Raises: UserError when it is missing, no plain file, larger than 1 MiB, or has one of the bits of `mode_forbidden`
    in its mode: `fault` says what is wrong with that, `remedy` what chmod makes of it.
    """
    try:
        # O_NONBLOCK: opening a pipe would wait for ever before it could be told from a file.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is not a plain file")
        if status.st_mode & mode_forbidden:
            raise UserError(f"{path} {fault}: run `chmod {remedy} {path}`")
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(PRIVATE_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    finally:
        os.close(descriptor)
    if len(content) > PRIVATE_FILE_BYTES_MAX:
        raise UserError(f"{path} is too large for what it should hold: is it another file?")
    return content


def check_directory_is_guarded(path: Path) -> None:
    """Raises: UserError when anybody could put something else in the place of what lies in a directory."""
    if path.stat().st_mode & stat.S_IWOTH:
        raise UserError(f"anybody may write to {path}: run `chmod 700 {path}`")


@contextmanager
def lock_directory(path: Path, what: str = "allmende") -> Iterator[None]:
    """Be the only process that works in a directory, as long as the context lasts.

    The kernel holds the lock and lets it go when the process ends, however it ends: no stale lock is left
    behind. The lock file itself stays, for removing it would let two processes lock two files of one name.

    Raises: UserError when another process holds the lock, with its process id, or the directory cannot be
    used.
    """
    try:
        descriptor = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise UserError(f"cannot use the directory {path}: {error.strerror}") from error
    with open(descriptor, "r+b", buffering=0) as file:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = file.read(20).decode("ascii", "replace").strip()
            process = f" (pid {holder})" if holder.isdigit() else ""
            raise UserError(f"another {what} is running{process} in {path}: stop it first") from None
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        try:
            yield
        finally:
            os.truncate(descriptor, 0)


def read_lock_holder(path: Path) -> int | None:
    """The process that works in a directory by `lock_directory`; none when there is none."""
    try:
        holder = (path / LOCK_NAME).read_text().strip()
    except OSError:
        return None
    return int(holder) if holder.isdigit() else None
