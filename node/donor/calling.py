"""The donor's end of one conversation: what it says is numbered, signed and sealed; what it hears is checked."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import NoReturn

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.donor.job_file import JobFile
from node.donor.post import Post
from node.errors import UserError
from node.sealing import open_sealed, seal
from protocol.conversation import Message, compute_seal_context, decode_envelope, encode_envelope
from protocol.errors import InvalidInput, Rejected
from protocol.quotes import QuoteRequest

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 30.0
"""For what is said again in another form: log and ticks. The end of a job is worth a longer wait."""


class Line:
    """Both directions of a conversation with one wallet."""

    def __init__(
        self,
        federation: bytes,
        key: Ed25519PrivateKey,
        seal_seed: bytes,
        post: Post,
        job: JobFile,
        request: QuoteRequest,
    ) -> None:
        self._federation = federation
        self._key = key
        self._seal_seed = seal_seed
        self._post = post
        self._job = job
        self._request = request
        self._turn = trio.Lock()

    async def say(self, message: Message, patience_seconds: float = PATIENCE_SECONDS) -> None:
        """Post a message; one that the node does not take in that time is lost.

        Its number is used up on disk first, so after a crash the next message has a higher one; a gap means nothing.
        """
        mailbox = self._request.mailbox_to_wallet
        async with self._turn:
            number = self._job.document.sent
            self._job.document.sent = number + 1
            self._job.save()
            envelope = encode_envelope(self._federation, self._key, mailbox, number, message)
            sealed = seal(self._request.seal_key, envelope, compute_seal_context(b"message", mailbox))
            try:
                with trio.move_on_after(patience_seconds) as patience:
                    await self._post.insist(self._post.link.post_message, mailbox, sealed)
                if patience.cancelled_caught:
                    log.warning("job %s: the node took no message in time", self._job.directory.name[:8])
            except (UserError, InvalidInput, Rejected) as error:
                # A full mailbox must not end the job: what counts is said again at its end.
                log.warning("job %s: the node takes no message: %s", self._job.directory.name[:8], error)

    async def hear(self, handle: Callable[[Message], Awaitable[None]]) -> NoReturn:
        """Hand over every message of the wallet, once, in order; never ends.

        The place is written down after a message was handled: what was not acted on comes again.
        """
        document = self._job.document
        while True:
            for posted in await self._post.read(self._request.mailbox_to_donor, document.after):
                opened = self._open(posted.content)
                if opened is not None and opened[0] > document.received:
                    try:
                        await handle(opened[1])
                    except InvalidInput as error:
                        log.info("job %s: a message is ignored: %s", document.conversation[:8], error)
                    document.received = opened[0]
                document.after = posted.sequence
                self._job.save()

    def _open(self, sealed: bytes) -> tuple[int, Message] | None:
        """(number, message), or None for what is not the wallet's."""
        mailbox = self._request.mailbox_to_donor
        try:
            envelope = open_sealed(self._seal_seed, sealed, compute_seal_context(b"message", mailbox))
            return decode_envelope(self._federation, self._request.meter_key, mailbox, envelope)
        except InvalidInput as error:
            log.info("job %s: a message is ignored: %s", self._job.document.conversation[:8], error)
            return None
