"""A real node of a federation of one, on a free port of this machine, and the real client."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.client import NodeClient
from node.keystore import Key
from node.member import LedgerMember
from node.storage.blobs import BlobStore
from node.storage.store import Store
from node.vote_keys import VoteKeys
from node.web.application import make_application
from node.web.server import HttpServer, open_private_listener, open_public_listeners
from node.web.services import WebServices
from protocol.budgets import BudgetRequest
from protocol.charter import Charter, CharterFields, Member, Policy, found_charter
from protocol.identifiers import compute_account_id
from protocol.quotes import Offer
from protocol.records import (
    Body,
    Enrol,
    Grant,
    GrantOutput,
    Kind,
    Output,
    Program,
    Record,
    RecordDraft,
    Sponsor,
    Transfer,
    account_scope,
    person_scope,
    sign_record,
)

TIMEOUT_SECONDS = 10


def make_key(number: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


class Federation:
    """One member with all the weight, and the records that its people sign."""

    member_key = make_key(1)
    person_key = make_key(4)
    donor_key = make_key(5)

    def __init__(self) -> None:
        vote_key, peer_key = public(make_key(2)), public(make_key(3))
        member = Member(1, "University", public(self.member_key), vote_key, peer_key, 1, (10**9,), 0)
        policy = Policy(bytes(32), 60, 3600, 0, 10, 2**30)
        genesis = int(time.time()) - 100
        fields = CharterFields(0, b"", "Alone", bytes(16), genesis, 30 * 24 * 3600, 0, 1, (member,), (), policy)
        self.charter = Charter(fields)
        self.founded = found_charter(self.charter, {1: self.member_key.sign(self.charter.id)})
        self.id = self.charter.federation
        self.person = self.account_of(self.person_key)
        self.donor = self.account_of(self.donor_key)
        self.member_account = self.charter.get_member_account(1)
        self.issuance = self.charter.get_issuance_account(1, 1)
        body = Program(1, "Students", "for courses", 10**6, 1, 1, ("train",))
        self.program = self.sign(Kind.PROGRAM, account_scope(self.member_account), 0, b"", body, self.member_key)
        tag = person_scope(b"t" * 32)
        self.enrolment = self.sign(Kind.ENROL, tag, 0, b"", Enrol(1, self.person), self.member_key, self.person_key)
        grant = Grant(self.program.id, 2, (GrantOutput(self.enrolment.id, self.person, 5000),))
        self.grant = self.sign(Kind.GRANT, account_scope(self.issuance), 0, b"", grant, self.member_key)
        scope = account_scope(self.member_account)
        self.sponsor = self.sign(Kind.SPONSOR, scope, 1, self.program.id, Sponsor(1, self.donor, 3), self.member_key)

    def account_of(self, key: Ed25519PrivateKey) -> bytes:
        return compute_account_id(self.id, public(key))

    def sign(
        self, kind: Kind, scope: bytes, sequence: int, prev: bytes, body: Body, *keys: Ed25519PrivateKey
    ) -> Record:
        draft = RecordDraft(kind, 1, scope, sequence, prev, body, tuple(map(public, keys)))
        return sign_record(self.id, draft, keys)

    def sign_payment(self, sequence: int, prev: bytes, amount: int) -> Record:
        body = Transfer((Output(self.donor, self.program.id, 2, amount),), "thanks")
        return self.sign(Kind.TRANSFER, account_scope(self.person), sequence, prev, body, self.person_key)

    def sign_budget_request(self, program: bytes | None = None, member: int = 1, epoch: int = 1) -> BudgetRequest:
        request = BudgetRequest(
            program or self.program.id, member, epoch, b"u" * 32, self.donor, public(self.donor_key), "please", b"", b""
        )
        return request.sign(self.charter, self.donor_key)

    def sign_offer(self, valid_until: int, key: Ed25519PrivateKey | None = None, sponsor: bytes | None = None) -> Offer:
        key = key or self.donor_key
        offer = Offer(
            public(key), bytes(32), sponsor or self.sponsor.id, "http://localhost", "old laptop", 4, 2**33, 2**33, 0,
            (), 100, (), ("train",), (), 3600, valid_until, bytes(64),
        )  # fmt: skip
        return offer.sign(self.id, key)


class Node:
    """A running node and what a test needs of it."""

    def __init__(self, federation: Federation, home: Path, operator: Any = None) -> None:
        self.federation = federation
        self.home = home
        self.store = Store.open(":memory:", federation.id)
        self.member = LedgerMember(
            federation.founded, 1, VoteKeys([Key(make_key(2).private_bytes_raw(), "vote")]), self.store
        )
        self.services = WebServices(self.member, self.store, BlobStore(home / "blobs"), operator)
        self.url = ""
        self.socket = home / "operator.sock"
        self.server: HttpServer
        self.serving = trio.CancelScope()
        self.stopped = trio.Event()

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def call(self, method: str, *arguments: Any, place: Any = None, **options: Any) -> Any:
        """One call of the client, in a thread."""
        with NodeClient(place or self.url, TIMEOUT_SECONDS) as client:
            return await trio.to_thread.run_sync(partial(getattr(client, method), *arguments, **options))

    async def make_final(self, *records: Record) -> None:
        for record in records:
            await self.member.submit(record.encoded)
        for record in records:
            with trio.fail_after(TIMEOUT_SECONDS):
                assert await self.member.wait_final(record.id, TIMEOUT_SECONDS)

    async def talk(self, content: bytes) -> bytes:
        """Send raw bytes and read until the node closes."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        answer = b""
        with trio.fail_after(TIMEOUT_SECONDS):
            async with stream:
                await stream.send_all(content)
                async for piece in stream:
                    answer += piece
        return answer

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(TIMEOUT_SECONDS):
            while not condition():
                await trio.sleep(0.005)


@asynccontextmanager
async def run_node(node: Node, **limits: Any) -> AsyncIterator[Node]:
    services = node.services
    listeners = await open_public_listeners("127.0.0.1", 0)
    server = HttpServer(make_application(services, with_operator=False), listeners, services.closing, **limits)
    private_listener = open_private_listener(node.socket)
    private = HttpServer(make_application(services, with_operator=True), [private_listener], services.closing)

    async def serve(task_status: trio.TaskStatus[None]) -> None:
        with node.serving:
            async with trio.open_nursery() as servers:
                (node.url,) = await servers.start(server.run)
                await servers.start(private.run)
                task_status.started()
        node.stopped.set()

    node.server = server
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.member.speak)
        await nursery.start(serve)
        yield node
        node.serving.cancel()
        await node.stopped.wait()
        nursery.cancel_scope.cancel()
    node.store.close()


@pytest.fixture
def federation() -> Federation:
    return Federation()


@pytest.fixture
def start(federation, tmp_path):
    """`async with start(...) as node`, for a node with limits or an operator of the test's own."""
    return lambda operator=None, **limits: run_node(Node(federation, tmp_path, operator), **limits)


@pytest.fixture
async def node(start):
    async with start() as running:
        yield running


@pytest.fixture
async def funded(node):
    """A node at which a person holds 5.000 credits and a donor is vouched for."""
    federation = node.federation
    await node.make_final(federation.program, federation.enrolment)
    await node.make_final(federation.grant, federation.sponsor)
    return node
