"""The public routes: read the ledger, hand in signed records, offers and letters.

Nobody is asked who they are. What comes in is signed or addressed by an unguessable name, and what goes out is public
or sealed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import trio
from litestar import Response, get, post, put
from litestar.di import NamedDependency
from litestar.params import PathParameter, QueryParameter, SkipValidation
from litestar.response import Stream

from node import api, job_api
from node.addresses import Kind as AddressKind
from node.addresses import decode_address
from node.errors import UserError
from node.storage.store import StoredRequest
from node.web.checkpoints import build_account_proof, build_checkpoint, find_snapshot
from node.web.exchange import BLOB_SECONDS_MAX, OctetsOperation, iterate_body, read_body, wait_for
from node.web.problems import AnyRequest, NotFound
from node.web.services import WebServices
from node.web.views import name_account, name_program, name_record
from protocol.budgets import BUDGET_REQUEST_BYTES_MAX
from protocol.codec import binary_up_to, decode, items
from protocol.errors import InvalidInput
from protocol.limits import RECORD_BYTES_MAX, STATEMENT_BYTES_MAX
from protocol.quotes import OFFER_BYTES_MAX
from protocol.statements import decode_unlock_request

_PIECE_BYTES = 256 * 1024
_PROPOSAL_SHAPE = items(binary_up_to(STATEMENT_BYTES_MAX), binary_up_to(RECORD_BYTES_MAX))

Services = NamedDependency[SkipValidation[WebServices]]
Wait = Annotated[
    int,
    QueryParameter(
        ge=0,
        le=api.WAIT_SECONDS_MAX,
        description="Seconds to wait for the answer to become a better one (a long poll); 0 answers at once.",
    ),
]
Limit = Annotated[int, QueryParameter(ge=1, le=api.HISTORY_LIMIT_MAX, description="Most records in one answer.")]
Before = Annotated[int | None, QueryParameter(ge=0, description="`before` of the page before; absent for the newest.")]
Address = Annotated[str, PathParameter(description="An account: alm1... (bech32m).")]
RecordId = Annotated[str, PathParameter(description="A record's id: almr1... (bech32m).")]
HoldId = Annotated[str, PathParameter(description="The record that holds the job's credits: almr1... (bech32m).")]
MailboxName = Annotated[str, PathParameter(description="A mailbox: 32 bytes in hex.")]
Digest = Annotated[str, PathParameter(description="The SHA-256 of the content, in hex.")]


def decode_path(kind: AddressKind, text: str) -> bytes:
    """An id in a path. Raises: NotFound for what can name nothing."""
    try:
        return decode_address(kind, text)
    except UserError as error:
        raise NotFound(str(error)) from None


def decode_name(text: str) -> bytes:
    """32 bytes in hex. Raises: InvalidInput."""
    try:
        name = bytes.fromhex(text)
    except ValueError:
        name = b""
    if len(name) != 32 or len(text) != 64:
        raise InvalidInput("a name has 32 bytes, written as 64 hexadecimal digits")
    return name


@get("/health", tags=["node"])
async def get_health() -> api.Health:
    """Whether the node answers."""
    return api.Health("ok")


@get("/status", tags=["node"])
async def get_status(services: Services) -> api.Status:
    """How far the node is, and whom it is connected to."""
    peers, bytes_received = services.describe_network()
    return services.views.build_status(services.version, peers, bytes_received)


@get("/evidence", tags=["node"])
async def get_evidence(services: Services) -> list[api.Evidence]:
    """Proofs that members or owners contradicted themselves. Each is signed by those whom it convicts."""
    return services.views.list_evidence()


@get("/charter", tags=["ledger"])
async def get_charter(services: Services) -> api.Charter:
    """The federation's constitution, with what proves each change of it, and what is proposed."""
    return services.charter_views.build_charter(services.views.epoch, services.list_addresses())


@get("/checkpoint", tags=["ledger"])
async def get_checkpoint(services: Services) -> api.Checkpoint:
    """The last certified state: whoever trusts the charter checks it alone."""
    return build_checkpoint(services.member)


@get("/checkpoint/facts", tags=["ledger"], media_type=api.OCTETS)
async def get_checkpoint_facts(services: Services) -> Stream:
    """The whole certified state, with its proof first: a new node begins with it."""
    path = find_snapshot(services.member).path
    return Stream(_Pieces(path), media_type=api.OCTETS, headers={"Content-Length": str(path.stat().st_size)})


@get("/accounts/{address:str}/proof", tags=["ledger"])
async def get_account_proof(services: Services, address: Address) -> api.AccountProof:
    """Proof of what the account held at the last certified checkpoint."""
    account = decode_path(AddressKind.ACCOUNT, address)
    async with services.proving:
        return await trio.to_thread.run_sync(build_account_proof, find_snapshot(services.member), account)


@get("/accounts/{address:str}", tags=["ledger"])
async def get_account(services: Services, address: Address) -> api.Account:
    """What an account holds. An account that was never heard of is empty."""
    name = decode_path(AddressKind.ACCOUNT, address)
    account = services.views.build_account(name)
    account.reliability = services.donor_views.find(name)
    return account


@get("/accounts/{address:str}/records", tags=["ledger"])
async def get_account_records(
    services: Services, address: Address, limit: Limit = 50, before: Before = None
) -> api.RecordPage:
    """The records that touched an account, newest first."""
    return services.views.build_page(decode_path(AddressKind.ACCOUNT, address), limit, before)


@get("/records/{record_id:str}", tags=["ledger"])
async def get_record(services: Services, request: AnyRequest, record_id: RecordId, wait: Wait = 0) -> api.Record:
    """One record with its receipt of finality. With `wait`, answers as soon as the record is final."""
    identifier = decode_path(AddressKind.RECORD, record_id)
    if wait:
        await wait_for(request, services.closing, partial(services.member.wait_final, identifier, wait))
    record = services.member.get_record(identifier)
    if record is None:
        raise NotFound("this node knows no such record")
    return services.views.build_record(record, with_receipt=True)


@post("/records", tags=["ledger"], operation_class=OctetsOperation, request_max_body_size=RECORD_BYTES_MAX)
async def submit_record(services: Services, request: AnyRequest, wait: Wait = 0) -> Response[api.Submitted]:
    """Hand in a signed record (canonical bytes). 200: final; 202: not yet. Repeating it changes nothing."""
    member = services.member
    record_id = await member.submit(await read_body(request))
    if wait:
        await wait_for(request, services.closing, partial(member.wait_final, record_id, wait))
    return _describe_submission(services, record_id)


def _describe_submission(services: WebServices, record_id: bytes) -> Response[api.Submitted]:
    state = services.member.get_state(record_id) or "waiting"
    is_final = state in ("final", "applied")
    receipt = services.member.build_receipt(record_id) if is_final else None
    return Response(api.Submitted(name_record(record_id), state, receipt), status_code=200 if is_final else 202)


@get("/accounts/{address:str}/slot", tags=["ledger"])
async def get_slot(services: Services, address: Address) -> api.AccountSlot:
    """An account's next slot: which records claim it, and which attempt its owner asked for."""
    return services.views.build_slot(decode_path(AddressKind.ACCOUNT, address))


@post(
    "/unlocks",
    tags=["ledger"],
    status_code=200,
    operation_class=OctetsOperation,
    request_max_body_size=STATEMENT_BYTES_MAX,
)
async def post_unlock(services: Services, request: AnyRequest, wait: Wait = 0) -> api.Promises:
    """Ask for another attempt at a slot (canonical bytes, signed by its owner). Repeating it changes nothing.

    With `wait`, answers as soon as members of a quorum have promised, or the slot is decided.
    """
    member, encoded = services.member, await read_body(request)
    attempt = decode_unlock_request(encoded).attempt
    slot = await member.unlocking.submit_request(encoded)
    if wait:
        await wait_for(request, services.closing, partial(member.unlocking.wait_promises, slot, attempt, wait))
    return services.views.build_promises(slot, attempt)


@post(
    "/proposals",
    tags=["ledger"],
    operation_class=OctetsOperation,
    request_max_body_size=STATEMENT_BYTES_MAX + RECORD_BYTES_MAX + 16,
)
async def submit_proposal(services: Services, request: AnyRequest, wait: Wait = 0) -> Response[api.Submitted]:
    """Propose a record for a slot's attempt: [proposal, record], canonical bytes. 200: final; 202: not yet."""
    member = services.member
    proposal, record = decode(_PROPOSAL_SHAPE, await read_body(request), STATEMENT_BYTES_MAX + RECORD_BYTES_MAX + 16)
    record_id = await member.unlocking.submit_proposal(proposal, record)
    if wait:
        await wait_for(request, services.closing, partial(member.wait_final, record_id, wait))
    return _describe_submission(services, record_id)


@get("/suspensions", tags=["ledger"])
async def get_suspensions(services: Services) -> list[api.Suspension]:
    """Accounts that a member has stopped for a while, why, and to whom their owners can turn."""
    return services.views.list_suspensions()


@get("/programs", tags=["budgets"])
async def get_programs(services: Services) -> list[api.Program]:
    """All compute budgets of the federation."""
    return services.views.list_programs()


@post(
    "/budget-requests",
    tags=["budgets"],
    operation_class=OctetsOperation,
    request_max_body_size=BUDGET_REQUEST_BYTES_MAX,
)
async def post_budget_request(services: Services, request: AnyRequest) -> api.BudgetRequest:
    """Ask this institution for a budget (canonical bytes, signed by the person)."""
    return _describe_request(services.accept_budget_request(await read_body(request)))


@get("/budget-requests/{request_id:str}", tags=["budgets"])
async def get_budget_request(
    services: Services,
    request_id: Annotated[str, PathParameter(description="The id that the request was answered with: almr1...")],
) -> api.BudgetRequest:
    """Whether the institution has answered."""
    stored = services.store.get_budget_request(decode_path(AddressKind.RECORD, request_id))
    if stored is None:
        raise NotFound("this node knows no such request")
    return _describe_request(stored)


def _describe_request(stored: StoredRequest) -> api.BudgetRequest:
    """Without the text, which is between the person and the institution."""
    return api.BudgetRequest(
        id=name_record(stored.id),
        program=name_program(stored.program),
        account=name_account(stored.account),
        text="",
        state="approved" if stored.is_approved else "open",
    )


@get("/offers", tags=["jobs"])
async def get_offers(services: Services) -> list[job_api.Offer]:
    """Machines that donors offer now, but not those of suspended donors: no member votes for a hold in their favour.

    Each is signed; the reader checks it."""
    ledger, epoch = services.member.replica.ledger, services.views.epoch
    return [
        job_api.Offer(name_account(donor), encoded, expires, services.donor_views.find(donor))
        for donor, encoded, expires in services.store.list_offers(int(services.clock()))
        if not ledger.is_suspended(donor, epoch)
    ]


@get("/donors", tags=["jobs"])
async def get_donors(services: Services) -> list[job_api.Donor]:
    """Every donor, with how its jobs ended, the most reliable first. Whoever has the state computes the same."""
    return services.donor_views.list_donors()


@put(
    "/offers",
    tags=["jobs"],
    status_code=204,
    operation_class=OctetsOperation,
    request_max_body_size=OFFER_BYTES_MAX,
)
async def put_offer(services: Services, request: AnyRequest) -> None:
    """Publish or renew a donor's offer (canonical bytes, signed by the donor)."""
    services.accept_offer(await read_body(request))


@get("/jobs", tags=["jobs"])
async def get_jobs(services: Services) -> list[job_api.Job]:
    """The newest jobs that credits were held for."""
    return services.views.list_jobs()


@get("/jobs/{hold_id:str}", tags=["jobs"])
async def get_job(services: Services, hold_id: HoldId) -> job_api.Job:
    """What was held for a job, and what was paid."""
    job = services.views.build_job(decode_path(AddressKind.RECORD, hold_id))
    if job is None:
        raise NotFound("this node knows no such job")
    return job


@post(
    "/mailboxes/{mailbox:str}/messages",
    tags=["post"],
    operation_class=OctetsOperation,
    request_max_body_size=api.MESSAGE_BYTES_MAX,
)
async def post_message(services: Services, request: AnyRequest, mailbox: MailboxName) -> job_api.Posted:
    """Put a sealed letter into a mailbox. It is kept for a week."""
    name = decode_name(mailbox)
    return job_api.Posted(services.mailboxes.post(name, await read_body(request)))


@get("/mailboxes/{mailbox:str}/messages", tags=["post"])
async def get_messages(
    services: Services,
    request: AnyRequest,
    mailbox: MailboxName,
    after: Annotated[
        int, QueryParameter(ge=0, lt=2**53, description="`sequence` of the last letter read; 0 at first.")
    ] = 0,
    wait: Wait = 0,
) -> job_api.Messages:
    """Letters after a sequence, oldest first. With `wait`, answers as soon as there is one."""
    read: Callable[[], Any] = partial(services.mailboxes.read, decode_name(mailbox), after, wait)
    found = await (wait_for(request, services.closing, read) if wait else read())
    return job_api.Messages([job_api.Message(letter.sequence, letter.content) for letter in found])


@put(
    "/blobs/{digest:str}",
    tags=["post"],
    status_code=204,
    operation_class=OctetsOperation,
    request_max_body_size=api.BLOB_BYTES_MAX,
)
async def put_blob(services: Services, request: AnyRequest, digest: Digest) -> None:
    """Store a sealed bundle under its hash. It is kept for a week; repeating it renews that."""
    with services.blobs.begin(decode_name(digest)) as draft:
        async with aclosing(iterate_body(request, BLOB_SECONDS_MAX)) as pieces:
            async for piece in pieces:
                draft.write(piece)
        await trio.to_thread.run_sync(draft.finish)  # it waits for the disk


@get("/blobs/{digest:str}", tags=["post"], media_type=api.OCTETS)
async def get_blob(services: Services, digest: Digest) -> Stream:
    """A sealed bundle."""
    path = services.blobs.find(decode_name(digest))
    if path is None:
        raise NotFound("this node does not hold that bundle")
    return Stream(_Pieces(path), media_type=api.OCTETS, headers={"Content-Length": str(path.stat().st_size)})


class _Pieces:
    """A file piece by piece. It holds nothing open between two of them, for a reader may stop anywhere."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def __aiter__(self) -> _Pieces:
        return self

    async def __anext__(self) -> bytes:
        piece = await trio.to_thread.run_sync(self._read)
        if not piece:
            raise StopAsyncIteration
        self._offset += len(piece)
        return piece

    def _read(self) -> bytes:
        with open(self._path, "rb") as file:
            file.seek(self._offset)
            return file.read(_PIECE_BYTES)


PUBLIC_ROUTES = (
    get_health,
    get_status,
    get_evidence,
    get_charter,
    get_checkpoint,
    get_checkpoint_facts,
    get_account,
    get_account_proof,
    get_account_records,
    get_slot,
    get_record,
    submit_record,
    post_unlock,
    submit_proposal,
    get_suspensions,
    get_programs,
    post_budget_request,
    get_budget_request,
    get_offers,
    get_donors,
    put_offer,
    get_jobs,
    get_job,
    post_message,
    get_messages,
    put_blob,
    get_blob,
)
