"""A blob is there whole or not at all, under the hash of its content, within the quota."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

import pytest

from node.storage.blobs import BlobStore
from node.storage.database import StoreFailed
from node.storage.limits import BLOB_SECONDS_MAX
from node.storage.store import StoreFull
from protocol.errors import InvalidInput
from protocol.job_evidence import JOB_EVIDENCE_BYTES_MAX


def digest(content: bytes) -> bytes:
    return sha256(content).digest()


def test_a_blob_is_found_under_its_hash(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    blobs.put(digest(b"content"), b"content")
    found = blobs.find(digest(b"content"))
    assert found is not None
    assert found.read_bytes() == b"content"
    assert found.stat().st_mode & 0o777 == 0o600
    assert blobs.find(digest(b"other")) is None


def test_content_with_another_hash_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path, bytes_max=100)
    for _ in range(3):
        with pytest.raises(InvalidInput):
            blobs.put(digest(b"promised"), bytes(60))
    assert list(tmp_path.iterdir()) == []
    blobs.put(digest(bytes(100)), bytes(100))


def test_the_quota_counts_drafts_and_repeats_once(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path, bytes_max=100, count_max=3)
    blobs.put(digest(bytes(40)), bytes(40))
    blobs.put(digest(bytes(40)), bytes(40))
    with blobs.begin(digest(bytes(60))) as draft:
        draft.write(bytes(60))
        with pytest.raises(StoreFull):
            blobs.put(digest(b"x"), b"x")
    blobs.put(digest(bytes(60)), bytes(60))
    with pytest.raises(StoreFull):
        BlobStore(tmp_path, bytes_max=100).put(digest(b"x"), b"x")
    with pytest.raises(StoreFull):
        BlobStore(tmp_path, count_max=2).put(digest(b"x"), b"x")


def test_drafts_of_a_dead_process_are_swept_away(tmp_path: Path) -> None:
    (tmp_path / "abc.new").write_bytes(bytes(50))
    blobs = BlobStore(tmp_path, bytes_max=10)
    assert list(tmp_path.iterdir()) == []
    blobs.put(digest(bytes(10)), bytes(10))


def test_blobs_expire_unless_they_are_renewed(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path, bytes_max=100)
    for content in (b"a", b"b"):
        blobs.put(digest(content), content)
        os.utime(tmp_path / digest(content).hex(), (1000, 1000))
    blobs.put(digest(b"b"), b"b")
    assert blobs.expire(1001 + BLOB_SECONDS_MAX) == 1
    assert blobs.find(digest(b"a")) is None
    assert blobs.find(digest(b"b")) is not None
    blobs.put(digest(bytes(99)), bytes(99))


def test_evidence_of_a_dispute_is_kept_longer_unless_it_is_too_large_to_be_any(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    contents = (b"evidence", b"bundle", bytes(JOB_EVIDENCE_BYTES_MAX + 1))
    for content in contents:
        blobs.put(digest(content), content)
        os.utime(tmp_path / digest(content).hex(), (1000, 1000))
    kept = {digest(contents[0]).hex(), digest(contents[2]).hex()}
    assert blobs.expire(1001 + BLOB_SECONDS_MAX, kept) == 2
    assert blobs.find(digest(b"evidence")) is not None
    assert blobs.expire(1001 + BLOB_SECONDS_MAX) == 1


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreFailed, match="nowhere"):
        BlobStore(tmp_path / "nowhere" / "blobs")
