"""Leaving a job's meter to this node, and taking it back: for people whose wallet is switched off for a while.

Nobody is asked who they are: an order holds the job's own key, and a job is found again only by a name that is made
of that key.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

from litestar import post
from litestar.params import JSONBody, PathParameter, QueryParameter

from node import job_api
from node.errors import UserError
from node.web.exchange import wait_for
from node.web.problems import AnyRequest, NotFound
from node.web.routes import Services, decode_name
from node.web.services import Metering, WebServices

Ticket = Annotated[str, PathParameter(description="The job's name between its wallet and this node: 32 bytes in hex.")]
Turn = Annotated[int, QueryParameter(ge=1, lt=2**53, description="`turn` of the order.")]


def _require(services: WebServices) -> Metering:
    """Raises: UserError at a node that does not meter."""
    if services.metering is None:
        raise UserError("this node answers no meters for others")
    return services.metering


@post("/metering", tags=["jobs"], status_code=200)
async def post_metering(services: Services, data: JSONBody[job_api.MeteringOrder]) -> job_api.Metered:
    """Answer a job's meter from now on, within the order's limits. Repeating it changes nothing."""
    return _require(services).accept(data)


@post("/metering/{ticket:str}/return", tags=["jobs"], status_code=200)
async def take_metering_back(services: Services, request: AnyRequest, ticket: Ticket, turn: Turn) -> job_api.Metered:
    """Stop answering, and say how far the job came. Repeating it changes nothing; the answer is kept for some days."""
    give_back = partial(_require(services).give_back, decode_name(ticket), turn)
    found = await wait_for(request, services.closing, give_back)
    if found is None:
        raise NotFound("this node knows no such job")
    return found


METERING_ROUTES = (post_metering, take_metering_back)
