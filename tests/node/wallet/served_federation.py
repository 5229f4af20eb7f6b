"""Four real members with their web servers in one thread: batches pass between them late and in any order."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from random import Random

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.client import NodeClient
from node.mnemonics import derive_seed
from node.storage.blobs import BlobStore
from node.storage.store import Store
from node.web.application import make_application
from node.web.server import HttpServer, open_public_listeners
from node.web.services import WebServices
from protocol.identifiers import compute_account_id
from scripts.benchmarks.federation_in_memory import Cast

DELAY_SECONDS_MAX = 0.03


class ServedFederation:
    """What a test may ask of it from its own thread."""

    def __init__(self, words, folder, seed):
        self.cast = Cast(4, 1)
        key = Ed25519PrivateKey.from_private_bytes(derive_seed(words, "account"))
        self.cast.people = [key]
        self.account = compute_account_id(self.cast.federation, key.public_key().public_bytes_raw())
        self.cast.accounts = [self.account]
        self.members = []
        self.urls = []
        self.is_together = True
        """False: no batch passes between the first half of the members and the second."""
        self._folder = folder
        self._random = Random(seed)
        self._held = []

    def fund(self):
        """Give the person credits."""
        with NodeClient(self.urls[0]) as client:
            for group in self.cast.make_setup():
                for record in group:
                    assert client.submit(record.encoded, 20).receipt

    def call(self, function):
        """The function's value, computed between two events of the members."""
        return trio.from_thread.run_sync(function, trio_token=self._token)

    def join(self):
        """Hand over all that was held back."""
        self.is_together = True
        self.call(self._carry_held)

    def _carry_held(self):
        held, self._held = self._held, []
        for member, encoded in held:
            self._nursery.start_soon(self._carry, member, encoded)

    def stop(self):
        self.call(self._nursery.cancel_scope.cancel)

    async def serve(self, started):
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as self._nursery:
            for number in self.cast.member_keys:
                store = Store.open(":memory:", self.cast.federation)
                member = self.cast.open_member(number, store)
                for other in self.cast.member_keys:
                    member.signing.note_heard(other)
                member.on_spoken.append(partial(self._hand_out, number))
                self.members.append(member)
                services = WebServices(member, store, BlobStore(self._folder / f"blobs-{number}"), None)
                listeners = await open_public_listeners("127.0.0.1", 0)
                server = HttpServer(make_application(services, with_operator=False), listeners, services.closing)
                self._nursery.start_soon(member.speak)
                self.urls += await self._nursery.start(server.run)
            started.put(None)

    def _hand_out(self, speaker, encoded):
        for member in self.members:
            if member.number == speaker:
                continue
            if self.is_together or (member.number <= 2) == (speaker <= 2):
                self._nursery.start_soon(self._carry, member, encoded)
            else:
                self._held.append((member, encoded))

    async def _carry(self, member, encoded):
        await trio.sleep(self._random.uniform(0, DELAY_SECONDS_MAX))
        await member.ingest([encoded], "peer")


@contextmanager
def serve_federation(words, folder, seed=1):
    """A funded federation; it ends with the block."""
    federation = ServedFederation(words, folder, seed)
    started: SimpleQueue[None] = SimpleQueue()
    thread = threading.Thread(target=trio.run, args=(federation.serve, started), daemon=True)
    thread.start()
    started.get(timeout=30)
    try:
        federation.fund()
        yield federation
    finally:
        federation.stop()
        thread.join(timeout=30)
