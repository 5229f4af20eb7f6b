"""How the commands of an institution reach their node: over its private socket, for public reads also over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import TYPE_CHECKING

from node.config import NodeHome
from node.errors import Unreachable

if TYPE_CHECKING:
    from node.client import NodeClient

CLOCK_SECONDS = 5.0


@contextmanager
def connect(home: NodeHome, url: str | None = None) -> Iterator[NodeClient]:
    """The node of this home, or the one at a URL. Raises: UserError; Unreachable when it does not run."""
    from node.client import NodeClient

    if url is None:
        home.load_config()
        if not home.socket.exists():
            raise Unreachable(f"the node in {home.path} does not run: start it with `allmende node run`")
        client = NodeClient(home.socket)
    else:
        client = NodeClient(url)
    try:
        yield client
    finally:
        client.close()


def read_server_clock(url: str) -> float:
    """Unix time that a web server puts into its answers. Raises: Unreachable."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    try:
        try:
            with urlopen(Request(url, method="HEAD"), timeout=CLOCK_SECONDS) as answer:
                date = answer.headers["Date"]
        except HTTPError as error:  # a server that refuses tells the time as well
            date = error.headers["Date"]
    except (OSError, HTTPException, ValueError) as error:
        raise Unreachable(f"{url} does not answer ({error})") from None
    try:
        return parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        raise Unreachable(f"{url} answers without a date") from None
