"""The operator's routes: everything that signs with the institution's key. They exist on the private socket alone.

Who may open the socket is the operator: the file system decides (mode 0600), there is no password.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

from litestar import get, post
from litestar.params import FromPath, JSONBody, QueryParameter

from node import api
from node.errors import UserError
from node.web.routes import Services

Actions = TypeVar("Actions")

DryRun = Annotated[bool, QueryParameter(description="Say what would be done, and do nothing.")]


def _require(actions: Actions | None) -> Actions:
    """Raises: UserError at a node that can't sign for the institution."""
    if actions is None:
        raise UserError("this node holds no member key: sign on the machine that has it")
    return actions


@post("/operator/programs", tags=["operator"], status_code=200)
async def create_program(services: Services, data: JSONBody[api.ProgramDraft], dry_run: DryRun = False) -> api.Signed:
    """Declare a compute budget."""
    return await _require(services.operator).create_program(data, dry_run=dry_run)


@get("/operator/budget-requests", tags=["operator"])
async def list_budget_requests(services: Services) -> list[api.BudgetRequest]:
    """People who ask for a budget of this institution."""
    return await _require(services.operator).list_budget_requests()


@post("/operator/budget-requests/{request_id:str}/approve", tags=["operator"], status_code=200)
async def approve_budget_request(services: Services, request_id: FromPath[str], dry_run: DryRun = False) -> api.Signed:
    """Enrol the person who asked."""
    return await _require(services.operator).approve(request_id, dry_run=dry_run)


@post("/operator/grants", tags=["operator"], status_code=200)
async def grant(services: Services, data: JSONBody[api.GrantOrder], dry_run: DryRun = False) -> api.Signed:
    """Pay allowances."""
    return await _require(services.operator).grant(data, dry_run=dry_run)


@post("/operator/sponsors", tags=["operator"], status_code=200)
async def sponsor(services: Services, data: JSONBody[api.SponsorOrder], dry_run: DryRun = False) -> api.Signed:
    """Vouch for a donor."""
    return await _require(services.operator).sponsor(data, dry_run=dry_run)


@post("/operator/checkpoint", tags=["operator"], status_code=202)
async def pick_checkpoint(services: Services) -> None:
    """Ask the members to certify the state that this node's last batch rests on."""
    services.member.signing.check("any other member can ask for a checkpoint")
    services.member.checkpoints.pick()


@post("/operator/archive", tags=["operator"], status_code=200)
async def fetch_archive(services: Services) -> api.FetchedArchive:
    """Fetch back what lies before the checkpoint with which this node's ledger begins."""
    if services.fetch_archive is None:
        raise UserError("this node has no network")
    return await services.fetch_archive()


@get("/operator/vote-cards", tags=["operator"])
async def collect_vote_cards(services: Services) -> list[api.VoteCard]:
    """The vote keys for the next charter version, of this member and all that answer it."""
    return await _require(services.amendments).collect_vote_cards()


@post("/operator/amendments", tags=["operator"], status_code=200)
async def propose_amendment(
    services: Services, data: JSONBody[api.AmendmentOrder], dry_run: DryRun = False
) -> api.Signed:
    """Sign an amendment of the charter, approve it and tell everybody."""
    return await _require(services.amendments).propose(data, dry_run=dry_run)


@post("/operator/amendments/{record_id:str}/approve", tags=["operator"], status_code=200)
async def approve_amendment(services: Services, record_id: FromPath[str], dry_run: DryRun = False) -> api.Signed:
    """Let this institution's member vote for an amendment."""
    return await _require(services.amendments).approve_amendment(record_id, dry_run=dry_run)


@post("/operator/amendments/{record_id:str}/unlock", tags=["operator"], status_code=200)
async def unlock_amendment(services: Services, record_id: FromPath[str], dry_run: DryRun = False) -> api.Signed:
    """Make another attempt at an amendment, when the votes are split."""
    return await _require(services.amendments).unlock_amendment(record_id, dry_run=dry_run)


@post("/operator/suspensions", tags=["operator"], status_code=200)
async def suspend(services: Services, data: JSONBody[api.SuspendOrder], dry_run: DryRun = False) -> api.Signed:
    """Stop an account for a while."""
    return await _require(services.conduct).suspend(data, dry_run=dry_run)


@post("/operator/reinstatements", tags=["operator"], status_code=200)
async def reinstate(services: Services, data: JSONBody[api.ReinstateOrder], dry_run: DryRun = False) -> api.Signed:
    """End a suspension before its time."""
    return await _require(services.conduct).reinstate(data, dry_run=dry_run)


@post("/operator/leaves", tags=["operator"], status_code=200)
async def complete_leave(services: Services, data: JSONBody[api.LeaveOrder], dry_run: DryRun = False) -> api.Signed:
    """Let a person go who signed for it."""
    return await _require(services.conduct).complete_leave(data.record, dry_run=dry_run)


OPERATOR_ROUTES = (
    pick_checkpoint,
    fetch_archive,
    create_program,
    list_budget_requests,
    approve_budget_request,
    grant,
    sponsor,
    collect_vote_cards,
    propose_amendment,
    approve_amendment,
    unlock_amendment,
    suspend,
    reinstate,
    complete_leave,
)
