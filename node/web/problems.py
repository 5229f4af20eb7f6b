"""Failures as answers: each kind of error becomes one problem document (RFC 9457), and nothing of the node's inside.

Who is at fault decides the status: 4xx is the asker's (400 malformed, 404 unknown, 408 too slow, 409 forbidden by a
rule, 413 too large), 503 says "later, the same again", 500 is ours and is told to the log alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException

from node import api
from node.errors import UserError
from node.storage.database import StoreFailed
from node.storage.store import StoreFull
from node.submissions import Busy
from protocol.errors import InvalidInput, Rejected

log = logging.getLogger("allmende.web")

PROBLEM_TYPE = "application/problem+json"
RETRY_SECONDS = 2
_DETAIL_CHARACTERS_MAX = 500

AnyRequest = Request[Any, Any, Any]
AnyResponse = Response[Any]


class NotFound(Exception):
    """There is no such thing here. The text says what is missing."""


class TooSlow(Exception):
    """The request did not arrive in time."""


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


class ShuttingDown(Exception):
    """The node stops; the asker may come back."""


def make_problem(status: int, detail: str, reason: str | None = None) -> AnyResponse:
    """One problem document as an answer."""
    problem = api.Problem("about:blank", HTTPStatus(status).phrase, status, detail[:_DETAIL_CHARACTERS_MAX], reason)
    headers = {"Retry-After": str(RETRY_SECONDS)} if status in (429, 503) else {}
    return Response(
        msgspec.json.encode(problem),
        status_code=status,
        media_type=PROBLEM_TYPE,
        headers=headers,
    )


def _handle_invalid(request: AnyRequest, error: InvalidInput) -> AnyResponse:
    return make_problem(400, str(error) or "the content is malformed")


def _handle_rejected(request: AnyRequest, error: Rejected) -> AnyResponse:
    return make_problem(409, str(error), error.reason.name)


def _handle_http(request: AnyRequest, error: HTTPException) -> AnyResponse:
    detail = error.detail
    if isinstance(error, ValidationException) and isinstance(error.extra, list):
        found = [f"{each.get('key', '')}: {each.get('message', '')}" for each in error.extra if isinstance(each, dict)]
        detail = "; ".join([error.detail.split(" for ")[0], *found])
    if error.status_code >= 500:
        return _handle_unexpected(request, error)
    if error.status_code == 413:
        detail = "the content is too large"
    return make_problem(error.status_code, " ".join(detail.split()))


def _handle_unexpected(request: AnyRequest, error: Exception) -> AnyResponse:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return make_problem(500, "this node failed; its log says more")


def _handle_store_failed(request: AnyRequest, error: StoreFailed) -> AnyResponse:
    log.error("%s", error)  # it names paths, which are nobody's business outside
    return make_problem(503, "this node can't store anything at the moment")


def _say(status: int) -> Callable[[AnyRequest, Exception], AnyResponse]:
    return lambda request, error: make_problem(status, str(error))


HANDLERS: Mapping[int | type[Exception], Callable[[AnyRequest, Any], AnyResponse]] = {
    InvalidInput: _handle_invalid,
    Rejected: _handle_rejected,
    NotFound: _say(404),
    TooSlow: _say(408),
    ClientGone: _say(400),  # nobody reads it
    UserError: _say(409),
    StoreFailed: _handle_store_failed,
    StoreFull: _say(503),
    Busy: _say(503),
    ShuttingDown: _say(503),
    HTTPException: _handle_http,
    Exception: _handle_unexpected,
}
"""The nearest class of an error decides."""
