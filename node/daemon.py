"""A running node: every part opened in one nursery and wired to the next.

Data flows one way: the network hands batches to the member, the member stores and admits them, the web answers from
the member; what the member says goes out over gossip. Shutdown is cancellation; start-up is recovery from the store,
the same whether the node was stopped or killed.
"""

from __future__ import annotations

import logging
import resource
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import trio

from node import api
from node.config import Federation, NodeConfig, NodeHome, find_own_member
from node.errors import UserError
from node.files import lock_directory
from node.keystore import Key, Passphrase, load_key
from node.member import LedgerMember
from node.network.gossip import Gossip
from node.network.libp2p_transport import Libp2pTransport
from node.network.peer_ids import compute_peer_id
from node.network.sync import Synchronizer
from node.operator.actions import OperatorActions
from node.operator.conduct import ConductActions
from node.operator.outbox import Outbox
from node.storage.blobs import BlobStore
from node.storage.store import Store
from node.web.application import make_application
from node.web.server import HttpServer, open_private_listener, open_public_listeners
from node.web.services import WebServices
from protocol.charter import Charter, FoundedCharter
from protocol.errors import Rejected

log = logging.getLogger("allmende.daemon")

HOUSEKEEPING_SECONDS = 60


def run_node(home: Path, passphrase: Passphrase | None = None) -> None:
    """Run the node of this home directory until SIGTERM or SIGINT. Raises: UserError when it can't start."""
    places = NodeHome(home)
    config = places.load_config()
    logging.basicConfig(
        level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    _raise_file_limit()
    federation, founded = places.load_federation()
    keys = {purpose: load_key(path, passphrase, purpose=purpose) for purpose, path in places.keys}
    with lock_directory(home, "allmende node"):
        trio.run(_Daemon(places, config, federation, founded, keys).run)


def _raise_file_limit() -> None:
    """Hundreds of HTTP and peer connections need more file descriptors than the usual soft limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Daemon:
    """The composition root: makes the parts and knows which hands what to which."""

    def __init__(
        self,
        home: NodeHome,
        config: NodeConfig,
        federation: Federation,
        founded: FoundedCharter,
        keys: Mapping[str, Key],
    ) -> None:
        self._home = home
        self._config = config
        self._charter = founded.charter
        own = find_own_member(self._charter, *(keys[purpose].public_key for purpose in ("member", "vote", "peer")))
        self._store = Store.open(home.ledger, self._charter.federation)
        self._member = LedgerMember(founded, own.number, keys["vote"], self._store)
        self._actions = OperatorActions(self._member, keys["member"], Outbox(home.outbox, self._charter.federation))
        self._gossip = Gossip(self._charter, self._member.take_in)
        self._peers = _collect_peers(self._charter, own.number, federation, config)
        self._numbers = {compute_peer_id(m.peer_key): number for number, m in self._charter.members.items()}
        self._transport = Libp2pTransport(
            keys["peer"].seed,
            [config.p2p],
            topics=self._gossip.topics,
            validate=self._gossip.is_worth_forwarding,
            on_gossip=self._gossip.handle,
            is_admitted=self._peers.__contains__,
        )
        self._synchronizer = Synchronizer(
            self._member.replica,
            self._transport,
            self._member.archive.read_bytes,
            self._member.ingest,
            self._member.list_ignored_logs,
        )
        self._blobs = BlobStore(home.blobs)
        self._services = WebServices(
            self._member,
            self._store,
            self._blobs,
            self._actions,
            describe_network=self._describe_network,
            conduct=ConductActions(self._actions),
        )
        self._member.on_spoken.append(self._gossip.tell_batch)
        self._member.on_missing_past.append(self._synchronizer.request_sync)
        self._member.on_fault.append(self._transport.note_fault)
        self._synchronizer.on_answer.append(self._note_answer)
        self._gossip.on_offer.append(self._take_offer)
        self._services.on_offer.append(self._gossip.tell_offer)

    def _note_answer(self, peer_id: str) -> None:
        self._member.note_heard(self._numbers[peer_id])

    def _take_offer(self, encoded: bytes) -> None:
        """An offer that another node passed on; one that we would not take from its donor is dropped."""
        try:
            self._services.accept_offer(encoded)
        except Rejected as rejection:
            log.info("an offer was not taken: %s", rejection)

    def _describe_network(self) -> tuple[list[api.Peer], dict[str, int]]:
        connected = self._transport.connected()
        peers = [
            api.Peer(member.name, peer_id, peer_id in connected)
            for member in self._charter.members.values()
            if (peer_id := compute_peer_id(member.peer_key)) in self._peers
        ]
        return peers, dict(self._transport.traffic.received)

    async def run(self) -> None:
        """Recover, then serve until a signal comes."""
        try:
            count = await self._member.restore()
            log.info("restored %d batches, %d final records", count, self._member.replica.final_count)
            await self._serve()
        finally:
            self._store.close()

    async def _serve(self) -> None:
        async with self._transport.run(), trio.open_nursery() as nursery:
            self._transport.set_peers(self._peers)
            nursery.start_soon(self._member.speak)
            nursery.start_soon(self._member.watch_time)
            nursery.start_soon(self._gossip.run, self._transport)
            nursery.start_soon(self._synchronizer.run)
            nursery.start_soon(self._keep_house)
            nursery.start_soon(self._actions.run)
            await self._open_doors(nursery)
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                async for number in signals:
                    log.info("stopping on signal %d", number)
                    break
            nursery.cancel_scope.cancel()

    async def _open_doors(self, nursery: trio.Nursery) -> None:
        """The public API on TCP, and beside it the signing verbs on a socket for this user alone."""
        public = HttpServer(
            make_application(self._services, with_operator=False),
            await open_public_listeners(*self._config.split_http()),
            self._services.closing,
        )
        private = HttpServer(
            make_application(self._services, with_operator=True),
            [open_private_listener(self._home.socket)],
            self._services.closing,
        )
        addresses = [*await nursery.start(public.run), *await nursery.start(private.run)]
        log.info("ready: %s", ", ".join([*self._transport.listen_addresses(), *addresses]))

    async def _keep_house(self) -> None:
        """What is kept for others goes when its time is over."""
        while True:
            now = int(time.time())
            self._store.expire(now)
            self._blobs.expire(now)
            await trio.sleep(HOUSEKEEPING_SECONDS)


def _collect_peers(
    charter: Charter, own_number: int, federation: Federation, config: NodeConfig
) -> dict[str, list[str]]:
    """Peer id -> addresses of every other member, from the founding file and the settings.

    Raises: UserError when the settings name a peer that is no member: it would never be let in.
    """
    peers: dict[str, list[str]] = {}
    for number, member in charter.members.items():
        if number != own_number:
            address = federation.addresses.get(member.name)
            peers[compute_peer_id(member.peer_key)] = [address] if address else []
    for address in config.peers:
        peer_id = address.rpartition("/p2p/")[2]
        if peer_id not in peers:
            raise UserError(
                f"no other member of the federation has the peer id {peer_id}: correct peers in config.toml"
            )
        peers[peer_id].append(address)
    return peers
