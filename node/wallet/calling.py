"""The wallet's end of a conversation with a donor: messages numbered, signed and sealed, in mailboxes at its node."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from node.bundles import compute_digest
from node.errors import Unreachable, UserError
from node.sealing import open_sealed, seal
from node.wallet.job_records import WalletJob, save_job
from protocol.conversation import Message, compute_seal_context, decode_envelope, encode_envelope
from protocol.errors import InvalidInput

if TYPE_CHECKING:
    from node.client import NodeClient
    from node.wallet.wallet import Wallet

T = TypeVar("T")

PATIENCE_SECONDS = 120.0
"""How long a node may be away while a job is followed. The job goes on meanwhile, for as long as its donor waits."""
PAUSE_SECONDS = 1.0


def _patiently(call: Callable[[], T]) -> T:
    """The call's answer, or `Unreachable` when the node stays away. Only for calls that may be repeated."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return call()
        except Unreachable:
            if time.monotonic() > deadline:
                raise
        time.sleep(PAUSE_SECONDS)


class Connections:
    """Connections to the nodes of donors, one for each, closed at the end. The wallet's own is used again."""

    def __init__(self, wallet: Wallet) -> None:
        self._wallet = wallet
        self._others: dict[str, NodeClient] = {}

    def __call__(self, url: str) -> NodeClient:
        from node.client import NodeClient

        if url.rstrip("/") == self._wallet.node_url.rstrip("/"):
            return self._wallet.client
        if url not in self._others:
            self._others[url] = NodeClient(url)
        return self._others[url]

    def __enter__(self) -> Connections:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._others.values():
            client.close()


class Line:
    """Both directions of one job's conversation."""

    def __init__(self, wallet: Wallet, job: WalletJob, connect: Callable[[str], NodeClient]) -> None:
        self._wallet = wallet
        self._job = job
        self._offer = job.decode_offer(wallet)
        self._request = job.decode_request(wallet)
        self.client = connect(self._offer.node_url)

    def say(self, message: Message) -> None:
        """Post a message. Its number is used up on disk first: a gap means nothing, a repetition is ignored."""
        job, mailbox = self._job, self._request.mailbox_to_donor
        assert not job.is_detached, "two speakers would use the same numbers"
        number = job.sent
        job.sent = number + 1
        save_job(self._wallet, job)
        envelope = encode_envelope(self._wallet.federation, job.meter_key, mailbox, number, message)
        sealed = seal(self._offer.seal_key, envelope, compute_seal_context(b"message", mailbox))
        self.post(mailbox, sealed)

    def post(self, mailbox: bytes, sealed: bytes) -> None:
        """Post a letter. It may arrive twice, which does no harm to anything that is said here."""
        _patiently(lambda: self.client.post_message(mailbox, sealed))

    def hear(self, handle: Callable[[Message], None], wait_seconds: float) -> int:
        """Hand over the donor's new messages, once each, in order; returns how many there were.

        The place is written down after a message was handled, so what was not acted on comes again.
        """
        job, mailbox, count = self._job, self._request.mailbox_to_wallet, 0
        context = compute_seal_context(b"message", mailbox)
        for posted in _patiently(lambda: self.client.get_messages(mailbox, after=job.after, wait=int(wait_seconds))):
            try:
                envelope = open_sealed(job.seal_seed, posted.content, context)
                number, message = decode_envelope(self._wallet.federation, self._offer.donor_key, mailbox, envelope)
            except InvalidInput:
                job.after = posted.sequence
                continue  # not the donor's: anybody at the node could have put it there
            if number > job.received:
                handle(message)
                job.received = number
                count += 1
            job.after = posted.sequence
            save_job(self._wallet, job)
        return count

    def put_blob(self, content: bytes) -> bytes:
        """Upload; returns the digest that names it."""
        _patiently(lambda: self.client.put_blob(content))
        return compute_digest(content)

    def get_blob(self, digest: bytes) -> bytes:
        """Download and check. Raises: UserError when the node gives something else."""
        content = _patiently(lambda: self.client.get_blob(digest))
        if compute_digest(content) != digest:
            raise UserError("the node gave another blob than the one that was asked for: try again")
        return content
