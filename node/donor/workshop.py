"""What all jobs of one agent share: the keys, the charter, the way to the node, the machine itself."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.donor.executors.executor import Executor
from node.donor.post import Post
from node.donor.runtimes import Runtime
from node.donor.settings import Settings
from node.errors import UserError
from node.known_charters import KnownCharters
from protocol.charter import Charter
from protocol.errors import InvalidInput
from protocol.quotes import QuoteRequest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workshop:
    """`take_machine(conversation, request)` asks for a share of the machine and says whether there was one."""

    charters: KnownCharters
    key: Ed25519PrivateKey
    seal_seed: bytes
    settings: Settings
    post: Post
    executor: Executor
    runtimes: dict[bytes, Runtime]
    """Those that are offered, by digest."""
    hosts: tuple[str, ...]
    """What a job that asks for a network may reach, as `name:port`."""
    now: Callable[[], float]
    """Unix seconds."""
    take_machine: Callable[[str, QuoteRequest], bool]
    give_back_machine: Callable[[str], None]

    @property
    def charter(self) -> Charter:
        """The newest version that is known here."""
        return self.charters.newest

    async def learn_charters(self) -> None:
        """Ask the node for amendments of the charter; what does not hold, or does not come, is left."""
        try:
            answer = await self.post.call(self.post.link.get_charter)
            if self.charters.learn([amendment.receipt for amendment in answer.amendments]):
                log.info("the charter has version %d now", self.charter.version)
        except (UserError, InvalidInput) as error:
            log.warning("the charter's amendments are not known: %s", error)
