"""Certified snapshots in files: the proof that a quorum said the root, then the facts in the order of their leaves.

A file proves itself, so it can be handed on as it is. It appears whole or not at all; the last two are kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from node.errors import UserError
from node.files import sync_directory
from protocol.charter import Charters
from protocol.checkpoints import CHECKPOINT_PROOF_BYTES_MAX, VerifiedCheckpoint, verify_checkpoint
from protocol.errors import InvalidInput
from protocol.identifiers import Tag
from protocol.limits import BATCH_BYTES_MAX
from protocol.merkle import compute_set_root
from protocol.snapshot import FACT_BYTES_MAX

KEPT = 2
SUFFIX = ".snapshot"
_LENGTH_BYTES = 4


class Snapshot(NamedTuple):
    """One kept file."""

    path: Path
    proof: bytes


class VerifiedSnapshot(NamedTuple):
    """Facts of whose root a quorum's word was checked."""

    checkpoint: VerifiedCheckpoint
    proof: bytes
    facts: list[bytes]
    """In the order of their leaves."""


class SnapshotFolder:
    """The certified snapshots of one node."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def keep(self, proof: bytes, sorted_facts: Sequence[bytes]) -> None:
        """Write one more, durable on return, and let go of the oldest. Raises: UserError when the disk fails."""
        files = self._list_files()
        number = int(files[-1].stem) + 1 if files else 1
        target = self.path / f"{number:08}{SUFFIX}"
        fresh = target.with_suffix(".new")
        try:
            self.path.mkdir(mode=0o700, exist_ok=True)
            with open(fresh, "wb") as file:
                file.writelines(frame(content) for content in (proof, *sorted_facts))
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(target)
            sync_directory(self.path)
            for old in [*files, target][:-KEPT]:
                old.unlink()
        except OSError as error:
            raise UserError(f"cannot write {target}: {error.strerror}") from error

    def get_latest(self) -> Snapshot | None:
        """The newest one."""
        files = self._list_files()
        if not files:
            return None
        with open(files[-1], "rb") as file:
            return Snapshot(files[-1], next(iterate_frames(file)))

    def _list_files(self) -> list[Path]:
        return sorted(self.path.glob(f"*{SUFFIX}"))


def frame(content: bytes) -> bytes:
    """One item of a file: its length, then itself."""
    return len(content).to_bytes(_LENGTH_BYTES, "big") + content


def iterate_frames(file: BinaryIO) -> Iterator[bytes]:
    """The items of a file: of a snapshot the proof, then the facts. Raises: InvalidInput for what is cut off."""
    longest = max(CHECKPOINT_PROOF_BYTES_MAX, FACT_BYTES_MAX, BATCH_BYTES_MAX)
    while length_bytes := file.read(_LENGTH_BYTES):
        length = int.from_bytes(length_bytes, "big")
        if len(length_bytes) < _LENGTH_BYTES or length > longest:
            raise InvalidInput("the snapshot is damaged")
        content = file.read(length)
        if len(content) < length:
            raise InvalidInput("the snapshot ends in the middle")
        yield content


def read_facts(path: Path) -> list[bytes]:
    """The facts of a file of ours."""
    with open(path, "rb") as file:
        return list(iterate_frames(file))[1:]


def verify_snapshot(charters: Charters, frames: Iterable[bytes]) -> VerifiedSnapshot:
    """The facts, once a quorum's word for exactly their root was checked. Raises: InvalidInput."""
    proof, *facts = frames
    checkpoint = verify_checkpoint(charters, proof)
    if compute_set_root(Tag.STATE_LEAF, facts) != checkpoint.root:
        raise InvalidInput("the facts are not those that the members certified")
    return VerifiedSnapshot(checkpoint, proof, facts)
