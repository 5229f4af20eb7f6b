"""What a job consists of: its script and files as one bundle, as they are now, whatever changes in the folder later.

The bundle lies in the wallet's directory (mode 0600, secrets of the job included) until the job can't need it any more:
one that its donor let down goes on elsewhere from the same bytes. Equal files make equal bundles, so the digest proves
later that a second run got the same inputs.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from node import api
from node.bundles import compute_digest, pack_bundle, unpack_bundle
from node.errors import UserError
from node.sealing import compute_sealed_bytes
from node.wallet.job_spec import JobSpec
from protocol.conversation import CHECKPOINT_NAME, SCRIPT_NAME, WORK_NAME
from protocol.errors import InvalidInput

IGNORED_NAMES = (".git", "__pycache__", ".venv")


class JobInputs(NamedTuple):
    """A job's inputs, and where they come from."""

    name: str
    bundle: bytes
    source_digest: bytes
    """SHA-256 of the bundle without any checkpoint: equal for all runs of the same files."""
    secrets: tuple[str, ...]
    """Names of the secret variables in it."""
    path: str
    """The job file."""
    retry_of: str = ""
    """Id of the job that this run goes on with."""
    recheck_of: str = ""
    """Id of the job whose results this run checks."""


def pack_inputs(spec: JobSpec) -> JobInputs:
    """Collect a job's files. Raises: UserError."""
    with tempfile.TemporaryDirectory(prefix="allmende-") as staging:
        root = Path(staging)
        work = root / WORK_NAME
        try:
            ignore = shutil.ignore_patterns(*IGNORED_NAMES)
            shutil.copytree(spec.workdir, work, symlinks=True, ignore=ignore)
            for place, source in spec.mounts:
                target = work / place
                target.parent.mkdir(parents=True, exist_ok=True)
                if source.is_dir():
                    shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True, ignore=ignore)
                else:
                    shutil.copy2(source, target)
            (work / CHECKPOINT_NAME).mkdir(exist_ok=True)
        except (OSError, shutil.Error) as error:
            raise UserError(f"the job's files can't be collected: {error}") from error
        (root / SCRIPT_NAME).write_bytes(spec.script.encode())
        bundle = pack_bundle(root)
    _check_size(bundle, spec.disk_bytes)
    return JobInputs(spec.name, bundle, compute_digest(bundle), spec.secrets, str(spec.path))


def add_checkpoint(bundle: bytes, checkpoint: bytes, disk_bytes: int) -> bytes:
    """The same inputs with what the job had kept in its folder `checkpoint`. Raises: UserError."""
    with tempfile.TemporaryDirectory(prefix="allmende-") as staging:
        root = Path(staging)
        folder = root / WORK_NAME / CHECKPOINT_NAME
        try:
            unpack_bundle(bundle, root)
            shutil.rmtree(folder, ignore_errors=True)
            unpack_bundle(checkpoint, folder)
        except InvalidInput as error:
            raise UserError(f"the checkpoint can't be added to the job's inputs: {error}") from error
        made = pack_bundle(root)
    _check_size(made, disk_bytes)
    return made


def _check_size(bundle: bytes, disk_bytes: int) -> None:
    if compute_sealed_bytes(len(bundle)) > api.BLOB_BYTES_MAX:
        raise UserError(
            f"the job's files have {len(bundle) / 1e6:.0f} MB; {api.BLOB_BYTES_MAX / 1e6:.0f} MB can be sent: "
            "leave something out of the workdir"
        )
    if len(bundle) > disk_bytes:
        raise UserError("the job's files are larger than its disk: raise resources.disk_size")
