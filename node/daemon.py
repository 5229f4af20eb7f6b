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
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import trio

from node import api
from node.config import Federation, NodeConfig, NodeHome, encode_json, find_own_number
from node.evidence import list_kept_evidence
from node.files import lock_directory, write_atomically
from node.keystore import Key, Passphrase, load_key
from node.member import LedgerMember
from node.metering_agent import MeteringAgent
from node.metering_orders import find_origin
from node.neighbours import Neighbours
from node.network.gossip import Gossip
from node.network.libp2p_transport import Libp2pTransport
from node.network.refetching import BatchExchange
from node.network.sync import Synchronizer
from node.operator.actions import OperatorActions
from node.operator.amendments import AmendmentActions
from node.operator.conduct import ConductActions
from node.operator.founding import FounderCard, read_document
from node.operator.outbox import Outbox
from node.operator.vote_cards import VoteCards
from node.pruning import append_archive, list_absent
from node.snapshots import SnapshotFolder
from node.storage.blobs import BlobStore
from node.storage.store import Store
from node.vote_keys import VoteKeyFiles, VoteKeys, read_passphrase
from node.web.application import make_application
from node.web.server import HttpServer, open_private_listener, open_public_listeners
from node.web.services import WebServices
from protocol.charter import FoundedCharter
from protocol.errors import Rejected
from protocol.messages import LogHead

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
    text = read_passphrase(places.member_key, passphrase)
    member_key = load_key(places.member_key, text, purpose="member")
    peer_key = load_key(places.peer_key, text, purpose="peer")
    with lock_directory(home, "allmende node"):
        vote_keys = VoteKeyFiles(places.vote_key, places.vote_keys, text)
        trio.run(_Daemon(places, config, federation, founded, _Keys(member_key, peer_key, vote_keys)).run)


def _raise_file_limit() -> None:
    """Hundreds of HTTP and peer connections need more file descriptors than the usual soft limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _find_own_places(config: NodeConfig) -> frozenset[str]:
    """Nodes that may be called at addresses of a private network: this one, and those that the operator names."""
    _, port = config.split_http()
    urls = [*(f"http://{name}:{port}" for name in ("127.0.0.1", "localhost")), *config.private_nodes]
    return frozenset(map(find_origin, [*urls, *([config.url] if config.url else [])]))


class _Keys(NamedTuple):
    """What a node signs with."""

    member: Key
    peer: Key
    vote: VoteKeys


class _Daemon:
    """The composition root: makes the parts and knows which hands what to which."""

    def __init__(
        self,
        home: NodeHome,
        config: NodeConfig,
        federation: Federation,
        founded: FoundedCharter,
        keys: _Keys,
    ) -> None:
        self._home = home
        self._config = config
        self._federation = federation
        self._founding_charters = federation.decode_charters()
        newest_first = [self._founding_charters[version] for version in sorted(self._founding_charters, reverse=True)]
        number = find_own_number(newest_first, keys.member.public_key, keys.peer.public_key)
        self._store = Store.open(home.ledger, founded.charter.federation)
        self._member = LedgerMember(founded, number, keys.vote, self._store)
        self._member.checkpoints.folder = SnapshotFolder(home.snapshots)
        self._actions = OperatorActions(self._member, keys.member, Outbox(home.outbox, founded.charter.federation))
        self._gossip = Gossip(
            self._member.replica.ledger.charters, self._member.take_in, self._member.list_ignored_logs
        )
        self._neighbours = Neighbours(number, self._founding_charters, federation.addresses, config.peers)
        self._transport = Libp2pTransport(
            keys.peer.seed,
            [config.p2p],
            topics=self._gossip.topics,
            validate=self._gossip.is_worth_forwarding,
            on_gossip=self._gossip.handle,
            is_admitted=self._neighbours.__contains__,
        )
        self._cards = VoteCards(self._member, keys.member, self._find_own_address(), self._transport)
        self._synchronizer = Synchronizer(
            self._member.replica,
            self._transport,
            self._member.archive.read_bytes,
            self._member.ingest,
            self._member.list_ignored_logs,
        )
        self._exchange = BatchExchange(founded.charter.federation, self._transport, self._member.archive.read_bytes)
        self._blobs = BlobStore(home.blobs)
        self._services = WebServices(
            self._member,
            self._store,
            self._blobs,
            self._actions,
            AmendmentActions(self._actions, self._cards),
            ConductActions(self._actions),
            describe_network=self._describe_network,
            list_addresses=self._neighbours.list_addresses,
        )
        self._metering = MeteringAgent(self._member, self._store, _find_own_places(config))
        self._services.metering = self._metering
        self._services.fetch_archive = self._fetch_archive
        self._member.on_spoken.append(self._gossip.tell_batch)
        self._member.on_missing_past.append(self._synchronizer.request_sync)
        self._member.on_fault.append(self._transport.note_fault)
        self._member.on_charter.append(self._follow_charter)
        self._gossip.on_unknown_version.append(self._synchronizer.request_sync)
        self._synchronizer.on_answer.append(self._note_answer)
        self._synchronizer.on_heads.append(self._note_heads)
        self._gossip.on_offer.append(self._take_offer)
        self._services.on_offer.append(self._gossip.tell_offer)

    def _note_answer(self, peer_id: str) -> None:
        self._member.signing.note_heard(self._neighbours.get_number(peer_id))

    def _find_own_address(self) -> str:
        """Where others reach this node, as the card says that it gave away."""
        if not self._home.founder_card.exists():
            return ""
        return read_document(self._home.founder_card, FounderCard, "founder's card").p2p

    def _follow_charter(self) -> None:
        """Another version is known or in force: let its members in, and write down what proves it."""
        replica = self._member.replica
        known = {**self._founding_charters, **replica.ledger.charters}
        current = [known[version] for version in sorted(known) if version >= replica.version]
        before = [known[replica.version - 1]] if replica.version else []
        self._neighbours.follow(current, before)
        self._transport.set_peers(self._neighbours.list_calls())
        self._save_federation()

    def _save_federation(self) -> None:
        """The founding file with all that was learnt since: by it a node starts, and others can join."""
        charter = self._services.charter_views.build_charter(0, {})
        amendments = [amendment.receipt for amendment in charter.amendments]
        if len(amendments) < len(self._federation.amendments):
            return  # still catching up with what the file knew from the start
        federation = msgspec.structs.replace(
            self._federation,
            amendments=amendments,
            addresses={**self._federation.addresses, **self._neighbours.list_addresses()},
        )
        if federation != self._federation:
            self._federation = federation
            write_atomically(self._home.federation, encode_json(federation), 0o644)

    async def _learn_addresses(self) -> None:
        """Ask connected members for their addresses that nobody told us, to call them and to tell others."""
        is_news = False
        for peer_id in self._neighbours.list_others().keys() & self._transport.connected():
            if not self._neighbours.has_address(peer_id):
                card = await self._cards.ask(peer_id)
                if card is not None and card.member == self._neighbours.get_number(peer_id):
                    is_news |= self._neighbours.note_address(peer_id, card.address)
        if is_news:
            self._transport.set_peers(self._neighbours.list_calls())
            self._save_federation()

    def _note_heads(self, peer_id: str, heads: tuple[LogHead, ...]) -> None:
        self._member.log_rates.note_heads(self._neighbours.get_number(peer_id), heads)

    def _take_offer(self, encoded: bytes) -> None:
        """An offer that another node passed on; one that we would not take from its donor is dropped."""
        try:
            self._services.accept_offer(encoded)
        except Rejected as rejection:
            log.info("an offer was not taken: %s", rejection)

    async def _fetch_archive(self) -> api.FetchedArchive:
        """Bring back what lies before the checkpoint with which this ledger begins: an audit needs it."""
        archive = self._home.archive
        absent = await trio.to_thread.run_sync(list_absent, self._member.replica, archive, self._store)
        count = await self._exchange.fetch_all(absent, partial(append_archive, archive))
        return api.FetchedArchive(count, len(absent) - count)

    def _describe_network(self) -> tuple[list[api.Peer], dict[str, int]]:
        connected = self._transport.connected()
        peers = [
            api.Peer(member.name, peer_id, peer_id in connected)
            for peer_id, member in self._neighbours.list_others().items()
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
            self._follow_charter()
            nursery.start_soon(self._member.speak)
            nursery.start_soon(self._member.watch_time)
            nursery.start_soon(self._member.watch_rates)
            nursery.start_soon(self._member.checkpoints.run)
            nursery.start_soon(self._gossip.run, self._transport)
            nursery.start_soon(self._synchronizer.run)
            nursery.start_soon(self._keep_house)
            nursery.start_soon(self._actions.run)
            nursery.start_soon(self._metering.run)
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
            self._blobs.expire(now, list_kept_evidence(self._member.replica.ledger, now))
            await self._learn_addresses()
            await trio.sleep(HOUSEKEEPING_SECONDS)
