"""The folder of one job in the file system that the agent and the cluster's nodes share.

    job.json   what must outlive the agent: the job's name at Slurm, and how we ended it
    batch, arguments, rest, filter, password, group, script, word    what the node is told to run
    claimed    made by the one process that runs the job       entered    not empty once its program was about to run
    gate       the pipe to that file                           printed    what the job prints
    work       the job's own work directory; its `out` is the result, its `checkpoint` what another run goes on with
    output, log    what was taken over at the end

Other than a sandbox's disk image this folder has no size of its own. One file is bounded by a limit of the process; the
sum is measured from time to time, and a job that keeps too much is ended.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from node.donor.executors.executor import JobNotStarted
from node.donor.executors.workspace import BoundedLog, copy_tree, make_folders
from node.files import write_atomically
from protocol.conversation import CHECKPOINT_NAME, OUTPUT_NAME

LOG_BYTES_MAX = 1 << 20
_COPY_TRIES = 3
_ENTRIES_MAX = 1_000_000
"""Files and folders of one job; each costs the shared file system as much as a small file."""
_CHECKPOINT_ENTRIES_MAX = 20_000
_DEPTH_MAX = 100
"""Folders within folders: each costs an open file while it is looked at."""
_READ_BYTES = 1 << 16


class TooMany(Exception):
    """A folder that can't be looked at as a whole: too many files, folders within folders, or closed ones."""


class JobNote(msgspec.Struct):
    """What `job.json` says."""

    name: str
    """The job's name at Slurm, never used before."""
    submitted_at_seconds: float
    end_state: str = ""
    """Why we ended it, written before we do."""
    is_over: bool = False


class JobFolder:
    """One job's files. Blocks for as long as the file system takes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.work = path / "work"

    # -- before the start -----------------------------------------------------------------------------------------

    def stage(self, files: dict[str, bytes], inputs: Path | None, disk_bytes: int, owner: int | None) -> None:
        """Fill the folder. Raises: JobNotStarted if the inputs do not fit."""
        # A job's own user must come by to its work directory, and see nothing on the way.
        self.path.chmod(0o700 if owner is None else 0o711)
        self.work.mkdir(mode=0o700)
        for name, content in files.items():
            (self.path / name).write_bytes(content)
            (self.path / name).chmod(0o600)
        with _opened(self.work) as work:
            if inputs is not None:
                with _opened(inputs) as source:
                    copied = copy_tree(source, work, disk_bytes, owner)
                if copied.left_out:
                    raise JobNotStarted(f"{copied.left_out} of the job's inputs do not fit or are no plain files")
            make_folders(work, owner)
            if owner is not None:
                os.fchown(work, owner, owner)

    def save_note(self, note: JobNote) -> None:
        write_atomically(self.path / "job.json", msgspec.json.encode(note))

    def load_note(self) -> JobNote | None:
        """None when the agent was interrupted before anything was submitted."""
        try:
            return msgspec.json.decode((self.path / "job.json").read_bytes(), type=JobNote)
        except (OSError, msgspec.MsgspecError):
            return None

    # -- while it runs --------------------------------------------------------------------------------------------

    @property
    def is_claimed(self) -> bool:
        """Whether a process of a node has begun to run the job."""
        return (self.path / "claimed").exists()

    def read_claim(self) -> str:
        """Slurm's number of the job that runs it."""
        try:
            return (self.path / "claimed").read_text().strip()
        except OSError:
            return ""

    @property
    def is_entered(self) -> bool:
        """Whether all walls were up and the job's program was about to run."""
        return _measure(self.path / "entered") > 0

    @property
    def printed_bytes(self) -> int:
        """How much was printed until now."""
        return _measure(self.path / "printed")

    def read_printed(self, bytes_max: int) -> bytes:
        """The end of what was printed."""
        try:
            with (self.path / "printed").open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - bytes_max))
                return file.read(bytes_max)
        except OSError:
            return b""

    def measure_work_bytes(self) -> int:
        """What the work directory holds. Sparse files count as what they take. Raises: OSError, TooMany."""
        try:
            with _opened(self.work) as work:
                return sum(512 * status.st_blocks for _, status in _iterate_files(work, _ENTRIES_MAX))
        except PermissionError:  # the job closed a folder, which it can open again for itself
            raise TooMany from None

    def copy_checkpoint(self, target: Path, bytes_max: int) -> bool:
        """Copy the folder `checkpoint`; True if it did not change meanwhile. Several tries are made."""
        for _ in range(_COPY_TRIES):
            for path in target.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            try:
                with _opened(self.work) as work, _opened(CHECKPOINT_NAME, work) as source, _opened(target) as copy:
                    before = _take_fingerprint(source)
                    copied = copy_tree(source, copy, bytes_max)
                    after = _take_fingerprint(source)
            except (OSError, TooMany):  # there is none, or it was replaced while we looked
                return False
            if copied.left_out or not copied.files:
                return False
            if before == after:
                return True
        return False

    # -- after the end --------------------------------------------------------------------------------------------

    def collect(self, bytes_max: int) -> tuple[Path, int, Path]:
        """(the results, how many were left out, the log). May be repeated."""
        output, log = self.path / "output", self.path / "log"
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir(mode=0o700)
        left_out = 0
        with ExitStack() as opened:
            try:
                source = opened.enter_context(_opened(OUTPUT_NAME, opened.enter_context(_opened(self.work))))
            except FileNotFoundError:
                pass
            except OSError:
                left_out = 1  # the job put something else in its place, or lets nobody look into it
            else:
                left_out = copy_tree(source, opened.enter_context(_opened(output)), bytes_max).left_out
        log.unlink(missing_ok=True)
        bounded = BoundedLog(log, LOG_BYTES_MAX)
        try:
            with (self.path / "printed").open("rb") as file:
                while block := file.read(_READ_BYTES):
                    bounded.write(block)
        finally:
            bounded.close()
        return output, left_out, log

    def remove(self) -> None:
        """Remove everything; repeating it does nothing. Raises: OSError.

        By the system's commands: Python's own goes down only as deep as it can call itself, and not into what the job
        has closed.
        """
        for command in (("rm", "-rf"), ("chmod", "-R", "u+rwX"), ("rm", "-rf")):
            subprocess.run([*command, "--", str(self.path)], capture_output=True, check=False)
            if not self.path.exists():
                return
        raise OSError(0, f"{self.path} can't be removed")


@contextmanager
def _opened(name: Path | str, above: int | None = None) -> Iterator[int]:
    """An open directory, reached over no link."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    directory = os.open(name, flags, dir_fd=above)
    try:
        yield directory
    finally:
        os.close(directory)


def _measure(path: Path) -> int:
    """Bytes of a file; 0 when it is not there yet."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _iterate_files(directory: int, entries_max: int) -> Iterator[tuple[str, os.stat_result]]:
    """Names and states of everything below, in order, without following a link.

    Raises: OSError; TooMany, instead of leaving out what a job has hidden behind a million empty files, or deep down.
    """
    entries = 0

    def walk(opened: int, above: str, depth: int) -> Iterator[tuple[str, os.stat_result]]:
        nonlocal entries
        names = []
        with os.scandir(opened) as listing:
            for found in listing:
                entries += 1
                if entries > entries_max:
                    raise TooMany
                names.append(found.name)
        for name in sorted(names):
            try:
                status = os.stat(name, dir_fd=opened, follow_symlinks=False)
            except FileNotFoundError:  # it was removed meanwhile
                continue
            yield f"{above}{name}", status
            if stat.S_ISDIR(status.st_mode):
                if depth == _DEPTH_MAX:
                    raise TooMany
                try:
                    with _opened(name, opened) as below:
                        yield from walk(below, f"{above}{name}/", depth + 1)
                except (FileNotFoundError, NotADirectoryError):
                    continue

    yield from walk(directory, "", 0)


def _take_fingerprint(directory: int) -> list[tuple[str, int, int, int, int]]:
    """What differs when anything below was written, moved or replaced."""
    return [
        (name, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        for name, status in _iterate_files(directory, _CHECKPOINT_ENTRIES_MAX)
        if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
    ]
