"""The operator's routes: everything that signs with the institution's key. They exist on the private socket alone.

Who may open the socket is the operator: the file system decides (mode 0600), there is no password.
"""

from __future__ import annotations

from typing import Annotated

from litestar import get, post
from litestar.params import FromPath, JSONBody, QueryParameter

from node import api
from node.errors import UserError
from node.web.routes import Services
from node.web.services import ConductActions, OperatorActions, WebServices

DryRun = Annotated[bool, QueryParameter(description="Say what would be done, and do nothing.")]


def _get_operator(services: WebServices) -> OperatorActions:
    if services.operator is None:
        raise UserError("this node holds no member key: sign on the machine that has it")
    return services.operator


def _get_conduct(services: WebServices) -> ConductActions:
    if services.conduct is None:
        raise UserError("this node holds no member key: sign on the machine that has it")
    return services.conduct


@post("/operator/programs", tags=["operator"], status_code=200)
async def create_program(services: Services, data: JSONBody[api.ProgramDraft], dry_run: DryRun = False) -> api.Signed:
    """Declare a compute budget."""
    return await _get_operator(services).create_program(data, dry_run=dry_run)


@get("/operator/budget-requests", tags=["operator"])
async def list_budget_requests(services: Services) -> list[api.BudgetRequest]:
    """People who ask for a budget of this institution."""
    return await _get_operator(services).list_budget_requests()


@post("/operator/budget-requests/{request_id:str}/approve", tags=["operator"], status_code=200)
async def approve_budget_request(services: Services, request_id: FromPath[str], dry_run: DryRun = False) -> api.Signed:
    """Enrol the person who asked."""
    return await _get_operator(services).approve(request_id, dry_run=dry_run)


@post("/operator/grants", tags=["operator"], status_code=200)
async def grant(services: Services, data: JSONBody[api.GrantOrder], dry_run: DryRun = False) -> api.Signed:
    """Pay allowances."""
    return await _get_operator(services).grant(data, dry_run=dry_run)


@post("/operator/sponsors", tags=["operator"], status_code=200)
async def sponsor(services: Services, data: JSONBody[api.SponsorOrder], dry_run: DryRun = False) -> api.Signed:
    """Vouch for a donor."""
    return await _get_operator(services).sponsor(data, dry_run=dry_run)


@post("/operator/suspensions", tags=["operator"], status_code=200)
async def suspend(services: Services, data: JSONBody[api.SuspendOrder], dry_run: DryRun = False) -> api.Signed:
    """Stop an account for a while."""
    return await _get_conduct(services).suspend(data, dry_run=dry_run)


@post("/operator/reinstatements", tags=["operator"], status_code=200)
async def reinstate(services: Services, data: JSONBody[api.ReinstateOrder], dry_run: DryRun = False) -> api.Signed:
    """End a suspension before its time."""
    return await _get_conduct(services).reinstate(data, dry_run=dry_run)


@post("/operator/leaves", tags=["operator"], status_code=200)
async def complete_leave(services: Services, data: JSONBody[api.LeaveOrder], dry_run: DryRun = False) -> api.Signed:
    """Let a person go who signed for it."""
    return await _get_conduct(services).complete_leave(data.record, dry_run=dry_run)


OPERATOR_ROUTES = (
    create_program,
    list_budget_requests,
    approve_budget_request,
    grant,
    sponsor,
    suspend,
    reinstate,
    complete_leave,
)
