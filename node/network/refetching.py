"""Old batches by their ids: for a node whose ledger begins with a checkpoint and that wants to see what lies before it.

What comes back is bound to its id by a hash, so the peer that sends it need not be trusted. Both sides hold one bounded
piece in memory (spec 10.6).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import trio

from node.network.sync import REQUEST_SECONDS
from node.network.transport import RequestFailed, Transport, UnreachablePeer
from protocol.batches import decode_batch
from protocol.errors import InvalidInput
from protocol.limits import SYNC_BYTES_MAX
from protocol.messages import PIECE_BATCHES_MAX, Piece, decode_piece, decode_wanted, encode_piece, encode_wanted

log = logging.getLogger("allmende.refetching")

BATCHES_PROTOCOL = "/allmende/batches/1"


class BatchExchange:
    """Serves stored batches by id, and fetches others' back."""

    def __init__(self, federation: bytes, transport: Transport, read_batch: Callable[[bytes], bytes | None]) -> None:
        self._federation = federation
        self._transport = transport
        self._read_batch = read_batch
        transport.serve(BATCHES_PROTOCOL, self._handle_request)

    async def fetch_all(self, wanted: Sequence[bytes], keep: Callable[[list[bytes]], None]) -> int:
        """Ask one connected peer after the other, and hand over what comes piece by piece; returns how many came."""
        count = 0
        for asked in _cut(wanted, PIECE_BATCHES_MAX):
            left = list(asked)
            for peer_id in sorted(self._transport.connected()):
                try:
                    found = await self.fetch(peer_id, left)
                except (UnreachablePeer, RequestFailed) as error:
                    log.info("old batches from %s: %s", peer_id, error)
                    continue
                except InvalidInput as error:
                    log.warning("old batches from %s: %s", peer_id, error)
                    self._transport.note_fault(peer_id)
                    continue
                if found:
                    await trio.to_thread.run_sync(keep, list(found.values()))
                count += len(found)
                left = [batch for batch in left if batch not in found]
                if not left:
                    break
        return count

    async def fetch(self, peer_id: str, wanted: Sequence[bytes]) -> dict[bytes, bytes]:
        """Id -> batch of those that the peer has. Raises: UnreachablePeer, RequestFailed; InvalidInput when it sends
        something else than was asked for."""
        found: dict[bytes, bytes] = {}
        for asked in _cut(wanted, PIECE_BATCHES_MAX):
            left = list(asked)
            while left:
                request = encode_wanted(left)
                piece = decode_piece(await self._transport.request(peer_id, BATCHES_PROTOCOL, request, REQUEST_SECONDS))
                for encoded in piece.batches:
                    batch = decode_batch(self._federation, encoded)
                    if batch.id not in left:
                        raise InvalidInput("a batch that nobody asked for")
                    # What it left out before this one it does not have.
                    left = left[left.index(batch.id) + 1 :]
                    found[batch.id] = encoded
                if not piece.has_more or not piece.batches:
                    break
        return found

    async def _handle_request(self, peer_id: str, encoded: bytes) -> bytes:
        batches: list[bytes] = []
        size = 0
        for number, batch_id in enumerate(decode_wanted(encoded)):
            content = self._read_batch(batch_id)
            if content is None:
                continue
            if batches and size + len(content) > SYNC_BYTES_MAX:
                return encode_piece(Piece(1, tuple(batches)))
            batches.append(content)
            size += len(content)
            if number % 64 == 63:
                await trio.lowlevel.checkpoint()
        return encode_piece(Piece(0, tuple(batches)))


def _cut(ids: Sequence[bytes], length: int) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(ids), length):
        yield ids[start : start + length]
