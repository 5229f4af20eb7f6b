"""How bodies come in and how an answer is waited for: within limits of size and time, and never for nobody."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

import trio
from litestar.exceptions import InternalServerException
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIType, Operation, RequestBody, Schema

from node import api
from node.web.problems import AnyRequest, ClientGone, ShuttingDown, TooSlow

BODY_SECONDS_MAX = 30.0
"""A record on the slowest line that one would use."""

BLOB_SECONDS_MAX = 600.0
"""64 MB at 1 Mbit/s."""

Answer = TypeVar("Answer")


@dataclass
class OctetsOperation(Operation):
    """An operation whose body are canonical bytes, for the OpenAPI document."""

    def __post_init__(self) -> None:
        """Describe the body, which the handler reads by itself."""
        schema = Schema(type=OpenAPIType.STRING, content_media_type=api.OCTETS)
        self.request_body = RequestBody(content={api.OCTETS: OpenAPIMediaType(schema=schema)}, required=True)


async def iterate_body(request: AnyRequest, seconds_max: float = BODY_SECONDS_MAX) -> AsyncGenerator[bytes, None]:
    """The pieces of a body as they arrive; its size is bounded by the route.

    Raises: TooSlow, ClientGone; litestar's own 413.
    """
    deadline = trio.current_time() + seconds_max
    async with aclosing(request.stream()) as pieces:
        while True:
            piece = None
            with trio.move_on_at(deadline) as scope:
                try:
                    piece = await anext(pieces, None)
                except InternalServerException as error:
                    raise ClientGone("the client went away") from error
            if scope.cancelled_caught:
                raise TooSlow(f"the content did not arrive within {seconds_max:.0f} s")
            if piece is None:
                return
            yield piece


async def read_body(request: AnyRequest) -> bytes:
    """A small body, whole. Raises: as `iterate_body`."""
    async with aclosing(iterate_body(request)) as pieces:
        return b"".join([piece async for piece in pieces])


async def wait_for(request: AnyRequest, closing: trio.Event, work: Callable[[], Awaitable[Answer]]) -> Answer:
    """The outcome of `work`, given up when the client goes away or the node stops.

    Raises: ClientGone, ShuttingDown; whatever `work` raises.
    """
    outcome: list[Answer] = []
    failures: list[Exception] = []

    async def watch_client() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        failures.append(ClientGone("the client went away"))
        nursery.cancel_scope.cancel()

    async def watch_node() -> None:
        await closing.wait()
        failures.append(ShuttingDown("this node stops: ask again in a moment"))
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_client)
        nursery.start_soon(watch_node)
        try:
            outcome.append(await work())
        except Exception as error:  # carried out of the nursery, which would wrap it into a group
            failures.append(error)
        nursery.cancel_scope.cancel()
    if outcome:
        return outcome[0]
    raise failures[-1]
