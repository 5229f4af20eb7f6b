"""Taking a donor off its machine: what jobs left in the kernel first, then the key's copy, then every file."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import trio

from node.donor.executors.sandbox import Sandbox
from node.donor.settings import DonorHome
from node.errors import UserError
from node.files import read_private, write_atomically

log = logging.getLogger(__name__)


def remove_donor(home: DonorHome, keep_key: Path | None) -> None:
    """Remove the whole directory, after putting the key at `keep_key`, which must not exist.

    The caller holds the directory's lock and has seen that every hold is settled. Raises: UserError; then what is left
    is still a donor, and the call may be repeated.
    """
    if keep_key is not None:
        if keep_key.resolve().is_relative_to(home.directory.resolve()):
            raise UserError(f"{keep_key} lies in the directory that goes: name another place for the key")
        write_atomically(keep_key, read_private(home.key_path), replace=False)
    trio.run(_sweep, home.sandbox)
    try:
        # The settings go last: as long as they stand, this is a donor that can be removed.
        for path in sorted(home.directory.iterdir(), key=lambda path: path == home.settings_path):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        home.directory.rmdir()
    except OSError as error:
        raise UserError(f"{error.filename} could not be removed ({error.strerror}): remove it by hand") from error


async def _sweep(directory: Path) -> None:
    """End what an agent that was killed may have left: mounts and control groups of jobs."""
    sandbox = Sandbox(directory)
    try:
        await sandbox.sweep()
    except UserError as error:
        # A machine on which no job could ever run has nothing to sweep.
        log.info("nothing was swept: %s", error)
    finally:
        sandbox.close()
