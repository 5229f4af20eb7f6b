"""What all jobs of one agent share: the keys, the charter, the way to the node, the machine, and its owner's word."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.donor.earnings import Use, compute_use, read_entry
from node.donor.executors.executor import Executor
from node.donor.job_file import JobDocument
from node.donor.machine import Machine
from node.donor.owner import Verdict
from node.donor.post import Post
from node.donor.runtimes import Runtime
from node.donor.settings import Settings, SettingsWatch
from node.errors import UserError
from node.known_charters import KnownCharters
from protocol.charter import Charter
from protocol.errors import InvalidInput
from protocol.identifiers import compute_account_id

log = logging.getLogger(__name__)


@dataclass
class Workshop:
    """One for an agent. What changes while it runs is read here, by all, at the moment when it matters."""

    charters: KnownCharters
    key: Ed25519PrivateKey
    seal_seed: bytes
    settings_watch: SettingsWatch
    post: Post
    executor: Executor
    machine: Machine
    runtimes: dict[bytes, Runtime]
    """Those that are offered, by digest."""
    now: Callable[[], float]
    """Unix seconds."""
    wish: str = "run"
    """What the owner asked for last: `run`, `pause` or `finish`."""
    verdict: Verdict = field(default_factory=lambda: Verdict(True))
    """Whose machine it is now."""
    documents: dict[str, JobDocument] = field(default_factory=dict)
    """Every job that was ever started or may be, by its conversation."""

    @property
    def settings(self) -> Settings:
        """What the owner prefers now."""
        return self.settings_watch.settings

    @property
    def charter(self) -> Charter:
        """The newest version that is known here."""
        return self.charters.newest

    @property
    def account(self) -> bytes:
        """The donor's, which is paid."""
        return compute_account_id(self.charter.federation, self.key.public_key().public_bytes_raw())

    def compute_use(self, account: bytes, but: str = "") -> Use:
        """What was used here in this epoch, without the job of the conversation `but`."""
        epoch = self.charter.compute_epoch(int(self.now()))
        entries = (read_entry(self.charter, document) for document in self.documents.values())
        return compute_use(entries, account, epoch, but)

    async def learn_charters(self) -> None:
        """Ask the node for amendments of the charter; what does not hold, or does not come, is left."""
        try:
            answer = await self.post.call(self.post.link.get_charter)
            if self.charters.learn([amendment.receipt for amendment in answer.amendments]):
                log.info("the charter has version %d now", self.charter.version)
        except (UserError, InvalidInput) as error:
            log.warning("the charter's amendments are not known: %s", error)
