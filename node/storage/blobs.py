"""Sealed bundles of jobs, each a file that is named by its hash: nobody can put a second content under one name.

A blob is written beside its place, checked, forced to disk and then named, so a name always stands for the whole
content. What is half written when the process dies is swept away at the next start.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Container
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from node.files import sync_directory
from node.storage.database import StoreFailed
from node.storage.limits import BLOB_SECONDS_MAX, BLOBS_BYTES_MAX, BLOBS_MAX
from node.storage.store import StoreFull
from protocol.errors import InvalidInput
from protocol.job_evidence import JOB_EVIDENCE_BYTES_MAX

_DRAFT_SUFFIX = ".new"


class BlobStore:
    """A folder of blobs within a quota.

    Invariants: `_bytes` and `_count` cover every named blob and every draft, so the quota holds at each moment.
    """

    def __init__(self, directory: Path, bytes_max: int = BLOBS_BYTES_MAX, count_max: int = BLOBS_MAX) -> None:
        """Open the folder, made when there is none. Raises: StoreFailed when it can't be used."""
        self.directory = directory
        self._bytes_max = bytes_max
        self._count_max = count_max
        self._lock = threading.Lock()
        self._bytes = 0
        self._count = 0
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            for entry in os.scandir(directory):
                if entry.name.endswith(_DRAFT_SUFFIX):
                    os.unlink(entry.path)
                else:
                    self._bytes += entry.stat(follow_symlinks=False).st_size
                    self._count += 1
        except OSError as error:
            raise _explain(error, directory) from error

    def find(self, digest: bytes) -> Path | None:
        """The file that holds this blob."""
        path = self.directory / digest.hex()
        return path if path.is_file() else None

    def begin(self, digest: bytes) -> BlobDraft:
        """Start to receive a blob. Use as a context: what is not finished there is thrown away. Raises: StoreFull."""
        self.reserve(0, 1)
        try:
            descriptor, name = tempfile.mkstemp(suffix=_DRAFT_SUFFIX, dir=self.directory)
        except OSError as error:
            self.release(0, 1)
            raise _explain(error, self.directory) from error
        return BlobDraft(self, digest, os.fdopen(descriptor, "wb"), Path(name))

    def put(self, digest: bytes, content: bytes) -> None:
        """Keep a blob that is in memory. Raises: InvalidInput, StoreFull, StoreFailed."""
        with self.begin(digest) as draft:
            draft.write(content)
            draft.finish()

    def expire(self, now_seconds: int, kept: Container[str] = ()) -> int:
        """Delete blobs that nobody stored or renewed for a week; how many went.

        Evidence of disputes that still count is `kept`, by its digest in hex; what is too large to be evidence is not.
        """
        removed = 0
        for entry in os.scandir(self.directory):
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                if entry.name.endswith(_DRAFT_SUFFIX) or status.st_mtime >= now_seconds - BLOB_SECONDS_MAX:
                    continue
                if status.st_size > JOB_EVIDENCE_BYTES_MAX or entry.name not in kept:
                    os.unlink(entry.path)
                    self.release(status.st_size, 1)
                    removed += 1
        return removed

    def reserve(self, size: int, count: int) -> None:
        """Take a part of the quota. Raises: StoreFull."""
        with self._lock:
            if self._bytes + size > self._bytes_max or self._count + count > self._count_max:
                raise StoreFull("the space for bundles of jobs is full on this node")
            self._bytes += size
            self._count += count

    def release(self, size: int, count: int) -> None:
        """Give a part of the quota back."""
        with self._lock:
            self._bytes -= size
            self._count -= count


class BlobDraft:
    """A blob on its way in."""

    def __init__(self, store: BlobStore, digest: bytes, file: BinaryIO, path: Path) -> None:
        self._store = store
        self._digest = digest
        self._file = file
        self._path = path
        self._hash = sha256()
        self._bytes = 0
        self._is_open = True

    def write(self, content: bytes) -> None:
        """Add a piece. Raises: StoreFull, StoreFailed."""
        self._store.reserve(len(content), 0)
        self._bytes += len(content)
        self._hash.update(content)
        try:
            self._file.write(content)
        except OSError as error:
            raise _explain(error, self._store.directory) from error

    def finish(self) -> None:
        """Name the blob; it is on disk when this returns. The same blob again only renews its time.

        Raises: InvalidInput when the content has another hash, StoreFailed when the disk fails.
        """
        if self._hash.digest() != self._digest:
            raise InvalidInput("the content does not have the hash that names it")
        path = self._store.directory / self._digest.hex()
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            known = path.stat().st_size if path.is_file() else None
            os.replace(self._path, path)
            sync_directory(self._store.directory)
        except OSError as error:
            raise _explain(error, self._store.directory) from error
        self._is_open = False
        if known is not None:
            self._store.release(known, 1)

    def __enter__(self) -> BlobDraft:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # what was not flushed is thrown away here
            self._file.close()
        if self._is_open:
            self._is_open = False
            self._path.unlink(missing_ok=True)
            self._store.release(self._bytes, 1)


def _explain(error: OSError, directory: Path) -> StoreFailed:
    return StoreFailed(f"bundles of jobs can't be kept in {directory}: {error.strerror}")
