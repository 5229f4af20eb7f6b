"""How a node answers a peer's question: the handler may fail in any way, the peer learns only what it should.

Errors by fault: `InvalidInput` is the peer's (told, and its standing falls); `Rejected` and `UserError` are
answers in words; `AssertionError` is ours and stops the node through the `Fuse`; anything else is logged
here and reaches the peer as "failed", because an unexpected error's text may hold what is none of its
business.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import trio

from node.errors import UserError
from node.network.transport import RESPONSE_BYTES_MAX, Handler
from protocol.errors import InvalidInput, Rejected

log = logging.getLogger(__name__)

_TEXT_BYTES_MAX = 500


class Fuse:
    """Carries the first broken invariant out of a task whose errors somebody else's code swallows."""

    def __init__(self) -> None:
        self._error: AssertionError | None = None
        self._blown = trio.Event()

    def blow(self, error: AssertionError) -> None:
        self._error = self._error or error
        self._blown.set()

    async def watch(self) -> None:
        """Raises the AssertionError as soon as there is one."""
        await self._blown.wait()
        assert self._error is not None
        raise self._error


class Reply(NamedTuple):
    """What goes back to the asker: the answer, or one line of text when there is none."""

    is_answer: bool
    content: bytes


async def compute_reply(
    handler: Handler, peer_id: str, question: bytes, *, blame: Callable[[str], None], fuse: Fuse
) -> Reply:
    """Ask the handler. Never raises an Exception."""
    try:
        answer = await handler(peer_id, question)
        if len(answer) <= RESPONSE_BYTES_MAX:
            return Reply(True, answer)
        log.error("an answer of %d bytes to %s is above the limit and was not sent", len(answer), peer_id)
        return _refuse("failed")
    except AssertionError as error:
        fuse.blow(error)
        return _refuse("failed")
    except InvalidInput as error:
        blame(peer_id)
        return _refuse(f"invalid request: {error}")
    except (Rejected, UserError) as error:
        return _refuse(str(error))
    except Exception:
        log.exception("answering %s failed", peer_id)
        return _refuse("failed")


def _refuse(text: str) -> Reply:
    return Reply(False, text.encode()[:_TEXT_BYTES_MAX])


def read_refusal(content: bytes) -> str:
    """A peer's words for our log and terminal: one line, printable, short."""
    text = content[:_TEXT_BYTES_MAX].decode(errors="replace")
    return "".join(letter if letter.isprintable() else " " for letter in text)
