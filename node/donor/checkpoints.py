"""What a payer has back when a job is lost: the job's own folder `checkpoint`, sealed to the payer, at the node.

A job that can go on later writes that folder now and then. The agent copies it as it is at one moment, seals it to the
payer's result key and lays it among the node's blobs; the tick for that moment names it (spec 12.3). So work that the
payer pays for after a failure is work that it has in hand.
"""

from __future__ import annotations

import logging
import shutil
import time

import trio

from node.api import BLOB_BYTES_MAX
from node.bundles import compute_digest, pack_bundle
from node.donor.executors.executor import JobHandle
from node.donor.job_file import JobFile
from node.donor.post import Post
from node.errors import UserError
from node.sealing import compute_sealed_bytes, seal
from protocol.conversation import compute_seal_context
from protocol.errors import Rejected
from protocol.quotes import QuoteRequest

log = logging.getLogger(__name__)

CHECKPOINT_BYTES_MAX = 60 * 1024 * 1024
PAUSE_FACTOR = 10
"""A checkpoint that took a second is followed by ten in which none is taken: it may cost a tenth of the time."""


class CheckpointKeeper:
    """The checkpoints of one running job. Each new one replaces the one before."""

    def __init__(self, post: Post, job: JobFile, request: QuoteRequest) -> None:
        self._post = post
        self._job = job
        self._request = request
        self._not_before = 0.0
        self._waiting = b""

    @property
    def has_taken(self) -> bool:
        """True when a copy waits to be handed over."""
        return bool(self._waiting)

    async def take(self, handle: JobHandle) -> bool:
        """Copy what is there now, to be handed over; False when there is nothing, or nothing new."""
        content = await trio.to_thread.run_sync(self._copy, handle)
        if not content or compute_digest(content) == self._job.document.checkpoint:
            return False
        self._waiting = content
        return True

    async def hand_over(self) -> bytes:
        """Seal what was taken and lay it at the node; the digest that names it there, or none when that fails."""
        content, self._waiting = self._waiting, b""
        context = compute_seal_context(b"checkpoint", self._job.document.hold)
        sealed = await trio.to_thread.run_sync(seal, self._request.result_key, content, context)
        try:
            await self._post.insist(self._post.link.put_blob, sealed)
        except (UserError, Rejected) as error:
            log.warning("job %s: the node takes no checkpoint: %s", self._job.document.conversation[:8], error)
            return b""
        self._job.document.checkpoint = compute_digest(content)
        self._job.save()
        return compute_digest(sealed)

    async def renew(self, handle: JobHandle) -> bytes:
        """Take one and hand it over, unless the last is too recent for what it costs; its digest, or none."""
        started = time.monotonic()
        if started < self._not_before or not await self.take(handle):
            return b""
        digest = await self.hand_over()
        self._not_before = time.monotonic() + PAUSE_FACTOR * (time.monotonic() - started)
        return digest

    def _copy(self, handle: JobHandle) -> bytes:
        target = self._job.directory / "checkpoint"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(mode=0o700)
        try:
            bytes_max = min(CHECKPOINT_BYTES_MAX, self._request.disk_bytes)
            if not handle.copy_checkpoint(target, bytes_max):
                return b""
            content = pack_bundle(target)
            return content if compute_sealed_bytes(len(content)) <= BLOB_BYTES_MAX else b""
        except UserError as error:
            log.warning("job %s: no checkpoint: %s", self._job.document.conversation[:8], error)
            return b""
        finally:
            shutil.rmtree(target, ignore_errors=True)
