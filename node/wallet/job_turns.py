"""One process at a time speaks for a job: messages are numbered, and two processes would use a number twice.

The kernel holds the lock and lets it go when its process ends, however it ends. Another process that wants the job to
stop leaves a note, which the one that speaks passes on.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from node.errors import UserError
from node.files import write_atomically
from node.wallet.job_records import WalletJob, get_job_directory

if TYPE_CHECKING:
    from node.wallet.wallet import Wallet

LOCK_NAME = "lock"
NOTE_NAME = "cancel"
REASON_CHARACTERS_MAX = 200


@contextmanager
def try_turn(wallet: Wallet, job_id: str) -> Iterator[bool]:
    """True inside the block when this process speaks for the job; False when another one does. Never waits."""
    directory = wallet.home / "jobs" / job_id
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(directory / LOCK_NAME, flags, 0o600)
    except OSError as error:
        raise UserError(f"cannot use the directory {directory}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


@contextmanager
def take_turn(wallet: Wallet, job_id: str) -> Iterator[None]:
    """Speak for the job inside the block. Raises: UserError when another command does already."""
    with try_turn(wallet, job_id) as is_mine:
        if not is_mine:
            raise UserError(f"another command follows job {job_id} already: see there, or `allmende job logs {job_id}`")
        yield


def leave_note(wallet: Wallet, job: WalletJob, reason: str) -> None:
    """Ask whoever speaks for the job to have it stopped."""
    write_atomically(get_job_directory(wallet, job) / NOTE_NAME, reason[:REASON_CHARACTERS_MAX].encode())


def take_note(wallet: Wallet, job: WalletJob) -> str | None:
    """The reason of a note that was left, once; None when there is none."""
    path = get_job_directory(wallet, job) / NOTE_NAME
    try:
        reason = path.read_bytes().decode("utf-8", "replace")
    except FileNotFoundError:
        return None
    path.unlink(missing_ok=True)
    return reason[:REASON_CHARACTERS_MAX]
