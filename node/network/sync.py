"""Anti-entropy: from time to time, and whenever something is missing, a node makes itself equal to a peer.

Gossip is quick but may lose; this is what correctness rests on. The node pulls only, piece by piece, each piece
stored before the next is asked for, so an interruption loses nothing (spec 10.3).
"""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager

import trio

from node.network.transport import RequestFailed, Transport, UnreachablePeer
from protocol.errors import InvalidInput
from protocol.limits import SYNC_BYTES_MAX
from protocol.messages import (
    PIECE_BATCHES_MAX,
    LogHead,
    LogLocator,
    Piece,
    compute_frontier_digest,
    compute_locators,
    compute_missing,
    decode_frontier,
    decode_piece,
    decode_request,
    encode_frontier,
    encode_piece,
    encode_probe,
    encode_pull,
    get_heads,
)
from protocol.replica import LogName, Replica

log = logging.getLogger("allmende.sync")

SYNC_PROTOCOL = "/allmende/sync/1"
INTERVAL_SECONDS = 2.0
FIRST_INTERVAL_SECONDS = 0.1
"""Until the first peer has answered: a node that has just started speaks only when it has heard the others."""

REQUEST_SECONDS = 30.0
PULL_SECONDS_MAX = 300.0
"""A long catching-up goes on in the next round, so a peer that only keeps us busy does so for a while."""

TURN_SECONDS_MAX = 5.0

WAKE_SECONDS_MIN = 0.2
"""Between two rounds: somebody who sends batches without a past can't make us ask all the time."""


Ingest = Callable[[Sequence[bytes], str], Awaitable[int]]
"""(encoded batches, peer) -> how many were new and are admitted and stored now."""


class Synchronizer:
    """Keeps one replica equal to its peers'."""

    def __init__(
        self,
        replica: Replica,
        transport: Transport,
        read_batch: Callable[[bytes], bytes | None],
        ingest: Ingest,
        list_ignored_logs: Callable[[], Collection[LogName]] = frozenset,
    ) -> None:
        """`list_ignored_logs` names logs of which no further batches are wanted."""
        self._replica = replica
        self._transport = transport
        self._read_batch = read_batch
        self._ingest = ingest
        self._list_ignored_logs = list_ignored_logs
        self.on_answer: list[Callable[[str], None]] = []
        """Called with a peer from which everything that it has and we lacked has been fetched."""
        self.on_heads: list[Callable[[str, tuple[LogHead, ...]], None]] = []
        """Called with a peer and the heads that it told of."""
        self._wanted: set[str] = set()
        self._answered: set[str] = set()
        self._pulling: set[str] = set()
        self._turn = trio.Lock()
        self._wake = trio.Event()
        transport.serve(SYNC_PROTOCOL, self._handle_request)

    def request_sync(self, peer_id: str) -> None:
        """Something of this peer could not be placed: pull from it soon."""
        self._wanted.add(peer_id)
        self._wake.set()

    async def run(self) -> None:
        """Pull once from every peer, then from those that were asked for, and now and then from one by chance.

        Peers are pulled from side by side, each once at a time, so a slow one delays nobody.
        """
        async with trio.open_nursery() as nursery:
            while True:
                pause = INTERVAL_SECONDS * random.uniform(0.5, 1.5) if self._answered else FIRST_INTERVAL_SECONDS
                with trio.move_on_after(pause):
                    await self._wake.wait()
                self._wake = trio.Event()
                for peer_id in self._choose_peers():
                    nursery.start_soon(self.pull, peer_id)
                await trio.sleep(WAKE_SECONDS_MIN)

    def _choose_peers(self) -> list[str]:
        connected = self._transport.connected()
        chosen = (self._wanted & connected) | (connected - self._answered)
        self._wanted.clear()
        if not chosen and connected:
            chosen = {random.choice(sorted(connected))}
        return sorted(chosen - self._pulling)

    async def pull(self, peer_id: str) -> int:
        """Fetch what the peer has and we lack; returns how many batches were new."""
        self._pulling.add(peer_id)
        try:
            with trio.move_on_after(PULL_SECONDS_MAX):
                return await self._pull(peer_id)
            log.info("sync with %s takes long; it goes on later", peer_id)
        except (UnreachablePeer, RequestFailed) as error:
            log.debug("sync with %s: %s", peer_id, error)
        except InvalidInput as error:
            log.warning("sync with %s: malformed answer: %s", peer_id, error)
            self._transport.note_fault(peer_id)
        finally:
            self._pulling.discard(peer_id)
        return 0

    async def _pull(self, peer_id: str) -> int:
        probe = encode_probe(compute_frontier_digest(self._replica))
        theirs = decode_frontier(await self._ask(peer_id, probe))
        for note_heads in self.on_heads:
            note_heads(peer_id, theirs)
        total = 0
        asked: tuple[LogLocator, ...] = ()
        while True:
            async with self._take_turn():
                locators = compute_locators(self._replica, theirs, self._list_ignored_logs())
                if not locators or locators == asked:
                    break  # nothing is missing, or the piece before brought us no further
                asked = locators
                piece = decode_piece(await self._ask(peer_id, encode_pull(locators)))
                total += await self._ingest(piece.batches, peer_id)
        self._answered.add(peer_id)
        for callback in self.on_answer:
            callback(peer_id)
        return total

    @asynccontextmanager
    async def _take_turn(self) -> AsyncIterator[None]:
        """One peer's piece at a time, so that nothing is fetched from two; but nobody waits long for a slow peer."""
        with trio.move_on_after(TURN_SECONDS_MAX):
            await self._turn.acquire()
        is_ours = self._turn.statistics().owner is trio.lowlevel.current_task()
        try:
            yield
        finally:
            if is_ours:
                self._turn.release()

    async def _ask(self, peer_id: str, request: bytes) -> bytes:
        return await self._transport.request(peer_id, SYNC_PROTOCOL, request, REQUEST_SECONDS)

    async def _handle_request(self, peer_id: str, encoded: bytes) -> bytes:
        request = decode_request(encoded)
        if isinstance(request, bytes):
            is_equal = request == compute_frontier_digest(self._replica)
            return encode_frontier(() if is_equal else get_heads(self._replica))
        return encode_piece(await self._collect(request))

    async def _collect(self, locators: tuple[LogLocator, ...]) -> Piece:
        batches: list[bytes] = []
        size = 0
        for batch_id in compute_missing(self._replica, locators):
            encoded = self._read_batch(batch_id)
            if encoded is None:
                continue
            if batches and (size + len(encoded) > SYNC_BYTES_MAX or len(batches) == PIECE_BATCHES_MAX):
                return Piece(1, tuple(batches))
            batches.append(encoded)
            size += len(encoded)
            if len(batches) % 64 == 0:
                await trio.lowlevel.checkpoint()
        return Piece(0, tuple(batches))
