"""What the routes of one node work with, and the two things that the node takes in beside records and letters."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

import trio

from node import api, job_api
from node.member import LedgerMember
from node.storage.blobs import BlobStore
from node.storage.store import Store, StoredRequest
from node.web.charter_views import CharterViews
from node.web.donor_views import DonorViews
from node.web.mailboxes import Mailboxes
from node.web.problems import NotFound
from node.web.views import LedgerViews
from protocol.budgets import decode_budget_request
from protocol.errors import Reason, Rejected
from protocol.quotes import decode_offer
from protocol.records import account_scope
from protocol.rules import find_turn


class OperatorActions(Protocol):
    """The acts of an institution, as `node.operator.actions` has them. Each raises UserError, Rejected, Busy."""

    async def create_program(self, draft: api.ProgramDraft, *, dry_run: bool = False) -> api.Signed: ...
    async def list_budget_requests(self) -> list[api.BudgetRequest]: ...
    async def approve(self, request_id: str, *, dry_run: bool = False) -> api.Signed: ...
    async def grant(self, order: api.GrantOrder, *, dry_run: bool = False) -> api.Signed: ...
    async def sponsor(self, order: api.SponsorOrder, *, dry_run: bool = False) -> api.Signed: ...


class AmendmentActions(Protocol):
    """What an institution does about the charter, as `node.operator.amendments` has it."""

    async def collect_vote_cards(self) -> list[api.VoteCard]: ...
    async def propose(self, order: api.AmendmentOrder, *, dry_run: bool = False) -> api.Signed: ...
    async def approve_amendment(self, record_id: str, *, dry_run: bool = False) -> api.Signed: ...
    async def unlock_amendment(self, record_id: str, *, dry_run: bool = False) -> api.Signed: ...


class ConductActions(Protocol):
    """What an institution does about the accounts that it vouches for, as `node.operator.conduct` has it."""

    async def suspend(self, order: api.SuspendOrder, *, dry_run: bool = False) -> api.Signed: ...
    async def reinstate(self, order: api.ReinstateOrder, *, dry_run: bool = False) -> api.Signed: ...
    async def complete_leave(self, encoded: bytes, *, dry_run: bool = False) -> api.Signed: ...


class Metering(Protocol):
    """Answering meters for absent wallets, as `node.metering_agent` has it."""

    def accept(self, order: job_api.MeteringOrder) -> job_api.Metered: ...
    async def give_back(self, ticket: bytes, turn: int) -> job_api.Metered | None: ...


def read_version() -> str:
    """The version of this program."""
    try:
        return version("allmende")
    except PackageNotFoundError:
        return "unknown"


def describe_no_network() -> tuple[list[api.Peer], dict[str, int]]:
    """Of a node that stands alone."""
    return [], {}


@dataclass
class WebServices:
    """One node, as the routes see it."""

    member: LedgerMember
    store: Store
    blobs: BlobStore
    operator: OperatorActions | None = None
    amendments: AmendmentActions | None = None
    conduct: ConductActions | None = None
    metering: Metering | None = None
    describe_network: Callable[[], tuple[list[api.Peer], dict[str, int]]] = describe_no_network
    """Peers, and bytes received by protocol."""
    list_addresses: Callable[[], Mapping[str, str]] = dict
    """Member -> network address of its node, as far as known."""
    on_offer: list[Callable[[bytes], None]] = field(default_factory=list)
    """Called with each new offer, to hand it on to other nodes."""
    fetch_archive: Callable[[], Awaitable[api.FetchedArchive]] | None = None
    """Bring old batches back from other members."""
    clock: Callable[[], float] = time.time
    closing: trio.Event = field(default_factory=trio.Event)
    """Set when the node stops; long polls end then."""
    version: str = field(default_factory=read_version)

    def __post_init__(self) -> None:
        """Make what stands on the parts."""
        self.proving = trio.CapacityLimiter(1)
        self.mailboxes = Mailboxes(self.store, self.clock)
        self.views = LedgerViews(self.member, self.clock)
        self.charter_views = CharterViews(self.member)
        self.donor_views = DonorViews(self.member, self.clock)

    def accept_offer(self, encoded: bytes) -> bool:
        """Keep a donor's offer, from the donor or from another node; True when it is news.

        Raises: InvalidInput; Rejected when it has ended, ends too late, no member vouches for the donor now, or one
        has suspended it; StoreFull.
        """
        charter, now = self.member.charter, int(self.clock())
        offer = decode_offer(charter, encoded)
        donor = offer.compute_donor(charter.federation)
        if not now < offer.valid_until <= now + job_api.OFFER_SECONDS_MAX:
            raise Rejected(
                Reason.TERMS_WRONG,
                f"an offer holds for {job_api.OFFER_SECONDS_MAX} s at the most, and must not have ended",
            )
        sponsor = self.member.replica.ledger.sponsors.get(offer.sponsor)
        if sponsor is None or sponsor.donor != donor:
            raise Rejected(Reason.REFERENCE_MISSING, "no member of this federation vouches for this donor")
        if sponsor.until_epoch < self.views.epoch:
            raise Rejected(Reason.REFERENCE_MISSING, "the member's word for this donor has ended")
        if self.member.replica.ledger.is_suspended(donor, self.views.epoch):
            raise Rejected(Reason.SUSPENDED, "a member has suspended this donor for some time")
        is_new = self.store.put_offer(donor, encoded, offer.valid_until)
        if is_new:
            for callback in self.on_offer:
                callback(encoded)
        return is_new

    def accept_budget_request(self, encoded: bytes) -> StoredRequest:
        """Keep a person's request until the institution answers.

        Raises: InvalidInput; NotFound for a program of nobody or of another member; Rejected for another epoch.
        """
        charter = self.member.charter
        request = decode_budget_request(charter, encoded)
        program = self.member.replica.ledger.programs.get(request.program)
        if program is None:
            raise NotFound("there is no such program")
        if request.member != program.member or request.member != self.member.number:
            owner = charter.members.get(program.member)
            raise NotFound(f"this program is another institution's: ask the node of {owner.name if owner else '?'}")
        request_id = request.compute_id(charter.federation)
        known = self.store.get_budget_request(request_id)
        if known is None and request.epoch not in self.member.compute_open_epochs():
            raise Rejected(Reason.EPOCH_WRONG, f"the request is for epoch {request.epoch}")
        if find_turn(self.member.replica.ledger, account_scope(request.account), request.person_key) is None:
            raise Rejected(Reason.WRITER_WRONG, "the request is not signed by the account's key in force")
        self.store.put_budget_request(request_id, request.program, request.account, encoded)
        found = self.store.get_budget_request(request_id)
        assert found is not None
        return found
