"""Puts routes, failures and the OpenAPI document together: one application for the world, one for the operator."""

from __future__ import annotations

from litestar import Litestar, MediaType
from litestar.datastructures import ResponseHeader
from litestar.di import Provide
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import License, Tag
from litestar.router import Router

from node import api
from node.web.metering_routes import METERING_ROUTES
from node.web.operator_routes import OPERATOR_ROUTES
from node.web.problems import HANDLERS
from node.web.routes import PUBLIC_ROUTES
from node.web.services import WebServices

JSON_BYTES_MAX = 256 * 1024
"""The largest JSON body is a grant that names its people: 4,000 addresses."""

_DESCRIPTION = """\
A node of an Allmende federation. Ids are bech32m text, bytes in JSON are base64, amounts are integer millicredits.
Records, offers and letters travel as canonical bytes, because what is signed are bytes. Failures are problem
documents (RFC 9457); `reason` names the rule that forbids a record. Nothing here needs to be trusted: records come with
receipts of finality, which anybody can check against the charter."""

_TAGS = (
    Tag("ledger", "The charter, accounts and records."),
    Tag("budgets", "Programs of compute budgets, and asking for one."),
    Tag("jobs", "Offers of donors, and jobs that credits were held for."),
    Tag("post", "Sealed letters and bundles between wallets and donors."),
    Tag("node", "This node."),
)


def make_application(services: WebServices, *, with_operator: bool) -> Litestar:
    """The application of a node. Only with `with_operator` has it the routes that sign."""
    routes = [*PUBLIC_ROUTES, *METERING_ROUTES, *(OPERATOR_ROUTES if with_operator else ())]
    tags = [*_TAGS, *([Tag("operator", "Signing for the institution.")] if with_operator else [])]
    return Litestar(
        route_handlers=[Router(api.PREFIX, route_handlers=routes)],
        dependencies={"services": Provide(lambda: services, use_cache=True, sync_to_thread=False)},
        exception_handlers=dict(HANDLERS),
        openapi_config=OpenAPIConfig(
            title="Allmende node",
            version=services.version,
            description=_DESCRIPTION,
            license=License("Apache-2.0", identifier="Apache-2.0"),
            tags=tags,
            path="/schema",
            use_handler_docstrings=True,
            render_plugins=[JsonRenderPlugin(path=["/", "/openapi.json"], media_type=MediaType.JSON)],
        ),
        request_max_body_size=JSON_BYTES_MAX,
        response_headers=[
            ResponseHeader(name="X-Content-Type-Options", value="nosniff", documentation_only=False),
            ResponseHeader(name="Cache-Control", value="no-store"),
        ],
        logging_config=None,
        debug=False,
        pdb_on_exception=False,
    )
