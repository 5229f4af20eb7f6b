"""Inputs in, outputs out: sealed bundles among the node's blobs, which the node can't read."""

from __future__ import annotations

from pathlib import Path

import trio

from node.api import BLOB_BYTES_MAX
from node.bundles import BundleLimits, compute_digest, pack_bundle, unpack_bundle
from node.donor.executors.executor import Outcome
from node.donor.post import Post
from node.errors import UserError
from node.sealing import open_sealed, seal
from protocol.conversation import SCRIPT_NAME, WORK_NAME, Script, compute_seal_context, decode_script
from protocol.errors import InvalidInput


async def fetch_inputs(
    post: Post, seal_seed: bytes, digest: bytes, associated: bytes, directory: Path, bytes_max: int
) -> None:
    """Fetch, open and unpack a job's bundle. Raises: InvalidInput when it is not what was announced; UserError
    when the node has no such blob.
    """
    sealed = await post.insist(post.link.get_blob, digest)

    def unpack() -> None:
        if compute_digest(sealed) != digest:
            raise InvalidInput("the node gave another blob than the one that was asked for")
        content = open_sealed(seal_seed, sealed, associated)
        limits = BundleLimits(total_bytes_max=min(bytes_max + (1 << 20), 4 << 30))
        unpack_bundle(content, directory, limits)
        if not (directory / WORK_NAME).is_dir() or not (directory / SCRIPT_NAME).is_file():
            raise InvalidInput("the bundle lacks the script or the work folder")

    await trio.to_thread.run_sync(unpack)


def read_script(directory: Path) -> Script:
    """What the job runs. Raises: InvalidInput."""
    return decode_script((directory / SCRIPT_NAME).read_bytes())


async def hand_over_outputs(post: Post, result_key: bytes, hold: bytes, outcome: Outcome) -> tuple[bytes, str]:
    """(digest of the sealed outputs, what to tell the payer about them). No digest: nothing could be handed over."""

    def pack() -> bytes:
        content = pack_bundle(outcome.output_directory, skip=True)
        return seal(result_key, content, compute_seal_context(b"outputs", hold))

    try:
        sealed = await trio.to_thread.run_sync(pack)
        if len(sealed) > BLOB_BYTES_MAX:
            return b"", f"the outputs have {len(sealed)} bytes sealed, {BLOB_BYTES_MAX} can be handed over"
        await post.insist(post.link.put_blob, sealed)
    except UserError as error:
        return b"", f"the outputs could not be handed over: {error}"
    left_out = outcome.output_left_out
    return compute_digest(sealed), f"{left_out} outputs were left out" if left_out else ""
