"""Old batches go from the database into an archive file: those in the past of a certified checkpoint, whose facts stay.

The archive is written first, then one transaction puts the facts in the place of the batches; whenever the machine
stops, each batch is in one of the two at least. Batches that prove a fork are never archived (spec 10.6).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from node.errors import UserError
from node.files import sync_directory
from node.snapshots import VerifiedSnapshot, frame, iterate_frames
from node.storage.limits import CHUNK_BATCHES_MAX
from node.storage.store import Store
from protocol.batches import decode_batch
from protocol.replica import Replica
from protocol.snapshot import group_facts

SUFFIX = ".batches"


def prune(store: Store, snapshot: VerifiedSnapshot, amendments: Iterable[tuple[bytes, bytes]], archive: Path) -> int:
    """Archive all batches in the past of a checkpoint; returns how many went. Raises: UserError when a disk fails.

    `amendments` are (record, receipt) of all that made the charter what it is.
    """
    gone = list_prunable(snapshot.facts)
    archived: list[bytes] = []

    def choose() -> Iterator[bytes]:
        last = 0
        while piece := store.get_batches(last + 1, CHUNK_BATCHES_MAX):
            last = piece[-1][0]
            for _, batch, encoded in piece:
                if batch in gone:
                    archived.append(batch)
                    yield encoded

    append_archive(archive, choose())
    store.begin_with(snapshot.facts, amendments, archived)
    return len(archived)


def append_archive(archive: Path, batches: Iterable[bytes]) -> None:
    """Write one more file of the archive, whole and durable on return. Raises: UserError when the disk fails."""
    target = archive / f"{len(list_archive_files(archive)) + 1:06}{SUFFIX}"
    fresh = target.with_suffix(".new")
    try:
        archive.mkdir(mode=0o700, exist_ok=True)
        with open(fresh, "wb") as file:
            file.writelines(map(frame, batches))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(target)
        sync_directory(archive)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}") from error


def list_absent(replica: Replica, archive: Path, store: Store) -> list[bytes]:
    """The batches that this node knows by name only and has not archived either; early places of logs first."""
    federation = replica.federation
    archived = {decode_batch(federation, encoded).id for encoded in iterate_archive(archive)}
    named = [(entry.index, batch) for batch, entry in replica.entries.items() if entry.number < replica.named_count]
    return [batch for _, batch in sorted(named) if batch not in archived and store.get_batch(batch) is None]


def list_prunable(facts: list[bytes]) -> set[bytes]:
    """The batches that a snapshot names, but not those of which two claim one place."""
    named = group_facts(facts)["batch"]
    places = Counter(place[:3] for place in named)
    return {batch for *place, batch, _ in named if places[tuple(place)] == 1}


def list_archive_files(archive: Path) -> list[Path]:
    """The files of an archive in the order in which they were written."""
    return sorted(archive.glob(f"*{SUFFIX}"))


def iterate_archive(archive: Path) -> Iterator[bytes]:
    """All archived batches, in the order of their admission. Raises: InvalidInput for a damaged file."""
    for path in list_archive_files(archive):
        with open(path, "rb") as file:
            yield from iterate_frames(file)
